"""The broker in Redis or Valkey.

* `server`: `RedisServer`, what users open. `address`: where it is. `finding`: the one of several that has our keys.
* `driver`: the calls of the port. `scripts`: what the server does for each. `claiming`: consumers, and how they sleep.
  `settling`: verdicts. `schedules`: the calls that concern them.
* `layout`: what is stored where. `showing`: what is shown of it.
* `wire`: the connections. `news`: what the server tells. `errors`: what went wrong.
"""

from ...errors import MissingExtra

try:
    import hiredis as _hiredis  # noqa: F401  the extra
except ImportError:
    raise MissingExtra("RedisServer", "redis") from None

from .server import RedisServer

__all__ = ["RedisServer"]
