"""An actor: a function and its policy."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Literal, Protocol, TypeAlias

import msgspec

from ..delivery import UNBOUNDED, Bounds, Mode, Verb
from ..inject import Message, Plan
from ..ports import Schedule
from ..retry import RetryPolicy
from .routing import Predicate

OnError: TypeAlias = Verb | Callable[[BaseException], Verb | None]
"""What to do when the actor raises: a verb, or a callable from the exception to one (None: the usual retries)."""

Misfit: TypeAlias = Literal["dead_letter", "release"]
"""What becomes of a message whose payload does not fit."""

Where: TypeAlias = Literal["host", "trio", "asyncio"]
"""On which event loop an async function runs."""

CallNext: TypeAlias = "Callable[[Message, Actor], Awaitable[Any]]"
"""The rest of a call, as a middleware sees it."""


class ActorMiddleware(Protocol):
    """Something around every run of an actor.

    `return await call_next(message, actor)` runs the actor with `message.arguments`. Whatever the middleware
    returns or raises counts as returned or raised by the actor; the actor's timeout includes it.
    """

    def __call__(self, call_next: CallNext, message: Message, actor: Actor, /) -> Awaitable[Any]:
        """Called once for each run."""
        ...


class Actor(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """What a declaration has become, with everything inherited filled in. Times are in seconds.

    `takes` is None for an actor that takes the messages whose topic is its name. `batch`: how many messages one run
    gets at most, None for an actor that gets one and not a list; `batch_wait`: how long the first of them waits for
    more. `bounds`: those of its channel, as far as its declaration says.
    """

    name: str
    channel: str
    function: Callable[..., Any]
    is_async: bool
    plan: Plan
    timeout: float
    retries: int
    retry_policy: RetryPolicy
    concurrency: float | None
    mode: Mode
    on_error: OnError | None
    run_in_process: bool
    middlewares: tuple[ActorMiddleware, ...]
    takes: Predicate | None
    store_result: bool
    result_ttl: float
    backend: Where = "host"
    on_misfit: Misfit = "dead_letter"
    batch: int | None = None
    batch_wait: float = 0.0
    bounds: Bounds = UNBOUNDED
    schedule: Schedule | None = None
