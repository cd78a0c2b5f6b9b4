"""How PostgreSQL finds rows: by an index, whatever it believes of the tables' sizes, since plans are kept while the tables grow."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib import import_module
from pkgutil import iter_modules
from typing import Any

import psycopg
import pytest
from engines.postgres import Postgres

import repid.brokers.postgres as package
from repid import PostgresServer
from repid.brokers.postgres.binding import Statement, Step
from repid.brokers.postgres.claiming import Wanted, claiming
from repid.brokers.postgres.directory import Lane
from repid.brokers.postgres.server import SESSION
from repid.ports import AtMost

from .broker_aids import message

pytestmark = pytest.mark.real_time

GROWING = frozenset({"message", "ready", "scheduled", "lease", "dead", "result"})
WITHOUT_INDEX = {
    "scheduled": r"lane = ANY",  # counting, browsing and removing what a queue has there
    "lease": r"lane = ANY|until <=",  # the same, and rescuing
}
"""What is looked for by reading the whole table: nothing that a worker does for each message."""


def statements() -> Iterator[tuple[str, Statement]]:
    """Every statement of the engine, with the name that it has in its module."""
    for module in iter_modules(package.__path__, f"{package.__name__}."):
        for name, value in vars(import_module(module.name)).items():
            yield from ((f"{module.name.rpartition('.')[2]}.{name}", found) for found in statements_in(value))
    lanes = [Lane(number, "q", topic, suspects=False, priority=0) for number, topic in enumerate("ab")]
    for chosen in (
        Wanted(lanes[:1], [0], [5], [-1], [5]),
        Wanted(lanes, [0, 1], [5, 5], [-1, -1], [5, 5]),
        Wanted(lanes, [0, 1], [5, 5], [0, 0], [5, 5]),
    ):
        lows = [0] * len(chosen.lanes)
        yield f"a claim of {chosen}", claiming(1, chosen, 5, AtMost(), 1, 1, lows).statement


def statements_in(value: object) -> Iterator[Statement]:
    if isinstance(value, Statement):
        yield value
    elif isinstance(value, Step):
        yield value.statement
    elif isinstance(value, (list, tuple, dict)):
        for each in value.values() if isinstance(value, dict) else value:
            yield from statements_in(each)


def plan(connection: psycopg.Connection, schema: str, statement: Statement) -> Any:
    """The plan that is kept for the statement; None where there is nothing to plan."""
    text = statement.text.replace("{s}", f'"{schema}"')
    if re.match(r"\s*(SELECT|WITH|INSERT|UPDATE|DELETE)\b", text) is None:
        return None
    types = f" ({', '.join(statement.types)})" if statement.types else ""
    given = f" ({', '.join(['NULL'] * len(statement.types))})" if statement.types else ""
    connection.execute(f"PREPARE it{types} AS {text}".encode())
    [(found,)] = connection.execute(f"EXPLAIN (FORMAT JSON) EXECUTE it{given}".encode()).fetchall()
    connection.execute("DEALLOCATE it")
    return found[0]["Plan"]


def nodes(node: Any, *above: Any) -> Iterator[tuple[Any, Any]]:
    """Every step of the plan, with the one that it works for."""
    yield node, above[-1] if above else {}
    for below in node.get("Plans", ()):
        yield from nodes(below, *above, node)


def slow_scans(node: Any) -> list[str]:
    """What reads more of a table that grows than is asked for."""
    return [
        f"{each['Node Type']} of {each['Relation Name']} with {each.get('Index Name')}: {each.get('Filter')}"
        for each, parent in nodes(node)
        if each.get("Relation Name") in GROWING and each["Node Type"].endswith("Scan")
        if "Index Cond" not in each or "queue = " in each.get("Filter", "") or "id = ANY" in each.get("Filter", "")
        if each["Node Type"] != "Tid Scan"
        if parent["Node Type"] != "Limit"  # the first of an index
        if not re.search(WITHOUT_INDEX.get(each["Relation Name"], "nothing"), each.get("Filter", ""))
    ]


@pytest.mark.parametrize("messages", [None, 0, 20], ids=["never analyzed", "empty", "nearly empty"])
async def test_no_statement_reads_a_table_that_was_small_when_its_plan_was_made(
    postgres: Postgres, messages: int | None, schema: str
) -> None:
    server = PostgresServer(postgres.url, schema=schema)
    async with server.connection():
        await server.declare(["q"])
        await server.publish([message(str(number)) for number in range(messages or 0)])
    settings = " ".join(f"-c {setting}" for setting in SESSION)
    with psycopg.connect(postgres.url, autocommit=True, options=settings) as connection:
        if messages is not None:
            for table in GROWING:
                connection.execute(f'ANALYZE "{schema}".{table}'.encode())
        found = {name: plan(connection, schema, statement) for name, statement in statements()}
    assert len(found) > 50
    assert {name: slow for name, node in found.items() if node is not None and (slow := slow_scans(node))} == {}
