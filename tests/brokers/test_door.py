"""The front door: connections, calls, links, watchers and instruments, over a driver that does what a test says."""

from __future__ import annotations

import re
import signal
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from itertools import pairwise
from math import inf
from typing import Any, cast

import pytest
import trio
from modest_driver import ModestDriver
from msgspec.structs import replace
from trio.testing import MockClock, wait_all_tasks_blocked

from repid import (
    BrokerRefused,
    BrokerUnavailable,
    ConfigurationError,
    Connection,
    DuplicateId,
    Envelope,
    InMemoryServer,
    InternalError,
    NoAnswer,
    NotConnected,
    PublishUnknown,
    Repid,
    Server,
    UsageError,
)
from repid.brokers.checks import LARGEST_MESSAGE
from repid.brokers.memory.driver import MemoryDriver
from repid.brokers.shared.calls import CALL_TIME
from repid.brokers.shared.link import CLOSING_TIME, LONGEST_PAUSE, SHORTEST_PAUSE
from repid.delivery import Ack, Bounds, NewResult, Settlement
from repid.envelope import Options
from repid.ports import CallRecord, Schedule, Sight, Snapshot, StoredSchedule, Topics
from repid.testing import Cut

from .broker_aids import ids, message


class Obedient(ModestDriver):
    """A modest driver that notes its calls and does `before` first, in each publish."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[int] = []
        self.before: Callable[[], Any] = trio.lowlevel.checkpoint
        self.events: list[str] = []
        self.opening: Callable[[], Any] = trio.lowlevel.checkpoint
        self.closing: Callable[[], Any] = trio.lowlevel.checkpoint

    @asynccontextmanager
    async def link(self, watched: Collection[str]) -> AsyncGenerator[None, None]:
        await self.opening()
        async with super().link(watched):
            self.events.append("opened")
            try:
                yield
            finally:
                self.events.append("closing")
                with trio.CancelScope(shield=True):
                    await self.closing()
                self.events.append("closed")

    async def publish(self, envelopes: Sequence[Envelope]) -> list[BrokerRefused | None]:
        self.batches.append(len(envelopes))
        await self.before()
        return await super().publish(envelopes)


# Connections


async def test_blocks_of_several_tasks_share_one_link_and_the_last_one_closes_it(autojump_clock: MockClock) -> None:
    driver = Obedient()
    server = Server(driver)

    async def use(seconds: float) -> None:
        async with server.connection():
            await server.declare(["q"])
            await trio.sleep(seconds)
            assert driver.events == ["opened"]
            await server.publish([message("1")])

    async with trio.open_nursery() as nursery:
        for seconds in (3, 1, 2, 5, 4):  # the first one to come is not the last one to leave
            nursery.start_soon(use, seconds)
    assert driver.events == ["opened", "closing", "closed"]
    assert not server.is_connected
    assert server.link.state == "closed"
    async with server.connection():
        assert driver.events[3:] == ["opened"]


async def test_when_opening_fails_all_who_wait_for_it_are_told_and_it_can_be_tried_again(
    autojump_clock: MockClock,
) -> None:
    driver, outcomes = Obedient(), []
    server = Server(driver)

    async def refuse() -> None:
        await trio.sleep(1)
        raise BrokerUnavailable("no such host")

    async def use() -> None:
        try:
            async with server.connection():
                outcomes.append("open")
        except BrokerUnavailable as error:
            outcomes.append(str(error))

    driver.opening = refuse
    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(use)
    assert outcomes == ["no such host"] * 3
    driver.opening = trio.lowlevel.checkpoint
    await use()
    assert outcomes[3:] == ["open"]


async def test_opening_can_be_cancelled_and_leaves_nothing(autojump_clock: MockClock) -> None:
    driver = Obedient()
    server = Server(driver)
    driver.opening = trio.sleep_forever
    with trio.move_on_after(1) as scope:
        async with server.connection():
            pytest.fail("it cannot be opened")
    assert scope.cancelled_caught
    assert not server.is_connected
    driver.opening = trio.lowlevel.checkpoint
    async with server.connection():
        await server.declare(["q"])


async def test_what_a_driver_must_not_raise_is_named_as_a_fault_of_ours(autojump_clock: MockClock) -> None:
    driver = Obedient()

    async def fail() -> None:
        raise ZeroDivisionError("oops")

    driver.opening = fail
    with pytest.raises(InternalError, match=r"the link of Server\(Obedient\) ended: ZeroDivisionError\('oops'\)"):
        async with Server(driver).connection():
            pass


async def test_a_link_that_does_not_close_is_cut_and_the_log_says_so(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    class Stubborn(ModestDriver):
        @asynccontextmanager
        async def link(self, watched: Collection[str]) -> AsyncGenerator[None, None]:
            async with super().link(watched):
                yield
                await trio.sleep_forever()

    async with Server(Stubborn()).connection():
        start = trio.current_time()
    assert trio.current_time() - start == pytest.approx(CLOSING_TIME, abs=0.1)
    assert caplog.messages == [f"Server(Stubborn) did not close its link within {CLOSING_TIME:g} s; the link is cut"]


def test_a_run_that_crashed_is_taken_over() -> None:
    server = Server(Obedient())
    tokens: list[trio.lowlevel.TrioToken] = []

    async def crash() -> None:
        tokens.append(await server._enter())  # what a run that breaks down never leaves
        await server.declare(["q"])
        await server.publish([message("1")])

    async def go_on() -> None:
        with pytest.raises(NotConnected, match="connected in another event loop"):
            await server.declare(["q"])
        async with server.connection(), server.consume({"q": None}) as consumer:
            await server._leave(tokens[0])  # the block of the former run ends late, and closes nothing
            assert ids(await consumer.receive(5)) == ["1"]
        assert not server.is_connected

    trio.run(crash)
    trio.run(go_on)


async def test_two_runs_cannot_have_it_open_at_once() -> None:
    server = Server(ModestDriver())

    async def other() -> None:
        async with server.connection():
            pytest.fail("it belongs to one run")

    async with server.connection():
        with pytest.raises(UsageError, match=r"this Server\(\w+\) is open in another event loop"):
            await trio.to_thread.run_sync(trio.run, other)
        await server.declare(["q"])


# Links


@asynccontextmanager
async def away(refuse: Callable[[], Awaitable[None]]) -> AsyncGenerator[tuple[Server, Cut, list[float]], None]:
    """A server whose engine has been away for a minute, the cut that brings it back, and the pauses between the attempts to
    open the link so far. `refuse` is what an attempt comes to meanwhile.
    """
    cut, driver, times = Cut(), Obedient(), list[float]()

    async def attempt() -> None:
        times.append(trio.current_time())
        if cut.is_down:
            await refuse()

    driver.opening = attempt
    server = Server(cut(driver))
    cut_link = cut.check
    cut.check = lambda call, way: None if call == "link" else cut_link(call, way)  # type: ignore[method-assign]
    async with server.connection():
        cut.go_down()
        with pytest.raises(BrokerUnavailable):
            await server.declare(["q"])
        await trio.sleep(60)
        yield server, cut, [later - sooner for sooner, later in pairwise(times[1:])]


async def test_the_pauses_between_attempts_grow_and_are_jittered(autojump_clock: MockClock) -> None:
    async def refuse() -> None:
        raise BrokerUnavailable("away")

    async with away(refuse) as (server, cut, pauses):
        assert all(pause <= 1.5 * LONGEST_PAUSE for pause in pauses)
        assert SHORTEST_PAUSE / 2 <= pauses[0] <= 2 * SHORTEST_PAUSE * 1.5
        assert len(pauses) < 5 + 60 / (LONGEST_PAUSE / 2)
        assert len({round(pause, 3) for pause in pauses[-4:]}) > 1
        cut.come_back()
        await trio.sleep(2 * LONGEST_PAUSE)
        assert server.link.state == "up"
        await server.declare(["q"])


@pytest.mark.parametrize(
    ("error", "logged"),
    [
        (BrokerUnavailable("away"), []),
        (ConfigurationError("wrong"), ["Server(_CutDriver) cannot reconnect, and tries again until it can: wrong"]),
        (RuntimeError("a fault"), ["the driver of Server(_CutDriver) raised what it should not"]),
    ],
)
async def test_why_a_link_cannot_be_opened_again_is_logged_once_and_it_is_tried_again(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture, error: Exception, logged: list[str]
) -> None:
    async def refuse() -> None:
        raise error

    async with away(refuse) as (server, cut, pauses):
        assert len(pauses) > 30
        assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == logged
        cut.come_back()
        await trio.sleep(2 * LONGEST_PAUSE)
        await server.declare(["q"])


async def test_an_attempt_that_takes_long_is_followed_by_the_next_one_at_once(autojump_clock: MockClock) -> None:
    async def hear_nothing() -> None:
        await trio.sleep(3)
        raise BrokerUnavailable("no answer")

    async with away(hear_nothing) as (_, _, pauses):
        assert max(pauses) <= 3 + 1.5 * SHORTEST_PAUSE


class TellingOfTheEnd(ModestDriver):
    """`left`: for each link, with which error it was left."""

    def __init__(self) -> None:
        super().__init__()
        self.left: list[str | None] = []

    @asynccontextmanager
    async def link(self, watched: Collection[str]) -> AsyncGenerator[None, None]:
        try:
            async with super().link(watched):
                yield
        except BrokerUnavailable as error:
            self.left.append(str(error))
            raise
        self.left.append(None)


async def test_a_driver_is_told_that_its_link_broke_also_where_it_is_closed_at_once(autojump_clock: MockClock) -> None:
    cut, driver = Cut(), TellingOfTheEnd()
    server = Server(cut(driver))
    async with server.connection():
        cut.at("declare", "before")
        with pytest.raises(BrokerUnavailable):
            await server.declare(["q"])
    assert driver.left == ["the link broke before the engine had carried out declare"]


async def test_who_waits_for_messages_to_end_goes_on_while_the_engine_is_away(autojump_clock: MockClock) -> None:
    cut, ended = Cut(), list[str]()
    server = Server(cut(MemoryDriver(60.0)))

    async def watch(seen: Snapshot) -> None:
        ended.append((await server.watch("1", "1", seen)).state)

    async def follow() -> None:
        with server.follow() as following:
            following.add([("1", "1")])
            ended.extend(snapshot.state for _, snapshot in await following.ended())

    async with server.connection(), trio.open_nursery() as nursery:
        await server.declare(["q"])
        await server.publish([message("1")])
        nursery.start_soon(watch, await server.watch("1", "1"))
        nursery.start_soon(follow)
        await wait_all_tasks_blocked()
        cut.go_down()
        await trio.sleep(60)
        with pytest.raises(BrokerUnavailable):
            await server.watch("1", "1")  # who only begins to watch is told
        assert ended == []
        cut.come_back()
        await trio.sleep(2)
        await server.cancel("1")
    assert ended == ["gone", "gone"]


async def test_a_driver_is_told_whether_its_link_broke_or_is_closed(autojump_clock: MockClock) -> None:
    cut, driver = Cut(), TellingOfTheEnd()
    server = Server(cut(driver))
    async with server.connection():
        cut.at("declare", "before")
        with pytest.raises(BrokerUnavailable):
            await server.declare(["q"])
        await trio.sleep(1)
        assert server.link.state == "up"
    assert driver.left == ["the link broke before the engine had carried out declare", None]


async def test_nothing_is_watched_any_more_once_nobody_follows_it(autojump_clock: MockClock) -> None:
    seen: list[Mapping[str, int]] = []

    class Telling(MemoryDriver):
        @asynccontextmanager
        async def link(self, watched: Mapping[str, int]) -> AsyncGenerator[None, None]:
            seen.append(watched)
            async with super().link(watched):
                yield

    server = Server(Telling(60.0))
    async with server.connection():
        with server.follow() as following, server.follow() as other:
            following.add([("a", "result of a"), ("b", "b")])
            following.add([("a", "result of a"), ("b", "b")])  # as app.gather([one, one]) does
            other.add([("b", "b")])
            assert seen[0].keys() == {"a", "result of a", "b"}
            await following.ended()  # nobody has published them
            assert seen[0].keys() == {"b"}
        assert seen == [{}]


async def test_a_driver_may_keep_its_link_open_in_a_nursery(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    class Nursing(ModestDriver):
        @asynccontextmanager
        async def link(self, watched: Collection[str]) -> AsyncGenerator[None, None]:
            async with super().link(watched), trio.open_nursery() as nursery:
                nursery.start_soon(trio.sleep_forever)
                yield
                nursery.cancel_scope.cancel()

    cut = Cut()
    server = Server(cut(Nursing()))
    async with server.connection():
        cut.at("declare", "before")
        with pytest.raises(BrokerUnavailable):
            await server.declare(["q"])
        cut.go_down()
        await trio.sleep(1)
        assert server.link.error == "the engine is not there"
        cut.come_back()
        await trio.sleep(2)
        assert server.link.state == "up"
    [warning] = caplog.messages
    assert warning.startswith("Server(_CutDriver) lost its link and reconnects: ")


# Calls


async def test_a_call_to_a_remote_engine_is_seen_through_although_its_caller_is_cancelled(
    autojump_clock: MockClock,
) -> None:
    driver = Obedient()
    server = Server(driver)
    async with server.connection():
        await server.declare(["q"])
        driver.before = partial(trio.sleep, 3)
        with trio.move_on_after(1) as scope:
            assert await server.publish([message("1")]) == [None]
        assert not scope.cancelled_caught
        assert trio.current_time() == pytest.approx(3)
        with trio.move_on_after(0) as scope:
            await server.publish([message("2")])
        assert scope.cancelled_caught
    assert [stored.envelope.id for stored in driver.ready] == ["1"]


async def test_what_several_ask_of_a_remote_engine_is_done_although_the_one_that_leads_is_cancelled() -> None:
    for number in range(100):  # which task runs first is left to chance
        driver = Obedient()
        server = Server(driver)
        outcomes: dict[str, Any] = {}

        async def publish(id_: str, server: Server = server, outcomes: dict[str, Any] = outcomes) -> None:
            outcomes[id_] = await server.publish([message(id_)])

        async with server.connection(), trio.open_nursery() as nursery:
            await server.declare(["q"])
            async with trio.open_nursery() as first:
                first.start_soon(publish, "first")
                nursery.start_soon(publish, "second")
                for _ in range(number % 5):
                    await trio.lowlevel.checkpoint()
                first.cancel_scope.cancel()
        assert outcomes == {stored.envelope.id: [None] for stored in driver.ready}
        assert "second" in outcomes


async def test_all_parts_of_a_big_request_to_a_remote_engine_are_sent_although_its_caller_is_cancelled(
    autojump_clock: MockClock,
) -> None:
    driver = Obedient()
    server = Server(driver)
    async with server.connection():
        await server.declare(["q"])
        driver.before = partial(trio.sleep, 1)
        with trio.move_on_after(0.5) as scope:
            assert await server.publish([message(str(number)) for number in range(20_000)]) == [None] * 20_000
    assert not scope.cancelled_caught
    assert driver.batches == [8192, 8192, 3616]


async def test_a_message_or_result_that_a_remote_engine_could_not_take_in_time_is_refused(
    autojump_clock: MockClock,
) -> None:
    local = InMemoryServer()

    class Remote(MemoryDriver):
        capabilities = replace(MemoryDriver.capabilities, calls="remote")

    remote = Server(Remote(60.0, None))
    too_long = "x" * LARGEST_MESSAGE
    for server in (local, remote):
        async with server.connection():
            await server.declare(["q"])
            for envelope in (message("1", payload=bytes(LARGEST_MESSAGE + 1)), message("2", topic=too_long)):
                if server is local:
                    assert await server.publish([envelope]) == [None]
                    continue
                with pytest.raises(
                    ConfigurationError, match=rf"message '{envelope.id}' has \d+ bytes, and Server.Remote. takes"
                ):
                    await server.publish([message("0"), envelope])
            assert await server.publish([message("3", payload=bytes(LARGEST_MESSAGE))]) == [None]
            result = NewResult(id="3", state="success", payload=bytes(LARGEST_MESSAGE + 1), ttl=60.0)
            if server is local:
                await server.store_results([result])
                continue
            async with server.consume({"q": None}) as consumer:
                [delivery] = await consumer.receive(10)
                for call in (
                    server.store_results([result]),
                    consumer.settle([Settlement(delivery, Ack(), result=result)]),
                ):
                    with pytest.raises(ConfigurationError, match="the result '3' has 33554433 bytes"):
                        await call


async def test_many_messages_for_a_remote_engine_are_several_calls_that_each_keep_their_time(
    autojump_clock: MockClock,
) -> None:
    class Slow(ModestDriver):
        async def publish(self, envelopes: Sequence[Envelope]) -> list[BrokerRefused | None]:
            await trio.sleep(len(envelopes) / 5000 + sum(len(envelope.payload) for envelope in envelopes) / 2**23)
            return await super().publish(envelopes)

    calls: list[CallRecord] = []
    driver = Slow()
    server = Server(driver, instruments=[calls.append])
    many = [message(str(number)) for number in range(20_000)]
    big = [message(f"big {number}", payload=bytes(9 * 2**20)) for number in range(3)]
    async with server.connection():
        await server.declare(["q"])
        assert await server.publish(many) == [None] * 20_000
        assert await server.publish(big) == [None] * 3
    assert [stored.envelope.id for stored in driver.ready] == [one.id for one in many + big]
    assert [call.count for call in calls if call.name == "publish"] == [8192, 8192, 3616, 1, 1, 1]


async def test_a_message_that_is_wrong_harms_no_other_caller_where_together_they_are_too_big_for_a_call(
    autojump_clock: MockClock,
) -> None:
    class Unique(ModestDriver):
        def __init__(self) -> None:
            super().__init__()
            self.ids: set[str] = set()

        async def publish(self, envelopes: Sequence[Envelope]) -> list[BrokerRefused | None]:
            if any(envelope.id == "wrong" for envelope in envelopes):
                raise ConfigurationError("wrong")
            await trio.sleep(1)
            former = set(self.ids)
            self.ids.update(one.id for one in envelopes)
            return [DuplicateId(one.id, one.queue) if one.id in former else None for one in envelopes]

    outcomes: dict[str, object] = {}
    server = Server(Unique())

    async def publish(envelope: Envelope) -> None:
        try:
            [outcomes[envelope.id]] = await server.publish([envelope])
        except ConfigurationError as error:
            outcomes[envelope.id] = str(error)

    async with server.connection(), trio.open_nursery() as nursery:
        await server.declare(["q"])
        for id_ in ("0", "1", "2", "wrong"):
            nursery.start_soon(publish, message(id_, payload=bytes(9 * 2**20)))
            await wait_all_tasks_blocked()  # the others wait for the first call, and go together then
    assert outcomes == {"0": None, "1": None, "2": None, "wrong": "wrong"}


async def test_a_call_without_an_answer_ends_within_its_bound_and_the_link_is_opened_anew(
    autojump_clock: MockClock,
) -> None:
    driver = Obedient()
    server = Server(driver)
    async with server.connection():
        await server.declare(["q"])
        driver.before = trio.sleep_forever
        with pytest.raises(PublishUnknown) as info:
            await server.publish([message("1"), message("2")])
        assert info.value.ids == ("1", "2")
        assert isinstance(info.value.__cause__, NoAnswer)
        assert trio.current_time() == pytest.approx(CALL_TIME)
        driver.before = trio.lowlevel.checkpoint
        with pytest.raises(BrokerUnavailable, match=r"not reachable now .Server\(Obedient\) did not answer within 5 s"):
            await server.publish([message("3")])
        await trio.sleep(1)
        assert await server.publish([message("4")]) == [None]
        assert driver.events == ["opened", "closing", "closed", "opened"]


@pytest.mark.parametrize("is_up", [True, False], ids=["answers at hand", "link down"])
@pytest.mark.parametrize("name", ["publish", "declare"])
async def test_a_task_that_calls_in_a_loop_lets_others_run_and_ends_when_cancelled(name: str, *, is_up: bool) -> None:
    """Also where the driver waits for nothing, or is not asked: else the link could never be opened again."""
    driver = ModestDriver()
    server = Server(driver)
    calls, most = 0, 1000
    async with server.connection(), trio.open_nursery() as nursery:
        await server.declare(["q"])
        await server.publish([message("0")])
        if not is_up:
            assert server._calls.link is not None
            server._calls.link.broke(BrokerUnavailable("away"))

        async def cancel_soon() -> None:
            for _ in range(10):
                await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()

        nursery.start_soon(cancel_soon)
        while calls < most:
            calls += 1
            with suppress(BrokerUnavailable):
                await (server.publish([message(str(calls))]) if name == "publish" else server.declare(["q"]))
    assert calls < most


async def test_publishes_that_come_together_are_one_request(autojump_clock: MockClock) -> None:
    driver = Obedient()
    server = Server(driver)
    outcomes: list[object] = []

    async def publish(number: int) -> None:
        outcomes.extend(await server.publish([message(str(number)), message(f"r{number}", "undeclared")]))

    async with server.connection():
        await server.declare(["q"])
        driver.before = partial(trio.sleep, 1)
        async with trio.open_nursery() as nursery:
            for number in range(50):
                nursery.start_soon(publish, number)
    assert len(driver.batches) <= 2
    assert sum(driver.batches) == 100
    assert outcomes.count(None) == 50


async def test_publishing_nothing_asks_nobody(autojump_clock: MockClock) -> None:
    driver = Obedient()
    server = Server(driver)
    async with server.connection():
        assert await server.publish([]) == []
    assert sum(driver.batches) == 0


def test_ctrl_c_in_a_call_leaves_the_server_usable() -> None:
    driver = Obedient()
    server = Server(driver)

    async def press() -> None:
        signal.raise_signal(signal.SIGINT)

    async def interrupted() -> None:
        async with server.connection():
            await server.declare(["q"])
            driver.before = press
            await server.publish([message("1")])
            await trio.sleep(1)

    async def go_on() -> None:
        driver.before = trio.lowlevel.checkpoint
        async with server.connection():
            assert await server.publish([message("2")]) == [None]

    with pytest.raises(KeyboardInterrupt):
        trio.run(interrupted)
    assert not server.is_connected
    assert driver.events == ["opened", "closing", "closed"]
    trio.run(go_on)
    assert [stored.envelope.id for stored in driver.ready] == ["1", "2"]


# Consumers


async def test_a_receive_ends_when_its_consumer_is_closed_also_while_the_link_is_down(
    autojump_clock: MockClock,
) -> None:
    cut = Cut()
    server = Server(cut(ModestDriver()))
    for is_down in (False, True):
        async with server.connection(), trio.open_nursery() as nursery:
            await server.declare(["q"])
            async with server.consume({"q": None}) as consumer:

                async def receive(consumer: Any = consumer) -> None:
                    with pytest.raises(UsageError, match="this consumer is closed"):
                        await consumer.receive(1)

                nursery.start_soon(receive)
                await wait_all_tasks_blocked()
                if is_down:
                    cut.go_down()
                    await wait_all_tasks_blocked()
        cut.come_back()


async def test_consumers_that_are_closed_while_the_link_comes_back_are_not_subscribed_then(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    class Slow(ModestDriver):
        async def subscribe(self, consumer: str, queues: Mapping[str, Topics]) -> None:
            await trio.sleep(1)
            await super().subscribe(consumer, queues)

        async def unsubscribe(self, consumer: str) -> None:
            await trio.sleep(0.1)
            await super().unsubscribe(consumer)

    async def consume(seconds: float) -> None:
        async with server.consume({"q": None}):
            await trio.sleep(seconds)

    driver, cut = Slow(), Cut()
    server = Server(cut(driver))
    async with server.connection(), trio.open_nursery() as nursery:
        await server.declare(["q"])
        for seconds in (10, 11.5, 13):  # in the seconds after the tenth the consumers are subscribed anew, one by one
            nursery.start_soon(consume, seconds)
        async with server.consume({"q": None}) as consumer:
            await trio.sleep(9)
            cut.at("declare", "before")
            with pytest.raises(BrokerUnavailable):
                await server.declare(["q"])
            await trio.sleep(10)
            assert server.link.state == "up"
            assert list(driver._consumers) == [consumer.key]
    assert [record.levelname for record in caplog.records] == ["WARNING"]


async def test_a_driver_is_told_when_its_link_is_back_which_consumers_were_closed_meanwhile(
    autojump_clock: MockClock,
) -> None:
    class Remembering(ModestDriver):
        def __init__(self) -> None:
            super().__init__()
            self.closed: list[str] = []

        async def unsubscribe(self, consumer: str) -> None:
            self.closed.append(consumer)
            await super().unsubscribe(consumer)

    driver, cut = Remembering(), Cut()
    server = Server(cut(driver))
    async with server.connection():
        await server.declare(["q"])
        async with server.consume({"q": None}) as left, server.consume({"q": None}):
            async with server.consume({"q": None}) as closed:
                cut.go_down()
                with pytest.raises(BrokerUnavailable):
                    await server.declare(["q"])
            assert driver.closed == []
            cut.come_back()
            await trio.sleep(2)
            assert driver.closed == [closed.key]
    assert driver.closed.count(left.key) == 1


async def test_a_receive_with_a_limit_of_time_says_that_the_link_is_down(autojump_clock: MockClock) -> None:
    cut = Cut()
    server = Server(cut(ModestDriver()))
    async with server.connection():
        await server.declare(["q"])
        async with server.consume({"q": None}) as consumer:
            cut.go_down()
            with pytest.raises(BrokerUnavailable):
                await consumer.receive(1, max_wait=10)
            assert trio.current_time() == pytest.approx(10, abs=0.1)
            cut.come_back()


async def test_a_receive_that_waits_in_vain_asks_the_engine_once(autojump_clock: MockClock) -> None:
    calls: list[str] = []
    server = Server(ModestDriver(), instruments=[lambda call: calls.append(call.name)])
    async with server.connection():
        await server.declare(["q"])
        async with server.consume({"q": None}) as consumer:
            calls.clear()
            assert await consumer.receive(1, max_wait=10) == []
            assert trio.current_time() == pytest.approx(10, abs=0.1)
    assert calls == ["claim", "unsubscribe"]


async def test_a_receive_gets_what_becomes_due_at_the_end_of_its_time(autojump_clock: MockClock) -> None:
    server = Server(Cut()(MemoryDriver(60.0)))
    async with server.connection():
        await server.declare(["q"])
        await server.publish([replace(message("1"), options=Options(delay=10.0))])
        async with server.consume({"q": None}) as consumer:
            assert ids(await consumer.receive(1, max_wait=10)) == ["1"]


async def test_a_server_of_a_class_that_publishes_in_its_own_way_is_asked_to() -> None:
    sent: list[str] = []

    class Noting(InMemoryServer):
        async def publish(self, envelopes: Sequence[Envelope]) -> list[BrokerRefused | None]:
            sent.extend(envelope.id for envelope in envelopes)
            return await super().publish(envelopes)

    app = Repid(Connection(Noting()))
    async with app.magic():
        await app.server().declare(["q"])
        await app.send_message_json(channel="q", message_id="alone")
        assert not app.server().publish_at_once(message("at once"))
    assert sent == ["alone"]


async def test_a_driver_of_a_class_that_publishes_in_its_own_way_is_asked_to() -> None:
    sent: list[str] = []

    class Noting(MemoryDriver):
        async def publish(self, envelopes: Sequence[Envelope]) -> list[BrokerRefused | None]:
            sent.extend(envelope.id for envelope in envelopes)
            return await super().publish(envelopes)

    class Derived(Noting): ...

    for number, driver in enumerate((Noting(60.0), Derived(60.0))):
        server = Server(driver)
        async with server.connection():
            await server.declare(["q"])
            await server.publish([message(f"{number} in a batch")])
            assert not server.publish_at_once(message(f"{number} alone"))
    assert sent == ["0 in a batch", "1 in a batch"]


async def test_a_message_is_published_at_once_only_where_that_takes_no_wait() -> None:
    server = InMemoryServer()
    turns = server._calls.turns
    turns.due = inf
    assert not server.publish_at_once(message("not connected"))
    async with server.connection():
        await server.declare(["q"])
        await server.set_bounds({"bounded": Bounds(max_size=1)})
        assert server.publish_at_once(message("now"))
        assert not server.publish_at_once(message("now"))
        assert not server.publish_at_once(message("undeclared", "undeclared"))
        assert server.publish_at_once(message("there is room", "bounded"))
        assert not server.publish_at_once(message("there is none", "bounded"))
        assert not server.publish_at_once(message("delayed", delay=1))
        assert not await trio.to_thread.run_sync(server.publish_at_once, message("in a thread"))
        turns.due = 0.0
        assert not server.publish_at_once(message("when a pause is due"))
        turns.due = inf
        with trio.CancelScope() as scope:  # noqa: ASYNC100  it is the call that looks at it
            scope.cancel()
            assert not server.publish_at_once(message("cancelled"))
        server.add_instrument(lambda _: None)
        assert not server.publish_at_once(message("watched"))
        assert [found.envelope.id for found in await server.browse("q", "ready")] == ["now"]
        assert (await server.counts("bounded")).ready == 1


# Watchers


async def test_a_thousand_watchers_cost_one_look(autojump_clock: MockClock) -> None:
    looks: list[int] = []

    class Watched(MemoryDriver):
        capabilities = replace(MemoryDriver.capabilities, calls="remote")

        async def snapshots(self, ids: Sequence[tuple[str, str]]) -> list[Sight]:
            looks.append(len(ids))
            await trio.sleep(0.1)
            return await super().snapshots(ids)

    server = Server(Watched(60.0))
    states: list[str] = []

    async def watch() -> None:
        seen = await server.watch("1", "1")
        states.append((await server.watch("1", "1", seen)).state)

    async with server.connection():
        await server.declare(["q"])
        await server.publish([message("1")])
        async with trio.open_nursery() as nursery:
            for _ in range(1000):
                nursery.start_soon(watch)
            await trio.sleep(10)
            before = len(looks)
            await server.cancel("1")
    assert states == ["gone"] * 1000
    assert len(looks) - before <= 2
    assert before <= 6
    assert max(looks) == 1000


# Instruments


async def test_an_instrument_sees_each_call_with_its_outcome(autojump_clock: MockClock) -> None:
    calls: list[CallRecord] = []
    driver = Obedient()
    server = Server(driver, instruments=[calls.append])
    async with server.connection():
        await server.declare(["q", "r"])
        async with server.consume({"q": None}) as consumer:
            driver.before = partial(trio.sleep, 2)
            await server.publish([message("1"), message("2", "undeclared")])
            await consumer.receive(5)
            driver.before = trio.sleep_forever
            with pytest.raises(PublishUnknown):
                await server.publish([message("3")])
            await trio.sleep(1)
        with pytest.raises(KeyError):
            async with server.consume({"none": None}):
                pass
        with trio.CancelScope() as scope:
            scope.cancel()
            await server.declare(["s"])
    told = [(call.name, call.count, call.outcome, round(call.duration)) for call in calls]
    assert {call.server for call in calls} == {"Server(Obedient)"}
    assert [one for one in told if one[0] != "unsubscribe"] == [
        ("declare", 2, "done", 0),
        ("subscribe", 1, "done", 0),
        ("publish", 2, "done", 0),
        ("claim", 5, "done", 0),
        ("publish", 1, "failed", 0),
        ("subscribe", 1, "refused", 0),
        ("declare", 1, "cancelled", 0),
    ]


async def test_an_instrument_sees_the_queue_where_a_call_is_about_one() -> None:
    calls: list[CallRecord] = []
    server = InMemoryServer()
    server.add_instrument(calls.append)
    async with server.connection():
        await server.declare(["q", "r"])
        await server.counts("q")
        await server.counts_of(["q", "r"])
        await server.pause("r")
    assert [(call.name, call.queue, call.count) for call in calls] == [
        ("declare", None, 2),
        ("counts", "q", 1),
        ("counts", None, 2),
        ("pause", "r", 1),
    ]


@pytest.mark.parametrize("kind", [ZeroDivisionError, SystemExit, KeyboardInterrupt, GeneratorExit])
async def test_an_instrument_that_raises_harms_no_call(
    kind: type[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    calls: list[CallRecord] = []

    def fail(_: CallRecord) -> None:
        raise kind

    server = InMemoryServer(instruments=[fail, calls.append])
    async with server.connection():
        await server.declare(["q"])
        assert await server.publish([message("1")]) == [None]
    assert [call.name for call in calls] == ["declare", "publish"]
    assert caplog.messages == ["an instrument failed; the call it watched is not affected"] * 2


@pytest.mark.parametrize(
    "call",
    [
        lambda server, name: server.browse(name, "ready"),
        lambda server, name: server.counts(name),
        lambda server, name: server.flush(name),
        lambda server, name: server.delete(name),
        lambda server, name: server.revive(name),
        lambda server, name: server.delete_messages(name),
        lambda server, name: server.pause(name),
        lambda server, name: server.resume(name),
        lambda server, name: server.cancel(name),
        lambda server, name: server.watch(name, "1"),
        lambda server, name: server.watch("1", name),
        lambda server, name: server.consume({name: None}).__aenter__(),
        lambda server, name: server.consume({"q": frozenset({name})}).__aenter__(),
        lambda server, name: server.put_schedule(schedule_of(name), 1.0),
        lambda server, name: server.replace_schedule(None, StoredSchedule(schedule=schedule_of(name), next_at=1.0)),
        lambda server, name: server.remove_schedule(name),
        lambda server, name: server.tick(name, 1.0, 2.0, None),
    ],
)
async def test_a_call_with_a_name_that_cannot_be_written_is_refused_before_anything_is_sent(
    call: Callable[[Server, str], Awaitable[Any]],
) -> None:
    calls: list[CallRecord] = []
    server = InMemoryServer()
    async with server.connection():
        await server.declare(["q"])
        server.add_instrument(calls.append)
        with pytest.raises(ConfigurationError, match="lone surrogate"):
            await call(server, "\ud800")
    assert calls == []


def schedule_of(name: str, envelope: Envelope | None = None) -> Schedule:
    return Schedule(name=name, envelope=envelope or message("1"), every=1.0)


async def test_names_that_cannot_be_written_are_refused_by_every_engine_alike() -> None:
    server = InMemoryServer()
    async with server.connection():
        for call in (server.find, server.cancel_each, server.fetch_results, server.counts_of, server.schedules):
            with pytest.raises(ConfigurationError, match="lone surrogate"):
                await call(["\ud800"])


async def test_a_number_that_no_float_holds_is_refused_before_anything_is_sent() -> None:
    server = InMemoryServer()
    async with server.connection():
        await server.declare(["q"])
        with pytest.raises(ConfigurationError, match="the delay of message '1' must be a number"):
            await server.publish([Envelope("1", "q", b"", options=Options(delay=10**400))])


@pytest.mark.parametrize(
    ("envelope", "named"),
    [
        (Envelope("1", "q", b"", headers=cast("Any", {5: "text"})), "its name of a header must be text, but is 5"),
        (
            Envelope("1", "q", b"", headers=cast("Any", {b"x": "text"})),
            "its name of a header must be text, but is b'x'",
        ),
        (Envelope("1", "q", b"", headers=cast("Any", {"x": 5})), "its header 'x' must be text, but is 5"),
        (Envelope("1", "q", b"", headers=cast("Any", {"topic": None})), "its header 'topic' must be text, but is None"),
        (Envelope(cast("Any", 5), "q", b""), "its id must be text, but is 5"),
        (Envelope(cast("Any", b"5"), "q", b""), "its id must be text, but is b'5'"),
        (Envelope("1", "q", b"", cast("Any", 5)), "its content_type must be text, but is 5"),
        (Envelope("1", "q", b"", reply_to=cast("Any", 5)), "its reply_to must be text, but is 5"),
    ],
)
async def test_what_is_no_text_in_an_envelope_made_by_hand_is_refused_by_its_name(
    envelope: Envelope, named: str
) -> None:
    server = InMemoryServer()
    async with server.connection():
        await server.declare(["q"])
        await server.publish([message("0")])
        with pytest.raises(ConfigurationError, match=re.escape(named)):
            await server.publish([envelope])
        with pytest.raises(ConfigurationError, match=re.escape(named)):
            await server.replace_schedule(None, StoredSchedule(schedule=schedule_of("s", envelope), next_at=1.0))
        async with server.consume({"q": None}) as consumer:
            [delivery] = await consumer.receive(1)
            with pytest.raises(ConfigurationError, match=re.escape(named)):
                await consumer.settle([Settlement(delivery, Ack(), (envelope,))])
