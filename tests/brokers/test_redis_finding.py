"""The server is found: the primary that sentinels name, also after a failover, and the node of a cluster that has the keys."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack, suppress

import pytest
import trio
from engines.redis import Redis, embedded, sentinel
from engines.starting import free_port
from trio.testing import wait_all_tasks_blocked

from repid import BrokerUnavailable, ConfigurationError, Connection, Job, Repid, Router
from repid.brokers.redis import RedisServer
from repid.brokers.redis.address import parse_address
from repid.brokers.redis.errors import moved_to
from repid.brokers.redis.finding import open_stream

from .broker_aids import message

pytestmark = pytest.mark.real_time

NAME = "mymaster"
SLOTS = 16384


def test_addresses_with_several_hosts_are_read() -> None:
    address = parse_address("rediss+sentinel://me:pass%20word@a:1,b,[::1]:3/mymaster/2?sentinel_password=other")
    assert (address.kind, address.service, address.database, address.secure) == ("sentinel", NAME, 2, True)
    assert address.nodes == (("a", 1), ("b", 26379), ("::1", 3))
    assert (address.login, address.sentinel_login) == (("me", "pass word"), ("default", "other"))
    assert str(address) == "rediss+sentinel://a:1,b:26379,::1:3/mymaster/2"
    cluster = parse_address("redis+cluster://a,b:7001")
    assert (cluster.kind, cluster.nodes, cluster.login) == ("cluster", (("a", 6379), ("b", 7001)), ())


def test_where_a_node_sends_us_is_read() -> None:
    assert moved_to("MOVED 866 10.0.0.7:6380") == ("10.0.0.7", 6380)
    assert moved_to("MOVED 866 :6380") == ("", 6380)
    assert moved_to("ASK 866 10.0.0.7:6380") is None


def port_of(redis: Redis) -> int:
    return parse_address(redis.url).port


class Group:
    """A primary, its replica, and a sentinel."""

    def __init__(self, primary: Redis, replica: Redis, watcher: Redis) -> None:
        self.primary = primary
        self.replica = replica
        self.url = f"redis+sentinel://127.0.0.1:{port_of(watcher)}/{NAME}/0"
        self.watcher = watcher

    async def is_ready(self) -> None:
        """Wait until the sentinel knows the replica, and that is in step."""
        with trio.fail_after(20):
            while b"slave" not in str(self.watcher.execute("SENTINEL", "REPLICAS", NAME)).encode():
                await trio.sleep(0.1)
            while b"master_link_status:up" not in self.replica.execute("INFO", "replication"):
                await trio.sleep(0.1)


@pytest.fixture
def group() -> Iterator[Group]:
    with ExitStack() as stack:
        primary = stack.enter_context(embedded())
        replica = stack.enter_context(embedded("--replicaof", "127.0.0.1", str(port_of(primary))))
        yield Group(primary, replica, stack.enter_context(sentinel(primary, NAME)))


async def test_who_receives_waits_on_if_what_had_come_is_gone_again() -> None:
    """Rarely the system says that something has come, and then there is nothing."""
    with trio.fail_after(10), socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        async with (
            open_stream(parse_address(f"redis://127.0.0.1:{port}"), None) as stream,
            trio.open_nursery() as nursery,
        ):
            peer, _ = listener.accept()
            received: list[bytes] = []

            async def receive() -> None:
                received.append(bytes(await stream.receive_some(100)))

            own: socket.socket = vars(stream)["_socket"]  # somebody else takes what has come
            with peer:
                for number in range(20):  # trio lets either of the two go on first
                    nursery.start_soon(receive)
                    await wait_all_tasks_blocked()
                    peer.sendall(b"gone")
                    await trio.lowlevel.checkpoint()
                    with suppress(BlockingIOError):
                        own.recv(100)
                    await wait_all_tasks_blocked()
                    if len(received) == number:
                        peer.sendall(b"stays")
                        await wait_all_tasks_blocked()
                    assert len(received) == number + 1
    assert set(received) == {b"gone", b"stays"}


async def test_what_replicas_have_survives_a_failover_and_workers_follow(group: Group) -> None:
    await group.is_ready()
    seen: set[int] = set()
    app, router = Repid(Connection(RedisServer(group.url, lease_timeout=1.0))), Router()

    @router.actor
    async def work(number: int) -> None:
        seen.add(number)

    app.include_router(router)
    sure = RedisServer(group.url, wait_replicas=1)
    async with sure.connection():
        await sure.declare(["default"])
        await sure.pause("default")
        await sure.publish(
            [message(str(n), "default", "work", b'{"number": %d}' % n, delay=float(n % 2)) for n in range(50)]
        )
    assert group.primary.process is not None
    async with app.magic(), trio.open_nursery() as nursery:
        handle = await nursery.start(app.run_worker)
        group.primary.process.crash()
        with trio.fail_after(30):
            while True:
                try:
                    await app.server().resume("default")
                    break
                except BrokerUnavailable:
                    await trio.sleep(0.1)
            while len(seen) < 50:
                await trio.sleep(0.05)
            await Job("work", args={"number": 50}).enqueue()
            while len(seen) < 51:
                await trio.sleep(0.05)
        handle.stop()
    assert b"role:master" in group.replica.execute("INFO", "replication")


async def test_sentinels_that_are_away_and_unknown_names_are_told(group: Group) -> None:
    gone = free_port()
    with pytest.raises(
        BrokerUnavailable, match=f"it knows no primary called 'other'.*127.0.0.1:{gone}|{gone}.*'other'"
    ):
        async with RedisServer(
            group.url.replace(NAME, "other").replace("/other", f",127.0.0.1:{gone}/other")
        ).connection():
            pass
    some_away = group.url.replace(f"/{NAME}", f",127.0.0.1:{gone}/{NAME}")
    async with RedisServer(some_away).connection() as server:
        await server.declare(["q"])
        assert await server.publish([message("1")]) == [None]


@pytest.fixture
def cluster() -> Iterator[list[Redis]]:
    """Two nodes of a cluster, each with half of the slots."""
    with ExitStack() as stack:
        nodes = [
            stack.enter_context(embedded("--cluster-enabled", "yes", "--cluster-port", str(free_port())))
            for _ in range(2)
        ]
        nodes[0].execute("CLUSTER", "ADDSLOTSRANGE", 0, SLOTS // 2 - 1)
        nodes[1].execute("CLUSTER", "ADDSLOTSRANGE", SLOTS // 2, SLOTS - 1)
        [bus] = [part for part in nodes[1].execute("CONFIG", "GET", "cluster-port") if part.isdigit()]
        nodes[0].execute("CLUSTER", "MEET", "127.0.0.1", port_of(nodes[1]), bus.decode())
        yield nodes


async def is_whole(nodes: list[Redis]) -> None:
    with trio.fail_after(30):
        while not all(b"cluster_state:ok" in node.execute("CLUSTER", "INFO") for node in nodes):
            await trio.sleep(0.1)
        while not all(node.execute("CLUSTER", "INFO").count(b"cluster_known_nodes:2") for node in nodes):
            await trio.sleep(0.1)


async def test_the_node_of_a_cluster_that_has_the_keys_is_found_from_any_other(cluster: list[Redis]) -> None:
    await is_whole(cluster)
    for prefix in ("shop", "mail", "repid"):
        for node in cluster:
            url = f"redis+cluster://127.0.0.1:{free_port()},127.0.0.1:{port_of(node)}"
            async with RedisServer(url, prefix=prefix).connection() as server:
                await server.declare(["q"])
                async with server.consume({"q": None}) as consumer:
                    assert await server.publish([message("1")]) == [None]
                    assert len(await consumer.receive(1)) == 1
                await server.delete("q")


async def test_another_node_of_a_cluster_is_refused_by_a_plain_address(cluster: list[Redis]) -> None:
    await is_whole(cluster)
    slot = cluster[0].execute("CLUSTER", "KEYSLOT", "{repid}:queues")
    with pytest.raises(ConfigurationError, match=r"give RedisServer redis\+cluster://"):
        async with RedisServer(f"redis://127.0.0.1:{port_of(cluster[slot < SLOTS // 2])}").connection():
            pass
    async with RedisServer(f"redis://127.0.0.1:{port_of(cluster[slot >= SLOTS // 2])}").connection() as server:
        await server.declare(["q"])


async def test_a_worker_follows_its_slot_to_another_node(cluster: list[Redis]) -> None:
    await is_whole(cluster)
    slot = cluster[0].execute("CLUSTER", "KEYSLOT", "{repid}:queues")
    old, new = cluster if slot < SLOTS // 2 else cluster[::-1]
    ids = {node: node.execute("CLUSTER", "MYID").decode() for node in cluster}
    async with RedisServer(f"redis+cluster://127.0.0.1:{port_of(old)}").connection() as server:
        await server.declare(["q"])
        await server.publish([message(str(n)) for n in range(20)])
        new.execute("CLUSTER", "SETSLOT", slot, "IMPORTING", ids[old])
        old.execute("CLUSTER", "SETSLOT", slot, "MIGRATING", ids[new])
        while keys := old.execute("CLUSTER", "GETKEYSINSLOT", slot, 100):
            old.execute("MIGRATE", "127.0.0.1", port_of(new), "", 0, 5000, "KEYS", *keys)
        for node in (new, old):
            node.execute("CLUSTER", "SETSLOT", slot, "NODE", ids[new])
        with trio.fail_after(20):
            while True:
                try:
                    async with server.consume({"q": None}) as consumer:
                        assert len(await consumer.receive(30)) == 20
                    break
                except BrokerUnavailable:
                    await trio.sleep(0.1)
