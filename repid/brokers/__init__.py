"""The brokers that come with repid, each in a folder of its own.

* `memory`: in this process, gone with it.
* `sqlite`: in a file, for the processes of one machine.
* `door`: `Server`, what users open and call, over a driver for one engine.
* `checks`: what callers hand in.
"""

from .door import Server
from .memory import InMemoryMessageBroker, InMemoryServer
from .sqlite import SQLiteMessageBroker, SQLiteServer

__all__ = ["InMemoryMessageBroker", "InMemoryServer", "SQLiteMessageBroker", "SQLiteServer", "Server"]
