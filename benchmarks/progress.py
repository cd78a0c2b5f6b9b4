"""What the one who waits gets to see, on stderr: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import shutil
import sys
import time
from typing import Self

WIDTH = 24
CLEAR = "\r\x1b[2K"


class Progress:
    """A bar of `steps`. Use it as a block; it leaves the line clean."""

    def __init__(self, steps: int) -> None:
        self._steps = max(steps, 1)
        self._done = 0
        self._label = ""
        self._start = time.monotonic()
        self._is_terminal = sys.stderr.isatty()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._is_terminal:
            self._write(CLEAR)

    def begin(self, label: str) -> None:
        """Say what is being measured now."""
        self._label = label
        if self._is_terminal:
            self.tick()
        else:
            self._write(f"[{self._done + 1}/{self._steps}] {self._elapsed()} {label}\n")

    def finish(self) -> None:
        """One step more is done."""
        self._done += 1

    def tick(self) -> None:
        """Draw the bar again, so that the clock in it goes on."""
        if self._is_terminal:
            filled = WIDTH * self._done // self._steps
            bar = "█" * filled + "░" * (WIDTH - filled)
            line = f"{bar} {self._done}/{self._steps}  {self._elapsed()}  {self._label}"
            self._write(CLEAR + line[: shutil.get_terminal_size().columns - 1])

    def note(self, text: str) -> None:
        """Print a line that stays."""
        self._write(f"{CLEAR if self._is_terminal else ''}{text}\n")

    def _elapsed(self) -> str:
        minutes, seconds = divmod(int(time.monotonic() - self._start), 60)
        return f"{minutes:02}:{seconds:02}"

    @staticmethod
    def _write(text: str) -> None:
        sys.stderr.write(text)
        sys.stderr.flush()
