"""Modules: drop-in for their torch counterparts, with the same state_dict keys and initialisation.

The blocks that networks are made of name their parameters as torchvision or timm does where it has them.
"""

from .cbam import CBAM, LightCBAM
from .channel_shuffle import ChannelShuffle, ConcatShuffle
from .conv_norm import ConvNormAct, make_conv2d
from .deform_aggregate2d import DCNv3, DCNv4
from .deform_conv2d import DeformConv2d, DeformConv2dPack
from .dense import DenseBlock, DenseLayer, DenseTransition
from .depthwise_conv2d import DepthwiseConv2d
from .grouped_conv2d import GroupedConv2d
from .inception_block import InceptionBlock
from .inverted_residual import InvertedResidual, InvertedResidualV3
from .learned_group_conv2d import IndexedGroupedConv2d, LearnedGroupConv2d, condense, learned_groups
from .reparam_large_kernel import ReparamLargeKernelConv2d
from .residual import (
    BasicBlock,
    Bottleneck,
    SelectiveKernelBottleneck,
    ShakeShake,
    ShakeShakeBlock,
    SplitAttentionBottleneck,
    WideDropoutBlock,
)
from .separable import DepthwiseSeparable, DepthwiseSeparableConv2d, PointwiseConv2d, SpatiallySeparableConv2d
from .shuffle_unit import ShuffleUnitV1, ShuffleUnitV2
from .split_attention import SelectiveKernel, SplitAttention, SplitAttentionConv2d, SqueezeExcite
from .xception_block import XceptionBlock

__all__ = [
    "CBAM",
    "BasicBlock",
    "Bottleneck",
    "ChannelShuffle",
    "ConcatShuffle",
    "ConvNormAct",
    "DCNv3",
    "DCNv4",
    "DeformConv2d",
    "DeformConv2dPack",
    "DenseBlock",
    "DenseLayer",
    "DenseTransition",
    "DepthwiseConv2d",
    "DepthwiseSeparable",
    "DepthwiseSeparableConv2d",
    "GroupedConv2d",
    "InceptionBlock",
    "IndexedGroupedConv2d",
    "InvertedResidual",
    "InvertedResidualV3",
    "LearnedGroupConv2d",
    "LightCBAM",
    "PointwiseConv2d",
    "ReparamLargeKernelConv2d",
    "SelectiveKernel",
    "SelectiveKernelBottleneck",
    "ShakeShake",
    "ShakeShakeBlock",
    "ShuffleUnitV1",
    "ShuffleUnitV2",
    "SpatiallySeparableConv2d",
    "SplitAttention",
    "SplitAttentionBottleneck",
    "SplitAttentionConv2d",
    "SqueezeExcite",
    "WideDropoutBlock",
    "XceptionBlock",
    "condense",
    "learned_groups",
    "make_conv2d",
]
