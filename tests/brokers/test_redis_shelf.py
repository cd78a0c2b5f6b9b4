"""The scripts carry out the rules for stored messages: what they decide is what the rules say."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import pytest
from engines.redis import Redis
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from repid.brokers.redis import layout, scripts, settling
from repid.brokers.redis.layout import MICRO, STATES, keys_of, micros, takes_of, to_argument, to_entries, to_failure
from repid.delivery import SUSPECT_FROM, DeadLetter, Delivery, Disposition, Release, Retry, Settlement
from repid.delivery.shelf import Stored, is_stray, takes
from repid.envelope import NO_OPTIONS, Envelope, Options
from repid.ports import Topics

from .test_engines_and_shelf import LEASE_TIMEOUT as LEASE
from .test_engines_and_shelf import TOPICS, Rules, Seen, live_result_is_none, same, steps, take, topics
from .test_engines_and_shelf import options as any_options

NONCE = b"0123456789abcdef"
START = 1_000_000_000
"""When time begins for the scripts, in seconds since 1970."""

PREFIX = "shelf"
KEYS = dict(zip(layout.NAMES, keys_of(PREFIX), strict=True))


class InRedis:
    """The scripts, called one by one, on a clock that stands still until time is passed by order."""

    def __init__(self, redis: Redis, stack: ExitStack) -> None:
        self._ask = stack.enter_context(redis.connected())
        self._ask("DEL", *KEYS.values())
        self._known: dict[str, bytes] = {}
        self.passed = 0.0
        self.lease_: bytes = b""
        self.execute = self._ask
        self.do("declare", [b"q"])
        self.open("c", None)

    def do(self, name: str, argument: Any, *more: bytes) -> Any:
        return self.run(name, to_argument(argument), *more)

    def run(self, name: str, *arguments: bytes) -> Any:
        time = to_argument(divmod(START * MICRO + micros(self.passed), MICRO))
        script = scripts.script(name)
        keys = [KEYS[layout.NAMES[place]] for place in script.keys]
        if name not in self._known:
            text = script.text.decode()
            text = text.replace("call('TIME')\n", "cmsgpack.unpack(table.remove(ARGV))\n")
            self._known[name] = self._ask("SCRIPT", "LOAD", text)
        sha = self._known[name]
        return self._ask("EVALSHA", sha, len(keys), *keys, *arguments, time)

    def open(self, consumer: str, wanted: Topics) -> None:
        fields = [
            field
            for prefix, _, lanes in takes_of({"q": wanted})
            for field in ([prefix] if isinstance(lanes, bool) else lanes)
        ]
        assert self.do("subscribe", (consumer, micros(1e6), False, fields), self.blob(wanted)) == b""

    def blob(self, wanted: Topics) -> bytes:
        return to_argument(("channel", takes_of({"q": wanted})))

    def claim(self, consumer: str, wanted: Topics, limit: int) -> list[bytes]:
        """Leases and records, in turns."""
        request: tuple[Any, ...] = (
            consumer,
            limit,
            micros(LEASE),
            NONCE,
            True,
            float("inf"),
            float("inf"),
            b"w",
            [],
            [],
            b"",
            True,
        )
        _, _, _, *found = self.do("claim", request, self.blob(wanted))
        if found:
            self.lease_ = found[0]
        return list(found)

    def pass_time(self, seconds: float) -> None:
        self.passed += seconds
        self.do("counts", [b"q"])

    def publish(self, given_options: Options) -> None:
        assert self.run("publish", *to_entries([Envelope("m", "q", b"", options=given_options)])) == b"a"

    def lease(self) -> bool:
        return bool(self.claim("c", None, 1))

    def start(self) -> None:
        self.do("report", [(self.lease_, False)])

    def settle(self, disposition: Disposition, *, survived: bool) -> None:
        delivery = Delivery(Envelope("m", "q", b""), 1, 0, self.lease_)
        [(is_plain, batch)] = settling.batches_of([Settlement(delivery, disposition, survived=survived)], 1)
        if is_plain:
            assert self.do("ack", *settling.pack_acks(batch)) == b"1"
        else:
            assert self.do("settle", [*map(settling.pack_settlement, batch)]) == [0]

    def lose(self) -> None:
        self.passed += LEASE
        assert self.do("rescue", 100) == 1

    def cancel(self) -> None:
        self.do("cancel", [b"tm"])

    def revive(self) -> None:
        self.do("revive", (b"q", self.do("dead_keys", (b"q", False, 10))))

    def look(self) -> Seen:
        _, [found, *_] = self.do("find", [b"tm"]) if self._ask("HLEN", KEYS["messages"]) else (0, [None])
        if found is not None and found[0] != b"dead":
            category, _, _, due, record, *_ = found
            place = {b"ready": "ready", b"leased": "leased"}.get(category, self.seconds(due))
            stored = self.read(record)
            if category == b"ready":
                own = "suspects" if stored.lost >= SUSPECT_FROM else "ready"
                assert self._ask("ZCARD", KEYS[own]) == 1
            return Seen(place, stored)
        result = self._ask("HGET", KEYS["results"], b"tm")
        state = None if result is None else STATES[result[16] - 1]
        letters = self._ask("HVALS", KEYS["letters"])
        if not letters:
            return Seen(None, None, result=state)
        letter = layout.to_letter(letters[-1])
        failure, lost = to_failure(letter.failure), layout.to_record(letter.id, letter.record).lost
        return Seen(None, None, letter.reason, None if failure is None else failure.type, lost, state)  # type: ignore[arg-type]

    def read(self, record: bytes) -> Stored[float]:
        found = layout.to_record(b"tm", record)
        _, attempt, lost, rank, _, _, offset, _, _ = layout._HEAD.unpack_from(record)
        return Stored(
            rank=self.seconds(rank),
            offset=offset / MICRO,
            attempt=attempt,
            lost=lost,
            expires_at=None if found.expires_at is None else self.seconds(found.expires_at),
            unrouted_at=None if found.unrouted_at is None else self.seconds(found.unrouted_at),
            is_cancelled=bool(self._ask("HEXISTS", KEYS["extras"], b"ktm")),
        )

    def seconds(self, moment: int) -> float:
        return (moment - START * MICRO) / MICRO


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@example(given_options=Options(ttl=100.0), taken=[("settle", Retry(10.0), False), ("pass", 200.0)])
@example(
    given_options=NO_OPTIONS,
    taken=[("settle", Release(0.0, unrouted=True), False), ("settle", DeadLetter("failed"), False), ("revive",)],
)
@given(given_options=any_options, taken=st.lists(steps, max_size=20))
def test_a_message_goes_where_the_rules_say_in_redis_too(
    redis: Redis, given_options: Options, taken: Sequence[tuple[object, ...]]
) -> None:
    with ExitStack() as stack:
        rules, engine = Rules(), InRedis(redis, stack)
        for each in (rules, engine):
            each.publish(given_options)
        assert same(live_result_is_none(engine.look()), rules.look())
        for step in taken:
            leased = rules.look().place == "leased"
            if not leased and step[0] in {"settle", "lose", "start"}:
                leased = rules.lease()
                assert engine.lease() is leased
            for each in (rules, engine):
                take(each, step, leased=leased)
            assert same(live_result_is_none(engine.look()), rules.look()), step


def test_ten_lost_leases_are_poison_in_redis_too(redis: Redis) -> None:
    with ExitStack() as stack:
        engine = InRedis(redis, stack)
        engine.publish(NO_OPTIONS)
        for _ in range(10):
            assert engine.lease()
            engine.lose()
        assert engine.look() == Seen(None, None, "poison", "WorkerLost", 10, "dead")


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(mine=topics, others=st.lists(topics, max_size=3))
def test_a_consumer_of_redis_is_given_what_fits_it(redis: Redis, mine: Topics, others: Sequence[Topics]) -> None:
    published = [Envelope(str(topic), "q", b"", headers={} if topic is None else {"topic": topic}) for topic in TOPICS]
    fitting = {str(topic) for topic in TOPICS if takes(mine, topic) or is_stray(topic, [mine, *others])}
    with ExitStack() as stack:
        engine = InRedis(redis, stack)
        engine.do("unsubscribe", (b"c", b""))
        for number, each in enumerate((mine, *others)):
            engine.open(str(number), each)
        engine.run("publish", *to_entries(published))
        found = engine.claim("0", mine, 9)
        assert {lease.rpartition(b"t")[2].decode() for lease in found[::2]} == fitting


@pytest.mark.parametrize("sleeps", [False, True])
def test_a_message_published_alone_is_stored_as_the_longer_way_stores_it(redis: Redis, *, sleeps: bool) -> None:
    """The longer way is taken where any queue is bounded."""
    stored = []
    for bounds in (b"", struct.pack(">QQB", 5, 0, 0)):
        with ExitStack() as stack:
            engine = InRedis(redis, stack)
            engine.do("set_bounds", [(b"other", bounds)])
            engine.do("store_results", [(b"tm", 1, b"", b"", micros(60))])
            if sleeps:
                assert engine.claim("c", None, 1) == []
            answers = [
                engine.run("publish", *to_entries([Envelope(id_, queue, b"{}", headers=headers)]))
                for id_, queue, headers in (
                    ("m", "q", {}),
                    ("m", "q", {}),
                    ("n", "q", {"topic": "t", "x": "y"}),
                    ("o", "unknown", {}),
                )
            ]
            assert engine.execute("EXISTS", KEYS["results"], KEYS["result-expiries"], KEYS["bounds"]) == bool(bounds)
            messages, ready = (
                engine.execute("HGETALL", KEYS["messages"]),
                engine.execute("ZRANGE", KEYS["ready"], 0, -1),
            )
            sleepers = engine.execute("HKEYS", KEYS["sleepers"])
            assert sleepers == []  # nobody listens to the channel of the one that slept, so it was only removed
            stored.append([answers, messages, ready])
    assert stored[0] == stored[1]
    assert stored[0][0] == [b"a", b"d", b"a", b"q"]
