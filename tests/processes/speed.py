"""How fast several processes drain a SQLite queue, against one: `python tests/processes/speed.py [jobs]`.

The queue is paused while it is filled and the workers start; the time runs from `resume` until it is empty.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from repid import Connection, Queue, Repid, Router, SQLiteServer

ROUNDS = 5

app = Repid(Connection(SQLiteServer(os.environ.get("SPEED_FILE", "unused.db"))))
router = Router()


@router.actor
async def noop() -> None: ...


@router.actor
async def compute() -> None:
    """Some 0.25 ms of pure Python."""
    sum(n * n for n in range(4000))


app.include_router(router)


def drain(actor: str, jobs: int, processes: int) -> float:
    """Jobs per second."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["SPEED_FILE"] = str(Path(folder) / "jobs.db")
        filling = Repid(Connection(SQLiteServer(os.environ["SPEED_FILE"])))
        queue = Queue(app=filling)
        with filling.sync() as client, (Path(folder) / "log").open("wb") as log:
            client.call(queue.declare)
            client.call(queue.pause)
            client.send_messages_json(channel="default", payloads=[{}] * jobs, headers={"topic": actor})
            command = [sys.executable, "-m", "repid", "worker", "speed:app", "--processes", str(processes)]
            here = Path(__file__).parent
            with subprocess.Popen(command, cwd=here, stdout=log, stderr=log) as supervisor:
                while (Path(folder) / "log").read_text(encoding="utf-8").count("has started") < processes:
                    time.sleep(0.05)
                time.sleep(0.5)
                start = time.perf_counter()
                client.call(queue.resume)
                while True:
                    counts = client.call(queue.counts)
                    if not (counts.ready or counts.leased):
                        break
                    time.sleep(0.02)
                end = time.perf_counter()
                supervisor.terminate()
                assert supervisor.wait() == 0
    return jobs / (end - start)


def main() -> None:
    jobs = int(sys.argv[1]) if len(sys.argv) > 1 else 20_000
    for actor in ("noop", "compute"):
        rates: dict[int, list[float]] = {1: [], 2: [], 4: []}
        for _ in range(ROUNDS):  # in turn, so that whatever else the machine does meets all alike
            for processes, measured in rates.items():
                measured.append(drain(actor, jobs, processes))
        for processes, measured in rates.items():
            middle, best = statistics.median(measured), max(measured)
            times = f"{middle / statistics.median(rates[1]):.2f} × one, best {best / max(rates[1]):.2f} ×"
            print(f"{actor:8} {processes} process(es): median {middle:7,.0f}/s, best {best:7,.0f}/s, {times}")  # noqa: T201


if __name__ == "__main__":
    main()
