"""Progress → broker, however often actors report it."""

from __future__ import annotations

import trio

from ..delivery import Delivery, Progress
from ..errors import BrokerUnavailable
from ..logs import Log
from ..ports import LARGEST_CALL, Consumer
from .holding import about
from .outage import log_unavailable

log = Log("repid.worker")

PAUSE = 0.1
"""Seconds between two reports to the broker: what is reported in between is coalesced, the last one counts."""


class Reporter:
    """Keeps the latest progress of each run until the next report."""

    def __init__(self, consumer: Consumer) -> None:
        self._consumer = consumer
        self._latest: dict[Delivery, Progress | None] = {}
        self._lot = trio.lowlevel.ParkingLot()

    def note(self, delivery: Delivery, progress: Progress) -> None:
        """Report this with the next batch, in place of what was noted before."""
        self._latest[delivery] = progress
        self._lot.unpark_all()

    def note_start(self, delivery: Delivery) -> None:
        """Report that a run has begun, which ends the ttl of its message, whatever becomes of the lease."""
        self._latest.setdefault(delivery, None)
        self._lot.unpark_all()

    async def run(self) -> None:
        """Go on until cancelled."""
        while True:
            if not self._latest:
                await self._lot.park()
            latest, self._latest = list(self._latest.items()), {}
            for start in range(0, len(latest), LARGEST_CALL):
                await self._report(latest[start : start + LARGEST_CALL])
            await trio.sleep(PAUSE)

    async def _report(self, latest: list[tuple[Delivery, Progress | None]]) -> None:
        try:
            await self._consumer.report(latest)
        except BrokerUnavailable as error:  # the next report will tell more
            log_unavailable(error, "cannot report the progress of %d runs", len(latest))
        except Exception:  # noqa: BLE001  whatever is wrong with it, it is only progress: the run goes on
            if len(latest) == 1:
                told = log.about(about(latest[0][0]))
                told.exception("the progress of message %r cannot be reported", latest[0][0].envelope.id)
                return
            for one in latest:
                await self._report([one])
