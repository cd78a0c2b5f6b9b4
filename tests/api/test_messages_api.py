"""The message API: sending, the message an actor gets, its verbs, replies and outbox, middlewares."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Sequence
from datetime import timedelta
from functools import partial
from typing import Any

import msgspec
import pytest
import trio
from aids import UnreliableServer, send

from repid import (
    AlreadySettled,
    BrokerRefused,
    ConfigurationError,
    Connection,
    Counts,
    DuplicateId,
    Envelope,
    Handle,
    InMemoryMessageBroker,
    InMemoryServer,
    Job,
    LeaseLost,
    Message,
    Outcomes,
    PayloadError,
    PrioritiesT,
    Publish,
    Repid,
    Report,
    Router,
    UsageError,
    catch_all_routing_strategy,
)
from repid.producer import make_envelope

# Sending


async def test_a_message_reaches_its_actor_as_it_was_sent(app: Repid, router: Router) -> None:
    seen: list[tuple[Any, ...]] = []

    @router.actor
    async def job(message: Message) -> None:
        m = message
        seen.append((m.payload, m.content_type, m.headers, m.channel, m.reply_to, m.message_id, m.attempt))
        seen.append((m.is_acted_on, m.action))

    sent = await app.send_message(
        channel="default",
        payload=b"\x00\xff",
        content_type="application/octet-stream",
        headers={"topic": "job", "x": "y"},
        reply_to="replies",
        message_id="an id",
    )
    await app.run_worker(burst=True)
    assert seen == [
        (b"\x00\xff", "application/octet-stream", {"topic": "job", "x": "y"}, "default", "replies", "an id", 1),
        (False, None),
    ]
    assert (sent.id, sent.channel, sent.topic) == ("an id", "default", "job")


async def test_json_is_anything_msgspec_can_encode(app: Repid, router: Router) -> None:
    class Point(msgspec.Struct):
        x: int
        when: timedelta

    seen: list[tuple[int, timedelta]] = []

    @router.actor
    async def job(x: int, when: timedelta) -> None:
        seen.append((x, when))

    sent = await app.send_message_json(
        channel="default", payload=Point(3, timedelta(seconds=5)), headers={"topic": "job"}
    )
    assert sent.content_type == "application/json"
    await app.run_worker(burst=True)
    assert seen == [(3, timedelta(seconds=5))]


async def test_no_payload_is_no_arguments(app: Repid, router: Router) -> None:
    seen: list[int] = []

    @router.actor
    async def job(x: int = 7) -> None:
        seen.append(x)

    await app.send_message_json(channel="default", headers={"topic": "job"})
    await app.send_message(channel="default", payload=b"", headers={"topic": "job"})
    await app.run_worker(burst=True)
    assert seen == [7, 7]


async def test_many_messages_are_sent_in_one_step_with_ids_of_their_own(
    app: Repid, router: Router, server: UnreliableServer
) -> None:
    seen: list[int] = []

    @router.actor
    async def job(i: int) -> None:
        seen.append(i)

    sent = await app.send_messages_json(
        channel="default", payloads=({"i": i} for i in range(100)), headers={"topic": "job"}
    )
    raw = await app.send_messages(channel="default", payloads=[b'{"i": 100}'], headers={"topic": "job"})
    assert len({envelope.id for envelope in [*sent, *raw]}) == 101
    assert await server.counts("default") == Counts(ready=101)
    await app.run_worker(burst=True)
    assert sorted(seen) == list(range(101))
    assert await app.send_messages(channel="default", payloads=[]) == []


async def test_a_channel_is_declared_by_the_first_send(app: Repid, server: UnreliableServer) -> None:
    await app.send_message(channel="brand/new", payload=b"")
    assert await server.counts("brand/new") == Counts(ready=1)


async def test_a_live_id_is_refused_and_a_finished_one_is_free(app: Repid, router: Router) -> None:
    @router.actor
    async def job() -> None: ...

    async def once() -> None:
        await app.send_message(channel="default", payload=b"", message_id="one", headers={"topic": "job"})

    await once()
    with pytest.raises(DuplicateId, match="'one'"):
        await once()
    await app.run_worker(burst=True)
    await once()


async def test_delay_ttl_and_priority_travel(app: Repid, server: UnreliableServer, router: Router) -> None:
    order: list[str] = []

    @router.actor
    async def job(name: str) -> None:
        order.append(name)

    async def give(name: str, **options: Any) -> None:
        await app.send_message_json(channel="default", payload={"name": name}, headers={"topic": "job"}, **options)

    await give("low", priority=PrioritiesT.LOW)
    await give("medium")
    await give("high", priority=PrioritiesT.HIGH)
    await give("later", delay=timedelta(seconds=5))
    await give("too late", ttl=2)
    await trio.sleep(3)
    await app.run_worker(burst=True, tasks_limit=1)
    assert order == ["high", "medium", "low"]
    assert [m.reason for m in await server.browse("default", "dead")] == ["expired"]
    await trio.sleep(2)
    await app.run_worker(burst=True)
    assert order == ["high", "medium", "low", "later"]


async def test_a_low_message_overtakes_a_high_one_that_came_ten_minutes_later(app: Repid, router: Router) -> None:
    order: list[str] = []

    @router.actor
    async def job(name: str) -> None:
        order.append(name)

    for name, priority in (("low", PrioritiesT.LOW), ("high", PrioritiesT.HIGH)):
        await app.send_message_json(
            channel="default", payload={"name": name}, headers={"topic": "job"}, priority=priority
        )
        await trio.sleep(601)
    await app.run_worker(burst=True, tasks_limit=1)
    assert order == ["low", "high"]


async def test_server_specific_parameters_are_kept(app: Repid, server: UnreliableServer) -> None:
    given = {"partition": 5}
    sent = await app.send_message(channel="default", payload=b"", server_specific_parameters=given)
    given["partition"] = 6
    [ready] = await server.browse("default", "ready")
    assert (sent.parameters, ready.envelope.parameters) == ({"partition": 5}, {"partition": 5})


async def test_messages_with_nothing_but_the_same_topic_share_their_headers(app: Repid) -> None:
    first = await app.send_message(channel="default", payload=b"", headers={"topic": "job"})
    second = await app.send_message_json(channel="default", payload=None, headers={"to" + "pic": "job"})
    other = await app.send_message(channel="default", payload=b"", headers={"topic": "other"})
    assert first.headers is second.headers
    assert (first.headers, other.headers) == ({"topic": "job"}, {"topic": "other"})


def test_a_topic_of_megabytes_is_not_kept_after_its_message() -> None:
    def traced() -> int:
        gc.collect()
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        before = traced()
        for n in range(20):
            make_envelope("default", b"", None, {"headers": {"topic": f"{n}" * 1_000_000}})
        assert traced() - before < 1_000_000
    finally:
        tracemalloc.stop()


async def test_headers_that_somebody_has_changed_against_the_rule_are_not_those_of_the_next_message(app: Repid) -> None:
    first = await app.send_message(channel="default", payload=b"", headers={"topic": "job"})
    first.headers["x"] = "y"
    second = await app.send_message(channel="default", payload=b"", headers={"topic": "job"})
    second.headers["topic"] = "other"
    third = await app.send_message(channel="default", payload=b"", headers={"topic": "job"})
    assert (second.headers, third.headers) == ({"topic": "other"}, {"topic": "job"})


async def test_what_an_actor_does_to_its_headers_is_seen_by_no_other_message(app: Repid, router: Router) -> None:
    seen = []

    @router.actor
    async def job(message: Message) -> None:
        headers = message.headers
        assert isinstance(headers, dict)
        seen.append(dict(headers))
        headers["topic"] = headers["x"] = "y"

    for _ in range(2):
        await app.send_message(channel="default", payload=b"", headers={"topic": "job"})
    await app.run_worker(messages_limit=2)
    assert seen == [{"topic": "job"}] * 2


async def test_headers_are_a_copy(app: Repid, server: UnreliableServer) -> None:
    headers = {"topic": "job"}
    await app.send_message(channel="default", payload=b"", headers=headers)
    headers["topic"] = "other"
    [ready] = await server.browse("default", "ready")
    assert ready.envelope.headers == {"topic": "job"}


async def test_a_message_goes_to_the_server_named(app: Repid, server: UnreliableServer) -> None:
    other = InMemoryServer()
    app.servers.register_server("other", other)
    async with other.connection():
        await app.send_message(channel="default", payload=b"", server_name="other")
        await app.send_message(channel="default", payload=b"")
        assert (await server.counts("default"), await other.counts("default")) == (Counts(ready=1), Counts(ready=1))
        app.servers.set_default_server("other")
        await app.send_message(channel="default", payload=b"")
        assert (await server.counts("default"), await other.counts("default")) == (Counts(ready=1), Counts(ready=2))


async def test_a_worker_runs_on_the_server_named(app: Repid, router: Router) -> None:
    ran: list[str] = []

    @router.actor
    async def job() -> None:
        ran.append("job")

    other = InMemoryServer()
    app.servers.register_server("other", other)
    async with other.connection():
        await app.send_message(channel="default", payload=b"", headers={"topic": "job"}, server_name="other")
        assert await app.run_worker(burst=True) == Report()
        assert await app.run_worker(burst=True, server_name="other") == Report(processed=1, succeeded=1)


async def test_messages_survive_connection_blocks(router: Router, app: Repid) -> None:
    broker = InMemoryMessageBroker()
    other = Repid(Connection(broker))
    async with other.magic():
        await other.send_message(channel="default", payload=b"")
    assert not broker.is_connected
    async with other.magic(auto_disconnect=True), broker.connection():
        assert await broker.counts("default") == Counts(ready=1)


async def test_a_block_that_should_leave_its_connections_open_is_refused_and_told_what_to_do(app: Repid) -> None:
    with pytest.raises(ConfigurationError, match=r"put 'async with server.connection\(\):' around this block"):
        async with Repid(Connection(InMemoryServer())).magic(auto_disconnect=False):
            pass


# Routing


async def test_catch_all_takes_what_nobody_else_takes_first(app: Repid, router: Router) -> None:
    taken: list[str] = []

    @router.actor
    async def known() -> None:
        taken.append("known")

    @router.actor(routing_strategy=catch_all_routing_strategy)
    async def rest(message: Message) -> None:
        taken.append(message.headers.get("topic", "nothing"))

    await send(app, "known")
    await send(app, "strange")
    await app.send_message(channel="default", payload=b"")
    await app.run_worker(burst=True)
    assert sorted(taken) == ["known", "nothing", "strange"]


async def test_of_two_actors_that_take_a_message_the_first_gets_it(app: Repid) -> None:
    taken: list[str] = []
    for number in ("first", "second"):
        router = Router()

        @router.actor(name="job")
        async def job(number: str = number) -> None:
            taken.append(number)

        app.include_router(router)
    await send(app, "job")
    await app.run_worker(burst=True)
    assert taken == ["first"]


async def test_a_custom_strategy_routes_by_whatever_it_likes(app: Repid, router: Router) -> None:
    taken: list[str] = []

    def by_length(*, actor_name: str) -> Any:
        return lambda envelope: len(envelope.payload) == len(actor_name)

    for name in ("a", "bb", "ccc"):

        @router.actor(name=name, routing_strategy=by_length)
        async def job(message: Message, name: str = name) -> None:
            taken.append(name)

    for payload in (b"", b"{}", b"{ }"):
        await app.send_message(channel="default", payload=payload, content_type="application/json")
    await app.run_worker(burst=True)
    assert sorted(taken) == ["bb", "ccc"]


# Verbs


VERBS: list[tuple[str, dict[str, Any], str, Report, Counts]] = [
    ("ack", {}, "acked", Report(processed=1, succeeded=1), Counts()),
    ("nack", {}, "nacked", Report(processed=1, failed=1, dead=1), Counts(dead=1)),
    ("reject", {}, "rejected", Report(processed=1, released=1), Counts(ready=1)),
    ("retry", {}, "retried", Report(processed=1, retried=1), Counts(scheduled=1)),
    ("retry", {"delay": 5}, "retried", Report(processed=1, retried=1), Counts(scheduled=1)),
    ("retry", {"delay": 0}, "retried", Report(processed=1, retried=1), Counts(ready=1)),
    ("snooze", {"delay": timedelta(seconds=5)}, "snoozed", Report(processed=1, released=1), Counts(scheduled=1)),
    ("reply", {"payload": b"", "channel": "r"}, "replied", Report(processed=1, succeeded=1), Counts()),
    ("reply_json", {"payload": {}, "channel": "r"}, "replied", Report(processed=1, succeeded=1), Counts()),
]


@pytest.mark.parametrize(
    ("mode", "verb", "arguments", "action", "expected", "counts"),
    [
        (mode, *row)
        for mode in ("auto", "manual", "always_ack", "manual_explicit")
        for row in VERBS
        if (row[0], mode) != ("retry", "always_ack")  # which has no retries
    ],
)
async def test_a_verb_decides_in_every_mode(  # noqa: PLR0917  one for each column of the table
    app: Repid,
    router: Router,
    server: UnreliableServer,
    mode: Any,
    verb: str,
    arguments: dict[str, Any],
    action: str,
    expected: Report,
    counts: Counts,
) -> None:
    seen: list[tuple[bool, str | None]] = []

    @router.actor(confirmation_mode=mode, retries=0 if mode == "always_ack" else 1)
    async def job(message: Message) -> str:
        await getattr(message, verb)(**arguments)
        seen.append((message.is_acted_on, message.action))
        return "nack"

    await send(app, "job")
    assert await app.run_worker(messages_limit=1) == expected
    assert seen == [(True, action)]
    assert await server.counts("default") == counts


async def test_a_second_verb_is_refused_and_the_first_stands(
    app: Repid, router: Router, server: UnreliableServer
) -> None:
    refused: list[str] = []

    @router.actor
    async def job(message: Message) -> None:
        await message.ack()
        for verb, arguments in (
            ("ack", {}),
            ("nack", {}),
            ("reject", {}),
            ("retry", {}),
            ("snooze", {"delay": 1}),
            ("reply", {"payload": b""}),
            ("reply_json", {"payload": {}}),
        ):
            with pytest.raises(AlreadySettled, match="it has been acked already, which is final"):
                await getattr(message, verb)(**arguments)
            refused.append(verb)

    await send(app, "job")
    assert await app.run_worker(burst=True) == Report(processed=1, succeeded=1)
    assert len(refused) == 7


@pytest.mark.parametrize("verb", [partial(Message.retry, delay=0), Message.reject, partial(Message.snooze, delay=0)])
@pytest.mark.parametrize("pause", [0.0, 1.0])
async def test_two_runs_of_one_message_never_overlap(app: Repid, router: Router, verb: Any, pause: float) -> None:
    seen: list[str] = []

    @router.actor(retries=1)
    async def job(message: Message) -> None:
        seen.append("opens")
        await trio.sleep(pause)
        if len(seen) == 1:
            await verb(message)
        await trio.sleep(1)
        seen.append("closes")

    await send(app, "job")
    async with trio.open_nursery() as nursery:
        for _ in range(2):
            nursery.start_soon(partial(app.run_worker, burst=True))
    assert seen == ["opens", "closes"] * 2


async def test_a_verb_said_after_the_run_takes_effect_at_once(
    app: Repid, router: Router, server: UnreliableServer
) -> None:
    kept: list[Message] = []

    @router.actor(confirmation_mode="manual")
    async def job(message: Message) -> None:
        kept.append(message)

    await send(app, "job")
    async with trio.open_nursery() as nursery:
        handle: Handle = await nursery.start(app.run_worker)
        await trio.sleep(1)
        await kept[0].snooze(1000)
        assert await server.counts("default") == Counts(scheduled=1)
        handle.stop()


async def test_a_message_that_is_cancelled_after_its_retry_was_said_is_not_run_again(
    app: Repid, router: Router, server: UnreliableServer
) -> None:
    @router.actor(retries=1)
    async def job(message: Message) -> None:
        await message.retry(0)
        await trio.sleep(10)

    sent = await send(app, "job")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(partial(app.run_worker, messages_limit=1))
        await trio.sleep(1)
        await server.cancel(sent.id)
    assert await server.counts("default") == Counts()


async def test_retry_uses_an_attempt_and_snooze_and_reject_do_not(app: Repid, router: Router) -> None:
    seen: list[int] = []

    @router.actor(retries=2)
    async def job(message: Message) -> None:
        seen.append(message.attempt)
        match len(seen):
            case 1 | 4:
                await message.retry(0)
            case 2:
                await message.snooze(0)
            case 3:
                await message.reject()

    await send(app, "job")
    assert await app.run_worker(burst=True) == Report(processed=5, succeeded=1, retried=2, released=2)
    assert seen == [1, 2, 2, 2, 3]


async def test_a_retry_without_delay_follows_the_policy(app: Repid, router: Router, server: UnreliableServer) -> None:
    @router.actor(retries=1, retry_policy=lambda n: n * 33)
    async def job(message: Message) -> None:
        await message.retry()

    await send(app, "job")
    await app.run_worker(burst=True)
    [scheduled] = await server.browse("default", "scheduled")
    assert scheduled.due_in == 33


async def test_a_retry_in_the_last_attempt_is_an_error_and_leaves_the_message_open(app: Repid, router: Router) -> None:
    @router.actor
    async def job(message: Message) -> None:
        with pytest.raises(UsageError, match="attempt 1 is the last"):
            await message.retry()
        assert not message.is_acted_on

    await send(app, "job")
    assert await app.run_worker(burst=True) == Report(processed=1, succeeded=1)


async def test_a_verb_returns_when_the_broker_has_answered(
    app: Repid, router: Router, server: UnreliableServer
) -> None:
    answered: list[float] = []

    @router.actor
    async def job(message: Message) -> None:
        await message.ack()
        answered.append(trio.current_time() - started)

    server.failures["settle"] = 2
    started = trio.current_time()
    await send(app, "job")
    await app.run_worker(burst=True)
    assert answered == [pytest.approx(0.3)]


async def test_a_verb_that_comes_too_late_says_so(app: Repid, router: Router, server: UnreliableServer) -> None:
    told: list[str] = []

    @router.actor
    async def job(message: Message) -> None:
        await server.delete("default")
        with pytest.raises(LeaseLost, match=message.message_id):
            await message.ack()
        told.append("late")

    await send(app, "job")
    assert (await app.run_worker(messages_limit=1)).refused == 1
    assert told == ["late"]


# Replies and the outbox


async def test_a_reply_goes_where_the_sender_awaits_it(app: Repid, router: Router, server: UnreliableServer) -> None:
    @router.actor
    async def ask(message: Message, x: int) -> None:
        await message.reply_json({"answer": x + 1}, headers={"topic": "listen"})

    await app.send_message_json(channel="default", payload={"x": 41}, headers={"topic": "ask"}, reply_to="replies")
    await app.run_worker(burst=True)
    [reply] = await server.browse("replies", "ready")
    assert (reply.envelope.payload, reply.envelope.content_type) == (b'{"answer":42}', "application/json")
    assert reply.envelope.headers == {"topic": "listen"}


async def test_a_reply_may_name_its_channel_and_wins_over_reply_to(
    app: Repid, router: Router, server: UnreliableServer
) -> None:
    @router.actor
    async def ask(message: Message) -> None:
        await message.reply(payload=b"x", content_type="text/plain", channel="elsewhere")

    await app.send_message(channel="default", payload=b"", headers={"topic": "ask"}, reply_to="replies")
    await app.run_worker(burst=True)
    assert await server.counts("elsewhere") == Counts(ready=1)


async def test_a_reply_to_nobody_is_an_error_and_leaves_the_message_open(app: Repid, router: Router) -> None:
    @router.actor
    async def ask(message: Message) -> None:
        with pytest.raises(UsageError, match="has no reply_to"):
            await message.reply(payload=b"")
        await message.nack()

    await send(app, "ask")
    assert await app.run_worker(burst=True) == Report(processed=1, failed=1, dead=1)


@pytest.mark.parametrize("answer", [object(), {"deep": [1, {"x": object()}]}, {1, object()}])
async def test_an_unserialisable_reply_is_an_error_and_leaves_the_message_open(
    app: Repid, router: Router, server: UnreliableServer, answer: object
) -> None:
    @router.actor
    async def ask(message: Message) -> None:
        with pytest.raises(PayloadError, match="cannot be encoded"):
            await message.reply_json(answer, channel="replies")
        assert not message.is_acted_on
        await message.reply_json("sorry", channel="replies")

    await send(app, "ask")
    assert await app.run_worker(burst=True) == Report(processed=1, succeeded=1)
    assert await server.counts("replies") == Counts(ready=1)


@pytest.mark.parametrize(
    ("end", "sent"),
    [
        ("returns", 2),
        ("acks", 2),
        ("replies", 3),
        ("raises", 0),
        ("nacks", 0),
        ("rejects", 0),
        ("hangs", 0),
        ("snoozes", 0),
    ],
)
async def test_the_outbox_happens_with_the_acknowledgement_or_never(
    app: Repid, router: Router, server: UnreliableServer, end: str, sent: int
) -> None:
    @router.actor(timeout=1)
    async def job(message: Message) -> None:
        await message.outbox.send_message(channel="out", payload=b"1")
        await message.outbox.send_message_json(channel="out", payload={})
        assert len(message.outbox) == 2
        assert await server.counts("out") == Counts()
        match end:
            case "acks":
                await message.ack()
            case "replies":
                await message.reply(payload=b"", channel="out")
            case "raises":
                raise ValueError
            case "nacks":
                await message.nack()
            case "rejects":
                await message.reject()
            case "snoozes":
                await message.snooze(5)
            case "hangs":
                await trio.sleep_forever()

    await server.declare(["out"])
    await send(app, "job")
    await app.run_worker(messages_limit=1)
    assert await server.counts("out") == Counts(ready=sent)


async def test_sending_to_the_outbox_after_the_verdict_raises(
    app: Repid, router: Router, server: UnreliableServer
) -> None:
    refused: list[str] = []  # what an actor raises after its verdict would only be logged

    @router.actor
    async def job(message: Message) -> None:
        outbox = message.outbox
        await message.ack()
        for each in (outbox, message.outbox):
            try:
                await each.send_message(channel="out", payload=b"")
            except AlreadySettled as error:
                refused.append(str(error))

    await send(app, "job")
    assert await app.run_worker(burst=True) == Report(processed=1, succeeded=1)
    text = "the outbox was committed with its message's verdict: nothing more can be added to it"
    assert refused == [text, text]


@pytest.mark.parametrize("verdict", ["acks", "nacks", "returns"])
async def test_an_outbox_first_touched_after_the_verdict_takes_nothing(
    app: Repid, router: Router, verdict: str
) -> None:
    """A message that is put into it would be lost without a word."""
    messages: list[Message] = []
    refused: list[AlreadySettled] = []

    @router.actor
    async def job(message: Message) -> None:
        messages.append(message)
        if verdict == "acks":
            await message.ack()
        elif verdict == "nacks":
            await message.nack()
        if verdict != "returns":
            await touch(message)

    async def touch(message: Message) -> None:
        try:
            await message.outbox.send_message(channel="out", payload=b"")
        except AlreadySettled as error:
            refused.append(error)

    await send(app, "job")
    await app.run_worker(burst=True)
    if verdict == "returns":
        await touch(messages[0])
    assert len(refused) == 1


async def test_an_outbox_sends_to_its_own_server_only(app: Repid, router: Router) -> None:
    @router.actor
    async def job(message: Message) -> None:
        with pytest.raises(UsageError, match="not to 'other'"):
            await message.outbox.send_message(channel="out", payload=b"", server_name="other")

    await send(app, "job")
    assert await app.run_worker(burst=True) == Report(processed=1, succeeded=1)


async def test_a_duplicate_in_an_outbox_is_dropped_and_counted(
    app: Repid, router: Router, server: UnreliableServer
) -> None:
    @router.actor
    async def job(message: Message) -> None:
        for _ in range(3):
            await message.outbox.send_message(channel="out", payload=b"", message_id="same")

    await send(app, "job")
    assert await app.run_worker(burst=True) == Report(processed=1, succeeded=1, dropped=2)
    assert await server.counts("out") == Counts(ready=1)


async def test_what_a_message_sends_at_once_is_sent_whatever_becomes_of_it(
    app: Repid, router: Router, server: UnreliableServer
) -> None:
    seen: list[Counts] = []

    @router.actor
    async def job(message: Message) -> None:
        await message.send_message_json(channel="out", payload=1)
        seen.append(await server.counts("out"))
        raise ValueError

    await send(app, "job")
    await app.run_worker(burst=True)
    assert seen == [Counts(ready=1)]
    assert await server.counts("out") == Counts(ready=1)


# Middlewares


def tracing(name: str, seen: list[str]) -> Any:
    async def around(call_next: Any, message: Message, actor: Any) -> Any:
        seen.append(f"{name} before {actor.name}")
        try:
            return await call_next(message, actor)
        finally:
            seen.append(f"{name} after")

    return around


async def test_middlewares_of_app_router_and_actor_go_around_each_other_in_that_order(
    server: UnreliableServer, autojump_clock: trio.testing.MockClock
) -> None:
    seen: list[str] = []
    app = Repid(middlewares=[tracing("app 1", seen), tracing("app 2", seen)])
    app.servers.register_server("default", server)
    outer, inner = Router(middlewares=[tracing("outer", seen)]), Router(middlewares=[tracing("inner", seen)])

    @inner.actor(middlewares=[tracing("actor", seen)])
    async def job() -> None:
        seen.append("job")

    outer.include_router(inner)
    app.include_router(outer)
    names = ["app 1", "app 2", "outer", "inner", "actor"]
    async with app.magic():
        await send(app, "job")
        await app.run_worker(burst=True)
    expected = [f"{n} before job" for n in names] + ["job"] + [f"{n} after" for n in reversed(names)]
    assert seen == expected


async def test_a_middleware_may_change_the_arguments_and_the_end(app: Repid) -> None:
    seen: list[int] = []

    async def double(call_next: Any, message: Message, actor: Any) -> Any:
        message.arguments["x"] *= 2
        await call_next(message, actor)
        raise ValueError("for good measure")

    router = Router(middlewares=[double])

    @router.actor
    async def job(x: int) -> None:
        seen.append(x)

    app.include_router(router)
    await send(app, "job", x=21)
    assert await app.run_worker(burst=True) == Report(processed=1, failed=1, dead=1)
    assert seen == [42]


async def test_a_middleware_may_do_without_the_call_or_repeat_it(app: Repid) -> None:
    seen: list[int] = []

    async def maybe(call_next: Any, message: Message, actor: Any) -> Any:
        for _ in range(message.arguments["times"]):
            await call_next(message, actor)

    router = Router(middlewares=[maybe])

    @router.actor
    async def job(times: int) -> None:
        seen.append(times)

    app.include_router(router)
    for times in (0, 1, 2):
        await send(app, "job", times=times)
    assert await app.run_worker(burst=True) == Report(processed=3, succeeded=3)
    assert sorted(seen) == [1, 2, 2]


async def test_the_actor_s_timeout_includes_its_middlewares(app: Repid) -> None:
    async def slow(call_next: Any, message: Message, actor: Any) -> Any:
        await trio.sleep_forever()

    router = Router(middlewares=[slow], timeout=2)

    @router.actor
    async def job() -> None: ...

    app.include_router(router)
    await send(app, "job")
    started = trio.current_time()
    assert await app.run_worker(burst=True) == Report(processed=1, failed=1, dead=1)
    assert trio.current_time() - started == 2


async def test_producer_middlewares_go_around_every_way_of_sending(
    server: UnreliableServer, autojump_clock: trio.testing.MockClock
) -> None:
    seen: list[str] = []

    def named(name: str) -> Any:
        async def around(call_next: Publish, envelopes: Sequence[Envelope]) -> Outcomes:
            seen.append(f"{name} {len(envelopes)}")
            return await call_next([msgspec.structs.replace(e, headers={**e.headers, "via": name}) for e in envelopes])

        return around

    app = Repid(producer_middlewares=[named("first"), named("second")])
    app.servers.register_server("default", server)
    router = Router()

    @router.actor
    async def job(message: Message) -> None:
        await message.send_message(channel="out", payload=b"")
        await message.outbox.send_messages(channel="out", payloads=[b"", b""])
        await message.reply(payload=b"", channel="out")

    app.include_router(router)
    async with app.magic():
        await send(app, "job")
        assert seen == ["first 1", "second 1"]
        await app.run_worker(burst=True)
        assert seen[2:] == ["first 1", "second 1", "first 2", "second 2", "first 1", "second 1"]
        sent = await server.browse("out", "ready")
    assert [m.envelope.headers["via"] for m in sent] == ["second"] * 4


async def test_a_producer_middleware_may_refuse(
    server: UnreliableServer, autojump_clock: trio.testing.MockClock
) -> None:
    async def closed(call_next: Publish, envelopes: Sequence[Envelope]) -> Outcomes:
        return [BrokerRefused("closed on Sundays") for _ in envelopes]

    app = Repid(producer_middlewares=[closed])
    app.servers.register_server("default", server)
    async with app.magic():
        with pytest.raises(BrokerRefused, match="closed on Sundays"):
            await app.send_message(channel="default", payload=b"")


async def test_a_reply_that_a_producer_middleware_refuses_leaves_the_message_open(
    server: UnreliableServer, autojump_clock: trio.testing.MockClock
) -> None:
    async def closed(call_next: Publish, envelopes: Sequence[Envelope]) -> Outcomes:
        if envelopes[0].queue == "out":
            return [BrokerRefused("closed on Sundays") for _ in envelopes]
        return await call_next(envelopes)

    app = Repid(producer_middlewares=[closed])
    app.servers.register_server("default", server)
    router = Router()

    @router.actor
    async def job(message: Message) -> None:
        await message.reply(payload=b"", channel="out")

    app.include_router(router)
    async with app.magic():
        await send(app, "job")
        assert await app.run_worker(burst=True) == Report(processed=1, failed=1, dead=1)
        [dead] = await server.browse("default", "dead")
    assert dead.failure is not None
    assert (dead.failure.type, dead.failure.text) == ("BrokerRefused", "closed on Sundays")


@pytest.mark.parametrize("answer", [None, [], [None, None], 5])
async def test_a_producer_middleware_must_give_an_outcome_for_each_message(
    server: UnreliableServer, autojump_clock: trio.testing.MockClock, answer: Any
) -> None:
    async def forgetful(call_next: Publish, envelopes: Sequence[Envelope]) -> Any:
        await call_next(envelopes)
        return answer

    app = Repid(producer_middlewares=[forgetful])
    app.servers.register_server("default", server)
    async with app.magic():
        await server.declare(["default"])
        for publish in (
            partial(app.send_message, channel="default", payload=b""),
            partial(app.send_messages, channel="default", payloads=[b""]),
            Job("job").enqueue,
        ):
            with pytest.raises(ConfigurationError, match="each must return what call_next returned"):
                await publish()


@pytest.mark.parametrize("given", ["text", None, [5], [None]])
async def test_a_producer_middleware_that_hands_on_no_messages_is_told_so(server: InMemoryServer, given: Any) -> None:
    async def confused(call_next: Publish, envelopes: Sequence[Envelope]) -> Outcomes:
        return await call_next(given)

    app = Repid(Connection(server), producer_middlewares=[confused])
    async with app.magic():
        with pytest.raises(ConfigurationError, match="a producer middleware called call_next with"):
            await app.send_message(channel="default", payload=b"")


async def test_a_producer_middleware_that_is_not_async_is_named(
    server: UnreliableServer, autojump_clock: trio.testing.MockClock
) -> None:
    def hurried(call_next: Publish, envelopes: Sequence[Envelope]) -> Any:
        return [None] * len(envelopes)

    app = Repid(producer_middlewares=[hurried])
    app.servers.register_server("default", server)
    async with app.magic():
        with pytest.raises(ConfigurationError, match=r"hurried.* cannot be awaited: declare it with async def"):
            await app.send_message(channel="default", payload=b"")


async def test_a_cancelled_send_has_sent_nothing(app: Repid, server: UnreliableServer) -> None:
    with trio.CancelScope() as scope:
        scope.cancel()
        await app.send_messages(channel="default", payloads=[b""] * 10)
    assert scope.cancelled_caught
    assert await server.counts("default") == Counts()


async def test_actors_of_one_app_talk_to_each_other(app: Repid, router: Router) -> None:
    """A chain through the outbox, run by two workers that share the app."""
    ends: list[int] = []

    @router.actor
    async def step(message: Message, n: int) -> None:
        if n == 0:
            ends.append(n)
            return
        await message.outbox.send_message_json(channel="default", payload={"n": n - 1}, headers={"topic": "step"})

    for _ in range(10):
        await send(app, "step", n=20)
    async with trio.open_nursery() as nursery:
        handles: list[Handle] = [await nursery.start(app.run_worker) for _ in range(2)]
        await trio.sleep(1)
        for handle in handles:
            handle.stop()
    assert len(ends) == 10
