"""The table of docs/state-machine.md, worked out by the code that decides: `python tests/house/state_table.py` prints it."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from repid.delivery import (
    CancelRequested,
    Crowded,
    Event,
    Expired,
    Failure,
    LeaseExpired,
    PayloadRefused,
    Phase,
    Raised,
    Returned,
    Starting,
    Stopping,
    Terms,
    TimedOut,
    Unrouted,
    decide,
)
from repid.delivery.fate import FATES

OOPS = Failure("ValueError", "oops")
PLAIN = Terms(mode="auto", attempt=1, retries=3, retry_delay=lambda _: 2.0)
LAST = msgspec.structs.replace(PLAIN, attempt=4)

CASES: dict[type[Event], list[tuple[str, Event, Terms]]] = {
    Starting: [("mode `ack_first`", Starting(), msgspec.structs.replace(PLAIN, mode="ack_first", retries=0))],
    Returned: [
        ("", Returned(), PLAIN),
        ("mode `manual`", Returned(), msgspec.structs.replace(PLAIN, mode="manual")),
        *(
            (
                f"mode `manual_explicit`, returned {word!r}",
                Returned(word),
                msgspec.structs.replace(PLAIN, mode="manual_explicit"),
            )
            for word in ("ack", "nack", "reject", "retry", "what?")
        ),
    ],
    Raised: [
        ("retries are left", Raised(OOPS), PLAIN),
        ("none is left", Raised(OOPS), LAST),
        ("mode `always_ack`", Raised(OOPS), msgspec.structs.replace(LAST, mode="always_ack", retries=0)),
        *((f"`on_error` says {word!r}", Raised(OOPS, word), PLAIN) for word in ("ack", "nack", "reject")),
    ],
    TimedOut: [("retries are left", TimedOut(OOPS), PLAIN), ("none is left", TimedOut(OOPS), LAST)],
    PayloadRefused: [
        ("", PayloadRefused(OOPS), PLAIN),
        ("`on_misfit` says 'release', for less than an hour", PayloadRefused(OOPS, 10.0, 0.5), PLAIN),
        ("the same, for an hour", PayloadRefused(OOPS, 3600.0, 0.5), PLAIN),
    ],
    Unrouted: [("for less than an hour", Unrouted(10.0, 0.5), PLAIN), ("for an hour", Unrouted(3600.0, 0.5), PLAIN)],
    Crowded: [("", Crowded(0.5), PLAIN)],
    Expired: [("", Expired(), PLAIN)],
    Stopping: [("", Stopping(), PLAIN)],
    CancelRequested: [("", CancelRequested(), PLAIN)],
    LeaseExpired: [("", LeaseExpired(), PLAIN)],
}
"""For each kind of event the cases that are decided differently: when, an example, and the terms."""


def rows() -> Iterator[str]:
    """The lines of the table."""
    yield "| what happened | when | held | running | decided |"
    yield "|---|---|---|---|---|"
    for kind, cases in CASES.items():
        for when, event, terms in cases:
            cells = [show(phase, event, terms) for phase in Phase]
            yield f"| {kind.__name__} | {when} | {' | '.join(cells)} |"


def show(phase: Phase, event: Event, terms: Terms) -> str:
    """What follows, in a few words."""
    if (phase, type(event)) not in FATES:
        return "-"
    decided = decide(phase, event, terms)
    if decided is None:
        return "nothing"
    details = [str(decided.reason)] if hasattr(decided, "reason") else []
    if getattr(decided, "delay", 0):
        details.append("later")
    if getattr(decided, "failure", None) is not None and not hasattr(decided, "reason"):
        details.append("with the failure")
    return type(decided).__name__ + (f" ({', '.join(details)})" if details else "")


if __name__ == "__main__":
    print("\n".join(rows()))  # noqa: T201  what it is for
