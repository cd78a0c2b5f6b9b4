"""`client.map`: as `app.map`, for code that blocks."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from ..errors import UsageError, misused
from ..mapping import Block, Map, Results
from ..names import check_iterable
from ..sync_handle import Carry

R = TypeVar("R")
T = TypeVar("T")


class SyncMap(Generic[R]):
    """Calls of one actor with many items: `with client.map(...) as results: for result in results`.

    Leaving the block, in any way, has those cancelled that are not over, as that of a `Map`.
    """

    def __init__(self, map_: Map[R], items: Iterable[Any], carry: Carry) -> None:
        check_iterable("the items of map", items)
        self._map = map_
        self._items = items
        self._carry = carry
        self._block: Block[R] | None = None

    def __repr__(self) -> str:
        return repr(self._map)

    def __enter__(self) -> Iterator[R]:
        if self._block is not None:
            raise UsageError(f"{self!r} was entered before: make another one")
        source = iter(self._items)  # before the block is open: what this raises leaves nothing to close
        self._block = Block(self._map._request, None)  # noqa: SLF001  the other half of it
        return _SyncResults(self._carry(self._block.__aenter__, is_waiting=False), source, self._carry)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._block is not None
        self._carry(partial(self._block.__aexit__, kind, error, traceback), is_waiting=False)

    if not TYPE_CHECKING:  # type checkers report it themselves
        __iter__ = __aiter__ = __aenter__ = __aexit__ = misused(
            "map needs a block, which cancels what is not over when the loop is left: "
            "with client.map(...) as results: for result in results: ..."
        )


class _SyncResults(Generic[R]):
    """The results of a map, to be read by one thread. The items are read in that thread, since their source
    may block.
    """

    def __init__(self, results: Results[R], source: Iterator[Any], carry: Carry) -> None:
        self._results = results
        self._source = source
        self._carry = carry
        self._ready: deque[R | Exception] = deque()
        """What has come with one exchange, which is one crossing between threads for all of it."""

    def __iter__(self) -> _SyncResults[R]:
        return self

    if not TYPE_CHECKING:  # type checkers report it themselves
        __aiter__ = misused("the results of client.map are read by code that blocks: `for result in results: ...`")

    def __next__(self) -> R:
        """The next result."""
        if not self._ready:
            items, is_exhausted, error = self._read()
            exchange = partial(self._results.exchange, items, is_exhausted=is_exhausted, error=error)
            self._ready.extend(self._carry(exchange, is_waiting=True))
        if not self._ready:
            raise StopIteration
        result = self._ready.popleft()
        if isinstance(result, Exception):
            raise result
        return result

    def _read(self) -> tuple[list[Any], bool, Exception | None]:
        """The items that are wanted; whether there are no more, and the error for which there are none."""
        items: list[Any] = []
        wanted = self._results.wanted
        try:
            while len(items) < wanted:
                items.append(next(self._source))
        except StopIteration:
            return items, True, None
        except Exception as error:  # noqa: BLE001  it is raised in its place
            return items, True, error
        return items, False, None
