"""How the run of an actor is started: the coroutine that the executor steps, made of what the actor asks for.

Theory. A run happens in up to three places: the executor's task, the host's loop (asyncio, where the program runs on
it), and a backend (a thread, a process, the loop that `backend=` names). What an actor asks for says what is done
where:

* The function runs in its backend; where that is the host or none, as a part of the executor's task or of a task of the
  host.
* Its dependencies run where it does (`inner`), except for those that cannot: async ones of a function that blocks run
  around the call (`dependencies.around`), in trio or on the host.
* Middlewares run around all of that. They and the dependencies around the call are the program's async code, so they
  run on the host loop, also where the function does not: the call then goes back to trio (`_BackInTrio`).

Which of these an actor needs is found once, when its worker starts; what is called for each run decides nothing.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import Any

from ..actors import Actor
from ..errors import ConfigurationError
from ..inject import MESSAGE, Bind, Message, Plan, Supplied, SuppliedAsync, SyncMessage, Values
from ..names import brief, onion
from ..ports import Backend, HostBackend
from .backends import abandoned

Start = Callable[[dict[str, Any], Message | None], Coroutine[Any, Any, Any]]
"""Called with the arguments of a run, and its message where something asks for that."""

Call = Callable[..., Awaitable[Any]]
"""Called with the message, and with the values of dependencies where it has any."""


def bind_for_threads(plan: Plan) -> Bind:
    """The binding of a function that blocks: it is given the message for threads."""
    bind = plan.bind
    if not plan.signature.messages:
        return bind
    return lambda envelope, message: bind(envelope, _for_threads(message))


def _for_threads(message: Message | None) -> Any:
    return None if message is None else SyncMessage(message)


def is_surrounded(actor: Actor) -> bool:
    """Whether something runs around its calls: middlewares, or async dependencies of a sync function."""
    dependencies = actor.plan.dependencies
    return bool(actor.middlewares) or (dependencies is not None and bool(dependencies.outer))


def starter(actor: Actor, backend: Backend | None, host: HostBackend | None) -> Start:
    """How to get the coroutine of one run: a part of the executor's task, or of the host's task for that run."""
    function = actor.function
    if is_surrounded(actor):
        return _start_around(actor, backend, host)
    supplied = None if actor.plan.dependencies is None else actor.plan.dependencies.inner
    if backend is None or backend is host:
        if supplied is None:
            return lambda arguments, _: function(**arguments)
        return lambda arguments, message: supplied({MESSAGE: message}, arguments)
    call: Callable[..., Any] = backend.call
    if supplied is None:
        return lambda arguments, _: call(function, (), arguments)
    if isinstance(supplied, SuppliedAsync):
        return lambda arguments, message: call(supplied, ({MESSAGE: message}, arguments), {})
    return lambda arguments, message: call(supplied, ({MESSAGE: _for_threads(message)}, arguments), {})


def _start_around(actor: Actor, backend: Backend | None, host: HostBackend | None) -> Start:
    """The same with middlewares around it, and within these the dependencies that do not run where it does."""
    dependencies = actor.plan.dependencies
    if dependencies is None:
        call = _call(actor.function, backend, host)
    else:
        call = _call_supplied(dependencies.inner, backend, host)
    back = None if host is None or backend is host else _BackInTrio(call, host)
    innermost: Call = call if back is None else back
    if dependencies is not None:
        innermost = partial(dependencies.around, innermost)
    start = _start_through_middlewares(actor, innermost)
    return start if host is None or back is None else _start_on_host(start, back, host)


def _call(function: Callable[..., Any], backend: Backend | None, host: HostBackend | None) -> Call:
    async def call(message: Message) -> Any:
        if backend is None or backend is host:
            return await function(**message.arguments)
        return await backend.call(function, (), message.arguments)

    return call


def _call_supplied(supplied: Supplied, backend: Backend | None, host: HostBackend | None) -> Call:
    async def call(message: Message, given: Values) -> Any:
        if backend is None or backend is host:
            return await supplied(given, message.arguments)
        if MESSAGE in given and not isinstance(supplied, SuppliedAsync):
            given = {**given, MESSAGE: _for_threads(message)}
        return await backend.call(supplied, (given, message.arguments), {})

    return call


def _start_on_host(start: Start, back: _BackInTrio, host: HostBackend) -> Start:
    """The same start on the host loop, for what runs around a call whose function runs elsewhere."""

    async def start_on_host(arguments: dict[str, Any], message: Message | None) -> Any:
        try:
            return await host.call(start, (arguments, message), {})
        finally:
            if message in back.left_behind:
                back.left_behind.discard(message)
                abandoned.set(True)

    return start_on_host


def _start_through_middlewares(actor: Actor, call: Call) -> Start:
    async def innermost(message: Message, _: Actor) -> Any:
        return await call(message)

    around = onion(innermost, actor.middlewares, _check_given)

    async def start(arguments: dict[str, Any], message: Message | None) -> Any:
        assert message is not None  # middlewares are among the reasons to make one
        message.arguments = arguments
        try:
            return await around(message, actor)
        finally:
            message.arguments = {}

    return start


def _check_given(middleware: str, given: tuple[Any, ...]) -> None:
    """Raises `ConfigurationError` unless a middleware gives the rest of the call a message and an actor."""
    kinds = (Message, Actor)
    if len(given) == len(kinds) and all(map(isinstance, given, kinds)):
        return
    raise ConfigurationError(
        f"the middleware {middleware} called call_next({', '.join(map(brief, given))}): write "
        "`await call_next(message, actor)`, with the message and the actor that the middleware was given"
    )


class _BackInTrio:
    """A call made from the host loop to where the worker runs. `left_behind`: whose thread was, for the executor to
    know.
    """

    def __init__(self, call: Call, host: HostBackend) -> None:
        self._call = call
        self._back = host.back_in_trio(self._watch)
        self.left_behind: set[Message | None] = set()

    async def __call__(self, message: Message, *given: Values) -> Any:
        return await self._back(message, *given)

    async def _watch(self, message: Message, *given: Values) -> Any:
        try:
            return await self._call(message, *given)
        finally:
            if abandoned.get():
                self.left_behind.add(message)
