"""Every option of an actor: what may be said, what it must look like, what holds when it is not said."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import timedelta
from typing import Any, TypedDict, get_args

from ..delivery import DAY, MODES, VERBS, Mode, WhenFull
from ..errors import ConfigurationError
from ..names import (
    NOT_OF_ACTORS,
    check_count,
    check_duration,
    check_flag,
    check_function,
    check_iterable,
    check_known,
    check_middleware,
    check_name,
    check_one_of,
    check_retries,
    check_text,
)
from ..ports import Missed, Overlap, make_bounds
from ..retry import RetryPolicy, default_retry_policy_factory
from .actor import ActorMiddleware, Misfit, OnError, Where
from .routing import RoutingStrategy, topic_based_routing_strategy


class RouterOptions(TypedDict, total=False):
    """What a router may set for all its actors, and an actor for itself. What is not given is inherited.

    channel, queue: two words for the one buffer the actor reads; both at once is an error. Default "default".
    timeout: seconds or timedelta until the actor is cancelled. Default 600; inf: none.
    retries: how many times a failed message is run again. Default 0.
    retry_policy: from the retry's number (from 1) to the delay before it. Default exponential, 1 s to 1 h.
    concurrency: how many runs of this actor there may be at once in one worker. Default, and inf: no limit of its own.
    confirmation_mode: when the message is acknowledged. "auto" (default): by how the actor ends; "always_ack":
        however it ends; "ack_first": before it starts, at most once; "manual": by the message's verbs only;
        "manual_explicit": by the word the actor returns.
    on_error: a verb, or a callable from the exception to one; asked before retries. None: the retries decide.
    run_in_process: run a sync function in a process that a timeout really kills. Default: in a thread. It gets a
        `SyncMessage` there, whose verbs go to the worker; its sync dependencies get none. Children that the function
        forks in its main thread are killed with the process, on Linux only; elsewhere, and those of its other threads,
        go on alone.
    middlewares: around every run; those of the app come first, then routers from the outside in, then the actor's.
    routing_strategy: which messages of the channel the actor takes. Default: those with its name as `topic`.
    store_result: keep what the function returns, or how it failed. Default False.
    result_ttl: how long a result is kept, seconds or timedelta. Default a day.
    backend: where an async function runs. "host" (default): on the event loop that called the worker, asyncio's or
        trio's; "trio"; "asyncio" (extra: asyncio). Sync functions run in threads wherever they are called.
    strict: refuse payloads with fields the function does not have. Default: ignore them.
    on_misfit: what becomes of a message whose payload does not fit. "dead_letter" (default), at once; "release": it is
        released with a growing delay for at most an hour, since a worker with another version of the program may take
        it.
    max_size, max_bytes, when_full: the bounds of the channel, as in `Queue`; stored when the app opens its servers and
        when a worker starts. They go with the channel: what names another channel does not inherit them, and is refused
        where the router has bounds and names no channel.
    """

    channel: str
    queue: str
    timeout: float | timedelta
    retries: int
    retry_policy: RetryPolicy
    concurrency: float
    confirmation_mode: Mode
    on_error: OnError | None
    run_in_process: bool
    middlewares: Sequence[ActorMiddleware]
    routing_strategy: RoutingStrategy
    store_result: bool
    result_ttl: float | timedelta
    backend: Where
    strict: bool
    on_misfit: Misfit
    max_size: int | None
    max_bytes: int | None
    when_full: WhenFull


class ActorOptions(RouterOptions, total=False):
    """The options of a router, and what concerns one actor only.

    name: what messages call the actor. Default: the function's name.
    every, cron: send the actor a message without payload at this interval (seconds or timedelta), or at the times
        of this cron expression or name such as "@daily" (extra: cron); one of them. All its parameters need defaults
        then. The schedule is stored under "channel:name" when a worker starts, and stays until it is removed.
    timezone: of the cron expression. Default "UTC". What happens when its clocks change: see `repid.cron`.
    overlap: "skip" (default): no tick while the former one's message is live; "allow".
    missed: for ticks more than a minute late, as after a time without a worker, "one" catches up (default), or "none".
    """

    name: str
    every: float | timedelta
    cron: str
    timezone: str
    overlap: Overlap
    missed: Missed


class BatchOptions(ActorOptions, total=False):
    """The options of an actor that is given many messages at once; `batch` itself is how many at most.

    Its function has one parameter that is a list; the whole payload of each message is an element of it. All options
    hold for a batch as for one message, but `concurrency` counts batches, and its default is 1.

    batch_wait: seconds or timedelta that the first message waits for more at most. Default 0.1. A full batch starts at
        once, and so does one to which no more can come.
    """

    batch_wait: float | timedelta


BATCH_WAIT = 0.1
"""Seconds that the first message of a batch waits for more, where nothing else was said."""

DEFAULTS: RouterOptions = {
    "channel": "default",
    "timeout": 600.0,
    "retries": 0,
    "retry_policy": default_retry_policy_factory(),
    "confirmation_mode": "auto",
    "run_in_process": False,
    "middlewares": (),
    "routing_strategy": topic_based_routing_strategy,
    "store_result": False,
    "result_ttl": DAY,
    "backend": "host",
    "strict": False,
    "on_misfit": "dead_letter",
}

_BOUNDS = ("max_size", "max_bytes", "when_full")
_ROUTER_OPTIONS = tuple(RouterOptions.__annotations__)
_ACTOR_OPTIONS = (
    *_ROUTER_OPTIONS,
    "name",
    "every",
    "cron",
    "timezone",
    "overlap",
    "missed",
    "batch",
    "batch_wait",
)


def check_options(what: str, options: Mapping[str, Any], *, of_actor: bool) -> dict[str, Any]:
    """The options in one form: `queue` as `channel`, durations in seconds, sequences as tuples.

    Raises `ConfigurationError` for the first thing that is wrong, beginning with `what`.
    """
    check_known(what, options, _ACTOR_OPTIONS if of_actor else _ROUTER_OPTIONS, NOT_OF_ACTORS)
    if "channel" in options and "queue" in options:
        raise ConfigurationError(f"{what} has both channel and queue: they are two words for one thing, give one")
    checked = {"channel" if key == "queue" else key: value for key, value in options.items()}
    for key, value in checked.items():
        checked[key] = _CHECKS[key](f"{key} of {what}", value)
    make_bounds(what, *map(checked.get, _BOUNDS))
    return checked


def check_bounds_hold(router: Mapping[str, Any], what: str, options: Mapping[str, Any]) -> None:
    """Raise `ConfigurationError` where a channel is named without bounds in a router that has some and names no
    channel: they would bound the channel "default", which is hardly meant.
    """
    bounds = [f"{name}={router[name]!r}" for name in _BOUNDS if router.get(name) is not None]
    if bounds and "channel" not in router and "channel" in options and not any(name in options for name in _BOUNDS):
        raise ConfigurationError(
            f"{what} names the channel {options['channel']!r}, which {', '.join(bounds)} of its router does not bound, "
            "since the router names no channel: give the bounds where the channel is named, or channel= to the router"
        )


def inherit(outer: Mapping[str, Any], inner: Mapping[str, Any]) -> dict[str, Any]:
    """The inner options over the outer ones; middlewares add up, and bounds go with their channel."""
    if "channel" in inner:
        outer = {key: value for key, value in outer.items() if key not in _BOUNDS}
    middlewares = (*outer.get("middlewares", ()), *inner.get("middlewares", ()))
    return {**outer, **inner, "middlewares": middlewares}


def _one_of(words: Iterable[str]) -> Callable[[str, Any], Any]:
    def check(name: str, value: Any) -> Any:
        check_one_of(name, value, words)
        return value

    return check


def _check_timeout(name: str, value: Any) -> float:
    if value is None:
        raise ConfigurationError(f"{name} must be seconds or a timedelta, but is None: math.inf stands for no limit")
    return _check_positive(name, value)


def _check_positive(name: str, value: Any) -> float:
    return check_duration(name, value, positive=True)


def _check_concurrency(name: str, value: Any) -> float | None:
    limit = check_count(name, value, least=1)
    return None if limit == math.inf else limit


def _check_batch(name: str, value: Any) -> int:
    count = check_count(name, value, least=1)
    if count == math.inf:
        raise ConfigurationError(f"{name} must be finite: all messages of a batch are in memory at once")
    return int(count)


def _check_batch_wait(name: str, value: Any) -> float:
    wait = check_duration(name, value)
    if wait == math.inf:
        raise ConfigurationError(f"{name} must be finite: messages would wait for ever for a batch that never fills")
    return wait


def _check_on_error(name: str, value: Any) -> Any:
    if callable(value):
        return check_function(name, value, "exception")
    if value is not None:
        check_one_of(name, value, VERBS)
    return value


def _as_it_is(_: str, value: Any) -> Any:
    return value


def _check_middlewares(name: str, value: Any) -> tuple[Any, ...]:
    check_iterable(name, value)
    return tuple(check_middleware(f"each of the {name}", each, "call_next", "message", "actor") for each in value)


_CHECKS: dict[str, Callable[[str, Any], Any]] = {
    "name": lambda _, value: check_name("actor", value),
    "channel": lambda _, value: check_name("channel", value),
    "timeout": _check_timeout,
    "retries": check_retries,
    "retry_policy": lambda name, value: check_function(name, value, "retry_number"),
    "concurrency": _check_concurrency,
    "confirmation_mode": _one_of(MODES),
    "on_error": _check_on_error,
    "run_in_process": check_flag,
    "middlewares": _check_middlewares,
    "routing_strategy": lambda name, value: check_function(name, value, actor_name="name"),
    "store_result": check_flag,
    "result_ttl": _check_positive,
    "backend": _one_of(get_args(Where)),
    "strict": check_flag,
    "on_misfit": _one_of(get_args(Misfit)),
    "every": _check_positive,
    "cron": check_text,
    "timezone": check_text,
    "overlap": _one_of(get_args(Overlap)),
    "missed": _one_of(get_args(Missed)),
    "batch": _check_batch,
    "batch_wait": _check_batch_wait,
    "max_size": _as_it_is,  # the three are checked together
    "max_bytes": _as_it_is,
    "when_full": _as_it_is,
}
