"""Both engines carry out the rules for stored messages: what they decide themselves is what the rules say."""

from __future__ import annotations

import itertools
import sqlite3
import weakref
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from repid.brokers.memory import store as memory
from repid.brokers.memory import tending
from repid.brokers.memory.record import Lease, Nowhere, Subscription, as_stored
from repid.brokers.shared.packing import to_failure
from repid.brokers.sqlite import claiming, publishing, rows, schema, settling, views
from repid.brokers.sqlite import store as sqlite
from repid.brokers.sqlite.clock import MICRO, Clock, micros
from repid.brokers.sqlite.shelving import read
from repid.delivery import (
    SUSPECT_FROM,
    Ack,
    Cancel,
    DeadLetter,
    Delivery,
    Disposition,
    Failure,
    NewResult,
    Reason,
    Release,
    Retry,
    Settlement,
)
from repid.delivery.shelf import (
    EXPIRED,
    Shelved,
    Stored,
    after_cancellation_request,
    after_lost_lease,
    after_publishing,
    after_reviving,
    after_start,
    after_verdict,
    has_expired,
    is_stray,
    result_of_end,
    takes,
)
from repid.envelope import NO_OPTIONS, Envelope, Options, PrioritiesT
from repid.ports import ANYTHING, Topics

T = TypeVar("T")

LEASE_TIMEOUT = 60.0
FAILURE = Failure("ValueError", "no")


class Seen(msgspec.Struct, frozen=True):
    """A message as it stands. `place`: "ready", "leased", the time when it is due, or None once it has ended."""

    place: str | float | None
    stored: Stored[float] | None
    reason: Reason | None = None
    failure: str | None = None
    lost: int = 0
    result: str | None = None


class Engine(Protocol):
    def pass_time(self, seconds: float) -> None: ...
    def publish(self, options: Options) -> None: ...
    def lease(self) -> bool: ...
    def start(self) -> None: ...
    def settle(self, disposition: Disposition, *, survived: bool) -> None: ...
    def lose(self) -> None: ...
    def cancel(self) -> None: ...
    def revive(self) -> None: ...
    def look(self) -> Seen: ...


class Rules:
    """One message that goes where the rules say."""

    def __init__(self) -> None:
        self.now = 0.0
        self.options = NO_OPTIONS
        self.stored: Stored[float] | None = None
        self.seen = Seen(None, None)

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        place, stored = self.seen.place, self.stored
        if stored is None or place == "leased":
            return
        if has_expired(stored.expires_at, self.now):
            self._put(Shelved(stored, end=EXPIRED))
        elif isinstance(place, float) and place <= self.now:
            self._put(Shelved(stored))

    def publish(self, options: Options) -> None:
        self.options = options
        self._put(after_publishing(options, self.now, float))

    def revive(self) -> None:
        if self.seen.reason is not None and self.stored is None:
            self._put(after_reviving(self.options, self.now, float))

    def lease(self) -> bool:
        if self.seen.place != "ready":
            return False
        self.seen = msgspec.structs.replace(self.seen, place="leased")
        return True

    def start(self) -> None:
        if self.stored is not None:
            self.stored = after_start(self.stored)
            self.seen = msgspec.structs.replace(self.seen, stored=self.stored)

    def settle(self, disposition: Disposition, *, survived: bool) -> None:
        assert self.stored is not None
        self._put(after_verdict(self.stored, disposition, self.now, float, survived=survived))

    def lose(self) -> None:
        self.now += LEASE_TIMEOUT
        assert self.stored is not None
        self._put(after_lost_lease(self.stored, self.now, lambda _: Failure("WorkerLost", "")))

    def cancel(self) -> None:
        if self.stored is None:
            return
        leased = self.seen.place == "leased"
        shelved = after_cancellation_request(self.stored, leased=leased)
        if leased:
            self.stored = shelved.stored
            self.seen = msgspec.structs.replace(self.seen, stored=self.stored)
        else:
            self._put(shelved)

    def look(self) -> Seen:
        return self.seen

    def _put(self, shelved: Shelved[float]) -> None:
        stored, end = shelved.stored, shelved.end
        if end is None:
            self.stored = stored
            self.seen = Seen("ready" if shelved.due is None else shelved.due, stored)
            return
        result = result_of_end("m", self.options, end)
        self.stored = None
        failure = None if end.failure is None else end.failure.type
        dead_lost = stored.lost if end.reason is not None else 0
        self.seen = Seen(None, None, end.reason, failure, dead_lost, None if result is None else result.state)


class InMemory:
    def __init__(self) -> None:
        self.now = 0.0
        self.store = memory.Store(LEASE_TIMEOUT)
        self.store.directory.declare(["q"])
        self.consumer = Subscription({"q": None})
        self.store.directory.open(self.consumer)
        self.delivery: Delivery | None = None

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self.store.advance(self.now)

    def publish(self, options: Options) -> None:
        assert self.store.publish([Envelope("m", "q", b"", options=options)], self.now) == [None]

    def lease(self) -> bool:
        found = self.store.receive(self.consumer, 1, ANYTHING, self.now)
        self.delivery = found[0] if found else None
        return bool(found)

    def start(self) -> None:
        assert self.delivery is not None
        self.store.report([(self.delivery, None)], self.now)

    def settle(self, disposition: Disposition, *, survived: bool) -> None:
        assert self.delivery is not None
        settlement = Settlement(self.delivery, disposition, survived=survived)
        assert self.store.settle([settlement], self.now)[0].accepted

    def lose(self) -> None:
        self.now += LEASE_TIMEOUT
        assert self.store.rescue(self.now) == 1

    def cancel(self) -> None:
        self.store.cancel("m", self.now)

    def revive(self) -> None:
        tending.revive(self.store, "q", None, self.now)

    def look(self) -> Seen:
        record = self.store.find("m")
        if record is not None:
            place = record.place
            word = "leased" if isinstance(place, Lease) else "ready" if place is None else place
            assert not isinstance(word, Nowhere)
            return Seen(word, as_stored(record))
        dead, kept = self.store.dead.last("m"), self.store.results.find("m", self.now)
        result = None if kept is None else kept.result.state
        if dead is None:
            return Seen(None, None, result=result)
        failure = None if dead.failure is None else dead.failure.type
        return Seen(None, None, dead.reason, failure, dead.lost, result)


class StillClock(Clock):
    """A clock that stands still until time is passed by order."""

    def __init__(self) -> None:
        super().__init__()
        self.passed = 0

    def wall(self) -> int:
        return micros(1e9) + self.passed

    def boot(self) -> int:
        return MICRO + self.passed


class InSQLite:
    def __init__(self) -> None:
        self.connection = sqlite3.connect(":memory:", isolation_level=None)
        weakref.finalize(self, self.connection.close)
        schema.migrate(self.connection, ":memory:")
        self.clock = StillClock()
        self.start_of_time = self.clock.wall()
        self.store = sqlite.Store(self.connection, self.clock, micros(LEASE_TIMEOUT))
        self.do(lambda: self.store.directory.declare(["q"]))
        self.consumer = self.do(lambda: self.store.open({"q": None}))
        self.delivery: Delivery | None = None

    def do(self, operation: Callable[[], T]) -> T:
        self.connection.execute("BEGIN IMMEDIATE")
        self.store.look()
        self.store.advance()
        answer = operation()
        self.connection.execute("COMMIT")
        self.store.committed()
        return answer

    def pass_time(self, seconds: float) -> None:
        self.clock.passed += micros(seconds)
        self.do(lambda: None)

    def publish(self, options: Options) -> None:
        envelopes = [Envelope("m", "q", b"", options=options)]
        assert self.do(lambda: publishing.publish(self.store, envelopes, rows.to_bodies(envelopes))) == [None]

    def lease(self) -> bool:
        found = self.do(lambda: claiming.claim(self.store, self.consumer, 1, ANYTHING))
        self.delivery = found[0] if found else None
        return bool(found)

    def start(self) -> None:
        assert self.delivery is not None
        token = self.delivery.token
        self.do(lambda: claiming.report(self.store, [(token, None)]))

    def settle(self, disposition: Disposition, *, survived: bool) -> None:
        assert self.delivery is not None
        settlement = Settlement(self.delivery, disposition, survived=survived)
        assert self.do(lambda: settling.settle(self.store, [settlement], [()]))[0].accepted

    def lose(self) -> None:
        self.clock.passed += micros(LEASE_TIMEOUT)
        assert self.do(lambda: claiming.rescue(self.store)) == 1

    def cancel(self) -> None:
        self.do(lambda: views.cancel(self.store, "m"))

    def revive(self) -> None:
        dead = [key for (key,) in self.connection.execute("SELECT key FROM dead")]
        self.do(lambda: publishing.revive(self.store, "q", dead))

    def look(self) -> Seen:
        execute = self.connection.execute
        row = execute("SELECT seq, due FROM message").fetchone()
        if row is not None:
            seq, due = row
            leased = execute("SELECT cancelling FROM lease WHERE seq = ?", (seq,)).fetchone()
            stored = self.read(seq, is_cancelled=bool(leased and leased[0]))
            ready = execute("SELECT 1 FROM ready WHERE seq = ?", (seq,)).fetchone()
            place = "leased" if leased else "ready" if ready else self.seconds(due)
            if ready:
                self._check_lane(seq, stored)
            return Seen(place, self.in_seconds(stored))
        result = execute("SELECT state FROM result").fetchone()
        dead = execute("SELECT reason, failure, lost FROM dead").fetchone()
        state = None if result is None else result[0]
        if dead is None:
            return Seen(None, None, result=state)
        failure = to_failure(dead[1])
        return Seen(None, None, dead[0], None if failure is None else failure.type, dead[2], state)

    def read(self, seq: int, *, is_cancelled: bool) -> Stored[int]:
        found = read(self.store, seq, is_cancelled=is_cancelled)
        assert found is not None
        return found[0]

    def _check_lane(self, seq: int, stored: Stored[int]) -> None:
        """It is among the suspects if it is one, and at its rank."""
        lane, rank = self.connection.execute("SELECT lane, rank FROM ready WHERE seq = ?", (seq,)).fetchone()
        assert self.store.directory.lanes[lane].suspects is (stored.lost >= SUSPECT_FROM)
        assert rank == stored.rank

    def seconds(self, moment: int) -> float:
        return (moment - self.start_of_time) / MICRO

    def in_seconds(self, stored: Stored[int]) -> Stored[float]:
        def moment(time: int | None) -> float | None:
            return None if time is None else self.seconds(time)

        expires_at = stored.expires_at
        return Stored(
            rank=self.seconds(stored.rank),
            offset=stored.offset / MICRO,
            attempt=stored.attempt,
            lost=stored.lost,
            expires_at=moment(expires_at),
            unrouted_at=moment(stored.unrouted_at),
            is_cancelled=stored.is_cancelled,
        )


durations = st.sampled_from([0.0, 1.0, 10.0, 59.0, 200.0])
options = st.just(NO_OPTIONS) | st.builds(
    Options,
    priority=st.none() | st.sampled_from(PrioritiesT),
    delay=st.none() | durations,
    ttl=st.none() | st.sampled_from([1.0, 10.0, 100.0]),
    store_result=st.none() | st.booleans(),
)
verdicts: st.SearchStrategy[Disposition] = st.one_of(
    st.sampled_from([Ack(), Ack(FAILURE), Cancel(), DeadLetter("nacked"), DeadLetter("failed", FAILURE)]),
    st.builds(Retry, durations, st.sampled_from([None, FAILURE])),
    st.builds(Release, durations, st.booleans(), st.booleans()),
)
again: st.SearchStrategy[Disposition] = st.one_of(st.builds(Retry, durations), st.builds(Release, durations))
steps = st.one_of(
    st.tuples(st.just("pass"), durations),
    st.tuples(st.just("settle"), verdicts | again, st.booleans()),
    st.tuples(st.just("lose")),
    st.tuples(st.just("lose")),
    st.tuples(st.just("start")),
    st.tuples(st.just("cancel")),
    st.tuples(st.just("revive")),
)


def take(engine: Engine, step: tuple[object, ...], *, leased: bool) -> None:
    match step:
        case ("pass", float(seconds)):
            engine.pass_time(seconds)
        case ("settle", disposition, bool(survived)) if leased:
            engine.settle(disposition, survived=survived)  # type: ignore[arg-type]  # drawn from `verdicts`
        case ("lose",) if leased:
            engine.lose()
        case ("start",) if leased:
            engine.start()
        case ("cancel",):
            engine.cancel()
        case ("revive",):
            engine.revive()


def live_result_is_none(seen: Seen) -> Seen:
    """What is stored under the id of a live message says nothing of it."""
    return seen if seen.place is None else msgspec.structs.replace(seen, result=None)


def same(engine: Seen, rules: Seen) -> bool:
    """SQLite notes an expiry during a lease as the time 0."""
    if engine.stored is None or rules.stored is None or engine.stored.expires_at is None:
        return engine == rules
    if engine.stored.expires_at >= 0:
        return engine == rules
    stored = msgspec.structs.replace(engine.stored, expires_at=rules.stored.expires_at)
    return rules.stored.expires_at is not None and msgspec.structs.replace(engine, stored=stored) == rules


@pytest.mark.parametrize("make_engine", [InMemory, InSQLite])
@settings(max_examples=150, deadline=None)
@given(given_options=options, taken=st.lists(steps, max_size=25))
def test_a_message_goes_where_the_rules_say(
    make_engine: Callable[[], Engine], given_options: Options, taken: Sequence[tuple[object, ...]]
) -> None:
    rules, engine = Rules(), make_engine()
    for each in (rules, engine):
        each.publish(given_options)
    assert same(live_result_is_none(engine.look()), rules.look())
    for step in taken:
        leased = rules.look().place == "leased"
        if not leased and step[0] in {"settle", "lose", "start"}:
            leased = rules.lease()
            assert engine.lease() is leased
        assert same(live_result_is_none(engine.look()), rules.look())
        for each in (rules, engine):
            take(each, step, leased=leased)
        assert same(live_result_is_none(engine.look()), rules.look()), step


@pytest.mark.parametrize("make_engine", [InMemory, InSQLite])
def test_ten_lost_leases_are_poison(make_engine: Callable[[], Engine]) -> None:
    engine = make_engine()
    engine.publish(NO_OPTIONS)
    for _ in range(10):
        assert engine.lease()
        engine.lose()
    assert engine.look() == Seen(None, None, "poison", "WorkerLost", 10, "dead")


def test_what_a_result_says_of_an_end_is_what_a_verdict_would_say() -> None:
    assert result_of_end("m", NO_OPTIONS, EXPIRED) == NewResult(id="m", state="expired")
    assert result_of_end("m", Options(store_result=False), EXPIRED) is None
    ttl = result_of_end("m", Options(result_ttl=float("nan")), EXPIRED)
    assert ttl is not None
    assert ttl.ttl == NewResult(id="m", state="expired").ttl


TOPICS = (None, "a", "b", "c")
topics = st.none() | st.frozensets(st.sampled_from("abc"), max_size=3)


@settings(max_examples=100, deadline=None)
@given(mine=topics, others=st.lists(topics, max_size=3))
def test_a_consumer_is_given_what_fits_it(mine: Topics, others: Sequence[Topics]) -> None:
    published = [Envelope(str(topic), "q", b"", headers={} if topic is None else {"topic": topic}) for topic in TOPICS]
    fitting = {str(topic) for topic in TOPICS if takes(mine, topic) or is_stray(topic, [mine, *others])}
    in_memory, in_sqlite = InMemory(), InSQLite()

    store = in_memory.store
    store.directory.close(in_memory.consumer)
    consumers = [Subscription({"q": each}) for each in (mine, *others)]
    for consumer in consumers:
        store.directory.open(consumer)
    store.publish(published, 0.0)
    assert {found.envelope.id for found in store.receive(consumers[0], 9, ANYTHING, 0.0)} == fitting

    file, do = in_sqlite.store, in_sqlite.do
    file.close([in_sqlite.consumer])
    in_sqlite.pass_time(1.0)
    first, *_ = [do(lambda each=each: file.open({"q": each})) for each in (mine, *others)]  # type: ignore[misc]  # a default
    do(lambda: publishing.publish(file, published, rows.to_bodies(published)))
    assert {found.envelope.id for found in do(lambda: claiming.claim(file, first, 9, ANYTHING))} == fitting


@settings(max_examples=60, deadline=None)
@given(batch=st.lists(options, min_size=1, max_size=30))
def test_a_batch_goes_where_each_of_it_would_go_alone(batch: Sequence[Options]) -> None:
    envelopes = [Envelope(str(number), "q", b"", options=each) for number, each in enumerate(batch)]
    expected = [after_publishing(each, 0.0, float) for each in batch]
    in_memory, in_sqlite = InMemory(), InSQLite()
    in_memory.store.publish(envelopes, 0.0)
    in_sqlite.do(lambda: publishing.publish(in_sqlite.store, envelopes, rows.to_bodies(envelopes)))
    found = in_sqlite.connection.execute("SELECT seq, due FROM message ORDER BY seq").fetchall()
    for envelope, shelved, (seq, due) in itertools.zip_longest(envelopes, expected, found):
        record = in_memory.store.find(envelope.id)
        assert record is not None
        assert (as_stored(record), record.place) == (shelved.stored, shelved.due)
        stored = in_sqlite.in_seconds(in_sqlite.read(seq, is_cancelled=False))
        assert (stored, None if due is None else in_sqlite.seconds(due)) == (shelved.stored, shelved.due)


def test_what_one_batch_of_verdicts_puts_back_and_sends_comes_in_the_order_of_the_batch() -> None:
    published = [Envelope(id_, "q", b"") for id_ in ("first", "second", "third")]
    sent = (Envelope("sent", "q", b""),)
    in_memory, in_sqlite = InMemory(), InSQLite()

    def verdicts(deliveries: Sequence[Delivery]) -> list[Settlement]:
        first, second, third = deliveries
        return [
            Settlement(third, Retry(0.0), sent),
            Settlement(second, Retry(0.0)),
            Settlement(first, Retry(0.0)),
        ]

    expected = ["third", "sent", "second", "first"]
    store = in_memory.store
    store.publish(published, 0.0)
    store.settle(verdicts(store.receive(in_memory.consumer, 9, ANYTHING, 0.0)), 0.0)
    assert [found.envelope.id for found in store.receive(in_memory.consumer, 9, ANYTHING, 0.0)] == expected

    file, do, consumer = in_sqlite.store, in_sqlite.do, in_sqlite.consumer
    do(lambda: publishing.publish(file, published, rows.to_bodies(published)))
    settlements = verdicts(do(lambda: claiming.claim(file, consumer, 9, ANYTHING)))
    bodies = [rows.to_bodies(settlement.outbox) for settlement in settlements]
    do(lambda: settling.settle(file, settlements, bodies))
    in_sqlite.pass_time(1.0)
    assert [found.envelope.id for found in do(lambda: claiming.claim(file, consumer, 9, ANYTHING))] == expected
