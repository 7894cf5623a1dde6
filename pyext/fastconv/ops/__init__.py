"""The public functions, one page an operator."""

from .cbam import average_max_pool, channel_pool, spatial_gate
from .channel_shuffle import channel_shuffle
from .concat_shuffle import concat_shuffle
from .deform_aggregate2d import deform_aggregate2d
from .deform_conv2d import deform_conv2d
from .depthwise_conv2d import depthwise_conv2d
from .grouped_conv2d import grouped_conv2d
from .split_attention_combine import split_attention_combine
from .split_attention_pool import split_attention_pool

__all__ = [
    "average_max_pool",
    "channel_pool",
    "channel_shuffle",
    "concat_shuffle",
    "deform_aggregate2d",
    "deform_conv2d",
    "depthwise_conv2d",
    "grouped_conv2d",
    "spatial_gate",
    "split_attention_combine",
    "split_attention_pool",
]
