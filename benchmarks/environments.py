"""The peers' virtual environments: made once under `.venvs/`, with pinned versions, and used again."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from .workloads import Contender

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENTS = ROOT / ".venvs"
INSTALL_TIMEOUT = 600.0


class NotInstalled(Exception):  # noqa: N818 - it says what happened
    """A contender's environment could not be made; the text is the installer's last word."""


def interpreter(contender: Contender, *, on_wait: Callable[[str], None]) -> Path:
    """The Python that runs `contender`, installing what it needs first. Raises `NotInstalled`.

    What is there with the same pins is used again; anything else is made anew.
    """
    if contender.requirements is None:
        return Path(sys.executable)
    home = ENVIRONMENTS / contender.name
    python = home / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    pins = "\n".join(contender.requirements) + "\n"
    installed = home / "installed.txt"
    if python.exists() and installed.exists() and installed.read_text() == pins:
        return python
    on_wait(f"installing {', '.join(contender.requirements)}")
    _run([sys.executable, "-m", "venv", "--clear", str(home)])
    _run([str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *contender.requirements])
    installed.write_text(pins)
    return python


def _run(command: list[str]) -> None:
    try:
        ended = subprocess.run(
            command, check=False, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=INSTALL_TIMEOUT
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NotInstalled(str(error)) from error
    if ended.returncode:
        lines = (ended.stderr or ended.stdout).strip().splitlines()
        raise NotInstalled(lines[-1] if lines else f"exit code {ended.returncode}")
