"""From a function and its options to an actor: checked and compiled."""

from __future__ import annotations

import functools
import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping
from types import FrameType
from typing import Any

from msgspec.structs import replace

from ..codec import JSON
from ..delivery import Mode
from ..envelope import TOPIC, Envelope
from ..errors import ConfigurationError
from ..inject import (
    MESSAGE,
    NO_NAMES,
    GivenValues,
    Kind,
    Overrides,
    Plan,
    Reader,
    check_takes_names,
    compile_plan,
    kind_of,
    plain_function,
)
from ..names import check_name
from ..ports import Schedule, make_bounds
from ..schedule import make_schedule, schedule_name
from .actor import Actor
from .options import BATCH_WAIT
from .routing import Predicate, RoutingStrategy, topic_based_routing_strategy


def build_actor(
    function: Callable[..., Any], options: Mapping[str, Any], local_names: Mapping[str, Any] = NO_NAMES
) -> Actor:
    """The actor for a function and its complete, checked options. Raises `ConfigurationError` naming the actor.

    `local_names`: what names in its annotations mean that no module knows; see `enclosing_names`.
    """
    name = options.get("name") or name_of(function)
    check_name("actor", name)
    is_async = is_async_function(function)
    mode: Mode = options["confirmation_mode"]
    _check_mode(name, mode, options)
    batch = options.get("batch")
    _check_batch(name, batch, options)
    plan = compile_plan(function, strict=options["strict"], of_batch=batch is not None, local_names=local_names)
    schedule = _schedule_of(name, options)
    if schedule is not None:
        _check_needs_no_payload(name, plan, options)
    if options["run_in_process"]:
        _check_importable(name, function, is_async=is_async)
        _check_runs_in_process(name, plan)
    return Actor(
        name=name,
        channel=options["channel"],
        function=function,
        is_async=is_async,
        plan=plan,
        timeout=options["timeout"],
        retries=options["retries"],
        retry_policy=options["retry_policy"],
        concurrency=options.get("concurrency", None if batch is None else 1),
        mode=mode,
        on_error=options.get("on_error"),
        run_in_process=options["run_in_process"],
        middlewares=options["middlewares"],
        takes=_predicate_of(name, options["routing_strategy"]),
        store_result=options["store_result"],
        result_ttl=options["result_ttl"],
        backend=options["backend"],
        on_misfit=options["on_misfit"],
        batch=batch,
        batch_wait=options.get("batch_wait", BATCH_WAIT),
        bounds=make_bounds(f"actor {name!r}", *map(options.get, ("max_size", "max_bytes", "when_full"))),
        schedule=schedule,
    )


def overridden(actor: Actor, overrides: Overrides, given: GivenValues = ()) -> Actor:
    """The actor with other functions in the place of some of its dependencies, and with the values that were given once
    for its worker. Raises `ConfigurationError`.
    """
    if actor.plan.dependencies is None or not (overrides or given):
        return actor
    plan = actor.plan.overridden(overrides, given)
    if actor.run_in_process:
        _check_runs_in_process(actor.name, plan)
    return replace(actor, plan=plan)


def place_of(function: Callable[..., Any], frame: FrameType | None) -> str:
    """The file and line of a declaration: where its function is defined; for what has no code, where it is declared."""
    code = getattr(plain_function(function), "__code__", None)
    if code is not None:
        return f"{code.co_filename}:{code.co_firstlineno}"
    return "unknown place" if frame is None else f"{frame.f_code.co_filename}:{frame.f_lineno}"


def what_to_do_about_namesakes(first: Callable[..., Any], second: Callable[..., Any]) -> str:
    """For the text about two actors of one name on one channel."""
    advice = "give one of them another name or channel"
    if place_of(first, None) != place_of(second, None):
        return advice
    return f"{advice}; if its module was reloaded, or its cell of a notebook run again, make a new router and app there"


def check_is_function(what: str, function: Callable[..., Any]) -> None:
    """Raises `ConfigurationError` for what cannot be an actor: what is not callable, a class, a method without its
    object.
    """
    if not callable(function):
        hint = f": for a name of its own, write actor(name={function!r})" if isinstance(function, str) else ""
        raise ConfigurationError(f"an actor must be a function, but is {function!r}{hint}")
    if isinstance(function, type):
        raise ConfigurationError(
            f"{what} is a class, but an actor must be a function: declare a function that uses the class"
        )
    check_takes_names(function, what)
    plain = plain_function(function)
    owner, _, _ = getattr(plain, "__qualname__", "").rpartition(".")
    first = next(iter(getattr(getattr(plain, "__code__", None), "co_varnames", ())), "")
    if inspect.isfunction(function) and first in {"self", "cls"} and owner and not owner.endswith("<locals>"):
        raise ConfigurationError(
            f"{what} is a method of the class {owner}, and no message can give it its {first!r}: declare the method of "
            f"an object, as in router.actor(object.{plain.__name__}), or a function outside of the class"
        )


def _check_mode(name: str, mode: Mode, options: Mapping[str, Any]) -> None:
    if mode in {"always_ack", "ack_first"} and options["retries"]:
        raise ConfigurationError(
            f"actor {name!r} has retries={options['retries']} and confirmation_mode={mode!r}, "
            "under which no message is ever retried: drop one of them"
        )
    on_error = options.get("on_error")
    if mode in {"always_ack", "ack_first"} and on_error is not None and on_error != "ack":
        raise ConfigurationError(
            f"actor {name!r} has on_error={on_error!r} and confirmation_mode={mode!r}, under which a message is "
            "acknowledged whatever its actor raises: drop one of them"
        )
    if mode == "ack_first" and options["store_result"]:
        raise ConfigurationError(
            f"actor {name!r} has store_result=True and confirmation_mode='ack_first', under which a message is settled "
            "before there is a result: drop one of them"
        )


def _check_batch(name: str, batch: int | None, options: Mapping[str, Any]) -> None:
    if batch is None:
        if "batch_wait" in options:
            raise ConfigurationError(
                f"actor {name!r} has batch_wait, but no batch: say how many messages it gets at most"
            )
        return
    if options["confirmation_mode"] == "ack_first":
        raise ConfigurationError(
            f"actor {name!r} has batch={batch} and confirmation_mode='ack_first', under which each message is "
            "acknowledged before its run: drop one of them"
        )
    if options["strict"]:
        raise ConfigurationError(
            f"actor {name!r} has batch={batch} and strict=True, but a whole payload is one element of its list: have "
            "the type of the elements refuse unknown fields, as a msgspec.Struct with forbid_unknown_fields=True does; "
            "where a router says it for all of its actors, give this one strict=False"
        )
    for rule in ("every", "cron"):
        if rule in options:
            raise ConfigurationError(
                f"actor {name!r} has batch={batch} and {rule}={options[rule]!r}, whose messages carry no payload: have "
                "another actor on the schedule send the messages"
            )


def _check_needs_no_payload(name: str, plan: Plan, options: Mapping[str, Any]) -> None:
    required = [field.name for field in plan.signature.fields if field.required]
    if required:
        rule = "every" if "every" in options else "cron"
        raise ConfigurationError(
            f"actor {name!r} has {rule}={options[rule]!r}, whose messages carry no payload, but its parameter "
            f"{required[0]!r} has no default: give it one, or use a recurring job, Job({name!r}, args=...)"
        )


def _predicate_of(name: str, strategy: RoutingStrategy) -> Predicate | None:
    if strategy is topic_based_routing_strategy:
        return None
    predicate = strategy(actor_name=name)
    if not callable(predicate):
        raise ConfigurationError(
            f"the routing strategy of actor {name!r} must return a predicate over messages, but returned {predicate!r}"
        )
    return predicate


def _schedule_of(name: str, options: Mapping[str, Any]) -> Schedule | None:
    rule = {key: options[key] for key in ("every", "cron", "timezone", "overlap", "missed") if key in options}
    if not rule:
        return None
    stored_as = schedule_name(options["channel"], name)
    model = Envelope(stored_as, options["channel"], b"", JSON, {TOPIC: name})
    return make_schedule(f"actor {name!r}", stored_as, model, **rule)


def name_of(function: Callable[..., Any]) -> str:
    """The name of a function, also behind `functools.partial`; a callable object's type's."""
    while isinstance(function, functools.partial):
        function = function.func
    return getattr(function, "__name__", type(function).__name__)


def is_async_function(function: Callable[..., Any]) -> bool:
    """Whether calling it gives a coroutine. Raises `ConfigurationError` for generators, which are no actors."""
    kind = kind_of(function)
    if kind in {Kind.GENERATOR, Kind.ASYNC_GENERATOR}:
        raise ConfigurationError(
            f"actor {name_of(function)!r} is a generator function: an actor must return, not yield"
        )
    return kind is Kind.ASYNC


def _check_importable(name: str, function: Callable[..., Any], *, is_async: bool) -> None:
    if is_async:
        raise ConfigurationError(
            f"actor {name!r} is async: run_in_process is for sync functions; where a router says it for all of its "
            "actors, give this one run_in_process=False"
        )
    _check_found_by_processes(f"actor {name!r} cannot run in a process", "function", function)


def _check_runs_in_process(name: str, plan: Plan) -> None:
    steps = () if plan.dependencies is None else plan.dependencies.inner.steps
    for step in steps:
        if isinstance(step.function, Reader):
            raise ConfigurationError(
                f"actor {name!r} cannot run in a process with a dependency that has a {step.function!r}: the message "
                "cannot leave the process of its worker; make the dependency async, so that it runs there, or have the "
                "actor itself take the value"
            )
    if plan.for_worker:
        raise ConfigurationError(
            f"actor {name!r} cannot run in a process with its dependency {plan.for_worker[0].function!r}, whose scope "
            "is the worker: its value lives in the process of the worker; use one that is called for each run, or drop "
            "run_in_process"
        )
    for step in steps:
        what = f"actor {name!r} cannot run in a process with its dependency {step.function!r}"
        _check_found_by_processes(what, "function or class", step.function)
    _check_dependencies_take_no_message(name, plan)


def _check_dependencies_take_no_message(name: str, plan: Plan) -> None:
    """Raises `ConfigurationError`: only the actor itself is given its message in a process."""
    for step in () if plan.dependencies is None else plan.dependencies.inner.steps:
        for parameter, number in step.wants:
            if number == MESSAGE:
                raise ConfigurationError(
                    f"actor {name!r} cannot run in a process with the parameter {parameter!r} of its dependency "
                    f"{step.function!r}: only the actor itself is given its message there; make the dependency async, "
                    "so that it runs in the process of the worker, or drop run_in_process"
                )


def _check_found_by_processes(what: str, kind: str, function: Callable[..., Any]) -> None:
    """Raise `ConfigurationError` for a function that another process would not find by its name."""
    if "<" in getattr(function, "__qualname__", "<"):
        raise ConfigurationError(
            f"{what}: another process must be able to import it, so it must be a {kind} at the top level of a module"
        )
    if _is_in_a_prompt(function) and importlib.util.find_spec("cloudpickle") is None:
        raise ConfigurationError(
            f"{what}: it belongs to a program without a file, as a notebook, a prompt and `python -c` are, which "
            "another process cannot import: define it in a module, or install cloudpickle"
        )


def _is_in_a_prompt(function: Callable[..., Any]) -> bool:
    """Whether it belongs to a main module that was not read from a file, which `multiprocessing` cannot import."""
    main = sys.modules.get("__main__")
    return function.__module__ == "__main__" and not (
        getattr(main, "__spec__", None) or getattr(main, "__file__", None)
    )
