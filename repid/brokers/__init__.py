"""The brokers that come with repid, each in a folder of its own.

* `memory`: in this process, gone with it.
* `sqlite`: in a file, for the processes of one machine. Its modules are loaded at first use.
* `postgres`: in a PostgreSQL database. Its module is loaded at first use, because it needs an extra.
* `redis`: in a Redis or Valkey server. Its module is loaded at first use, because it needs an extra.
* `door`: `Server`, what users open and call, over a driver for one engine. `consumer`: what workers read it through.
  `shared`: what these two are made of.
* `addresses`: from an address to a server. `checks`: what callers hand in. `process`: the name of this process.
"""

from typing import TYPE_CHECKING

from .addresses import server_at
from .door import Server
from .memory import InMemoryMessageBroker, InMemoryServer

if TYPE_CHECKING:
    from .sqlite import SQLiteMessageBroker, SQLiteServer

__all__ = ["InMemoryMessageBroker", "InMemoryServer", "SQLiteMessageBroker", "SQLiteServer", "Server", "server_at"]

if not TYPE_CHECKING:  # a checker that saw it would accept every misspelt name

    def __getattr__(name: str) -> object:
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from . import sqlite  # noqa: PLC0415  would make `import repid` a sixth slower, for one server of many

        return getattr(sqlite, name)
