"""Modules: drop-in for their torch counterparts, with the same state_dict keys and initialisation."""

from .channel_shuffle import ChannelShuffle, ConcatShuffle
from .depthwise_conv2d import DepthwiseConv2d
from .grouped_conv2d import GroupedConv2d
from .split_attention import SelectiveKernel, SplitAttention, SplitAttentionConv2d, SqueezeExcite

__all__ = [
    "ChannelShuffle",
    "ConcatShuffle",
    "DepthwiseConv2d",
    "GroupedConv2d",
    "SelectiveKernel",
    "SplitAttention",
    "SplitAttentionConv2d",
    "SqueezeExcite",
]
