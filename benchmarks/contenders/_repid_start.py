"""How long it takes until repid is there: to import it, and to start a worker, run one job and end."""

from __future__ import annotations

import os
import subprocess
import sys
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter

from ._shared import Arguments, Figures

IMPORT = """
import time, trio, msgspec
start = time.process_time()
import repid
print(time.process_time() - start)
"""

WORKER = """
import trio
from repid import Connection, InMemoryServer, Repid, Router

router = Router()

@router.actor
async def noop() -> None: ...

async def fill() -> None:
    async with app.magic():
        await app.enqueue(noop)

app = Repid(Connection(InMemoryServer()))
app.include_router(router)
trio.run(fill)
assert app.run(burst=True).succeeded == 1
"""


def measure_start(arguments: Arguments) -> Figures:
    """Medians, each of a fresh process. All was imported before, so its bytecode is there."""
    with TemporaryDirectory() as cache:
        environment = {**os.environ, "PYTHONPYCACHEPREFIX": cache}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)

        def run(script: str) -> str:
            ended = subprocess.run(
                [sys.executable, "-c", script], env=environment, check=True, capture_output=True, text=True
            )
            return ended.stdout

        def seconds_of_worker() -> float:
            start = perf_counter()
            run(WORKER)
            return perf_counter() - start

        run(WORKER)
        imports = [float(run(IMPORT)) for _ in range(arguments["samples"])]
        workers = [seconds_of_worker() for _ in range(arguments["samples"])]
    return {"import": median(imports) * 1000, "worker": median(workers) * 1000}
