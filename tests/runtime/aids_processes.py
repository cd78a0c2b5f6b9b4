"""Actors that another process can import."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import trio

from repid import Depends, DuplicateId, Message


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
