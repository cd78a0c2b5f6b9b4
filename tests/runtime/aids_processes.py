"""Actors that another process can import."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from functools import wraps
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Annotated, cast

import trio
from aids_hostile import ERRORS

from repid import (
    AlreadySettled,
    ConfigurationError,
    Depends,
    DuplicateId,
    Message,
    SyncMessage,
    UsageError,
    log_context,
)


def check_other_process(parent: int) -> None:
    if os.getpid() == parent:
        raise AssertionError("this is the same process")


def hang(file: str) -> None:
    Path(f"{file}.part").write_text(str(os.getpid()), encoding="ascii")
    Path(f"{file}.part").rename(file)
    time.sleep(60)


def fork_and_hang(file: str) -> None:
    """Leaves a child that would go on for a minute."""
    child = os.fork()
    if child == 0:
        time.sleep(60)
        os._exit(0)
    hang_with(file, child)


def fork_in_a_thread(file: str) -> None:
    """The child writes which pipes it has, which it inherited, and goes on when the thread that forked it has ended."""
    part, children = Path(f"{file}.part"), list[int]()

    def fork() -> None:
        child = os.fork()
        if child == 0:
            part.write_text(" ".join(pipes()), encoding="ascii")
            time.sleep(0.3)
            part.rename(file)
            os._exit(0)
        children.append(child)
        for _ in range(500):
            if part.exists():
                return
            time.sleep(0.01)

    thread = threading.Thread(target=fork)
    thread.start()
    thread.join()
    os.waitpid(children[0], 0)


def pipes() -> list[str]:
    """The pipes that are open here, but for the standard files and the one that leads to the resource tracker."""
    kept = {"0", "1", "2", str(resource_tracker._resource_tracker._fd)}  # type: ignore[attr-defined]  # it has no other name
    links = [link for link in Path("/proc/self/fd").iterdir() if link.name not in kept and link.is_symlink()]
    return [link.name for link in links if str(link.readlink()).startswith("pipe:")]


def fork_and_return(file: str) -> None:
    child = os.fork()
    if child == 0:
        time.sleep(60)
        os._exit(0)
    Path(file).write_text(str(child), encoding="ascii")


def hang_with(file: str, child: int) -> None:
    Path(f"{file}.part").write_text(str(child), encoding="ascii")
    Path(f"{file}.part").rename(file)
    time.sleep(60)


def fail() -> None:
    raise ValueError("from a process")


def die() -> None:
    os._exit(3)


def be_killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class LockedError(Exception):
    """Cannot be pickled, as many an error of a client library."""

    def __init__(self, name: str) -> None:
        super().__init__(f"{name} is locked")
        self.lock = threading.Lock()


def raise_what_cannot_be_sent() -> None:
    raise LockedError("the file") from KeyError("first")


def raise_for_what_cannot_be_sent() -> None:
    raise ValueError("no") from LockedError("the file")


def raise_a_group_of_what_cannot_be_sent() -> None:
    raise BaseExceptionGroup("two", [LockedError("the file"), SystemExit(2)])


def replaced() -> None: ...


@wraps(replaced)
def in_place_of_another() -> None:
    """Its name is that of another function of this module, as that of what a decorator makes of one may be."""


def return_what_cannot_be_sent() -> object:
    return {"file": threading.Lock()}


def return_a_generator() -> object:
    return (number for number in range(3))


async def open_lock() -> object:
    return threading.Lock()


def take_a_lock(lock: Annotated[object, Depends(open_lock)]) -> None: ...


def return_the_log_context() -> dict[str, object]:
    return dict(log_context())


left: list[str] = []
"""What dependencies have noted in this process."""


def process_id() -> Iterator[int]:
    yield os.getpid()
    left.append("process_id")


async def word(message: Message) -> str:
    await trio.lowlevel.checkpoint()
    return f"a word on {message.channel}"


def check_dependencies(
    parent: int, pid: Annotated[int, Depends(process_id)], text: Annotated[str, Depends(word)]
) -> tuple[bool, str, list[str]]:
    return pid == os.getpid() != parent, text, left


def raise_own_error(id_: str) -> None:
    raise DuplicateId(id_, "mail")


def double_each(numbers: list[int]) -> list[int | Exception]:
    return [ValueError("odd") if number % 2 else 2 * number for number in numbers]


def say(verb: str, message: SyncMessage) -> None:
    arguments = {"retry": [5], "snooze": [5]}.get(verb, [])
    getattr(message, verb)(*arguments)
    if not message.is_acted_on or message.action is None:
        raise AssertionError("it does not know what it has said")
    try:
        message.ack()
    except AlreadySettled:
        return
    raise AssertionError("it has said two things")


def tell(message: Message) -> list[object]:
    """What it is annotated with does not matter in a process, as it does not in a thread."""
    plain = cast("SyncMessage", message)
    plain.progress(1, 3, "begun")
    plain.send_message_json(channel="told", payload="at once")
    plain.outbox.send_messages_json(channel="told", payloads=["with", "the acknowledgement"])
    return [len(plain.outbox), plain.headers["topic"], plain.retries, plain.is_last_attempt, plain.payload == b"{}"]


def fail_after_telling(message: SyncMessage) -> None:
    message.outbox.send_message_json(channel="told", payload="never")
    message.send_message_json(channel="told", payload="at once")
    raise ValueError("no")


def call_others(message: SyncMessage) -> str:
    handle = message.enqueue(check_other_process, 0)
    message.using(delay=100).enqueue(check_other_process, 1)
    message.outbox.using(priority=None).enqueue_many(check_other_process, [2, 3])
    try:
        handle.status()
    except UsageError:
        return handle.id
    raise AssertionError("nothing can be waited for here")


def take_names(self: int, verb: int, function: int, options: int) -> list[int]:
    return [self, verb, function, options]


def call_by_names(message: SyncMessage) -> None:
    message.enqueue(take_names, self=1, verb=2, function=3, options=4)
    message.using(store_result=True).enqueue(take_names, self=1, verb=2, function=3, options=4)
    message.outbox.enqueue(take_names, self=1, verb=2, function=3, options=4)


def send_badly(message: SyncMessage) -> str:
    try:
        message.send_message_json(channel="not a name")
    except ConfigurationError as error:
        return str(error)
    return "it was sent"


def bite(name: str) -> None:
    error = ERRORS[name]()
    raise error


class Bait:
    """Raises in the process that reads it."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __reduce__(self) -> tuple[object, ...]:
        return bite, (self.name,)


def send_bait(message: SyncMessage, names: list[str]) -> list[str]:
    raised = []
    for name in names:
        try:
            message.send_message_json(channel="told", payload=Bait(name))
        except BaseException as error:  # noqa: BLE001  any of them
            raised.append(type(error).__name__)
    return raised


def say_in_threads(message: SyncMessage) -> int:
    threads = [threading.Thread(target=message.progress, args=(number,)) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return len(threads)


def ack_and_hang(message: SyncMessage, file: str) -> None:
    message.outbox.send_message_json(channel="told", payload="said")
    message.ack()
    hang(file)


def ack_every_other(numbers: list[int], messages: list[SyncMessage]) -> None:
    for message in messages[::2]:
        message.ack()
    raise ValueError("the others")


kept_for_later: list[SyncMessage] = []


def keep(message: SyncMessage) -> str:
    """Its own one is kept; says what comes of the one that was kept before."""
    kept_for_later.append(message)
    if len(kept_for_later) == 1:
        return "kept"
    try:
        kept_for_later[0].progress(1)
    except UsageError as error:
        return str(error)
    return "it was heard"


def fill_its_own_queue(message: SyncMessage) -> None:
    for _ in range(3):
        message.send_message_json(channel=message.channel, headers={"topic": "fill_its_own_queue"})
