"""From a history that failed to the smallest one that still does: the fewest faults, then the fewest messages. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T")


def shrink(things: Sequence[T], still_fails: Callable[[tuple[T, ...]], bool], most: int) -> tuple[T, ...]:
    """A part of `things` that still fails, and from which no single thing can be left out.

    Whole pieces are left out first, then smaller ones. `most`: tries; when they are used up the best so far is given.
    """
    kept = tuple(things)
    size = max(1, len(kept) // 2)
    while kept and most > 0:
        start, is_smaller = 0, False
        while start < len(kept) and most > 0:
            without = kept[:start] + kept[start + size :]
            most -= 1
            if still_fails(without):
                kept, is_smaller = without, True
            else:
                start += size
        if size == 1 and not is_smaller:
            break
        size = max(1, size // 2)
    return kept
