"""The server in a PostgreSQL database, as users open it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import timedelta
from typing import Any

from ...envelope import Envelope
from ...errors import BrokerRefused, ConfigurationError
from ...hosts import hosted
from ...names import brief, check_escaped, check_text
from ...ports import Instrument
from ..checks import check_dead_ttl, check_envelopes, check_lease_timeout
from ..door import Server
from .driver import PostgresDriver
from .library import Conninfo, Error, conninfo_to_dict
from .schema import MARK

CONNECT_TIME = 4
"""Seconds within which a connection must be made, unless the address says otherwise."""

SESSION = (
    r"default_transaction_isolation=read\ committed",
    "statement_timeout=30s",
    "lock_timeout=4s",
    "idle_in_transaction_session_timeout=6s",  # a call lasts five: its caller is gone, and others wait for its locks
    "jit=off",
    "plan_cache_mode=force_generic_plan",
    "enable_seqscan=off",
    "enable_hashjoin=off",
    "enable_mergejoin=off",
    "enable_bitmapscan=off",
)
"""What each connection is set to. Where a claim finds what another has changed just now, it takes something else and
does not fail, so it must see that. Plans are made once, when the tables may still be empty, so they must not rest on
their sizes: every statement goes by an index, and locks rows in its order."""


class PostgresServer(Server):
    """A broker in a PostgreSQL database, for any number of processes and machines. It needs the extra `postgres`.

    `conninfo`: an address as libpq takes it, "postgresql://user@host/database" or "host=… dbname=…"; what it leaves out
    comes from the usual places (PGHOST, PGSERVICE, ~/.pgpass and so on). `schema`: everything is in it; two servers
    with different schemas know nothing of each other. It is made, or brought up to date, when the server is opened,
    unless `migrate` is False: then `python -m repid migrate` does that, with a role that may.

    `lease_timeout`: a lease that was neither settled nor extended for this many seconds may be rescued. `dead_ttl`:
    seconds after which a dead message is removed; None keeps it. `connections`: how many are used at most for calls;
    one more waits for notifications. `listen`: False behind a pooler in transaction mode, such as PgBouncer: no
    notifications, no prepared statements, no settings of the session. Then new messages are noticed within a quarter of
    a second.

    What was accepted is as durable as the database says (`synchronous_commit`, `fsync`). Times are those of the
    database's server; a step of its clock ends or prolongs leases and delays by as much.
    """

    def __init__(
        self,
        conninfo: str = "",
        *,
        schema: str = "repid",
        lease_timeout: float | timedelta = 60.0,
        dead_ttl: float | timedelta | None = None,
        connections: int = 3,
        listen: bool = True,
        migrate: bool = True,
        instruments: Iterable[Instrument] = (),
    ) -> None:
        self.schema = _check_schema(schema)
        options = _check_conninfo(conninfo, listen=listen)
        if isinstance(connections, bool) or not isinstance(connections, int) or connections < 1:
            raise ConfigurationError(f"connections must be a whole number of at least 1, but is {connections!r}")
        driver = PostgresDriver(
            conninfo,
            options,
            self.schema,
            check_lease_timeout(lease_timeout),
            connections=connections,
            listen=listen,
            migrate=migrate,
            dead_ttl=check_dead_ttl(dead_ttl),
        )
        super().__init__(driver, instruments=instruments, place=f"{_place(conninfo)}, schema {self.schema!r}")
        self._postgres = driver

    @hosted
    async def publish_in(self, connection: Any, envelopes: Sequence[Envelope]) -> list[BrokerRefused | None]:
        """Publish in the transaction of the caller's own connection, which commits or rolls back; one outcome for each.

        `connection`: one of psycopg 3, for blocking code or for asyncio, or one of SQLAlchemy or Django that holds one.
        It must be to the same database, and its role may use repid's schema. A transaction is begun as psycopg would.
        Nothing else may use it during this call. Raises `UsageError` where it cannot be used now, and `BrokerRefused`
        where PostgreSQL refused a statement: roll back then. Cancelled: what was begun is seen through.
        """
        check_envelopes(envelopes)
        self._calls.check()
        return await self._postgres.publish_in(connection, envelopes)

    @hosted
    async def migrate(self) -> bool:
        """Make the schema, or bring it up to date; whether there was anything to do. The server may be closed.

        One process at a time does this, in one transaction. Raises as `connection` does.
        """
        return await self._postgres.migrate()

    @hosted
    async def migration_sql(self) -> str:
        """The SQL that `migrate` would execute, for those who must do that by hand; empty if there is nothing to do."""
        return await self._postgres.migration_sql()


def _check_schema(schema: str) -> str:
    name = check_text("schema", schema)
    if not 0 < len(name.encode()) <= 50 or name.startswith("pg_") or any(letter in name for letter in "\0'{}"):
        raise ConfigurationError(
            "schema must be a name of at most 50 bytes that does not begin with pg_ and has no quote (') or braces, "
            f"but is {schema!r}"
        )
    return name


def _place(conninfo: str) -> str:
    """Where it is, as far as the address tells: the rest is up to the environment, such as PGHOST."""
    given = {name: str(value) for name, value in conninfo_to_dict(conninfo).items()}
    told = [":".join(given[name] for name in ("host", "hostaddr", "port") if name in given)]
    told += [
        f"{word} {given[name]!r}" for name, word in (("service", "service"), ("dbname", "database")) if name in given
    ]
    return ", ".join(filter(None, told)) or "the server that PGHOST and its like name"


def _check_conninfo(conninfo: str, *, listen: bool) -> dict[str, Any]:
    """What is added to the address."""
    if not isinstance(conninfo, str) or "\0" in conninfo:
        raise ConfigurationError(
            f'PostgresServer needs an address such as "postgresql://user@host:5432/database", but got {brief(conninfo)}'
        )
    check_text("the address of PostgresServer", conninfo)
    check_escaped("the address of PostgresServer", conninfo)
    try:
        given = conninfo_to_dict(conninfo)
    except Error as error:
        raise ConfigurationError(
            f"PostgresServer cannot read its address ({' '.join(str(error).split())}): it must be like "
            '"postgresql://user@host:5432/database"'
        ) from None
    defaults: dict[str, Any] = {
        "connect_timeout": CONNECT_TIME,
        "keepalives_idle": 15,
        "keepalives_interval": 5,
        "keepalives_count": 3,
        "tcp_user_timeout": 20_000,
        "application_name": "repid",
    }
    found = {name: value for name, value in defaults.items() if name not in given}
    found["client_encoding"] = "UTF8"
    if listen:
        settings = " ".join(f"-c {setting}" for setting in (*SESSION, f"{MARK}=on"))
        found["options"] = f"{given.get('options') or _usual_options()} {settings}".strip()
    return found


def _usual_options() -> str:
    """The settings that PGOPTIONS names, or the service that PGSERVICE names: ours would take their place."""
    values = [each.val for each in Conninfo.get_defaults() if each.keyword == b"options"]
    return "".join(value.decode() for value in values if value)
