"""What is special to the SQLite broker: its thread, group commit, several objects and processes, clocks. A sentence each."""

from __future__ import annotations

import gc
import json
import random
import sqlite3
import threading
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, closing
from pathlib import Path

import pytest
import trio
import trio.testing

from repid import Connection, Repid, Router
from repid.brokers import SQLiteServer
from repid.brokers.consumer import Consumer
from repid.brokers.sqlite.change_watch import ChangeWatch
from repid.brokers.sqlite.store import CONSUMER_TIME
from repid.delivery import Cancel, Delivery, NewResult, Release, Retry, Settlement
from repid.envelope import Envelope, Options
from repid.errors import BrokerRefused, ConfigurationError, NotConnected, UsageError
from repid.ports import AtMost, Counts, LeaseEvent, Snapshot

from .broker_aids import ids, message, now_ready
from .sqlite_aids import SteppedClock, ack, consuming, idle, messages, serving, start_python

CONSUMER_SECONDS = CONSUMER_TIME / 1e6


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("repid sqlite")]


# The thread


async def test_the_thread_ends_with_the_outermost_connection(path: Path) -> None:
    server = SQLiteServer(path)
    async with server.connection():
        async with server.connection() as same:
            assert same is server
        assert len(threads()) == 1
        assert server.is_connected
    assert threads() == []
    assert not server.is_connected
    assert sorted(file.name for file in path.parent.iterdir()) == ["repid.db"]


async def test_the_thread_ends_when_the_block_fails_or_is_cancelled(path: Path) -> None:
    with pytest.raises(ValueError, match="mine"):
        async with SQLiteServer(path).connection():
            raise ValueError("mine")
    assert threads() == []
    with trio.move_on_after(0.05) as scope:
        async with serving(path) as server, consuming(server) as consumer:
            await consumer.receive(1)
    assert scope.cancelled_caught
    assert threads() == []


async def test_the_thread_ends_when_opening_fails_or_is_cancelled(path: Path) -> None:
    with pytest.raises(ConfigurationError):
        async with SQLiteServer(path / "none" / "x.db").connection():
            pass
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(SQLiteServer(path).connection().__aenter__)
            await trio.lowlevel.checkpoint()
            scope.cancel()
    gc.collect()
    assert threads() == []


def test_after_a_run_that_never_left_its_block_the_next_one_takes_over(path: Path) -> None:
    """As one that broke down. (A generator that is left open would be closed by trio at the end of its run.)"""
    server = SQLiteServer(path)
    tokens: list[trio.lowlevel.TrioToken] = []

    async def crash() -> None:
        tokens.append(await server._enter())
        await server.declare(["q"])
        await server.publish(messages("1"))

    async def go_on() -> None:
        async with server.connection():
            await server._leave(tokens[0])  # the first block ends late: it must not close anything any more
            assert await server.counts("q") == Counts(ready=1)

    trio.run(crash)
    assert threads() == []
    trio.run(go_on)
    assert threads() == []


async def test_connections_can_be_opened_again_and_at_once(path: Path) -> None:
    server = SQLiteServer(path)

    async def use(number: int) -> None:
        async with server.connection():
            await server.declare(["q"])
            await server.publish(messages([number]))

    for round_ in range(3):
        async with trio.open_nursery() as nursery:
            for number in range(10):
                nursery.start_soon(use, 10 * round_ + number)
    async with server.connection():
        assert await server.counts("q") == Counts(ready=30)


async def test_calls_outside_a_connection_say_what_to_do(path: Path) -> None:
    server = SQLiteServer(path)
    with pytest.raises(NotConnected, match=r"async with server\.connection\(\):"):
        await server.counts("q")
    async with serving(path) as server, consuming(server) as consumer:
        pass
    with pytest.raises(NotConnected):
        await consumer.receive(1)


async def test_two_live_runs_cannot_share_one_object_but_one_file(path: Path) -> None:
    raised: list[BaseException] = []

    async def intrude() -> None:
        with pytest.raises(UsageError, match="open in another event loop") as info:
            async with server.connection():
                pass
        raised.append(info.value)
        with pytest.raises(NotConnected, match="another event loop"):
            await server.counts("q")
        async with serving(path) as another:
            await another.publish(messages("1"))

    async with serving(path) as server:
        thread = threading.Thread(target=trio.run, args=[intrude])
        thread.start()
        await trio.to_thread.run_sync(thread.join)
        assert len(raised) == 1
        assert await server.counts("q") == Counts(ready=1)


async def test_while_nobody_waits_the_file_is_left_alone(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    version = ChangeWatch._version
    looks = 0

    def counted(watch: ChangeWatch) -> int:
        nonlocal looks
        looks += 1
        return version(watch)

    monkeypatch.setattr(ChangeWatch, "_version", counted)
    clock = SteppedClock()
    async with serving(path, clock=clock) as server:
        with trio.fail_after(30):
            before = None
            while before != (looks, clock.reads):  # until the thread sleeps for longer than a look would let it
                before = (looks, clock.reads)
                await trio.sleep(0.3)
        async with consuming(server), trio.open_nursery() as nursery:
            nursery.start_soon(server.watch, "1", "1", Snapshot(state="gone"))
            with trio.fail_after(30):
                while looks < before[0] + 3:
                    await trio.sleep(0.01)
            nursery.cancel_scope.cancel()


@pytest.mark.real_time
def test_a_forked_child_is_told_and_can_open_the_file_itself(path: Path) -> None:
    code = """
        import json, os, sys, threading, trio
        from repid.brokers import SQLiteServer
        from repid.envelope import Envelope
        server = SQLiteServer(sys.argv[1])
        async def child():
            try:
                await server.publish([Envelope("2", "q", b"x")])
            except Exception as error:
                said = [type(error).__name__, "was forked" in str(error)]
            async with server.connection():
                said.append([str(outcome) for outcome in await server.publish([Envelope("2", "q", b"x")])])
            print(json.dumps(said), flush=True)
        async def parent():
            async with server.connection():
                await server.declare(["q"])
                await server.publish([Envelope("1", "q", b"x")])
                pid = os.fork()
                if pid == 0:  # the parent's event loop is not the child's to touch: it runs one of its own
                    thread = threading.Thread(target=trio.run, args=(child,))
                    thread.start()
                    thread.join()
                    os._exit(0)
                await trio.to_thread.run_sync(os.waitpid, pid, 0)
                await server.publish([Envelope("3", "q", b"x")])
                print((await server.counts("q")).ready, flush=True)
        trio.run(parent)
    """
    out = start_python(code, path).communicate(timeout=30)[0].splitlines()
    assert json.loads(out[0]) == ["UsageError", True, ["None"]]
    assert out[1:] == ["3"]


# Group commit


async def test_concurrent_publishers_share_transactions(path: Path) -> None:
    clock = SteppedClock()
    async with serving(path, clock=clock) as server:
        before = clock.reads
        async with trio.open_nursery() as nursery:
            for number in range(100):
                nursery.start_soon(server.publish, messages([number]))
        assert await server.counts("q") == Counts(ready=100)
        assert clock.reads - before < 30


async def test_each_publisher_of_a_group_gets_its_own_answers(path: Path) -> None:
    answers: dict[int, list[str]] = {}

    async def publish(number: int) -> None:
        batch = [message(f"own {number}"), message("same"), message("x", "nowhere")]
        answers[number] = [type(answer).__name__ for answer in await server.publish(batch)]

    async with serving(path) as server:
        async with trio.open_nursery() as nursery:
            for number in range(20):
                nursery.start_soon(publish, number)
        assert await server.counts("q") == Counts(ready=21)
    assert Counter(answer[1] for answer in answers.values()) == {"NoneType": 1, "DuplicateId": 19}
    assert {(answer[0], answer[2]) for answer in answers.values()} == {("NoneType", "QueueNotDeclared")}


@pytest.mark.parametrize("seed", range(5))
async def test_cancelled_at_any_time_nothing_is_lost_or_doubled(path: Path, seed: int) -> None:
    chance = random.Random(seed)
    accepted: set[str] = set()
    received: list[str] = []
    done = 0

    async def produce(name: int) -> None:
        nonlocal done
        for number in range(30):
            batch = [message(f"{name} {number} {part}") for part in range(chance.randint(1, 3))]
            with trio.move_on_after(chance.uniform(0, 0.004)):
                assert await server.publish(batch) == [None] * len(batch)
                accepted.update(envelope.id for envelope in batch)
        done += 1

    async def consume() -> None:
        async with consuming(server) as consumer:
            while True:
                deliveries: list[Delivery] = []
                with trio.move_on_after(chance.uniform(0, 0.006)):
                    deliveries = await consumer.receive(7)
                assert all(await ack(consumer, deliveries))
                received.extend(ids(deliveries))
                if done == 10 and not deliveries and await server.counts("q") == Counts():
                    return

    async with serving(path) as server, trio.open_nursery() as nursery:
        for name in range(10):
            nursery.start_soon(produce, name)
        for _ in range(3):
            nursery.start_soon(consume)
    assert Counter(received) == Counter(accepted)


# Several objects and processes


async def test_another_connection_wakes_who_waits_soon(path: Path) -> None:
    received: list[str] = []

    async def wait(server: SQLiteServer) -> None:
        async with consuming(server) as consumer:
            received.extend(ids(await consumer.receive(1)))

    async with serving(path) as one, serving(path) as two:
        with trio.fail_after(5):  # ten times a few milliseconds; the look in any case comes once a second
            for number in range(10):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(wait, one)
                    await idle()
                    await two.publish(messages([number]))
    assert received == [str(number) for number in range(10)]


async def test_cancelling_watching_and_pausing_reach_other_connections(path: Path) -> None:
    async with serving(path) as one, serving(path) as two, consuming(one) as consumer:
        await one.publish(messages("1"))
        [delivery] = await consumer.receive(1)
        seen = await two.watch("1", "1")
        assert seen.state == "leased"
        assert await two.cancel("1") == "requested"
        with trio.fail_after(5):
            assert await consumer.events() == [LeaseEvent(delivery.token, "cancel")]
            seen = await two.watch("1", "1", seen)
            assert seen.cancelling
            await consumer.settle([Settlement(delivery, Cancel(), (), NewResult(id="1", state="cancelled"))])
            seen = await two.watch("1", "1", seen)
        assert seen.state == "gone"
        await two.pause("q")
        await one.publish(messages("2"))
        assert await now_ready(consumer) == []
        await one.resume("q")
        async with consuming(two) as other:
            assert ids(await now_ready(other)) == ["2"]


async def test_topics_that_a_consumer_elsewhere_takes_are_not_taken_from_it(path: Path) -> None:
    async with serving(path) as one, serving(path) as two, consuming(one, frozenset("a")) as consumer:
        await two.publish([message("1", topic="a"), message("2", topic="b"), message("3", topic="c"), message("4")])
        async with consuming(two, frozenset("b")):
            assert ids(await now_ready(consumer)) == ["1", "3", "4"]
        assert ids(await consumer.receive(10)) == ["2"]  # as soon as the other one is struck off


@asynccontextmanager
async def beside_a_dead_process(path: Path, clock: SteppedClock) -> AsyncGenerator[tuple[SQLiteServer, Consumer], None]:
    """A server with a consumer of the topic "a", while a process that took "b" is silent: its clock stands still."""
    async with (
        serving(path, clock=clock) as one,
        serving(path, clock=SteppedClock()) as dead,
        consuming(dead, frozenset("b")),
        consuming(one, frozenset("a")) as consumer,
    ):
        yield one, consumer


async def test_what_only_a_dead_process_takes_goes_to_others(path: Path) -> None:
    clock = SteppedClock()
    async with beside_a_dead_process(path, clock) as (one, consumer):
        await one.publish([message("1", topic="b")])
        assert await now_ready(consumer) == []
        clock.advance(CONSUMER_SECONDS + 1)
        assert ids(await now_ready(consumer)) == ["1"]


async def test_the_consumers_of_a_dead_process_do_not_stay_in_the_file(path: Path) -> None:
    clock = SteppedClock()
    async with beside_a_dead_process(path, clock) as (_, consumer):
        clock.advance(CONSUMER_SECONDS + 1)
        await consumer.rescue()
        with closing(sqlite3.connect(path)) as file:
            assert file.execute("SELECT count(*) FROM consumer").fetchall() == [(1,)]


async def test_what_a_dead_process_took_goes_to_others_at_the_end_of_its_own_time(path: Path) -> None:
    clock = SteppedClock()
    async with beside_a_dead_process(path, clock) as (one, consumer):
        await one.publish([message("1", topic="b")])
        clock.advance(CONSUMER_SECONDS * 0.9)
        await consumer.rescue()  # which renews this consumer, so that its time ends later
        assert await now_ready(consumer) == []
        clock.advance(CONSUMER_SECONDS * 0.1 + 1)  # before the next renewal, after which all is looked at anew
        assert ids(await now_ready(consumer)) == ["1"]


async def test_what_a_closed_connection_took_goes_to_others_at_once(path: Path) -> None:
    async with serving(path) as one, consuming(one, frozenset("a")) as consumer:
        async with serving(path) as two:
            left_open = two.consume({"q": frozenset("b")})
            await left_open.__aenter__()
            await one.publish([message("1", topic="b")])
            assert await now_ready(consumer) == []
        assert ids(await now_ready(consumer)) == ["1"]
        await left_open.__aexit__(None, None, None)


async def test_a_consumer_believed_dead_comes_back(path: Path) -> None:
    clock, late = SteppedClock(), SteppedClock()
    async with (
        serving(path, clock=clock) as one,
        serving(path, clock=late) as two,
        consuming(two, frozenset("b")) as suspended,
        consuming(one, frozenset("a")) as consumer,
    ):
        clock.advance(CONSUMER_SECONDS + 1)
        await consumer.rescue()
        late.advance(CONSUMER_SECONDS + 1)
        await suspended.rescue()
        await one.publish([message("1", topic="b")])
        assert await now_ready(consumer) == []
        assert ids(await now_ready(suspended)) == ["1"]


@pytest.mark.real_time
async def test_another_process_produces_while_we_consume(path: Path) -> None:
    code = """
        import sys, trio
        from repid.brokers import SQLiteServer
        from repid.envelope import Envelope
        async def main():
            server = SQLiteServer(sys.argv[1])
            async with server.connection():
                for number in range(100):
                    await server.publish([Envelope(f"{number} {part}", "q", b"x") for part in range(5)])
        trio.run(main)
    """
    received: list[str] = []
    async with serving(path) as server, consuming(server) as consumer:
        processes = start_python(code, path)
        with trio.fail_after(60):
            while len(received) < 500:
                deliveries = await consumer.receive(50)
                assert all(await ack(consumer, deliveries))
                received += ids(deliveries)
        await trio.to_thread.run_sync(processes.communicate)
    assert Counter(received) == Counter(f"{number} {part}" for number in range(100) for part in range(5))


@pytest.mark.real_time
async def test_two_processes_share_the_work_each_message_once(path: Path) -> None:
    code = """
        import json, sys, trio
        from repid.brokers import SQLiteServer
        from repid.delivery import ACK, Settlement
        async def main():
            server, got = SQLiteServer(sys.argv[1]), []
            async with server.connection(), server.consume({"q": None}) as consumer:
                print("ready", flush=True)
                input()
                while deliveries := await consumer.receive(5, max_wait=0.5):
                    verdicts = await consumer.settle([Settlement(delivery, ACK) for delivery in deliveries])
                    assert all(verdict.accepted for verdict in verdicts)
                    got += [delivery.envelope.id for delivery in deliveries]
            print(json.dumps(got))
        trio.run(main)
    """
    async with serving(path) as server:
        await server.publish(messages(range(1000)))
        processes = [start_python(code, path) for _ in range(2)]
        for process in processes:
            assert process.stdout is not None
            await trio.to_thread.run_sync(process.stdout.readline)
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("\n")
            process.stdin.flush()
        got = [json.loads((await trio.to_thread.run_sync(process.communicate))[0]) for process in processes]
        assert await server.counts("q") == Counts()
    assert Counter(got[0] + got[1]) == Counter(map(str, range(1000)))


# Clocks


async def test_a_restarted_machine_ends_all_leases(path: Path) -> None:
    async with serving(path) as server, consuming(server) as consumer:
        await server.publish(messages("1"))
        [before] = await now_ready(consumer)
    clock = SteppedClock()
    clock.boot_id = "another boot"
    clock.passed = -clock.boot()  # the machine has just come up
    async with serving(path, clock=clock) as server, consuming(server) as consumer:
        assert await server.counts("q") == Counts(leased=1)
        assert await consumer.rescue() == 1
        [after] = await now_ready(consumer)
        assert (after.lost, after.attempt) == (1, 1)
        assert await ack(consumer, [before]) == [False]
        assert await ack(consumer, [after]) == [True]


async def test_the_wall_clock_does_not_move_leases(path: Path) -> None:
    clock = SteppedClock()
    async with serving(path, clock=clock) as server, consuming(server) as consumer:
        await server.publish(messages("1"))
        [delivery] = await now_ready(consumer)
        for step in (1e6, -2e6):
            clock.step_wall(step)
            assert await consumer.rescue() == 0
        clock.advance(61)
        assert await consumer.rescue() == 1
        assert await ack(consumer, [delivery]) == [False]


async def test_a_step_back_delays_and_a_step_forward_hastens_but_nothing_is_lost(path: Path) -> None:
    clock = SteppedClock()
    async with serving(path, clock=clock) as server, consuming(server) as consumer:
        await server.publish([message("late", delay=10), message("ready"), message("mortal", ttl=5)])
        clock.step_wall(-3600)
        await server.publish(messages(["after"]))
        clock.advance(20)
        assert sorted(ids(await now_ready(consumer))) == ["after", "mortal", "ready"]
        assert await server.counts("q") == Counts(scheduled=1, leased=3)
        clock.step_wall(3600)
        assert ids(await now_ready(consumer)) == ["late"]


async def test_who_waits_gets_a_delayed_message_when_it_is_due(path: Path) -> None:
    async with serving(path) as server, consuming(server) as consumer:
        before = trio.current_time()
        await server.publish([message("1", delay=0.1)])
        with trio.fail_after(5):
            assert ids(await consumer.receive(1)) == ["1"]
        assert trio.current_time() - before > 0.09


# Rows


async def test_ids_that_look_alike_are_different_ids(path: Path) -> None:
    alike = ["a" * 32, "A" * 32, "a" * 31, "a" * 30 + " a", "ä" * 32, "0" * 32]
    async with serving(path) as server, consuming(server) as consumer:
        assert await server.publish(messages(alike)) == [None] * len(alike)
        assert ids(await now_ready(consumer)) == alike


async def test_an_envelope_comes_back_as_it_was(path: Path) -> None:
    sent = [
        Envelope(
            "1", "q", b"\x00\xff", "text/plain", {"topic": "t", "x": "ü"}, "r", Options(retries=3), {"a": [1, b"b"]}
        ),
        Envelope("2", "q", b"", "application/json", {"topic": ""}),
        Envelope("3", "q", b"", "application/msgpack", {"x": "y"}),
        Envelope("4", "q", b"", None, {}, "r"),
        Envelope("5", "q", b"", "", {}, None, Options(timeout=float("inf"), result_id="r", store_result=False)),
    ]
    async with serving(path) as server, consuming(server) as consumer:
        await server.publish(sent)
        assert [delivery.envelope for delivery in await now_ready(consumer)] == sent


@pytest.mark.parametrize(
    "bad",
    [
        Envelope("1", "q", b"", parameters={"a": object()}),
        Envelope("1\ud800", "q", b""),
        Envelope("1", "q", b"", headers={"topic": "\ud800"}),
        Envelope("1", "q", b"", options=Options(retries=10**30)),
    ],
    ids=["parameters", "id", "topic", "options"],
)
async def test_what_cannot_be_written_is_refused_with_its_whole_batch(path: Path, bad: Envelope) -> None:
    async with serving(path) as server:
        with pytest.raises(ConfigurationError, match=r"cannot be (published|written to SQLite)"):
            await server.publish([message("0"), bad])
        assert await server.counts("q") == Counts()


async def test_numbers_that_fit_no_file_are_answered_like_unknown_ones(path: Path) -> None:
    async with serving(path) as server, consuming(server) as consumer:
        huge = Delivery(message("1"), 1, 0, 10**30)
        assert await consumer.extend([huge]) == [False]
        assert await ack(consumer, [huge]) == [False]
        [answer] = await server.revive("q", [str(10**30)])
        assert isinstance(answer, BrokerRefused)


async def test_many_topics_are_claimed_by_rank_and_forgotten_when_empty(path: Path) -> None:
    count = 1100
    async with serving(path) as server, consuming(server) as consumer:
        sent = [message(str(n), topic=f"topic {n % count}") for n in range(2 * count)]
        await server.publish(sent[:count])
        await server.publish(sent[count:])
        first = await now_ready(consumer, 300)
        assert ids(first) == [envelope.id for envelope in sent[:300]]
        rest = await now_ready(consumer, 5000)
        assert ids(rest) == [envelope.id for envelope in sent[300:]]
        await consumer.settle([Settlement(first[0], Release()), Settlement(first[1], Retry(1000))])
        await ack(consumer, first[3:] + rest)
        await consumer.rescue()
        await server.publish([message("new", topic="topic 5")])
        assert await server.counts("q") == Counts(ready=2, scheduled=1, leased=1)
        assert ids(await now_ready(consumer)) == ["0", "new"]


async def test_many_can_watch_at_once(path: Path) -> None:
    ended: list[str] = []

    async def watch(id_: str) -> None:
        seen = None
        while seen is None or seen.state != "gone":
            seen = await server.watch(id_, id_, seen)
        ended.append(id_)

    async with serving(path) as server, consuming(server) as consumer:
        names = [str(number) for number in range(100)]
        await server.publish(messages(names))
        with trio.fail_after(20):
            async with trio.open_nursery() as nursery:
                for name in names:
                    nursery.start_soon(watch, name)
                while deliveries := await now_ready(consumer, 9):
                    await ack(consumer, deliveries)
    assert sorted(ended) == sorted(names)


# With an app


async def test_an_app_runs_on_it(path: Path) -> None:
    router, seen = Router(), Counter[int]()

    @router.actor
    async def add(number: int) -> None:
        seen[number] += 1

    app = Repid(Connection(SQLiteServer(path)))
    app.include_router(router)
    async with app.magic():
        await app.send_messages_json(
            channel="default", payloads=[{"number": n} for n in range(200)], headers={"topic": "add"}
        )
        report = await app.run_worker(burst=True, handle_signals=())
    assert report.succeeded == 200
    assert seen == Counter(range(200))
    assert threads() == []


async def test_what_is_told_of_a_poisonous_message_has_its_times_in_seconds(path: Path) -> None:
    clock = SteppedClock()
    async with serving(path, clock=clock, lease_timeout=10) as server, consuming(server) as consumer:
        await server.publish([message("killer")])
        for _ in range(10):
            assert len(await consumer.receive(1, at_most=AtMost(alone=True), max_wait=0)) == 1
            clock.advance(20)
            assert await consumer.rescue() == 1
        [dead] = await server.browse("q", "dead")
    assert dead.failure is not None
    assert "while its worker held nothing else and within 160." in dead.failure.text
    assert ", 20.0 s before it was given up" in dead.failure.text


async def test_a_consumer_whose_block_is_cancelled_is_struck_off(path: Path) -> None:
    async with serving(path) as server, serving(path) as other:
        with trio.CancelScope() as scope:
            async with consuming(server, frozenset({"a"})):
                scope.cancel()
        assert scope.cancelled_caught or scope.cancel_called
        await server.publish([message("1", topic="a")])
        async with consuming(other, frozenset({"b"})) as consumer:
            assert ids(await consumer.receive(1, max_wait=5)) == ["1"]  # nobody else takes it now
