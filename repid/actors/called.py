"""From an actor to what it takes to call it by message, and which actor a function is."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import msgspec

from ..calls import Callee
from ..codec import encode_json
from ..errors import ConfigurationError, did_you_mean
from ..inject import NO_REST
from ..logs import Log
from .actor import Actor
from .declaration import place_of, what_to_do_about_namesakes

log = Log("repid")

MOST_KNOWN = 4096
"""Functions for which their actor is remembered."""


def callee_of(actor: Actor) -> Callee:
    """What it takes to call this actor by message."""
    signature = actor.plan.signature
    kinds = inspect.signature(actor.function).parameters
    by_position = [
        each.name for each in signature.fields if kinds[each.name].kind is not inspect.Parameter.KEYWORD_ONLY
    ]
    by_name = [each.name for each in signature.fields if each.name not in by_position]
    return Callee(
        name=str.__str__(actor.name),  # also where it is a member of an enum that is text
        function=signature.function,
        channel=actor.channel,
        names=(*by_position, *by_name),
        positional=len(by_position),
        injected=frozenset(signature.messages).union(name for name, _ in signature.dependencies),
        takes_rest=signature.rest is not NO_REST,
        payload_of=encode_json if actor.plan.batch is None else _payload_of_element(actor.plan.batch.parameter),
        is_of_batch=actor.plan.batch is not None,
        check=actor.plan.bind,
        returns=signature.returns,
        by_position=_maker_of_arguments(by_position),
    )


def _maker_of_arguments(names: Sequence[str]) -> Callable[..., Any]:
    """What makes of arguments by position something that is encoded as the same arguments by name."""
    if any(name.startswith("__") for name in names):  # a class would mangle the names, or take them for its own
        return lambda *arguments: dict(zip(names, arguments, strict=False))
    return msgspec.defstruct("arguments", [(name, Any, msgspec.UNSET) for name in names])


def _payload_of_element(parameter: str) -> Callable[[Mapping[str, Any]], bytes]:
    return lambda given: encode_json(given[parameter])


class Callees:
    """The actors among which functions are looked up. For what is not known yet `actors` is asked again if `count`, the
    number of declarations, is another one than before: it takes long, and a `functools.partial` of an actor is not
    found in any case.
    """

    __slots__ = ("_actors", "_count", "_counted", "_known", "_seen")

    def __init__(self, actors: Callable[[], Iterable[Actor]], count: Callable[[], int]) -> None:
        self._actors = actors
        self._count = count
        self._counted: int | None = None
        self._seen = _Seen(())
        self._known: dict[Any, Callee] = {}
        """By functions, which are kept alive by it; by the `id` of one that cannot be hashed only if that is the
        function of an actor, which keeps it alive: another one could get the `id` of one that is gone.
        """

    def find(self, function: Callable[..., Any]) -> Callee | None:
        """The actor that was declared with this function, or with what it wraps. Returns None if there is none.

        Raises `ConfigurationError` if its messages would not reach it, or where it was declared as several actors.
        """
        try:
            known = self._known.get(function)
        except TypeError:  # see `_key_of`, which would take as long as the rest
            known = self._known.get(id(function))
        if known is None:
            actor = self._seen.find(function)
            if actor is None and (count := self._count()) != self._counted:
                self._seen, self._counted = _Seen(self._actors()), count
                actor = self._seen.find(function)
            if actor is not None:
                own = _key_of(actor.function)
                known = self._known.get(own) or callee_of(actor)
                if len(self._known) >= MOST_KNOWN:  # a program that makes a wrapper for each call
                    self._known.clear()
                self._known[own] = known
                if is_hashable(function):
                    self._known[function] = known
        return known

    def warn_of_unknown_arguments(self, name: str, channel: str, given: frozenset[str]) -> None:
        """Log which of these arguments of a job its actor does not take, if the actor is among these.

        They are not refused: a worker ignores them, so that senders and actors of different versions work together.
        """
        actor = _Seen(self._actors()).reached(name, channel)
        known = None if actor is None else actor.plan.payload_fields
        if actor is None or known is None:
            return
        for each in sorted(given.difference(known)):
            log.warning(
                "a job for actor %r on channel %r has the argument %r, which %s() in this app does not take%s: its "
                "worker ignores the argument, or refuses the job if the actor is strict",
                name,
                channel,
                each,
                actor.plan.signature.function,
                did_you_mean(each, known),
            )


def _key_of(function: Callable[..., Any]) -> Any:
    """What it is found by: itself, as a bound method is another object each time; or its `id`, if it cannot
    be hashed.
    """
    return function if is_hashable(function) else id(function)


def is_hashable(function: Callable[..., Any]) -> bool:
    """Whether it can be a key. An object with an `__eq__` of its own may not be one."""
    try:
        hash(function)
    except TypeError:
        return False
    return True


class _Seen:
    """The actors there were at one time: by their functions, and which one gets the messages for a name on a
    channel.
    """

    def __init__(self, actors: Iterable[Actor]) -> None:
        self._by_function: dict[Any, list[Actor]] = {}
        self._reached: dict[tuple[str, str], Actor] = {}
        for actor in actors:
            self._by_function.setdefault(_key_of(actor.function), []).append(actor)
            if actor.takes is None:
                self._reached.setdefault((actor.channel, actor.name), actor)

    def reached(self, name: str, channel: str) -> Actor | None:
        """The actor that gets the messages for this name on this channel."""
        return self._reached.get((channel, name))

    def find(self, function: Any) -> Actor | None:
        """The actor of a function or of what it wraps. Raises `ConfigurationError` if its messages do not reach it."""
        while function is not None:
            if found := self._by_function.get(_key_of(function)):
                self._check_reached(found)
                return found[0]
            function = getattr(function, "__wrapped__", None)
        return None

    def _check_reached(self, mine: list[Actor]) -> None:
        actor = mine[0]
        if len({(each.channel, each.name) for each in mine}) > 1:
            raise ConfigurationError(
                f"{actor.plan.signature.function}() was declared as {len(mine)} actors: "
                + ", ".join(f"{each.name!r} on channel {each.channel!r}" for each in mine)
                + "; say which one is meant with Job(name, queue=channel)"
            )
        first = self._reached.get((actor.channel, actor.name), actor)  # one with a strategy of its own may take them
        if first is not actor:
            raise ConfigurationError(
                f"messages for {actor.name!r} on channel {actor.channel!r} go to the actor declared first, at "
                f"{place_of(first.function, None)}, and never to the one at {place_of(actor.function, None)}: "
                + what_to_do_about_namesakes(first.function, actor.function)
            )


def no_actor(what: str, function: Any) -> ConfigurationError:
    """The error for a function that is no actor here."""
    if isinstance(function, str):
        return ConfigurationError(
            f"a call is enqueued by the function itself, but {function!r} is text: use Job({function!r}, queue=..., "
            "args=...) for an actor that is known by its name only"
        )
    name = getattr(function, "__qualname__", None) or repr(function)
    if inspect.iscoroutine(function):
        function.close()
        return ConfigurationError(
            f"{name} was called here, and its coroutine is no actor: give the function, and its arguments beside it"
        )
    if not callable(function) and callable(getattr(function, "enqueue", None)):
        return ConfigurationError(
            f"{name} is a job, with options of its own: it is enqueued by `await job.enqueue()` (in blocking code by "
            "`client.enqueue(job)`), and many by `await app.enqueue_many(jobs)`"
        )
    return ConfigurationError(
        f"{name} is no actor of {what}: declare it with @router.actor and include its router with "
        "app.include_router(router); for an actor that is known by its name only, use Job(name, queue=..., args=...)"
    )
