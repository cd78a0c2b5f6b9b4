"""Trio as a guest of the running asyncio loop: started on first use, ended with the last one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from contextvars import Context
from functools import partial
from typing import Any

import trio
from trio._core._run import GLOBAL_RUN_CONTEXT  # private, and the only way to forget a run

from .crossing import Bridge, Crossing, TrioEndedError, bridges, is_run_by_trio, run_bridge
from .tasks import containing


async def join(loop: asyncio.AbstractEventLoop, user: object) -> Bridge:
    """The bridge of the loop, ready to be used until `user` leaves it; a guest is started if there is none."""
    while True:
        bridge = bridges.get(loop)
        if bridge is None:
            bridge = Lodger(loop) if is_run_by_trio(loop) else Guest(loop)
        if bridge.enter(user) or await bridge.join(user):
            return bridge


async def leave(bridge: Bridge, user: object) -> None:
    """The user is done with the bridge; if it was the last one, wait until nothing is left of a guest."""
    if bridge.leave(user):
        await bridge.end()


class Guest(Bridge):
    """A trio run on an asyncio loop. It ends when nobody uses it any more, or with the loop.

    It is owned by an asyncio task. When that is cancelled, which is what `asyncio.run` does at its end, those users
    that are being cancelled too may finish first; then trio is cancelled, and its end waited for.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self._users: dict[object, asyncio.Task[Any] | None] = {}
        self._ready: asyncio.Future[None] = loop.create_future()
        self._done: asyncio.Future[None] = loop.create_future()
        self._closed = False
        self._closing = trio.Event()
        self._is_containing = False
        self._runner: object = None
        self._start(loop)
        bridges[loop] = self
        self._owner = loop.create_task(self._own(), name="repid: trio as a guest", context=Context())

    def _start(self, loop: asyncio.AbstractEventLoop) -> None:
        if trio.lowlevel.in_trio_run() and not _has_forgotten_run_of_parent():
            raise RuntimeError(
                "another trio run is going on in this thread, which can have only one: another event loop of this "
                "thread has repid open (as in a fixture whose loop_scope is wider than that of its test: let both use "
                "one loop), or a loop was closed while it had repid open (end loops with asyncio.run() or "
                "asyncio.Runner), or this loop is itself run by trio, as the loops of trio-asyncio are"
            )
        context = Context()  # of its own: the first caller's must not live as long as the guest
        tick: Any = self._tick
        soon: Any = partial(loop.call_soon, tick, context=context)
        threadsafe: Any = partial(loop.call_soon_threadsafe, tick, context=context)
        trio.lowlevel.start_guest_run(
            self._run,
            run_sync_soon_threadsafe=threadsafe,
            run_sync_soon_not_threadsafe=soon,
            done_callback=self._ended,
            host_uses_signal_set_wakeup_fd=True,  # asyncio may, at any time; uvloop does
        )

    def contain(self) -> None:
        """Contain the tasks that actors start. Others are made as before, and afterwards all are.

        A program that only sends pays nothing for it: a factory in Python makes each task of its loop dearer.
        """
        if self._is_containing:
            return
        self._is_containing = True
        loop = self.loop
        found = loop.get_task_factory()
        ours = containing(found)
        loop.set_task_factory(ours)

        def restore(_: object) -> None:
            if loop.get_task_factory() is ours:
                loop.set_task_factory(found)

        self._done.add_done_callback(restore)

    def enter(self, user: object) -> bool:
        """Count a user, if the guest has started and is not ending."""
        if self._closed or not self._ready.done():
            return False
        self._users[user] = asyncio.current_task()
        return True

    async def join(self, user: object) -> bool:
        """Count a user, and wait until the guest has started. False: it is ending; it has ended now."""
        if self._closed:
            await self.end()
            return False
        self._users[user] = asyncio.current_task()
        if not self._ready.done():
            try:
                await asyncio.wait([self._ready, self._done], return_when=asyncio.FIRST_COMPLETED)
            except asyncio.CancelledError:
                await leave(self, user)
                raise
        return True

    def leave(self, user: object) -> bool:
        """One user less; the last one ends the guest."""
        del self._users[user]
        if not self._users:
            self._close()
            return True
        return False

    async def end(self) -> None:
        """Wait until trio is over."""
        await until(self._owner)

    def _close(self) -> None:
        self._closed = True
        self._closing.set()

    async def _run(self) -> None:
        run_bridge.set(self)
        self._runner = GLOBAL_RUN_CONTEXT.runner
        async with trio.open_nursery() as self.nursery:
            self._ready.set_result(None)
            await self._closing.wait()
            self.nursery.cancel_scope.cancel()

    def _tick(self, tick: Callable[[], object]) -> None:
        """One turn of trio's. A second Ctrl-C may hit it anywhere; trio cannot go on then, and nobody may
        wait for it.
        """
        try:
            tick()
        except BaseException as error:
            if not self._done.done():
                self._over()
                self._broken(error)
                self._done.set_result(None)
            raise

    def _ended(self, outcome: Any) -> None:
        """Trio is over. What breaks it is reported to all that it concerns; Ctrl-C, if trio was told, to the loop."""
        if self._done.done():  # given up before
            return
        self._over()
        try:
            outcome.unwrap()
        except BaseException as error:  # noqa: BLE001  there is nobody above
            self._broken(error)
            if _is_interrupt(error):
                self.loop.call_soon(_interrupt)
        self._done.set_result(None)

    def _over(self) -> None:
        self._closed = True
        if bridges.get(self.loop) is self:
            del bridges[self.loop]

    def _broken(self, cause: BaseException) -> None:
        for user in self._users:
            if isinstance(user, Crossing):
                error = TrioEndedError("trio has broken down")
                error.__cause__ = cause
                user.fail(error)

    async def _own(self) -> None:
        try:
            await asyncio.wait([self._done])
        except asyncio.CancelledError:
            while not self._closed and (leaving := self._leaving()):
                with suppress(asyncio.CancelledError):
                    await asyncio.wait([self._done, *leaving], return_when=asyncio.FIRST_COMPLETED)
            self._close()
            with suppress(asyncio.CancelledError):  # another one says nothing new
                await until(self._done)
            raise

    def _leaving(self) -> list[asyncio.Task[Any]]:
        """The users that are being cancelled."""
        return [task for task in self._users.values() if task is not None and task.cancelling() and not task.done()]


def _has_forgotten_run_of_parent() -> bool:
    """In a child that was forked on a loop with a guest, and has a loop of its own now, as asyncio allows: trio takes
    the parent's guest, which no loop of the child turns, for a run of this thread. Forget it; True if there was one.
    """
    here = GLOBAL_RUN_CONTEXT.__dict__
    runs = [each._runner for each in bridges.values() if isinstance(each, Guest) and each.is_of_parent]  # noqa: SLF001
    if "task" in here or here.get("runner") not in runs:  # in a step of trio's it would be missed
        return False
    here.clear()
    return True


class Lodger(Guest):
    """Where trio is there already: a loop of trio-asyncio with a trio run of its own, as `asyncio.run` then
    makes it.
    """

    def _start(self, loop: asyncio.AbstractEventLoop) -> None:
        if type(loop).__name__ != "SyncTrioEventLoop":  # a loop within somebody's trio run, where trio is the host
            super()._start(loop)  # raises
        trio.lowlevel.spawn_system_task(self._lodge, context=Context())

    async def _lodge(self) -> None:
        try:
            await self._run()
        finally:
            self._over()
            self._done.set_result(None)


def _is_interrupt(error: BaseException) -> bool:
    if isinstance(error, BaseExceptionGroup):
        return error.subgroup(KeyboardInterrupt) is not None
    return isinstance(error, KeyboardInterrupt)


def _interrupt() -> None:
    raise KeyboardInterrupt


async def until(done: asyncio.Future[Any]) -> None:
    """Wait until a future is done, also if this task is cancelled; that is raised afterwards."""
    cancelled: asyncio.CancelledError | None = None
    while not done.done():
        try:
            await asyncio.wait([done])
        except asyncio.CancelledError as error:
            cancelled = cancelled or error
    if cancelled is not None:
        raise cancelled
