"""The backends of actors that are asyncio functions: `loops` is loaded when there are some."""

from __future__ import annotations

import importlib
import sys
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING

from ..logs import Log
from .crossing import run_bridge

if TYPE_CHECKING:
    from .loops import HostTasks, LoopTasks, ThreadTasks

log = Log("repid.hosts")


def host_backend() -> HostTasks | None:
    """Tasks of the host loop, where trio is its guest; None where trio itself is the host."""
    bridge = run_bridge.get()
    if bridge is None:
        return None
    from .loops import HostTasks  # noqa: PLC0415  loads asyncio, which programs on trio do without

    bridge.contain()
    return HostTasks(bridge)


class MissingTrioAsyncioError(ImportError):
    """trio-asyncio is not installed."""


def open_asyncio() -> AbstractAsyncContextManager[LoopTasks | ThreadTasks]:
    """An asyncio loop in a trio run: trio-asyncio's, or a private one where Python is too new for that.

    Raises `MissingTrioAsyncioError`. Importing trio-asyncio patches asyncio in the whole process.
    """
    from .loops import open_private, open_trio_asyncio  # noqa: PLC0415  as above

    if sys.version_info >= (3, 14):
        return open_private()
    try:
        trio_asyncio = importlib.import_module("trio_asyncio")
    except ModuleNotFoundError as error:
        raise MissingTrioAsyncioError from error
    except Exception as error:  # noqa: BLE001  it looks into the internals of asyncio and trio, which change
        log.warning("trio-asyncio cannot be imported, a private asyncio loop is used instead: %r", error)
        return open_private()
    return open_trio_asyncio(trio_asyncio)
