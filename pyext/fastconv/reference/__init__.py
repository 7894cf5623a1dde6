"""Plain torch statements of what each operator computes: slow, differentiable, obviously right."""

from .depthwise_conv2d import depthwise_conv2d
from .grouped_conv2d import grouped_conv2d

__all__ = ["depthwise_conv2d", "grouped_conv2d"]
