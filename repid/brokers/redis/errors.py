"""From what a connection raises to what repid raises: the only place that knows both.

What may pass by itself (a broken connection, a server that loads, that cannot write its snapshot, that became a
replica) is `BrokerUnavailable`: the link is opened anew until it is over. What the server refuses for good is
`BrokerRefused`, or `ConfigurationError` when it is found on opening. A server's refusal begins with a word that says
what kind it is.
"""

from __future__ import annotations

from copy import copy

import hiredis
import trio

from ...errors import BrokerRefused, BrokerUnavailable, ConfigurationError, InternalError, RepidError


class Refused(Exception):  # noqa: N818  named for what happened
    """The server's answer was an error."""


FAILED = (
    Refused,
    OSError,
    trio.TooSlowError,
    trio.BrokenResourceError,
    trio.ClosedResourceError,
    hiredis.ProtocolError,
    BrokerUnavailable,
)
"""What opening a connection, and asking on one, may raise."""


def explain(error: BaseException, place: str) -> RepidError:
    """What happened where, and what to do about it, in the course of a call."""
    if isinstance(error, RepidError):
        return copy(error)  # others may be told it, too
    if not isinstance(error, Refused):
        return BrokerUnavailable(f"{place} cannot be reached or does not answer: {_root(error)}")
    text = str(error)
    kind = next((kind for words, kind in _BY_WORDS if words in text), text.partition(" ")[0])
    if kind in _MAY_PASS:
        return BrokerUnavailable(f"{place} {_MAY_PASS[kind]} ({text})")
    if kind in _REFUSED:
        return BrokerRefused(f"{place} {_REFUSED[kind]} ({text})")
    if "user_script:" in text:
        return InternalError(f"a script failed on {place}: {text}")
    return BrokerRefused(f"{place} refused a call, nothing was changed: {text}")


_RIGHTS = (
    "it needs the keys and channels that begin with the prefix in braces, and the commands of "
    "ACL SETUSER … ~{repid}:* &{repid}:* +@all -@admin -@dangerous +info"
)

_BY_WORDS = (("ACL failure in script", "NOPERM"), ("max number of clients", "MAXCLIENTS"))
"""Refusals whose first word says nothing, and what they are called here."""

_MAY_PASS = {
    "LOADING": "is loading its data after a start: try again when it is done",
    "READONLY": "is a read-only replica, nothing was changed: give RedisServer the address of the primary",
    "MASTERDOWN": "is a replica that has lost its primary, nothing was changed: give RedisServer the address of the "
    "primary",
    "MISCONF": "refuses to write because it cannot save its data to disk, nothing was changed: look at its log and at "
    "the free space of its disk",
    "BUSY": "is busy with a script that does not end, nothing was changed: SCRIPT KILL ends it",
    "NOREPLICAS": "has fewer replicas than it wants to write (min-replicas-to-write), nothing was changed",
    "CLUSTERDOWN": "is a node of a cluster that is down, nothing was changed",
    "MOVED": "is a node of a cluster that does not hold repid's keys, nothing was changed: they are all in one "
    "slot; give RedisServer redis+cluster://HOST:PORT,HOST:PORT, which finds the node that has it",
    "ASK": "is a node of a cluster that hands repid's keys over to another one just now, nothing was changed",
    "TRYAGAIN": "is a node of a cluster that hands repid's keys over to another one just now, nothing was changed",
    "NOAUTH": "wants a password now: put it into the address",
    "MAXCLIENTS": "has no connection left for us: raise its maxclients",
}
_REFUSED = {
    "OOM": "has no memory left (maxmemory), nothing was changed: raise maxmemory, or let workers catch up",
    "WRONGTYPE": "has a key that repid needs with another type: another program uses the same names; give RedisServer "
    "a prefix= of its own",
    "NOPERM": f"does not let this user do that: {_RIGHTS}",
}


def moved_to(text: str) -> tuple[str, int] | None:
    """Where a node of a cluster sends us; no host means its own one. None: it says something else."""
    kind, _, rest = text.partition(" ")
    host, _, port = rest.rpartition(" ")[2].rpartition(":")
    return (host, int(port)) if kind == "MOVED" and port.isdecimal() else None


def explain_open(error: BaseException, place: str) -> RepidError:
    """As `explain`, for what goes wrong while the connection is opened."""
    found: RepidError | None = _explain_refusal(error, place)
    if found is None:
        found = explain(error, place)
        if isinstance(found, BrokerRefused):
            found = ConfigurationError(str(found))
    return found


def _explain_refusal(error: BaseException, place: str) -> ConfigurationError | None:
    text = str(error) if isinstance(error, Refused) else ""
    if text.startswith(("NOAUTH", "WRONGPASS")) or "invalid username-password" in text:
        return ConfigurationError(
            f"{place} did not let us in ({text}): put the right user and password into the address, "
            "redis://USER:PASSWORD@HOST:PORT"
        )
    if text.startswith("MOVED"):
        return ConfigurationError(f"{place} {_MAY_PASS['MOVED']} ({text})")
    if "unknown command" in text and "HELLO" not in text:
        return ConfigurationError(
            f"{place} lacks a command that repid needs ({text}): let the server have it under its own name, without "
            "rename-command"
        )
    if text.startswith("NOPROTO") or "unknown command" in text:
        return ConfigurationError(
            f"{place} does not speak RESP3 ({text}): RedisServer needs Redis 6.2 or newer, or Valkey, without a proxy "
            "that knows only RESP2"
        )
    if "DB index is out of range" in text or "invalid DB index" in text:
        return ConfigurationError(f"{place} does not have that database: give another number in the address ({text})")
    return None


def _root(error: BaseException) -> str:
    """The innermost cause: clients wrap what the system said, and trio has a group of one error for each address."""
    while error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, BaseExceptionGroup):
        return "; ".join(dict.fromkeys(map(_root, error.exceptions)))
    if isinstance(error, trio.TooSlowError):
        return "no answer came in time"
    return str(error) or type(error).__name__
