"""`python -m repid`, and the script `repid`."""

from __future__ import annotations

import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None, program: str | None = None, target: str | None = None) -> None:
    """Run the command line, which is an extra.

    `arguments`: those of the process by default. `program`: what it is called. `target`: the app, for each command
    that takes one.
    """
    try:
        from .cli import run  # noqa: PLC0415  it imports the extra
    except ModuleNotFoundError as error:
        if error.name not in {"typer", "rich"}:
            raise
        sys.exit(_explain(error.name))
    except KeyboardInterrupt:  # Ctrl-C so early ends it as later, while the program is imported
        sys.exit(130)
    run(arguments, program, target)


def _explain(missing: str) -> int:
    sys.stderr.write(f"repid: the command line needs {missing}: pip install 'repid-trio[cli]'\n")
    return 2


if __name__ == "__main__":
    main()
