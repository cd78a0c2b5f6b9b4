"""The drawings and tables of docs/ say what the code does."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from state_table import rows

ROOT = Path(__file__).parents[2]


def page(name: str) -> str:
    return (ROOT / "docs" / name).read_text(encoding="utf-8")


def test_the_table_of_the_state_machine_is_what_the_pure_core_decides() -> None:
    expected = list(rows())
    lines = page("state-machine.md").splitlines()
    start = lines.index(expected[0])
    assert lines[start : start + len(expected)] == expected


def test_the_drawing_of_the_layers_is_the_contract_that_is_checked() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"][
        "contracts"
    ]
    layers = next(contract["layers"] for contract in contracts if contract["name"] == "layers")
    drawn = re.findall(r'L(\d+)\["([^"]+)"\]', page("architecture.md"))
    assert [names for _, names in drawn] == [re.sub(r"[()]", "", layer).replace(" | ", ", ") for layer in layers]
    assert " --> ".join(f"L{number}" for number, _ in drawn) in page("architecture.md")


def test_the_glossary_has_each_word_once_and_in_order() -> None:
    words = re.findall(r"^\| ([a-z]\S*(?: \S+)*) \|", page("glossary.md").split("|---|---|")[1], re.MULTILINE)
    assert words == sorted(set(words))


def test_files_that_the_pages_name_exist() -> None:
    for path in (ROOT / "docs").glob("*.md"):
        for name in re.findall(r"`((?:[\w.]+/)+[\w.]+\.(?:py|md))`", path.read_text(encoding="utf-8")):
            assert (ROOT / "repid" / name).exists() or (ROOT / name).exists(), (path.name, name)
