"""A nightly report that catches up: after days without a worker one tick comes, and it reports all that was missed.

Of the ticks that no worker was there for one catches up (`missed="one"`, the default). So the actor asks what was
reported last, rather than what time it is; run twice, it does nothing the second time. Needs: pip install '.[cron]'

Run it: python examples/nightly_report.py
"""

from datetime import date, timedelta

import trio
from trio.testing import MockClock

from repid import Connection, InMemoryServer, Repid, Router

app = Repid(Connection(InMemoryServer()))
router = Router(queue="reports")
reported = [date(2025, 12, 31)]  # in a database, most of the time
DAY = 24 * 60 * 60


def today() -> date:
    return date(2026, 1, 2) + timedelta(seconds=trio.current_time())  # virtual: see below


@router.actor(cron="30 3 * * *", timezone="Europe/Berlin", missed="one", retries=3)
async def report() -> None:
    while (day := reported[-1] + timedelta(days=1)) < today():
        print(f"{today():%d %b}: report of {day:%d %b}")
        reported.append(day)


async def run_worker_for(days: float) -> None:
    print(f"{today():%d %b}: the worker starts")
    async with app.magic():
        with trio.move_on_after(days * DAY):
            await app.run_worker()


async def main() -> None:
    app.include_router(router)
    await run_worker_for(days=1.1)
    await trio.sleep(3 * DAY)
    await run_worker_for(days=0.1)


if __name__ == "__main__":
    # Days pass in seconds; a program of yours leaves the clock out.
    trio.run(main, clock=MockClock(autojump_threshold=0))
