"""What PostgreSQL and libpq say, in repid's words."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from functools import wraps
from typing import Any, TypeVar, cast

from ...errors import BrokerRefused, BrokerUnavailable, ConfigurationError, RepidError

AsyncFunction = TypeVar("AsyncFunction", bound=Callable[..., Awaitable[Any]])


class ServerError(Exception):
    """The server refused a statement. `code` is its SQLSTATE."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code


class Locked(BrokerRefused):
    """A lock was not free in time."""


_AWAY = ("08", "57P", "53", "25006", "40", "57014", "25P0")
"""SQLSTATEs that begin so may be over soon: no connection, shutting down, out of something, read-only, timeouts."""

DEADLOCK = "40P01"
"""The SQLSTATE where transactions wait for each other, which the server ends by refusing one of them."""

_LOCKED = {"55P03", DEADLOCK}
"""SQLSTATEs of a lock that was not free in time, and of a deadlock."""


_LATE = ("55P03", DEADLOCK, "53", "54", "57014")
"""SQLSTATEs that begin so come of a lock or a limit, such as that of the queue of notifications."""


def is_only_late(error: ServerError) -> bool:
    """Whether a hint that failed so may be left out: nothing else is wrong."""
    return error.code.startswith(_LATE)


def explain(error: ServerError) -> RepidError:
    """What to raise for a statement that the server refused."""
    if error.code == "25006":
        return BrokerUnavailable(
            f"this PostgreSQL server takes no writes: it is a replica, or was made read-only ({error}). Connect to the "
            "primary, for instance with target_session_attrs=read-write"
        )
    if error.code in _LOCKED:
        return Locked(f"another transaction that is open has locked what this call changes; try again: {error}")
    if error.code.startswith(_AWAY):
        return BrokerUnavailable(f"PostgreSQL could not do this now: {error} (SQLSTATE {error.code})")
    if error.code == "42501":
        return ConfigurationError(
            f"this PostgreSQL role may not do what repid needs: {error}. Let it use the schema and its tables, or have "
            "another role run `python -m repid migrate`"
        )
    if error.code in {"42P01", "3F000", "42703", "42883"}:
        return BrokerUnavailable(f"repid's tables are not what they were when the link was opened: {error}")
    return BrokerRefused(f"PostgreSQL refused this: {error} (SQLSTATE {error.code})")


def asked_again(call: AsyncFunction) -> AsyncFunction:
    """For what workers ask: what another transaction has locked is free a moment later, so the call is made again."""

    @wraps(call)
    async def ask(*arguments: Any, **options: Any) -> Any:
        try:
            return await call(*arguments, **options)
        except Locked as error:
            raise BrokerUnavailable(str(error)) from error

    return cast("AsyncFunction", ask)


def lost(error: Exception) -> BrokerUnavailable:
    """What to raise where the connection broke."""
    return BrokerUnavailable(f"the connection to PostgreSQL broke: {_one_line(error)}")


POOLED = (
    "there is a pooler such as PgBouncer before PostgreSQL, which keeps no settings of a session: give PostgresServer "
    "listen=False, or the address of PostgreSQL itself"
)

_CONNECT = (
    ("unsupported startup parameter", POOLED),
    (r'database "[^"]*" does not exist', "the database does not exist: create it, or correct the address"),
    (
        r"password authentication failed|no password supplied|role \"[^\"]*\" does not exist|authentication failed",
        "the name or the password is wrong",
    ),
    (
        (
            r"no pg_hba.conf entry|certificate|private key|SSL was required|"
            r"SSL error: .*(handshake failure|protocol|unknown ca)"
        ),
        "the server does not let this client in (pg_hba.conf, TLS)",
    ),
    (r"permission denied for database", "this role may not connect to the database"),
    (r"definition of service .* not found|service file .* not found", "there is no such service: correct its name"),
    (
        r"invalid (port number|\w+ value)|bad value for|Servname not supported",
        "an option in its address has a wrong value",
    ),
)


def explain_connect(error: Exception) -> RepidError:
    """What to raise where no connection could be made. libpq gives no code then, so its English text is looked at.

    A connection that breaks off in the middle of TLS is no wrong option: a server that restarts breaks them off so.
    """
    text = _one_line(error)
    for pattern, meaning in _CONNECT:
        if re.search(pattern, text):
            return ConfigurationError(f"PostgresServer cannot connect: {meaning} ({text})")
    if "too many" in text or "remaining connection slots" in text:
        return BrokerUnavailable(
            f"PostgreSQL has no connection left for us ({text}): raise max_connections, or lower connections="
        )
    return BrokerUnavailable(f"PostgreSQL cannot be reached: {text}")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
