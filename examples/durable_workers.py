"""Durable jobs and several worker processes on one machine, without any server: everything lives in one SQLite file.

The parent enqueues and starts two workers as processes of their own. One of them is killed in the middle of its work,
as a crash would; its job comes back when its lease ends, and nothing is lost.

Run it: python examples/durable_workers.py
"""

import sys
import tempfile
from pathlib import Path

import trio

from repid import Connection, Job, Queue, Repid, SQLiteServer, Worker

worker = Worker()


@worker.actor(store_result=True)
async def resize(picture: int) -> str:
    await trio.sleep(0.2)
    return f"picture {picture} is {picture * 10} pixels wide"


def open_app(path: str) -> Repid:
    return Repid(Connection(SQLiteServer(path, lease_timeout=1)))  # a minute is the default; here we are in a hurry


async def work(path: str) -> None:
    async with open_app(path).magic():
        await worker.run()


async def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "jobs.db")
        async with open_app(path).magic():
            await Queue().declare()
            handles = [await Job("resize", args={"picture": n}).enqueue() for n in (1, 2, 3)]
            print("3 jobs are in the file")
            unlucky = await trio.lowlevel.open_process([sys.executable, __file__, path])
            async for status in handles[0].watch():
                if status.state == "running":
                    break
            unlucky.kill()
            await unlucky.wait()
            print("a worker was killed in the middle of its work")
            lucky = await trio.lowlevel.open_process([sys.executable, __file__, path])
            for handle in handles:
                print((await handle.wait()).value)
            lucky.terminate()
            print(f"the other worker left with exit code {await lucky.wait()}")


if __name__ == "__main__":
    trio.run(work, sys.argv[1]) if len(sys.argv) > 1 else trio.run(main)
