"""What happened in one simulated run, line by line. Two runs from one seed have the same text, byte for byte."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from ...delivery import Bounds, Delivery, Settlement
from ...envelope import Envelope
from ...errors import BrokerRefused
from ...ports import Claimed, Verdict


class History:
    """The lines of one history. They are kept as they came, and put into words when somebody reads them."""

    def __init__(self) -> None:
        self._lines: list[tuple[float, str, str, Sequence[Any], Any]] = []

    def __len__(self) -> int:
        return len(self._lines)

    def call(self, now: float, process: str, name: str, arguments: Sequence[Any], answer: Any) -> None:
        """A process asked the engine for something, and this is what the engine did and answered."""
        self._lines.append((now, process, name, arguments, answer))

    def event(self, now: float, process: str, text: str) -> None:
        """Something else happened."""
        self._lines.append((now, process, text, (), _NOTHING))

    def lines(self) -> list[str]:
        """The timeline: seconds from the start, the process, what it did."""
        return [f"{now:10.3f}  {process:<10}  {_show(*rest)}" for now, process, *rest in self._lines]  # pyright: ignore[reportArgumentType]  a tuple's rest

    def text(self) -> str:
        """The timeline as one text."""
        return "\n".join(self.lines())

    @property
    def fingerprint(self) -> str:
        """A short text that is the same for the same history, in any process."""
        return hashlib.sha256(self.text().encode()).hexdigest()[:16]


_NOTHING = object()


def _show(name: str, arguments: Sequence[Any], answer: Any) -> str:
    if answer is _NOTHING:
        return name
    asked = _SHOWN[name](*arguments) if name in _SHOWN else " ".join(map(_value, arguments))
    return f"{name} {asked} -> {_value(answer)}".replace("  ", " ")


def _value(value: Any) -> str:
    """A value in few words; nothing of it may depend on addresses or on the order of a set."""
    for kind, show in _KINDS:
        if isinstance(value, kind):
            return show(value)
    return type(value).__name__ if isinstance(value, msgspec.Struct) else str(value)


def _delivery(delivery: Delivery) -> str:
    lost = f" lost {delivery.lost}" if delivery.lost else ""
    return f"{delivery.envelope.id}#{delivery.attempt}{lost}"


def _settlement(settlement: Settlement) -> str:
    disposition = settlement.disposition
    word = type(disposition).__name__
    if delay := getattr(disposition, "delay", 0.0):
        word += f" in {delay:.6g} s"
    if reason := getattr(disposition, "reason", ""):
        word += f" as {reason}"
    if settlement.outbox:
        word += f" sending {_value(settlement.outbox)}"
    if settlement.result is not None:
        word += f" with result {settlement.result.state}"
    return f"{_value(settlement.delivery)} {word}"


_SHOWN: dict[str, Callable[..., str]] = {
    "claim": lambda _, limit, __: str(limit),
    "settle": lambda _, settlements: _value(settlements),
    "extend": lambda _, deliveries: _value(deliveries),
    "subscribe": lambda _, queues: _value(sorted(queues)),
    "unsubscribe": lambda _: "",
    "events": lambda _: "",
    "report": lambda _, progress: _value([delivery for delivery, _ in progress]),
}
"""Calls whose first argument is the key of a consumer, which says nothing."""

_KINDS: list[tuple[Any, Callable[[Any], str]]] = [
    (Envelope, lambda envelope: envelope.id),
    (Delivery, _delivery),
    (Claimed, lambda claimed: _value(claimed.deliveries)),
    (Verdict, lambda verdict: verdict.outcome),
    (Bounds, lambda bounds: f"{bounds} {bounds.when_full}"),
    (BrokerRefused, lambda refused: type(refused).__name__),
    (BaseException, lambda error: f"{type(error).__name__}: {error}"),
    (Settlement, _settlement),
    ((frozenset, set), lambda values: _value(sorted(values, key=str))),
    ((list, tuple), lambda values: "[" + ", ".join(map(_value, values)) + "]"),
    (dict, lambda pairs: "{" + ", ".join(f"{key}: {_value(each)}" for key, each in pairs.items()) + "}"),
    (float, lambda number: f"{number:.6g}"),
]
