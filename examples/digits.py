"""Trains a small ResNeSt or CondenseNet on the handwritten digits that ship in scikit-learn.

    python -m examples.digits resnest
    python -m examples.digits condensenet --epochs 40 --resume

Writes a checkpoint after each epoch and a picture of the curves. The same seed gives the same curve, bit for bit, also
where a run was stopped and resumed. CondenseNet's groups are learned in the first half of the training; at the end the
network is converted to grouped convolutions, which must give the same classes.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fastconv
import torch
from torch import Tensor, nn
from torch.nn import functional as F

TARGET = 0.98
CLASSES = 10


# ---------------------------------------------------------------- networks


def small_resnest() -> nn.Module:
    """Three split-attention bottlenecks: 1x8x8 to 10 classes."""

    def block(inplanes: int, planes: int, stride: int = 1) -> nn.Module:
        outplanes = planes * fastconv.nn.SplitAttentionBottleneck.expansion
        downsample = None
        if inplanes != outplanes or stride != 1:
            downsample = fastconv.nn.ConvNormAct(inplanes, outplanes, 1, stride, activation_layer=None)
        return fastconv.nn.SplitAttentionBottleneck(inplanes, planes, stride, downsample)

    return nn.Sequential(
        fastconv.nn.ConvNormAct(1, 32, 3),
        block(32, 16), block(64, 32, stride=2), block(128, 32),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, CLASSES),
    )  # fmt: skip


def small_condensenet() -> nn.Module:
    return fastconv.models.create_model(
        "condensenet_74", layers=(4, 4, 4), growth_rates=(8, 16, 32), num_classes=CLASSES, in_chans=1, small_images=True
    )


NETWORKS = {"resnest": small_resnest, "condensenet": small_condensenet}


# ---------------------------------------------------------------- data


@dataclass(frozen=True)
class Split:
    images: Tensor  # [N, 1, 8, 8], zero mean
    labels: Tensor  # [N]


def load_digits(seed: int) -> tuple[Split, Split]:
    """Four fifths to train on, the rest to test on."""
    from sklearn.datasets import load_digits as load

    digits = load()
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 8 - 1
    labels = torch.tensor(digits.target)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    test, train = order[: len(order) // 5], order[len(order) // 5 :]
    return Split(images[train], labels[train]), Split(images[test], labels[test])


def batches(split: Split, size: int, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """In random order; each image moved, turned and scaled a little."""
    for chosen in torch.randperm(len(split.labels), generator=generator).split(size):
        if len(chosen) < 2:  # too few for batch normalisation
            continue
        move, angle, scale = (torch.rand(len(chosen), n, generator=generator) * 2 - 1 for n in (2, 1, 1))
        angle, scale = 0.2 * angle, 1 + 0.15 * scale
        row = torch.cat([angle.cos(), -angle.sin(), move[:, :1] / 4], 1) * scale  # 1/4 is a pixel of eight
        column = torch.cat([angle.sin(), angle.cos(), move[:, 1:] / 4], 1) * scale
        images = split.images[chosen]
        grid = F.affine_grid(torch.stack([row, column], 1), list(images.shape), align_corners=False)
        # The background is -1, and outside the image there is 0.
        yield F.grid_sample(images + 1, grid, align_corners=False) - 1, split.labels[chosen]


# ---------------------------------------------------------------- training


@dataclass
class Run:
    """A training, and all that a checkpoint holds."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    generator: torch.Generator
    history: list[dict[str, float]]  # one entry an epoch

    def save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "generator": self.generator.get_state(),
            "history": self.history,
        }
        part = path.with_suffix(".part")
        torch.save(state, part)
        part.replace(path)  # a run that is stopped here leaves the checkpoint before

    def load(self, path: Path) -> None:
        state = torch.load(path)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.generator.set_state(state["generator"])
        self.history[:] = state["history"]


def start(network: str, seed: int) -> Run:
    torch.manual_seed(seed)
    model = NETWORKS[network]()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
    return Run(model, optimizer, torch.Generator().manual_seed(seed), [])


def train(run: Run, train_split: Split, test_split: Split, epochs: int, batch_size: int, checkpoint: Path) -> None:
    """The epochs that are left, with a cosine of the learning rate over all of them."""
    steps = math.ceil(len(train_split.labels) / batch_size)
    learned = fastconv.nn.learned_groups(run.model)
    for epoch in range(len(run.history), epochs):
        run.model.train()
        began, losses = time.perf_counter(), []
        for step, (images, labels) in enumerate(batches(train_split, batch_size, run.generator)):
            progress = (epoch + step / steps) / epochs
            for group in run.optimizer.param_groups:
                group["lr"] = 0.05 * (1 + math.cos(math.pi * progress))
            for conv in learned:
                conv.condense_to(progress)
            loss = F.cross_entropy(run.model(images), labels)
            penalty = 1e-5 * sum(conv.group_lasso() for conv in learned)
            run.optimizer.zero_grad()
            (loss + penalty).backward()
            run.optimizer.step()
            losses.append(loss.item())
            _show_progress(epoch, epochs, (step + 1) / steps, losses[-1])
        accuracy = accuracy_of(run.model, test_split)
        run.history.append({"loss": sum(losses) / len(losses), "accuracy": accuracy})
        run.save(checkpoint)
        _show_progress(epoch, epochs, 1.0, run.history[-1]["loss"], accuracy, time.perf_counter() - began)


@torch.no_grad()
def accuracy_of(model: nn.Module, split: Split) -> float:
    return (model.eval()(split.images).argmax(1) == split.labels).float().mean().item()


def _show_progress(
    epoch: int, epochs: int, done: float, loss: float, accuracy: float | None = None, seconds: float = 0.0
) -> None:
    if accuracy is None and not sys.stderr.isatty():
        return
    bar = "#" * round(20 * done)
    line = f"\repoch {epoch + 1:3}/{epochs} [{bar:20}] loss {loss:.4f}"
    if accuracy is not None:
        line += f"  test accuracy {accuracy:.2%}  {seconds:.1f} s\n"
    print(line, end="", file=sys.stderr, flush=True)


# ---------------------------------------------------------------- the picture


def draw_curves(history: list[dict[str, float]], path: Path) -> None:
    """The loss, on a logarithmic scale, and the test error, over the epochs."""
    from PIL import Image, ImageDraw

    width, height, margin = 640, 400, 50
    image = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(image)
    draw.rectangle((margin, margin, width - margin, height - margin), outline="black")
    curves = {
        "training loss": ([max(entry["loss"], 1e-4) for entry in history], "blue"),
        "test error": ([max(1 - entry["accuracy"], 1e-4) for entry in history], "red"),
    }
    top, bottom = 1, -4  # powers of ten
    for power in range(bottom, top + 1):
        y = margin + (top - power) / (top - bottom) * (height - 2 * margin)
        draw.line((margin - 4, y, width - margin, y), fill="lightgray")
        draw.text((4, y - 6), f"{10.0**power:g}", fill="black")
    for i, (name, (values, colour)) in enumerate(curves.items()):
        points = [
            (
                margin + j / max(len(values) - 1, 1) * (width - 2 * margin),
                margin + (top - math.log10(value)) / (top - bottom) * (height - 2 * margin),
            )
            for j, value in enumerate(values)
        ]
        draw.line(points * 2 if len(points) == 1 else points, fill=colour, width=2)
        draw.text((margin + 8 + 140 * i, margin - 18), name, fill=colour)
    draw.text((width // 2 - 30, height - margin + 12), f"{len(history)} epochs", fill="black")
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


# ---------------------------------------------------------------- the command


def convert(run: Run, test_split: Split, path: Path) -> None:
    """CondenseNet's last step: grouped convolutions of the inputs that each group has kept."""
    before = sum(parameter.numel() for parameter in run.model.parameters())
    want = run.model.eval()(test_split.images).argmax(1)
    converted: Any = fastconv.nn.condense(run.model)
    if not torch.equal(converted(test_split.images).argmax(1), want):
        raise RuntimeError("the converted network gives other classes")
    after = sum(parameter.numel() for parameter in converted.parameters())
    torch.save(converted.state_dict(), path)
    print(f"condensed: {before:,} parameters to {after:,}, with the same classes; written to {path}")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m examples.digits", description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("network", choices=NETWORKS)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--images", type=int, help="train on this many only")
    parser.add_argument("--output", type=Path, default=Path("demo_output"), help="folder for checkpoint and picture")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint in it")
    options = parser.parse_args(arguments)

    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # for finding faults, and a tenth of the time
    train_split, test_split = load_digits(options.seed)
    if options.images is not None:
        train_split = Split(train_split.images[: options.images], train_split.labels[: options.images])
    run = start(options.network, options.seed)
    checkpoint = options.output / f"digits_{options.network}.pt"
    if options.resume:
        if not checkpoint.exists():
            parser.error(f"--resume: there is no {checkpoint}")
        run.load(checkpoint)
    train(run, train_split, test_split, options.epochs, options.batch_size, checkpoint)
    picture = checkpoint.with_suffix(".png")
    draw_curves(run.history, picture)
    accuracy = run.history[-1]["accuracy"]
    print(f"{options.network}: {accuracy:.2%} of {len(test_split.labels)} test images; curves in {picture}")
    if options.network == "condensenet":
        convert(run, test_split, options.output / "digits_condensed.pt")
    return 0 if accuracy >= TARGET else 1


if __name__ == "__main__":
    sys.exit(main())
