"""The composition root: servers, actors, and the verbs of the message API."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from datetime import timedelta
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar, Unpack, overload

import trio

from .actors import Actor, ActorMiddleware, Callees, Router, bounds_of, check_options, no_actor, overridden
from .app_calls import AppCaller, handle_on
from .application import Application, open_apps, publisher, stores
from .calls import BatchActor, Callee, Exchange
from .delivery import DeadLetterHook
from .errors import ConfigurationError, Lacking, misused, names_of
from .gathering import first_of, gather, one_by_one
from .handle import JobHandle
from .hosts import LoopName, async_block, hosted, hosted_context, hosted_start
from .inject import NO_NAMES, Kind, Overrides, Step, compile_lifespan, enclosing_names, kind_of
from .may_block import check_may_block
from .names import awaiting, brief, check_hook, check_iterable, check_mapping, check_middleware, check_text
from .ports import Broker, ResultStore, ScheduleStore, name_of
from .producer import Producer, ProducerMiddleware, Publisher, check_compares_ids
from .queue import QueueStatus, look_at_queues
from .recurring import Schedules
from .results import Result
from .runtime import Control, Handle, Report
from .servers import Connection, Servers
from .worker import WorkerOptions, run_actors

if TYPE_CHECKING:
    from .blocking import Client

Hook = TypeVar("Hook", bound=DeadLetterHook)
GeneratorFunction = TypeVar("GeneratorFunction", bound=Callable[..., AsyncIterator[Any] | Iterator[Any]])
T = TypeVar("T")

MOST_REMEMBERED = 1000
"""Kinds of jobs whose arguments have been looked at."""


def _routers_have(app: object, name: str) -> str:
    return (
        f"{app!r} has no attribute {name!r}: actors are declared on a router, `router = Router()` and `@router.actor`, "
        "and the app includes it, `app.include_router(router)`"
    )


class Repid(Producer, AppCaller):
    """An application: its servers, its actors, and what lies around every run and every send.

    `await app.enqueue(add, 1, b=2)` publishes a call of the actor `add`, which is the function itself; what it returns
    is a `JobHandle`. Options stand before the verb: `await app.using(delay=5).enqueue(add, 1, b=2)`.

    `title` and `version` describe it to others. `middlewares` go around every run of every actor,
    `producer_middlewares` around every send; the first is the outermost. With a `connection`, its server is
    registered as the server "default". Results are kept on the server the message came from, in the same step as
    its acknowledgement, unless a `result_store` is given: another server. So are schedules, unless there is a
    `schedule_store` for those of the default server; its messages still go to the default server, after its tick or
    before it, as a server that compares ids allows. The app and its workers open both stores while they are open.
    """

    def __init__(
        self,
        connection: Connection | None = None,
        *,
        title: str = "repid",
        version: str = "0.0.1",
        middlewares: Sequence[ActorMiddleware] = (),
        producer_middlewares: Sequence[ProducerMiddleware] = (),
        result_store: ResultStore | None = None,
        schedule_store: ScheduleStore | None = None,
    ) -> None:
        self.title = check_text("the title of an app", title)
        self.version = check_text("the version of an app", version)
        self.servers = Servers()
        self.schedules = Schedules(self)
        self.result_store = _check_store("result_store", result_store, "store_results")
        self.schedule_store = _check_store("schedule_store", schedule_store, "due_schedules")
        check_iterable("producer_middlewares", producer_middlewares)
        self._producer_middlewares = tuple(map(awaiting, map(_check_producer_middleware, producer_middlewares)))
        checked = check_options("an app", {"middlewares": middlewares}, of_actor=False)
        self._router = Router(middlewares=checked["middlewares"])
        self._callees = Callees(self._router.actors, self._router._count)  # noqa: SLF001  the other half of it
        self._warn_once = lru_cache(MOST_REMEMBERED)(self._callees.warn_of_unknown_arguments)
        self._latest: tuple[Broker, Publisher] | None = None
        self._middlewares: tuple[ActorMiddleware, ...] = checked["middlewares"]
        self._overrides: Overrides = {}
        self._dead_letter_hooks: list[DeadLetterHook] = []
        self._lifespans: list[tuple[Callable[..., Any], Mapping[str, Any]]] = []
        if connection is not None:
            if not isinstance(connection, Connection):
                raise ConfigurationError(
                    f"the connection of an app must be a Connection, but is {brief(connection)}: "
                    "give Connection(server) with a server such as InMemoryServer()"
                )
            self.servers.register_server("default", connection.message_broker, is_default=True)

    if not TYPE_CHECKING:  # type checkers report it themselves
        __reduce__ = misused(
            "an app has the connections of its process, so it cannot be pickled: import it in the other process, as in "
            "`from shop.jobs import app`"
        )
        actor = Lacking(_routers_have)
        task = Lacking(_routers_have)
        __dir__ = names_of

    def __repr__(self) -> str:
        servers = ", ".join(f"{name}={name_of(self.server(name))}" for name in self.servers)
        return f"<Repid {self.title!r}, servers: {servers or 'none'}>"

    @property
    def middlewares(self) -> Sequence[ActorMiddleware]:
        """Those around every run of every actor."""
        return self._middlewares

    @property
    def producer_middlewares(self) -> Sequence[ProducerMiddleware]:
        """Those around every send, the first outermost."""
        return self._producer_middlewares

    def include_router(self, router: Router) -> None:
        """Add the actors of a router. Of those that take the same message, the first one added gets it.

        A worker runs the actors that its app has when it starts: those that come later wait for the next worker.
        """
        self._router.include_router(router)

    def server(self, server_name: str | None = None) -> Broker:
        """The server of that name; None: the default one."""
        return self.servers.get_server(server_name)

    @async_block
    async def magic(self, *, auto_disconnect: bool = True) -> AsyncIterator[Self]:
        """Open every server, and make this app the one that `Job`, `Queue` and `Worker` find, for a block.

        The queues that the app's actors read are declared on the default server, with their bounds.

        The connections close with the outermost block that opened them; messages in memory live in the server object
        and outlast it. So `auto_disconnect` is True: False raises `ConfigurationError`.
        """
        if not auto_disconnect:
            raise ConfigurationError(
                "magic(auto_disconnect=False): connections close with the outermost block that opened them; to keep a "
                "server's open for longer, put 'async with server.connection():' around this block"
            )
        async with self._connections():
            with open_apps.entered(self):
                yield self

    @hosted_context
    @asynccontextmanager
    async def _connections(self) -> AsyncIterator[None]:
        default = self.server()
        async with AsyncExitStack() as stack:
            for server in (*(self.server(name) for name in self.servers), *stores(self)):
                await stack.enter_async_context(server.connection())
            actors = self._router.actors()
            await default.declare({actor.channel for actor in actors})
            if bounds := bounds_of(actors):
                await default.set_bounds(bounds)
            yield

    @hosted_start
    async def run_worker(
        self,
        *,
        server_name: str | None = None,
        task_status: trio.TaskStatus[Handle] = trio.TASK_STATUS_IGNORED,
        **options: Unpack[WorkerOptions],
    ) -> Report:
        """Run the app's actors on one server until stopped, cancelled or done; what was done is returned.

        Options as in `WorkerOptions`. When this returns or raises, nothing of the worker is running any more.
        A server that is not available at the start is waited for, as it is later; the log says so once.
        Cancelling skips the grace. With `nursery.start(app.run_worker)` the start is over when the worker really
        consumes; it gives a `Handle` with `stop()`, `statistics()` and `wait()`. Several workers may run at once.
        """
        return await run_actors(self, self.server(server_name), self._router.actors(), options, Control(), task_status)

    def run(
        self,
        *,
        server_name: str | None = None,
        processes: int = 1,
        max_jobs: int | None = None,
        max_memory: int | None = None,
        reload: bool = False,
        target: str | None = None,
        loop: LoopName = "trio",
        **options: Unpack[WorkerOptions],
    ) -> Report:
        """As `run_worker`, for blocking code: this owns its trio run, or the processes, and returns at their end.

        `loop`: "trio", "asyncio" or "uvloop" (extra: uvloop); async actors and middlewares run on it.
        `processes`, `max_jobs`, `max_memory`, `reload` and `target` as in `ProcessOptions`; the limits are those of
        each process. A process that crashes is replaced. Raises `WorkersFailed` if one crashes more than five times
        within a minute, or did not end well when it was stopped. It logs to stderr, from INFO on, if the program has
        not configured `logging`. The processes import the program: put the call under `if __name__ == "__main__":`.
        """
        from .supervisor import ProcessOptions, run_app  # noqa: PLC0415  programs that only send have no use for it

        check_may_block()
        in_processes = ProcessOptions(
            processes=processes, max_jobs=max_jobs, max_memory=max_memory, reload=reload, target=target, loop=loop
        )
        return run_app(self, server_name, in_processes, options)

    @overload
    def lifespan(self, function: GeneratorFunction, /) -> GeneratorFunction: ...

    @overload
    def lifespan(self) -> Callable[[GeneratorFunction], GeneratorFunction]: ...

    def lifespan(self, function: Any = None) -> Any:
        """A decorator, with or without `()`: what each worker does before it consumes, and after its last run.

        The function is an async generator function, or one with `def`, with one `yield`: what stands before it is done
        when a worker has its connection and before it consumes, what comes after it when its last verdict is settled,
        whatever ended the worker. It runs on the loop that the worker was called on, asyncio's too, and must not block
        it. Its parameters are dependencies of the scope "worker". Several are opened in this order and closed in
        reverse. What it raises is logged, and stops the worker with a `LifespanError`. Raises `ConfigurationError` for
        another kind of function.
        """
        if function is None:
            return self.lifespan
        if not callable(function) or kind_of(function) not in {Kind.GENERATOR, Kind.ASYNC_GENERATOR}:
            raise ConfigurationError(
                f"a lifespan must be an async function with one yield, but is {function!r}: open things before the "
                "yield, and close them after it (without @asynccontextmanager)"
            )
        caller = inspect.currentframe()
        local_names = enclosing_names(function, caller and caller.f_back) or NO_NAMES
        compile_lifespan(function, local_names, {})  # complains now rather than later
        self._lifespans.append((function, local_names))
        return function

    @overload
    def on_dead_letter(self, hook: Hook, /) -> Hook: ...

    @overload
    def on_dead_letter(self) -> Callable[[Hook], Hook]: ...

    def on_dead_letter(self, hook: Any = None) -> Any:
        """A decorator, with or without `()`: called with a `DeadMessage` for each dead letter of the app's workers.

        It is called when the server has taken the verdict, one message after another, and may take 30 seconds: an async
        function on the loop that the worker was called on, another one in a thread. What it raises is logged. A worker
        that ends calls it for at most five seconds more. It is not called for messages that end without a worker's
        verdict (a ttl that ends while they wait, poison), nor if the worker is killed: then
        `Queue.get_messages("dead")` has them. Raises `ConfigurationError` for what cannot be called with one message.
        """
        if hook is None:
            return self.on_dead_letter
        check_hook("a hook of dead letters", hook, "dead")
        self._dead_letter_hooks.append(hook)
        return hook

    @property
    def dead_letter_hooks(self) -> Sequence[DeadLetterHook]:
        """What is told of the messages that become dead letters in its workers."""
        return tuple(self._dead_letter_hooks)

    @property
    def lifespans(self) -> Sequence[Sequence[Step]]:
        """What a worker opens before it consumes, each with the dependencies that it wants before it."""
        return [compile_lifespan(function, names, self._overrides) for function, names in self._lifespans]

    @contextmanager
    def override(self, dependencies: Mapping[Any, Callable[..., Any]]) -> Iterator[None]:
        """For tests: workers that start in the block call other functions in the place of some dependencies.

        `app.override({mailer: fake_mailer})`: what stands as `Depends(mailer)` is filled by `fake_mailer`, which may be
        whatever `Depends` takes, with dependencies of its own. Blocks nest, and the inner one wins. A worker that runs
        already keeps what it has. Raises `ConfigurationError` for what cannot take the place of a dependency.
        """
        check_mapping("the dependencies to override", dependencies)
        for function, other in dependencies.items():
            if not callable(function) or not callable(other):
                wrong = function if callable(other) else other
                raise ConfigurationError(
                    f"{brief(wrong)} cannot be called: override takes functions by the functions whose place they take"
                )
        former = self._overrides
        self._overrides = {**former, **dependencies}
        try:
            for actor in self._router.actors():
                overridden(actor, self._overrides)  # complains now rather than later
            yield
        finally:
            self._overrides = former

    @property
    def overrides(self) -> Overrides:
        """What workers that start now call in the place of some dependencies."""
        return self._overrides

    def actors(self) -> list[Actor]:
        """Its actors, in the order of declaration, with what they inherit filled in."""
        return self._router.actors()

    def callee(self, function: Callable[..., Any]) -> Callee:
        """The actor of the app that the function was declared as. Raises `ConfigurationError` if it is none."""
        found = self._callees.find(function)
        if found is None:
            raise no_actor("this app", function)
        return found

    def warn_of_unknown_arguments(self, name: str, channel: str, given: frozenset[str]) -> None:
        """Log once which arguments of a job its actor does not take, if the app has that actor."""
        self._warn_once(name, channel, given)

    def queues(self) -> list[str]:
        """The names of the queues that its actors read."""
        return sorted({actor.channel for actor in self._router.actors()})

    @hosted
    async def list_queues(self, server_name: str | None = None) -> list[QueueStatus]:
        """All queues of a server, by name: counts, since when the next message waits, which actors of this app read it,
        and what the open consumers of all processes take of it.

        A queue with messages and an empty `readers` is one that nobody reads now. Raises `NotSupported` where
        the server cannot list its queues.
        """
        actors: dict[str, list[str]] = {}
        for actor in self._router.actors():
            actors.setdefault(actor.channel, []).append(actor.name)
        return await look_at_queues(self.server(server_name), actors)

    @overload
    def handle(self, actor: BatchActor[Any, ..., Any, T], id_: str, /) -> JobHandle[T]: ...

    @overload
    def handle(self, actor: Callable[..., Awaitable[T]], id_: str, /) -> JobHandle[T]: ...

    @overload
    def handle(self, actor: Callable[..., T], id_: str, /) -> JobHandle[T]: ...

    def handle(self, actor: Callable[..., Any], id_: str, /) -> JobHandle[Any]:
        """The handle on a call of this actor that was enqueued before, perhaps by another process, by its id.

        For the app's default server; nothing is asked yet. With the actor's name alone, or for another server or a
        `result_id`, a `Job` with this `id_` has the same methods. Raises `ConfigurationError` for what is no actor of
        the app, and for what is no id.
        """
        return handle_on(self, actor, id_)

    @overload
    async def gather(
        self,
        handles: Iterable[JobHandle[T]],
        /,
        *,
        on_error: Literal["raise"] = "raise",
        timeout: float | timedelta | None = None,
    ) -> list[T]: ...

    @overload
    async def gather(
        self,
        handles: Iterable[JobHandle[T]],
        /,
        *,
        on_error: Literal["return"],
        timeout: float | timedelta | None = None,
    ) -> list[Result[T]]: ...

    @overload
    async def gather(
        self,
        *handles: JobHandle[T],
        on_error: Literal["raise"] = "raise",
        timeout: float | timedelta | None = None,
    ) -> list[T]: ...

    @overload
    async def gather(
        self, *handles: JobHandle[T], on_error: Literal["return"], timeout: float | timedelta | None = None
    ) -> list[Result[T]]: ...

    async def gather(
        self, *handles: Any, on_error: Any = "raise", timeout: float | timedelta | None = None
    ) -> list[Any]:
        """Wait until all have ended, and return their values in the order of the handles: one watch, however many.

        The handles are given one by one or as one iterable.

        `on_error`: "raise" raises an `ExceptionGroup` of `JobFailed` if some have no value, when all have ended;
        "return" gives a `Result` for each instead. Both raise an `ExceptionGroup` of `ResultError` where no result is
        stored. Raises `TimeoutError` after `timeout`. That, and cancelling, changes nothing.
        """
        return await gather(one_by_one(handles), on_error=on_error, timeout=timeout)

    @overload
    async def first_of(
        self,
        handles: Iterable[JobHandle[T]],
        /,
        *,
        cancel_others: bool = False,
        timeout: float | timedelta | None = None,
    ) -> Result[T]: ...

    @overload
    async def first_of(
        self, *handles: JobHandle[T], cancel_others: bool = False, timeout: float | timedelta | None = None
    ) -> Result[T]: ...

    async def first_of(
        self, *handles: Any, cancel_others: bool = False, timeout: float | timedelta | None = None
    ) -> Result[Any]:
        """Wait until the first of them has ended, in any way; its result. `cancel_others`: the others are
        cancelled.

        Raises `ResultError` if no result of it is stored, and `TimeoutError` after `timeout`, which changes nothing.
        """
        return await first_of(one_by_one(handles), cancel_others=cancel_others, timeout=timeout)

    def sync(self) -> Client:
        """The app for callers that block; see `Client`. It opens at its first call."""
        from .blocking import Client  # noqa: PLC0415  loaded at first use

        return Client(self)

    @property
    def _exchange(self) -> Exchange:
        return self

    @property
    def _app(self) -> Application:
        return self

    def _publisher_within(self, connection: Any, server_name: str | None) -> Publisher:
        return publisher(self, self.server(server_name), declare=True, connection=connection)

    def _publisher(self, server_name: str | None, *, named: bool) -> Publisher:
        broker, publish = self._way(server_name)
        if named:
            check_compares_ids(broker)
        return publish

    def _way(self, server_name: str | None) -> tuple[Broker, Publisher]:
        broker = self.servers.get_server(server_name)
        if self._latest is None or self._latest[0] is not broker:
            self._latest = broker, publisher(self, broker, declare=True)
        return self._latest


def _check_store(option: str, store: T | None, method: str) -> T | None:
    """The server that is given for an option, with this method."""
    if store is not None and (isinstance(store, type) or not callable(getattr(store, method, None))):
        raise ConfigurationError(f"{option} must be a server such as SQLiteServer(path), but is {store!r}")
    return store


def _check_producer_middleware(middleware: ProducerMiddleware) -> ProducerMiddleware:
    checked: ProducerMiddleware = check_middleware(
        "each of the producer_middlewares", middleware, "call_next", "envelopes"
    )
    return checked
