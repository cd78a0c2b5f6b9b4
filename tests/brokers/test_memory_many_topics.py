"""A claim finds the first messages of many topics, or of many queues, without a look at each of them, and finds the same.
Time is virtual."""

from __future__ import annotations

from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from repid import PrioritiesT
from repid.brokers.memory import tending
from repid.brokers.memory.record import Record, Subscription
from repid.brokers.memory.store import Store
from repid.delivery import ACK, Delivery, Release, Settlement
from repid.envelope import Envelope, Options
from repid.ports import ANYTHING, AtMost, Topics

TOPICS = [f"t{number}" for number in range(300)]
STEPS = ("send", "send", "send", "claim", "claim", "claim_of_few", "claim_limited", "give_back", "cancel", "flush")


class Bench:
    """A store with three consumers, and what each of them ought to get next. `queues` and `topics`: where it sends to."""

    def __init__(
        self,
        seed: int,
        queues: list[str],
        topics: list[str],
        limits: list[int],
        *consumers: dict[str, Topics],
    ) -> None:
        self.chance = Random(seed)
        self.queues = queues
        self.topics = topics
        self.limits = limits
        self.store = Store(lease_timeout=60)
        self.store.directory.declare(queues)
        self.all_of_it, self.some, self.few = map(Subscription, consumers)
        for subscription in (self.some, self.few):
            self.store.directory.open(subscription)
        self.now = 0.0
        self.sent = 0
        self.held: list[Delivery] = []

    def send(self) -> None:
        envelopes = []
        for _ in range(self.chance.choice([1, 3, 400])):
            self.sent += 1
            queue, headers = self.chance.choice(self.queues), {"topic": self.chance.choice(self.topics)}
            options = Options(priority=self.chance.choice([None, *PrioritiesT]))
            envelopes.append(Envelope(str(self.sent), queue, b"", headers=headers, options=options))
        assert not any(self.store.publish(envelopes, self.now))

    def expected(self, subscription: Subscription, limit: int, cap: int | None) -> list[str]:
        """The ids that a claim ought to give, found by sorting everything."""
        raise NotImplementedError

    def claim_of(self, subscription: Subscription, at_most: AtMost = ANYTHING, cap: int | None = None) -> None:
        limit = self.chance.choice(self.limits)
        expected = self.expected(subscription, limit, cap)
        found = self.store.receive(subscription, limit, at_most, self.now)
        assert [delivery.envelope.id for delivery in found] == expected
        self.held += found

    def claim_of_few(self) -> None:
        self.claim_of(self.few)

    def give_back(self) -> None:
        self.chance.shuffle(self.held)
        some, self.held = self.held[:20], self.held[20:]
        verdicts = [Settlement(each, ACK if self.chance.random() < 0.5 else Release()) for each in some]
        self.store.settle(verdicts, self.now)

    def cancel(self) -> None:
        for id_ in self.chance.sample(range(1, self.sent + 1), min(self.sent, 60)):
            self.store.cancel(str(id_), self.now)

    def run(self, steps: list[str]) -> None:
        self.send()
        for step in steps:
            self.now += self.chance.choice([0, 0, 1, 70])
            getattr(self, step)()


class BenchOfTopics(Bench):
    def __init__(self, seed: int) -> None:
        half: Topics = frozenset(TOPICS[:200])
        few: Topics = frozenset(TOPICS[150:160])
        super().__init__(seed, ["q"], TOPICS, [1, 7, 40], {"q": None}, {"q": half}, {"q": few})

    def expected(self, subscription: Subscription, limit: int, cap: int | None) -> list[str]:
        topics, channel = subscription.queues["q"], self.store.channels["q"]
        ready = [record for lane in channel.lanes.values() for record in lane.records()]
        chosen: list[Record] = []
        for record in sorted(ready, key=lambda each: (each.rank, each.order)):
            topic = record.envelope.topic
            if topics is not None and topic not in topics and topic not in channel.strays:
                continue
            if cap is not None and sum(each.envelope.topic == topic for each in chosen) == cap:
                continue
            chosen.append(record)
        return [record.envelope.id for record in chosen[:limit]]

    def claim(self) -> None:
        self.claim_of(self.chance.choice([self.some, self.all_of_it]))

    def claim_limited(self) -> None:
        self.claim_of(self.some, AtMost(topics={("q", topic): 1 for topic in TOPICS}), cap=1)

    def flush(self) -> None:
        if self.chance.random() < 0.1:
            tending.flush(self.store, "q", self.now)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32), st.lists(st.sampled_from(STEPS), min_size=10, max_size=60))
def test_claims_from_hundreds_of_topics_come_in_the_order_of_all_ready_messages(seed: int, steps: list[str]) -> None:
    BenchOfTopics(seed).run(steps)


QUEUES = [f"q{number}" for number in range(300)]
STEPS_OF_QUEUES = (
    "send",
    *["claim"] * 4,
    "claim_of_few",
    "claim_limited",
    "give_back",
    "cancel",
    "pause",
    "resume",
    "tend",
)


class BenchOfQueues(Bench):
    """Two of its consumers read many queues."""

    def __init__(self, seed: int) -> None:
        some: dict[str, Topics] = dict.fromkeys(QUEUES[:200], frozenset({"a"}))
        few: dict[str, Topics] = dict.fromkeys(QUEUES[150:160])
        super().__init__(seed, QUEUES, ["a", "b"], [1, 1, 7, 40, 100], dict.fromkeys(QUEUES), some, few)
        self.reads_all = False

    def expected(self, subscription: Subscription, limit: int, cap: int | None) -> list[str]:
        ready: list[Record] = []
        for name, topics in subscription.queues.items():
            channel = self.store.channels[name]
            if not channel.paused:
                for topic, lane in channel.lanes.items():
                    if topics is None or topic in topics or topic in channel.strays:
                        ready += lane.records()
        ready.sort(key=lambda each: (each.rank, each.order))
        return [record.envelope.id for record in ready[:limit]]

    def claim(self) -> None:
        self.claim_of(self.some)

    def claim_limited(self) -> None:
        self.claim_of(self.some, AtMost(topics={("q0", "a"): 1000}))

    def pause(self) -> None:
        for name in self.chance.sample(QUEUES, 100):
            tending.pause(self.store, name, self.now)

    def resume(self) -> None:
        for name in QUEUES:
            tending.resume(self.store, name, self.now)

    def tend(self) -> None:
        """Flush or delete a queue, or have a consumer come or go."""
        name = self.chance.choice(QUEUES)
        match self.chance.randrange(4):
            case 0:
                tending.flush(self.store, name, self.now)
            case 1:
                tending.delete(self.store, name, self.now)
                self.store.directory.declare([name])
            case _ if self.reads_all:
                self.reads_all = False
                self.store.directory.close(self.all_of_it)
            case _:
                self.reads_all = True
                self.store.directory.open(self.all_of_it)
                self.claim_of(self.all_of_it)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32), st.lists(st.sampled_from(STEPS_OF_QUEUES), min_size=20, max_size=60))
def test_claims_from_hundreds_of_queues_come_in_the_order_of_all_ready_messages(seed: int, steps: list[str]) -> None:
    BenchOfQueues(seed).run(steps)
