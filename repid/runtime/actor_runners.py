"""Actors as one worker runs them, and which message goes to which."""

from __future__ import annotations

from collections.abc import Callable, Collection, Coroutine, Iterable, Iterator
from contextvars import Context
from typing import Any

from ..actors import Actor
from ..ctrl_c import let_ctrl_c_through
from ..delivery import VERBS, Cancel, Delivery, Disposition, Mode, NewResult, Terms, make_result
from ..envelope import TOPIC, Envelope
from ..logs import Log
from ..names import check_duration
from ..ports import AtMost, Backend, HostBackend, Topics
from ..retry import default_retry_policy_factory
from .backends import Backends
from .limits import Gathering, Limit, first_full
from .starting import bind_for_threads, is_surrounded, starter

log = Log("repid.worker")

_FALLBACK = default_retry_policy_factory()

MOST_BATCHES = 100
"""Batches of an actor that may run at once where it has no limit."""

Begin = Callable[[Coroutine[Any, Any, Any], Context], tuple[Coroutine[Any, Any, Any] | None, Any]]
"""`HostBackend.begin`"""


class ActorRunner:
    """One actor with what this worker knows of it.

    `run_limits`: the limits that its runs keep to, its own first. `limits`: those that count its messages: the same,
    except for a batch actor, whose messages are counted by its `gathering`. `slots`: its limit of threads or processes,
    if what is claimed follows that limit, so that what is given back does not come again at once.
    """

    __slots__ = (
        "_first_terms",
        "actor",
        "begin",
        "bind",
        "gathering",
        "is_plain",
        "limits",
        "mode",
        "needs_message",
        "run_limits",
        "runs_in_trio",
        "slots",
        "start",
        "starts_at_once",
    )

    def __init__(
        self,
        actor: Actor,
        backend: Backend | None,
        host: HostBackend | None,
        limits: tuple[Limit, ...],
        tasks_limit: int,
    ) -> None:
        self.actor = actor
        self.runs_in_trio = backend is None
        self.mode: Mode = actor.mode
        self.bind = actor.plan.bind if actor.is_async else bind_for_threads(actor.plan)
        self.run_limits = self.limits = limits
        self.gathering: Gathering | None = None
        if actor.batch is not None:
            size = min(actor.batch, tasks_limit) if actor.mode == "manual" else actor.batch
            runs = MOST_BATCHES if actor.concurrency is None else int(actor.concurrency)
            self.gathering = Gathering(size, actor.batch_wait, runs)
            self.limits = (self.gathering,)
        self.slots: Limit | None = None
        self.needs_message = actor.plan.takes_message or is_surrounded(actor)
        self.start = starter(actor, backend, host)
        self.begin: Begin | None = None if host is None or backend is not host else host.begin
        """Where the runs are no part of the executor's task: what makes the first step of one."""
        self.is_plain = actor.mode == "auto" and not actor.store_result and actor.batch is None
        self._first_terms = Terms(mode=actor.mode, attempt=1, retries=actor.retries, retry_delay=self.retry_delay)
        self.starts_at_once = getattr(backend, "slots", None) is None and actor.mode != "ack_first"

    def takes(self, envelope: Envelope) -> bool:
        """Whether the actor takes a message of its queue."""
        actor = self.actor
        if actor.takes is None:
            return envelope.topic == actor.name
        try:
            return bool(actor.takes(envelope))
        except BaseException as error:
            let_ctrl_c_through(error)
            text = "the routing strategy of actor %r failed on message %r"
            log.exception(text, actor.name, envelope.id, in_program=True)
            return False

    def terms(self, delivery: Delivery) -> Terms:
        """The terms of one delivery: the envelope's options over the actor's."""
        retries = delivery.envelope.options.retries
        if retries is None or self.mode in {"always_ack", "ack_first"}:
            if delivery.attempt == 1:
                return self._first_terms
            retries = self.actor.retries
        return Terms(mode=self.mode, attempt=delivery.attempt, retries=retries, retry_delay=self.retry_delay)

    def timeout(self, envelope: Envelope) -> float:
        """Seconds a run may take: the envelope's option over the actor's."""
        timeout = envelope.options.timeout
        return self.actor.timeout if timeout is None else timeout

    def stores_result(self, envelope: Envelope) -> bool:
        """Whether a result is wanted: the envelope's option over the actor's. Not where it was settled before."""
        wanted = envelope.options.store_result
        return (self.actor.store_result if wanted is None else wanted) and self.mode != "ack_first"

    def result(self, envelope: Envelope, disposition: Disposition, payload: bytes = b"null") -> NewResult | None:
        """What to store with a verdict, if anything. That it was cancelled is stored unless the sender refused."""
        cancelled = isinstance(disposition, Cancel) and envelope.options.store_result is not False
        if not (cancelled or self.stores_result(envelope)):
            return None
        ttl = envelope.options.result_ttl
        return make_result(envelope.result_id, self.actor.result_ttl if ttl is None else ttl, disposition, payload)

    def success(self, envelope: Envelope, payload: bytes) -> NewResult:
        """What to store for a run that has returned, whose result is wanted."""
        options = envelope.options
        ttl = self.actor.result_ttl if options.result_ttl is None else options.result_ttl
        return NewResult(id=options.result_id or envelope.id, state="success", payload=payload, ttl=ttl)

    def retry_delay(self, retry_number: int) -> float:
        """The policy's delay in seconds; should the policy fail, the default's, and the error is logged."""
        try:
            return check_duration("the delay of a retry policy", self.actor.retry_policy(retry_number))
        except BaseException as error:
            let_ctrl_c_through(error)
            log.exception("the retry policy of actor %r failed; the default is used", self.actor.name, in_program=True)
            return check_duration("delay", _FALLBACK(retry_number))

    def error_word(self, error: BaseException) -> str | None:
        """What `on_error` says about an error; None: nothing, or nothing that makes sense."""
        on_error = self.actor.on_error
        if on_error is None or isinstance(on_error, str):
            return on_error
        try:
            word = on_error(error)
        except BaseException as fault:
            let_ctrl_c_through(fault)
            log.exception("on_error of actor %r failed; its retries decide", self.actor.name, in_program=True)
            return None
        if word is None or (isinstance(word, str) and word in VERBS):
            return word
        log.error(
            "on_error of actor %r returned %s, which is no verdict, so its retries decide: let it return %s or None",
            self.actor.name,
            repr(word) if type(word) is str else f"a {type(word).__name__}",  # its own code may raise anything
            ", ".join(map(repr, VERBS)),
        )
        return None


class ActorRunners:
    """All runners of a worker, by queue."""

    def __init__(self, actors: Iterable[Actor], backends: Backends, tasks_limit: int) -> None:
        self.backends = backends
        self._slots: dict[Backend, Limit] = {}
        """By the backend that has them: the threads and the processes."""
        self._runners: dict[str, list[ActorRunner]] = {}
        for actor in actors:
            backend = backends.of(actor)
            limits = [] if actor.concurrency is None else [Limit(int(actor.concurrency), ahead=False)]
            most = getattr(backend, "slots", None)
            if backend is not None and most is not None:
                if backend not in self._slots:
                    self._slots[backend] = Limit(int(min(most, tasks_limit)), ahead=True)
                limits.append(self._slots[backend])
            runner = ActorRunner(actor, backend, backends.host, tuple(limits), tasks_limit)
            self._runners.setdefault(actor.channel, []).append(runner)
        self._by_topic: dict[str, dict[str | None, ActorRunner]] = {
            queue: {runner.actor.name: runner for runner in reversed(runners)}  # of one name the first declared wins
            for queue, runners in self._runners.items()
            if not any(runner.actor.takes for runner in runners)
        }
        """For each queue whose messages go by their topic alone: the runner for each topic."""
        schedules = [runner.actor.schedule for runner in self if runner.actor.schedule is not None]
        self.schedules = [*{schedule.name: schedule for schedule in reversed(schedules)}.values()]
        """Of two actors of one name on one queue, the first declared decides here too."""
        self.limits: list[Limit] = list(dict.fromkeys(limit for runner in self for limit in runner.run_limits))
        self.batching: list[ActorRunner] = [runner for runner in self if runner.gathering is not None]
        """Those whose actors are given many messages at once."""
        self._topics = [
            ((runner.actor.channel, runner.actor.name), runner.limits[0])
            for runner in self
            if (runner.actor.concurrency is not None or runner.gathering is not None) and runner.actor.takes is None
        ]
        self._groups = [(self._claim_by(slots), slots) for slots in self._slots.values()]
        backends.waiting_threads.find_parent = self._name_of
        backends.waiting_threads.find_child = self._thread_actor_for

    def at_most(self, trip: float, size: float, first: float, without: Collection[tuple[str, str]]) -> AtMost:
        """What may be claimed now, if a round trip to the broker takes `trip` seconds. `size`, `first`: as in `AtMost`.

        `without`: nothing of these (queue, topic).
        """
        topics = {topic: limit.room(trip) for topic, limit in self._topics}
        if without:
            topics.update(dict.fromkeys(without, 0))
        groups = [(members, slots.room(trip)) for members, slots in self._groups]
        return AtMost(topics=topics, groups=groups, size=size, first=first, alone=False)

    def can_start(self, queue: str, without: Collection[tuple[str, str]]) -> bool:
        """Whether an actor that reads the queue may begin a run now; `without`: none with these (queue, topic)."""
        return any(
            (queue, runner.actor.name) not in without and first_full(runner.run_limits) is None
            for runner in self._runners.get(queue, ())
        )

    def runner_for(self, envelope: Envelope) -> ActorRunner | None:
        """The runner that takes an envelope; None if no actor here does."""
        by_topic = self._by_topic.get(envelope.queue)
        if by_topic is not None:
            return by_topic.get(envelope.topic)
        return next((runner for runner in self._runners[envelope.queue] if runner.takes(envelope)), None)

    def runners_for(self, deliveries: Iterable[Delivery]) -> list[ActorRunner | None]:
        """For each delivery what `runner_for` gives."""
        by_topic = self._by_topic
        if len(by_topic) < len(self._runners):
            return [self.runner_for(delivery.envelope) for delivery in deliveries]
        return [by_topic[(each := delivery.envelope).queue].get(each.headers.get(TOPIC)) for delivery in deliveries]

    def _name_of(self, function: Callable[..., Any]) -> str | None:
        """The name of the actor with this function, or with this one around it."""
        plain = getattr(function, "function", function)
        return next((runner.actor.name for runner in self if runner.actor.function in {function, plain}), None)

    def _thread_actor_for(self, envelope: Envelope) -> str | None:
        """The name of the actor that takes an envelope, if it runs in a thread."""
        runner = self.runner_for(envelope) if envelope.queue in self._runners else None
        return None if runner is None or runner.actor.is_async or runner.actor.run_in_process else runner.actor.name

    def parked_for(self, kind: type[Backend]) -> list[Any]:
        """What waits for a slot of backends of this kind."""
        return [each for backend, slots in self._slots.items() if isinstance(backend, kind) for each in slots.parked]

    @property
    def gathered(self) -> int:
        """How many deliveries wait for a batch to start."""
        return sum(len(runner.gathering.parked) for runner in self.batching if runner.gathering is not None)

    def _claim_by(self, slots: Limit) -> frozenset[tuple[str, str | None]]:
        """Have what is claimed follow these slots, as far as the topic of a message tells whether it needs one. Returns
        the (queue, topic) of such messages.
        """
        members: set[tuple[str, str | None]] = set()
        for queue, runners in self._runners.items():
            is_whole = all(slots in runner.limits for runner in runners)
            for runner in runners:
                if slots in runner.limits and (is_whole or runner.actor.takes is None):
                    runner.slots = slots
                    members.add((queue, None if is_whole else runner.actor.name))
        return frozenset(members)

    def __iter__(self) -> Iterator[ActorRunner]:
        return (runner for runners in self._runners.values() for runner in runners)

    @property
    def topics(self) -> dict[str, Topics]:
        """For each queue the topics that are taken; None where an actor decides by more than the topic."""
        return {
            queue: None if any(r.actor.takes for r in runners) else frozenset(r.actor.name for r in runners)
            for queue, runners in self._runners.items()
        }

    def names(self, queue: str) -> list[str]:
        """The names of the actors that read a queue."""
        return [runner.actor.name for runner in self._runners[queue]]
