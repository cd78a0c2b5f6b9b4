"""Version 2 of the file: the names of schedules that the first version had stored.

They were "queue:actor" for actors, with colons in both parts as they were, and the job's id or else its actor for jobs.
Since then a job without an id has its queue in the name too, and a colon in a part is written %3A. What is decoded here
is as the first version wrote it, so nothing of today's structs is used, which may change.
"""

from __future__ import annotations

import sqlite3
from typing import Any

import msgspec


def rename_schedules(connection: sqlite3.Connection) -> None:
    """Rename what the first version stored under a name that is made otherwise now, and note each one's interval.

    A job whose new name is taken by an actor's schedule keeps its old one.
    """
    rows = connection.execute("SELECT name, body FROM schedule ORDER BY name").fetchall()
    for name, body in rows:
        try:
            schedule: dict[str, Any] = msgspec.msgpack.decode(body)
            envelope = schedule["envelope"]
            queue, topic = envelope["queue"], envelope.get("headers", {}).get("topic")
        except (TypeError, LookupError, AttributeError, msgspec.MsgspecError):
            continue  # it cannot be read, which must not keep the file from being opened
        connection.execute("UPDATE schedule SET every = ? WHERE name = ?", (schedule.get("every"), name))
        if name not in {topic, f"{queue}:{topic}"}:
            continue  # an id
        new = f"{_escape(queue)}:{_escape(topic)}"
        schedule["name"] = envelope["id"] = new
        connection.execute(
            "UPDATE OR IGNORE schedule SET name = ?, body = ? WHERE name = ?",
            (new, msgspec.msgpack.encode(schedule), name),
        )


def _escape(part: str) -> str:
    return part.replace("%", "%25").replace(":", "%3A")
