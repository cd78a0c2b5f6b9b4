"""The composition root: servers, actors, and the verbs of the message API."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Self, Unpack

import trio

from .actors import ActorMiddleware, Router
from .application import open_apps
from .blocking import Client, check_may_block
from .errors import ConfigurationError
from .fields import Field
from .hosts import LoopName, at_home, hosted, hosted_context
from .names import awaiting, check_iterable, check_middleware
from .ports import Broker, ResultStore
from .producer import Producer, ProducerMiddleware, Publish, around, publish_declaring, publish_without_results
from .recurring import Schedules
from .runtime import Handle, Report
from .servers import Connection, Servers
from .supervisor import ProcessOptions, run_app
from .worker import WorkerOptions, run_actors


class Repid(Producer):
    """An application: its servers, its actors, and what lies around every run and every send.

    `title` and `version` describe it to others. `middlewares` go around every run of every actor,
    `producer_middlewares` around every send; the first is the outermost. With a `connection`, its broker is
    registered as the server "default". Results are kept on the server the message came from, in the same step as
    its acknowledgement, unless a `result_store` is given: another server, which must be open while it is used.
    """

    producer_middlewares = Field[tuple[ProducerMiddleware, ...]](lambda app: app._producer_middlewares)  # noqa: SLF001

    def __init__(
        self,
        connection: Connection | None = None,
        *,
        title: str = "repid",
        version: str = "0.0.1",
        middlewares: Sequence[ActorMiddleware] = (),
        producer_middlewares: Sequence[ProducerMiddleware] = (),
        result_store: ResultStore | None = None,
    ) -> None:
        self.title = title
        self.version = version
        self.servers = Servers()
        self.schedules = Schedules(self)
        self.result_store = result_store
        check_iterable("producer_middlewares", producer_middlewares)
        self._producer_middlewares = tuple(map(awaiting, map(_check_producer_middleware, producer_middlewares)))
        self._router = Router(middlewares=middlewares)
        self._latest: tuple[Broker, Publish] | None = None
        self._middlewares = tuple(middlewares)
        if connection is not None:
            if not isinstance(connection, Connection):
                raise ConfigurationError(f"the connection of an app must be Connection(broker), but is {connection!r}")
            self.servers.register_server("default", connection.message_broker, is_default=True)

    def __repr__(self) -> str:
        servers = ", ".join(f"{name}={type(self.servers[name]).__name__}" for name in self.servers)
        return f"<Repid {self.title!r}, servers: {servers or 'none'}>"

    @property
    def middlewares(self) -> Sequence[ActorMiddleware]:
        """Those around every run of every actor."""
        return self._middlewares

    def include_router(self, router: Router) -> None:
        """Add the actors of a router. Of those that take the same message, the first one added gets it."""
        self._router.include_router(router)

    def server(self, server_name: str | None = None) -> Broker:
        """The server of that name; None: the default one."""
        return self.servers.get_server(server_name)

    @asynccontextmanager
    async def magic(self, *, auto_disconnect: bool = True) -> AsyncIterator[Self]:  # noqa: ARG002
        """Open every server, and make this app the one that `Job`, `Queue` and `Worker` find, for a block.

        The queues that the app's actors read are declared on the default server.

        The connections always close with the outermost block that opened them; messages in memory live in the
        broker object and outlast it. `auto_disconnect` changes nothing; it is accepted for compatibility.
        """
        async with self._connections():
            with open_apps.entered(self):
                yield self

    @hosted_context
    @asynccontextmanager
    async def _connections(self) -> AsyncIterator[None]:
        default = self.servers.get_server()
        async with AsyncExitStack() as stack:
            for name in self.servers:
                await stack.enter_async_context(self.servers[name].connection())
            await default.declare({actor.channel for actor in self._router.actors()})
            yield

    @hosted
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
        return await run_actors(self, self.server(server_name), self._router.actors(), options, Handle(), task_status)

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
        within a minute, or did not end well when it was stopped. The processes import the program: put the call
        under `if __name__ == "__main__":`.
        """
        check_may_block()
        in_processes = ProcessOptions(
            processes=processes, max_jobs=max_jobs, max_memory=max_memory, reload=reload, target=target, loop=loop
        )
        return run_app(self, server_name, in_processes, options)

    def queues(self) -> list[str]:
        """The names of the queues that its actors read."""
        return sorted({actor.channel for actor in self._router.actors()})

    def sync(self) -> Client:
        """The app for callers that block; see `Client`. It opens at its first call."""
        return Client(self)

    def publisher(self, broker: Broker, *, declare: bool) -> Publish:
        """Publishes to a broker through the producer middlewares."""
        publish: Publish = partial(publish_declaring, broker) if declare else broker.publish
        if self.result_store is None and not broker.capabilities.has("results"):
            publish = partial(publish_without_results, publish, type(broker).__name__)
        return self.around(publish)

    def around(self, publish: Publish) -> Publish:
        """The producer middlewares around a publisher."""
        middlewares = self._producer_middlewares
        return at_home(around(publish, middlewares)) if middlewares else publish

    def _publisher(self, server_name: str | None) -> Publish:
        broker = self.servers.get_server(server_name)
        if self._latest is None or self._latest[0] is not broker:
            self._latest = broker, self.publisher(broker, declare=True)
        return self._latest[1]


def _check_producer_middleware(middleware: ProducerMiddleware) -> ProducerMiddleware:
    checked: ProducerMiddleware = check_middleware(
        "each of the producer_middlewares", middleware, "call_next", "envelopes"
    )
    return checked
