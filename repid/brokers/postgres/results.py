"""Results in the same database, so that they are stored in the same transaction as the settlement."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ...delivery import NewResult, ResultState, StoredResult
from ..shared.packing import pack, to_failure
from .binding import Step, statement
from .rows import MICRO, micros, to_id, to_key
from .wire import Rows


def storing_from(rows: str) -> str:
    """SQL that stores results in place of those with the same ids. `rows`: of id, state, payload, failure and ttl,
    under the name r, and what else a FROM takes.
    """
    return f"""
        INSERT INTO {{s}}.result (id, state, payload, failure, finished_at, expires_at)
        SELECT r.id, r.state, r.payload, r.failure, now, now + r.ttl
        FROM (SELECT {{s}}.clock() AS now OFFSET 0) AS time, {rows}
        ORDER BY r.id
        ON CONFLICT (id) DO UPDATE SET state = excluded.state, payload = excluded.payload, failure = excluded.failure,
            finished_at = excluded.finished_at, expires_at = excluded.expires_at
    """


_STORE = statement(
    storing_from("unnest($1, $2, $3, $4, $5) AS r (id, state, payload, failure, ttl)"),
    "bytea[]",
    "text[]",
    "bytea[]",
    "bytea[]",
    "int8[]",
)
PURGE = Step(
    statement(
        """
        DELETE FROM {s}.result WHERE id = ANY(ARRAY(
            SELECT id FROM {s}.result WHERE expires_at <= (SELECT {s}.clock())
                ORDER BY expires_at LIMIT 1000 FOR UPDATE SKIP LOCKED
        ))
        """
    )
)
"""Delete the first expired ones."""

_FETCH = statement(
    """
    SELECT id, state, payload, failure, finished_at, expires_at
    FROM (SELECT * FROM {s}.result WHERE id = ANY($1) OFFSET 0) AS r WHERE expires_at > (SELECT {s}.clock())
    """,
    "bytea[]",
)


def storing(results: Iterable[NewResult]) -> list[Step]:
    """What stores results in place of those with the same ids."""
    last = {to_key(result.id): result for result in results}
    if not last:
        return []
    columns = zip(
        *(
            (key, r.state, r.payload, None if r.failure is None else pack(r.failure), micros(r.ttl))
            for key, r in last.items()
        ),
        strict=True,
    )
    return [Step(_STORE, tuple(columns))]


def fetching(ids: Iterable[str]) -> Step:
    """What reads the results under these ids."""
    return Step(_FETCH, ([to_key(id_) for id_ in ids],))


def by_id(rows: Rows) -> dict[str, StoredResult]:
    """The results that `fetching` found."""
    return {to_id(row[0]): _to_result(*row) for row in rows}


def _to_result(
    key: bytes, state: ResultState, payload: bytes, failure: bytes | None, finished_at: int, expires_at: int
) -> StoredResult:
    return StoredResult(
        id=to_id(key),
        state=state,
        payload=payload,
        failure=to_failure(failure),
        finished_at=finished_at / MICRO,
        expires_at=expires_at / MICRO,
    )


def in_order(ids: Sequence[str], rows: Rows) -> list[StoredResult | None]:
    """The result under each id, or None."""
    found = by_id(rows)
    return [found.get(id_) for id_ in ids]
