"""Modules: drop-in for their torch counterparts, with the same state_dict keys and initialisation."""

from .depthwise_conv2d import DepthwiseConv2d

__all__ = ["DepthwiseConv2d"]
