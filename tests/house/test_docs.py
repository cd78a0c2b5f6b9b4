"""The drawings and tables of docs/ say what the code does."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import get_args

from state_table import CASES, rows

import repid.testing
from repid.delivery import Event

ROOT = Path(__file__).parents[2]


def page(name: str) -> str:
    return (ROOT / "docs" / name).read_text(encoding="utf-8")


def test_the_table_of_the_state_machine_is_what_the_pure_core_decides() -> None:
    expected = list(rows())
    lines = page("state-machine.md").splitlines()
    start = lines.index(expected[0])
    assert lines[start : start + len(expected)] == expected
    assert set(CASES) == set(get_args(Event))


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


def test_the_page_of_names_has_every_public_name() -> None:
    named = set(re.findall(r"`(\w+)`", page("names.md")))
    assert {*repid.__all__, *repid._AT_FIRST_USE, *repid.testing.__all__} - named == set()


def test_files_that_the_pages_name_exist() -> None:
    for path in (ROOT / "docs").glob("*.md"):
        for name in re.findall(r"`((?:[\w.]+/)+[\w.]+\.(?:py|md))`", path.read_text(encoding="utf-8")):
            assert (ROOT / "repid" / name).exists() or (ROOT / name).exists(), (path.name, name)


def test_the_driver_in_the_guide_is_the_one_that_is_tested() -> None:
    code = (ROOT / "tests" / "modest_driver.py").read_text(encoding="utf-8")
    assert f"```python\n{code}```" in page("writing-a-broker.md")
    assert len(code.splitlines()) <= 300


def test_the_guide_names_every_member_of_a_driver_and_every_capability() -> None:
    from repid.ports import Capabilities, Driver

    text = page("writing-a-broker.md")
    members = re.findall(r"^\| `(\w+)", text.split("## The twelve members")[1].split("\n## ")[0], re.MULTILINE)
    assert members == [name for name in vars(Driver) if not name.startswith("_")]
    fields = re.findall(r"^\| (`.*?`) \|", text.split("## Capabilities")[1].split("\n## ")[0], re.MULTILINE)
    assert sorted(re.findall(r"\w+", " ".join(fields))) == sorted(Capabilities.__struct_fields__)


def test_the_readme_says_how_many_members_a_driver_has() -> None:
    from repid.ports import Driver, FullDriver

    least = {name for name in vars(Driver) if not name.startswith("_")}
    most = {name for part in FullDriver.__mro__ for name in vars(part) if not name.startswith("_")}
    assert f"a driver of {len(least)} to {len(most)} members" in (ROOT / "README.md").read_text(encoding="utf-8")
