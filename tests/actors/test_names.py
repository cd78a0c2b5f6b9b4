"""Names are letters and digits of any script; ids are any one line of text. What is refused is shown escaped."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from repid import ConfigurationError, Connection, InMemoryServer, Job, Queue, Repid, Router, SQLiteServer
from repid.names import check_id, check_name

SCRIPTS = [
    "größe", "очередь", "Ελληνικά", "ქართული", "հայերեն", "עברית", "مهمة", "فارسی", "नमस्ते", "ক্রম", "தமிழ்", "తెలుగు",
    "සිංහල", "ขั้นตอน", "ລາວ", "မြန်မာ", "ខ្មែរ", "བོད", "አማርኛ", "ᏣᎳᎩ", "ᓄᓇᕗᑦ", "монгол", "ᠮᠣᠩᠭᠣᠯ", "队列", "佇列", "キュー", "한국어",
    "𐌰𐌱", "q٣", "कतार३", "a²", "é", "e\u0301", "tiếng_Việt", "a.b:c/d-e_1",
]  # fmt: skip


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_word_of_any_script_is_a_name(name: str) -> None:
    assert check_name("queue", name) == Queue(name).name == name


@given(st.text(st.characters(categories=["L", "N", "M"]), max_size=254))
def test_letters_digits_and_their_marks_are_names(rest: str) -> None:
    assert check_name("queue", f"_{rest}") == f"_{rest}"


def is_name(name: str) -> bool:
    marks = all(character in "_.:/-" or unicodedata.category(character)[0] in "LNM" for character in name)
    return marks and (name[:1] == "_" or name[:1].isalpha())


@given(st.text(max_size=20).filter(lambda name: not is_name(name)))
def test_what_is_refused_is_named_in_printable_text(name: str) -> None:
    with pytest.raises(ConfigurationError, match="is not a valid queue name") as raised:
        check_name("queue", name)
    assert str(raised.value).isprintable()


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("a b", "' ' (SPACE)"),
        ("a\n", r"'\n' (without a name)"),
        ("a\x1b[2J", r"'\x1b' (without a name)"),
        ("a\u2028", r"'\u2028' (LINE SEPARATOR)"),
        ("a\u202eb", r"'\u202e' (RIGHT-TO-LEFT OVERRIDE)"),
        ("a\udce9", r"'\udce9' (without a name)"),
        ("mails!", "'!' (EXCLAMATION MARK)"),
    ],
)
def test_the_character_that_is_not_allowed_is_told(name: str, told: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        check_name("channel", name)
    assert str(raised.value).endswith(f"; {told} is none of them")


@pytest.mark.parametrize("name", ["", "2x", "-x", "\u0301a", "x" * 256])
def test_a_name_begins_with_a_letter_and_is_neither_empty_nor_too_long(name: str) -> None:
    with pytest.raises(ConfigurationError, match="is not a valid channel name"):
        check_name("channel", name)
    assert check_name("channel", "x" * 255)


@pytest.mark.parametrize("id_", [*SCRIPTS, "order 5", "ada@example.org#3", "👩\u200d🔬", "x" * 255])
def test_an_id_is_any_line_of_text(id_: str) -> None:
    assert check_id(id_) == Job("x", id_=id_, result_id=id_).id_ == id_


@pytest.mark.parametrize("id_", ["a\x00", "a\n", "a\x7f", "a\x1b[2J", "a\x85", "a\u2028b", "a\u2029", "\udce9"])
def test_control_characters_and_separators_are_no_part_of_an_id(id_: str) -> None:
    with pytest.raises(ConfigurationError, match="without control characters") as raised:
        Job("x", id_=id_)
    assert str(raised.value).isprintable()
    with pytest.raises(ConfigurationError, match="result_id must be one line of text"):
        Job("x", result_id=id_)


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
async def test_a_job_goes_all_the_way_under_names_of_any_script(kind: str, tmp_path: Path) -> None:
    app = Repid(Connection(InMemoryServer() if kind == "memory" else SQLiteServer(tmp_path / "jobs.db")))
    router = Router(store_result=True)

    async def actor() -> str:
        return "done"

    for name in SCRIPTS:
        router.actor(name=name, channel=name)(actor)
    app.include_router(router)
    async with app.magic():
        handles = [await Job(name, queue=name, id_=f"{name} {name}").enqueue() for name in SCRIPTS]
        assert (await app.run_worker(burst=True)).succeeded == len(SCRIPTS)
        assert {(await handle.wait()).value for handle in handles} == {"done"}
        assert app.queues() == sorted(SCRIPTS)
