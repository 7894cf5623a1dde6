"""`python -m benchmarks gpu-estimate <operator>`: the least time each GPU needs for the kernels of an operator.

AN ESTIMATE: counted on the emulator, with no GPU. A case is run with fewer images and channels, on an emulated GPU with
as many times fewer multiprocessors, so that blocks are cut as those of the whole case on an H100; its counts are then
multiplied by the share of the work that was left out. What a count takes at least comes from datasheet rates
(gpu_counts.py). The longest of these times is the bound; its ratio to the floor tells what the kernel adds to what no
kernel can avoid: compulsory bytes from DRAM, or the arithmetic in f32.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.gpu_counts import GPUS, Bound, CountedPage, bounds, count_call
from benchmarks.harness import Row, Setting

LABEL = "ESTIMATE (lower bounds, counted on an emulator; nothing here was measured)"


def _line(name: str, of_gpus: Sequence[Bound]) -> str:
    cells = [f"{1e6 * b.seconds[b.resource]:.1f} {b.resource} {b.ratio:.2f}" for b in of_gpus]
    return f"{name:<38}" + "".join(f"{cell:>24}" for cell in cells)


def run(
    page: CountedPage, settings: Sequence[Setting], only: Callable[[str], bool], json_file: Path | None = None
) -> int:
    """Prints a line for each case and call: for each GPU the microseconds, the resource, the ratio to the floor."""
    rows: list[Row] = []
    print(LABEL)
    for setting in settings:
        print(f"\n{setting.dtype}, {setting.layout}: microseconds at least, what limits, ratio to the floor")
        print(" " * 38 + "".join(f"{gpu.name:>24}" for gpu in GPUS))
        for case in page.cases("cuda"):
            if not only(case.name):
                continue
            for name in (call.name for call in page.kernel_calls(case, setting)):
                call, counts = count_call(page, case, setting, name)
                of_gpus = bounds(call, counts)
                print(_line(f"{case.name} {call.name}", of_gpus), flush=True)
                names = {"case": case.name, "call": call.name, "dtype": setting.dtype, "layout": setting.layout}
                of_names = {
                    b.gpu.name: {"us": 1e6 * b.seconds[b.resource], "limited_by": b.resource, "ratio": b.ratio}
                    for b in of_gpus
                }
                rows.append({"what": LABEL, **names, "counts": dataclasses.asdict(counts), "bounds": of_names})
    print(f"\n{LABEL}")
    if json_file:
        json_file.write_text(json.dumps(rows, indent=1) + "\n")
        print(f"written: {json_file}")
    if not rows:
        print("No case matches.")
    return 0 if rows else 2
