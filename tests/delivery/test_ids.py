"""The ids of messages."""

from __future__ import annotations

import os
import random
import re

import pytest

from repid.envelope import new_id, new_ids


def digits_of_chance(id_: str) -> str:
    return id_[14:]


def test_ids_are_all_of_one_form_and_all_different() -> None:
    ids = [new_id() for _ in range(1000)] + new_ids(1000)
    assert len(set(map(digits_of_chance, ids))) == 2000
    assert all(re.fullmatch("[0-9a-f]{32}", id_) for id_ in ids)


def test_ids_made_together_ascend() -> None:
    ids = new_ids(1000)
    assert ids == sorted(ids)


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
