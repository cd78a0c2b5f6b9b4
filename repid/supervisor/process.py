"""One worker process as the supervisor sees it."""

from __future__ import annotations

import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, Literal

import msgspec
import trio

from ..runtime import Report
from .target import Target

Order = Literal["stop", "cut"]
"""stop: with the grace. cut: without."""

_START = "import sys; sys.path[:] = {path!r}; from repid.supervisor.child import main; main()"

_GROUP: dict[str, Any]
if sys.platform == "win32":
    _GROUP = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}
else:
    _GROUP = {"process_group": 0}


class Brief(msgspec.Struct, frozen=True, kw_only=True):
    """What a process is told before anything else. `worker`: options of its worker, as JSON can hold them.

    `max_jobs`, `max_memory`: it ends, to be replaced, after so many runs, or when it takes so many bytes.
    `account`: the file into which it writes its `Account` at the end. `number`: which of the workers it is.
    """

    target: Target
    number: int
    account: str
    argv: list[str]
    server_name: str | None = None
    worker: dict[str, Any] = {}
    signals: list[int] = []
    messages_limit: int | None = None
    max_jobs: int | None = None
    max_memory: int | None = None


class Account(msgspec.Struct, frozen=True):
    """What a process leaves behind: what its worker did, and whether it ended in order to be replaced."""

    report: Report
    recycled: Literal["jobs", "memory"] | None = None


class Process:
    """A worker process. It is its own process group, so that Ctrl-C reaches it by way of the supervisor only."""

    def __init__(self, brief: Brief) -> None:
        self._account = Path(brief.account)
        self._popen = subprocess.Popen(  # noqa: S603 - itself; here, not in one of trio's threads: the death of that would end the process
            [sys.executable, "-c", _START.format(path=sys.path), f"worker {brief.number} of {brief.target.name}"],
            stdin=subprocess.PIPE,
            bufsize=0,
            **_GROUP,
        )
        self._write(msgspec.json.encode(brief) + b"\n")

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._popen.pid

    def tell(self, order: Order) -> None:
        """Tell it to stop. One that has ended already does not mind."""
        self._write(order.encode() + b"\n")

    def kill(self) -> None:
        """End it now; what it was doing is left to the leases."""
        self._popen.kill()

    async def wait(self) -> int:
        """Wait for its end; its exit code, or minus the signal that killed it."""
        code: int = await trio.to_thread.run_sync(
            self._popen.wait, abandon_on_cancel=True, limiter=trio.CapacityLimiter(1)
        )
        return code

    async def close(self, seconds: float) -> None:
        """Have it end, if it has not: without a supervisor it cuts itself short. After so many seconds it is killed."""
        with suppress(OSError):
            self._pipe.close()
        with trio.CancelScope(shield=True):
            with trio.move_on_after(seconds):
                await self.wait()
                return
            self.kill()
            await self.wait()

    def account(self) -> Account | None:
        """What it left behind. None: nothing, as it crashed."""
        try:
            return msgspec.json.decode(self._account.read_bytes(), type=Account)
        except (OSError, msgspec.MsgspecError):
            return None
        finally:
            self._account.unlink(missing_ok=True)

    def _write(self, line: bytes) -> None:
        with suppress(OSError):  # it has ended; `wait` tells
            self._pipe.write(line)

    @property
    def _pipe(self) -> IO[bytes]:
        assert self._popen.stdin is not None
        return self._popen.stdin
