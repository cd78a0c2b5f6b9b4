"""mypy --strict and pyright both accept what users write: the programs of README and docs, and one with asserted types.

`make types` has them read the package and the examples.
"""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)

CHECKERS = {
    "mypy": ["mypy", "--strict", "--config-file=", f"--cache-dir={ROOT / '.mypy_cache' / 'programs'}"],
    "pyright": ["pyright", "--pythonpath", sys.executable],
}


@pytest.fixture
def programs(tmp_path: Path) -> list[Path]:
    files = []
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        if page.stem == "writing-a-broker":
            continue  # its programs import the driver of tests/modest_driver.py, which `make types` reads
        text = page.read_text(encoding="utf-8")
        for number, block in enumerate(BLOCK.finditer(text)):
            line = text.count("\n", 0, block.start()) + 2
            file = tmp_path / f"{page.stem.replace('-', '_')}_{number}.py"
            file.write_text("\n" * (line - 1) + block[1], encoding="utf-8")  # so that lines are the page's
            files.append(file)
    assert len(files) > 5
    program = tmp_path / "program.py"
    program.write_text((ROOT / "tests" / "typing" / "program.py").read_text(encoding="utf-8"), encoding="utf-8")
    return [*files, program]


@pytest.mark.real_time
@pytest.mark.parametrize("checker", CHECKERS)
def test_a_checker_accepts_what_users_write(checker: str, programs: list[Path]) -> None:
    if importlib.util.find_spec(checker) is None:
        pytest.skip(f"{checker} is not installed: make install")
    run = subprocess.run(
        [sys.executable, "-m", *CHECKERS[checker], *map(str, programs)],
        capture_output=True,
        text=True,
        cwd=programs[0].parent,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
