"""`python -m repid`, and the script `repid`."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line, which is an extra."""
    try:
        from .cli import run  # noqa: PLC0415 - it imports the extra
    except ModuleNotFoundError as error:
        if error.name not in {"typer", "rich"}:
            raise
        sys.exit(_explain(error.name))
    run()


def _explain(missing: str) -> int:
    sys.stderr.write(f"repid: the command line needs {missing}: pip install 'repid-trio[cli]'\n")
    return 2


if __name__ == "__main__":
    main()
