"""The ids of messages."""

from __future__ import annotations

import os
import random
import re
import time
import uuid

import pytest

from repid.envelope import new_id, new_ids


def digits_of_chance(id_: str) -> str:
    return id_[17:]


def test_ids_are_all_of_one_form_and_all_different() -> None:
    ids = [new_id() for _ in range(1000)] + new_ids(1000)
    assert len(set(map(digits_of_chance, ids))) == 2000
    assert all(re.fullmatch("[0-9a-f]{32}", id_) for id_ in ids)


def test_ids_are_uuids_of_version_7_that_tell_the_millisecond() -> None:
    before = time.time_ns() // 1_000_000
    ids = [new_id(), *new_ids(3), new_id()]
    after = time.time_ns() // 1_000_000
    for id_ in ids:
        found = uuid.UUID(id_)
        assert (found.version, found.variant, found.hex) == (7, uuid.RFC_4122, id_)
        assert before <= found.int >> 80 <= after


def test_all_four_values_that_the_variant_leaves_open_occur() -> None:
    ids = [new_id() for _ in range(200)] + [id_ for _ in range(200) for id_ in new_ids(1)]
    assert {id_[16] for id_ in ids[:200]} == {id_[16] for id_ in ids[200:]} == set("89ab")


def test_ids_made_one_after_another_ascend() -> None:
    ids = [new_id() for _ in range(1000)]
    assert ids == sorted(ids)


def test_ids_made_together_ascend_also_over_the_end_of_a_millisecond(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time_ns", lambda: 1_700_000_000_000_999_999)
    ids = new_ids(10_000)
    assert ids == sorted(ids)
    assert {uuid.UUID(id_).version for id_ in ids} == {7}
    assert [id_[:16] for id_ in ids[:2]] == ["018bcfe568007fff", "018bcfe568017000"]


def test_seeding_the_random_module_does_not_repeat_them() -> None:
    random.seed(1)
    first = digits_of_chance(new_id())
    random.seed(1)
    assert digits_of_chance(new_id()) != first


@pytest.mark.real_time
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_does_not_repeat_its_parents_ids() -> None:
    readable, writable = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writable, new_id().encode())
        os._exit(0)
    os.waitpid(child, 0)
    assert digits_of_chance(os.read(readable, 32).decode()) != digits_of_chance(new_id())
    os.close(readable)
    os.close(writable)
