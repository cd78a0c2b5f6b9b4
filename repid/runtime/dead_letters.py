"""Dead letters → the app's hooks.

Theory. A hook is told when the broker has taken the verdict, so never of a message that is run again. It is no part of
a run: one task calls hooks one after another, so a slow one delays others and no message. What the hooks have not kept
up with is bounded, and told in the log. The task is shielded, because a worker that is cancelled settles its verdicts,
too; `close` bounds it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import trio

from ..ctrl_c import let_ctrl_c_through
from ..delivery import DeadLetter, DeadLetterHook, DeadMessage, Delivery
from ..inject import Kind, is_unfinished, kind_of, refuse_unfinished
from ..logs import Log
from ..ports import HostBackend
from .backends import Outcome
from .failures import is_cancellation
from .holding import about

log = Log("repid.worker")

MOST_WAITING = 1000
"""Dead letters that wait for their hooks at most."""

LONGEST_HOOK = 30.0
"""Seconds that one hook may take."""


class DeadLetterHooks:
    """Calls the hooks with each dead letter that is noted. `host`: where async ones run; None: in a task of trio's."""

    def __init__(self, hooks: Sequence[DeadLetterHook], host: HostBackend | None) -> None:
        self._hooks = hooks
        self._host = host
        self._send, self._receive = trio.open_memory_channel[tuple[Delivery, DeadLetter]](MOST_WAITING)
        self._scope = trio.CancelScope(shield=True)
        self._ended = trio.Event()

    def note(self, delivery: Delivery, disposition: DeadLetter) -> None:
        """Have the hooks called, soon."""
        try:
            self._send.send_nowait((delivery, disposition))
        except trio.WouldBlock:
            log.about(about(delivery)).error(
                "message %r is a dead letter, but %d others wait for the hooks of dead letters, so they are not "
                "told of it",
                delivery.envelope.id,
                MOST_WAITING,
            )

    async def run(self) -> None:
        """Call hooks until closed and done, or cut off."""
        try:
            with self._scope:
                async for delivery, disposition in self._receive:
                    await self._tell(delivery, disposition)
        finally:
            self._ended.set()

    async def close(self, bound: float) -> None:
        """Take no more, call what is left, and be done after `bound` seconds at the latest."""
        self._send.close()
        with trio.move_on_after(bound, shield=True):
            await self._ended.wait()
        if not self._ended.is_set():
            waiting = self._receive.statistics().current_buffer_used
            log.error("the hooks of dead letters have not ended within %g s, and %d are not told", bound, waiting)
            self._scope.cancel()

    async def _tell(self, delivery: Delivery, disposition: DeadLetter) -> None:
        dead = DeadMessage(
            envelope=delivery.envelope,
            attempt=delivery.attempt,
            reason=disposition.reason,
            failure=disposition.failure,
        )
        for hook in self._hooks:
            with trio.move_on_after(LONGEST_HOOK) as scope:
                try:
                    await self._call(hook, dead)
                except BaseException as error:  # a hook is nobody's fate, whatever it raises
                    let_ctrl_c_through(error)
                    if trio.current_effective_deadline() == -math.inf and is_cancellation(error):
                        raise
                    log.about(about(delivery)).exception(
                        "the hook %r of dead letters failed on message %r", hook, delivery.envelope.id, in_program=True
                    )
            if scope.cancelled_caught:
                log.about(about(delivery)).error(
                    "the hook %r of dead letters was cancelled after %g s with message %r",
                    hook,
                    LONGEST_HOOK,
                    delivery.envelope.id,
                )

    async def _call(self, hook: DeadLetterHook, dead: DeadMessage) -> None:
        if kind_of(hook) is Kind.ASYNC:
            if self._host is not None:
                await self._host.call(hook, (dead,), {})
            elif (waiting := hook(dead)) is not None:
                await waiting
            return
        outcome = Outcome()
        await trio.to_thread.run_sync(outcome.note, hook, (dead,), {}, abandon_on_cancel=True)
        value = outcome.unwrap()
        if is_unfinished(value):
            raise refuse_unfinished(f"the hook {hook!r} of dead letters", value)
