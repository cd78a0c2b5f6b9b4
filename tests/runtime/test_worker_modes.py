"""The five confirmation modes, on_error and the retry policy: what they make of each way a run can end."""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from typing import Any

import pytest
import trio
from aids import UnreliableServer, send

from repid import (
    AlreadySettled,
    Counts,
    Handle,
    Job,
    Message,
    Repid,
    Report,
    Router,
    UsageError,
    WorkerOptions,
    default_retry_policy_factory,
)

# always_ack


@pytest.mark.parametrize("how", ["returns", "raises", "times out"])
async def test_always_ack_acknowledges_however_it_ends(
    app: Repid, router: Router, server: UnreliableServer, how: str
) -> None:
    @router.actor(confirmation_mode="always_ack", timeout=1)
    async def job() -> None:
        if how == "raises":
            raise ValueError
        if how == "times out":
            await trio.sleep_forever()

    await Job("job", retries=5).enqueue()  # no message of this mode is ever retried, whatever the sender wished
    assert await app.run_worker(burst=True) == Report(
        processed=1, succeeded=int(how == "returns"), failed=int(how != "returns")
    )
    assert await server.counts("default") == Counts()


@pytest.mark.parametrize("options", [{"confirmation_mode": "always_ack"}, {"on_error": "ack"}])
@pytest.mark.parametrize("how", ["returns", "raises", "times out"])
async def test_the_outbox_of_a_failure_that_is_acknowledged_is_dropped(
    app: Repid, router: Router, server: UnreliableServer, options: Any, how: str
) -> None:
    async def job(message: Message) -> None:
        await message.outbox.send_message(channel="replies", payload=b"")
        if how == "raises":
            raise ValueError
        if how == "times out":
            await trio.sleep_forever()

    router.actor(timeout=1, **options)(job)
    await server.declare(["replies"])
    await send(app, "job")
    await app.run_worker(burst=True)
    assert await server.counts("replies") == Counts(ready=int(how == "returns"))


# ack_first


@pytest.mark.parametrize("how", ["returns", "raises", "times out"])
async def test_ack_first_is_settled_before_the_start(
    app: Repid, router: Router, server: UnreliableServer, how: str
) -> None:
    during: list[Counts] = []

    @router.actor(confirmation_mode="ack_first", timeout=1)
    async def job() -> None:
        during.append(await server.counts("default"))
        if how == "raises":
            raise ValueError
        if how == "times out":
            await trio.sleep_forever()

    await send(app, "job")
    assert await app.run_worker(burst=True) == Report(processed=1, succeeded=1)
    assert during == [Counts()]


async def test_ack_first_waits_for_the_broker_s_word(app: Repid, router: Router, server: UnreliableServer) -> None:
    ran: list[float] = []

    @router.actor(confirmation_mode="ack_first")
    async def job() -> None:
        ran.append(trio.current_time())

    server.hanging.add("settle")
    await send(app, "job")
    async with trio.open_nursery() as nursery:
        handle: Handle = await nursery.start(app.run_worker)
        await trio.sleep(5)
        assert ran == []
        server.heal()
        await trio.sleep(1)
        assert len(ran) == 1
        handle.stop()


async def test_ack_first_runs_nothing_whose_lease_is_lost(app: Repid, router: Router, server: UnreliableServer) -> None:
    ran: list[float] = []

    @router.actor(confirmation_mode="ack_first")
    async def job() -> None:
        ran.append(trio.current_time())

    server.hanging.add("settle")
    await send(app, "job")
    async with trio.open_nursery() as nursery:
        handle: Handle = await nursery.start(app.run_worker)
        await trio.sleep(5)
        await server.delete("default")
        server.heal()
        await trio.sleep(1)
        handle.stop()
    assert ran == []


async def test_ack_first_has_no_verbs_and_no_outbox(app: Repid, router: Router) -> None:
    said: list[str] = []

    @router.actor(confirmation_mode="ack_first")
    async def job(message: Message) -> None:
        assert (message.is_acted_on, message.action) == (True, "acked")
        with pytest.raises(AlreadySettled):
            await message.nack()
        with pytest.raises(UsageError, match="has no outbox"):
            _ = message.outbox
        said.append("all")

    await send(app, "job")
    assert await app.run_worker(burst=True) == Report(processed=1, succeeded=1)
    assert said == ["all"]


async def test_ack_first_is_at_most_once_also_under_a_cancellation(
    app: Repid, router: Router, server: UnreliableServer
) -> None:
    @router.actor(confirmation_mode="ack_first")
    async def slow() -> None:
        await trio.sleep_forever()

    await send(app, "slow")
    with trio.move_on_after(1):
        await app.run_worker()
    assert await server.counts("default") == Counts()


# manual


async def test_manual_keeps_the_lease_until_the_worker_ends(
    app: Repid, router: Router, server: UnreliableServer
) -> None:
    @router.actor(confirmation_mode="manual")
    async def forgets() -> None: ...

    await send(app, "forgets")
    async with trio.open_nursery() as nursery:
        handle: Handle = await nursery.start(app.run_worker)
        await trio.sleep(1000)
        assert await server.counts("default") == Counts(leased=1)
        handle.stop()
    [ready] = await server.browse("default", "ready")
    assert (ready.attempt, ready.lost) == (1, 0)


@pytest.mark.parametrize(
    ("limit", "runs"),
    [
        ({"tasks_limit": 2}, "nothing more"),
        ({"claim_bytes": 22}, "nothing more"),
        ({"claim_bytes": 30}, "no message of more than 8 bytes"),
    ],
)
async def test_a_worker_that_only_waits_for_verdicts_names_the_actors_that_left_none(
    app: Repid, router: Router, limit: WorkerOptions, runs: str, caplog: pytest.LogCaptureFixture
) -> None:
    kept: list[Message] = []

    @router.actor(confirmation_mode="manual")
    async def collects(data: str, message: Message) -> None:
        kept.append(message)

    for _ in range(3):
        await send(app, "collects", data="")  # 11 bytes
    async with trio.open_nursery() as nursery:
        worker: Handle = await nursery.start(partial(app.run_worker, **limit))
        await trio.sleep(9)
        assert not caplog.records
        await trio.sleep(100)
        left = "2 messages were left without a verdict by their actors ('collects', confirmation_mode='manual')"
        assert caplog.messages == [f"{left}: until one of them gets a verdict the worker runs {runs}"]
        await kept[0].ack()
        await trio.sleep(1)
        assert len(kept) == 3
        worker.stop()


async def test_manual_takes_a_verdict_after_the_actor_has_returned(
    app: Repid, router: Router, server: UnreliableServer
) -> None:
    kept: list[Message] = []

    @router.actor(confirmation_mode="manual")
    async def collect(message: Message) -> None:
        kept.append(message)

    await send(app, "collect")
    async with trio.open_nursery() as nursery:
        handle: Handle = await nursery.start(app.run_worker)
        await trio.sleep(100)
        await kept[0].ack()
        assert await server.counts("default") == Counts()
        handle.stop()


async def test_a_verdict_after_the_worker_has_ended_is_told_so(app: Repid, router: Router) -> None:
    kept: list[Message] = []

    @router.actor(confirmation_mode="manual")
    async def collect(message: Message) -> None:
        kept.append(message)

    await send(app, "collect")
    await app.run_worker(burst=True)
    with pytest.raises(UsageError, match="has ended"):
        await kept[0].ack()


async def test_manual_still_retries_what_raises(app: Repid, router: Router) -> None:
    @router.actor(confirmation_mode="manual", retries=1, retry_policy=lambda _: 0)
    async def fails() -> None:
        raise ValueError

    await send(app, "fails")
    assert await app.run_worker(burst=True) == Report(processed=2, failed=1, retried=1, dead=1)


async def test_kept_leases_count_against_the_limit_of_tasks(
    app: Repid, router: Router, server: UnreliableServer
) -> None:
    """Or a worker would lease everything there is."""
    kept: list[Message] = []

    @router.actor(confirmation_mode="manual")
    async def collect(message: Message) -> None:
        kept.append(message)

    for _ in range(10):
        await send(app, "collect")
    async with trio.open_nursery() as nursery:
        handle: Handle = await nursery.start(lambda task_status: app.run_worker(tasks_limit=3, task_status=task_status))
        await trio.sleep(10)
        assert (await server.counts("default")).leased == len(kept) == 3
        for message in kept[:3]:
            await message.ack()
        await trio.sleep(10)
        assert (await server.counts("default")).leased == 3
        assert len(kept) == 6
        handle.stop()


@pytest.mark.parametrize("concurrency", [math.inf, 2])
async def test_what_was_claimed_ahead_does_not_start_when_all_places_are_kept(
    app: Repid, router: Router, server: UnreliableServer, concurrency: float
) -> None:
    """It is given back: nobody knows when there is room, and other workers may have some."""
    kept: list[Message] = []

    @router.actor(confirmation_mode="manual", concurrency=concurrency)
    async def collect(number: int, message: Message) -> None:
        if number < 1000:
            await message.ack()
        else:
            kept.append(message)

    for number in range(1050):
        await send(app, "collect", number=number)
    async with trio.open_nursery() as nursery:
        handle: Handle = await nursery.start(partial(app.run_worker, tasks_limit=5))
        await trio.sleep(10)
        assert len(kept) == 5
        assert await server.counts("default") == Counts(ready=45, leased=5)
        await kept[0].ack()
        await trio.sleep(10)
        assert len(kept) == 6
        handle.stop()


async def test_burst_does_not_wait_for_verdicts_that_may_never_come(
    app: Repid, router: Router, server: UnreliableServer
) -> None:
    @router.actor(confirmation_mode="manual")
    async def collect() -> None: ...

    for _ in range(5):
        await send(app, "collect")
    with trio.fail_after(60):
        report = await app.run_worker(burst=True, tasks_limit=2)
    assert report == Report(processed=2, released=2)
    assert await server.counts("default") == Counts(ready=5)


# manual_explicit


@pytest.mark.parametrize(
    ("word", "expected", "counts"),
    [
        ("ack", Report(processed=1, succeeded=1), Counts()),
        ("nack", Report(processed=1, failed=1, dead=1), Counts(dead=1)),
        ("reject", Report(processed=1, released=1), Counts(ready=1)),
        ("retry", Report(processed=1, retried=1), Counts(scheduled=1)),
    ],
)
async def test_manual_explicit_takes_the_word_returned(
    app: Repid, router: Router, server: UnreliableServer, word: str, expected: Report, counts: Counts
) -> None:
    @router.actor(confirmation_mode="manual_explicit", retries=1)
    async def job() -> str:
        return word

    await send(app, "job")
    assert await app.run_worker(messages_limit=1) == expected
    assert await server.counts("default") == counts


@pytest.mark.parametrize("word", [None, "done", 5, ["ack"], {}, object(), "ACK"])
async def test_manual_explicit_takes_no_other_word_and_says_so_in_the_log(
    app: Repid, router: Router, server: UnreliableServer, word: object, caplog: pytest.LogCaptureFixture
) -> None:
    @router.actor(confirmation_mode="manual_explicit")
    async def job() -> object:
        return word

    await send(app, "job")
    assert await app.run_worker(burst=True) == Report(processed=1, failed=1, dead=1)
    [dead] = await server.browse("default", "dead")
    assert dead.failure is not None
    assert "must return one of ack, nack, reject, retry" in dead.failure.text
    [record] = [record for record in caplog.records if record.levelname == "ERROR"]
    assert "actor 'job' failed on message" in record.getMessage()
    assert dead.failure.text in caplog.text


async def test_manual_explicit_cannot_retry_the_last_attempt_and_says_so_in_the_log(
    app: Repid, router: Router, server: UnreliableServer, caplog: pytest.LogCaptureFixture
) -> None:
    @router.actor(confirmation_mode="manual_explicit", retries=1, retry_policy=lambda _: 0)
    async def job() -> str:
        return "retry"

    await send(app, "job")
    assert await app.run_worker(burst=True) == Report(processed=2, failed=1, retried=1, dead=1)
    [dead] = await server.browse("default", "dead")
    assert dead.failure is not None
    assert "no retry is left" in dead.failure.text
    assert [record.levelname for record in caplog.records].count("ERROR") == 1


class Awkward(Exception):  # noqa: N818
    def __str__(self) -> str:
        raise ValueError("no text")

    __repr__ = __str__


@pytest.mark.parametrize("mode", ["auto", "always_ack", "manual", "manual_explicit", "ack_first"])
async def test_errors_without_a_text_are_failures_like_others(app: Repid, router: Router, mode: Any) -> None:
    @router.actor(confirmation_mode=mode)
    async def job(how: str) -> object:
        if how == "raises":
            raise Awkward
        return "ack"

    for how in ("raises", "returns"):
        await send(app, "job", how=how)
    assert (await app.run_worker(messages_limit=2)).processed == 2


async def test_a_word_without_a_text_is_a_failure_like_others(app: Repid, router: Router) -> None:
    @router.actor(confirmation_mode="manual_explicit")
    async def job() -> object:
        return Awkward()

    await send(app, "job")
    assert await app.run_worker(burst=True) == Report(processed=1, failed=1, dead=1)


# on_error


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("ack", Report(processed=1, failed=1)),
        ("nack", Report(processed=1, failed=1, dead=1)),
        ("reject", Report(processed=1, released=1)),
        ("retry", Report(processed=1, retried=1)),
    ],
)
@pytest.mark.parametrize("form", ["word", "callable"])
@pytest.mark.parametrize("how", ["raises", "times out"])
async def test_on_error_is_asked_first(
    app: Repid, router: Router, word: Any, expected: Report, form: str, how: str
) -> None:
    asked: list[str] = []

    def answer(error: BaseException) -> Any:
        asked.append(type(error).__name__)
        return word

    @router.actor(on_error=word if form == "word" else answer, retries=1, timeout=1)
    async def job() -> None:
        if how == "raises":
            raise ValueError
        await trio.sleep_forever()

    await send(app, "job")
    assert await app.run_worker(messages_limit=1) == expected
    assert asked == ([] if form == "word" else [{"raises": "ValueError", "times out": "TimeoutError"}[how]])


@pytest.mark.parametrize("answer", [None, "whatever", 5, [], {}, Awkward()])
async def test_without_a_verdict_of_on_error_the_retries_decide(app: Repid, router: Router, answer: Any) -> None:
    @router.actor(on_error=lambda _: answer, retries=1, retry_policy=lambda _: 0)
    async def fails() -> None:
        raise ValueError

    await send(app, "fails")
    assert await app.run_worker(burst=True) == Report(processed=2, failed=1, retried=1, dead=1)


async def test_an_on_error_that_raises_is_logged_and_the_retries_decide(
    app: Repid, router: Router, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(error: BaseException) -> None:
        raise KeyError("oops")

    @router.actor(on_error=broken, retries=1, retry_policy=lambda _: 0)
    async def fails() -> None:
        raise ValueError

    await send(app, "fails")
    assert await app.run_worker(burst=True) == Report(processed=2, failed=1, retried=1, dead=1)
    assert "on_error of actor 'fails' failed" in caplog.text


@pytest.mark.parametrize(("word", "shown"), [("nak", "'nak'"), (5, "a int"), (["ack"], "a list")])
async def test_what_on_error_returns_that_is_no_verdict_is_told_with_those_that_are(
    app: Repid, router: Router, caplog: pytest.LogCaptureFixture, word: Any, shown: str
) -> None:
    @router.actor(on_error=lambda error: word)
    async def fails() -> None:
        raise ValueError

    await send(app, "fails")
    assert await app.run_worker(burst=True) == Report(processed=1, failed=1, dead=1)
    text = (
        f"on_error of actor 'fails' returned {shown}, which is no verdict, so its retries decide: let it return 'ack', "
    )
    assert text in caplog.text


async def test_on_error_retry_without_a_retry_left_is_a_dead_letter(app: Repid, router: Router) -> None:
    @router.actor(on_error="retry")
    async def fails() -> None:
        raise ValueError

    await send(app, "fails")
    assert await app.run_worker(burst=True) == Report(processed=1, failed=1, dead=1)


# Retries


async def test_retries_follow_the_policy_and_end(app: Repid, router: Router, server: UnreliableServer) -> None:
    starts: list[tuple[int, float]] = []

    @router.actor(retries=3, retry_policy=default_retry_policy_factory(min_backoff=2, multiplier=2))
    async def fails(message: Message) -> None:
        starts.append((message.attempt, trio.current_time()))
        raise ValueError(f"attempt {message.attempt}")

    await send(app, "fails")
    assert await app.run_worker(messages_limit=4) == Report(processed=4, failed=1, retried=3, dead=1)
    zero = starts[0][1]
    assert [attempt for attempt, _ in starts] == [1, 2, 3, 4]
    assert [time - zero for _, time in starts] == pytest.approx([0, 2, 6, 14])
    [dead] = await server.browse("default", "dead")
    assert (dead.attempt, dead.reason) == (4, "failed")
    assert dead.failure is not None
    assert (dead.failure.type, dead.failure.text) == ("ValueError", "attempt 4")
    assert "in fails" in dead.failure.traceback


@pytest.mark.parametrize(("of_job", "runs"), [(None, 3), (0, 1), (1, 2), (4, 5)])
async def test_the_job_s_retries_win_over_the_actor_s(
    app: Repid, router: Router, of_job: int | None, runs: int
) -> None:
    @router.actor(retries=2, retry_policy=lambda _: 0)
    async def fails() -> None:
        raise ValueError

    await Job("fails", retries=of_job).enqueue()
    assert (await app.run_worker(burst=True)).processed == runs


@pytest.mark.parametrize(
    ("policy", "delay"),
    [
        (lambda _: timedelta(seconds=90), 90),
        (lambda n: n * 7, 7),
        (lambda n: 1 / 0, 1),
        (lambda _: -5, 1),
        (lambda _: "soon", 1),
        (lambda _: math.nan, 1),
    ],
)
async def test_a_policy_may_answer_with_a_timedelta_and_a_broken_one_is_replaced_by_the_default(
    app: Repid, router: Router, server: UnreliableServer, policy: Callable[[int], Any], delay: float
) -> None:
    @router.actor(retries=1, retry_policy=policy)
    async def fails() -> None:
        raise ValueError

    await send(app, "fails")
    assert await app.run_worker(burst=True) == Report(processed=1, retried=1)
    [scheduled] = await server.browse("default", "scheduled")
    assert scheduled.due_in == pytest.approx(delay)
    assert scheduled.failure is not None


@pytest.mark.parametrize("mode", ["auto", "manual", "always_ack", "ack_first"])
async def test_what_comes_after_a_verdict_is_only_logged(
    app: Repid, router: Router, caplog: pytest.LogCaptureFixture, mode: Any
) -> None:
    @router.actor(confirmation_mode=mode)
    async def job(message: Message) -> None:
        if mode != "ack_first":
            await message.ack()
        raise ValueError("afterwards")

    await send(app, "job")
    assert await app.run_worker(burst=True) == Report(processed=1, succeeded=1)
    assert "failed after its verdict, which stands" in caplog.text
    assert "afterwards" in caplog.text
