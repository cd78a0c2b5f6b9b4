"""Waiting for many jobs at once: one watch on each server, however many there are."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
from datetime import timedelta
from functools import partial
from typing import Any, Literal, TypeAlias, TypeVar

import trio

from .errors import ConfigurationError, ResultError
from .handle import JobHandle, cancel_all, wait_for_each
from .hosts import hosted, within
from .names import brief, check_duration, check_iterable, check_one_of
from .ports import Broker, ResultStore
from .results import Result
from .sync_handle import SyncJobHandle
from .tracebacks import unwrapped

T = TypeVar("T")

Outcome: TypeAlias = Result[Any] | ResultError


async def gather(
    handles: Iterable[JobHandle[Any]], *, on_error: Literal["raise", "return"], timeout: float | timedelta | None
) -> list[Any]:
    """Wait until all have ended; see `Repid.gather`, which has the types."""
    check_one_of("on_error of gather", on_error, ("raise", "return"))
    waited_for = _checked("gather", handles)
    outcomes = await _wait(waited_for, len(waited_for), timeout)
    found: list[Any] = []
    errors: list[ResultError] = []
    for place in range(len(waited_for)):
        try:
            outcome = outcomes[place]
            if isinstance(outcome, ResultError):
                raise outcome
            found.append(outcome.value if on_error == "raise" else outcome)
        except ResultError as error:
            errors.append(error)
    if errors:
        raise ExceptionGroup(f"{len(errors)} of {len(waited_for)} jobs gave no value", errors)
    return found


async def first_of(
    handles: Iterable[JobHandle[T]], *, cancel_others: bool, timeout: float | timedelta | None
) -> Result[T]:
    """Wait until the first of them has ended; see `Repid.first_of`."""
    waited_for = _checked("first_of", handles)
    if not waited_for:
        raise ConfigurationError("first_of needs at least one handle to wait for, but was given none")
    outcomes = await _wait(waited_for, 1, timeout)
    place, outcome = next(iter(outcomes.items()))
    if cancel_others:
        await _cancel(waited_for[:place] + waited_for[place + 1 :])
    if isinstance(outcome, ResultError):
        raise outcome
    return outcome


async def _cancel(handles: Sequence[JobHandle[Any]]) -> None:
    """Cancel them, many with one call to each server."""
    ids: dict[Broker, list[str]] = {}
    for handle in handles:
        ids.setdefault(handle.broker, []).append((await handle._ids())[0])  # noqa: SLF001  as `wait_for_each` does
    for broker, there in ids.items():
        await cancel_all(broker, there)


def one_by_one(handles: Sequence[Any]) -> Any:
    """The handles of a call, which were given one by one or as one iterable."""
    return handles[0] if len(handles) == 1 and not isinstance(handles[0], JobHandle | SyncJobHandle) else handles


def _checked(verb: str, handles: Iterable[JobHandle[T]]) -> list[JobHandle[T]]:
    if inspect.iscoroutine(handles):
        handles = (handles,)
    check_iterable(f"the handles of {verb}", handles)
    batch = list(handles)
    for each in batch:
        if not isinstance(each, JobHandle):
            raise ConfigurationError(
                f"{verb} takes the handles that enqueueing gives, but was given "
                f"{brief(each)}{_instead(verb, each, batch)}"
            )
    return batch


def _instead(verb: str, wrong: object, given: Sequence[object]) -> str:
    """What to do with what is no handle. Closes the coroutines among what was given: `asyncio.gather` takes them."""
    if isinstance(wrong, SyncJobHandle):
        return f", a handle for code that blocks: call {verb} of the client there, it waits in the calling thread"
    coroutines = [each for each in given if inspect.iscoroutine(each)]
    for each in coroutines:
        each.close()
    return ": await each of them before, `handle = await app.enqueue(...)`" if coroutines else ""


@hosted
async def _wait(
    handles: Sequence[JobHandle[Any]], enough: int, timeout: float | timedelta | None
) -> dict[int, Outcome]:
    """What became of the handles, by their places, in the order in which they ended; at least `enough` of them."""
    outcomes: dict[int, Outcome] = {}
    seconds = None if timeout is None else check_duration("timeout", timeout)
    wait = partial(_gather, handles, enough, outcomes)
    if seconds is None:
        await wait()
        return outcomes
    try:
        await within(seconds, wait)
    except TimeoutError:
        await _take_stored(handles, outcomes)
        if len(outcomes) < enough:
            text = f"{len(outcomes)} of {len(handles)} jobs have ended within {seconds:g} seconds, not {enough}"
            raise TimeoutError(text) from None
    return outcomes


async def _take_stored(handles: Sequence[JobHandle[Any]], outcomes: dict[int, Outcome]) -> None:
    """Add the results that are there: some may have ended in this moment, and a timeout of 0 just asks."""
    waited_for: dict[ResultStore, list[tuple[int, str]]] = {}
    for place, handle in enumerate(handles):
        if place not in outcomes:
            waited_for.setdefault(handle._results, []).append((place, (await handle._ids())[1]))  # noqa: SLF001  as above
    for store, there in waited_for.items():
        found = await store.fetch_results([result_id for _, result_id in there])
        for (place, _), stored in zip(there, found, strict=True):
            if stored is not None:
                handle = handles[place]
                outcomes[place] = Result(stored, handle._type, handle.envelope.topic)  # noqa: SLF001


async def _gather(handles: Sequence[JobHandle[Any]], enough: int, outcomes: dict[int, Outcome]) -> None:
    places: dict[Broker, list[int]] = {}
    for place, handle in enumerate(handles):
        places.setdefault(handle.broker, []).append(place)

    def note(there: list[int], place: int, outcome: Outcome) -> bool:
        outcomes[there[place]] = outcome
        return len(outcomes) >= enough

    async def of_one(there: list[int], done: Callable[[], object]) -> None:
        await wait_for_each([handles[place] for place in there], partial(note, there))
        if len(outcomes) >= enough:
            done()

    try:
        async with trio.open_nursery() as nursery:
            for there in places.values():
                nursery.start_soon(of_one, there, nursery.cancel_scope.cancel)
    except BaseExceptionGroup as group:
        error = unwrapped(group)
        while isinstance(error, ExceptionGroup):  # several servers have failed: the first one is named
            error = error.exceptions[0]
        raise error from None
