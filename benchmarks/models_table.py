"""Writes docs/models.md: every network, its parameters and multiply-adds, how far it is from its peer in f64, and its
speed if benchmarks/results/models_cpu.json has it.

python -m benchmarks.models_table                  # some minutes: every peer is built and run
python -m benchmarks.models_table --no-parity      # seconds; leaves the column out
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import fastconv
import torch
from torch import nn

from benchmarks.figures import RESULTS, machine_line, table
from benchmarks.harness import DIRECTIONS, ROOT
from benchmarks.models import Case, counts, make_peer

PAGE = ROOT / "docs" / "models.md"
SPEEDS = RESULTS / "models_cpu.json"
SIZES = {"inception_v3": 299, "xception": 299}
SMALL_IMAGES = ("wrn_", "shake_resnet")

HEADER = (
    "network", "image", "weights of", "parameters, M", "multiply-adds, M", "difference", "inference", "training step",
)  # fmt: skip
HEAD = """# Networks

`fastconv.models.create_model(name)` makes one; its parameters are named as in the network of the third column, whose
checkpoints load. *difference* is the largest difference of the classes between the two, as a fraction of the largest
class, in f64 with the peer's random parameters and random statistics of its normalisations, for one image of 64 x 64
(75 x 75 for Inception v3). Networks without a peer are compared with their papers' tables in `tests/test_models.py`.

*inference* (after `fastconv.optimize`) and *training step* are images a second in batches of 16, f32 in channels_last,
and how many times faster that is than the peer in eager mode, or where there is none, than the same network with
torch's and torchvision's convolutions; below 1: slower; empty: not measured. [Figures](figures.md) has more of them.

Written by `python -m benchmarks.models_table`. The speeds are from these, in about 11 minutes on two cores, or 17
without `--filter`:

```
python -m benchmarks models --dtype f32 --layout channels_last --threads 2 --no-compile \\
    --filter "^(?!resnet50|densenet|skresnext)" --json benchmarks/results/models_cpu.json
```
"""


def image_size(name: str) -> int:
    return 32 if name.startswith(SMALL_IMAGES) else SIZES.get(name, 224)


@torch.no_grad()
def parity_error(name: str) -> float:
    torch.manual_seed(0)
    peer, ours = make_peer(name), fastconv.models.create_model(name)
    for module in peer.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2)  # type: ignore[union-attr]
            module.running_var.uniform_(0.5, 1.5)  # type: ignore[union-attr]
    ours.load_state_dict(peer.state_dict())
    size = 75 if name == "inception_v3" else 64
    image = torch.randn(1, 3, size, size, dtype=torch.float64)
    want = peer.double().eval()(image)
    got = ours.double().eval()(image)
    assert isinstance(got, torch.Tensor)
    return ((got - want).abs().max() / want.abs().max()).item()


def read_speeds(file: Path = SPEEDS) -> dict[str, Any]:
    return json.loads(file.read_text()) if file.exists() else {"rows": []}


def speeds(results: dict[str, Any], network: str) -> list[str]:
    """For each direction, images a second and the ratio to the eager peer, with the most threads that were measured."""
    wanted = {"case": Case(network, 16).name, "dtype": "f32", "layout": "channels_last"}
    rows = [row for row in results["rows"] if wanted.items() <= row.items() and "eager" in row["ratios"]]
    best = {row["direction"]: row for row in sorted(rows, key=lambda row: row["threads"])}
    return [
        f"{row['images_per_s']:.1f}, {row['ratios']['eager']:.2f}x" if (row := best.get(direction)) else ""
        for direction in DIRECTIONS
    ]


def speed_line(results: dict[str, Any]) -> str:
    if not results["rows"]:
        return "Speed: not measured."
    threads = max(row["threads"] for row in results["rows"])
    return f"Speed: {threads} thread{'s' if threads > 1 else ''} of {machine_line(results['machine'])}"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m benchmarks.models_table", description=__doc__)
    parser.add_argument("--parity", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--speeds", type=Path, default=SPEEDS, help="what `python -m benchmarks models --json` wrote")
    parser.add_argument("--output", type=Path, default=PAGE)
    options = parser.parse_args(arguments)
    results = read_speeds(options.speeds)
    lines = []
    for name in fastconv.models.list_models():
        size = image_size(name)
        parameters, operations = counts(name, size)
        weights = fastconv.models.weights_of(name) or ""
        error = f"{parity_error(name):.0e}" if weights and options.parity else ""
        cells = [f"`{name}`", str(size), weights, f"{parameters / 1e6:.2f}", f"{operations / 2e6:,.0f}", error]
        lines.append(cells + speeds(results, name))
        print(*lines[-1], flush=True)
    options.output.write_text("\n".join([HEAD, speed_line(results), "", *table(HEADER, lines)]) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
