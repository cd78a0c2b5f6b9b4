"""The default of parameters that the worker fills, for type checkers."""

from __future__ import annotations

from typing import Any, NoReturn

from ..errors import UsageError


class _Injected:
    """What a parameter has that nobody has filled: it can be named, and not used."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "INJECTED"

    def __reduce__(self) -> str:
        return "INJECTED"

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("__"):
            raise AttributeError(name)
        raise UsageError(
            f"this parameter has its default, INJECTED, which has no {name!r}: a worker fills it; give it "
            "a value where the function is called directly"
        )


INJECTED: Any = _Injected()
"""The default of a parameter that the worker fills: `message: Message = INJECTED`, or one with a `Depends`. It changes
nothing at run time; a type checker accepts calls without the parameter then, as `app.enqueue(actor, 1)` makes them."""
