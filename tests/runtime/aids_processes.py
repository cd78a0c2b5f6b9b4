"""Actors that another process can import."""

from __future__ import annotations

import os
import time
from pathlib import Path


def check_other_process(parent: int) -> None:
    if os.getpid() == parent:
        raise AssertionError("this is the same process")


def hang(file: str) -> None:
    Path(f"{file}.part").write_text(str(os.getpid()), encoding="ascii")
    Path(f"{file}.part").rename(file)
    time.sleep(60)


def fail() -> None:
    raise ValueError("from a process")


def die() -> None:
    os._exit(3)
