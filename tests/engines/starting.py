"""Starting a server as a process of its own, and stopping it by its pid."""

from __future__ import annotations

import ctypes
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

UNPRIVILEGED = ("postgres", "nobody")
"""Users as whom a server runs that refuses to run as root."""

_PR_SET_PDEATHSIG = 1


def unavailable(reason: str) -> None:
    """No server can be had: skip, and say so; in CI fail."""
    if os.environ.get("CI"):
        pytest.fail(f"CI needs this server: {reason}", pytrace=False)
    pytest.skip(reason)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def other_user() -> pwd.struct_passwd | None:
    """Whom to run as where we are root; None: as ourselves."""
    if os.geteuid() != 0:
        return None
    for name in UNPRIVILEGED:
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    raise LookupError(f"none of the users {', '.join(UNPRIVILEGED)} exists, and the server refuses to run as root")


@contextmanager
def folder_for(user: pwd.struct_passwd | None) -> Iterator[Path]:
    """A temporary folder that belongs to that user."""
    path = Path(tempfile.mkdtemp(prefix="repid-engine-"))
    try:
        if user is not None:
            os.chown(path, user.pw_uid, user.pw_gid)
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def _ends_with_us() -> None:
    """In the child: end when the test run dies."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGINT)


def as_user(user: pwd.struct_passwd | None) -> dict[str, object]:
    """What runs a process as this user."""
    return {} if user is None else {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}


class Server:
    """One process of a server, which can be stopped, killed and started again on the same port."""

    def __init__(
        self,
        command: Sequence[str],
        folder: Path,
        user: pwd.struct_passwd | None,
        is_up: Callable[[], bool],
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._command = list(command)
        self._folder = folder
        self._user = user
        self._is_up = is_up
        self._environment = environment
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self, patience: float = 30.0) -> None:
        """Start it, and wait until it answers."""
        log = (self._folder / "server.log").open("ab")
        with log:
            self._process = subprocess.Popen(
                self._command,
                cwd=self._folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self._environment,
                preexec_fn=_ends_with_us,  # noqa: PLW1509  it calls one function of the system
                start_new_session=True,  # a Ctrl-C is for the tests
                **as_user(self._user),  # type: ignore[call-overload]
            )
        deadline = time.monotonic() + patience
        while not self._is_up():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{self._command[0]} did not start: {self.log()[-2000:]}")
            time.sleep(0.02)

    def stop(self, how: int = signal.SIGINT, patience: float = 20.0) -> None:
        """Have it end, and wait for that."""
        if self._process is None:
            return
        if self._process.poll() is None:
            self._process.send_signal(how)
            try:
                self._process.wait(patience)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._process = None

    def crash(self) -> None:
        """Kill it and all its children, which may have groups of their own, as those of PostgreSQL have."""
        assert self._process is not None
        children = self._children()
        for pid in (self.pid, *children):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process.wait()
        self._process = None

    def _children(self) -> list[int]:
        """The processes that it has started."""
        listed = Path(f"/proc/{self.pid}/task/{self.pid}/children")
        return [int(pid) for pid in listed.read_text().split()] if listed.exists() else []

    def log(self) -> str:
        return (self._folder / "server.log").read_text(errors="replace")
