"""Declaring actors.

* `options`: every option of an actor, checked; what is not given is inherited.
* `actor`: `Actor`, a function and its policy; `declaration`: checks and compiles one, once.
* `router`: `Router`, which collects declarations and hands its defaults down.
* `routing`: which messages an actor takes.
"""

from .actor import Actor, ActorMiddleware, CallNext, OnError
from .options import ActorOptions, RouterOptions
from .router import Router, without_namesakes
from .routing import RoutingStrategy, catch_all_routing_strategy, topic_based_routing_strategy

__all__ = [
    "Actor",
    "ActorMiddleware",
    "ActorOptions",
    "CallNext",
    "OnError",
    "Router",
    "RouterOptions",
    "RoutingStrategy",
    "catch_all_routing_strategy",
    "topic_based_routing_strategy",
    "without_namesakes",
]
