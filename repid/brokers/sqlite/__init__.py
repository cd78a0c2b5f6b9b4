"""The broker in an SQLite file: durable, without a server, for the processes of one machine.

* `server`: what users open. `driver`: the driver behind the front door; each call is a request.
* `file`: the file as trio's tasks see it. `requests`: requests one way, answers the other. `bell`: how an answer wakes
  its caller. `news`: what has changed.
* `thread`, `change_watch`, `transactions`, `wal`: the one thread that works on the file, what it sleeps for, group
  commit, and the write-ahead log that a commit is written to. `file_events`: the system's word that the file was
  written to.
* `store`: what all operations share. `publishing`, `claiming`, `settling`, `views`, `results`, `schedules` are the
  operations: synchronous, each inside a transaction that is open. `shelving` carries out what `repid.delivery.shelf`
  says of one message, `bounding` what has room in a bounded queue.
* `directory`: queues, lanes and consumers as all processes see them. `heads`: the first message of each of many lanes.
* `rows`: envelope ↔ row. `unreadable`: rows that somebody else has written. `schema`: the file and its migrations, of
  which `schedule_names` is one. `clock`, `errors`.
"""

from .server import SQLiteMessageBroker, SQLiteServer

__all__ = ["SQLiteMessageBroker", "SQLiteServer"]
