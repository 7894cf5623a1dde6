"""The public functions, one page an operator."""

from .channel_shuffle import channel_shuffle
from .concat_shuffle import concat_shuffle
from .depthwise_conv2d import depthwise_conv2d
from .grouped_conv2d import grouped_conv2d

__all__ = ["channel_shuffle", "concat_shuffle", "depthwise_conv2d", "grouped_conv2d"]
