"""Calls from anywhere into a trio run that may have ended."""

from __future__ import annotations

import pytest
import trio
from trio.lowlevel import TrioToken

from repid.run_token import call_soon_in, is_running


async def token() -> TrioToken:
    return trio.lowlevel.current_trio_token()


def test_a_call_into_a_run_that_has_ended_is_dropped() -> None:
    ended = trio.run(token)
    assert not call_soon_in(ended, lambda: pytest.fail("it was called"))
    assert not is_running(ended)


def test_a_thread_calls_into_a_run_that_goes_on() -> None:
    async def main() -> None:
        here, was_called = await token(), trio.Event()
        assert await trio.to_thread.run_sync(call_soon_in, here, was_called.set)
        with trio.fail_after(5):
            await was_called.wait()
        assert is_running(here)

    trio.run(main)
