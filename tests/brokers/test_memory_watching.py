"""How long a look at a message of the memory broker holds, and results that are handed over."""

from __future__ import annotations

import trio
from trio.testing import MockClock

from repid import Envelope, InMemoryServer
from repid.delivery import ACK, DeadLetter, Disposition, NewResult, Retry, Settlement
from repid.envelope import Options
from repid.ports import Followed, Snapshot

PAIR = ("a", "a")


async def test_who_watches_a_message_that_was_started_does_not_look_all_the_time_once_its_ttl_is_over(
    autojump_clock: MockClock,
) -> None:
    server = InMemoryServer()
    looks: list[str] = []
    server.add_instrument(lambda call: looks.append(call.name))
    async with server.connection():
        await server.declare(["q"])
        await server.publish([Envelope("a", "q", b"", options=Options(ttl=1.0))])
        async with server.consume({"q": None}) as consumer:
            await consumer.settle([Settlement(d, Retry(100.0)) for d in await consumer.receive(1)])
            seen = await server.watch("a", "a")
            await trio.sleep(2)
            with trio.move_on_after(50):
                await server.watch("a", "a", seen)
    assert looks.count("snapshots") == 2


async def publish(server: InMemoryServer) -> None:
    assert await server.publish([Envelope("a", "q", b"")]) == [None]


async def end(server: InMemoryServer, disposition: Disposition = ACK, *, has_result: bool = True) -> None:
    result = NewResult(id="a", state="success", payload=b"1") if has_result else None
    async with server.consume({"q": None}) as consumer:
        [delivery] = await consumer.receive(1)
        await consumer.settle([Settlement(delivery, disposition, result=result)])


async def end_of(following: Followed) -> Snapshot:
    with trio.fail_after(100):
        [(pair, snapshot)] = await following.ended()
    assert pair == PAIR
    return snapshot


async def test_a_result_that_only_its_follower_wants_is_handed_over_and_not_stored(autojump_clock: MockClock) -> None:
    server = InMemoryServer()
    async with server.connection(), trio.open_nursery() as nursery:
        await server.declare(["q"])
        with server.follow() as following:
            for is_early in (True, False):
                following.add([PAIR], look_first=False, take_results=True)
                await publish(server)
                if is_early:
                    await end(server)
                else:
                    nursery.start_soon(end, server)
                snapshot = await end_of(following)
                assert snapshot.state == "gone"
                assert snapshot.result is not None
                assert (snapshot.result.payload, snapshot.result.state) == (b"1", "success")
                assert snapshot.result.expires_at == snapshot.result.finished_at
                assert await server.fetch_results(["a"]) == [None]


async def test_a_result_that_somebody_else_wants_too_is_stored_for_all(autojump_clock: MockClock) -> None:
    server = InMemoryServer()
    async with server.connection(), trio.open_nursery() as nursery:
        await server.declare(["q"])
        with server.follow() as following, server.follow() as other:
            following.add([PAIR], look_first=False, take_results=True)
            await publish(server)
            other.add([PAIR], take_results=True)
            await end(server)
            first, second = await end_of(following), await end_of(other)
        with server.follow() as following:
            following.add([PAIR], look_first=False, take_results=True)
            await publish(server)
            seen = await server.watch("a", "a")
            states: list[Snapshot] = []

            async def watch() -> None:
                now = seen
                while now.state != "gone":
                    now = await server.watch("a", "a", now)
                states.append(now)

            nursery.start_soon(watch)
            await trio.testing.wait_all_tasks_blocked()
            await end(server)
            third = await end_of(following)
            await trio.testing.wait_all_tasks_blocked()
    assert len(states) == 1
    for snapshot in (first, second, third, *states):
        assert snapshot.result is not None
        assert snapshot.result.expires_at > snapshot.result.finished_at


async def test_a_wait_that_is_cancelled_loses_no_result_that_was_handed_over(autojump_clock: MockClock) -> None:
    server = InMemoryServer()
    async with server.connection():
        await server.declare(["q"])
        with server.follow() as following:
            following.add([PAIR], look_first=False, take_results=True)
            await publish(server)
            await end(server)
            with trio.CancelScope() as scope:
                scope.cancel()
                await following.ended()
            assert scope.cancelled_caught
            assert (await end_of(following)).result is not None


async def test_the_end_of_a_message_is_told_also_where_there_is_no_result_to_take(autojump_clock: MockClock) -> None:
    server = InMemoryServer()
    async with server.connection():
        await server.declare(["q"])
        with server.follow() as following:
            ends: list[tuple[str, object]] = []
            for disposition in (ACK, DeadLetter("failed")):
                following.add([PAIR], look_first=False, take_results=True)
                await publish(server)
                await end(server, disposition, has_result=False)
                snapshot = await end_of(following)
                ends.append((snapshot.state, snapshot.result))
            assert ends == [("gone", None), ("dead", None)]


async def test_an_end_without_a_result_is_told_although_results_are_handed_over_all_the_time(
    autojump_clock: MockClock,
) -> None:
    server = InMemoryServer()
    ended: list[str] = []
    async with server.connection():
        await server.declare(["q", "flushed"])
        with server.follow() as following:
            following.add([("b", "b")], look_first=False, take_results=True)
            await server.publish([Envelope("b", "flushed", b"")])
            await server.flush("flushed")
            for _ in range(3):
                following.add([PAIR], look_first=False, take_results=True)
                await publish(server)
                await end(server)
                ended += [message[0] for message, _ in await following.ended()]
    assert sorted(ended) == ["a", "a", "a", "b"]


async def test_a_result_that_comes_by_a_look_is_told_once(autojump_clock: MockClock) -> None:
    server = InMemoryServer()
    async with server.connection():
        await server.declare(["q"])
        with server.follow() as following:
            following.add([PAIR], take_results=True)
            options = Options(ttl=5, store_result=True)
            await server.publish([Envelope("a", "q", b"", options=options)])
            snapshot = await end_of(following)
            assert snapshot.result is not None
            assert snapshot.result.state == "expired"
            with trio.move_on_after(100) as scope:
                await following.ended()
            assert scope.cancelled_caught
