"""What to raise for what came out of nurseries, which are nobody's business but ours."""

from __future__ import annotations

from collections.abc import Iterator


def unwrapped(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """What to raise for a group: an order to stop the process comes first, a single error comes bare, several stay a
    group.
    """
    orders = group.subgroup((KeyboardInterrupt, SystemExit))
    leaves = list(_leaves(orders or group))
    return leaves[0] if orders or len(leaves) == 1 else group


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for part in error.exceptions:
            yield from _leaves(part)
    else:
        yield error
