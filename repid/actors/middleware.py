"""The onion around a call: a middleware may change it, repeat it, or do without it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from ..inject import Message

if TYPE_CHECKING:
    from .actor import Actor

CallNext: TypeAlias = "Callable[[Message, Actor], Awaitable[Any]]"


class ActorMiddleware(Protocol):
    """Something around every run of an actor.

    `return await call_next(message, actor)` runs the actor with `message.arguments`. Whatever the middleware
    returns or raises counts as returned or raised by the actor; the actor's timeout includes it.
    """

    def __call__(self, call_next: CallNext, message: Message, actor: Actor, /) -> Awaitable[Any]:
        """Called once for each run."""
        ...


def onion(innermost: CallNext, middlewares: Sequence[ActorMiddleware]) -> CallNext:
    """The call with all middlewares around it, the first outermost."""
    call = innermost
    for middleware in reversed(middlewares):
        call = partial(middleware, call)
    return call
