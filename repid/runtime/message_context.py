"""Where the verbs of messages go: to the crew, the settler and the reporter of the worker that runs their actors."""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar, cast

import trio

from ..calls import Exchange
from ..delivery import Delivery, Disposition, Progress
from ..envelope import Envelope
from ..errors import UsageError
from ..producer import Publish, Publisher
from ..waiting_threads import held_here
from .crew import Crew
from .progress import Reporter

T = TypeVar("T")


class MessageContext:
    """Where the verbs of this worker's messages go.

    All that it knows belongs to the thread of the worker's trio run. Other code of that thread, as asyncio's tasks
    where trio is a guest, may call it between two steps of trio; other threads go through `in_trio` or `wait_for`.
    """

    def __init__(
        self,
        crew: Crew,
        reporter: Reporter,
        publisher: Callable[[str | None, bool], Publisher],
        through_middlewares: Callable[[Publish], Publish],
        exchange: Exchange,
    ) -> None:
        self._crew = crew
        self._ledger = crew.ledger
        self._settler = crew.settler
        self._reporter = reporter
        self.publisher = publisher
        self.through_middlewares = through_middlewares
        self.exchange = exchange
        self._thread = threading.get_ident()
        self._token = trio.lowlevel.current_trio_token()

    def in_trio(self, function: Callable[..., T], *arguments: Any) -> T:
        """Call a sync function in the thread of the trio run, and wait for it where this is another one."""
        if threading.get_ident() == self._thread:
            return function(*arguments)
        try:
            return trio.from_thread.run_sync(function, *arguments, trio_token=self._token)
        except trio.RunFinishedError:
            raise _has_ended() from None

    def wait_for(self, call: Callable[[], Awaitable[T]], *, is_waiting: bool) -> T:
        """Make an async call in the trio run, and wait for it in this thread.

        In the thread of the run itself nobody can wait: there the call comes back, for the caller to await.
        """
        if threading.get_ident() == self._thread:
            return cast("T", call())
        try:
            held = held_here()
            if held is not None and held.token is self._token:
                return held.make(call, is_waiting=is_waiting)
            return trio.from_thread.run(call, trio_token=self._token)
        except trio.RunFinishedError:
            raise _has_ended() from None

    def hand_over(
        self, delivery: Delivery, disposition: Disposition, outbox: tuple[Envelope, ...]
    ) -> Callable[[], Awaitable[None]]:
        """Take the verdict at once; what is returned waits for the broker's answer."""
        if self._settler.has_ended:
            raise UsageError(
                f"the worker that had leased message {delivery.envelope.id!r} has ended: no verdict can be given "
                "any more"
            )
        self._crew.settle(delivery, disposition, outbox)
        return self._settler.expect(delivery).wait

    def begin(self, delivery: Delivery) -> None:
        """A message with a ttl has been started."""
        self._reporter.note_start(delivery)

    def defer(self, delivery: Delivery, disposition: Disposition) -> Callable[[], Awaitable[None]]:
        """Keep the verdict until the run has ended. What is returned is a checkpoint."""
        holding = self._ledger.holdings.get(delivery)
        if holding is not None:  # else the message is not ours any more
            self._ledger.defer(holding, disposition)
        return trio.lowlevel.checkpoint

    def report(self, delivery: Delivery, progress: Progress) -> Callable[[], Awaitable[None]]:
        """Note how far a run has come; the broker is told now and then. What is returned is a checkpoint."""
        if delivery in self._ledger.holdings:
            self._reporter.note(delivery, progress)
        return trio.lowlevel.checkpoint


def _has_ended() -> UsageError:
    return UsageError(
        "the worker that ran this actor has ended, and its event loop with it: use the message only while its "
        "actor runs"
    )
