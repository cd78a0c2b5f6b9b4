"""What crosses between trio's thread and the broker's: requests one way, answers the other.

A request is waiting, taken or answered, or was withdrawn. Cancelling the caller withdraws what is waiting, and then
nothing has happened; what is taken is seen through, and the call returns as if it had not been cancelled. The broker's
thread takes requests only when it holds the file's write lock, so no caller waits for another process once cancelled.

What an operation returned is an `Answer`, which belongs to the transaction that it was carried out in. A request gets
it only when that transaction is over and was not rolled back: a request that waits, or waits again, knows of no answer.
Whatever was taken is answered or put back, also when the thread fails in between.
"""

from __future__ import annotations

import enum
import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from copy import copy
from typing import Any, NamedTuple

import trio
from trio.lowlevel import Abort, RaiseCancelT, Task, TrioToken, current_task, reschedule, wait_task_rescheduled

from ...envelope import Envelope
from ...errors import RepidError
from .publishing import publish
from .rows import Body
from .store import Store


class State(enum.Enum):
    """Where a request is."""

    WAITING = enum.auto()
    TAKEN = enum.auto()
    ANSWERED = enum.auto()
    WITHDRAWN = enum.auto()


class Request:
    """One call. `operation` runs on the broker's thread, inside a transaction; what it returns is the answer.

    `urgent`: it is to be carried out now, in a transaction that may change the file. `durable`: the answer may only be
    given when a loss of power cannot undo it; leases need that not, they end with the power anyway. A wish is asked again while its
    operation returns None, whenever something may have changed. If it changes the file it has a `peek`, which only
    looks whether there is something for it; `claims`: it waits for what becomes ready. `in_memory`: the operation does not
    touch the file, so it is carried out whatever the file's state is.
    """

    __slots__ = (
        "claims", "durable", "error", "in_memory", "is_wish", "operation", "peek", "raise_cancel", "result", "state",
        "task", "urgent",
    )  # fmt: skip

    def __init__(
        self,
        operation: Callable[[Store], Any],
        *,
        urgent: bool = False,
        durable: bool = False,
        is_wish: bool = False,
        peek: Callable[[Store], bool] | None = None,
        claims: bool = False,
        in_memory: bool = False,
    ) -> None:
        self.operation = operation
        self.urgent = urgent
        self.durable = durable
        self.is_wish = is_wish
        self.peek = peek
        self.claims = claims
        self.in_memory = in_memory
        self.state = State.WAITING
        self.result: Any = None
        self.error: BaseException | None = None
        self.task: Task | None = None
        self.raise_cancel: RaiseCancelT | None = None


class Answer(NamedTuple):
    """What the operation of a request returned or raised, in the transaction that is under way."""

    request: Request
    result: Any = None
    error: BaseException | None = None

    @property
    def is_final(self) -> bool:
        """Whether the request is done with it: a wish without a result waits on."""
        return not self.request.is_wish or self.result is not None or self.error is not None


class Publication(Request):
    """A publish: all that wait at one time become one statement."""

    __slots__ = ("bodies", "envelopes")

    def __init__(self, envelopes: Sequence[Envelope], bodies: Sequence[Body]) -> None:
        super().__init__(lambda store: publish(store, envelopes, bodies), urgent=True, durable=True)
        self.envelopes = envelopes
        self.bodies = bodies


class Waiting(NamedTuple):
    """Whether anything waits, anything urgent, and anything that must be durable."""

    anything: bool
    urgent: bool
    durable: bool


class Bell:
    """Wakes the one thread that waits for it. Rung several times before it is heard, it is heard once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lock.acquire()

    def ring(self) -> None:
        """Wake the thread, or have it not fall asleep."""
        try:
            self._lock.release()
        except RuntimeError:  # it is ringing already
            return

    def wait(self, timeout: float) -> bool:
        """Until it rings, at most so many seconds; whether it has rung."""
        return self._lock.acquire(timeout=timeout)


class Counter:
    """Where requests are handed in and answers given out. Every change of a request's state happens under its lock."""

    def __init__(self, token: TrioToken) -> None:
        self._token = token
        self._lock = threading.Lock()
        self._waiting: list[Request] = []
        self._wishes: dict[Request, None] = {}
        self._taken: dict[Request, None] = {}
        self.bell = Bell()
        self._closed: RepidError | None = None

    # On trio's side

    async def ask(self, request: Request) -> Any:
        """Hand the request in and wait for the answer. Cancelled: it was not carried out."""
        request.task = current_task()
        with self._lock:
            if self._closed is not None:
                raise copy(self._closed)
            self._waiting.append(request)
        self.bell.ring()

        def abort(raise_cancel: RaiseCancelT) -> Abort:
            with self._lock:
                if request.state is State.WAITING:
                    request.state = State.WITHDRAWN
                    return Abort.SUCCEEDED
                request.raise_cancel = raise_cancel
                return Abort.FAILED

        await wait_task_rescheduled(abort)
        if request.state is State.WITHDRAWN:
            assert request.raise_cancel is not None
            request.raise_cancel()
        if request.error is not None:
            try:
                raise request.error
            finally:
                request.error = None  # no cycle through the traceback
        return request.result

    # On the broker's thread

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def has_wishes(self) -> bool:
        """Whether somebody waits for something to happen."""
        return bool(self._wishes)

    def look(self) -> Waiting:
        """What waits."""
        with self._lock:
            waiting = [request for request in self._waiting if request.state is State.WAITING]
            urgent = [request for request in waiting if request.urgent]
            return Waiting(bool(waiting), bool(urgent), any(request.durable for request in urgent))

    def take(self, wanted: Callable[[Request], bool]) -> list[Request]:
        """Those of the waiting that are wanted. What only looks is told apart here: since `look` others may have come."""
        with self._lock:
            chosen = [request for request in self._waiting if wanted(request)]
            self._waiting = [request for request in self._waiting if not wanted(request)]
            return self._take(chosen)

    def take_wishes(self, *, claims: bool = False) -> list[Request]:
        """All wishes, or those that claim."""
        with self._lock:
            taken = self._take(wish for wish in self._wishes if wish.claims or not claims)
            gone = [wish for wish in self._wishes if wish.state is not State.WAITING]
            for wish in gone:
                del self._wishes[wish]
            return taken

    def put_back(self, requests: Iterable[Request], *, urgent: bool = False) -> None:
        """What was taken waits on; `urgent`: to be carried out now. Who was cancelled meanwhile is told so."""
        cancelled = []
        with self._lock:
            for request in requests:
                self._taken.pop(request, None)
                request.urgent = urgent
                if request.raise_cancel is not None:
                    request.state = State.WITHDRAWN
                    cancelled.append(request)
                    continue
                request.state = State.WAITING
                if urgent:
                    self._waiting.append(request)
                else:
                    self._wishes[request] = None
        self._tell(cancelled)

    def answer(self, answers: Iterable[Answer]) -> None:
        """Give the answers out, all in one go."""
        requests = []
        with self._lock:
            for request, result, error in answers:
                self._taken.pop(request, None)
                request.result, request.error = result, error
                request.state = State.ANSWERED
                requests.append(request)
        self._tell(requests)

    def refuse_taken(self, error: RepidError) -> None:
        """Tell those whose requests were taken and cannot be carried out any more."""
        self.answer([Answer(request, error=copy(error)) for request in list(self._taken)])

    def close(self, error: RepidError) -> None:
        """Take no more; whoever waits is told why."""
        with self._lock:
            self._closed = error
        self.refuse_all(error)

    def refuse_all(self, error: RepidError) -> None:
        """Tell everybody whose request waits or was taken."""
        self.take(lambda _: True)
        self.take_wishes()
        self.refuse_taken(error)

    def has_anybody(self) -> bool:
        """Whether trio still runs."""
        try:
            self._token.run_sync_soon(lambda: None)
        except trio.RunFinishedError:
            return False
        return True

    def _take(self, requests: Iterable[Request]) -> list[Request]:
        taken = [request for request in requests if request.state is State.WAITING]
        for request in taken:
            request.state = State.TAKEN
            self._taken[request] = None
        return taken

    def _tell(self, requests: Sequence[Request]) -> None:
        if requests:
            with suppress(trio.RunFinishedError):
                self._token.run_sync_soon(lambda: _wake(requests))


def _wake(requests: Sequence[Request]) -> None:
    for request in requests:
        task, request.task = request.task, None
        if task is not None:
            reschedule(task)
