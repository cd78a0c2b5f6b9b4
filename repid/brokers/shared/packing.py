"""What SQL engines keep packed (MessagePack) beside the content of a message. Unreadable data raises no error."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec

from ...delivery import Bounds, Failure, Progress

T = TypeVar("T")

pack: Callable[[Any], bytes] = msgspec.msgpack.Encoder().encode


class Trail(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """What is known of a suspect: since when it is one, and who leased it last, when. Times are the engine's."""

    since: int
    worker: str = "a worker"
    leased_at: int = 0


def _unpacking(kind: type[T]) -> Callable[[bytes | None], T | None]:
    unpack = msgspec.msgpack.Decoder(kind).decode

    def to_kind(packed: bytes | None) -> T | None:
        if packed is None:
            return None
        try:
            return unpack(packed)
        except (TypeError, ValueError, msgspec.MsgspecError):
            return None

    return to_kind


to_trail = _unpacking(Trail)
"""The trail that `pack` made bytes of. Returns None where it cannot be read."""

to_bounds = _unpacking(Bounds)
"""The bounds that `pack` made bytes of. Returns None where they cannot be read."""

_unpack_failure = msgspec.msgpack.Decoder(Failure).decode
_to_progress = _unpacking(Progress)


def to_failure(packed: bytes | None) -> Failure | None:
    """The failure that `pack` made bytes of. Where it cannot be read, returns a failure that says so."""
    if packed is None:
        return None
    try:
        return _unpack_failure(packed)
    except (TypeError, ValueError, RecursionError, msgspec.MsgspecError) as error:
        return Failure("UnreadableRow", f"the stored failure cannot be read: {error}")


def to_progress(packed: bytes | None) -> Progress | None:
    """The progress that `pack` made bytes of. Returns None where it cannot be read, or where a number in it is not
    finite: a task that waits for such a progress to change would wait for ever.
    """
    progress = _to_progress(packed)
    if progress is None:
        return None
    numbers = (progress.done, 0.0 if progress.total is None else progress.total)
    return progress if all(map(math.isfinite, numbers)) else None
