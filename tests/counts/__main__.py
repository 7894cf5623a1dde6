"""Prints today's figures of an operator's rows: see counts/__init__.py."""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from pathlib import Path

from counts import FIGURES, measure


def main() -> int:
    parser = argparse.ArgumentParser("python -m counts", description=__doc__)
    parser.add_argument("operator")
    parser.add_argument("-k", dest="text", default="", help="only rows whose name contains this; also a report of each")
    parser.add_argument("--json", action="store_true", help="the figures and targets of all rows, for test_counts.py")
    options = parser.parse_args()
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))
    from benchmarks import gpu_counts

    if reason := gpu_counts.load_kernels(options.operator):
        print(reason, file=sys.stderr)
        return 2
    page = importlib.import_module(f"benchmarks.{options.operator}")
    result = {}
    for row in importlib.import_module(f"counts.{options.operator}").ROWS:
        if options.text not in row.name:
            continue
        measured = measure(page, row)
        result[row.name] = {"figures": measured.figures, "targets": measured.targets, "dram": measured.dram}
        if options.json:
            continue
        cells = [
            f"{name} {measured.figures[name]:.3f}{' (missed)' if name in measured.misses else ''}" for name in FIGURES
        ]
        print(f"{row.name:<45} {', '.join(cells)}; dram {measured.dram:.3f}", flush=True)
        if options.text:
            print(measured.report)
    if options.json:
        print(json.dumps(result))
    return 0


sys.exit(main())
