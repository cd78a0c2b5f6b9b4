"""Graceful shutdown: what a worker does when Kubernetes, systemd or Ctrl-C asks it to end.

On SIGTERM or SIGINT it claims nothing more and gives back what it has not started. Running actors get
`graceful_shutdown_time` (25 s by default) to end; after that they are cancelled, clean up, and their messages go back
to the queue without having used an attempt. A second signal ends the grace at once.

The example sends itself a SIGTERM, and gives a grace of half a second.

Run it: python examples/graceful_shutdown.py
"""

import signal

import trio

from repid import InMemoryServer, Repid, Router

router = Router(channel="reports")


@router.actor
async def write(title: str, seconds: float) -> None:
    print(f"{title}: started")
    try:
        await trio.sleep(seconds)
    except trio.Cancelled:
        print(f"{title}: cancelled, cleaning up")
        raise
    print(f"{title}: finished")


app = Repid(title="reports")
app.servers.register_server("default", InMemoryServer())
app.include_router(router)


async def send_sigterm() -> None:
    await trio.sleep(0.2)
    print("SIGTERM")
    signal.raise_signal(signal.SIGTERM)


async def main() -> None:
    async with app.server().connection() as server, trio.open_nursery() as nursery:
        for title, seconds in {"short report": 0.4, "long report": 3600.0}.items():
            payload = {"title": title, "seconds": seconds}
            await app.send_message_json(channel="reports", payload=payload, headers={"topic": "write"})
        nursery.start_soon(send_sigterm)
        report = await app.run_worker(graceful_shutdown_time=0.5)
        counts = await server.counts("reports")
    print(f"worker ended: {report.succeeded} succeeded, {report.released} released")
    print(f"in the queue for the next worker: {counts.ready}")


if __name__ == "__main__":
    trio.run(main)
