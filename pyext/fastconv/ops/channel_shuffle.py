"""All that Python knows of channel_shuffle: public function, checks, fake, autograd, vmap, FLOPs.

Autocast leaves it alone, as it does torch's own: no number is computed.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from .._register import register_autograd, suggest_memory_format, transformable

_op = torch.ops.fastconv.channel_shuffle


def channel_shuffle(input: Tensor, groups: int) -> Tensor:
    r"""Channel shuffle: the channels of `groups` groups, one of each in turn.

    With :math:`k = C / \text{groups}` channels a group,

    .. math:: y_{n,\, i \cdot \text{groups} + j} = x_{n,\, j k + i}, \qquad 0 \le i < k,\ 0 \le j < \text{groups}

    the same as ``torch.nn.functional.channel_shuffle``.

    Args:
        input: [N, C, ...], three or more dimensions, of any dtype; contiguous or channels_last (channels_last_3d),
            slices of larger tensors included.
        groups: a divisor of C.

    Returns:
        [N, C, ...] in the memory format of input.

    Gradients of any order are supported; all are shuffles.

    Raises:
        RuntimeError: names the argument and what was given, on a wrong rank or number of groups.

    Paper: Zhang et al., "ShuffleNet: An Extremely Efficient Convolutional Neural Network for Mobile Devices", CVPR
    2018.
    """
    return _shuffle(input, groups)


# ---------------------------------------------------------------------------------------------------------------------
# Checks. csrc/channel_shuffle/channel_shuffle.cpp is the authority for C++ kernels; this is the same in Python for the
# fake kernels and for Triton's. tests/test_channel_shuffle.py holds both to the same texts.


def check_rank(op: str, name: str, x: Tensor) -> None:
    if x.dim() < 3:
        raise RuntimeError(f"{op}: {name} must be [N, C, ...] with at least 3 dimensions, got {list(x.shape)}")


def check_groups(op: str, groups: int, channels: int, whose: str) -> None:
    if groups < 1:
        raise RuntimeError(f"{op}: groups must be at least 1, got {groups}")
    if channels % groups != 0:
        raise RuntimeError(f"{op}: groups must divide the {channels} channels of {whose}, got {groups}")


def check_arguments(op: str, input: Tensor, groups: int) -> None:
    check_rank(op, "input", input)
    check_groups(op, groups, input.shape[1], "input")


# ---------------------------------------------------------------------------------------------------------------------
# Fake kernel: shape, dtype and strides without data


@torch.library.register_fake("fastconv::channel_shuffle")
def _(input, groups):  # type: ignore[no-untyped-def]
    check_arguments("channel_shuffle", input, groups)
    return torch.empty(input.shape, dtype=input.dtype, device=input.device, memory_format=suggest_memory_format(input))


# ---------------------------------------------------------------------------------------------------------------------
# Autograd: shuffling by C / groups groups undoes shuffling by groups.


def _setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
    input, groups = inputs
    ctx.inverse_groups = max(input.shape[1] // groups, 1)  # without channels any number will do


def _backward(ctx: Any, grad: Tensor) -> tuple:
    return _shuffle(grad, ctx.inverse_groups), None


register_autograd("channel_shuffle", _backward, _setup_context)


# ---------------------------------------------------------------------------------------------------------------------
# vmap: examples are more batch.


def _vmap(info: Any, in_dims: tuple, input: Tensor, groups: int) -> tuple[Tensor, int]:
    x = input.movedim(in_dims[0], 0)
    return _shuffle(x.flatten(0, 1), groups).unflatten(0, x.shape[:2]), 0


torch.library.register_vmap("fastconv::channel_shuffle", _vmap)

_shuffle = transformable(_op, _backward, _setup_context, _vmap)


@register_flop_formula(_op)
def _(*args, out_shape=None, **kwargs) -> int:  # type: ignore[no-untyped-def]
    return 0
