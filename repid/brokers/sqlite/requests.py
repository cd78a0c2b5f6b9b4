"""What crosses between trio's thread and the file's thread: requests one way, answers the other.

Theory. Each call of the driver is a `Request`, and the request is in exactly one of five states:

* WAITING: it is in the queue, and nothing of it has happened. Cancelling the caller makes it WITHDRAWN.
* TAKEN: the file's thread carries it out. The caller waits for the answer even if it is cancelled.
* RESTING: it is a patient one, and found nothing to do. It is as WAITING to its caller; the file's thread looks at it
  again when something may have become ready (`stir`). So a worker that waits for messages has them in one crossing from
  the file's thread, without being told first that it is worth asking. Such a caller may not be there to fetch its
  answer, as its event loop is blocked; then what was done for it is undone (`recall`), and its answer is empty.
* ANSWERED: the answer is at the request, and the caller is woken.
* WITHDRAWN: the caller was cancelled, and the request was not carried out.

    WAITING -> TAKEN -> ANSWERED        the usual way
    TAKEN -> WAITING                    put back: it turned out to need the write lock
    TAKEN -> RESTING -> WAITING         it found nothing; then something may have become ready
    WAITING, RESTING -> WITHDRAWN       its caller was cancelled
    TAKEN -> WITHDRAWN                  its caller was cancelled, and then it was put back or laid to rest, not answered

Every change of state happens under the queue's lock. Only trio's thread withdraws what waits or rests; only the file's
thread takes, answers and puts back. The file's thread takes a request that writes only when it holds the write lock, so
a caller who is cancelled never waits for another process.

What a request returned is an `Answer` until the transaction is over. A request receives its answer only when that
transaction was committed; after a rollback the answers are dropped, and each request is carried out again alone. What
was taken is always answered or put back, also when the thread fails in between (`RequestQueue.refuse_taken`).

A caller that comes while no other one waits for the bell (`bell`) waits for it itself, and is woken by it a turn
earlier than by trio's own queue. Others that are answered in the same step are woken by that caller, all others by
trio's queue. Who waits for the bell is `_listener`, from before its request is in the queue until the bell has woken it
or it has withdrawn; so a request that is answered is found there if it has to be.

A fork is invisible here: the thread closes the file and opens it again, and what waits stays in the queue. The child
never touches the queue of its parent.
"""

from __future__ import annotations

import enum
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from copy import copy
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import msgspec
from trio.lowlevel import (
    Abort,
    RaiseCancelT,
    Task,
    TrioToken,
    checkpoint_if_cancelled,
    current_task,
    reschedule,
    wait_task_rescheduled,
)

from ...envelope import Envelope
from ...errors import BrokerRefused, PublishUnknown, RepidError
from ...hosts import is_cancelled
from ...run_token import call_soon_in, is_running
from .bell import Bell
from .file_events import FileEvents
from .publishing import publish
from .rows import Body
from .store import Store


class Durability(enum.IntEnum):
    """When a change has to be on the disk, so that a loss of power cannot undo it."""

    NEVER = 0
    """Leases: a loss of power ends them anyway."""
    BEFORE_ANSWER = 1
    """What is published: others may see it earlier (`wal` says why)."""
    BEFORE_SIGHT = 2
    """All else: also before another process can see it."""


NEVER, BEFORE_ANSWER, BEFORE_SIGHT = Durability.NEVER, Durability.BEFORE_ANSWER, Durability.BEFORE_SIGHT

Touched: TypeAlias = Callable[[Any], Iterable[str] | None]
"""From the answer of an operation to the ids of messages and results that it changed; None if that may be any."""


def touches_nothing(_: object) -> Iterable[str]:
    """The operation changes no message that can be watched."""
    return ()


def touches_any(_: object) -> None:
    """The operation may have changed any message."""


class State(enum.Enum):
    """Where a request is."""

    WAITING = enum.auto()
    TAKEN = enum.auto()
    RESTING = enum.auto()
    ANSWERED = enum.auto()
    WITHDRAWN = enum.auto()


WAITING, TAKEN, RESTING, ANSWERED, WITHDRAWN = State
"""For the hot path: CPython 3.11 takes 70 ns to find a member in its enumeration, and 2 to find a name of a module."""


class Request(msgspec.Struct, eq=False, kw_only=True):
    """One call: an `Operation` or a `Publication`.

    urgent: the request needs a transaction that may change the file. durable: when the change has to be on the disk.
    peek: a request that is not urgent and has one becomes urgent if its peek says that there is something to do;
    otherwise the answer is None. undo: the request is patient, so it is not given an empty answer, but rests until
    something may have become ready; and this undoes what led to an answer that was not fetched. in_memory: it does not
    touch the file, so it is carried out in any case.
    """

    urgent: bool = False
    durable: Durability = NEVER
    peek: Callable[[Store], bool] | None = None
    undo: Callable[[Any, Store], object] | None = None
    in_memory: bool = False
    state: State = WAITING
    result: Any = None
    error: BaseException | None = None
    task: Task | None = None
    raise_cancel: RaiseCancelT | None = None

    def carry_out(self, store: Store) -> Any:
        """Do what is asked for; what this returns is the answer. Runs on the file's thread, inside a transaction."""
        raise NotImplementedError

    def touched(self, answer: Any) -> Iterable[str] | None:
        """The ids of messages and results that were changed; None if that may be any."""
        raise NotImplementedError


class Operation(Request):
    """Whatever a function does with the store. `touches`: which ids that changed, by its answer."""

    function: Callable[[Store], Any]
    touches: Touched = touches_nothing

    def carry_out(self, store: Store) -> Any:
        """Call the function."""
        return self.function(store)

    def touched(self, answer: Any) -> Iterable[str] | None:
        """Ask `touches`."""
        return self.touches(answer)


class Publication(Request, kw_only=True):
    """A publish. All publications that wait at the same time become one statement."""

    envelopes: Sequence[Envelope]
    bodies: Sequence[Body]
    urgent: bool = True
    durable: Durability = BEFORE_ANSWER

    def carry_out(self, store: Store) -> list[BrokerRefused | None]:
        """Publish."""
        return publish(store, self.envelopes, self.bodies)

    def touched(self, answer: Any) -> Iterable[str] | None:  # noqa: ARG002  who waits for one that was refused looks again
        """Those of the messages."""
        return [envelope.id for envelope in self.envelopes]

    def unknown(self) -> PublishUnknown:
        """What its caller is told if it was carried out, and may still be lost with the power."""
        return PublishUnknown([envelope.id for envelope in self.envelopes])


class Answer(msgspec.Struct, frozen=True):
    """What a request returned or raised, in the transaction that is under way."""

    request: Request
    result: Any = None
    error: BaseException | None = None


class Waiting(NamedTuple):
    """Whether any request waits, and any urgent one. `durable`: the most that any urgent one needs."""

    anything: bool
    urgent: bool
    durable: Durability


NOTHING = Waiting(anything=False, urgent=False, durable=NEVER)


class WakeUp:
    """Wakes the one thread that waits for it. Several signals before the thread waits again count as one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lock.acquire()
        self._events: FileEvents | None = None  # what the thread waits for as well, while it does

    def signal(self) -> None:
        """Wake the thread; if it is not asleep, its next wait ends at once."""
        try:
            self._lock.release()
        except RuntimeError:  # it was signalled already
            return
        events = self._events
        if events is not None:
            events.interrupt()

    def wait(self, timeout: float) -> bool:
        """Wait for a signal, at most `timeout` seconds. Returns whether there was one."""
        return self._lock.acquire(timeout=timeout)

    def wait_with(self, events: FileEvents, timeout: float) -> bool:
        """Wait for a signal, an event of the file, or `timeout` seconds. Returns whether there was a signal.

        Who signals releases the lock first, and this looks at the lock last: no signal can come between unnoticed.
        """
        self._events = events
        try:
            if not self.wait(0):
                events.wait(timeout)
                return self.wait(0)
        finally:
            self._events = None
        return True


class RequestQueue:
    """Where trio's tasks hand requests in and receive answers."""

    def __init__(self, token: TrioToken) -> None:
        self._token = token
        self._opener = threading.current_thread()
        self._lock = threading.Lock()
        self._waiting: list[Request] = []
        self._taken: set[Request] = set()
        self._resting: dict[Request, None] = {}
        self._unfetched: dict[Request, float] = {}  # patient requests that were answered, and when
        self._closed: RepidError | None = None
        self._bell = Bell()
        self._listener: Request | None = None  # whose task the bell wakes; changed under the lock, on trio's side
        self._rung_for: Sequence[Request] = ()  # what was answered when the bell was rung
        self.wake_up = WakeUp()

    # On trio's side

    async def ask(self, request: Request) -> Any:
        """Hand the request in and wait for the answer. If this is cancelled, the request was not carried out."""
        if is_cancelled():
            await checkpoint_if_cancelled()
        request.task = current_task()
        with self._lock:
            if self._closed is not None:
                raise copy(self._closed)
            if self._listener is None and request.undo is None and self._bell.listen():
                self._listener = request
            self._waiting.append(request)
        self.wake_up.signal()

        def abort(raise_cancel: RaiseCancelT) -> Abort:
            with self._lock:
                if request.state is not WAITING and request.state is not RESTING:
                    request.raise_cancel = raise_cancel
                    return Abort.FAILED
                request.state = WITHDRAWN
                self._resting.pop(request, None)
                if self._listener is request:
                    self._listener = None
                    self._bell.leave(raise_cancel)
                return Abort.SUCCEEDED

        await wait_task_rescheduled(abort)
        if request.undo is not None:
            with self._lock:
                self._unfetched.pop(request, None)
        if self._listener is request:
            self._hear()
        if request.state is WITHDRAWN:
            assert request.raise_cancel is not None
            request.raise_cancel()
        if request.error is not None:
            try:
                raise request.error
            finally:
                request.error = None  # no cycle through the traceback
        return request.result

    def _hear(self) -> None:
        """The bell was rung, and has woken the task of the first one that it was rung for: the others are woken now."""
        others = [request for request in self._rung_for if request is not self._listener]
        self._bell.hear()
        self._listener, self._rung_for = None, ()
        _reschedule(others)

    # On the file's thread

    def stir(self) -> bool:
        """Something may have become ready: have the requests that rest wait again. Returns whether there were any."""
        with self._lock:
            stirred = list(self._resting)
            self._resting.clear()
            for request in stirred:
                request.state = WAITING
            self._waiting += stirred
        return bool(stirred)

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def is_resting(self) -> bool:
        """Whether any request rests, so that changes of the file matter."""
        return bool(self._resting)

    def look(self) -> Waiting:
        """What waits."""
        anything = urgent = False
        durable = NEVER
        if not self._waiting:
            return NOTHING
        with self._lock:
            for request in self._waiting:
                if request.state is WAITING:
                    anything = True
                    if request.urgent:
                        urgent = True
                        durable = max(durable, request.durable)
        return Waiting(anything, urgent, durable)

    def take(self, wanted: Callable[[Request], bool]) -> list[Request]:
        """Take the waiting requests that are wanted. The choice is made here: others may have come since `look`."""
        taken: list[Request] = []
        left: list[Request] = []
        with self._lock:
            for request in self._waiting:
                if not wanted(request):
                    left.append(request)
                elif request.state is WAITING:
                    request.state = TAKEN
                    taken.append(request)
            self._waiting = left
            self._taken.update(taken)
        return taken

    def put_back(self, requests: Sequence[Request]) -> None:
        """Make taken requests wait again, as urgent ones. Those whose callers were cancelled are withdrawn."""
        cancelled = []
        with self._lock:
            self._taken.difference_update(requests)
            for request in requests:
                request.urgent = True
                if request.raise_cancel is None:
                    request.state = WAITING
                    self._waiting.append(request)
                else:
                    request.state = WITHDRAWN
                    cancelled.append(request)
        self._wake(cancelled)

    def answer(self, answers: Iterable[Answer]) -> None:
        """Give the answers out, all in one step of trio's. Patient requests that found nothing rest instead."""
        requests = []
        with self._lock:
            for answer in answers:
                request = answer.request
                self._taken.discard(request)
                if request.undo is not None and not answer.result and answer.error is None:
                    if request.raise_cancel is None:
                        request.state = RESTING
                        request.urgent = False
                        self._resting[request] = None
                        continue
                    request.state = WITHDRAWN
                else:
                    request.result = answer.result
                    request.error = answer.error
                    request.state = ANSWERED
                    if request.undo is not None and answer.error is None:
                        self._unfetched[request] = time.monotonic()
                requests.append(request)
        self._wake(requests)

    def recall(self, before: float) -> list[Callable[[Store], object]]:
        """Empty the answers that were given before that moment and not fetched. Returns what undoes them."""
        undoing: list[Callable[[Store], object]] = []
        if self._unfetched:
            with self._lock:
                for request in [request for request, at in self._unfetched.items() if at < before]:
                    assert request.undo is not None
                    undoing.append(partial(request.undo, request.result))
                    request.result = None
                    del self._unfetched[request]
        return undoing

    def refuse_taken(self, error: RepidError) -> None:
        """Answer the requests that were taken and cannot be carried out any more."""
        self.answer([Answer(request, error=copy(error)) for request in list(self._taken)])

    def refuse_all(self, error: RepidError) -> None:
        """Answer every request that waits, rests or was taken with this error."""
        self.stir()
        self.take(lambda _: True)
        self.refuse_taken(error)

    def close(self, error: RepidError) -> None:
        """Take no more requests; all callers, present and later ones, are told this error."""
        with self._lock:
            self._closed = error
        self.refuse_all(error)

    def is_left_over(self) -> bool:
        """Whether the trio run has ended, or its thread has."""
        return not (self._opener.is_alive() and is_running(self._token))

    def _wake(self, requests: Sequence[Request]) -> None:
        if self._listener is not None and self._listener in requests:
            self._rung_for = requests
            self._bell.ring()
        elif requests:
            call_soon_in(self._token, lambda: _reschedule(requests))


def _reschedule(requests: Sequence[Request]) -> None:
    for request in requests:
        task, request.task = request.task, None
        if task is not None:
            reschedule(task)
