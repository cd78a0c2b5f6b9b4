"""The last resort against orphans: a process whose supervisor was killed ends, whatever it is stuck in.

`child` hears of its supervisor's death in a thread, releases its jobs and ends. That takes the interpreter's lock, and
C code that never gives it back would outlive everybody. So on Linux the kernel is asked for a signal at that death
(`PR_SET_PDEATHSIG`), and its handler is no Python: it is libc's `alarm`, which POSIX lists among what a handler may
call, and which takes the number of the signal for seconds. When they have passed, SIGALRM ends the process.

Three things undo it: a handler of the program's own for SIGALRM, an alarm of its own, and a change of user after the
start, at which Linux forgets the request. Other systems know no such request: there the thread is all there is.
"""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress

NOTICE: int | None = getattr(signal, "SIGSTKFLT", None)
"""The signal for a supervisor's death, and the seconds from there to the end: 16, more than a process needs to release
its jobs. Linux sends it for nothing else."""

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def end_with(supervisor: int) -> None:
    """Have this process end some time after its parent, which is that process, even if no Python runs here any more.

    On Linux. The kernel means the thread that started this process: the supervisor lives as long as that does.
    """
    if sys.platform != "linux" or NOTICE is None:
        return
    with suppress(ImportError, OSError):  # a Python without ctypes, or all in one static file
        import ctypes  # noqa: PLC0415  see above

        libc = ctypes.CDLL(None, use_errno=True)
        libc.signal.argtypes = (ctypes.c_int, ctypes.c_void_p)
        libc.signal.restype = ctypes.c_void_p
        signal.signal(signal.SIGALRM, signal.SIG_DFL)  # it may have been inherited as ignored
        libc.signal(NOTICE, ctypes.cast(libc.alarm, ctypes.c_void_p))
        libc.prctl(_PR_SET_PDEATHSIG, NOTICE, 0, 0, 0)
        if os.getppid() != supervisor:  # it died before the kernel was asked
            signal.raise_signal(NOTICE)
