"""The statement of truth for fastconv.channel_pool, fastconv.average_max_pool and fastconv.spatial_gate."""

from __future__ import annotations

import torch
from torch import Tensor


def channel_pool(input: Tensor) -> Tensor:
    return torch.cat([input.mean(1, keepdim=True), input.amax(1, keepdim=True)], 1)


def average_max_pool(input: Tensor) -> Tensor:
    return torch.stack([input.mean((2, 3)), input.amax((2, 3))], 1)


def spatial_gate(input: Tensor, logits: Tensor) -> Tensor:
    return input * logits.sigmoid()
