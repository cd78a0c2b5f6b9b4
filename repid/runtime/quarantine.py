"""Suspects: messages that were lost twice, and may be the ones that kill their workers. They run alone.

Why: `repid.delivery.blame`. What this part guarantees: while a worker holds a suspect it holds nothing else, and no
other worker of this process holds a suspect. What this costs is borne only while there are suspects:

* A worker that holds something claims nothing more until it holds nothing, for as long as its patience lasts. Where a
  run takes longer, others get their turn first, and the patience is doubled.
* After a suspect, others have their turn for as long as the suspect took, if there are any.

The keeper asks now and then whether there are suspects, a burst worker before it ends.
"""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable

import trio

from ..delivery import Delivery, is_suspect
from ..errors import BrokerUnavailable
from ..logs import Log
from ..ports import Consumer
from ..process import inherits
from .holding import about
from .ledger import Ledger
from .outage import log_unavailable

log = Log("repid.worker")

PATIENCE = 30.0
"""Seconds for which a worker first waits until it holds nothing."""

_of_this_process = threading.Lock()
"""Held by the worker that has a suspect, or asks for one: two of one process would be blamed for each other."""


def _let_go(lock: threading.Lock) -> None:
    """In a forked child: the thread that held the lock is not there."""
    if lock.locked():
        lock.release()


inherits(_of_this_process, _let_go)


class Quarantine:
    """Lets suspects have their turn. `ask` asks the broker for one suspect, `take_in` gives what came to the crew."""

    def __init__(
        self,
        consumer: Consumer,
        ledger: Ledger,
        ask: Callable[[], Awaitable[list[Delivery]]],
        take_in: Callable[[list[Delivery]], None],
    ) -> None:
        self._consumer = consumer
        self._ledger = ledger
        self._ask = ask
        self._take_in = take_in
        self._patience = PATIENCE
        self._others_until = -1.0

    @property
    def is_others_turn(self) -> bool:
        """Whether other messages come first, if there are any."""
        return trio.current_time() < self._others_until

    async def find(self) -> bool:
        """Ask whether there are suspects that this worker may take."""
        if _of_this_process.locked():
            return False
        try:
            self._ledger.suspects = await self._consumer.suspects()
        except BrokerUnavailable as error:
            log_unavailable(error, "cannot ask for messages that must run alone")
        return self._ledger.suspects > 0

    async def drain(self) -> None:
        """Wait until nothing is held, or the patience is at its end."""
        ledger = self._ledger
        with trio.move_on_after(self._patience) as scope:
            while ledger.holds_anything and ledger.started < ledger.messages_limit:
                await ledger.wait_for_change()
        if scope.cancelled_caught:
            self._others_until = trio.current_time() + self._patience
            self._patience *= 2
        else:
            self._patience = PATIENCE

    async def serve(self) -> bool:
        """Run the next suspect, and wait until its verdict is settled. False: there was none, or it may not be now."""
        if not _of_this_process.acquire(blocking=False):
            return False
        ledger, began = self._ledger, trio.current_time()
        try:
            batch = await self._ask()
            if not batch or not is_suspect(batch[0].lost):
                ledger.suspects = 0
                if batch:
                    self._take_in(batch)
                return bool(batch)
            delivery = batch[0]
            log.about(about(delivery)).warning(
                "message %r was lost %d times by its workers; it runs alone", delivery.envelope.id, delivery.lost
            )
            ledger.suspects -= 1
            self._take_in(batch)
            while (holding := ledger.holdings.get(delivery)) is not None and not holding.is_kept:
                await ledger.wait_for_change()
        finally:
            _of_this_process.release()
        now = trio.current_time()
        self._others_until = now + (now - began)
        return True
