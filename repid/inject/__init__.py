"""From a function's signature to its keyword arguments: compiled once per actor, run once per message.

* `message`: `Message`, the handle an actor gets. `depends`: `Depends`, and the kinds of functions.
* `hints`: annotations become types, one parameter at a time, so that an error can name the parameter.
* `signature`: what a function asks for: payload parameters, the message, dependencies, the rest.
* `supply`: a function and its dependencies as one call; `dependencies`: compiles that.
* `plan`: `compile_plan`; `Plan.bind` is the fast path: the payload is decoded once, straight to the arguments.
* `faults`: the slow path, taken when that fails: everything that is wrong with a payload, each with its path.
"""

from .depends import Depends, Kind, kind_of
from .message import Message
from .plan import Plan, compile_plan
from .supply import MESSAGE, Dependencies, Supplied, Values

__all__ = [
    "MESSAGE",
    "Dependencies",
    "Depends",
    "Kind",
    "Message",
    "Plan",
    "Supplied",
    "Values",
    "compile_plan",
    "kind_of",
]
