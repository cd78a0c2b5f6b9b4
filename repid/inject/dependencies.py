"""From the `Depends` of an actor to the steps that fill them, in an order in which each finds what it wants."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from inspect import Parameter as P  # noqa: N817 (its constants are all that is used)
from typing import Any

from ..errors import ConfigurationError
from .depends import Kind, kind_of
from .hints import Names, dependency_of, is_message, names_of
from .signature import Signature, check_by_name, check_default, check_on_the_loop, name_of, open_parameters
from .supply import MESSAGE, Dependencies, Step, Supplied, SuppliedAsync, Wants


def compile_dependencies(
    function: Callable[..., Any], signature: Signature, local_names: Mapping[str, Any]
) -> Dependencies | None:
    """The dependencies of a function with this signature; None: it has none. Raises `ConfigurationError`."""
    if not signature.dependencies:
        return None
    search = _Search(signature.function, local_names)
    wants = tuple(
        (name, search.number_of(depends.function, f"parameter {name!r} of {signature.function}()", ()))
        for name, depends in signature.dependencies
    )
    is_async = kind_of(function) is Kind.ASYNC
    outside = set() if is_async else _needed_by_async(search.steps)
    for step in search.steps:
        if is_async or step.number in outside:
            check_on_the_loop(*search.messages.get(step.function, (None, "")))
    outer = tuple(step for step in search.steps if step.number in outside)
    steps = tuple(step for step in search.steps if step.number not in outside)
    inner = (SuppliedAsync if is_async else Supplied)(function, steps, wants)
    takes_message = any(MESSAGE in _wanted(step.wants) for step in search.steps)
    passed_on = _wanted(wants, *(step.wants for step in steps)).difference(step.number for step in steps)
    return Dependencies(outer, inner, passed_on, takes_message)


def _needed_by_async(steps: list[Step]) -> set[int]:
    """The numbers of the async steps, and of all that these want."""
    needed: set[int] = set()
    for step in reversed(steps):  # what a step wants stands before it
        if step.number in needed or step.kind in {Kind.ASYNC, Kind.ASYNC_GENERATOR}:
            needed |= {step.number, *_wanted(step.wants)}
    return needed


def _wanted(*wants: Wants) -> frozenset[int]:
    return frozenset(number for each in wants for _, number in each)


class _Search:
    """One walk through what an actor depends on; each function is met once and becomes one of the `steps`."""

    def __init__(self, actor: str, local_names: Mapping[str, Any]) -> None:
        self.steps: list[Step] = []
        self.messages: dict[Any, tuple[Any, str]] = {}
        """Of the functions that want the message: the type they annotate it with, and where."""
        self._actor = actor
        self._local_names = local_names

    def number_of(self, function: Any, where: str, path: tuple[Any, ...]) -> int:
        """The number of the value of `function`, whose steps are added. `path`: what led here, for finding circles."""
        if not callable(function):
            raise ConfigurationError(
                f"{where} depends on {function!r}, which cannot be called: Depends takes a function, a generator "
                "function, a class or another callable"
            )
        if function in path:
            circle = " → ".join(f"{name_of(each)}()" for each in (*path[path.index(function) :], function))
            raise ConfigurationError(f"{where} depends on itself: {circle}; dependencies must not go in a circle")
        known = next((step.number for step in self.steps if step.function == function), None)
        if known is not None:
            return known
        wants = self._wants(function, (*path, function))
        self.steps.append(Step(len(self.steps) + 1, function, kind_of(function), wants))
        return len(self.steps)

    def _wants(self, function: Any, path: tuple[Any, ...]) -> Wants:
        name = name_of(function)
        names = names_of(function, self._local_names)
        wants: list[tuple[str, int]] = []
        for parameter in open_parameters(function, name):
            where = f"parameter {parameter.name!r} of {name}(), a dependency of {self._actor}()"
            check_default(parameter, where)
            hint = _hint(parameter, names, where)
            depends = dependency_of(hint, where)
            if depends is None and not is_message(hint):
                _check_left_alone(parameter, where)
                continue
            check_by_name(parameter, where)
            if depends is None:
                self.messages[function] = hint, where
            number = MESSAGE if depends is None else self.number_of(depends.function, where, path)
            wants.append((parameter.name, number))
        return tuple(wants)


def _hint(parameter: P, names: Names, where: str) -> Any:
    """The type of a parameter; of one that may be left alone it need not be readable."""
    try:
        return names.hint_of(parameter, where)
    except ConfigurationError:
        if _is_required(parameter) or "Depends" in str(parameter.annotation):
            raise
        return Any


def _check_left_alone(parameter: P, where: str) -> None:
    if _is_required(parameter):
        raise ConfigurationError(
            f"{where} is filled by nobody: a dependency gets other dependencies and the Message, but no payload; "
            f"give it a default, or write {parameter.name}: Annotated[T, Depends(function)]"
        )


def _is_required(parameter: P) -> bool:
    return parameter.default is P.empty and parameter.kind not in {P.VAR_POSITIONAL, P.VAR_KEYWORD}
