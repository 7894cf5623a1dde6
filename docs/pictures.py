"""The pictures of the operators' pages: which input channels each output channel reads, and which pixels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

Edge = tuple[int, int]
GROUP_COLOURS = ("#4c78a8", "#f58518", "#54a24b", "#b279a2")


def draw(folder: Path) -> None:
    """Writes <operator>.svg of the operators that a picture explains."""
    folder.mkdir(exist_ok=True)
    _samples(folder / "deform_conv2d.svg")
    group = [i // 2 for i in range(6)]  # six channels in three groups
    dense = [(i, o) for i in range(6) for o in range(6)]
    grouped = [(i, o) for i, o in dense if group[i] == group[o]]
    shuffle = [3 * (c % 2) + c // 2 for c in range(6)]  # where channel c goes
    _save(
        folder / "depthwise_conv2d.svg",
        ("conv2d", dense, [0] * 6),
        ("depthwise_conv2d", [(c, c) for c in range(6)], list(range(6))),
    )
    _save(
        folder / "grouped_conv2d.svg",
        ("conv2d", dense, [0] * 6),
        ("groups=3", grouped, group),
        ("groups=3, shuffle=3", [(i, shuffle[o]) for i, o in grouped], group),
    )
    _save(
        folder / "channel_shuffle.svg",
        ("channel_shuffle, groups=3", [(c, shuffle[c]) for c in range(6)], group),
        ("concat_shuffle of 2 + 4 channels, groups=3", [(c, shuffle[c]) for c in range(6)], [0, 0, 1, 1, 1, 1]),
    )


def _save(file: Path, *panels: tuple[str, Sequence[Edge], Sequence[int]]) -> None:
    figure, axes = plt.subplots(1, len(panels), figsize=(3.2 * len(panels), 2.6), squeeze=False)
    for ax, (title, edges, colours) in zip(axes[0], panels, strict=True):
        _connections(ax, title, edges, colours)
    figure.tight_layout()
    figure.savefig(file)
    plt.close(figure)


def _connections(ax: Axes, title: str, edges: Sequence[Edge], colours: Sequence[int]) -> None:
    """Input channels above, output channels below, a line where one reads the other; colours are of the inputs."""
    channels = len(colours)
    for source, target in edges:
        ax.plot([source, target], [0.9, 0.1], color=_colour(colours[source]), linewidth=1)
    for channel in range(channels):
        ax.text(channel, 1, channel, ha="center", va="center", bbox=_box(_colour(colours[channel])))
        ax.text(channel, 0, channel, ha="center", va="center", bbox=_box("#888888"))
    ax.set_title(title, fontsize=9)
    ax.set_xlim(-0.6, channels - 0.4)
    ax.set_ylim(-0.2, 1.2)
    ax.axis("off")


def _samples(file: Path) -> None:
    """The nine taps of a 3x3 kernel at one output pixel: where a convolution reads, where offsets move them, and the
    pixels that one of these samples is interpolated from."""
    height, width, centre = 7, 9, (3, 4)
    offsets = [(-0.7, -1.4), (-1.2, 0.3), (-0.4, 1.6), (0.3, -1.7), (0.2, 0.4), (-0.3, 1.3), (0.8, -0.9), (1.4, -0.4),
               (0.6, 1.2)]  # fmt: skip
    taps = [(centre[0] + i - 1, centre[1] + j - 1) for i in range(3) for j in range(3)]
    samples = [(y + dy, x + dx) for (y, x), (dy, dx) in zip(taps, offsets, strict=True)]
    figure, ax = plt.subplots(figsize=(5.2, 4.2))
    pixels = [(y, x) for y in range(height) for x in range(width)]
    ax.scatter([x for _, x in pixels], [y for y, _ in pixels], s=12, color="#bbbbbb", label="pixels")
    ax.scatter([x for _, x in taps], [y for y, _ in taps], s=45, facecolors="none", edgecolors=GROUP_COLOURS[0],
               label="taps of a 3x3 convolution")  # fmt: skip
    for (y, x), (to_y, to_x) in zip(taps, samples, strict=True):
        ax.annotate("", (to_x, to_y), (x, y), arrowprops={"arrowstyle": "->", "color": "#999999"})
    ax.scatter([x for _, x in samples], [y for y, _ in samples], s=30, color=GROUP_COLOURS[1],
               label="samples: taps moved by offsets (y, x)")  # fmt: skip
    y, x = samples[2]
    corners = [(int(y) + i, int(x) + j) for i in range(2) for j in range(2)]
    for corner_y, corner_x in corners:
        ax.plot([x, corner_x], [y, corner_y], color=GROUP_COLOURS[2], linewidth=1)
    ax.scatter([x for _, x in corners], [y for y, _ in corners], s=20, color=GROUP_COLOURS[2],
               label="pixels of one sample, weighted bilinearly")  # fmt: skip
    ax.invert_yaxis()
    ax.set_aspect("equal")
    ax.axis("off")
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, 0.02), ncol=2, fontsize=7, frameon=False)
    figure.tight_layout()
    figure.savefig(file)
    plt.close(figure)


def _colour(group: int) -> str:
    return GROUP_COLOURS[group % len(GROUP_COLOURS)]


def _box(edge: str) -> dict[str, object]:
    return {"boxstyle": "square", "facecolor": "white", "edgecolor": edge}
