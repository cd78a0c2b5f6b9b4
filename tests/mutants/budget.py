"""A pytest plugin: after so many seconds (`REPID_BUDGET`) the session ends with the test that runs."""

from __future__ import annotations

import os
import time

import pytest

_END = time.monotonic() + float(os.environ.get("REPID_BUDGET", "inf"))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what comes too late: a mutant that lives until then has survived."""
    if time.monotonic() > _END:
        pytest.skip("the time is up")
