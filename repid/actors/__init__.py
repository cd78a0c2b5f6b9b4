"""Declaring actors.

* `options`: every option of an actor, checked; what is not given is inherited.
* `actor`: `Actor`, a function and its policy; `declaration`: checks and compiles one, once.
* `called`: what it takes to call an actor by message, and which actor a function is.
* `router`: `Router`, which collects declarations and hands its defaults down.
* `routing`: which messages an actor takes.
"""

from .actor import Actor, ActorMiddleware, CallNext
from .called import Callees, no_actor
from .declaration import overridden
from .options import ActorOptions, BatchOptions, RouterOptions, check_options
from .router import Router, bounds_of, without_namesakes
from .routing import catch_all_routing_strategy, topic_based_routing_strategy

__all__ = [
    "Actor",
    "ActorMiddleware",
    "ActorOptions",
    "BatchOptions",
    "CallNext",
    "Callees",
    "Router",
    "RouterOptions",
    "bounds_of",
    "catch_all_routing_strategy",
    "check_options",
    "no_actor",
    "overridden",
    "topic_based_routing_strategy",
    "without_namesakes",
]
