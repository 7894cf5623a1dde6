"""The modules of fastconv.channel_shuffle and fastconv.concat_shuffle."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from ..ops.channel_shuffle import channel_shuffle
from ..ops.concat_shuffle import concat_shuffle


class ChannelShuffle(nn.ChannelShuffle):
    """`torch.nn.ChannelShuffle` on fastconv's kernels, with the same argument.

    Shapes: [N, C, ...] to the same; the memory format is kept.
    """

    def forward(self, input: Tensor) -> Tensor:
        return channel_shuffle(input, self.groups)


class ConcatShuffle(nn.Module):
    """`torch.cat(inputs, 1)` and `torch.nn.ChannelShuffle(groups)` in one pass: the end of a ShuffleNet V2 unit.

    Shapes: a list of [N, C_i, ...] to [N, sum of C_i, ...].
    """

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.groups = groups

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        return concat_shuffle(inputs, self.groups)

    def extra_repr(self) -> str:
        return f"groups={self.groups}"
