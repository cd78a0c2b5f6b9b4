"""Memory brokers broken on purpose, in one respect each: in following many messages."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import msgspec
import trio
from broken import BrokenServer

from repid import NotConnected
from repid.brokers.shared.watching import Following as SoundFollowing
from repid.ports import Snapshot

Ids = tuple[str, str]
Ended = list[tuple[Ids, Snapshot]]


class BrokenFollowing:
    """Follows as it should, but for what a subclass breaks."""

    def __init__(self, sound: SoundFollowing, server: BrokenServer) -> None:
        self.sound = sound
        self.server = server

    def __getattr__(self, name: str) -> Any:
        return getattr(self.sound, name)

    async def ended(self) -> Ended:
        return await self.sound.ended()


class BrokenFollower(BrokenServer):
    Following: type[BrokenFollowing] = BrokenFollowing

    @contextmanager
    def follow(self, queues: Callable[[], Iterable[str]] | None = None) -> Iterator[SoundFollowing]:
        with super().follow(queues) as sound:
            yield cast("SoundFollowing", self.Following(sound, self))


class TellsAnEndAgain(BrokenFollower):
    """What has ended is followed on, and told again with the next end."""

    class Following(BrokenFollowing):
        async def ended(self) -> Ended:
            ended = await self.sound.ended()
            self.sound.add([ids for ids, _ in ended])
            return ended


class LosesACancelledEnd(BrokenFollower):
    """It waits for something else when it has noted what ended."""

    class Following(BrokenFollowing):
        async def ended(self) -> Ended:
            ended = await self.sound.ended()
            await trio.lowlevel.checkpoint()
            return ended


class TakesALeaseForAnEnd(BrokenFollower):
    """Any change of the first message is its end."""

    class Following(BrokenFollowing):
        def __init__(self, sound: SoundFollowing, server: BrokenServer) -> None:
            super().__init__(sound, server)
            self.first: list[Ids] = []

        def add(self, messages: Iterable[Ids]) -> None:
            self.first += list(messages)[:1]
            self.sound.add(self.first)

        async def ended(self) -> Ended:
            ids = self.first[0]
            seen = await self.server.watch(*ids)
            return [(ids, await self.server.watch(*ids, seen))]


class CannotBeWoken(BrokenFollower):
    class Following(BrokenFollowing):
        def wake(self) -> None:
            """Do nothing."""


class ForgetsAWakeThatCameEarly(BrokenFollower):
    """`wake` is for who waits already."""

    class Following(BrokenFollowing):
        async def ended(self) -> Ended:
            self.sound._is_woken = False
            return await self.sound.ended()


class ForgetsResults(BrokenFollower):
    class Following(BrokenFollowing):
        async def ended(self) -> Ended:
            ended = await self.sound.ended()
            return [(ids, msgspec.structs.replace(snapshot, result=None)) for ids, snapshot in ended]


class TellsOneRequestsWorth(BrokenFollower):
    """Of more than a thousand, the others are forgotten."""

    class Following(BrokenFollowing):
        def add(self, messages: Iterable[Ids]) -> None:
            self.sound.add(list(messages)[:1000])


class IsDeafWhileItWaits(BrokenFollower):
    """What is added is followed from the next `ended` on."""

    class Following(BrokenFollowing):
        def __init__(self, sound: SoundFollowing, server: BrokenServer) -> None:
            super().__init__(sound, server)
            self.later: list[Ids] = []

        def add(self, messages: Iterable[Ids]) -> None:
            self.later += messages

        async def ended(self) -> Ended:
            self.sound.add(self.later)
            self.later = []
            return await self.sound.ended()


class SleepsOverATtl(BrokenFollower):
    """It looks when it is told of something, and a ttl that ends tells nobody."""

    class Following(BrokenFollowing):
        async def ended(self) -> Ended:
            self.sound._again.clear()
            look = self.sound._look_again

            async def look_again() -> Ended:
                ended = await look()
                self.sound._again.clear()
                return ended

            self.sound._look_again = look_again  # type: ignore[method-assign]  # on purpose
            return await self.sound.ended()


class WaitsOnWithoutAConnection(BrokenFollower):
    class Following(BrokenFollowing):
        async def ended(self) -> Ended:
            try:
                return await self.sound.ended()
            except NotConnected:
                await trio.sleep_forever()
                raise
