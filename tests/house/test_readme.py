"""What the README and its neighbours say is true: their code runs, their targets and files exist."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from repid import PostgresServer, RedisServer, Server, SQLiteServer

ROOT = Path(__file__).parents[2]
DOCUMENTS = (
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    *sorted(f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md")),
)
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"]\(([^)\s]+)\)")


def read(document: str) -> str:
    return (ROOT / document).read_text(encoding="utf-8")


def blocks(*languages: str) -> Iterator[tuple[str, str]]:
    """Every block of these languages, as (where it is, its code)."""
    for document in DOCUMENTS:
        text = read(document)
        for match in BLOCK.finditer(text):
            if match[1] in languages:
                line = text.count("\n", 0, match.start()) + 1
                yield f"{document}:{line}", match[2]


def python_blocks() -> list[object]:
    """Each block with the sentence `prints ...` that may follow its last line as a comment."""
    return [pytest.param(code, id=where) for where, code in blocks("python")]


def headings(document: str) -> set[str]:
    """The anchors of a document's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", BLOCK.sub("", read(document)), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("code", python_blocks())
def test_a_block_of_python_runs_and_prints_what_its_comments_say(code: str) -> None:
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        timeout=60,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == re.findall(r"# prints: (.*)$", code, re.MULTILINE)


def test_the_readme_opens_with_an_example_of_at_most_15_lines() -> None:
    first = next(code for where, code in blocks("python") if where.startswith("README"))
    assert len([line for line in first.splitlines() if line.strip()]) <= 15


def test_every_make_target_that_is_named_exists() -> None:
    targets = set(re.findall(r"^([a-z][\w-]*):", read("Makefile"), re.MULTILINE))
    named = {
        target
        for document in DOCUMENTS
        for line in re.findall(r"(?:^|`)make((?: [a-z][\w-]*)+)", read(document), re.MULTILINE)
        for target in line.split()
    }
    assert {"demo", "test"} <= named <= targets


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_link_to_a_file_or_heading_leads_somewhere(document: str) -> None:
    for link in LINK.findall(BLOCK.sub("", read(document))):
        if re.match(r"[a-z]+:", link):
            continue
        target, _, anchor = link.partition("#")
        folder = (ROOT / document).parent
        assert (folder / target).exists(), link
        if anchor:
            page = (folder / target).resolve() if target else ROOT / document
            assert anchor in headings(str(page.relative_to(ROOT))), link


def rows_of(document: str, heading: str) -> list[str]:
    """The first words of the rows of the table under a heading."""
    section = read(document).split(f"## {heading}")[1].split("\n## ")[0]
    return re.findall(r"^\| `(\w+)`", section, re.MULTILINE)


def test_the_page_on_actors_lists_every_option() -> None:
    from repid.actors import BatchOptions

    listed = rows_of("docs/actors.md", "Actor options")
    assert sorted(listed) == sorted([*BatchOptions.__annotations__, "batch"])


@pytest.mark.parametrize(
    ("document", "server"),
    [("docs/sqlite.md", SQLiteServer), ("docs/redis.md", RedisServer), ("docs/postgres.md", PostgresServer)],
)
def test_the_page_on_a_server_lists_every_option(document: str, server: type[Server]) -> None:
    listed = re.findall(r"^\| `(\w+)`", read(document).split("## What it promises")[0], re.MULTILINE)
    assert sorted(listed) == sorted(inspect.signature(server).parameters.keys() - {"clock"})  # that is for tests


def test_the_page_on_messages_lists_every_confirmation_mode() -> None:
    from repid.delivery import MODES

    assert rows_of("docs/messages.md", "Confirmation modes") == list(MODES)


def test_the_index_names_every_page() -> None:
    named = set(re.findall(r"\(([\w-]+\.md)\)", read("docs/index.md")))
    assert named == {page.name for page in (ROOT / "docs").glob("*.md")} - {"index.md"}


def test_the_readme_names_every_example() -> None:
    named = set(re.findall(r"examples/(\w+\.py)", read("README.md")))
    assert named == {path.name for path in (ROOT / "examples").glob("*.py")}
