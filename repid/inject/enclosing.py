"""Names that are local to the functions around an actor, for annotations that are strings.

With `from __future__ import annotations` an annotation is text, and the functions around an actor are not part of what
is kept with it. While the actor is being declared they are still running, so their frames have the answer: the frame of
the function that holds the actor's code among its constants, then the one around that. Only the names that the
annotations mention are taken, also those of dependencies that are found that way: a frame that was kept would keep
everything in it alive.
"""

from __future__ import annotations

import typing
from collections.abc import Iterator
from types import CodeType, FrameType
from typing import Any

from .depends import Depends
from .hints import plain_function


def enclosing_names(function: Any, frame: FrameType | None) -> dict[str, Any]:
    """What the local names in the annotations of a function mean, by the frames from `frame` outwards."""
    found: dict[str, Any] = {}
    waiting: list[Any] = [function]
    seen: list[Any] = []
    while waiting:
        plain = plain_function(waiting.pop())
        if any(plain is each for each in seen) or not hasattr(plain, "__code__"):
            continue
        seen.append(plain)
        annotations = getattr(plain, "__annotations__", {}).values()
        waiting += [each.function for annotation in annotations for each in _dependencies_in(annotation)]
        if "<locals>" in plain.__qualname__:
            names = {name for annotation in annotations for name in _names_in(annotation)}
            new = _look_up(plain.__code__, names.difference(found), frame)
            found |= new
            waiting += new.values()
    return found


def _look_up(code: CodeType, names: set[str], frame: FrameType | None) -> dict[str, Any]:
    found: dict[str, Any] = {}
    while frame is not None and code.co_name != "<module>":
        if _holds(frame.f_code, code):
            known = frame.f_locals
            found |= {name: known[name] for name in names.difference(found) if name in known}
            code = frame.f_code
        frame = frame.f_back
    return found


def _holds(outer: CodeType, inner: CodeType) -> bool:
    """Whether a function's code was made by the other one, also by way of its type parameters (Python 3.12)."""
    made = [constant for constant in outer.co_consts if isinstance(constant, CodeType)]
    return any(each is inner or (each.co_name.startswith("<generic") and _holds(each, inner)) for each in made)


def _names_in(annotation: Any) -> Iterator[str]:
    text = annotation.__forward_arg__ if isinstance(annotation, typing.ForwardRef) else annotation
    if isinstance(text, str):
        try:
            yield from compile(text, "<annotation>", "eval").co_names
        except (SyntaxError, ValueError):  # explained where it is read
            return
    else:
        for part in typing.get_args(annotation):
            yield from _names_in(part)


def _dependencies_in(annotation: Any) -> Iterator[Depends]:
    if isinstance(annotation, Depends):
        yield annotation
    for part in typing.get_args(annotation):
        yield from _dependencies_in(part)
