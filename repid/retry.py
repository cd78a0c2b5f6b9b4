"""How long to wait before the next attempt."""

from __future__ import annotations

import math
import random
import sys
from collections.abc import Callable
from datetime import timedelta
from typing import TypeAlias

from .errors import ConfigurationError

RetryPolicy: TypeAlias = Callable[[int], float | timedelta]
"""From the retry's number (1 for the first) to the delay before it, in seconds or as a timedelta."""

RetryPolicyT = RetryPolicy
"""Another name for `RetryPolicy`."""


def default_retry_policy_factory(
    min_backoff: float = 1.0,
    max_backoff: float = 3600.0,
    multiplier: float = 1.0,
    max_exponent: int = 15,
) -> RetryPolicy:
    """Exponential backoff: `multiplier * 2 ** (retry_number - 1)` seconds, kept between the two bounds.

    The exponent stops growing at `max_exponent`. Raises `ConfigurationError` if a value is not a number or is negative,
    and if the bounds are the wrong way round.
    """
    numbers = {
        "min_backoff": min_backoff,
        "max_backoff": max_backoff,
        "multiplier": multiplier,
        "max_exponent": max_exponent,
    }
    for name, number in numbers.items():
        if isinstance(number, bool) or not isinstance(number, int | float):
            raise ConfigurationError(f"{name} of a retry policy must be a number, but is {number!r}")
        if not number >= 0:
            raise ConfigurationError(f"{name} of a retry policy must not be negative, but is {number!r}")
        if number != math.inf and number > sys.float_info.max:
            raise ConfigurationError(f"{name} of a retry policy must be less than {sys.float_info.max:.2g}")
    if min_backoff > max_backoff:
        raise ConfigurationError(f"min_backoff ({min_backoff}) of a retry policy is above max_backoff ({max_backoff})")

    def exponential(retry_number: int = 1) -> float:
        exponent = min(retry_number - 1, max_exponent, sys.float_info.max_exp - 1)
        backoff = multiplier * 2.0**exponent  # infinite rather than an error, where it is too large
        return float(min(max(backoff, min_backoff), max_backoff))

    return exponential


def with_jitter(
    policy: RetryPolicy, fraction: float = 0.1, *, chance: Callable[[], float] = random.random
) -> RetryPolicy:
    """The policy with each delay moved up or down by at most `fraction` of itself.

    Keeps jobs that failed together from coming back together. `chance` gives numbers in [0, 1).
    """
    if not isinstance(fraction, int | float) or not 0 <= fraction <= 1:
        raise ConfigurationError(f"fraction of a jitter must be between 0 and 1, but is {fraction!r}")

    def jittered(retry_number: int = 1) -> float:
        return seconds(policy(retry_number)) * (1 + fraction * (2 * chance() - 1))

    return jittered


def seconds(duration: float | timedelta) -> float:
    """The seconds of a duration given either way."""
    return duration.total_seconds() if isinstance(duration, timedelta) else float(duration)
