"""The learned group convolution of CondenseNet, and what it is converted to."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..ops import grouped_conv2d


class LearnedGroupConv2d(nn.Module):
    """A pointwise convolution that learns which inputs each group of its outputs needs, and loses the others.

    Output o belongs to group o % groups. In `condense_factor` - 1 steps, each group loses the 1 / condense_factor of
    its inputs whose weights are the smallest in sum of magnitudes, until it has 1 / condense_factor of them left;
    `to_grouped` then gives the same function as an index and a grouped convolution. A training loop calls
    `condense_to(progress)` as it goes and adds `group_lasso()` to its loss, which makes a group's weights of one input
    small together.

    Shapes: [N, in_channels, H, W] to [N, out_channels, H, W].

    Raises:
        ValueError: groups does not divide out_channels, or condense_factor in_channels.

    Paper: Huang et al., "CondenseNet: An Efficient DenseNet using Learned Group Convolutions", CVPR 2018.
    """

    mask: Tensor  # [groups, in_channels]: the inputs that each group still has

    def __init__(
        self, in_channels: int, out_channels: int, groups: int = 4, condense_factor: int | None = None,
        bias: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        factor = groups if condense_factor is None else condense_factor
        if groups < 1 or out_channels % groups:
            raise ValueError(f"LearnedGroupConv2d: groups must divide out_channels ({out_channels}), got {groups}")
        if factor < 1 or in_channels % factor:
            raise ValueError(
                f"LearnedGroupConv2d: condense_factor must divide in_channels ({in_channels}), got {factor}"
            )
        self.in_channels, self.out_channels, self.groups, self.condense_factor = (
            in_channels, out_channels, groups, factor
        )  # fmt: skip
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels, 1, 1))
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None
        nn.init.kaiming_normal_(self.weight)
        self.register_buffer("mask", torch.ones(groups, in_channels))

    @property
    def stage(self) -> int:
        """How many of the condense_factor - 1 steps have been made."""
        kept = int(self.mask[0].sum())
        return self.condense_factor - kept * self.condense_factor // self.in_channels

    def condense_to(self, progress: float) -> bool:
        """Makes the steps that are due when `progress`, 0 to 1, of the training is done: the last one at one half.

        Returns whether there were any.
        """
        steps = self.condense_factor - 1
        due = min(int(progress * 2 * steps + 1e-9), steps)
        made = self.stage
        for _ in range(made, due):
            self._condense()
        return due > made

    @torch.no_grad()
    def _condense(self) -> None:
        magnitudes = self._by_group(self.weight.abs()).sum(0)  # [groups, in_channels]
        magnitudes = magnitudes.masked_fill(self.mask == 0, torch.inf)
        lost = magnitudes.argsort(dim=1, stable=True)[:, : self.in_channels // self.condense_factor]
        self.mask.scatter_(1, lost, 0.0)

    def group_lasso(self) -> Tensor:
        """The sum over groups and inputs of the norm of a group's weights of an input."""
        square = self._by_group(self._masked()).square().sum(0)
        # The root of what was lost has no derivative.
        return torch.where(square > 0, square, 1).sqrt().where(square > 0, 0).sum()

    def _by_group(self, weight: Tensor) -> Tensor:
        return weight.view(-1, self.groups, self.in_channels)

    def _masked(self) -> Tensor:
        return (self._by_group(self.weight) * self.mask).view_as(self.weight)

    def forward(self, input: Tensor) -> Tensor:
        return nn.functional.conv2d(input, self._masked(), self.bias)

    @torch.no_grad()
    def to_grouped(self) -> IndexedGroupedConv2d:
        """The same function, with weights only for the inputs that are left.

        Raises:
            RuntimeError: steps are left to be made.
        """
        if self.stage != self.condense_factor - 1:
            raise RuntimeError(
                f"LearnedGroupConv2d.to_grouped: needs {self.condense_factor - 1} condensing steps, got {self.stage}"
            )
        kept = self.mask.argsort(dim=1, descending=True, stable=True)[:, : self.in_channels // self.condense_factor]
        kept = kept.sort(1).values  # [groups, kept]
        module = IndexedGroupedConv2d(kept.numel(), self.out_channels, self.groups, self.bias is not None)
        module.to(self.weight.device, self.weight.dtype)
        module.index.copy_(kept.flatten())
        weight = self._by_group(self.weight).transpose(0, 1)  # [groups, out_channels / groups, in_channels]
        weight = weight.gather(2, kept[:, None].expand(-1, weight.shape[1], -1))
        module.weight.copy_(weight.reshape(module.weight.shape))
        if self.bias is not None and module.bias is not None:  # of shuffled outputs, as the weight's rows are
            module.bias.copy_(self.bias.view(-1, self.groups).t().flatten())
        return module.train(self.training)

    def extra_repr(self) -> str:
        text = f"{self.in_channels}, {self.out_channels}, groups={self.groups}"
        return f"{text}, condense_factor={self.condense_factor}, stage={self.stage}"


class IndexedGroupedConv2d(nn.Module):
    """A selection of input channels and a pointwise grouped convolution of them, its output shuffled by its groups.

    Args:
        selected_channels: how many channels `index` names; the input may have any number of them.

    Shapes: [N, C, H, W] to [N, out_channels, H, W].
    """

    index: Tensor

    def __init__(self, selected_channels: int, out_channels: int, groups: int, bias: bool = False) -> None:
        super().__init__()
        if groups < 1 or selected_channels % groups or out_channels % groups:
            channels = f"{selected_channels} and {out_channels} channels"
            raise ValueError(f"IndexedGroupedConv2d: groups must divide {channels}, got {groups}")
        self.groups = groups
        self.weight = nn.Parameter(torch.empty(out_channels, selected_channels // groups, 1, 1))
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None
        nn.init.kaiming_normal_(self.weight)
        self.register_buffer("index", torch.arange(selected_channels))

    def forward(self, input: Tensor) -> Tensor:
        x = input.index_select(1, self.index)
        return grouped_conv2d(x, self.weight, self.bias, groups=self.groups, shuffle=self.groups)

    def extra_repr(self) -> str:
        out_channels, width = self.weight.shape[:2]
        return f"{width * self.groups}, {out_channels}, groups={self.groups}"


def learned_groups(model: nn.Module) -> list[LearnedGroupConv2d]:
    """Every learned group convolution of a model."""
    return [module for module in model.modules() if isinstance(module, LearnedGroupConv2d)]


def condense(model: nn.Module) -> nn.Module:
    """Replaces every LearnedGroupConv2d of a model whose condensing is done by its grouped form; returns the model.

    Raises:
        RuntimeError: one has condensing steps left.
    """

    def replaced(module: nn.Module) -> Any:
        if isinstance(module, LearnedGroupConv2d):
            return module.to_grouped()
        for name, child in module.named_children():
            setattr(module, name, replaced(child))
        return module

    return replaced(model)
