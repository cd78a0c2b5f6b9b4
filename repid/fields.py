"""Fields of what people declare: they tell what was declared, and refuse to be assigned.

What was declared is checked and compiled at once, so an assignment afterwards could only be ignored.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, NoReturn, Self, TypeVar, overload

T = TypeVar("T")


class Field(Generic[T]):
    """A field of a class, read by a function. Assigning it raises `AttributeError`."""

    def __init__(self, read: Callable[[Any], T]) -> None:
        self._read = read
        self._name = ""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    @overload
    def __get__(self, instance: None, owner: type) -> Self: ...

    @overload
    def __get__(self, instance: object, owner: type) -> T: ...

    def __get__(self, instance: object | None, owner: type) -> Self | T:
        return self if instance is None else self._read(instance)

    def __set__(self, instance: object, value: object) -> NoReturn:
        kind = type(instance).__name__
        raise AttributeError(
            f"{self._name} of a {kind} cannot be assigned: it was settled when the {kind} was made; make another one"
        )
