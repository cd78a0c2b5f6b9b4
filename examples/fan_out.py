"""Fan-out: one job for each shop, all at once, and what to do when some of them fail.

`app.gather` waits for all with one watch. It returns values, or raises a group of what failed; with `on_error="return"`
each job has a `Result` instead.

Run it: python examples/fan_out.py
"""

import logging

import trio

from repid import Connection, InMemoryServer, JobFailed, JobHandle, Repid, Router

logging.getLogger("repid").setLevel(logging.CRITICAL)  # workers log each failure; here its traceback would distract
PRICES = {"corner shop": 12.5, "market": 9.0, "station": 15.0}

app = Repid(Connection(InMemoryServer()))
router = Router(queue="prices", store_result=True)


@router.actor(timeout=0.5, concurrency=10)
async def ask(shop: str) -> float:
    if shop == "night shop":
        await trio.sleep_forever()
    await trio.sleep(0.1)
    return PRICES[shop]


async def cheapest(shops: list[str]) -> None:
    handles = await app.enqueue_many(ask, shops)
    results = await app.gather(handles, on_error="return")
    prices = {shop: result.value for shop, result in zip(shops, results, strict=True) if result.is_success}
    print(f"{len(prices)} of {len(shops)} answered; cheapest: {min(prices, key=lambda shop: prices[shop])}")
    for shop, result in zip(shops, results, strict=True):
        if result.failure is not None:
            print(f"  {shop}: {result.failure.type}")


async def total(handles: list[JobHandle[float]]) -> None:
    try:
        print(f"in total {sum(await app.gather(handles))}")
    except* JobFailed as failed:
        print(f"no total: {len(failed.exceptions)} of {len(handles)} failed")


async def main() -> None:
    app.include_router(router)
    async with app.magic(), trio.open_nursery() as nursery:
        worker = await nursery.start(app.run_worker)
        await cheapest([*PRICES, "night shop", "closed shop"])
        await total(await app.enqueue_many(ask, PRICES))
        await total(await app.enqueue_many(ask, [*PRICES, "closed shop"]))
        worker.stop()


if __name__ == "__main__":
    trio.run(main)
