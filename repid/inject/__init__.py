"""From a function's signature to its keyword arguments: compiled once per actor, run once per message.

* `message`: `Message`, the handle an actor gets; `sync_message`: the same for actors that block. `depends`: `Depends`,
  and the kinds of functions.
* `hints`: annotations become types, one parameter at a time, so that an error can name the parameter. `enclosing`: the
  names in them that are local to the functions around an actor.
* `constraints`: `Annotated[int, Gt(0)]` becomes something that is checked, or is refused.
* `signature`: what a function asks for: payload parameters, the message, dependencies, the rest.
* `supply`: a function and its dependencies as one call; `dependencies`: compiles that.
* `plan`: `compile_plan`; `Plan.bind` is the fast path: the payload is decoded once, straight to the arguments.
* `faults`: the slow path, taken when that fails: everything that is wrong with a payload, each with its path.
"""

from .depends import Depends, Kind, kind_of
from .enclosing import enclosing_names
from .hints import UnresolvedAnnotation, plain_function
from .message import Message
from .plan import NO_NAMES, Bind, Plan, compile_plan
from .supply import MESSAGE, Dependencies, Supplied, SuppliedAsync, Values, refuse_unfinished
from .sync_message import SyncMessage

__all__ = [
    "MESSAGE",
    "NO_NAMES",
    "Bind",
    "Dependencies",
    "Depends",
    "Kind",
    "Message",
    "Plan",
    "Supplied",
    "SuppliedAsync",
    "SyncMessage",
    "UnresolvedAnnotation",
    "Values",
    "compile_plan",
    "enclosing_names",
    "kind_of",
    "plain_function",
    "refuse_unfinished",
]
