"""Errors and values that do harm, raised and returned beside innocent neighbours: each is the failure of its job alone."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import trio

from repid import Connection, InMemoryServer, Job, Queue, Repid, Router, SQLiteServer
from repid.logs import Log
from repid.tracebacks import LONGEST_TEXT, LONGEST_TRACEBACK, cut, explain, family, leaves, name_of, text_of


def overriding(*, base: type[BaseException] = Exception, **methods: Any) -> BaseException:
    """An error of a class with these methods."""
    cls = type("Overriding", (base,), methods)
    error: BaseException = cls("group", [ValueError()]) if issubclass(base, BaseExceptionGroup) else cls("text")
    return error


def bite(*_: Any, **__: Any) -> Any:
    raise KeyError("bitten")


def leave(*_: Any) -> Any:
    raise SystemExit(3)


def sleepy(_: object) -> str:
    time.sleep(0.05)
    return "slow"


def again(error: BaseException) -> str:
    return str(error)


def chain(links: int) -> BaseException:
    error: BaseException = ValueError("first")
    for number in range(links):
        later = ValueError(number)
        later.__context__ = error
        error = later
    return error


def nested(depth: int) -> BaseException:
    error: Exception = ValueError("innermost")
    for _ in range(depth):
        error = ExceptionGroup("a level", [error])
    return error


def circle(link: str) -> BaseException:
    one, two = ValueError("one"), ValueError("two")
    setattr(one, link, two)
    setattr(two, link, one)
    return one


def with_notes(notes: Any) -> BaseException:
    error = ValueError("noted")
    error.__notes__ = notes
    return error


def odd_syntax_error() -> BaseException:
    error = SyntaxError("odd")
    error.lineno, error.offset, error.text, error.filename = "x", {}, 5, object()  # type: ignore[assignment]
    return error


class Named(type):
    @property
    def __name__(cls) -> str:  # type: ignore[override]
        raise KeyError

    __module__ = property(bite)


class Text(str):
    __slots__ = ()
    __len__ = __getitem__ = __str__ = __format__ = encode = bite


ERRORS: dict[str, Callable[[], BaseException]] = {
    "__str__ raises": lambda: overriding(__str__=bite),
    "__str__ exits": lambda: overriding(__str__=leave),
    "__str__ returns a number": lambda: overriding(__str__=lambda _: 5),
    "__str__ recurses": lambda: overriding(__str__=again),
    "__str__ sleeps": lambda: overriding(__str__=sleepy),
    "__str__ gives a hostile str": lambda: overriding(__str__=lambda _: Text("text")),
    "__repr__ raises": lambda: ValueError(overriding(__repr__=bite), 1),
    "__getattr__ raises": lambda: overriding(__getattr__=bite),
    "__getattribute__ raises": lambda: overriding(__getattribute__=bite),
    "__class__ raises": lambda: overriding(__class__=property(bite)),
    "__class__ lies": lambda: overriding(__class__=property(lambda _: BaseExceptionGroup)),
    "__class__ says Cancelled": lambda: overriding(__class__=property(lambda _: trio.Cancelled)),
    "__eq__, __hash__ and __bool__ raise": lambda: overriding(__eq__=bite, __hash__=bite, __bool__=bite),
    "with_traceback raises": lambda: overriding(with_traceback=bite),
    "with_traceback returns a number": lambda: overriding(with_traceback=lambda *_: 5),
    "__traceback__ raises": lambda: overriding(__traceback__=property(bite), __context__=property(bite)),
    "__cause__ is no error": lambda: overriding(__cause__=5, __suppress_context__="x"),
    "__reduce__ raises": lambda: overriding(__reduce__=bite, __reduce_ex__=bite),
    "the metaclass raises": Named("Odd", (Exception,), {}),
    "a long type name": type("N" * 1_000_000, (Exception,), {}),
    "no __init__": type("Bare", (Exception,), {"__init__": lambda _: None}),
    "an odd SyntaxError": odd_syntax_error,
    "an odd UnicodeDecodeError": lambda: UnicodeDecodeError.__new__(UnicodeDecodeError),
    "notes that are a number": lambda: with_notes(5),
    "notes that are odd": lambda: with_notes([5, "\ud800", Text("x"), "n" * 1_000_000]),
    "a long chain": lambda: chain(20_000),
    "a circle of causes": lambda: circle("__cause__"),
    "a circle of contexts": lambda: circle("__context__"),
    "a deep group": lambda: nested(500),
    "a wide group": lambda: ExceptionGroup("wide", [ValueError(number) for number in range(100_000)]),
    "a group that cannot be split": lambda: overriding(base=ExceptionGroup, split=bite, subgroup=bite, derive=bite),
    "a group without members": lambda: overriding(base=ExceptionGroup, exceptions=property(bite)),
    "a long text": lambda: ValueError("x" * 20_000_000),
    "lone surrogates": lambda: ValueError("a\ud800b"),
    "a text that is no line": lambda: ValueError("a\0b\nERROR forged\x1b[2J"),
    "MemoryError": MemoryError,
    "RecursionError": RecursionError,
    "StopIteration": lambda: StopIteration(5),
    "StopAsyncIteration": StopAsyncIteration,
    "GeneratorExit": GeneratorExit,
    "SystemExit": lambda: SystemExit("text"),
    "KeyboardInterrupt": KeyboardInterrupt,
    "asyncio.CancelledError": asyncio.CancelledError,
    "a forged Cancelled": lambda: trio.Cancelled._create(source="unknown"),
    "a group of exits": lambda: BaseExceptionGroup("exits", [SystemExit(1), KeyboardInterrupt()]),
    "BaseException": BaseException,
}


def endless() -> Any:
    value: list[Any] = []
    value.append(value)
    return value


VALUES: dict[str, Callable[[], Any]] = {
    "an object": object,
    "a list that holds itself": endless,
    "a lone surrogate": lambda: "\ud800",
    "a dict that bites": lambda: type("D", (dict,), {"items": bite, "__iter__": bite})({object(): 1}),
    "a class that bites": type("O", (), {"__class__": property(bite), "__getattribute__": bite}),
    "a generator": lambda: (number for number in range(3)),
}


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


PLACES = [(run, broker) for run in ("trio", "asyncio") for broker in ("memory", "sqlite")]


def share_of(place: int, names: Iterable[str]) -> list[str]:
    """The part of the names that is tried in this place: a quarter by the seed, or with REPID_TEST_ALL=1 all of them."""
    chosen = sorted(names)
    if os.environ.get("REPID_TEST_ALL"):
        return chosen
    random.Random(os.environ.get("REPID_TEST_SEED", "0")).shuffle(chosen)
    return chosen[place :: len(PLACES)]


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

    def emit(self, record: Any) -> None:
        self.calls += 1
        raise RuntimeError("the disk of the log is full")


async def test_a_logging_handler_that_raises_ends_no_worker(app: Repid, capsys: pytest.CaptureFixture[str]) -> None:
    import logging

    router = Router(retries=1, retry_policy=lambda _: 0.0)

    @router.actor
    async def fails() -> None:
        raise ValueError("of the actor")

    @router.actor
    async def innocent() -> None: ...

    app.include_router(router)
    handler = Biting()
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
