"""The pictures of the operators' pages: which input channels each output channel reads."""

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
    """Writes <operator>.svg of the operators whose channels a picture explains."""
    folder.mkdir(exist_ok=True)
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


def _colour(group: int) -> str:
    return GROUP_COLOURS[group % len(GROUP_COLOURS)]


def _box(edge: str) -> dict[str, object]:
    return {"boxstyle": "square", "facecolor": "white", "edgecolor": edge}
