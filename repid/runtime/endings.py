"""From how a run ended to the verdict on its message: handed over, logged, and let go.

A run of one message has one ending. A batch has one for each of its messages, and what holds for one message holds for
each of them: its own terms, its own verdict if a verb gave one before, its own lease.
"""

from __future__ import annotations

import random
from collections import Counter
from typing import TypeAlias, cast

import trio

from ..codec import encode_json
from ..ctrl_c import let_ctrl_c_through
from ..delivery import (
    ON_PLAIN_RETURN,
    CancelRequested,
    DeadLetter,
    Disposition,
    Event,
    Failure,
    Keep,
    LeaseExpired,
    PayloadRefused,
    Phase,
    Raised,
    Retry,
    Returned,
    Settlement,
    TimedOut,
    decide,
    is_survived,
    unless_cancelled,
)
from ..envelope import NO_OPTIONS
from ..errors import PayloadError, RepidError, UsageError
from ..inject import FINISHED, is_unfinished, refuse_unfinished
from ..logs import Log, in_seconds
from ..tracebacks import let_go
from .actor_runners import ActorRunner
from .crew import Crew
from .failures import failure_of, in_words, is_cancellation, log_failure, stray_cancellation
from .holding import Batch, Holding
from .wrong_loop import hint_at_the_loop

log = Log("repid.worker")

Fate: TypeAlias = Disposition | Keep | None
"""What follows from an ending. None: nothing more, the verdict was given before."""


class Endings:
    """Concludes the runs of one worker."""

    def __init__(self, crew: Crew) -> None:
        self._crew = crew
        self._ledger = crew.ledger
        self._settler = crew.settler
        self._log_level = crew.log_level

    def misfit(self, holding: Holding, runner: ActorRunner, failure: Failure) -> None:
        """A payload does not fit. Where another version of the program may take it, that is said once a message."""
        age = (holding.delivery.unrouted_age or 0.0) if runner.actor.on_misfit == "release" else None
        told, id_, name = log.about(holding.fields), holding.delivery.envelope.id, runner.actor.name
        if age is None:
            told.error("message %r does not fit actor %r: %s", id_, name, failure.text)
        elif not age:
            told.warning(
                "message %r does not fit actor %r here; it is released for another version of it, for an hour at most: "
                "%s",
                id_,
                name,
                failure.text,
            )
        chance = random.random()  # noqa: S311  jitter
        self._crew.turn_away(holding, PayloadRefused(Failure(failure.type, failure.text), age, chance))

    def unreadable(self, holding: Holding, runner: ActorRunner, error: BaseException) -> None:
        """The code of a type, such as its `__post_init__`, failed when the payload was read: a run that has failed."""
        let_ctrl_c_through(error)
        self._ledger.begin(holding, runner)
        self.raised(holding, error)
        self.let_go(holding)
        self._ledger.end(holding, runner)
        if runner.limits:
            self._crew.release_slot(runner)

    def returned(self, run: Holding, runner: ActorRunner, value: object) -> None:
        """It returned this, and its mode or a result that is wanted decides."""
        disposition = self._end_with_value(run, runner, value)
        self._log_ending(run, disposition)

    def batch_returned(self, batch: Batch, runner: ActorRunner, value: object) -> None:
        """A batch actor returned: None, or a list with a value or an error for each message."""
        members = batch.members
        if value is None and _is_plain(batch, runner):
            self._settler.put_acks([Settlement(each.delivery, ON_PLAIN_RETURN) for each in members], members)
            self._log_batch(batch, Counter({in_words(ON_PLAIN_RETURN): len(members)}))
            return
        try:
            values = [None] * len(members) if value is None else _entries(value, len(members), runner)
        except BaseException as error:  # noqa: BLE001  a value may have code of its own
            self.raised(batch, error)
            return
        if isinstance(values, UsageError):
            self.raised(batch, values)
            return
        acks: list[Settlement] = []
        acked: list[Holding] = []
        fates: Counter[str] = Counter()
        for member, each in zip(members, values, strict=True):
            message = member.message
            if not member.is_ours:
                fates[self._fate_in_words(member, self._decide(member, LeaseExpired()))] += 1
            elif issubclass(type(each), BaseException):  # whatever it says of itself
                fates[self._fate_in_words(member, self._end_with_error(member, cast("BaseException", each)))] += 1
            elif type(each) not in FINISHED and (fault := _no_entry(each, runner)) is not None:
                fates[self._fate_in_words(member, self._end_with_error(member, fault))] += 1
            elif (
                runner.mode != "auto"
                or runner.stores_result(member.delivery.envelope)
                or (message is not None and message.is_acted_on)
            ):
                fates[self._fate_in_words(member, self._end_with_value(member, runner, each))] += 1
            else:  # as `_end_with_value`, for the many
                outbox = () if message is None else message._close(ON_PLAIN_RETURN)  # noqa: SLF001  the worker's side
                acks.append(Settlement(member.delivery, ON_PLAIN_RETURN, outbox))
                acked.append(member)
        self._settler.put_acks(acks, acked)
        if acked:
            fates[in_words(ON_PLAIN_RETURN)] += len(acked)
        self._log_batch(batch, fates)

    def raised(self, run: Holding, error: BaseException) -> None:
        """It raised this, on its own account."""
        if not isinstance(run, Batch):
            self._log_ending(run, self._end_with_error(run, error))
            return
        event = self._event_of(run, error)
        self._conclude_all(run, event, error)
        let_go(error)

    def conclude(self, run: Holding, event: Event, error: BaseException | None = None) -> None:
        """Hand over what follows from the event, for one message or for all of a batch that have no verdict yet."""
        if isinstance(run, Batch):
            self._conclude_all(run, event, error)
        else:
            disposition = self._decide(run, event)
            if error is not None:
                _log_if_failed(run, disposition, event, error)
            self._log_ending(run, disposition)
        if error is not None:
            let_go(error)

    def _end_with_value(self, run: Holding, runner: ActorRunner, value: object) -> Fate:
        payload, delivery, message = b"null", run.delivery, run.message
        is_stored = runner.stores_result(delivery.envelope)
        if is_stored:
            try:
                payload = encode_json(value)
            except PayloadError as error:
                return self._end_with_error(run, PayloadError(f"the result cannot be stored: {error}"))
            except BaseException as error:  # noqa: BLE001  a value may have code of its own
                return self._end_with_error(run, error)
        if not is_stored or runner.mode != "auto" or (message is not None and message.is_acted_on):
            disposition = self._decide(run, Returned(value), payload)
            if isinstance(disposition, Retry | DeadLetter) and disposition.failure is not None:
                fault = UsageError(disposition.failure.text)  # a word that is none, in the mode `manual_explicit`
                log_failure(runner.actor.name, delivery, disposition, fault, failure_of(fault))
            return disposition
        outbox = () if message is None else message._close(ON_PLAIN_RETURN)  # noqa: SLF001  the worker's side of it
        result = runner.success(delivery.envelope, payload)  # as `_decide`, for the many
        self._settler.put(Settlement(delivery, ON_PLAIN_RETURN, outbox, result, delivery.lost > 0), run)
        return ON_PLAIN_RETURN

    def _end_with_error(self, run: Holding, error: BaseException) -> Fate:
        if run.phase is Phase.DECIDED:
            text, explained = "actor %r failed after its verdict, which stands", failure_of(error).traceback
            log.about(run.fields).error(text, run.actor_runner.actor.name, exc_info=error, explained=explained)
        event = self._event_of(run, error)
        disposition = self._decide(run, event)
        _log_if_failed(run, disposition, event, error)
        let_go(error)
        return disposition

    def _event_of(self, run: Holding, error: BaseException) -> Raised:
        runner = run.actor_runner
        failure = stray_cancellation(error) if is_cancellation(error) else failure_of(error)
        if runner.actor.is_async:
            failure = hint_at_the_loop(failure, error, in_trio=runner.runs_in_trio)
        return Raised(failure, runner.error_word(error))

    def _conclude_all(self, batch: Batch, event: Event, error: BaseException | None) -> None:
        fates: Counter[str] = Counter()
        for member in batch.members:
            own: Event = event
            if not member.is_ours:
                own = LeaseExpired()
            elif isinstance(event, LeaseExpired):
                own = CancelRequested()  # of those that are cut off together some are lost, and the others cancelled
            fates[self._fate_in_words(member, self._decide(member, own))] += 1
        if error is not None and isinstance(event, Raised | TimedOut):
            log.about(batch.fields).error(
                "actor %r failed on %s: %s",
                batch.actor_runner.actor.name,
                batch.subject,
                _counted(fates),
                exc_info=error,
                explained=event.failure.traceback,
            )
        self._log_batch(batch, fates)

    def _decide(self, run: Holding, event: Event, payload: bytes = b"null") -> Fate:
        delivery, message = run.delivery, run.message
        disposition = decide(run.phase, event, run.actor_runner.terms(delivery))
        if isinstance(disposition, Keep):
            self._ledger.keep(run)
        elif disposition is not None:
            outbox = message._close(disposition) if message is not None else ()  # noqa: SLF001  the worker's side of it
            result = run.actor_runner.result(delivery.envelope, disposition, payload)
            self._settler.put(Settlement(delivery, disposition, outbox, result, is_survived(delivery.lost, event)), run)
        return disposition

    def let_go(self, run: Holding) -> None:
        """The run has ended: a verb that lets its message be run again takes effect now."""
        if run.message is not None:
            run.message.is_under_way = False
            run.message._batch = None  # noqa: SLF001  it would hold itself
            if run.deferred is not None and run.is_ours:
                self._crew.settle(run.delivery, unless_cancelled(run.deferred, cancelled=run.is_cancelled), ())

    def _log_ending(self, run: Holding, disposition: Fate) -> None:
        if self._log_level is not None:
            self.log_run(run, self._log_level, self._fate_in_words(run, disposition))

    def log_run(self, run: Holding, level: int, fate: str) -> None:
        """Say that a run has ended, how, and how long it took."""
        fields = run.fields
        duration = trio.current_time() - run.began if not run.is_prepared else 0.0
        log.about(fields | {"duration": duration, "fate": fate}).log(
            level,
            "actor %r ended after %s s: message %r of %r, attempt %d, %s",
            fields["actor"],
            in_seconds(duration),
            fields["message_id"],
            fields["queue"],
            fields["attempt"],
            fate,
        )

    def _log_batch(self, batch: Batch, fates: Counter[str]) -> None:
        if self._log_level is None:
            return
        duration, fields, fate = trio.current_time() - batch.began, batch.fields, _counted(fates)
        log.about(fields | {"duration": duration, "fate": fate}).log(
            self._log_level,
            "actor %r ended after %s s: %s of %r, %s",
            fields["actor"],
            in_seconds(duration),
            batch.subject,
            fields["queue"],
            fate,
        )

    def _fate_in_words(self, run: Holding, disposition: Fate) -> str:
        if isinstance(disposition, Keep):
            return "kept for a verdict"
        action = run.message.action if disposition is None and run.message is not None else None
        return action or in_words(disposition)


def _entries(value: object, count: int, runner: ActorRunner) -> list[object] | UsageError:
    """What a batch actor returned for each of its messages. A `UsageError` if it is something else: it is not raised,
    since a traceback would show no line of the actor. Raises what the code of the value raises.
    """
    entries = list(value) if isinstance(value, list | tuple) else None
    if entries is not None and len(entries) == count:
        return entries
    has = f"a {type(value).__name__}" if entries is None else f"one with {len(entries)}"
    text = f"an actor with batch=... returns None or a list with one entry for each of its {count} messages"
    return UsageError(f"{text}, but actor {runner.actor.name!r} returned {has}")


def _no_entry(value: object, runner: ActorRunner) -> RepidError | None:
    """The error of a batch actor whose list has this for a message, if that can be neither a result nor an error."""
    if is_unfinished(value):
        return refuse_unfinished(f"actor {runner.actor.name!r} ({runner.actor.function!r})", value)
    if issubclass(type(value), type) and issubclass(cast("type", value), BaseException):
        return UsageError(
            f"actor {runner.actor.name!r} returned the class {cast('type', value).__qualname__} for a message, "
            "which is neither a result nor an error: make an error of it, with a text"
        )
    return None


def _is_plain(batch: Batch, runner: ActorRunner) -> bool:
    """Whether a batch that returned nothing means nothing but an acknowledgement of each message."""
    if runner.needs_message or runner.mode != "auto" or runner.actor.store_result:
        return False
    for each in batch.members:
        options = each.delivery.envelope.options
        if not each.is_ours or (options is not NO_OPTIONS and options.store_result):
            return False
    return True


def _log_if_failed(run: Holding, disposition: Fate, event: Event, error: BaseException) -> None:
    if isinstance(disposition, Disposition) and isinstance(event, Raised | TimedOut):
        log_failure(run.actor_runner.actor.name, run.delivery, disposition, error, event.failure)


def _counted(fates: Counter[str]) -> str:
    return ", ".join(f"{count} {fate}" for fate, count in fates.items())
