"""A worker at one moment, as its handle shows it: for health checks, metrics and dashboards."""

from __future__ import annotations

from typing import Literal

import msgspec

from ..ports import Backend, Broker, LinkState
from .backends import ProcessBackend, ThreadBackend
from .crew import Crew
from .holding import Batch
from .ledger import Ledger, Report
from .look_ahead import LookAhead


class WorkerStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker is doing at one moment. All numbers count messages, where nothing else is said.

    state: "starting" until it consumes, "running", "stopping" when it starts nothing more, "ended".
    running: runs that have begun and not ended. held: leased and about to be started by the next free executor.
    waiting_for_threads, waiting_for_processes: leased, and waiting for a free thread or process.
    waiting_for_room: leased, and waiting because their actor runs as often as its `concurrency` allows, or because
        an earlier run of the same message, whose lease was lost, has not ended.
    waiting_for_batch: leased for an actor that gets many at once, and waiting for more, or for its turn.
    waiting_to_send: sends of its runs that wait for room in a full queue: calls, and verdicts for the sake of their
        outbox.
    kept: left without a verdict by an actor in the mode `manual`. unsettled: verdicts the broker has not answered yet.
    claimed_bytes: bytes of payload of all leased messages.
    look_ahead: how many are claimed beyond those that can start at once. round_trip: seconds that a claim takes.
    suspects: messages at the broker that were lost twice by their workers and wait to run alone, as last heard.
    link: how the link to the server stands. report: what has been done so far.
    """

    state: Literal["starting", "running", "stopping", "ended"]
    running: int
    held: int
    waiting_for_threads: int
    waiting_for_processes: int
    waiting_for_room: int
    waiting_for_batch: int
    waiting_to_send: int
    kept: int
    unsettled: int
    claimed_bytes: int
    look_ahead: int
    round_trip: float
    suspects: int
    link: LinkState
    report: Report


def statistics_of(
    broker: Broker, ledger: Ledger | None = None, crew: Crew | None = None, look_ahead: LookAhead | None = None
) -> WorkerStatistics:
    """Read the statistics. Without a crew: of a worker that has not started yet."""
    ledger = ledger or Ledger(1, 0)
    look_ahead = look_ahead or LookAhead(0)
    in_threads = 0 if crew is None else _parked_for(crew, ThreadBackend)
    in_processes = 0 if crew is None else _parked_for(crew, ProcessBackend)
    in_batches = 0 if crew is None else crew.runners.gathered
    return WorkerStatistics(
        state="starting" if crew is None else "stopping" if crew.is_closed else "running",
        running=ledger.running,
        held=ledger.held,
        waiting_for_threads=in_threads,
        waiting_for_processes=in_processes,
        waiting_for_room=ledger.parked - in_threads - in_processes - in_batches,
        waiting_for_batch=in_batches,
        waiting_to_send=0 if crew is None else crew.sending.calls + len(crew.settler.set_aside),
        kept=ledger.kept,
        unsettled=ledger.unsettled,
        claimed_bytes=ledger.size,
        look_ahead=look_ahead.size,
        round_trip=look_ahead.trip,
        suspects=ledger.suspects,
        link=broker.link,
        report=ledger.report(),
    )


def _parked_for(crew: Crew, kind: type[Backend]) -> int:
    """How many deliveries wait for a slot; those of a batch wait for it to start, and are counted there."""
    return sum(not isinstance(each, Batch) for each in crew.runners.parked_for(kind))
