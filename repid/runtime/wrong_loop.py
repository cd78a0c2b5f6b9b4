"""An actor that called the other event loop's library: what it raises says little, so the way out is added."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import msgspec

from ..delivery import Failure

_SAID_IN_TRIO = ("no running event loop", "trio.run received unrecognized yield message")
_SAID_IN_ASYNCIO = (
    "must be called from async context",
    "Task got bad yield: <class 'trio.",
    "'RunContext' object has no attribute",  # where no trio runs in the thread at all
)

HINT_IN_TRIO = (
    "hint: this actor runs in trio, but called asyncio: run the worker under asyncio (repid worker --loop asyncio, "
    'app.run(loop="asyncio") or asyncio.run), or give the actor backend="asyncio"'
)
HINT_IN_ASYNCIO = (
    "hint: this actor runs as an asyncio task, but called trio: use asyncio's calls in it, or give it "
    'backend="trio", or run the worker under trio'
)

_MOST_ERRORS = 100


def hint_at_the_loop(failure: Failure, error: BaseException, *, in_trio: bool) -> Failure:
    """The failure; with a hint if it comes from a call of the library whose loop the actor is not on."""
    said, hint = (_SAID_IN_TRIO, HINT_IN_TRIO) if in_trio else (_SAID_IN_ASYNCIO, HINT_IN_ASYNCIO)
    if not any(text.startswith(said) for text in islice(_texts(error), _MOST_ERRORS)):
        return failure
    return msgspec.structs.replace(
        failure, text=f"{failure.text}\n{hint}", traceback=f"{failure.traceback.rstrip()}\n{hint}\n"
    )


def _texts(error: BaseException) -> Iterator[str]:
    """What the errors in it say that only a library can have raised: texts of others may do anything when asked."""
    waiting = [error]
    while waiting:
        each = waiting.pop()
        if type(each) in {ExceptionGroup, BaseExceptionGroup}:
            assert isinstance(each, BaseExceptionGroup)
            waiting.extend(each.exceptions)
            yield ""
        elif type(each) in {RuntimeError, TypeError, AttributeError} and each.args and type(each.args[0]) is str:
            yield each.args[0]
