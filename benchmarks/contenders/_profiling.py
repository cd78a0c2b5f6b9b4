"""Where the time of a block goes: sampled (shares that can be trusted) and under cProfile (how often what is called).

A sample is taken whenever a timer's signal is handled, so a share counts the C code a function calls as its own.
cProfile makes every call dearer, cheap ones most; of it only the numbers of calls are used.
"""

from __future__ import annotations

import cProfile
import signal
import sys
from collections import Counter
from types import CodeType, FrameType
from typing import Any, Self

TOP = 30
"""Functions that are listed."""

Place = tuple[str, str, int]
"""Module, qualified name, line of the definition."""


def _place(code: CodeType, module: str) -> Place:
    return module, code.co_qualname, code.co_firstlineno


class Sampler:
    """Samples the main thread's stack every `interval` seconds while its block runs."""

    def __init__(self, interval: float) -> None:
        self._interval = interval
        self._own: Counter[Place] = Counter()
        self._total: Counter[Place] = Counter()
        self._lines: Counter[tuple[Place, int]] = Counter()
        self._stacks: Counter[tuple[Place, ...]] = Counter()

    def __enter__(self) -> Self:
        self._former = signal.signal(signal.SIGALRM, self._take)
        signal.setitimer(signal.ITIMER_REAL, self._interval, self._interval)
        return self

    def __exit__(self, *_: object) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, self._former)

    def _take(self, _: int, frame: FrameType | None) -> None:
        stack: list[Place] = []
        while frame is not None:
            place = _place(frame.f_code, frame.f_globals.get("__name__", "?"))
            if not stack:
                self._own[place] += 1
                self._lines[place, frame.f_lineno or place[2]] += 1
            stack.append(place)
            frame = frame.f_back
        self._total.update(set(stack))
        self._stacks[tuple(reversed(stack))] += 1

    def figures(self) -> dict[str, Any]:
        """Shares of the samples: by module (own), and by function (own, with what it calls, its hottest line).

        And each stack, outermost first, with how often it was seen.
        """
        taken = sum(self._own.values()) or 1
        modules: Counter[str] = Counter()
        for (module, _, _), count in self._own.items():
            modules[module] += count
        return {
            "samples": taken,
            "modules": [[module, count / taken] for module, count in modules.most_common(TOP)],
            "functions": [
                [place[0], place[1], count / taken, self._total[place] / taken, self._hottest_line(place)]
                for place, count in self._own.most_common(TOP)
            ],
            "stacks": [
                [[f"{module}:{name}" for module, name, _ in stack], count] for stack, count in self._stacks.items()
            ],
        }

    def _hottest_line(self, place: Place) -> int:
        return max((count, line) for (where, line), count in self._lines.items() if where == place)[1]


class CallCounter:
    """Counts the calls made by this thread while its block runs."""

    def __init__(self) -> None:
        self._profile = cProfile.Profile()

    def __enter__(self) -> Self:
        self._profile.enable()
        return self

    def __exit__(self, *_: object) -> None:
        self._profile.disable()

    def figures(self, messages: int) -> list[list[Any]]:
        """The functions called most: module, name, calls per message."""
        modules = {getattr(module, "__file__", None): name for name, module in list(sys.modules.items())}
        calls = [
            [*self._label(entry.code, modules), entry.callcount / messages]
            for entry in sorted(self._profile.getstats(), key=lambda entry: -entry.callcount)
        ]
        return calls[:TOP]

    @staticmethod
    def _label(code: CodeType | str, modules: dict[str | None, str]) -> tuple[str, str]:
        if isinstance(code, str):
            return "built-in", code.strip("<>")
        return modules.get(code.co_filename, "?"), code.co_qualname
