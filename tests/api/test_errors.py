"""Every error survives being copied and being sent to another process."""

from __future__ import annotations

import copy
import inspect
import pickle
import sqlite3
from collections.abc import Callable

import pytest

import repid
from repid import errors
from repid.errors import DuplicateId, LeaseLost, MissingExtra, PayloadError, PublishUnknown, QueueNotDeclared

ARGUMENTS: dict[str, tuple[object, ...]] = {
    "MissingExtra": ("schedules", "cron"),
    "PayloadError": ("the payload does not fit", [("$.a", "expected int"), ("$.b", "missing")]),
    "PublishUnknown": (["1", "2", "3", "4"],),
    "QueueNotDeclared": ("mail",),
    "DuplicateId": ("1", "mail"),
    "QueueFull": ("mail", "queue 'mail' is full"),
    "LeaseLost": ("1",),
    "JobFailed": ("1", "failure", "ValueError", "oops", "Traceback: ..."),
    "SomeRefused": ("1 of 2 calls were refused", [LeaseLost("7")], ["1", LeaseLost("7")]),
    "WorkersFailed": ("2 of 4 crashed", repid.Report(processed=3)),
}
"""What those are made of that are made of more than a text."""

CLASSES = [value for value in vars(errors).values() if inspect.isclass(value) and issubclass(value, errors.RepidError)]
COPIES: dict[str, Callable[[errors.RepidError], errors.RepidError]] = {
    **{
        f"pickle, protocol {number}": lambda error, number=number: pickle.loads(pickle.dumps(error, number))  # type: ignore[misc]
        for number in range(pickle.HIGHEST_PROTOCOL + 1)
    },
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
}


def made(kind: type[errors.RepidError]) -> errors.RepidError:
    return kind(*ARGUMENTS.get(kind.__name__, ("something went wrong",)))


@pytest.mark.parametrize("way", COPIES)
@pytest.mark.parametrize("kind", CLASSES)
def test_a_copy_of_an_error_has_its_class_text_fields_notes_and_cause(kind: type[errors.RepidError], way: str) -> None:
    error = made(kind)
    error.add_note("seen in a test")
    error.__cause__ = LeaseLost("7")
    for _ in range(2):  # a copy of the copy, too
        again = COPIES[way](error)
        assert again is not error
        assert (type(again), repr(again.args), str(again)) == (kind, repr(error.args), str(error))
        assert repr(vars(again)) == repr(vars(error))
        assert (type(again.__cause__), str(again.__cause__)) == (LeaseLost, str(error.__cause__))
        error = again


@pytest.mark.parametrize("way", COPIES)
def test_an_error_of_a_user_that_derives_from_ours_is_copied_alike(way: str) -> None:
    again = COPIES[way](OutOfStock("tea", left=2))
    assert isinstance(again, OutOfStock)
    assert (str(again), again.left) == ("there is no tea", 2)


class OutOfStock(errors.UsageError):
    def __init__(self, item: str, *, left: int) -> None:
        super().__init__(f"there is no {item}")
        self.left = left


def test_fields_can_be_read_after_a_journey() -> None:
    assert pickle.loads(pickle.dumps(DuplicateId("1", "mail"))).id == "1"
    assert pickle.loads(pickle.dumps(DuplicateId("1", "mail"))).queue == "mail"
    assert pickle.loads(pickle.dumps(MissingExtra("schedules", "cron"))).extra == "cron"
    assert pickle.loads(pickle.dumps(QueueNotDeclared("mail"))).queue == "mail"
    assert pickle.loads(pickle.dumps(PublishUnknown(["1"]))).ids == ("1",)
    assert pickle.loads(pickle.dumps(PayloadError("bad", [("$", "missing")]))).faults == (("$", "missing"),)


def test_a_cause_that_cannot_be_pickled_stays_behind() -> None:
    error = errors.BrokerRefused("no")
    error.__cause__ = ValueError(lambda: None)
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.__cause__) == ("no", None)
    assert copy.copy(error).__cause__ is error.__cause__


def test_an_error_with_the_cause_of_another_library_keeps_it() -> None:
    error = errors.BrokerUnavailable("the file is locked")
    error.__cause__ = sqlite3.OperationalError("database is locked")
    again = pickle.loads(pickle.dumps(error))
    assert (type(again.__cause__), str(again.__cause__)) == (sqlite3.OperationalError, "database is locked")


def test_errors_in_a_group_travel_with_it() -> None:
    group = ExceptionGroup("2 of 3 messages were refused", [DuplicateId("1", "mail"), QueueNotDeclared("post")])
    again = pickle.loads(pickle.dumps(group))
    assert [str(error) for error in again.exceptions] == [str(error) for error in group.exceptions]


def test_the_text_of_an_unknown_publish_shows_dots_only_where_ids_are_left_out() -> None:
    assert "('1', '2')" in str(PublishUnknown(["1", "2"]))
    assert "('1', '2', '3', …)" in str(PublishUnknown(["1", "2", "3", "4"]))
