"""What comes between the children and their server: a proxy that cuts and delays, and the server's own ends and returns."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Final, Literal, TypeAlias
from urllib.parse import urlsplit, urlunsplit

import trio

from .journal import now

if TYPE_CHECKING:
    from engines.proxy import Proxy
    from engines.starting import Server

Cut: TypeAlias = Literal["closed", "half-open", "slow", "unanswered"]

CUTS: Final[tuple[Cut, ...]] = ("closed", "half-open", "slow", "unanswered")
"""Connections are closed; hand nothing on, and nobody is told; are slow; are closed when the server has done the work."""

DELAY = (0.05, 0.15)
SLOW_TIME = 2.0
SILENT_TIME = 7.0
"""Seconds after which whoever has a half-open connection has noticed that."""

QUIET = 4.0
"""Seconds after a return of the server without another fault: so long workers may take until they have their link."""

UNANSWERED = 3
"""How many connections are closed in the place of an answer."""


@dataclass
class Outage:
    """A time without the server. `back`: when it answered again. `crashed`: it was killed, not stopped."""

    down: float
    back: float = math.inf
    crashed: bool = False


@dataclass
class Network:
    """The way to one server. `process` is the server's where it may be stopped. All calls are made from another thread than the proxy's."""

    proxy: Proxy
    token: trio.lowlevel.TrioToken
    process: Server | None
    graceful: int
    """The signal at which the server ends well."""
    mended: Callable[[], None]
    """Called when a server is back that was killed, before anybody reaches it."""
    returning: Callable[[], None] = lambda: None
    """Called when a server is back, before the children reach it."""
    outages: list[Outage] = field(default_factory=list)
    cuts: list[Cut] = field(default_factory=list)
    _slow_until: float = 0.0
    _return_at: float = math.inf
    _quiet_until: float = 0.0

    @property
    def can_end(self) -> bool:
        """Whether the server is one of our own, which may be stopped."""
        return self.process is not None

    def way_to(self, address: str) -> str:
        """Where the children find the server: behind the proxy."""
        parts = urlsplit(address)
        user, at, _ = parts.netloc.rpartition("@")
        return urlunsplit(parts._replace(netloc=f"{user}{at}127.0.0.1:{self.proxy.port}"))

    @property
    def is_away(self) -> bool:
        """Whether the server has ended and has to be started again."""
        return self._return_at < math.inf

    @property
    def is_calm(self) -> bool:
        """Whether the server is there, has been for a while, and no connection is slow or half-open."""
        return not self.is_away and self._slow_until == 0.0 and now() > self._quiet_until

    def cut(self, kind: Cut) -> None:
        """Have one kind of fault happen."""
        self.cuts.append(kind)
        match kind:
            case "closed":
                self.token.run_sync_soon(self.proxy.cut)
            case "half-open":
                self.token.run_sync_soon(self.proxy.silence)
                self._quiet_until = now() + SILENT_TIME
            case "slow":
                self.proxy.delay, self._slow_until = DELAY, now() + SLOW_TIME
            case "unanswered":
                self.proxy.cuts_answers = UNANSWERED

    def take_away(self, seconds: float, *, killed: bool) -> None:
        """Stop or kill the server. `tend` starts it again after this time."""
        assert self.process is not None
        outage = Outage(now(), crashed=killed)
        self.outages.append(outage)
        if killed:
            self.process.crash()
        else:
            self.process.stop(self.graceful)
        self._return_at = now() + seconds

    def tend(self) -> None:
        """End what has lasted long enough."""
        if self._slow_until and now() >= self._slow_until:
            self.proxy.delay, self._slow_until = (0.0, 0.0), 0.0
        if now() >= self._return_at:
            self.bring_back()

    def bring_back(self) -> None:
        """Start the server if it is away."""
        if not self.is_away:
            return
        assert self.process is not None
        self.proxy.refuses = True
        self.process.start()
        if self.outages[-1].crashed:
            self.mended()
        self.returning()
        self.proxy.refuses = False
        self.outages[-1].back, self._return_at = now(), math.inf
        self._quiet_until = now() + QUIET


@contextmanager
def network_to(
    host: str, port: int, process: Server | None, graceful: int, mended: Callable[[], None]
) -> Iterator[Network]:
    """A proxy in a thread of its own; `network.proxy.port` is where the children find the server."""
    from engines.proxy import proxy_to

    found: list[Network] = []
    is_up, ends = threading.Event(), trio.Event()

    async def serve() -> None:
        async with proxy_to(host, port) as proxy:
            found.append(Network(proxy, trio.lowlevel.current_trio_token(), process, graceful, mended))
            is_up.set()
            await ends.wait()

    thread = threading.Thread(target=partial(trio.run, serve), name="proxy")
    thread.start()
    is_up.wait()
    network = found[0]
    try:
        yield network
    finally:
        network.token.run_sync_soon(ends.set)
        thread.join()
        network.bring_back()
