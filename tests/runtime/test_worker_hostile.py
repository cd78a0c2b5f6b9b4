"""Errors and values that do harm, raised and returned beside innocent neighbours: each is the failure of its job alone."""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
from aids_hostile import ERRORS, PLACES, VALUES, chain, share_of

from repid import Connection, InMemoryServer, Job, Queue, Repid, Router, SQLiteServer
from repid.logs import Log
from repid.tracebacks import LONGEST_TEXT, LONGEST_TRACEBACK, cut, explain, family, leaves, name_of, text_of


def make_app(server: Any) -> tuple[Repid, list[int], set[tuple[str, str]]]:
    router = Router(queue="q", store_result=True)
    done: list[int] = []
    begun: set[tuple[str, str]] = set()

    @router.actor
    async def raises(name: str) -> None:
        begun.add(("async", name))
        error = ERRORS[name]()
        raise error

    @router.actor
    def raises_in_a_thread(name: str) -> None:
        begun.add(("thread", name))
        error = ERRORS[name]()
        raise error

    @router.actor
    async def returns(name: str) -> Any:
        return VALUES[name]()

    @router.actor
    async def innocent(number: int) -> None:
        done.append(number)

    app = Repid(Connection(server))
    app.include_router(router)
    return app, done, begun


@pytest.mark.real_time
@pytest.mark.parametrize("place", range(len(PLACES)), ids=["-".join(place) for place in PLACES])
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_hostile_actors_fail_alone_and_their_neighbours_are_acknowledged(place: int, tmp_path: Path) -> None:
    """Each of them in one of the places; `make hostile` tries all of them in all."""
    run, broker = PLACES[place]
    errors, values = share_of(place, ERRORS), share_of(place, VALUES)
    app, done, begun = make_app(InMemoryServer() if broker == "memory" else SQLiteServer(tmp_path / "file"))
    hostile = [(actor, name) for name in errors for actor in ("raises", "raises_in_a_thread")]
    hostile += [("returns", name) for name in values]

    async def main() -> None:
        async with app.magic():
            for number, (actor, name) in enumerate(hostile):
                await Job(actor, queue="q", args={"name": name}).enqueue()
                await Job("innocent", queue="q", args={"number": number}).enqueue()
            report = await app.run_worker(burst=True)
            assert sorted(done) == list(range(len(hostile)))
            assert (report.succeeded, report.failed, report.dead) == (len(hostile), len(hostile), len(hostile))
            counts = await Queue("q").counts()
            assert (counts.ready, counts.leased, counts.dead) == (0, 0, len(hostile))
            async for message in _dead(len(hostile)):
                assert message.reason == "failed"
                assert message.failure is not None
                assert message.failure.type
                assert len(message.failure.text) <= LONGEST_TEXT + 100
                assert len(message.failure.traceback) <= LONGEST_TRACEBACK

    trio.run(main) if run == "trio" else asyncio.run(main())
    assert len(begun) == 2 * len(errors)


async def _dead(limit: int) -> Any:
    for message in await Queue("q").get_messages("dead", limit=limit):
        yield message


class Row(msgspec.Struct):
    number: int
    name: str = ""

    def __post_init__(self) -> None:
        if self.name:
            error = ERRORS[self.name]()
            raise error


BATCH_PLACES = ["raises", "returns an error", "returns a value", "returns", "reads"]


@pytest.mark.real_time
@pytest.mark.parametrize("place", range(len(BATCH_PLACES)), ids=BATCH_PLACES)
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
async def test_a_batch_that_does_harm_fails_alone_and_its_neighbours_are_acknowledged(place: int) -> None:
    names = share_of(place % 4, VALUES if BATCH_PLACES[place] in {"returns", "returns a value"} else ERRORS)
    router = Router(queue="q", store_result=True)
    written: list[int] = []

    @router.actor(batch=3)
    async def raises(batch: list[str]) -> None:
        error = ERRORS[batch[0]]()
        raise error

    @router.actor(batch=3)
    async def returns_an_error(batch: list[str]) -> list[Any]:
        return [None if each == "innocent" else ERRORS[each]() for each in batch]

    @router.actor(batch=3)
    async def returns_a_value(batch: list[str]) -> list[Any]:
        return [None if each == "innocent" else VALUES[each]() for each in batch]

    @router.actor(batch=3)
    async def returns(batch: list[str]) -> Any:
        return VALUES[batch[0]]()

    @router.actor(batch=3)
    async def reads(batch: list[Row]) -> None:
        written.extend(row.number for row in batch)

    app = Repid(Connection(InMemoryServer()))
    app.include_router(router)
    topic = BATCH_PLACES[place].replace(" ", "_")
    is_alone = topic in {"returns_an_error", "returns_a_value", "reads"}
    async with app.magic():
        for name in names:
            payloads: list[Any] = ["innocent", name, "innocent"] if is_alone else [name] * 3
            if topic == "reads":
                payloads = [{"number": 0}, {"number": 1, "name": name}, {"number": 2}]
            await app.send_messages_json(channel="q", headers={"topic": topic}, payloads=payloads)
            report = await app.run_worker(burst=True)
            assert (report.succeeded, report.dead, report.unsettled) == ((2, 1, 0) if is_alone else (0, 3, 0))
        counts = await Queue("q").counts()
    assert (counts.ready, counts.leased, counts.dead) == (0, 0, len(names) * (1 if is_alone else 3))
    assert written == ([0, 2] * len(names) if topic == "reads" else [])


@pytest.mark.parametrize("name", ERRORS)
def test_every_error_is_put_into_words_soon_and_within_bounds(name: str) -> None:
    error = ERRORS[name]()
    began = time.process_time()
    words = explain(error)
    assert 0 < len(words) <= LONGEST_TRACEBACK
    words.encode()
    assert len(text_of(error)) <= LONGEST_TEXT + 100
    text_of(error).encode()
    assert 0 < len(name_of(error)) < 300
    assert sum(1 for _ in leaves(error)) <= 100_000
    assert sum(1 for _ in family(error, openly=False)) <= 200_000
    assert time.process_time() - began < 5


def test_a_traceback_reads_as_python_writes_it() -> None:
    def inner() -> None:
        raise ValueError("inner")

    def outer() -> None:
        try:
            inner()
        except ValueError:
            raise KeyError("outer") from None

    try:
        try:
            outer()
        except KeyError as error:
            raise RuntimeError("last") from error
    except RuntimeError as error:
        error.add_note("a note")
        words = explain(error)
    assert words.startswith("Traceback (most recent call last):\n")
    assert "in outer" in words
    assert "KeyError: 'outer'" in words
    assert "The above exception was the direct cause" in words
    assert "inner" not in words.replace("inner()", "")
    assert words.endswith("RuntimeError: last\n    a note\n")


@pytest.mark.parametrize("place", ["text", "note", "member", "type"])
def test_no_error_can_forge_an_entry_of_the_log(place: str, caplog: pytest.LogCaptureFixture) -> None:
    forged = "x\n2026-01-01 repid.worker all is well\r\x1b[2Jgone"
    error: BaseException = ValueError(forged if place == "text" else "no")
    if place == "note":
        error.add_note(forged)
    if place == "member":
        error = ExceptionGroup("two", [ValueError(forged), KeyError("other")])
    if place == "type":
        error = type(forged, (ValueError,), {})("no")
    log = Log("repid.worker")
    log.error("it failed: %s", forged, exc_info=error)
    for text in (caplog.text, explain(error)):
        assert not [line for line in text.splitlines() if line.startswith("2026-01-01 repid")]
        assert "\x1b" not in text
        assert "\r" not in text


def test_the_members_of_a_group_are_shown_and_the_latest_links_of_a_chain() -> None:
    words = explain(ExceptionGroup("two", [ValueError("one"), ExceptionGroup("more", [KeyError("deep")])]))
    assert "ExceptionGroup: two (2 sub-exceptions)" in words
    assert "ValueError: one" in words
    assert "KeyError: 'deep'" in words
    assert "ValueError: 19999\n" in explain(chain(20_000))
    assert "first" not in explain(chain(20_000))


def test_a_text_is_cut_at_its_end_and_says_how_long_it_was() -> None:
    assert cut("x" * 20, 20) == "x" * 20
    assert cut("x" * 21, 20) == "x" * 20 + "… (cut: 21 characters)"


class Biting(logging.Handler):
    """A handler that raises in its `emit`, and counts how often it is called."""

    calls = 0
    fault: BaseException = RuntimeError("the disk of the log is full")

    def emit(self, record: Any) -> None:
        self.calls += 1
        raise self.fault


@pytest.mark.parametrize(
    "fault", [RuntimeError("the disk of the log is full"), SystemExit("the disk of the log is full")]
)
async def test_a_logging_handler_that_raises_ends_no_worker(
    app: Repid, capsys: pytest.CaptureFixture[str], fault: BaseException
) -> None:
    import logging

    router = Router(retries=1, retry_policy=lambda _: 0.0)

    @router.actor
    async def fails() -> None:
        raise ValueError("of the actor")

    @router.actor
    async def innocent() -> None: ...

    app.include_router(router)
    handler = Biting()
    handler.fault = fault
    logger = logging.getLogger("repid.worker")
    logger.addHandler(handler)
    try:
        for name in ("fails", "innocent", "nobody"):
            await app.send_message_json(channel="default", headers={"topic": name})
        with trio.move_on_after(10):
            await app.run_worker()
    finally:
        logger.removeHandler(handler)
    counts = await app.server().counts("default")
    assert (counts.ready, counts.leased, counts.dead) == (0, 0, 1)
    assert handler.calls >= 3
    assert "the disk of the log is full" in capsys.readouterr().err


def test_a_log_record_names_the_place_of_the_call(caplog: pytest.LogCaptureFixture) -> None:
    Log("repid.worker").error("said %s", "it", exc_info=ValueError("x"))
    [record] = caplog.records
    assert (record.funcName, record.getMessage()) == (sys._getframe().f_code.co_name, "said it")
    assert record.exc_info is not None
    assert record.exc_text == "ValueError: x"


def test_where_logging_is_not_to_tell_of_its_failures_it_does_not(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Broken(logging.Handler):
        def handle(self, record: logging.LogRecord) -> bool:
            raise ValueError("the handler")

    logger = logging.getLogger("repid.worker")
    handler = Broken()
    logger.addHandler(handler)
    try:
        Log("repid.worker").warning("1")
        assert "ValueError: the handler" in capsys.readouterr().err
        monkeypatch.setattr(logging, "raiseExceptions", False)
        Log("repid.worker").warning("2")
        assert capsys.readouterr().err == ""
        monkeypatch.setattr(logging, "raiseExceptions", True)
        monkeypatch.setattr(sys, "stderr", None)
        Log("repid.worker").warning("3")
    finally:
        logger.removeHandler(handler)
