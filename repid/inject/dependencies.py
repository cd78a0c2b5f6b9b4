"""From the `Depends` of an actor to the steps that fill them, in an order in which each finds what it wants."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from inspect import Parameter as P  # noqa: N817  its constants are all that is used
from typing import Any

from ..errors import ConfigurationError
from .depends import Depends, Kind, Scope, kind_of
from .hints import EXAMPLES, Names, is_message, marker_of, names_of
from .reading import Reader
from .signature import (
    Signature,
    check_by_name,
    check_default,
    check_is_injected,
    check_on_the_loop,
    open_parameters,
    qualified_name_of,
)
from .supply import MESSAGE, Dependencies, Given, Step, Supplied, SuppliedAsync, Wants


def compile_dependencies(
    function: Callable[..., Any],
    signature: Signature,
    local_names: Mapping[str, Any],
    overrides: Mapping[Any, Callable[..., Any]],
    given: Sequence[tuple[Callable[..., Any], Any]],
) -> Dependencies | None:
    """The dependencies of a function with this signature; None: it has none. Raises `ConfigurationError`.

    `overrides`: functions, and what is called in their places. `given`: functions of the scope "worker", and the values
    that they have given.
    """
    if not signature.dependencies:
        return None
    search = _Search(f"a dependency of {signature.function}()", local_names, overrides, given)
    wants = tuple(
        (name, search.number_of(depends, f"parameter {name!r} of {signature.function}()", ()))
        for name, depends in signature.dependencies
    )
    is_async = kind_of(function) is Kind.ASYNC
    outside = set() if is_async else _needed_by_async(search.steps)
    for step in search.steps:
        wanted = search.messages.get(id(step.function))
        if wanted is not None and (is_async or step.number in outside):
            check_on_the_loop(*wanted)
    outer = tuple(step for step in search.steps if step.number in outside)
    steps = tuple(step for step in search.steps if step.number not in outside)
    inner = (SuppliedAsync if is_async else Supplied)(function, steps, wants)
    takes_message = any(MESSAGE in _wanted(step.wants) for step in search.steps)
    passed_on = _wanted(wants, *(step.wants for step in steps)).difference(step.number for step in steps)
    return Dependencies(outer, inner, passed_on, takes_message)


def compile_lifespan(
    function: Callable[..., Any], local_names: Mapping[str, Any], overrides: Mapping[Any, Callable[..., Any]]
) -> tuple[Step, ...]:
    """The steps of a lifespan, itself the last one: all of the scope "worker". Raises `ConfigurationError`."""
    search = _Search("a lifespan", local_names, overrides, ())
    search.number_of(Depends(function, "worker"), "a lifespan", ())
    return tuple(search.steps)


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

    def __init__(
        self,
        role: str,
        local_names: Mapping[str, Any],
        overrides: Mapping[Any, Callable[..., Any]],
        given: Sequence[tuple[Callable[..., Any], Any]],
    ) -> None:
        self.steps: list[Step] = []
        self.messages: dict[int, tuple[Any, str]] = {}
        """Of the functions that want the message, by `id`, as not each can be hashed: the type they annotate it with,
        and where.
        """
        self._role = role
        self._local_names = local_names
        self._overrides = overrides
        self._given = given

    def number_of(self, depends: Depends, where: str, path: tuple[Any, ...]) -> int:
        """The number of the value of a function, whose steps are added. `path`: what led here, for finding circles."""
        function: Any = depends.function
        function = next((other for each, other in self._overrides.items() if each == function), function)
        if not callable(function):
            raise ConfigurationError(
                f"{where} depends on {function!r}, which cannot be called: Depends takes a function, a generator "
                "function, a class or another callable"
            )
        if function in path:
            circle = " → ".join(f"{qualified_name_of(each)}()" for each in (*path[path.index(function) :], function))
            raise ConfigurationError(f"{where} depends on itself: {circle}; dependencies must not go in a circle")
        if depends.scope == "worker":
            value = next((Given(value) for each, value in self._given if each == function), None)
            if value is not None:
                return self._add(value, (), "run")
        for step in self.steps:
            if step.function == function and step.scope == depends.scope:
                return step.number
        return self._add(function, self._wants(function, (*path, function), depends.scope), depends.scope)

    def _add(self, function: Callable[..., Any], wants: Wants, scope: Scope) -> int:
        self.steps.append(Step(len(self.steps) + 1, function, kind_of(function), wants, scope))
        return len(self.steps)

    def _wants(self, function: Any, path: tuple[Any, ...], scope: Scope) -> Wants:
        name = qualified_name_of(function)
        names = names_of(function, self._local_names)
        wants: list[tuple[str, int]] = []
        for parameter in open_parameters(function, name):
            where = f"parameter {parameter.name!r} of {name}(), {self._role}"
            check_default(parameter, where)
            hint = _hint(parameter, names, where)
            marker = marker_of(hint, where)
            if marker is None and not is_message(hint):
                _check_left_alone(parameter, where)
                continue
            check_by_name(parameter, where)
            if scope == "worker":
                _check_outlives_runs(marker, parameter, where)
            if isinstance(marker, Depends):
                number = self.number_of(marker, where, path)
            elif marker is None:
                self.messages[id(function)] = hint, where
                number = MESSAGE
            else:
                number = self._add(Reader(parameter, marker, hint, where), ((_MESSAGE_OF_READER, MESSAGE),), "run")
            wants.append((parameter.name, number))
        return tuple(wants)


_MESSAGE_OF_READER = "message"
"""The parameter of `Reader.__call__`."""


def _check_outlives_runs(marker: object, parameter: P, where: str) -> None:
    if not (isinstance(marker, Depends) and marker.scope == "worker"):
        raise ConfigurationError(
            f"{where}, is filled for each run, but the function is called once for each worker: give it only "
            "parameters that are filled once for each worker, too, as in "
            f'{parameter.name}: Annotated[T, Depends(function, scope="worker")]'
        )


def _hint(parameter: P, names: Names, where: str) -> Any:
    """The type of a parameter; of one that may be left alone, one that cannot be read is no error."""
    try:
        return names.hint_of(parameter, where)
    except ConfigurationError:
        if _is_required(parameter) or any(name in str(parameter.annotation) for name in EXAMPLES):
            raise
        return Any


def _check_left_alone(parameter: P, where: str) -> None:
    check_is_injected(parameter, where)
    if _is_required(parameter):
        raise ConfigurationError(
            f"{where}, cannot be filled: a dependency gets other dependencies, the Message, and what is marked; give "
            f"it a default, or write {parameter.name}: Annotated[T, Depends(function)], or Payload() or Header('name') "
            "in the place of Depends"
        )


def _is_required(parameter: P) -> bool:
    return parameter.default is P.empty and parameter.kind not in {P.VAR_POSITIONAL, P.VAR_KEYWORD}
