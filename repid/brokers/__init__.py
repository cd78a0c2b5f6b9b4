"""The brokers that come with repid, each in a folder of its own.

* `memory`: in this process, gone with it.
"""

from .memory import InMemoryMessageBroker, InMemoryServer

__all__ = ["InMemoryMessageBroker", "InMemoryServer"]
