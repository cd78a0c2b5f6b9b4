"""Errors put into words: as Python does it, also for places that were put into words before."""

from __future__ import annotations

import traceback

import pytest

from repid.tracebacks import MOST_PLACES, _places, explain


def _fall(depth: int) -> None:
    if depth:
        _fall(depth - 1)
    raise ValueError("at the bottom")


def _caught(depth: int) -> ValueError:
    with pytest.raises(ValueError, match="bottom") as caught:
        _fall(depth)
    return caught.value


@pytest.mark.parametrize("depth", [0, 2, 3, 5])
def test_an_error_is_explained_as_python_does_it_and_again_so(depth: int) -> None:
    for _ in range(2):
        error = _caught(depth)
        assert explain(error) == "".join(traceback.format_exception(error))


def test_equal_functions_of_two_files_are_told_apart() -> None:
    told = []
    for name in ("one.py", "two.py"):
        names: dict[str, object] = {}
        exec(compile("def fail(): return 1 / 0", name, "exec"), names)
        with pytest.raises(ZeroDivisionError) as caught:
            names["fail"]()  # type: ignore[operator]
        told.append(explain(caught.value))
    assert '"one.py"' in told[0]
    assert '"two.py"' in told[1]


def test_the_words_for_places_take_no_more_room_with_time() -> None:
    for n in range(MOST_PLACES + 10):
        names: dict[str, object] = {}
        exec(compile(f"def fail(): return {n} / 0", "many.py", "exec"), names)
        with pytest.raises(ZeroDivisionError) as caught:
            names["fail"]()  # type: ignore[operator]
        explain(caught.value)
    assert len(_places) <= MOST_PLACES
