"""The broker in memory.

Synchronous and pure; time comes in as an argument:

* `record`: one stored message and where it is. `taker`: what is known of a consumer.
* `lanes`: the ready messages of one (queue, topic), in order. `timetable`: messages by the time when they matter.
* `channel`: the queues. `dead`: the dead messages by id. `results`: results until they expire.
* `places`: how a message gets from one place to another, and comes to its end.
* `store`: what may be done to messages. `schedules`: the schedules and their ticks. `views`: looking at all that.
* `watching`: whom to call when a message or result changes.

And the async shell around it:

* `clock`: the broker's time, which outlives trio runs.
* `waiting`: consumers that wait for something to become ready.
* `session`: who has the broker open, and every other wait. `consumer` and `server`: the port.
"""

from .server import InMemoryMessageBroker, InMemoryServer

__all__ = ["InMemoryMessageBroker", "InMemoryServer"]
