"""The brokers that come with repid, each in a folder of its own.

* `memory`: in this process, gone with it.
* `sqlite`: in a file, for the processes of one machine.
* `checks`: what callers hand in to either.
"""

from .memory import InMemoryMessageBroker, InMemoryServer
from .sqlite import SQLiteMessageBroker, SQLiteServer

__all__ = ["InMemoryMessageBroker", "InMemoryServer", "SQLiteMessageBroker", "SQLiteServer"]
