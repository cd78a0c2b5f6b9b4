"""The name of the process, for what is told of a lost message."""

from __future__ import annotations

import os
import socket


def name_process() -> str:
    """The number of this process and its machine, in words."""
    return f"process {os.getpid()} on {socket.gethostname()!r}"
