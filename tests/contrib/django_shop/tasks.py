"""Tasks of a shop."""

from __future__ import annotations

import asyncio
import os
import threading
from typing import Any

from asgiref.sync import sync_to_async
from django.db import connection

from repid.contrib.django.protocol import TaskContext, task


@task
def add(a: int, b: int = 1) -> int:
    return a + b


@task(queue_name="mail")
def fail() -> None:
    raise LookupError("no such order")


@task
async def double(number: int) -> int:
    await asyncio.sleep(0)
    return 2 * number


@task
async def fail_on_the_loop() -> None:
    await asyncio.sleep(0)
    raise KeyError("async")


@task
async def sleep_for_ever() -> None:
    await asyncio.sleep(3600)


@task(takes_context=True)
def describe(context: TaskContext[Any, Any], greeting: str) -> dict[str, Any]:
    found = context.task_result
    return {"greeting": greeting, "attempt": context.attempt, "status": found.status, "id": found.id}


@task(takes_context=True)
def fail_until(context: TaskContext[Any, Any], attempt: int) -> int:
    if context.attempt < attempt:
        raise ValueError(f"attempt {context.attempt}")
    return context.attempt


@task(takes_context=True)
async def fail_until_on_the_loop(context: TaskContext[Any, Any], attempt: int) -> int:
    if context.attempt < attempt:
        raise ValueError(f"attempt {context.attempt}")
    return context.attempt


@task
def give_what_is_no_json() -> object:
    return object()


def ask() -> int:
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1 + 1")
        found: int = cursor.fetchone()[0]
        return found


@task
def query() -> int:
    return ask()


@task
async def aquery() -> int:
    return await sync_to_async(ask)()


@task
async def meet() -> None:
    """Wait in a thread for another run of this task."""
    await sync_to_async(both.wait)(timeout=10)


both = threading.Barrier(2)


@task
def follow_up(number: int) -> str:
    """Enqueue another task from within one."""
    return add.enqueue(number, b=number).id


@task
async def afollow_up(number: int) -> str:
    return (await add.aenqueue(number, b=number)).id


@task
def process_id() -> int:
    return os.getpid()


def not_a_task() -> None: ...
