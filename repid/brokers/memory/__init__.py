"""The broker in memory.

* `record`: one stored message and where it is.
* `lanes`: the ready messages of one (queue, topic), in order.
* `store`: the whole state machine; synchronous, pure, time comes in as an argument.
* `clock`: the broker's time, which outlives trio runs.
* `waiting`: consumers that wait for something to become ready.
* `server`: the async shell around all of it.
"""

from .server import InMemoryMessageBroker, InMemoryServer

__all__ = ["InMemoryMessageBroker", "InMemoryServer"]
