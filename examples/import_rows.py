"""An import: a million lines (or the number given) are read, parsed, and written to SQLite by 500, in bounded memory.

A full queue makes its senders wait: lines are read as fast as rows are written. A batch may be written twice.

Run it: python examples/import_rows.py
"""

import logging
import sqlite3
import sys
import tempfile
from contextlib import closing
from itertools import islice
from pathlib import Path

import trio

from repid import INJECTED, Connection, InMemoryServer, Message, Repid, Router

logging.disable()  # workers log each failure; here its traceback would distract
app = Repid(Connection(InMemoryServer()))
router = Router()
FOLDER = Path(tempfile.gettempdir())


@router.actor(queue="lines", max_size=5000)
async def parse(line: str, message: Message = INJECTED) -> None:
    number, city, degrees = line.split(";")
    await message.outbox.enqueue(write, (int(number), city, float(degrees)))


@router.actor(queue="rows", max_size=5000, batch=500, batch_wait=0.2, concurrency=1)
def write(rows: list[tuple[int, str, float]]) -> None:
    with closing(sqlite3.connect(FOLDER / "weather.db")) as database, database:
        database.execute("CREATE TABLE IF NOT EXISTS weather (number INTEGER PRIMARY KEY, city TEXT, degrees REAL)")
        database.executemany("INSERT OR REPLACE INTO weather VALUES (?, ?, ?)", rows)


async def read(total: int) -> None:
    with (FOLDER / "weather.csv").open("w+") as file:
        file.writelines(f"{n};city {n % 100};{n % 40 if n % 10_000 else 'cold'}\n" for n in range(1, total + 1))
        file.seek(0)
        while lines := list(islice(file, 1000)):
            await app.enqueue_many(parse, lines)


async def main(total: int) -> None:
    app.include_router(router)
    async with app.magic(), trio.open_nursery() as nursery:
        worker = await nursery.start(app.run_worker)
        nursery.start_soon(read, total)
        while (done := worker.report.succeeded // 2 + worker.report.dead) < total:  # two runs for each line
            print(f"\r[{'#' * (40 * done // total):40}] {done} of {total}", end="", flush=True)
            await trio.sleep(0.2)
        worker.stop()
    print(f"\n{total - worker.report.dead} rows, {worker.report.dead} lines that are none")


if __name__ == "__main__":
    trio.run(main, int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000)
