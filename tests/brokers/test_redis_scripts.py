"""How the scripts for Redis are put together of pieces; what they do is tested elsewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from repid.brokers.redis import layout, scripts

FOLDER = Path(scripts.__file__).parent
NAMES = sorted(file.stem for file in FOLDER.glob("*.lua") if not file.stem.startswith("part_"))
SILENT = re.compile(r"--.*|'[^'\n]*'")
WORD = re.compile(r"(?<![.\w])[A-Za-z_]\w*")
DEFINED = re.compile(r"^( *)local (?:function )?(\w+(?:, \w+)*)")


def out_of_scope(text: str) -> set[str]:
    """Names of pieces that are used where they are not defined. What is indented less ends a scope."""
    names = {name for piece in scripts.pieces() for name in piece.names}
    scopes: dict[str, int] = {}
    wrong = set()
    for line in filter(str.strip, SILENT.sub("", text).splitlines()):
        indent = len(line) - len(line.lstrip())
        scopes = {name: depth for name, depth in scopes.items() if depth <= indent}
        if defined := DEFINED.match(line):
            scopes |= {name: min(indent, scopes.get(name, indent)) for name in defined[2].split(", ")}
        wrong |= names.intersection(WORD.findall(line)) - set(scopes)
    return wrong


@pytest.mark.parametrize("name", NAMES)
def test_a_script_uses_functions_only_where_they_are_defined(name: str) -> None:
    assert out_of_scope(scripts.script(name).text.decode()) == set()


def test_a_function_that_is_defined_in_a_branch_is_not_seen_behind_it() -> None:
    assert out_of_scope("if found then\n  local function parse(record)\n  end\n  parse(1)\nend\nparse(2)") == {"parse"}


@pytest.mark.parametrize("name", NAMES)
def test_a_script_is_given_the_keys_that_it_uses_and_no_others(name: str) -> None:
    script = scripts.script(name)
    header, body = script.text.decode().split(" = unpack(KEYS)\n")
    short = header.rpartition("local ")[2].split(", ")
    assert [word for word in short if word not in WORD.findall(SILENT.sub("", body))] == []
    assert len(short) == len(script.keys) == len(set(script.keys))
    assert "KEYS[" not in body
    assert "(KEYS" not in body


def test_every_key_has_a_short_name() -> None:
    [short] = re.findall(r"local (.*) = unpack\(KEYS\)\n", scripts.pieces()[0].text)
    assert len(short.split(", ")) == len(layout.NAMES)


def test_no_piece_is_left_over() -> None:
    defined = {
        name
        for script in map(scripts.script, NAMES)
        for names in re.findall(r"^ *local (?:function )?(\w+(?:, \w+)*)", script.text.decode(), re.MULTILINE)
        for name in names.split(", ")
    }
    assert [name for piece in scripts.pieces()[1:] for name in sorted(piece.names) if name not in defined] == []


def test_what_a_script_seldom_needs_is_not_created_at_its_beginning() -> None:
    lines = scripts.script("publish").text.decode().splitlines()
    assert "local function wake()" in lines
    assert "local function hand_over(entry, terms)" not in lines
    assert "    local function hand_over(entry, terms)" in lines
