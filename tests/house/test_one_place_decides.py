"""Each message has one fate, and one module decides it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import repid

PACKAGE = Path(repid.__file__).parent
MAKERS = {"Ack", "Retry", "Release", "DeadLetter", "Cancel", "Keep"}
MADE = {"ACK", "KEEP"}

THE_TABLE = "delivery/fate.py"
ALLOWED = {
    THE_TABLE: "it is the table",
    "delivery/dispositions.py": "it defines them, and the two that have no fields",
    "delivery/__init__.py": "it hands them on",
    "testing": "a broker's suite plays the worker",
}


def made_in(source: str) -> Iterator[str]:
    """What makes, or hands on, a disposition in this module. Patterns and type checks only look at one."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if name in MAKERS:
                yield f"line {node.lineno} calls {name}"
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                if alias.name in MADE:
                    yield f"line {node.lineno} imports {alias.name}"
                elif alias.name in MAKERS and alias.asname is not None:
                    yield f"line {node.lineno} hides {alias.name} behind {alias.asname}"
        elif isinstance(node, ast.Attribute) and node.attr in MADE:
            yield f"line {node.lineno} uses {node.attr}"


def test_only_the_table_of_fates_makes_dispositions() -> None:
    found = {
        str(module): faults
        for path in sorted(PACKAGE.rglob("*.py"))
        if not any((module := path.relative_to(PACKAGE)).is_relative_to(allowed) for allowed in ALLOWED)
        and (faults := list(made_in(path.read_text(encoding="utf-8"))))
    }
    assert not found, f"let {THE_TABLE} decide"


def test_a_module_that_made_one_would_be_found() -> None:
    assert list(made_in("from .delivery import Ack\nverdict = Ack()")) == ["line 2 calls Ack"]
    assert list(made_in("import repid.delivery as d\nd.Release(1.0)")) == ["line 2 calls Release"]
    assert list(made_in("from .delivery import ACK")) == ["line 1 imports ACK"]
    assert list(made_in("from .delivery import Ack as Done")) == ["line 1 hides Ack behind Done"]
    assert not list(made_in("match verdict:\n    case Ack(failure=None):\n        pass"))
