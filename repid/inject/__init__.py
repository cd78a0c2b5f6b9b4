"""From a function's signature to its keyword arguments: compiled once per actor, run once per message.

* `message`: `Message`, the handle an actor gets; `sync_message`: the same for actors that block, `process_message`: in
  processes. `depends`: `Depends`, and the kinds of functions. `injected`: the default of parameters that the worker
  fills, for type checkers.
* `hints`: annotations become types, one parameter at a time, so that an error can name the parameter. `enclosing`: the
  names in them that are local to the functions around an actor.
* `constraints`: `Annotated[int, Gt(0)]` becomes something that is checked, or is refused.
* `markers`: `Header` and `Payload`; `reading`: what they read from a message.
* `signature`: what a function asks for: payload parameters, the message, dependencies, the rest.
* `supply`: a function and its dependencies as one call; `dependencies`: compiles that.
* `plan`: `compile_plan`; `Plan.bind` is the fast path: the payload is decoded once, straight to the arguments.
* `faults`: the slow path, taken when that fails: everything that is wrong with a payload, each with its path.
"""

from .dependencies import compile_lifespan
from .depends import Depends, Kind, kind_of
from .enclosing import enclosing_names
from .hints import UnresolvedAnnotation, plain_function
from .injected import INJECTED
from .markers import Header, Payload
from .message import Message, Outbox
from .plan import NO_NAMES, BatchPlan, Bind, GivenValues, Overrides, Plan, compile_plan
from .reading import Reader
from .signature import NO_REST, check_takes_names
from .supply import (
    FINISHED,
    MESSAGE,
    Dependencies,
    Opened,
    Step,
    Supplied,
    SuppliedAsync,
    Values,
    enter_all,
    is_unfinished,
    refuse_unfinished,
)
from .sync_message import SyncMessage, SyncOutbox

__all__ = [
    "FINISHED",
    "INJECTED",
    "MESSAGE",
    "NO_NAMES",
    "NO_REST",
    "BatchPlan",
    "Bind",
    "Dependencies",
    "Depends",
    "GivenValues",
    "Header",
    "Kind",
    "Message",
    "Opened",
    "Outbox",
    "Overrides",
    "Payload",
    "Plan",
    "Reader",
    "Step",
    "Supplied",
    "SuppliedAsync",
    "SyncMessage",
    "SyncOutbox",
    "UnresolvedAnnotation",
    "Values",
    "check_takes_names",
    "compile_lifespan",
    "compile_plan",
    "enclosing_names",
    "enter_all",
    "is_unfinished",
    "kind_of",
    "plain_function",
    "refuse_unfinished",
]
