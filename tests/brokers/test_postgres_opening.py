"""Opening a PostgreSQL server: what is made, what is asked of a role, and what is said where it cannot be used."""

from __future__ import annotations

import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from urllib.parse import quote, urlsplit

import psycopg
import pytest
import trio
from engines.postgres import LOCKED, Postgres
from engines.starting import free_port
from psycopg.sql import SQL, Identifier

from repid import BrokerUnavailable, ConfigurationError, PostgresServer
from repid.brokers.postgres.binding import Step, statement
from repid.brokers.postgres.errors import explain_connect

from .broker_aids import message

GRANTS = ("SELECT, INSERT, UPDATE, DELETE ON ALL TABLES", "USAGE ON ALL SEQUENCES")
"""What the documentation says that workers need within the schema."""


def with_(url: str, *, user: str | None = None, database: str | None = None, **parameters: str) -> str:
    """The address, changed."""
    parts = urlsplit(url)
    place = parts.netloc.rpartition("@")[2]
    query = "&".join(f"{name}={quote(value)}" for name, value in parameters.items())
    login = user or parts.username or ""
    return f"postgresql://{login}@{place}/{database or parts.path[1:]}?{query}"


@contextmanager
def role(postgres: Postgres, options: str = "") -> Iterator[str]:
    """A role that owns nothing."""
    name = f"repid_test_{uuid.uuid4().hex[:8]}"
    postgres.execute(SQL("CREATE ROLE {} LOGIN " + options).format(Identifier(name)))
    try:
        yield name
    finally:
        postgres.execute(SQL("DROP OWNED BY {}").format(Identifier(name)))
        postgres.execute(SQL("DROP ROLE {}").format(Identifier(name)))


async def opens(server: PostgresServer) -> None:
    async with server.connection():
        await server.declare(["q"])
        assert await server.publish([message("1")]) == [None]


async def test_everything_is_in_one_schema(postgres: Postgres, schema: str) -> None:
    await opens(PostgresServer(postgres.url, schema=schema))
    [(count,)] = postgres.execute("SELECT count(*) FROM pg_tables WHERE schemaname = %s", schema)
    assert count > 10


async def test_two_schemas_know_nothing_of_each_other(postgres: Postgres) -> None:
    with postgres.schema() as one, postgres.schema() as two:
        for name in (one, two):
            await opens(PostgresServer(postgres.url, schema=name))


async def test_a_schema_may_have_any_name(postgres: Postgres) -> None:
    with postgres.schema() as name:
        odd = name[:20] + ' "ß%s'
        try:
            await opens(PostgresServer(postgres.url, schema=odd))
        finally:
            postgres.execute(SQL("DROP SCHEMA {} CASCADE").format(Identifier(odd)))


async def test_no_database(postgres: Postgres) -> None:
    with pytest.raises(ConfigurationError, match="the database does not exist: create it"):
        await opens(PostgresServer(with_(postgres.url, database="repid_test_no_such")))


async def test_no_such_role(postgres: Postgres) -> None:
    with pytest.raises(ConfigurationError, match="the name or the password is wrong"):
        await opens(PostgresServer(with_(postgres.url, user="repid_test_nobody")))


async def test_a_wrong_password(postgres: Postgres) -> None:
    if postgres.process is None:
        pytest.skip("only a server of our own asks for a password")
    postgres.execute(SQL("CREATE ROLE {} LOGIN PASSWORD 'right'").format(Identifier(LOCKED)))
    try:
        with pytest.raises(ConfigurationError, match="the name or the password is wrong"):
            await opens(PostgresServer(with_(postgres.url, user=f"{LOCKED}:wrong")))
    finally:
        postgres.execute(SQL("DROP ROLE {}").format(Identifier(LOCKED)))


async def test_nobody_there() -> None:
    with pytest.raises(BrokerUnavailable, match="PostgreSQL cannot be reached"):
        await opens(PostgresServer(f"postgresql://127.0.0.1:{free_port()}/test"))


async def test_a_server_that_breaks_off_in_the_middle_of_tls_is_away() -> None:
    """As one does that restarts behind something that still takes connections."""

    async def begin(stream: trio.SocketStream) -> None:
        await stream.receive_some(8)  # the question whether it speaks TLS
        await stream.send_all(b"S")
        await stream.aclose()

    async with trio.open_nursery() as nursery:
        [listener] = await nursery.start(partial(trio.serve_tcp, begin, 0, host="127.0.0.1"))
        port = listener.socket.getsockname()[1]
        with pytest.raises(BrokerUnavailable, match="SSL"):
            await opens(PostgresServer(f"postgresql://postgres@127.0.0.1:{port}/test?sslmode=require"))
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    "text",
    [
        'no pg_hba.conf entry for host "10.0.0.1", user "ada", database "shop", no encryption',
        "server does not support SSL, but SSL was required",
        "SSL error: certificate verify failed",
        "SSL error: tlsv1 alert unknown ca",
        "SSL error: tlsv1 alert protocol version",
        "SSL error: sslv3 alert handshake failure",
        'could not load private key file "client.key": bad decrypt',
    ],
)
def test_tls_that_is_not_set_up_right_is_not_waited_for(text: str) -> None:
    assert isinstance(explain_connect(Exception(text)), ConfigurationError)


async def test_no_right_to_create(postgres: Postgres) -> None:
    with role(postgres) as name, postgres.schema() as schema:
        with pytest.raises(
            ConfigurationError, match=r"may not create or change the schema .* `python -m repid migrate`"
        ):
            await opens(PostgresServer(with_(postgres.url, user=name), schema=schema))


async def test_a_role_that_may_only_use_the_schema(postgres: Postgres) -> None:
    with role(postgres) as name, postgres.schema() as schema:
        limited = with_(postgres.url, user=name)
        await opens(PostgresServer(postgres.url, schema=schema))
        with pytest.raises(ConfigurationError, match="may not do what repid needs"):
            await opens(PostgresServer(limited, schema=schema))
        for what in GRANTS:
            postgres.execute(
                SQL("GRANT " + what + " IN SCHEMA {0} TO {1}").format(Identifier(schema), Identifier(name))
            )
        postgres.execute(SQL("GRANT USAGE ON SCHEMA {0} TO {1}").format(Identifier(schema), Identifier(name)))
        server = PostgresServer(limited, schema=schema, migrate=False)
        async with server.connection(), server.consume({"q": None}) as consumer:
            [delivery] = await consumer.receive(1)
            assert delivery.envelope.id == "1"


async def test_a_server_that_takes_no_writes(postgres: Postgres) -> None:
    read_only = with_(postgres.url, options="-c default_transaction_read_only=on")
    with pytest.raises(BrokerUnavailable, match="takes no writes: it is a replica, or was made read-only"):
        await opens(PostgresServer(read_only))


SERIALIZABLE = "-c default_transaction_isolation=serializable"


async def test_its_transactions_see_what_others_commit_whatever_the_default_is(postgres: Postgres, schema: str) -> None:
    server = PostgresServer(with_(postgres.url, options=SERIALIZABLE), schema=schema)
    async with server.connection():
        rows = await server._postgres._pool.run([Step(statement("SHOW transaction_isolation"))])
    assert rows == [[("read committed",)]]


async def test_a_role_whose_transactions_see_an_old_state_cannot_be_used_behind_a_pooler(postgres: Postgres) -> None:
    server = PostgresServer(with_(postgres.url, options=SERIALIZABLE), listen=False)
    with pytest.raises(ConfigurationError, match=r"are serializable in the database .* ALTER ROLE"):
        await opens(server)


async def test_too_many_connections(postgres: Postgres) -> None:
    with role(postgres, "CONNECTION LIMIT 0") as name:
        with pytest.raises(BrokerUnavailable, match=r"no connection left for us .* lower connections="):
            await opens(PostgresServer(with_(postgres.url, user=name)))


async def test_a_newer_schema_is_not_touched(postgres: Postgres) -> None:
    with postgres.schema() as schema:
        server = PostgresServer(postgres.url, schema=schema)
        await opens(server)
        postgres.execute(SQL("UPDATE {}.meta SET version = 99").format(Identifier(schema)))
        with pytest.raises(ConfigurationError, match=r"written by a newer repid .its version is 99"):
            await opens(server)


async def test_a_schema_that_nobody_has_made(postgres: Postgres) -> None:
    with postgres.schema() as schema:
        with pytest.raises(
            ConfigurationError,
            match=r"does not exist, or has no tables of repid: if that is the right one \(schema=\), run `python -m repid migrate`",
        ):
            await opens(PostgresServer(postgres.url, schema=schema, migrate=False))


async def test_the_script_for_those_who_apply_it_themselves(postgres: Postgres) -> None:
    with postgres.schema() as schema:
        server = PostgresServer(postgres.url, schema=schema, migrate=False)
        with psycopg.connect(postgres.url, autocommit=True) as connection:
            connection.execute((await server.migration_sql()).encode())
        await opens(server)


@pytest.mark.parametrize("is_owner", [True, False], ids=["its owner", "a role with CREATE on it"])
async def test_a_schema_that_is_there_needs_no_right_on_the_database(is_owner: bool, postgres: Postgres) -> None:
    with role(postgres) as name, postgres.schema() as schema:
        names = {"schema": Identifier(schema), "role": Identifier(name)}
        if is_owner:
            postgres.execute(SQL("CREATE SCHEMA {schema} AUTHORIZATION {role}").format(**names))
        else:
            postgres.execute(SQL("CREATE SCHEMA {schema}").format(**names))
            postgres.execute(SQL("GRANT USAGE, CREATE ON SCHEMA {schema} TO {role}").format(**names))
        server = PostgresServer(with_(postgres.url, user=name), schema=schema)
        assert "CREATE SCHEMA" not in await server.migration_sql()
        await opens(server)


async def test_a_database_that_is_not_in_utf_8(postgres: Postgres) -> None:
    name = f"repid_test_{uuid.uuid4().hex[:8]}"
    create = "CREATE DATABASE {} ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0"
    postgres.execute(SQL(create).format(Identifier(name)))
    try:
        with pytest.raises(ConfigurationError, match="is encoded in LATIN1: repid needs one in UTF-8"):
            await opens(PostgresServer(with_(postgres.url, database=name)))
    finally:
        postgres.execute(SQL("DROP DATABASE {} WITH (FORCE)").format(Identifier(name)))


def test_what_cannot_be_an_address_or_an_option() -> None:
    for address in ("http://here", "nonsense"):
        with pytest.raises(ConfigurationError, match="PostgresServer cannot read its address"):
            PostgresServer(address)
    for no_address in (5, None, b"postgresql://here", "postgresql://here\0/there"):
        with pytest.raises(ConfigurationError, match="PostgresServer needs an address such as"):
            PostgresServer(no_address)  # type: ignore[arg-type]
    for schema in ("", "pg_mine", "x" * 51, "a\0b", "it's", "{s}"):
        with pytest.raises(ConfigurationError, match="schema must be"):
            PostgresServer(schema=schema)
    for connections in (0, True, 1.5):
        with pytest.raises(ConfigurationError, match="connections must be"):
            PostgresServer(connections=connections)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "address", ["postgresql://127.0.0.1:port/", "postgresql://127.0.0.1:99999/", "sslmode=maybe", "connect_timeout=a"]
)
async def test_a_wrong_value_in_the_address_is_not_waited_for(address: str) -> None:
    with pytest.raises(ConfigurationError, match="an option in its address has a wrong value"):
        async with PostgresServer(address).connection():
            pass


async def test_settings_from_the_usual_places_are_heeded(
    postgres: Postgres, schema: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def found() -> object:
        server = PostgresServer(postgres.url, schema=schema)
        async with server.connection():
            return await server._postgres._pool.ask(statement("SELECT current_setting('work_mem')"))

    monkeypatch.setenv("PGOPTIONS", "-c work_mem=321kB")
    assert await found() == [("321kB",)]
    monkeypatch.delenv("PGOPTIONS")
    services = tmp_path / "services"
    services.write_text("[shop]\noptions=-c work_mem=654kB\n")
    monkeypatch.setenv("PGSERVICEFILE", str(services))
    monkeypatch.setenv("PGSERVICE", "shop")
    assert await found() == [("654kB",)]


async def test_a_service_that_does_not_exist_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    services = tmp_path / "services"
    services.write_text("[shop]\nhost=127.0.0.1\n")
    for place in (services, tmp_path / "nowhere"):
        monkeypatch.setenv("PGSERVICEFILE", str(place))
        with pytest.raises(ConfigurationError, match="there is no such service"):
            async with PostgresServer("service=stop").connection():
                pass


async def test_text_that_postgresql_cannot_hold(postgres: Postgres, schema: str) -> None:
    server = PostgresServer(postgres.url, schema=schema)
    async with server.connection():
        with pytest.raises(ConfigurationError, match=r"queue 'a.x00b' has a NUL character"):
            await server.declare(["a\0b"])
        await server.declare(["q"])
        with pytest.raises(ConfigurationError, match=r"topic .* has a NUL character"):
            await server.publish([message("1", topic="a\0b")])


WITHOUT_EXTRA = """
import sys
sys.modules["psycopg"] = None
import repid
assert not any(name.startswith("repid.brokers.postgres") for name in sys.modules)
from repid import *
try:
    from repid import PostgresServer
except repid.MissingExtra as error:
    print(error)
"""


def test_a_missing_extra_is_named() -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT_EXTRA], capture_output=True, text=True, check=True)
    assert "pip install 'repid-trio[postgres]'" in done.stdout


async def test_migrating_makes_what_is_not_there_and_nothing_else(postgres: Postgres) -> None:
    with postgres.schema() as schema:
        server = PostgresServer(postgres.url, schema=schema, migrate=False)
        assert f'CREATE SCHEMA IF NOT EXISTS "{schema}"' in await server.migration_sql()
        assert await server.migrate()
        assert not await server.migrate()
        assert not await server.migration_sql()
        await opens(server)


async def test_several_may_migrate_at_once(postgres: Postgres) -> None:
    done: list[bool] = []
    with postgres.schema() as schema:

        async def migrate() -> None:
            done.append(await PostgresServer(postgres.url, schema=schema, migrate=False).migrate())

        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(migrate)
    assert sorted(done) == [False, False, False, True]
