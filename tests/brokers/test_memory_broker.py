"""What the memory broker promises about messages, a sentence each. Time is virtual."""

from __future__ import annotations

import sys
import tracemalloc
from typing import Any

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from repid.brokers import InMemoryServer
from repid.delivery import ACK, DeadLetter, Disposition, Failure, Release, Retry, Settlement
from repid.envelope import Envelope, Options, PrioritiesT, new_ids
from repid.errors import BrokerRefused, ConfigurationError, DuplicateId, QueueNotDeclared, UsageError
from repid.ports import REFUSED, SETTLED, Counts, Verdict

from .broker_aids import ids, message, now_ready
from .memory_aids import browsed, consuming, driver_of, settle

# Publishing


async def test_a_duplicate_and_an_unknown_queue_do_not_harm_their_neighbours(server: InMemoryServer) -> None:
    outcomes = await server.publish([message("1"), message("1"), message("2", "nowhere"), message("3")])
    assert [type(outcome) for outcome in outcomes] == [type(None), DuplicateId, QueueNotDeclared, type(None)]
    assert await browsed(server, "ready") == ["1", "3"]


async def test_ids_are_unique_over_all_queues_while_alive(server: InMemoryServer) -> None:
    async with consuming(server) as consumer:
        await server.publish([message("1")])
        [delivery] = await consumer.receive(1)
        assert isinstance((await server.publish([message("1", "r")]))[0], DuplicateId)
        await settle(consumer, delivery, DeadLetter("nacked"))
        assert await server.publish([message("1", "r")]) == [None]


async def test_a_payload_that_is_not_bytes_is_refused_with_its_whole_batch(server: InMemoryServer) -> None:
    bad = Envelope("2", "q", "text")  # type: ignore[arg-type]  # the mistake under test
    with pytest.raises(ConfigurationError, match=r"message '2' must be bytes, but is of type str"):
        await server.publish([message("1"), bad])
    async with consuming(server) as consumer:
        await server.publish([message("1")])
        [delivery] = await consumer.receive(1)
        with pytest.raises(ConfigurationError):
            await settle(consumer, delivery, ACK, bad)
    assert await server.counts("q") == Counts(leased=1)


async def test_declare_wants_several_names_not_one_word(server: InMemoryServer) -> None:
    with pytest.raises(ConfigurationError, match=r"declare\(\['jobs'\]\)"):
        await server.declare("jobs")


async def test_parameters_and_headers_travel_unchanged(server: InMemoryServer) -> None:
    sent = Envelope("1", "q", b"x", "text/plain", {"topic": "t"}, "r", Options(retries=3), {"key": object()})
    async with consuming(server) as consumer:
        await server.publish([sent])
        assert (await consumer.receive(1))[0].envelope == sent


async def test_a_message_that_waits_takes_little_more_memory_than_its_id_and_payload(server: InMemoryServer) -> None:
    def published() -> list[Envelope]:
        headers = {"topic": "t"}
        return [Envelope(id_, "q", b"%d" % number, None, headers) for number, id_ in enumerate(new_ids(10_000))]

    ids_and_payloads = 10_000 * (sys.getsizeof("x" * 32) + sys.getsizeof(b"1234"))
    tracemalloc.start()
    try:
        await server.publish(published())
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (held - ids_and_payloads) / 10_000 < 160


async def test_messages_of_large_and_mixed_batches_arrive_as_they_were_and_in_their_order(
    server: InMemoryServer,
) -> None:
    kinds: list[dict[str, Any]] = [{}, {"reply_to": "r"}, {"parameters": {"k": 1}}, {"content_type": "text/plain"}]
    alike = [Envelope(str(number), "q", b"x") for number in range(600)]
    mixed = [Envelope(str(600 + number), "q", b"y", **kinds[number % 4]) for number in range(600)]
    async with consuming(server) as consumer:
        await server.publish(alike + mixed)
        await server.publish([Envelope("last", "q", b"z")])
        shown = await server.browse("q", "ready", limit=2000)
        received = [delivery.envelope for delivery in await consumer.receive(2000)]
    assert received == [found.envelope for found in shown] == [*alike, *mixed, Envelope("last", "q", b"z")]
    assert len({found.key for found in shown}) == 1201


# Order


async def test_high_goes_first_and_each_class_is_first_in_first_out(server: InMemoryServer) -> None:
    low, high = PrioritiesT.LOW, PrioritiesT.HIGH
    async with consuming(server) as consumer:
        await server.publish(
            [
                message("l1", priority=low),
                message("m1", topic="a"),
                message("h1", priority=high),
                message("m2", topic="b"),
                message("h2", priority=high),
                message("m3", topic="a"),
            ]
        )
        assert await browsed(server, "ready") == ["h1", "h2", "m1", "m2", "m3", "l1"]
        assert ids(await now_ready(consumer)) == ["h1", "h2", "m1", "m2", "m3", "l1"]


async def test_nothing_starves_a_low_message_overtakes_what_came_ten_minutes_later(
    autojump_clock: MockClock, server: InMemoryServer
) -> None:
    async with consuming(server) as consumer:
        await server.publish([message("low", priority=PrioritiesT.LOW)])
        await trio.sleep(601)
        await server.publish([message("high", priority=PrioritiesT.HIGH)])
        assert ids(await now_ready(consumer)) == ["low", "high"]


async def test_order_holds_over_all_queues_of_a_consumer(server: InMemoryServer) -> None:
    await server.publish([message("1", "r"), message("2", "q"), message("3", "r")])
    async with server.consume({"q": None, "r": None}) as consumer:
        assert ids(await now_ready(consumer)) == ["1", "2", "3"]


async def test_a_released_message_goes_back_to_the_front_and_a_retried_one_to_the_end(
    autojump_clock: MockClock, server: InMemoryServer
) -> None:
    async with consuming(server) as consumer:
        await server.publish([message("1"), message("2"), message("3")])
        first, second = await consumer.receive(2)
        await trio.sleep(1)
        await consumer.settle([Settlement(first, Retry(0)), Settlement(second, Release())])
        assert ids(await now_ready(consumer)) == ["2", "3", "1"]


async def test_a_scheduled_message_ranks_by_the_moment_it_is_due(
    autojump_clock: MockClock, server: InMemoryServer
) -> None:
    async with consuming(server) as consumer:
        await server.publish([message("delayed", delay=2)])
        await trio.sleep(1)
        await server.publish([message("before")])
        await trio.sleep(2)
        await server.publish([message("after")])
        assert ids(await now_ready(consumer)) == ["before", "delayed", "after"]


# Topics


async def test_a_consumer_takes_its_topics_and_strays_but_not_what_another_takes(server: InMemoryServer) -> None:
    await server.publish([message("a", topic="a"), message("b", topic="b"), message("c", topic="c"), message("none")])
    async with consuming(server, frozenset("a")) as one:
        async with consuming(server, frozenset("b")):
            assert ids(await now_ready(one)) == ["a", "c", "none"]
        assert ids(await now_ready(one)) == ["b"]


async def test_where_somebody_takes_everything_there_are_no_strays(server: InMemoryServer) -> None:
    await server.publish([message("c", topic="c")])
    async with consuming(server, frozenset("a")) as one, consuming(server) as everything:
        assert await now_ready(one) == []
        assert ids(await now_ready(everything)) == ["c"]


async def test_at_most_limits_a_topic_inside_a_batch_and_zero_excludes_it(server: InMemoryServer) -> None:
    await server.publish([message(f"{topic}{n}", topic=topic) for n in range(3) for topic in "ab"])
    async with consuming(server) as consumer:
        assert ids(await consumer.receive(10, at_most={("q", "a"): 1}, max_wait=0)) == ["a0", "b0", "b1", "b2"]
        assert await consumer.receive(10, at_most={("q", "a"): 0}, max_wait=0) == []
        assert ids(await consumer.receive(10, at_most={("r", "a"): 0}, max_wait=0)) == ["a1", "a2"]


async def test_at_most_counts_over_the_priorities_of_a_topic(server: InMemoryServer) -> None:
    priorities = (PrioritiesT.LOW, PrioritiesT.HIGH, PrioritiesT.MEDIUM)
    await server.publish([message(p.name, topic="a", priority=p) for p in priorities])
    async with consuming(server) as consumer:
        assert ids(await consumer.receive(10, at_most={("q", "a"): 2})) == ["HIGH", "MEDIUM"]


async def test_a_queue_declared_anew_is_taken_by_the_consumers_that_were_open(server: InMemoryServer) -> None:
    async with consuming(server, frozenset("a")) as one, consuming(server, frozenset("b")) as other:
        await server.delete("q")
        assert await now_ready(one) == []
        await server.declare(["q"])
        await server.publish([message("b", topic="b")])
        assert await now_ready(one) == []
        assert ids(await now_ready(other)) == ["b"]


# Time to live


async def test_a_message_past_its_ttl_is_dead_and_never_handed_over(
    autojump_clock: MockClock, server: InMemoryServer
) -> None:
    async with consuming(server) as consumer:
        await server.publish([message("1", ttl=5), message("2"), message("3", ttl=5, delay=1), message("4", ttl=9)])
        await trio.sleep(5)
        assert [(d.envelope.id, d.ttl_left) for d in await now_ready(consumer)] == [("2", None), ("4", 4), ("3", 1)]
        [dead] = await server.browse("q", "dead")
        assert (dead.envelope.id, dead.reason) == ("1", "expired")


@pytest.mark.parametrize("disposition", [Release(), Release(3), Release(unrouted=True)])
async def test_coming_back_does_not_renew_a_ttl(
    autojump_clock: MockClock, server: InMemoryServer, disposition: Disposition
) -> None:
    async with consuming(server) as consumer:
        await server.publish([message("1", ttl=5), message("2", ttl=5)])
        early, late = await consumer.receive(2)
        await trio.sleep(4)
        await settle(consumer, early, disposition)
        await trio.sleep(2)
        await settle(consumer, late, disposition)
        assert await server.counts("q") == Counts(dead=2)
        assert {dead.reason for dead in await server.browse("q", "dead")} == {"expired"}


async def test_an_expired_id_is_free_and_its_lane_is_forgotten(
    autojump_clock: MockClock, server: InMemoryServer
) -> None:
    async with consuming(server) as consumer:
        await server.publish([message("1", ttl=5)])
        await trio.sleep(5)
        assert await server.publish([message("1")]) == [None]
        assert ids(await now_ready(consumer)) == ["1"]
        assert await server.counts("q") == Counts(leased=1, dead=1)


async def test_many_settled_messages_with_a_long_ttl_leave_nothing_behind(server: InMemoryServer) -> None:
    async with consuming(server) as consumer:
        for _ in range(40):
            await server.publish([message(str(n), ttl=1e6) for n in range(100)])
            await consumer.settle([Settlement(d, ACK) for d in await consumer.receive(100)])
    assert len(driver_of(server).store._expiring) <= 1024


# Settling


async def test_retry_uses_an_attempt_and_release_does_not(autojump_clock: MockClock, server: InMemoryServer) -> None:
    async with consuming(server) as consumer:
        await server.publish([message("1")])
        said: list[tuple[Disposition, int]] = [(Release(), 1), (Retry(1), 2), (Release(2), 2), (Retry(0), 3)]
        for disposition, attempt in said:
            [delivery] = await consumer.receive(1)
            assert await settle(consumer, delivery, disposition) == SETTLED
            [delivery] = await consumer.receive(1)
            assert (delivery.attempt, delivery.lost) == (attempt, 0)
            await settle(consumer, delivery, Release())


async def test_the_age_of_an_unrouted_message_counts_from_the_first_pass(
    autojump_clock: MockClock, server: InMemoryServer
) -> None:
    async with consuming(server) as consumer:
        await server.publish([message("1")])
        [delivery] = await consumer.receive(1)
        assert delivery.unrouted_age is None
        await settle(consumer, delivery, Release(1, unrouted=True))
        [delivery] = await consumer.receive(1)
        assert delivery.unrouted_age == 1
        await settle(consumer, delivery, Release(2, unrouted=True))
        assert (await consumer.receive(1))[0].unrouted_age == 3


async def test_a_dead_letter_keeps_reason_failure_and_counters(server: InMemoryServer) -> None:
    failure = Failure("ValueError", "no")
    async with consuming(server) as consumer:
        await server.publish([message("1")])
        await settle(consumer, (await consumer.receive(1))[0], Retry(0))
        await settle(consumer, (await consumer.receive(1))[0], DeadLetter("failed", failure))
    [dead] = await server.browse("q", "dead")
    assert (dead.reason, dead.failure, dead.attempt, dead.due_in) == ("failed", failure, 2, None)


async def test_a_late_verdict_is_refused_and_its_outbox_is_not_published(server: InMemoryServer) -> None:
    async with consuming(server) as consumer:
        await server.publish([message("1"), message("2")])
        one, two = await consumer.receive(2)
        await settle(consumer, one, Release())
        verdicts = await consumer.settle([Settlement(one, ACK, (message("out"),)), Settlement(two, ACK)])
        assert verdicts == [REFUSED, SETTLED]
        assert await server.counts("q") == Counts(ready=1)


async def test_an_outbox_declares_queues_drops_duplicates_and_may_reuse_the_settled_id(server: InMemoryServer) -> None:
    async with consuming(server) as consumer:
        await server.publish([message("1"), message("alive")])
        delivery, _ = await consumer.receive(2)
        verdict = await settle(consumer, delivery, ACK, message("alive"), message("1"), message("2", "new"))
        assert verdict == Verdict("settled", 1)
        assert await browsed(server, "ready") == ["1"]
        assert await server.counts("new") == Counts(ready=1)


async def test_settling_works_after_the_consumer_left(server: InMemoryServer) -> None:
    async with consuming(server) as consumer:
        await server.publish([message("1")])
        [delivery] = await consumer.receive(1)
    assert await consumer.extend([delivery]) == [True]
    assert await settle(consumer, delivery, ACK) == SETTLED
    with pytest.raises(UsageError, match="closed"):
        await consumer.receive(1)


# Leases


async def test_receive_never_rescues_and_rescue_only_what_has_ended(
    autojump_clock: MockClock, server: InMemoryServer
) -> None:
    async with consuming(server) as consumer:
        await server.publish([message("1")])
        [delivery] = await consumer.receive(1)
        await trio.sleep(59)
        assert await consumer.rescue() == 0
        await trio.sleep(1)
        assert await now_ready(consumer) == []
        assert await consumer.rescue() == 1
        [again] = await now_ready(consumer)
        assert (again.attempt, again.lost) == (1, 1)
        assert await settle(consumer, delivery, ACK) == REFUSED
        assert await consumer.extend([delivery, again]) == [False, True]


async def test_extending_starts_the_lease_anew_even_when_it_has_ended(
    autojump_clock: MockClock, server: InMemoryServer
) -> None:
    async with consuming(server) as consumer:
        await server.publish([message("1"), message("2")])
        one, _ = await consumer.receive(2)
        await trio.sleep(100)
        assert await consumer.extend([one]) == [True]
        assert await consumer.rescue() == 1
        assert await browsed(server, "leased") == ["1"]


async def test_a_message_lost_ten_times_is_poison(autojump_clock: MockClock, server: InMemoryServer) -> None:
    async with consuming(server) as consumer:
        await server.publish([message("1")])
        for lost in range(10):
            assert [d.lost for d in await consumer.receive(1)] == [lost]
            await trio.sleep(60)
            assert await consumer.rescue() == 1
    [dead] = await server.browse("q", "dead")
    assert (dead.reason, dead.lost) == ("poison", 10)


# Looking and clearing


async def test_browse_keeps_its_limit_and_the_order_of_handling(
    autojump_clock: MockClock, server: InMemoryServer
) -> None:
    async with consuming(server) as consumer:
        await server.publish([message("late", delay=9), message("soon", delay=3), message("a"), message("b")])
        assert [(f.envelope.id, f.due_in) for f in await server.browse("q", "scheduled", limit=1)] == [("soon", 3)]
        assert len(await server.browse("q", "ready", limit=1)) == 1
        await consumer.receive(1)
        await trio.sleep(1)
        assert [(f.envelope.id, f.due_in) for f in await server.browse("q", "leased")] == [("a", 59)]


async def test_flush_removes_what_is_ready_or_scheduled_only(autojump_clock: MockClock, server: InMemoryServer) -> None:
    async with consuming(server) as consumer:
        await server.publish([message("dead"), message("leased")])
        dead, leased = await consumer.receive(2)
        await settle(consumer, dead, DeadLetter("nacked"))
        await server.publish([message("1"), message("2", delay=5), message("3", ttl=5), message("other", "r", delay=5)])
        assert await server.flush("q") == 3
        assert await server.counts("q") == Counts(leased=1, dead=1)
        assert await server.counts("r") == Counts(scheduled=1)
        assert await server.publish([message("1"), message("2"), message("3")]) == [None] * 3
        assert await settle(consumer, leased, ACK) == SETTLED


async def test_delete_takes_everything_and_late_verdicts_are_refused(
    autojump_clock: MockClock, server: InMemoryServer
) -> None:
    async with consuming(server) as consumer:
        await server.publish([message("1"), message("2", delay=5), message("3", ttl=1)])
        [delivery] = await consumer.receive(1)
        await server.delete("q")
        await server.delete("q")
        assert await settle(consumer, delivery, ACK) == REFUSED
        with pytest.raises(QueueNotDeclared):
            await server.counts("q")
        await server.declare(["q"])
        await trio.sleep(9)
        assert await server.counts("q") == Counts()
        assert await server.publish([message("1")]) == [None]
        assert await settle(consumer, delivery, ACK) == REFUSED


async def test_reviving_makes_a_new_message_unless_its_id_is_alive(
    autojump_clock: MockClock, server: InMemoryServer
) -> None:
    async with consuming(server) as consumer:
        for _ in range(2):
            await server.publish([message("1", ttl=5)])
            await settle(consumer, (await consumer.receive(1))[0], Retry(0))
            await settle(consumer, (await consumer.receive(1))[0], DeadLetter("failed"))
        first, second = await server.browse("q", "dead")
        answers = await server.revive("q", [second.key, first.key, "999"])
        assert [type(answer) for answer in answers] == [type(None), DuplicateId, BrokerRefused]
        [delivery] = await consumer.receive(1)
        assert (delivery.attempt, delivery.lost, delivery.ttl_left) == (1, 0, 5)
        await settle(consumer, delivery, ACK)
        assert await server.revive("q") == [None]


@pytest.mark.parametrize("key", ["1" * 5000, str(2**63), "-1", "\u0661", ""])
async def test_what_is_no_key_finds_no_dead_message(server: InMemoryServer, key: str) -> None:
    await server.publish([message("1")])
    async with consuming(server) as consumer:
        await settle(consumer, (await consumer.receive(1))[0], DeadLetter("failed"))
    [answer] = await server.revive("q", [key])
    assert isinstance(answer, BrokerRefused)
    assert await server.delete_messages("q", [key]) == 0
    assert await server.browse("q", "dead", after=key) == []
    assert await server.counts("q") == Counts(dead=1)


@pytest.mark.parametrize("delay", [0, 1])
async def test_what_waits_outlasts_the_sweeping_out_of_those_that_were_cancelled(
    autojump_clock: MockClock, server: InMemoryServer, delay: float
) -> None:
    """Those that are fresh, and those that came back after a delay."""
    total, left = 2600, 10  # a sweep begins at more than a thousand that are gone, and half of all
    await server.publish([message(str(n), delay=delay) for n in range(total)])
    await trio.sleep(2)
    for n in range(total - left):
        await server.cancel(str(n))
    assert await server.counts("q") == Counts(ready=left)
    async with consuming(server) as consumer:
        assert ids(await now_ready(consumer)) == [str(n) for n in range(total - left, total)]
