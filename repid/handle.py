"""What was enqueued, as who enqueued it sees it: its result, how it stands, a way to cancel it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import msgspec

from .delivery import StoredResult
from .envelope import Envelope
from .errors import ResultError, UsageError, misused
from .hosts import hosted, within
from .names import check_duration
from .ports import Broker, ResultStore, ScheduleStore, Snapshot
from .results import ANYTHING, JobState, Lazy, NoResult, Result, Status, T
from .waiting_threads import waiting_for

S = TypeVar("S")

CANCELLED_AT_ONCE = 1000
"""Messages that one call to a server cancels."""


class JobHandle(msgspec.Struct, NoResult, Generic[T], eq=False, weakref=True):
    """One enqueued message, in any process it runs. Its results have values of the type `T`.

    `schedule_name` is set for a recurring job: the handle is on the message its schedule published last.
    """

    _broker: Broker
    envelope: Envelope
    _store: ResultStore | None = None
    """Where its result is; None: on the broker."""
    _type: type[T] = ANYTHING
    _is_known: bool = True
    """The message was published, so that it has ended if it is nowhere."""
    schedule_name: str | None = None
    _schedules: ScheduleStore | None = None
    """Where its schedule is; None: on the broker."""

    if not TYPE_CHECKING:
        __reduce__ = misused(
            "a handle has the connection of its process, so it cannot be pickled: send its `id`, and make another "
            "handle there with `app.handle(actor, id)`"
        )

    def __repr__(self) -> str:
        return f"<JobHandle {self.id!r} on {self.queue!r}>"

    @property
    def broker(self) -> Broker:
        """The server it was sent to."""
        return self._broker

    @property
    def id(self) -> str:
        """The id of the message: the job's, or a fresh one; a recurring job's: the name of its schedule."""
        return self.envelope.id

    @property
    def queue(self) -> str:
        """The name of the queue it went to."""
        return self.envelope.queue

    @property
    def result(self) -> Lazy[Result[T] | None]:
        """`await handle.result`: the result; None until there is one."""
        return self.result_as(self._type)

    def result_as(self, type_: type[S]) -> Lazy[Result[S] | None]:
        """Like `result`, with a value of this type."""
        return Lazy(lambda: self._fetch(type_))

    async def wait(self, timeout: float | timedelta | None = None) -> Result[T]:  # noqa: ASYNC109  a bound of its own
        """Wait until it has ended, in any way; the result. Cancelling loses nothing.

        Raises `TimeoutError` if it has not ended after `timeout` (seconds or timedelta; None: no bound), which changes
        nothing; `ResultError` if the server knows no message of its id, and if it has ended and no result of it is
        stored: none was asked for with `store_result`, or it has expired. The text tells which.
        """
        return await self.wait_as(self._type, timeout)

    @hosted
    async def wait_as(
        self,
        type_: type[S],
        timeout: float | timedelta | None = None,  # noqa: ASYNC109
    ) -> Result[S]:
        """Like `wait`, with a value of this type."""
        if timeout is None:
            return await self._wait(type_, self.watch())
        return await self._wait_within(type_, check_duration("timeout", timeout))

    async def _wait_within(self, type_: type[S], seconds: float, spent: float = 0.0) -> Result[S]:
        """Wait at most these `seconds`. `spent`: how many of them have passed already."""
        watch = self.watch()
        try:
            return await within(max(0.0, seconds - spent), lambda: self._wait(type_, watch))
        except TimeoutError:
            found = await self._fetch(type_)  # it may have ended in this moment, or a timeout of 0 just asks
            if found is None:
                seen = (
                    "" if watch.latest is None else f": it is {_IN_WORDS.get(watch.latest.state, watch.latest.state)}"
                )
                raise TimeoutError(f"{self!r} has not ended within {seconds:g} seconds{seen}") from None
            return found

    async def _wait(self, type_: type[S], watch: Watch) -> Result[S]:
        with waiting_for(self.envelope):
            async for status in watch:
                if status.is_over:
                    break
        stored = watch._result or await self._stored()  # noqa: SLF001  the other half of it
        if stored is None:
            raise ResultError(self._why_no_result(status.state))
        return Result(stored, type_, self.envelope.topic)

    async def status(self) -> Status:
        """How it stands now: not over, over, or unknown. See `Status.state`."""
        return await anext(self.watch())

    def _why_no_result(self, state: str) -> str:
        wanted = self.envelope.options.store_result
        if state == "unknown":
            return (
                f"no message {self.id!r} is known on the server of queue {self.queue!r}: it was never enqueued there, "
                "or it has ended and no result of it is stored any more"
            )
        if wanted is False:
            return f"message {self.id!r} has ended, and no result was stored: its job says store_result=False"
        why = "its result has expired (result_ttl)"
        if wanted is None:
            asked = "store_result=True on its job or its actor; on its job, if a full queue has dropped it"
            why = f"no result was asked for ({asked}), or {why}"
        place = f"; it is among the dead messages of queue {self.queue!r}" if state == "dead" else ""
        return f"message {self.id!r} has ended, and no result of it is stored: {why}{place}"

    @hosted
    async def cancel(self) -> bool:
        """Cancel it: a waiting message is removed, a running one's actor is cancelled, in any process it runs.

        Its result says cancelled. False: it is over already. A recurring job's schedule goes on: remove that with
        `app.schedules`.
        """
        return await self._broker.cancel((await self._ids())[0]) != "unknown"

    def watch(self) -> Watch:
        """`async for status in handle.watch()`: how it stands now, and each change, until it is over."""
        return Watch(self)

    @hosted
    async def _look(self, seen: Snapshot | None) -> Snapshot:
        """How it stands, as soon as that differs from what was seen."""
        return await self._broker.watch(*await self._ids(), seen, queue=self.queue)

    async def _ids(self) -> tuple[str, str]:
        if self.schedule_name is None:
            return self.id, self.envelope.result_id
        for stored in await (self._schedules or self._broker).schedules([self.schedule_name]):
            if stored.last_id is not None:
                return stored.last_id, self.envelope.options.result_id or stored.last_id
        raise UsageError(f"schedule {self.schedule_name!r} has not published a message yet")

    @hosted
    async def _fetch(self, type_: type[S]) -> Result[S] | None:
        """The result as it is now; None: there is none yet, or none any more."""
        stored = await self._stored()
        return None if stored is None else Result(stored, type_, self.envelope.topic)

    @property
    def _results(self) -> ResultStore:
        return self._store or self._broker

    def _outcome(self, snapshot: Snapshot, stored: StoredResult | None) -> Result[T] | ResultError:
        """What became of a message that has ended."""
        if stored is not None:
            return Result(stored, self._type, self.envelope.topic)
        return ResultError(self._why_no_result(_status(snapshot, is_known=self._is_known).state))

    async def _stored(self) -> StoredResult | None:
        store = self._results
        return (await store.fetch_results([(await self._ids())[1]]))[0]


async def cancel_all(broker: Broker, ids: Sequence[str]) -> None:
    """Cancel the messages of these ids, many with one call to the server."""
    for start in range(0, len(ids), CANCELLED_AT_ONCE):
        await broker.cancel_each(ids[start : start + CANCELLED_AT_ONCE])


async def wait_for_each(
    handles: Sequence[JobHandle[Any]], tell: Callable[[int, Result[Any] | ResultError], bool]
) -> None:
    """Wait until all of these, which are on one server, have ended, with one watch. Called in trio.

    `tell` is called with the place of each and what became of it, as they end; what returns True ends the waiting.
    """
    places: dict[tuple[str, str], list[int]] = {}
    for place, handle in enumerate(handles):
        places.setdefault(await handle._ids(), []).append(place)  # noqa: SLF001  the other half of it
    if not places:
        return

    def queues() -> set[str]:
        waiting = (handles[there[0]].envelope for there in places.values())
        return {envelope.queue for envelope in waiting if not envelope.options.delay}

    with handles[0].broker.follow(queues) as following:
        following.add(places)
        while places:
            ended = {message: snapshot for message, snapshot in await following.ended() if message in places}
            stored = await _stored_for(handles, places, ended)
            for message, snapshot in ended.items():
                for place in places.pop(message):
                    if tell(place, handles[place]._outcome(snapshot, stored[message])):  # noqa: SLF001
                        return


async def _stored_for(
    handles: Sequence[JobHandle[Any]],
    places: Mapping[tuple[str, str], list[int]],
    ended: Mapping[tuple[str, str], Snapshot],
) -> dict[tuple[str, str], StoredResult | None]:
    """The results of messages that have ended: as they were seen, else as their stores have them."""
    stored = {message: snapshot.result for message, snapshot in ended.items()}
    stores: dict[ResultStore, list[tuple[str, str]]] = {}
    for message, result in stored.items():
        if result is None:
            stores.setdefault(handles[places[message][0]]._results, []).append(message)  # noqa: SLF001
    for store, messages in stores.items():
        found = await store.fetch_results([result_id for _, result_id in messages])
        stored.update(zip(messages, found, strict=True))
    return stored


_IN_WORDS = {"ready": "still ready, so no worker has begun it", "scheduled": "scheduled for later"}


class Watch:
    """The states of one job, one after another; what changes faster than it is asked for is seen in its last state."""

    def __init__(self, handle: JobHandle[Any]) -> None:
        self._handle = handle
        self._seen: Snapshot | None = None
        self._over = False
        self.latest: Status | None = None
        """The state that was given last."""

    def __repr__(self) -> str:
        return f"<Watch of {self._handle!r}>"

    @property
    def _result(self) -> StoredResult | None:
        """The result that was seen with its latest state."""
        return None if self._seen is None else self._seen.result

    def __aiter__(self) -> Watch:
        return self

    if not TYPE_CHECKING:  # type checkers report it themselves
        __iter__ = __await__ = misused(
            "the states of a job come as they change: `async for status in handle.watch(): ...`; `await "
            "handle.status()` gives the present one"
        )

    async def __anext__(self) -> Status:
        if self._over:
            raise StopAsyncIteration
        was_there = self._seen is not None or self._handle._is_known  # noqa: SLF001  the other half of it
        self._seen = await self._handle._look(self._seen)  # noqa: SLF001
        status = self.latest = _status(self._seen, is_known=was_there)
        self._over = status.is_over
        return status


def _status(snapshot: Snapshot, *, is_known: bool) -> Status:
    if snapshot.state == "gone" and snapshot.result is None and not is_known:
        return Status(state="unknown")
    if snapshot.state == "dead" or snapshot.state == "gone":  # noqa: PLR1714  checkers narrow the type by this form
        return Status(state=snapshot.result.state if snapshot.result else snapshot.state, attempt=snapshot.attempt)
    state: JobState = "running" if snapshot.state == "leased" else snapshot.state
    if snapshot.cancelling:
        state = "cancelling"
    progress = snapshot.progress
    if progress is None:
        return Status(state=state, attempt=snapshot.attempt)
    return Status(state=state, attempt=snapshot.attempt, done=progress.done, total=progress.total, note=progress.note)
