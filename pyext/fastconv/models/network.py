"""What all networks share: stages of falling size, a head, and the use as a backbone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

Step = Any
"""A module, or a function, from a map to a map. mypy takes an attribute of a module for a Tensor or a Module."""


@dataclass(frozen=True)
class FeatureInfo:
    """Channels and reductions of the feature maps that a backbone gives, as timm's class of this name has them."""

    all_channels: Sequence[int]
    all_reductions: Sequence[int]
    out_indices: Sequence[int]

    def channels(self) -> list[int]:
        return [self.all_channels[i] for i in self.out_indices]

    def reduction(self) -> list[int]:
        """The image's size over the map's."""
        return [self.all_reductions[i] for i in self.out_indices]


class Network(nn.Module):
    """A classifier, or after `keep_features` a backbone.

    A network names its modules as its peer does and says in `feature_stages` how they follow one another: a list of
    steps for each size of map. `forward_head` makes the classes from the last map. `head_modules` are the names of what
    only the head needs, the classifier last.

    Shapes: [N, in_chans, H, W] to [N, num_classes]; as a backbone to a list of [N, C_i, H_i, W_i].
    """

    head_modules: tuple[str, ...] = ("fc",)

    def __init__(self, num_classes: int, in_chans: int) -> None:
        super().__init__()
        self.num_classes, self.in_chans = num_classes, in_chans
        self.out_indices: list[int] | None = None

    def feature_stages(self) -> list[list[Step]]:
        raise NotImplementedError

    def forward_head(self, x: Tensor) -> Tensor:
        """Global average pooling and the classifier; networks with another head have their own."""
        return self.get_classifier()(x.mean((2, 3)))

    def forward(self, input: Tensor) -> Tensor | list[Tensor]:
        x, maps = input, []
        last = None if self.out_indices is None else max(self.out_indices)
        for i, stage in enumerate(self.feature_stages()):
            for step in stage:
                x = step(x)
            if last is not None:
                maps.append(x)
                if i == last:
                    return [maps[index] for index in self.out_indices]  # type: ignore[union-attr]
        return self.forward_head(x)

    def get_classifier(self) -> nn.Module:
        return getattr(self, self.head_modules[-1])

    def keep_features(self, out_indices: Sequence[int] | None = None) -> None:
        """Makes a backbone of the network: it loses its head and gives the maps of these stages.

        Raises:
            ValueError: there is no such stage.
        """
        count = len(self.feature_stages())
        wanted = range(count) if out_indices is None else out_indices
        if not wanted or any(not -count <= i < count for i in wanted):
            raise ValueError(f"out_indices must be of the {count} stages, got {list(wanted)}")
        self.out_indices = [i % count for i in wanted]
        for name in self.head_modules:
            setattr(self, name, None)

    @property
    def feature_info(self) -> FeatureInfo:
        """What the maps are, found by running the network on shapes alone."""
        size, channels, reductions = 256, [], []
        wanted, training = self.out_indices, [m for m in self.modules() if m.training]
        self.eval()
        self.out_indices = list(range(len(self.feature_stages())))
        try:
            state = {name: x.to("meta") for name, x in self.state_dict(keep_vars=True).items()}
            dtype = next(iter(self.parameters())).dtype
            image = torch.empty(1, self.in_chans, size, size, device="meta", dtype=dtype)
            for x in torch.func.functional_call(self, state, (image,)):
                channels.append(x.shape[1])
                reductions.append(size // x.shape[3])
        finally:
            self.out_indices = wanted
            for module in training:
                module.training = True
        return FeatureInfo(channels, reductions, range(len(channels)) if wanted is None else wanted)


def make_classifier(features: int, num_classes: int) -> nn.Module:
    return nn.Linear(features, num_classes) if num_classes else nn.Identity()


def rising_rates(last: float, count: int) -> list[float]:
    """From 0 to `last`: of stochastic depth, which deeper blocks have more of."""
    return [last * i / max(count - 1, 1) for i in range(count)]
