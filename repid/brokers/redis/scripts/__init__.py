"""The Lua scripts: one for each call of the port, each made of the pieces that it needs.

Theory. The server runs a script from its first line at each call, so every function that a script defines is created at
each call. That takes a fifth of a microsecond, and a script that defined all that it could need spent more than half of
its time on that. Hence the files `part_*.lua` are cut into pieces, wherever a line that is not indented follows an
empty one, and a script is given only the pieces whose names it uses, and those that these use. Where a script seldom
comes, the line

    -- needs: name, name

is replaced by these pieces, so that their functions are created only there. The variables of such pieces are defined at
the beginning nevertheless: all functions of a script must see the same ones. What a script does before the line
`-- pieces` comes before all pieces, and has only those that it says it needs. A script is given only the keys that it
names, because each key takes time, too.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import msgspec

_HERE = Path(__file__).parent

_PARTS = ("start", "wake", "fields", "records", "dead", "bounds", "publish", "given", "consumers", "show")
"""In this order: a piece uses only what is defined before it."""

_CUT = re.compile(r"\n\n(?=\S)")
_DEFINITION = re.compile(r"^local (function )?(\w+(?:, \w+)*)", re.MULTILINE)
_NEEDS = re.compile(r"^( *)-- needs: (.*)\n", re.MULTILINE)
_SILENT = re.compile(r"--.*|'[^'\n]*'")
_WORD = re.compile(r"(?<![.\w])[A-Za-z_]\w*")
_PIECES = "-- pieces\n"
_LINE = re.compile(r"^(?=.)", re.MULTILINE)
_KEYS = re.compile(r"^local (.*) = unpack\(KEYS\)\n", re.MULTILINE)


class Script(msgspec.Struct, frozen=True):
    """A script's text, the name under which the server keeps it, and which of `layout.NAMES` are its keys."""

    text: bytes
    sha: bytes
    keys: tuple[int, ...]


class Piece(msgspec.Struct, frozen=True):
    """`at`: its place among all. `names`: what it defines. `uses`: the words in it. `needs`: what it seldom needs."""

    at: int
    text: str
    names: frozenset[str]
    uses: frozenset[str]
    needs: frozenset[str]
    is_function: bool


@cache
def script(name: str) -> Script:
    """The script of this name."""
    begin, own = pieces()[0].text, (_HERE / f"{name}.lua").read_text(encoding="utf-8")
    uses = _words(own)
    reached = _closure(uses | _seldom(own), is_seldom=True)
    variables = frozenset(name for one in reached if not one.is_function for name in one.names)
    chosen = _closure(uses | variables)
    early, _, late = own.rpartition(_PIECES)
    early = _filled(early.rstrip(), frozenset())
    texts = [early, *(_filled(text, chosen) for text in (*(one.text for one in _in_order(chosen)), late))]
    body = "\n\n".join(filter(None, texts))
    all_keys, used = _KEYS.findall(begin)[0].split(", "), _words(body)
    keys = tuple(place for place, key in enumerate(all_keys) if key in used)
    named = f"local {', '.join(all_keys[place] for place in keys)} = unpack(KEYS)\n"
    return to_script(_KEYS.sub(named, begin) + "\n\n" + body, keys)


def to_script(text: str, keys: tuple[int, ...]) -> Script:
    """A script of this text with these keys."""
    encoded = text.encode()
    return Script(encoded, hashlib.sha1(encoded).hexdigest().encode(), keys)  # noqa: S324  as Redis names scripts


@cache
def pieces() -> list[Piece]:
    """All pieces. Every script begins with the first one."""
    texts = [text for part in _PARTS for text in _CUT.split((_HERE / f"part_{part}.lua").read_text(encoding="utf-8"))]
    return [_to_piece(at, text.rstrip()) for at, text in enumerate(texts)]


def _to_piece(at: int, text: str) -> Piece:
    found = _DEFINITION.findall(text)
    names = frozenset(name for _, some in found for name in some.split(", "))
    return Piece(at, text, names, _words(text) - names, _seldom(text), all(function for function, _ in found))


def _words(text: str) -> frozenset[str]:
    return frozenset(_WORD.findall(_SILENT.sub("", text))) - _seldom(text)


def _seldom(text: str) -> frozenset[str]:
    return frozenset(name for _, some in _NEEDS.findall(text) for name in some.split(", "))


def _closure(words: frozenset[str], *, is_seldom: bool = False) -> frozenset[Piece]:
    """The pieces that define these words, and those that these pieces use, or need seldom."""
    found: set[Piece] = set()
    while new := {one for one in pieces()[1:] if one.names & words} - found:
        found |= new
        words = frozenset(word for one in new for word in (one.uses | one.needs if is_seldom else one.uses))
    return frozenset(found)


def _in_order(some: Iterable[Piece]) -> list[Piece]:
    return sorted(some, key=lambda one: one.at)


def _filled(text: str, known: frozenset[Piece]) -> str:
    """The text, with what it seldom needs where it needs it, except what is known there already."""

    def fill(found: re.Match[str]) -> str:
        new = _closure(frozenset(found[2].split(", "))) - known
        return "".join(_LINE.sub(found[1], f"{_filled(one.text, known | new)}\n") for one in _in_order(new))

    return _NEEDS.sub(fill, text)
