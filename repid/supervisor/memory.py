"""How much memory this process takes."""

from __future__ import annotations

import sys
from pathlib import Path

from ..errors import ConfigurationError

if sys.platform != "win32":
    import resource

_STATM = Path("/proc/self/statm")


def resident() -> int:
    """Bytes that are in memory now; where there is no /proc (macOS), the most there ever were."""
    if sys.platform == "win32":
        raise ConfigurationError("max_memory is not supported on Windows: repid cannot see there what a process takes")
    if _STATM.exists():
        return int(_STATM.read_text(encoding="ascii").split()[1]) * resource.getpagesize()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
