"""What a broker must do, a check for each promise. `CHECKS` is the list."""

from __future__ import annotations

from ..judging import Check
from . import (
    bounding,
    cancel_safety,
    cancelling,
    connections,
    cutting,
    delays,
    following,
    handing,
    leases,
    order,
    publishing,
    races,
    readers,
    receiving,
    refusing,
    results,
    schedules,
    settling,
    tending,
)

MODULES = (
    handing,
    publishing,
    receiving,
    order,
    settling,
    leases,
    delays,
    tending,
    bounding,
    readers,
    cancel_safety,
    races,
    results,
    cancelling,
    following,
    schedules,
    connections,
    refusing,
    cutting,
)

CHECKS: tuple[Check, ...] = tuple(
    found for module in MODULES for found in vars(module).values() if isinstance(found, Check)
)
"""Every check, in the order in which they are made."""
