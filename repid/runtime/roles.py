"""Actors as one worker runs them, and which message goes to which."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator
from functools import partial
from typing import Any

from ..actors import Actor
from ..delivery import VERBS, Cancel, Delivery, Disposition, Mode, NewResult, Terms, make_result
from ..envelope import TOPIC, Envelope
from ..errors import ConfigurationError
from ..inject import MESSAGE, Bind, Message, Plan, Supplied, SuppliedAsync, SyncMessage, Values
from ..logs import Log
from ..names import check_duration, onion
from ..ports import AtMost, Backend, Home, Topics
from ..retry import default_retry_policy_factory
from .backends import Backends, abandoned
from .limits import Limit
from .signals import let_ctrl_c_through

log = Log("repid.worker")

_FALLBACK = default_retry_policy_factory()


class Role:
    """One actor with what this worker knows of it. `limits`: those that its runs keep to, its own first.

    `slots`: the last of them, if what is claimed follows it, so that what is given back does not come again at once.
    """

    __slots__ = (
        "actor",
        "bind",
        "is_plain",
        "limits",
        "mode",
        "needs_message",
        "runs_in_trio",
        "slots",
        "start",
        "starts_at_once",
    )

    def __init__(self, actor: Actor, backend: Backend | None, home: Home | None, limits: tuple[Limit, ...]) -> None:
        self.actor = actor
        self.runs_in_trio = backend is None
        self.mode: Mode = actor.mode
        self.bind = actor.plan.bind if actor.is_async else _bind_for_threads(actor.plan)
        self.limits = limits
        self.slots: Limit | None = None
        self.needs_message = actor.plan.takes_message or _is_surrounded(actor)
        self.start = _starter(actor, backend, home)
        self.is_plain = actor.mode == "auto" and not actor.store_result
        self.starts_at_once = getattr(backend, "slots", None) is None and actor.mode != "ack_first"

    def terms(self, delivery: Delivery) -> Terms:
        """The terms of one delivery: the envelope's options over the actor's."""
        retries = delivery.envelope.options.retries
        may_retry = self.mode not in {"always_ack", "ack_first"}
        return Terms(
            mode=self.mode,
            attempt=delivery.attempt,
            retries=self.actor.retries if retries is None or not may_retry else retries,
            retry_delay=self.retry_delay,
        )

    def timeout(self, envelope: Envelope) -> float:
        """Seconds a run may take: the envelope's option over the actor's."""
        timeout = envelope.options.timeout
        return self.actor.timeout if timeout is None else timeout

    def stores_result(self, envelope: Envelope) -> bool:
        """Whether a result is wanted: the envelope's option over the actor's. Not where it was settled before."""
        wanted = envelope.options.store_result
        return (self.actor.store_result if wanted is None else wanted) and self.mode != "ack_first"

    def result(self, envelope: Envelope, disposition: Disposition, payload: bytes = b"null") -> NewResult | None:
        """What to store with a verdict, if anything. That it was cancelled is stored unless the sender refused."""
        cancelled = isinstance(disposition, Cancel) and envelope.options.store_result is not False
        if not (cancelled or self.stores_result(envelope)):
            return None
        ttl = envelope.options.result_ttl
        return make_result(envelope.result_id, self.actor.result_ttl if ttl is None else ttl, disposition, payload)

    def retry_delay(self, retry_number: int) -> float:
        """The policy's delay in seconds; should the policy fail, the default's, and the error is logged."""
        try:
            return check_duration("the delay of a retry policy", self.actor.retry_policy(retry_number))
        except BaseException as error:
            let_ctrl_c_through(error)
            log.exception("the retry policy of actor %r failed; the default policy is used", self.actor.name)
            return check_duration("delay", _FALLBACK(retry_number))

    def error_word(self, error: BaseException) -> str | None:
        """What `on_error` says about an error; None: nothing, or nothing that makes sense."""
        on_error = self.actor.on_error
        if on_error is None or isinstance(on_error, str):
            return on_error
        try:
            word = on_error(error)
        except BaseException as fault:
            let_ctrl_c_through(fault)
            log.exception("on_error of actor %r failed; its retries decide", self.actor.name)
            return None
        if word is None or (isinstance(word, str) and word in VERBS):
            return word
        log.error(
            "on_error of actor %r returned a %s that is no verdict; its retries decide",
            self.actor.name,
            type(word).__name__,
        )
        return None


Start = Callable[[dict[str, Any], Message | None], Coroutine[Any, Any, Any]]
Call = Callable[..., Awaitable[Any]]
"""Called with the message, and with the values of dependencies where it has any."""


def _bind_for_threads(plan: Plan) -> Bind:
    """The binding of a function that blocks: it is given the message for threads."""
    bind = plan.bind
    if not plan.signature.messages:
        return bind
    return lambda envelope, message: bind(envelope, _for_threads(message))


def _for_threads(message: Message | None) -> Any:
    return None if message is None else SyncMessage(message)


def _is_surrounded(actor: Actor) -> bool:
    """Whether something runs around its calls: middlewares, or async dependencies of a sync function."""
    dependencies = actor.plan.dependencies
    return bool(actor.middlewares) or (dependencies is not None and bool(dependencies.outer))


def _starter(actor: Actor, backend: Backend | None, home: Home | None) -> Start:
    """How to get the coroutine of one run."""
    function = actor.function
    if _is_surrounded(actor):
        return _start_around(actor, backend, home)
    if actor.plan.dependencies is not None:
        return _start_supplied(actor.plan.dependencies.inner, backend)
    if backend is None:
        return lambda arguments, _: function(**arguments)
    call: Callable[..., Any] = backend.call
    return lambda arguments, _: call(function, (), arguments)


def _start_supplied(supplied: Supplied, backend: Backend | None) -> Start:
    """The same with dependencies, which run where the function does."""
    if backend is None:
        return lambda arguments, message: supplied({MESSAGE: message}, arguments)
    call: Callable[..., Any] = backend.call
    if isinstance(supplied, SuppliedAsync):
        return lambda arguments, message: call(supplied, ({MESSAGE: message}, arguments), {})
    return lambda arguments, message: call(supplied, ({MESSAGE: _for_threads(message)}, arguments), {})


def _start_around(actor: Actor, backend: Backend | None, home: Home | None) -> Start:
    """The same with middlewares around it, and within these the dependencies that do not run where it does."""
    dependencies = actor.plan.dependencies
    call = (
        _call(actor.function, backend, home)
        if dependencies is None
        else _call_supplied(dependencies.inner, backend, home)
    )
    away = None if home is None or backend is home else _Away(call, home)
    innermost: Call = call if away is None else away
    if dependencies is not None:
        innermost = partial(dependencies.around, innermost)
    around = _around(actor, innermost)
    return around if home is None else _start_at_home(around, away, home)


def _call(function: Callable[..., Any], backend: Backend | None, home: Home | None) -> Call:
    async def call(message: Message) -> Any:
        if backend is None or backend is home:
            return await function(**message.arguments)
        return await backend.call(function, (), message.arguments)

    return call


def _call_supplied(supplied: Supplied, backend: Backend | None, home: Home | None) -> Call:
    async def call(message: Message, given: Values) -> Any:
        if backend is None or backend is home:
            return await supplied(given, message.arguments)
        if MESSAGE in given and not isinstance(supplied, SuppliedAsync):
            given = {**given, MESSAGE: _for_threads(message)}
        return await backend.call(supplied, (given, message.arguments), {})

    return call


def _start_at_home(around: Start, away: _Away | None, home: Home) -> Start:
    """What runs around a call does so at home, wherever the function runs."""

    async def start(arguments: dict[str, Any], message: Message | None) -> Any:
        try:
            return await home.call(around, (arguments, message), {})
        finally:
            if away is not None and message in away.left_behind:
                away.left_behind.discard(message)
                abandoned.set(True)

    return start


def _around(actor: Actor, call: Call) -> Start:
    async def innermost(message: Message, _: Actor) -> Any:
        return await call(message)

    around = onion(innermost, actor.middlewares)

    async def start_around(arguments: dict[str, Any], message: Message | None) -> Any:
        assert message is not None  # middlewares are among the reasons to make one
        message.arguments = arguments
        try:
            return await around(message, actor)
        finally:
            message.arguments = {}

    return start_around


class _Away:
    """A call made from home to where the worker runs. `left_behind`: whose thread was, for the executor to know."""

    def __init__(self, call: Call, home: Home) -> None:
        self._call = call
        self._away = home.away(self._watch)
        self.left_behind: set[Message | None] = set()

    async def __call__(self, message: Message, *given: Values) -> Any:
        return await self._away(message, *given)

    async def _watch(self, message: Message, *given: Values) -> Any:
        try:
            return await self._call(message, *given)
        finally:
            if abandoned.get():
                self.left_behind.add(message)


Find = Callable[[Envelope], Role | None]


class Roles:
    """All roles of a worker, by queue."""

    def __init__(self, actors: Iterable[Actor], backends: Backends, tasks_limit: int) -> None:
        self.backends = backends
        self._tasks_limit = tasks_limit
        self._slots: dict[Backend, Limit] = {}
        """By the backend that has them: the threads and the processes."""
        self._roles: dict[str, list[Role]] = {}
        for actor in actors:
            backend = backends.of(actor)
            role = Role(actor, backend, backends.home, self._limits_of(actor, backend))
            self._roles.setdefault(actor.channel, []).append(role)
        self.find: dict[str, Find] = {queue: _finder(roles) for queue, roles in self._roles.items()}
        """For each queue: from an envelope to the role that takes it, if one does."""
        schedules = [role.actor.schedule for role in self if role.actor.schedule is not None]
        self.schedules = [*{schedule.name: schedule for schedule in reversed(schedules)}.values()]
        """Of two actors of one name on one queue, the first declared has the say here too."""
        self.limits: list[Limit] = list(dict.fromkeys(limit for role in self for limit in role.limits))
        self._topics = [
            ((role.actor.channel, role.actor.name), role.limits[0])
            for role in self
            if role.actor.concurrency is not None and role.actor.takes is None
        ]
        self._groups = [(frozenset(self._members(slots)), slots) for slots in self._slots.values()]

    def at_most(self, trip: float, size: float, first: float) -> AtMost:
        """What may be claimed now, if a round trip to the broker takes `trip` seconds. `size`, `first`: as in `AtMost`."""
        topics = {topic: limit.room(trip) for topic, limit in self._topics}
        groups = [(members, slots.room(trip)) for members, slots in self._groups]
        return AtMost(topics=topics, groups=groups, size=size, first=first, alone=False)

    def role_for(self, envelope: Envelope) -> Role | None:
        """The role that takes an envelope; None if no actor here does."""
        return self.find[envelope.queue](envelope)

    def parked_for(self, kind: type[Backend]) -> int:
        """How many deliveries wait for a slot of backends of this kind."""
        return sum(len(slots.parked) for backend, slots in self._slots.items() if isinstance(backend, kind))

    def _limits_of(self, actor: Actor, backend: Backend | None) -> tuple[Limit, ...]:
        own = () if actor.concurrency is None else (Limit(int(actor.concurrency), ahead=False),)
        slots = getattr(backend, "slots", None)
        if backend is None or slots is None:
            return own
        if backend not in self._slots:
            self._slots[backend] = Limit(int(min(slots, self._tasks_limit)), ahead=True)
        return (*own, self._slots[backend])

    def _members(self, slots: Limit) -> Iterator[tuple[str, str | None]]:
        """The (queue, topic) whose messages need one of these slots, as far as the topic tells."""
        for queue, roles in self._roles.items():
            is_whole = all(slots in role.limits for role in roles)
            for role in roles:
                if slots in role.limits and (is_whole or role.actor.takes is None):
                    role.slots = slots
                    yield queue, None if is_whole else role.actor.name

    def __iter__(self) -> Any:
        return (role for roles in self._roles.values() for role in roles)

    @property
    def topics(self) -> dict[str, Topics]:
        """For each queue the topics that are taken; None where an actor decides by more than the topic."""
        return {
            queue: None if any(r.actor.takes for r in roles) else frozenset(r.actor.name for r in roles)
            for queue, roles in self._roles.items()
        }

    def names(self, queue: str) -> list[str]:
        """The names of the actors that read a queue."""
        return [role.actor.name for role in self._roles[queue]]


def _finder(roles: list[Role]) -> Find:
    if any(role.actor.takes for role in roles):
        return lambda envelope: next((role for role in roles if _takes(role.actor, envelope)), None)
    by_name: dict[str | None, Role] = {}
    for role in roles:
        by_name.setdefault(role.actor.name, role)  # the first one declared wins
    return lambda envelope: by_name.get(envelope.headers.get(TOPIC))


def _takes(actor: Actor, envelope: Envelope) -> bool:
    if actor.takes is None:
        return envelope.topic == actor.name
    try:
        return bool(actor.takes(envelope))
    except BaseException as error:
        let_ctrl_c_through(error)
        log.exception("the routing strategy of actor %r failed on message %r", actor.name, envelope.id)
        return False


def check_actors(actors: Iterable[Actor]) -> None:
    """Raises `ConfigurationError` for actors that no worker can run together."""
    for actor in actors:
        if actor.takes is not None and not callable(actor.takes):
            raise ConfigurationError(
                f"the routing strategy of actor {actor.name!r} must give a predicate, but gave {actor.takes!r}"
            )
