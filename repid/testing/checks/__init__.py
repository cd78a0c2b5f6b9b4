"""What a broker must do, a check for each promise. `CHECKS` is the list."""

from __future__ import annotations

from ..judging import Check
from . import (
    cancel_safety,
    cancelling,
    connections,
    cutting,
    delays,
    handing,
    leases,
    order,
    publishing,
    races,
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
    cancel_safety,
    races,
    results,
    cancelling,
    schedules,
    connections,
    refusing,
    cutting,
)

CHECKS: tuple[Check, ...] = tuple(
    found for module in MODULES for found in vars(module).values() if isinstance(found, Check)
)
"""Every check, in the order in which they are made."""
