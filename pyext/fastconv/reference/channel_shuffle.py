"""The statement of truth for fastconv.channel_shuffle and fastconv.concat_shuffle."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def channel_shuffle(input: Tensor, groups: int) -> Tensor:
    """Takes one channel of each group in turn."""
    channels = input.shape[1]
    order = [j * (channels // groups) + i for i in range(channels // groups) for j in range(groups)]
    return input[:, order]


def concat_shuffle(inputs: Sequence[Tensor], groups: int) -> Tensor:
    return channel_shuffle(torch.cat(tuple(inputs), 1), groups)
