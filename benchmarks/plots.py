"""Pictures of the result files: a roofline and the ratios of each, as SVG (`python -m benchmarks plots FOLDER`)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from benchmarks.figures import read_results
from benchmarks.harness import NOT_SLOWER, Row

COLOURS = {"f32": "#4c78a8", "bf16": "#f58518", "f16": "#54a24b", "f64": "#b279a2"}
MARKERS = {("forward", "nchw"): "o", ("forward", "channels_last"): "s"}
MARKERS |= {("backward", "nchw"): "^", ("backward", "channels_last"): "D"}


def draw(folder: Path) -> list[Path]:
    """A picture for each result file, by its name; returns the files."""
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for content in read_results():
        files.append(folder / f"figures_{content['file']}.svg")
        figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.5))
        roofline(left, content)
        ratios(right, content["rows"])
        figure.suptitle(f"{content['operator']} ({content['file']})")
        figure.tight_layout()
        figure.savefig(files[-1])
        plt.close(figure)
    return files


def roofline(ax: Axes, content: dict[str, Any]) -> None:
    """What each row reached, over its operations a byte, and what the machine could do at best, its limit."""
    for row in content["rows"]:
        intensity = row["operations"] / row["compulsory_bytes"]
        if not intensity:  # a copy: shuffles have no operations, and no place here
            continue
        reached = row["operations"] / row["time_ms"] * 1e-6
        ax.plot(intensity, reached, MARKERS[row["direction"], row["layout"]], color=COLOURS[row["dtype"]], markersize=4)
        ax.plot(intensity, row["operations"] / row["limit_ms"] * 1e-6, "_", color=COLOURS[row["dtype"]], alpha=0.6)
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_xlabel("operations a compulsory byte")
    ax.set_ylabel("GFLOP/s; dashes: the limit of the same row")
    ax.set_title("roofline")
    _legend(ax, content["rows"])


def ratios(ax: Axes, rows: Sequence[Row]) -> None:
    """Times faster than the fastest peer, from the worst row to the best."""
    for rank, row in enumerate(sorted(rows, key=lambda row: row["ratio"])):
        ax.plot(rank, row["ratio"], MARKERS[row["direction"], row["layout"]], color=COLOURS[row["dtype"]], markersize=4)
    ax.axhline(NOT_SLOWER, color="#888888", linewidth=1)
    ax.set_yscale("log")
    ax.set_xlabel("rows, from the worst to the best")
    ax.set_ylabel("times faster than the fastest peer")
    ax.set_title("against peers")
    _legend(ax, rows)


def _legend(ax: Axes, rows: Sequence[Row]) -> None:
    for dtype in dict.fromkeys(row["dtype"] for row in rows):
        ax.plot([], [], "o", color=COLOURS[dtype], label=dtype)
    for direction, layout in dict.fromkeys((row["direction"], row["layout"]) for row in rows):
        ax.plot([], [], MARKERS[direction, layout], color="#888888", label=f"{direction}, {layout}")
    ax.legend(fontsize=7)
