"""What is in the database, and how an older schema is brought up to date.

Tables. `message` holds the bodies of live messages: each is written once and deleted once. Where a message is follows
from which of the narrow tables `ready`, `scheduled` and `lease` has its `seq`; what changes of it travels there, from
row to row (attempt, lost, ...), so no wide row is ever updated in a message's usual life. `message.lane` and
`message.rank` say where in `ready` it is to be found; they are changed when it comes back elsewhere. `message.due` and
`message.expires_at` are those of its publishing. `queue.bounds` is packed, and `dropped` counts what the queue has
dropped because it was full. A lane is one topic of one queue with one priority, so ranks in a lane grow with time;
messages that must be leased alone have lanes of their own (`lane.suspects`). `lease.token` is from a sequence and
fences. `dead` holds dead messages, so live ids are unique by a plain index. Times are microseconds since 1970 on the
server's clock, which only the function `clock()` reads. `sleeper` holds the processes that wait to be woken; it may be
lost in a crash.

An id of 32 hexadecimal digits is kept as its 16 bytes, another one as its UTF-8 and a byte that UTF-8 never has.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from ...errors import BrokerUnavailable, ConfigurationError
from .binding import Step, statement
from .errors import POOLED, ServerError, explain
from .wire import Wire

_STATE = """
    lane bigint NOT NULL, rank bigint NOT NULL, seq bigint NOT NULL,
    attempt bigint NOT NULL DEFAULT 1, lost bigint NOT NULL DEFAULT 0,
    expires_at bigint, unrouted_at bigint, failure bytea, progress bytea, trail bytea"""

_FIRST = f"""
CREATE FUNCTION {{s}}.clock() RETURNS bigint LANGUAGE sql VOLATILE
    AS 'SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint';
CREATE SEQUENCE {{s}}.batch;
CREATE SEQUENCE {{s}}.token;
CREATE SEQUENCE {{s}}.member;
CREATE TABLE {{s}}.meta (one boolean PRIMARY KEY DEFAULT true CHECK (one), version bigint NOT NULL, directory bigint NOT NULL);
INSERT INTO {{s}}.meta (version, directory) VALUES (0, 1);
CREATE TABLE {{s}}.queue (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, name text COLLATE "C" NOT NULL UNIQUE,
    paused boolean NOT NULL DEFAULT false
);
CREATE TABLE {{s}}.lane (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, queue bigint NOT NULL, topic text COLLATE "C",
    suspects boolean NOT NULL, priority bigint NOT NULL
);
CREATE UNIQUE INDEX lane_place ON {{s}}.lane (queue, suspects, priority, (topic IS NULL), coalesce(topic, ''));
CREATE TABLE {{s}}.consumer (id bigint PRIMARY KEY, until bigint NOT NULL, takes bytea NOT NULL);
CREATE UNLOGGED TABLE {{s}}.sleeper (
    id bigint PRIMARY KEY, wants_ready boolean NOT NULL, ids bytea[], listens boolean NOT NULL, until bigint NOT NULL
);
CREATE TABLE {{s}}.message (
    seq bigint PRIMARY KEY, lane bigint NOT NULL, rank bigint NOT NULL, id bytea NOT NULL, payload bytea NOT NULL,
    kind bigint, rare bytea, result_id bytea, due bigint, expires_at bigint, enqueued_at bigint NOT NULL
);
CREATE UNIQUE INDEX message_id ON {{s}}.message (id);
CREATE TABLE {{s}}.ready ({_STATE}, PRIMARY KEY (lane, rank, seq));
CREATE INDEX ready_expiry ON {{s}}.ready (expires_at) WHERE expires_at IS NOT NULL;
CREATE TABLE {{s}}.scheduled ({_STATE}, due bigint NOT NULL, PRIMARY KEY (seq));
CREATE INDEX scheduled_due ON {{s}}.scheduled (due, seq);
CREATE INDEX scheduled_expiry ON {{s}}.scheduled (expires_at) WHERE expires_at IS NOT NULL;
CREATE TABLE {{s}}.lease (
    {_STATE}, token bigint NOT NULL, until bigint NOT NULL, consumer bigint NOT NULL, leased_at bigint NOT NULL, worker text,
    cancelling bigint NOT NULL DEFAULT 0, PRIMARY KEY (seq)
) WITH (fillfactor = 70);
CREATE INDEX lease_cancelling ON {{s}}.lease (consumer) WHERE cancelling = 1;
CREATE TABLE {{s}}.dead (
    key bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, queue bigint NOT NULL, lane bigint NOT NULL,
    id bytea NOT NULL, payload bytea NOT NULL, kind bigint, rare bytea, result_id bytea,
    attempt bigint NOT NULL, lost bigint NOT NULL, reason text NOT NULL, failure bytea, progress bytea,
    enqueued_at bigint NOT NULL, died_at bigint NOT NULL
);
CREATE INDEX dead_queue ON {{s}}.dead (queue, key);
CREATE INDEX dead_id ON {{s}}.dead (id, key);
CREATE INDEX dead_age ON {{s}}.dead (died_at);
CREATE TABLE {{s}}.result (
    id bytea PRIMARY KEY, state text NOT NULL, payload bytea NOT NULL, failure bytea, finished_at bigint NOT NULL,
    expires_at bigint NOT NULL
);
CREATE INDEX result_expiry ON {{s}}.result (expires_at);
CREATE TABLE {{s}}.schedule (
    name text COLLATE "C" PRIMARY KEY, body bytea NOT NULL, next_at double precision NOT NULL, every double precision,
    paused boolean NOT NULL DEFAULT false, fired bigint NOT NULL DEFAULT 0, skipped bigint NOT NULL DEFAULT 0,
    last_id bytea, declaration bytea
);
CREATE INDEX schedule_next ON {{s}}.schedule (next_at) WHERE NOT paused
"""

_BOUNDS = """
ALTER TABLE {s}.queue ADD COLUMN bounds bytea, ADD COLUMN dropped bigint NOT NULL DEFAULT 0
"""

MIGRATIONS: Final = (_FIRST, _BOUNDS)
"""The n-th script turns a schema of version n - 1 into one of version n. What was released is never changed."""

OLDEST_SERVER = 130_000
"""PostgreSQL 13, as libpq counts."""

_EXISTS = statement("SELECT EXISTS (SELECT FROM pg_tables WHERE schemaname = $1 AND tablename = 'meta')", "text")
"""Not with to_regclass: its cache may not know yet what another process has made in the meantime."""

_HAS_SCHEMA = statement("SELECT EXISTS (SELECT FROM pg_namespace WHERE nspname = $1)", "text")
_VERSION = statement("SELECT version FROM {s}.meta")
MARK = "repid.session"
"""A setting that has no meaning: a session in which it is not set is not ours alone."""

_SERVER = statement(
    "SELECT current_setting('server_version_num')::bigint, current_setting('server_encoding'),"
    " pg_is_in_recovery() OR current_setting('transaction_read_only')::boolean, current_database(),"
    f" coalesce(current_setting('{MARK}', true), '') = 'on', current_setting('transaction_isolation')"
)
_LOCK = statement("SELECT 1 FROM (SELECT pg_advisory_xact_lock($1)) AS locked", "int8")
_MIGRATION_LOCK = 0x72657064
"""The bytes "repd": one process at a time migrates."""


def quoted(name: str) -> str:
    """The name as SQL writes it."""
    return '"' + name.replace('"', '""') + '"'


def script(statements: Sequence[str]) -> str:
    """These statements as one transaction, for those who apply them by hand. Empty if there are none."""
    return ";\n".join(["BEGIN", *statements, "COMMIT"]) + ";\n" if statements else ""


async def check_server(wire: Wire, *, listens: bool) -> None:
    """Raise where this server cannot be used."""
    [[(version, encoding, is_read_only, database, is_ours, isolation)]] = await wire.run([Step(_SERVER)])
    if listens and not is_ours:
        raise ConfigurationError(POOLED)
    if version < OLDEST_SERVER:
        raise ConfigurationError(
            f"PostgresServer needs PostgreSQL {OLDEST_SERVER // 10_000} or newer, but the server is {version // 10_000}"
        )
    if encoding != "UTF8":
        raise ConfigurationError(
            f"the database {database!r} is encoded in {encoding}: repid needs one in UTF-8 "
            "(CREATE DATABASE … ENCODING 'UTF8' TEMPLATE template0)"
        )
    if isolation not in {"read committed", "read uncommitted"}:  # behind a pooler: else we have set it
        raise ConfigurationError(
            f"transactions of this role are {isolation} in the database {database!r}, and repid needs them read committed: "
            "ALTER ROLE … SET default_transaction_isolation TO 'read committed'"
        )
    if is_read_only:
        raise BrokerUnavailable(
            "this PostgreSQL server takes no writes: it is a replica, or was made read-only. Connect to the primary, "
            "for instance with target_session_attrs=read-write"
        )


async def version_of(wire: Wire, schema: str) -> int:
    """The version of the schema; 0 where there is none yet. Raises `ConfigurationError` for a newer one."""
    [[(exists,)]] = await wire.run([Step(_EXISTS, (schema,))])
    if not exists:
        return 0
    [[(version,)]] = await wire.run([Step(_VERSION)])
    if version > len(MIGRATIONS):
        raise ConfigurationError(
            f"the schema {schema!r} was written by a newer repid (its version is {version}, this one knows "
            f"{len(MIGRATIONS)}): update repid here; nothing was touched"
        )
    return int(version)


async def pending(wire: Wire, schema: str) -> list[str]:
    """The statements that bring the schema up to date; none where it is. Raises `ConfigurationError` for a newer one.

    A schema that is there is not made again, not even with IF NOT EXISTS: that needs CREATE on the database all the
    same, which the owner of a schema often lacks.
    """
    version = await version_of(wire, schema)
    if version == len(MIGRATIONS):
        return []
    s = quoted(schema)
    [[(is_there,)]] = await wire.run([Step(_HAS_SCHEMA, (schema,))])
    found = [] if is_there else [f"CREATE SCHEMA IF NOT EXISTS {s}"]
    for migration in MIGRATIONS[version:]:
        found += [part.strip().replace("{s}", s) for part in migration.split(";\n") if part.strip()]
    return [*found, f"UPDATE {s}.meta SET version = {len(MIGRATIONS)}"]


async def is_current(wire: Wire, schema: str, *, migrates: bool) -> bool:
    """Whether the schema is up to date. Raises `ConfigurationError` where it is not, and we must not make it so."""
    version = await version_of(wire, schema)
    if version < len(MIGRATIONS) and not migrates:
        found = (
            f"the schema {schema!r} is of version {version}, and this repid needs {len(MIGRATIONS)}"
            if version
            else f"the schema {schema!r} does not exist, or has no tables of repid"
        )
        raise ConfigurationError(
            f"{found}: if that is the right one (schema=), run `python -m repid migrate`, which can also print the SQL "
            "(--sql)"
        )
    return version == len(MIGRATIONS)


async def migrate(wire: Wire, schema: str) -> bool:
    """Bring the schema up to date in one transaction; whether there was anything to do. One process at a time does."""
    if await version_of(wire, schema) == len(MIGRATIONS):
        return False
    try:
        await wire.run([Step(statement("BEGIN")), Step(_LOCK, (_MIGRATION_LOCK,))])
        statements = await pending(wire, schema)  # looked at again: another process may have been quicker
        await wire.run([Step(statement(sql)) for sql in (*statements, "COMMIT")])
    except ServerError as error:
        await wire.run([Step(statement("ROLLBACK"))])
        if error.code == "42501":
            raise ConfigurationError(
                f"this PostgreSQL role may not create or change the schema {schema!r} ({error}): have a role that owns "
                "it, or that may create it (GRANT CREATE ON DATABASE …), run `python -m repid migrate`, which can also "
                "print the SQL (--sql)"
            ) from error
        raise explain(error) from error
    return bool(statements)
