"""What has gathered for a batch actor becomes a run: the messages, their values, and the arguments of the call."""

from __future__ import annotations

import math
from typing import Any

from ..errors import PayloadError
from ..inject import BatchPlan, Message, SyncMessage
from .crew import Crew
from .endings import Endings
from .failures import failure_of
from .holding import Batch
from .limits import Gathering, first_full
from .message_context import MessageContext


class Filling:
    """Fills the batches of one worker. What cannot run any more, or does not fit, is dealt with alone and not taken."""

    def __init__(self, crew: Crew, endings: Endings, message_context: MessageContext) -> None:
        self._crew = crew
        self._ledger = crew.ledger
        self._endings = endings
        self._message_context = message_context

    def fill(self, batch: Batch, now: float) -> dict[str, Any] | None:
        """Begin with a batch of what has gathered; the arguments of the call. None: nothing is left, or a limit is
        reached.
        """
        runner = batch.actor_runner
        gathering, plan = runner.gathering, runner.actor.plan.batch
        assert gathering is not None
        assert plan is not None  # it is a batch actor's
        full = first_full(runner.run_limits)
        if full is not None:
            self._crew.park_batch(full, batch)
            return None
        most = gathering.size
        if runner.mode == "manual":  # each of its messages may be kept
            most = min(most, self._ledger.places)
            if most <= 0:
                self._crew.give_back_gathered(gathering)
        values = self._take(batch, gathering, plan, most, now)
        gathering.is_called = False
        gathering.is_flushed = gathering.is_flushed and len(gathering.parked) > len(values)
        if not values:
            self._ledger.drop_batch(batch)
            self._crew.start_if_due(runner)
            return None
        batch.delivery, batch.began = batch.members[0].delivery, now
        self._ledger.begin_batch(batch, gathering)
        self._crew.start_if_due(runner)
        arguments = {plan.parameter: values}
        if runner.needs_message:
            messages = [
                Message(each.delivery, runner.terms(each.delivery), self._message_context) for each in batch.members
            ]
            for holding, message in zip(batch.members, messages, strict=True):
                holding.message = message
                message._batch = messages  # noqa: SLF001  the worker's side of it
            batch.message = messages[0]
            given: list[Any] = messages if runner.actor.is_async else [SyncMessage(message) for message in messages]
            arguments |= {name: list(given) for name in runner.actor.plan.signature.messages}
        return arguments

    def _take(self, batch: Batch, gathering: Gathering, plan: BatchPlan, most: int, now: float) -> list[Any]:
        """Make members of those that have waited longest, as far as they may run and fit; the value of each."""
        members, read = batch.members, plan.read
        values: list[Any] = []
        for holding in list(gathering.parked):
            if len(members) == most:
                break
            if holding.startable_until <= now and not self._crew.may_start(holding, now):
                continue
            try:
                values.append(read(holding.delivery.envelope))
            except PayloadError as error:
                self._ledger.unpark(holding)
                self._endings.misfit(holding, batch.actor_runner, failure_of(error))
                continue
            except BaseException as error:  # noqa: BLE001  it is the message's failure
                self._ledger.unpark(holding)
                holding.began = now
                self._endings.unreadable(holding, batch.actor_runner, error)
                continue
            members.append(holding)
            if holding.expires_at < math.inf:
                self._message_context.begin(holding.delivery)
        return values
