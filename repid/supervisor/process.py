"""One worker process as the supervisor sees it."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import suppress
from typing import IO, Any, Literal

import msgspec
import trio

from ..hosts import LoopName
from ..runtime import Report
from ..runtime.signals import held_back
from .target import Target

Order = Literal["stop", "cut"]
"""stop: with the grace. cut: without."""

_LONGEST_EXIT_REPORT = 16384
"""Bytes: what a pipe holds everywhere, so that writing does not wait for somebody to read."""

_START = "import sys; sys.path[:] = {path!r}; from repid.supervisor.child import main; main()"


def _this_python() -> list[str]:
    """The interpreter, with the flags this process has: -O, -W, -X dev and so on."""
    # Private, but what multiprocessing starts its processes with; nothing public says which flags there are.
    flags: list[str] = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]  # noqa: SLF001  see above
    return [sys.executable, *flags]


def _how_to_start(pipe: int) -> tuple[int, dict[str, Any]]:
    """Arguments for a process of its own group that inherits the pipe, and as what: a file descriptor or a handle."""
    if sys.platform == "win32":
        import msvcrt  # noqa: PLC0415  of Windows only

        handle = msvcrt.get_osfhandle(pipe)
        os.set_handle_inheritable(handle, True)  # noqa: FBT003  it takes no keyword
        only = subprocess.STARTUPINFO(lpAttributeList={"handle_list": [handle]})
        return handle, {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP, "startupinfo": only}
    return pipe, {"process_group": 0, "pass_fds": [pipe]}


def inherited_pipe(number: int) -> int:
    """The pipe that was passed to this process, as a file descriptor that is not passed on."""
    if sys.platform == "win32":
        import msvcrt  # noqa: PLC0415  of Windows only

        os.set_handle_inheritable(number, False)  # noqa: FBT003  it takes no keyword
        return msvcrt.open_osfhandle(number, os.O_WRONLY)
    os.set_inheritable(number, False)  # noqa: FBT003  it takes no keyword
    return number


class Brief(msgspec.Struct, frozen=True, kw_only=True):
    """What a process is told before anything else. `worker`: other options of its worker, as JSON can hold them.

    `max_jobs`, `max_memory`: the runs after which it ends and is replaced, and the bytes of memory.
    `exit_pipe`: the inherited pipe into which it writes its `ExitReport` at the end. `number`: which of the workers it
    is. `supervisor`: the process that started it.
    """

    target: Target
    number: int = 0
    exit_pipe: int = 0
    supervisor: int = 0
    argv: list[str]
    loop: LoopName = "trio"
    server_name: str | None = None
    tasks_limit: int
    worker: dict[str, Any] = {}
    signals: list[int] = []
    messages_limit: int | None = None
    max_jobs: int | None = None
    max_memory: int | None = None


class ExitReport(msgspec.Struct, frozen=True):
    """What a process leaves behind: what its worker did, and whether it ended in order to be replaced.

    `refused`: why there can be no worker, however often it is tried. `unavailable`: the server was away for longer than
    a burst waits. Otherwise None.
    """

    report: Report
    recycled: Literal["jobs", "memory"] | None = None
    refused: str | None = None
    unavailable: str | None = None


class Process:
    """A worker process. It is its own process group, so that Ctrl-C reaches it by way of the supervisor only."""

    def __init__(self, brief: Brief) -> None:
        self._exit_pipe, theirs = os.pipe()
        try:
            exit_pipe, arguments = _how_to_start(theirs)
            command = [*_this_python(), "-c", _START.format(path=sys.path)]
            command.append(f"worker {brief.number} of {brief.target.name}")
            with held_back(brief.signals):
                self._popen = subprocess.Popen(  # noqa: S603  itself; here, not in one of trio's threads: see `orphan`
                    command, stdin=subprocess.PIPE, bufsize=0, **arguments
                )
        except BaseException:
            os.close(self._exit_pipe)
            raise
        finally:
            os.close(theirs)
        brief = msgspec.structs.replace(brief, exit_pipe=exit_pipe, supervisor=os.getpid())
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

    async def close(self, seconds: float) -> ExitReport | None:
        """Have it end, if it has not: without a supervisor it cuts itself short. It is killed after `seconds`.

        What it left behind. None: nothing, as it crashed.
        """
        with suppress(OSError):
            self._pipe.close()
        with trio.CancelScope(shield=True):
            with trio.move_on_after(seconds) as patience:
                await self.wait()
            if patience.cancelled_caught:
                self.kill()
                await self.wait()
        return self._read_exit_report()

    def _read_exit_report(self) -> ExitReport | None:
        try:
            if sys.platform != "win32":
                os.set_blocking(self._exit_pipe, False)  # a fork of it may still hold the other end
            return msgspec.json.decode(os.read(self._exit_pipe, _LONGEST_EXIT_REPORT), type=ExitReport)
        except (OSError, msgspec.MsgspecError):
            return None
        finally:
            os.close(self._exit_pipe)

    def _write(self, line: bytes) -> None:
        with suppress(OSError):  # it has ended; `wait` tells
            self._pipe.write(line)

    @property
    def _pipe(self) -> IO[bytes]:
        assert self._popen.stdin is not None
        return self._popen.stdin
