"""`app.map`: a call for each item, a bounded number of them at once, and their results in a loop.

Theory. The form is `async with app.map(...) as results: async for result in results`. An async generator would have to
`yield` while it holds children: a loop that is left by `break` does not close it, and trio forbids a nursery around a
`yield`. So the block owns the children, and leaving it, in any way, has those cancelled that are not over.

* All work is done by the task of the loop: `__anext__` publishes what there is room for, waits until calls have ended,
  and takes their results. Nothing runs while the loop's body does but the actors. Only an async source is read by a
  task of its own, which lives in the block's nursery, since a read cannot be broken off and made again.
* A call is *under way* from just before it is published until its result has been taken by the loop. There are never
  more than `limit`, so neither waiting messages nor results that were not taken grow without bound, whatever the
  source.
* All that are under way are followed by one watch on the server. They are followed before they are published.
* Results that were taken are removed from the store, many at once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager, suppress
from functools import partial
from math import inf
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeAlias, TypeVar

import trio

from .calls import Callee, CallTerms, deferred
from .delivery import NewResult, StoredResult
from .envelope import Envelope
from .errors import ConfigurationError, DuplicateId, PayloadError, RepidError, ResultError, UsageError, misused
from .handle import cancel_all
from .hosts import Turns, hosted, hosted_context, on_host
from .names import brief, check_count, check_one_of
from .ports import Broker, Followed, ResultStore, Snapshot
from .producer import Publish
from .results import Result, value_of
from .tracebacks import unwrapped

R = TypeVar("R")

OnError: TypeAlias = Literal["raise", "yield"]

REMOVED_AT_ONCE = 256
"""Results that were taken are removed from the store in groups of this size."""

CLOSING_TIME = 5.0
"""Seconds that leaving the block may take to have the calls cancelled that are not over."""

_END: Any = object()


class MapRequest(Generic[R]):
    """What is to be called, where, and how its results are wanted."""

    def __init__(
        self,
        callee: Callee,
        terms: CallTerms,
        arguments: Sequence[Any],
        keywords: Mapping[str, Any],
        *,
        broker: Broker,
        store: ResultStore,
        publish: Publish,
        limit: float,
        ordered: bool,
        on_error: str,
    ) -> None:
        self.callee = callee
        self.terms = terms
        self.arguments = arguments
        self.keywords = keywords
        self.broker = broker
        self.store = store
        self.publish = publish
        self.ordered = ordered
        if check_count("the limit of map", limit, least=1) == inf:
            raise ConfigurationError("the limit of map must be finite: every call under way takes memory")
        self.limit = int(limit)
        check_one_of("on_error of map", on_error, ("raise", "yield"))
        self.raises = on_error == "raise"


class Map(Generic[R]):
    """Calls of one actor with many items: `async with app.map(...) as results: async for result in results`.

    Leaving the block, in any way, has those cancelled that are not over: waiting ones are removed, the actors of
    running ones are cancelled. That takes at most five seconds; what the server did not answer by then goes on.
    """

    def __init__(self, request: MapRequest[R], items: Iterable[Any] | AsyncIterable[Any]) -> None:
        self._request = request
        self._items = items
        self._opened: AbstractAsyncContextManager[AsyncIterator[R]] | None = None

    def __repr__(self) -> str:
        return f"<map of {self._request.callee.name!r}, at most {self._request.limit} at once>"

    async def __aenter__(self) -> AsyncIterator[R]:
        if self._opened is not None:
            raise UsageError(f"{self!r} was entered before: make another one")
        self._opened = _open(self._request, self._items)
        return await self._opened.__aenter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        assert self._opened is not None
        return await self._opened.__aexit__(kind, error, traceback)

    if not TYPE_CHECKING:  # type checkers report it themselves
        __await__ = __iter__ = __aiter__ = __enter__ = __exit__ = misused(
            "map needs a block, which cancels what is not over when the loop is left: "
            "async with app.map(...) as results: async for result in results: ..."
        )


class Block(Generic[R]):
    """The block of a map, in trio. `items`: None if they are handed over with each `Results.exchange`."""

    def __init__(self, request: MapRequest[R], items: Iterable[Any] | AsyncIterable[Any] | None) -> None:
        self._request = request
        self._items = items
        self._nursery: AbstractAsyncContextManager[trio.Nursery] | None = None
        self._following: AbstractContextManager[Followed] = request.broker.follow(self._queues)

    def _queues(self) -> list[str]:
        """Where calls wait now, unless they are to wait."""
        terms = self._request.terms
        waits_long = terms.options.delay or terms.due_at is not None
        return [self._request.callee.channel] if self._results.are_under_way and not waits_long else []

    async def __aenter__(self) -> Results[R]:
        items = self._items
        source = None if items is None or isinstance(items, AsyncIterable) else iter(items)
        self._results = results = Results(self._request, self._following.__enter__(), source)
        if not isinstance(self._items, AsyncIterable):
            return results
        self._nursery = trio.open_nursery()
        self._readers = await self._nursery.__aenter__()
        self._readers.start_soon(on_host(results.read), self._items)
        return results

    async def __aexit__(self, *error: object) -> None:
        """End the reading, then the calls. What the body or the source raised goes on as it is, in no group."""
        try:
            if self._nursery is not None:
                self._readers.cancel_scope.cancel()
                await self._nursery.__aexit__(None, None, None)
        except BaseExceptionGroup as group:
            raise unwrapped(group) from None
        finally:
            try:
                with trio.CancelScope(shield=True, deadline=trio.current_time() + CLOSING_TIME), suppress(RepidError):
                    await self._results.close()
            finally:
                self._following.__exit__(None, None, None)


@hosted_context
def _open(request: MapRequest[R], items: Iterable[Any] | AsyncIterable[Any]) -> Any:
    return Block(request, items)


class Results(Generic[R]):
    """The results of a map, to be read by one task. `source`: where the items come from; None: they are `read`, or
    handed over.
    """

    def __init__(self, request: MapRequest[R], following: Followed, source: Iterator[Any] | None) -> None:
        self._source = source
        self._request = request
        self._following = following
        self._items: deque[Any] = deque()
        """Items that were read ahead from an async source."""
        self._has_room = trio.Event()
        self._is_exhausted = False
        self._error: Exception | None = None
        """What the source has raised: it is raised when all that came before was taken."""
        self._numbers: dict[str, int] = {}
        """The calls that are not over, and their places in the order of the items."""
        self._ready: deque[StoredResult | Exception] = deque()
        """The results to be taken next, in their order."""
        self._early: dict[int, StoredResult | Exception] = {}
        """Where the order of the items counts: results by number, until they are ready."""
        self._unsent: list[Envelope] = []
        """What the publishing was begun of, and not seen to its end: it was cancelled."""
        self._published = 0
        self._lined_up = 0
        """Where the order of the items counts: how many results are ready or were taken."""
        self._taken = 0
        self._is_read = False
        self._is_left = False
        self._to_remove: list[StoredResult] = []
        self._turns = Turns()
        self._refill_at = -inf
        """When so many were taken, more are published, although there are results to take."""

    def __aiter__(self) -> Results[R]:
        return self

    if not TYPE_CHECKING:  # type checkers report it themselves
        __iter__ = __await__ = misused(
            "the results of app.map come as their calls end: `async for result in results: ...`, or all of them with "
            "`[result async for result in results]`"
        )

    async def __anext__(self) -> R:
        """The next result. Cancelled, it loses none."""
        if self._ready and self._taken < self._refill_at:
            if self._turns.is_due():
                await self._turns.take()
        elif not await self._advance():
            if self._error is not None:
                error, self._error = self._error, None
                raise error
            raise StopAsyncIteration
        return self._take()

    @property
    def are_under_way(self) -> bool:
        """Whether calls are not over."""
        return bool(self._numbers)

    @property
    def wanted(self) -> int:
        """How many more items are wanted now."""
        return 0 if self._is_exhausted else self._room() - len(self._items)

    async def exchange(
        self, items: Iterable[Any], *, is_exhausted: bool, error: Exception | None
    ) -> list[R | Exception]:
        """Take over the next items and wait until there are results; all that are there. An empty list: no more will
        come.

        `is_exhausted`: there are no more items; `error`: since this was raised. An exception stands in the place of a
        result.
        """
        self._items.extend(items)
        if is_exhausted and not self._is_exhausted:
            self._is_exhausted, self._error = True, error
        found: list[R | Exception] = []
        if await self._advance():
            while self._ready:
                try:
                    found.append(self._take())
                except Exception as failure:  # noqa: BLE001  it is raised in its place
                    found.append(failure)
        elif self._error is not None:
            found, self._error = [self._error], None
        return found

    async def read(self, items: AsyncIterable[Any]) -> None:
        """Read an async source ahead; written for the host. A generator is closed with the block."""
        source = aiter(items)
        error: Exception | None = None
        try:
            async for item in source:
                await self._offer(item)
        except Exception as raised:  # noqa: BLE001  it is the loop's, which raises it in its place
            error = raised
        finally:
            close = getattr(source, "aclose", None)
            if close is not None:
                await close()
        await self._end(error)

    @hosted
    async def _offer(self, item: Any) -> None:
        self._items.append(item)
        self._following.wake()
        while len(self._items) >= self._request.limit:
            self._has_room = trio.Event()
            await self._has_room.wait()

    @hosted
    async def _end(self, error: Exception | None) -> None:
        self._error = error
        self._is_exhausted = True
        self._following.wake()

    def _room(self) -> int:
        return self._request.limit - (self._published - self._taken)

    def _take(self) -> R:
        result = self._ready.popleft()
        self._taken += 1
        if isinstance(result, Exception):
            raise result
        callee = self._request.callee
        if self._request.raises:
            value: R = value_of(result, callee.returns, callee.name)
            return value
        return Result(result, callee.returns, callee.name)  # type: ignore[return-value] # the map says which it is of

    @hosted
    async def _advance(self) -> bool:
        """Publish, and wait until there is something to take. Returns False if there will be nothing more."""
        if self._is_read:
            raise UsageError("the results of a map are read by one task at a time, and another one is reading them")
        self._is_read = True
        self._refill_at = -inf  # unless this comes to its end
        try:
            await trio.lowlevel.checkpoint()
            while True:
                if self._is_left:
                    raise UsageError(
                        "the block of this map was left, and its calls are over: read the results inside of the block"
                    )
                if self._unsent:
                    await self._send(again=True)
                items = self._next_items(self._room())
                if items:
                    self._unsent = self._envelopes_for(items)
                    await self._send()
                if self._ready:
                    is_last = self._is_exhausted and not self._items
                    self._refill_at = inf if is_last else self._published - self._request.limit // 2
                    return True
                if not self._numbers and self._is_exhausted and not self._items:
                    return False
                await self._collect(await self._following.ended())
        finally:
            self._is_read = False

    def _next_items(self, room: int) -> list[Any]:
        items: list[Any] = []
        if self._source is None:
            while self._items and len(items) < room:
                items.append(self._items.popleft())
            self._has_room.set()
            return items
        try:
            while not self._is_exhausted and len(items) < room:
                item = next(self._source, _END)
                if item is _END:
                    self._is_exhausted = True
                else:
                    items.append(item)
        except Exception as error:  # noqa: BLE001  it is raised in its place
            self._is_exhausted, self._error = True, error
        return items

    def _envelopes_for(self, items: list[Any]) -> list[Envelope]:
        """The messages for these items, numbered. For an item that does not fit there is the error in its place."""
        request = self._request
        make = partial(request.callee.envelopes, request.terms, request.arguments, request.keywords)
        made: list[Envelope | Exception] = []
        try:
            made += make(items)
        except Exception:  # noqa: BLE001  an item does not fit, or its own code has raised
            for number, item in enumerate(items, self._published):
                try:
                    made += make([item])
                except Exception as error:  # noqa: BLE001  raised in its place
                    if isinstance(error, PayloadError):
                        error.add_note(f"this was item {number}, counted from 0: {brief(item)}")
                    made.append(error)
        envelopes: list[Envelope] = []
        for number, each in enumerate(made, self._published):
            if isinstance(each, Exception):
                self._put(number, each)
            else:
                self._numbers[each.id] = number
                envelopes.append(each)
        self._line_up()
        self._published += len(made)
        self._following.add(
            [(envelope.id, envelope.id) for envelope in envelopes],
            look_first=self._request.terms.options.ttl is not None,
            take_results=self._request.store is self._request.broker,
        )
        return envelopes

    def _put(self, number: int, result: StoredResult | Exception) -> None:
        """Take in the result of the call of this number. To be followed by `_line_up`."""
        if self._request.ordered:
            self._early[number] = result
        else:
            self._ready.append(result)

    def _line_up(self) -> None:
        """Where the order of the items counts, make ready what is next."""
        early, ready, number = self._early, self._ready, self._lined_up
        while early and (result := early.pop(number, None)) is not None:
            ready.append(result)
            number += 1
        self._lined_up = number

    async def _send(self, *, again: bool = False) -> None:
        """Publish what is unsent. If that was tried before, what is there or has ended was published then: it is left
        out at once, since some of it may end while the others wait for room in their queue.
        """
        request = self._request
        if again:
            looks = await self._following.look([(envelope.id, envelope.id) for envelope in self._unsent])
            self._unsent = [
                envelope
                for envelope, seen in zip(self._unsent, looks, strict=True)
                if seen.state == "gone" and seen.result is None and envelope.id in self._numbers
            ]
        envelopes = self._unsent
        if request.terms.due_at is not None and envelopes:
            envelopes = await deferred(envelopes, request.broker, request.terms.due_at)
        outcomes = await request.publish(envelopes) if envelopes else []
        self._unsent = []
        if not any(outcomes):
            return
        refused = {
            (one.id, one.id): outcome
            for one, outcome in zip(envelopes, outcomes, strict=True)
            if outcome is not None and not (again and isinstance(outcome, DuplicateId))
        }
        self._following.add(refused)  # news will not tell of them
        for outcome in refused.values():
            raise outcome

    async def _collect(self, ended: Iterable[tuple[tuple[str, str], Snapshot]]) -> None:
        missing: list[tuple[str, str]] = []
        numbers, to_remove, is_ordered, early, ready = (
            self._numbers,
            self._to_remove,
            self._request.ordered,
            self._early,
            self._ready,
        )
        for message, snapshot in ended:
            result = snapshot.result
            if result is None:
                missing.append(message)
            else:
                number = numbers.pop(message[0])
                if is_ordered:  # as `_put`, for the many
                    early[number] = result
                else:
                    ready.append(result)
                if result.expires_at > result.finished_at:  # else it was not stored
                    to_remove.append(result)
        self._line_up()
        if missing:
            try:
                stored = await self._request.store.fetch_results([id_ for _, id_ in missing])
            except BaseException:
                self._following.add(missing)  # they are told of again
                raise
            for message, result in zip(missing, stored, strict=True):
                self._note(message[0], result)
            self._line_up()
        if len(self._to_remove) >= REMOVED_AT_ONCE:
            await self._remove()

    def _note(self, id_: str, stored: StoredResult | None) -> None:
        number = self._numbers.pop(id_)
        if stored is not None:
            self._put(number, stored)
            self._to_remove.append(stored)
            return
        text = (
            f"message {id_!r} of actor {self._request.callee.name!r} has ended, and no result of it is stored: it was "
            "flushed or deleted, or its result has expired (result_ttl)"
        )
        self._put(number, ResultError(text))

    async def _remove(self) -> None:
        """Remove results from the store: one that is kept for no time takes their place."""
        removed = [NewResult(id=stored.id, state=stored.state, ttl=0.0) for stored in self._to_remove]
        self._to_remove.clear()
        await self._request.store.store_results(removed)

    async def close(self) -> None:
        """Have the calls cancelled that are not over, and remove the results of the others."""
        ids = list(self._numbers)
        self._is_left = True
        self._numbers.clear()
        self._ready.clear()
        self._early.clear()
        self._following.wake()  # a task that reads still
        await cancel_all(self._request.broker, ids)
        if self._to_remove:
            await self._remove()


def check_items(items: Iterable[Any] | AsyncIterable[Any]) -> None:
    """Raise `ConfigurationError` for what gives no items."""
    if isinstance(items, str | bytes) or not isinstance(items, Iterable | AsyncIterable):
        raise ConfigurationError(
            "the items of map must be an iterable or an async iterable, such as a list or a generator, but are "
            f"{brief(items)}"
        )
