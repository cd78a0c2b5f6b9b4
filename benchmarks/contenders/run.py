"""One measurement in this process: `python benchmarks/contenders/run.py CONTENDER WORKLOAD ARGUMENTS`.

Prints one line of JSON: the figures, the versions of what was measured, and the file that `repid` was imported from.
"""

from __future__ import annotations

import json
import sys
from importlib import import_module
from importlib.metadata import version
from pathlib import Path


def main() -> None:
    # The checkout comes last on the path, or upstream's measurements would import the `repid` that lies in it.
    sys.path[0:1] = []
    sys.path.append(str(Path(__file__).resolve().parent.parent.parent))
    _, contender, workload, arguments = sys.argv
    module = import_module(f"benchmarks.contenders.{contender}")
    versions = {name: version(name) for name in module.DISTRIBUTIONS}
    figures = module.MEASUREMENTS[workload](json.loads(arguments))
    origin = getattr(sys.modules.get("repid"), "__file__", None)
    print(json.dumps({"figures": figures, "versions": versions, "origin": origin}), flush=True)


if __name__ == "__main__":
    main()
