"""Writes docs/models.md: every network, its parameters and multiply-adds, and how far it is from its peer in f64.

python -m benchmarks.models_table                  # some minutes: every peer is built and run
python -m benchmarks.models_table --no-parity      # seconds; leaves the column out
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import fastconv
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.models import make_peer

ROOT = Path(__file__).resolve().parent.parent
SIZES = {"inception_v3": 299, "xception": 299}
SMALL_IMAGES = ("wrn_", "shake_resnet")

HEAD = """# Networks

`fastconv.models.create_model(name)` makes one; its parameters are named as in the network of the third column, whose
checkpoints load. The last column is the largest difference of the classes between the two, as a fraction of the largest
class, in f64 with the peer's random parameters and random statistics of its normalisations, for one image of 64 x 64
(75 x 75 for Inception v3). Networks without a peer are compared with their papers' tables in `tests/test_models.py`.

Written by `python -m benchmarks.models_table`.

"""


def image_size(name: str) -> int:
    return 32 if name.startswith(SMALL_IMAGES) else SIZES.get(name, 224)


def counts(name: str) -> tuple[float, float]:
    """Millions of parameters and of multiply-adds."""
    with torch.device("meta"):
        model = fastconv.models.create_model(name).eval()
        image = torch.empty(1, 3, image_size(name), image_size(name))
    with FlopCounterMode(display=False) as counter:
        model(image)
    return sum(p.numel() for p in model.parameters()) / 1e6, counter.get_total_flops() / 2e6


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


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m benchmarks.models_table", description=__doc__)
    parser.add_argument("--parity", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "models.md")
    options = parser.parse_args(arguments)
    lines = [
        "| network | image | weights of | parameters, M | multiply-adds, M | difference |",
        "|---|---|---|---|---|---|",
    ]
    for name in fastconv.models.list_models():
        parameters, multiply_adds = counts(name)
        weights = fastconv.models.weights_of(name)
        error = f"{parity_error(name):.0e}" if weights and options.parity else ""
        lines.append(
            f"| `{name}` | {image_size(name)} | {weights or ''} | {parameters:.2f} | {multiply_adds:,.0f} | {error} |"
        )
        print(lines[-1], flush=True)
    options.output.write_text(HEAD + "\n".join(lines) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
