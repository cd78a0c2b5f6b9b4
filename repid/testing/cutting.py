"""A link that can be cut on order: between a server and the driver under test.

    cut = Cut()

    @asynccontextmanager
    async def open_my_server():
        yield Server(cut(MyDriver()))

    await check_broker(open_my_server, cut=cut)

Theory. What a client sees of a broken link is silence, so a call that is lost on its way and one whose answer is lost
end in the same error; they differ in whether the engine has done the work. Nothing is said of a driver that is cut off
by itself, so one whose calls are local is treated as a remote one here.
"""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, Literal, TypeVar, cast

import trio
from msgspec.structs import replace

from ..errors import BrokerUnavailable
from ..ports import Capabilities, Driver, News

T = TypeVar("T")
D = TypeVar("D", bound=Driver)

Way = Literal["before", "after"]
"""Whether a call is cut off before the engine hears of it, or after it did the work."""


class Cut:
    """Cuts the links of the drivers that were handed to it. `links` counts how often one was opened."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Everything works again."""
        self.links = 0
        self.is_down = False
        self.fails_at_close = False
        self._cuts: Counter[tuple[str, Way]] = Counter()
        self._waiting: set[trio.CancelScope] = set()

    def __call__(self, driver: D) -> D:
        """The driver, with a link that can be cut."""
        return cast("D", _CutDriver(driver, self))

    def at(self, call: str, way: Way) -> None:
        """Cut the next call of that name off."""
        self._cuts[call, way] += 1

    def go_down(self) -> None:
        """The engine cannot be reached from now on, until `come_back`."""
        self.is_down = True
        for scope in list(self._waiting):
            scope.cancel()

    def come_back(self) -> None:
        """The engine can be reached again; a link must be opened anew."""
        self.is_down = False

    def check(self, call: str, way: Way) -> None:
        """Raise `BrokerUnavailable` where a call is to be cut off now."""
        if self.is_down:
            raise BrokerUnavailable("the engine is not there")
        if self._cuts[call, way]:
            self._cuts[call, way] -= 1
            raise BrokerUnavailable(f"the link broke {way} the engine had carried out {call}")

    async def waiting(self, ask: Awaitable[T]) -> T:
        """Wait for something that ends when the engine goes down."""
        with trio.CancelScope() as scope:
            self._waiting.add(scope)
            try:
                return await ask
            finally:
                self._waiting.discard(scope)
        raise BrokerUnavailable("the engine went away")


class _CutDriver:
    """Hands each call on, through the cut. It does not offer `claim_or_wait` of drivers in this process."""

    def __init__(self, driver: Driver, cut: Cut) -> None:
        self._driver = driver
        self._cut = cut

    @property
    def capabilities(self) -> Capabilities:
        return replace(self._driver.capabilities, calls="remote")

    @asynccontextmanager
    async def link(self, watched: Mapping[str, int]) -> AsyncIterator[None]:
        self._cut.check("link", "before")
        async with self._driver.link(watched):
            self._cut.links += 1
            yield
        if self._cut.fails_at_close:
            raise BrokerUnavailable("the link broke while it was being closed")

    async def news(self, wait: float) -> News | None:
        self._cut.check("news", "before")
        return await self._cut.waiting(self._driver.news(wait))

    def __getattr__(self, name: str) -> Any:
        if name in {"claim_or_wait", "set_limits"}:
            raise AttributeError(name)
        found = getattr(self._driver, name)
        return self._through(name, found) if inspect.iscoroutinefunction(found) else found

    def _through(self, name: str, call: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def go(*arguments: Any, **options: Any) -> Any:
            self._cut.check(name, "before")
            answer = await call(*arguments, **options)
            self._cut.check(name, "after")
            return answer

        return go
