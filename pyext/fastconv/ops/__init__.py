"""The public functions, one page an operator."""

from .depthwise_conv2d import depthwise_conv2d

__all__ = ["depthwise_conv2d"]
