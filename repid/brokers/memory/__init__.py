"""The memory engine.

Synchronous; time comes in as an argument:

* `record`: one stored message and where it is, and what a consumer takes.
* `lanes`: the ready messages of one (queue, topic) in order, and records by the time at which they matter.
* `queues`: the declared queues, with their lanes, leases and dead letters. `bounding`: what waits in a bounded one.
  `results`: results until they expire.
* `changes`: what the front door is told of changes.
* `store`: what may be done to messages. It carries out the rules of `repid.delivery.shelf`.
* `tending`: what people do to queues by hand. `schedules`: the schedules and their ticks. `views`: looking at all that.

And what runs in trio:

* `waiting`: the clock, which outlives trio runs, and the claims that wait for something to become ready.
* `driver`: the calls that the front door makes. `server`: the server as users open it.
"""

from .server import InMemoryMessageBroker, InMemoryServer

__all__ = ["InMemoryMessageBroker", "InMemoryServer"]
