"""The public functions, one page an operator."""

from .depthwise_conv2d import depthwise_conv2d
from .grouped_conv2d import grouped_conv2d

__all__ = ["depthwise_conv2d", "grouped_conv2d"]
