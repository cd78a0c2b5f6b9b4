"""A package opens with a map of its modules, and the map is complete."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import repid

PACKAGE = Path(repid.__file__).parent

WITHOUT_A_MAP = {
    "contrib": "a folder for packages",
    "contrib/django": "Django says which modules a package for it has",
    "contrib/django/management": "the same",
    "contrib/django/management/commands": "the same",
    "testing/checks": "each module is listed by its import",
}

NEED_NO_MAP = {"__init__", "__main__", "_version"}


def modules_of(package: Path) -> set[str]:
    """The modules and packages in this one."""
    modules = {path.stem for path in package.glob("*.py")}
    packages = {path.parent.name for path in package.glob("*/__init__.py")}
    return (modules | packages) - NEED_NO_MAP


def named_in(package: Path) -> set[str]:
    """Each word that stands in backquotes in the docstring of a package."""
    text = (package / "__init__.py").read_text(encoding="utf-8").split('"""')[1]
    return {word for quoted in re.findall(r"`([^`]+)`", text) for word in re.findall(r"\w+", quoted)}


@pytest.mark.parametrize(
    "package",
    [
        path.parent
        for path in sorted(PACKAGE.rglob("__init__.py"))
        if path.parent.relative_to(PACKAGE).as_posix() not in WITHOUT_A_MAP
    ],
    ids=lambda package: package.name,
)
def test_the_map_of_a_package_names_each_of_its_modules(package: Path) -> None:
    assert not modules_of(package) - named_in(package)
