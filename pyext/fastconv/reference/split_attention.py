"""The statement of truth for fastconv.split_attention_pool and fastconv.split_attention_combine."""

from __future__ import annotations

import torch
from torch import Tensor


def split_attention_pool(input: Tensor, radix: int) -> Tensor:
    """Adds the splits, then averages over the pixels."""
    return sum(input.chunk(radix, 1)).mean((2, 3))  # type: ignore[union-attr]


def split_attention_combine(input: Tensor, logits: Tensor, radix: int, cardinality: int = 1) -> Tensor:
    """Goes through the groups one by one."""
    channels = input.shape[1] // radix
    outputs = []
    for group in torch.arange(channels).view(cardinality, channels // cardinality):
        splits = torch.stack([input[:, r * channels + group] for r in range(radix)])
        # The logits of a group are those of its first split, then those of its second, ...
        first = int(group[0]) * radix if len(group) else 0
        scores = torch.stack([logits[:, first + r * len(group) : first + (r + 1) * len(group)] for r in range(radix)])
        attention = torch.sigmoid(scores) if radix == 1 else torch.softmax(scores, 0)
        outputs.append((attention[..., None, None] * splits).sum(0))
    return torch.cat(outputs, 1)
