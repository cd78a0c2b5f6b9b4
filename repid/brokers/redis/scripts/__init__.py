"""The Lua scripts: one for each call of the port, each made of the parts that it needs."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

import msgspec

_HERE = Path(__file__).parent

_RECORDS = ("start", "wake", "fields", "records")
_PUBLISHING = ("start", "wake", "fields", "bounds", "publish")

_PARTS: dict[str, tuple[str, ...]] = {
    "ack": ("start", "goes_on"),
    "beat": ("start", "goes_on", "wake", "consumers"),
    "bounds": ("start", "wake"),
    "browse": (*_RECORDS, "goes_on", "show"),
    "bury": (*_RECORDS, "goes_on"),
    "cancel": (*_RECORDS, "goes_on"),
    "claim": (*_RECORDS, "goes_on", "given"),
    "counts": (*_RECORDS, "goes_on"),
    "dead_keys": ("start",),
    "declare": ("start", "goes_on"),
    "delete": ("start", "fields"),
    "delete_dead": ("start", "dead"),
    "due_schedules": ("start",),
    "extend": ("start", "goes_on"),
    "fetch_results": ("start",),
    "find": (*_RECORDS, "goes_on", "show"),
    "flush": (*_RECORDS, "goes_on"),
    "pause": ("start", "wake"),
    "publish": _PUBLISHING,
    "readers": ("start",),
    "remove_old": ("start", "goes_on", "dead"),
    "remove_schedule": ("start",),
    "replace_schedule": ("start",),
    "report": (*_RECORDS, "goes_on"),
    "requests": ("start",),
    "rescue": (*_RECORDS, "goes_on"),
    "revive": (*_RECORDS, "dead"),
    "set_bounds": ("start", "goes_on"),
    "settle": (*_RECORDS, "goes_on", "bounds", "publish"),
    "snapshots": (*_RECORDS, "goes_on", "dead"),
    "store_dead": _RECORDS,
    "store_results": ("start",),
    "subscribe": ("start", "goes_on"),
    "tick": _PUBLISHING,
    "unsubscribe": (*_RECORDS, "goes_on", "given", "consumers"),
    "withdraw": (*_RECORDS, "goes_on", "given"),
}


class Script(msgspec.Struct, frozen=True):
    """A script's text, and the name under which the server keeps it."""

    text: bytes
    sha: bytes


@cache
def script(name: str) -> Script:
    """The script of this name."""
    files = [*(f"part_{part}.lua" for part in _PARTS[name]), f"{name}.lua"]
    text = "\n".join((_HERE / file).read_text(encoding="utf-8") for file in files)
    return to_script(text)


def to_script(text: str) -> Script:
    """A script of this text."""
    encoded = text.encode()
    return Script(encoded, hashlib.sha1(encoded).hexdigest().encode())  # noqa: S324  as Redis names scripts
