"""The PostgreSQL engine.

* `library`: psycopg, or the error that says what to install. `binding`: statements and their arguments.
* `wire`: one connection, driven by trio. `pool`: the few connections of a server. `errors`: what PostgreSQL says.
* `schema`: the tables, and how older ones are brought up to date. `rows`: envelopes as rows.
* `directory`: queues, lanes and consumers, as all processes see them. `news`: waiting, and being woken.
* `publishing`, `claiming`, `settling`: messages in, messages out, verdicts. `shelving` carries out what
  `repid.delivery.shelf` says, where a message is not simply acknowledged. `bounding`: what has room in a bounded queue.
  `borrowing`: publishing in a transaction of the caller's own.
* `results`, `schedules`, `views`: the other roles.
* `driver`: the calls that the front door makes. `server`: the server as users open it.
"""

from .server import PostgresServer

__all__ = ["PostgresServer"]
