"""The onion around a call: a middleware may change it, repeat it, or do without it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from ..names import awaiting
from .actor import ActorMiddleware, CallNext


def onion(innermost: CallNext, middlewares: Sequence[ActorMiddleware]) -> CallNext:
    """The call with all middlewares around it, the first outermost."""
    call = innermost
    for middleware in reversed(middlewares):
        call = partial(awaiting(middleware), call)
    return call
