"""From a function's signature to its keyword arguments: compiled once per actor, run once per message.

* `message`: `Message`, the handle an actor gets.
* `hints`: annotations become types, one parameter at a time, so that an error can name the parameter.
* `signature`: what a function asks for: payload parameters, the message, the rest.
* `plan`: `compile_plan`; `Plan.bind` is the fast path: the payload is decoded once, straight to the arguments.
* `faults`: the slow path, taken when that fails: everything that is wrong with a payload, each with its path.
"""

from .message import Message
from .plan import Plan, compile_plan

__all__ = ["Message", "Plan", "compile_plan"]
