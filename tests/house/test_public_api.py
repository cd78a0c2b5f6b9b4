"""What `import repid` promises, and what the distribution says about itself."""

from __future__ import annotations

import importlib.metadata
import inspect
import pickle
import re
import subprocess
import sys
import tomllib
import types
import typing
from pathlib import Path
from typing import Any

import msgspec
import pytest

import repid
import repid.testing

ROOT = Path(__file__).parents[2]
PYPROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT: dict[str, Any] = PYPROJECT["project"]
METADATA = importlib.metadata.metadata(PROJECT["name"])

PUBLIC = sorted({*repid.__all__, *repid._AT_FIRST_USE})
"""What users may import. A star import leaves out what needs an extra."""

ALIASES = {"INJECTED", "CallNext", "Outcomes", "Publish", "RetryPolicy", "RetryPolicyT"}
"""Names for types, and a value: a docstring given to one could not be seen at run time."""


def name_of(requirement: str) -> str:
    match = re.match(r"[\w.-]+", requirement)
    assert match is not None
    return match[0]


def expanded(requirements: list[str]) -> list[str]:
    """Extras of repid itself replaced by what they require, as the build does."""
    extras: dict[str, list[str]] = PROJECT["optional-dependencies"]
    found: set[str] = set()
    for requirement in requirements:
        own = re.fullmatch(r"repid-trio\[(.*)]", requirement)
        if own is None:
            found.add(requirement)
        else:
            found.update(each for extra in own[1].split(",") for each in extras[extra.strip()])
    return sorted(found)


def words(requirements: list[str]) -> list[str]:
    """Requirements in one spelling, whatever wrote them down."""
    return sorted(",".join(sorted(re.sub(r"\s", "", each).split(","))) for each in requirements)


def own_docstring(value: object) -> str | None:
    """A docstring that is not inherited."""
    return vars(value).get("__doc__") if inspect.isclass(value) else value.__doc__ if callable(value) else None


def required(extra: str | None) -> list[str]:
    """What the installed distribution requires, for an extra or for itself."""
    found = []
    for requirement in importlib.metadata.requires(PROJECT["name"]) or []:
        what, _, marker = requirement.partition(";")
        match = re.search(r"extra == ['\"]([\w-]+)['\"]", marker)
        if (match[1] if match else None) == extra:
            found.append(what)
    return found


def test_all_is_sorted_and_names_nothing_twice() -> None:
    assert repid.__all__ == sorted(
        set(repid.__all__), key=lambda name: (not name.isupper(), name)
    )  # as ruff sorts them


def test_all_names_everything_public() -> None:
    public = {
        name
        for name, value in vars(repid).items()
        if not name.startswith("_") and not isinstance(value, types.ModuleType)
    }
    assert set(PUBLIC) - {"__version__"} == public


def test_every_public_name_has_a_docstring_of_its_own() -> None:
    documented = {name for name in PUBLIC if own_docstring(getattr(repid, name))}
    assert set(PUBLIC) - documented - ALIASES == {"__version__"}


@pytest.mark.parametrize("name", [name for name in PUBLIC if inspect.isclass(getattr(repid, name))])
def test_every_public_method_has_a_docstring(name: str) -> None:
    cls = getattr(repid, name)
    undocumented = [
        member
        for member, value in vars(cls).items()
        if not member.startswith("_")
        and (inspect.isfunction(value) or isinstance(value, property | classmethod | staticmethod))
        and not inspect.getdoc(value)
    ]
    assert undocumented == []


NAMED = [name for name in PUBLIC if inspect.isclass(getattr(repid, name)) or inspect.isfunction(getattr(repid, name))]


@pytest.mark.parametrize("name", NAMED)
def test_every_public_class_and_function_says_where_it_is_imported_from(name: str) -> None:
    value = getattr(repid, name)
    assert value.__module__ == "repid"
    assert getattr(repid, value.__name__) is value  # an alias says the name it stands for
    assert pickle.loads(pickle.dumps(value)) is value
    if type(value) is type:
        assert repr(value) == f"<class 'repid.{value.__name__}'>"


@pytest.mark.parametrize("name", repid.testing.__all__)
def test_every_class_and_function_of_the_testing_kit_says_where_it_is_imported_from(name: str) -> None:
    value = getattr(repid.testing, name)
    if inspect.isclass(value) or inspect.isfunction(value):
        assert value.__module__ == "repid.testing" or value is str
        typing.get_type_hints(value)


@pytest.mark.parametrize("name", NAMED)
def test_the_annotations_of_every_public_name_can_be_read(name: str) -> None:
    typing.get_type_hints(getattr(repid, name))


def test_public_values_are_pickled_and_decoded_as_before() -> None:
    envelope = repid.Envelope("1", "mail", b"", headers={"topic": "a"})
    assert pickle.loads(pickle.dumps(envelope)) == envelope
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(envelope), type=repid.Envelope) == envelope

    class Stamped(repid.Envelope, frozen=True, kw_only=True):
        stamp: int = 0

    stamped = Stamped("1", "mail", b"", stamp=3)
    assert msgspec.json.decode(msgspec.json.encode(stamped), type=Stamped) == stamped


def test_importing_repid_loads_nothing_optional_and_nothing_that_only_some_programs_need() -> None:
    script = "import sys, repid; print(' '.join(sorted({name.partition('.')[0] for name in sys.modules})))"
    run = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    optional = {
        *("trio_asyncio", "trio_parallel", "cronsim", "typer", "rich", "click", "watchfiles", "uvloop"),
        *("hiredis", "psycopg"),
    }
    needed_by_some = {
        *("asyncio", "dataclasses", "difflib", "multiprocessing", "pickle", "secrets", "sqlite3", "zoneinfo")
    }
    assert (optional | needed_by_some).isdisjoint(run.stdout.split())


def test_a_worker_on_trio_loads_neither_asyncio_nor_the_blocking_client() -> None:
    script = """if True:
        import sys
        from repid import Connection, InMemoryServer, Repid, Router
        app = Repid(Connection(InMemoryServer()))
        router = Router()
        @router.actor
        def noop() -> None: ...
        app.include_router(router)
        app.run(burst=True)
        print(*{"asyncio", "repid.blocking"}.intersection(sys.modules))
    """
    run = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert run.stdout.split() == []


def test_importing_repid_needs_no_optional_dependency() -> None:
    assert sorted(name_of(requirement) for requirement in PROJECT["dependencies"]) == ["msgspec", "trio"]


def test_the_readme_tells_how_to_install_each_extra() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    told = set(re.findall(r"^pip install '\.\[(\w+)\]'", text, re.MULTILINE))
    assert told == set(PROJECT["optional-dependencies"])


def test_the_extra_all_is_the_union_of_the_others() -> None:
    extras: dict[str, list[str]] = PROJECT["optional-dependencies"]
    others = set(extras) - {"all"}
    named = {
        extra.strip()
        for requirement in extras["all"]
        for extra in re.findall(r"^repid-trio\[([^]]*)]$", requirement)[0].split(",")
    }
    assert named == others


def test_the_installed_distribution_is_the_one_in_pyproject() -> None:
    stale = "installed from an older pyproject.toml: run make install"
    assert METADATA["Version"] == repid.__version__, stale
    assert METADATA["Summary"] == PROJECT["description"], stale
    assert METADATA["License-Expression"] == "MIT", stale
    assert set(METADATA["Requires-Python"].split(",")) == set(PROJECT["requires-python"].split(",")), stale
    assert words(required(None)) == words(PROJECT["dependencies"]), stale
    assert set(METADATA.get_all("Provides-Extra") or ()) == set(PROJECT["optional-dependencies"]), stale
    for extra, requirements in PROJECT["optional-dependencies"].items():
        plain = [each.partition(";")[0] for each in expanded(requirements)]  # the metadata has markers of its own
        assert words(required(extra)) == words(plain), stale


def test_the_package_tells_type_checkers_that_it_is_typed() -> None:
    assert (ROOT / "repid" / "py.typed").is_file()
