"""Thumbnails: a thousand pictures made smaller in processes, with a progress bar. Needs: pip install pillow

Only a few calls are under way at once. A picture that cannot be read does not stop the others.

Run it: python examples/thumbnails.py
"""

import logging
import sys
import tempfile
from pathlib import Path

import trio
from PIL import Image

from repid import Connection, InMemoryServer, Repid, Router

logging.getLogger("repid").setLevel(logging.CRITICAL)  # workers log each failure; here its traceback would distract
app = Repid(Connection(InMemoryServer()))
router = Router(queue="pictures")


@router.actor(run_in_process=True, store_result=True, timeout=30)
def shrink(picture: str) -> str:
    path = Path(picture)
    thumbnail = path.with_name(f"{path.stem}-small.png")
    with Image.open(path) as image:
        image.thumbnail((64, 64))
        image.save(thumbnail)
    return thumbnail.name


def draw_pictures(folder: Path, count: int) -> list[str]:
    for n in range(count):
        Image.new("RGB", (320, 240), (n % 256, 80, 120)).save(folder / f"{n}.png", compress_level=1)
    (folder / "broken.png").write_text("this is no picture")
    return [str(path) for path in sorted(folder.glob("*.png"))]


async def main(count: int) -> None:
    app.include_router(router)
    outcomes: list[bool] = []
    with tempfile.TemporaryDirectory() as folder:
        pictures = draw_pictures(Path(folder), count)
        async with app.magic(), trio.open_nursery() as nursery:
            worker = await nursery.start(app.run_worker)
            async with app.map(shrink, pictures, limit=50, ordered=False, on_error="yield") as results:
                async for result in results:
                    outcomes.append(result.is_success)
                    print(f"\r[{'#' * (40 * len(outcomes) // len(pictures)):40}]", len(outcomes), end="", flush=True)
            worker.stop()
    print(f"\n{outcomes.count(True)} thumbnails, {outcomes.count(False)} failed")


if __name__ == "__main__":
    trio.run(main, int(sys.argv[1]) if len(sys.argv) > 1 else 1000)
