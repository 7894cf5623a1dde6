"""Descriptions of tensors, and the tensors made of them."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

FLOATS = ("float32", "float64", "bfloat16", "float16")
DTYPES = (
    *FLOATS, "bool", "uint8", "int8", "int16", "int32", "int64", "complex64", "complex128", "float8_e5m2",
    "float8_e4m3fn",
)  # fmt: skip
LAYOUTS = (
    "contiguous", "channels_last", "slice", "channels_last_slice", "offset", "reversed", "every_other", "expanded",
    "expanded_all", "overlapping", "negated",
)  # fmt: skip
VALUES = ("whole", "quarters", "between", "special")

MOST_ELEMENTS = 1 << 22
"""Tensors of more are views of a few elements, expanded."""


@dataclass(frozen=True)
class Drawn:
    """The description of a tensor."""

    shape: tuple[int, ...]
    dtype: str = "float32"
    layout: str = "contiguous"
    values: str = "whole"
    seed: int = 0
    device: str = "cpu"

    @property
    def is_huge(self) -> bool:
        return max((math.prod(self.shape), *self.shape)) > MOST_ELEMENTS

    def make(self) -> Tensor:
        if self.is_huge:
            small = tuple(1 if size > 4096 else size for size in self.shape)
            return replace(self, shape=small).make().expand(self.shape)
        x = arrange(fill(self.shape, getattr(torch, self.dtype), self.values, self.seed), self.layout, self.seed)
        return x if self.device == "cpu" else meta(x)


def meta(x: Tensor) -> Tensor:
    return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="meta")


def fill(shape: tuple[int, ...], dtype: torch.dtype, values: str, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)

    def random(low: int, high: int) -> Tensor:
        return torch.randint(low, high + 1, shape, generator=generator)

    match values:
        case "whole":
            result = random(0, 1) if dtype == torch.bool else random(0 if dtype == torch.uint8 else -2, 2)
        case "quarters":
            result = random(-14, 14) / 4
        case "between":  # never a whole number
            result = random(-4, 4) + random(1, 3) / 4
        case "special":
            special = torch.tensor([math.nan, math.inf, -math.inf, -0.0])[random(0, 3)]
            result = torch.where(random(0, 9) == 0, special, random(-2, 2))
        case _:
            raise ValueError(values)
    return result.to(dtype)


def arrange(x: Tensor, layout: str, seed: int = 0) -> Tensor:
    """The values in a layout, or, where elements share memory or are negated, values like them. Around a slice there is
    what shows if it is read."""
    spatial = {4: torch.channels_last, 5: torch.channels_last_3d}.get(x.dim(), torch.contiguous_format)
    outside: Any = 1 if x.dtype == torch.bool else math.nan if x.is_floating_point() else 99
    match layout:
        case "contiguous":
            return x
        case "channels_last":
            return x.contiguous(memory_format=spatial)
        case "slice" | "channels_last_slice":
            format = spatial if layout.startswith("channels_last") else torch.contiguous_format
            larger = torch.full([size + 3 for size in x.shape], outside, dtype=x.dtype).contiguous(memory_format=format)
            return larger[tuple(slice(1 + d % 3, 1 + d % 3 + size) for d, size in enumerate(x.shape))].copy_(x)
        case "offset":
            storage = torch.full((x.numel() + 2,), outside, dtype=x.dtype)
            return storage[1 : 1 + x.numel()].copy_(x.flatten()).view(x.shape)
        case "reversed":
            order = list(reversed(range(x.dim())))
            return x.permute(order).contiguous().permute(order)
        case "every_other":
            if x.dim() == 0:
                return x
            larger = torch.full((*x.shape[:-1], 2 * x.shape[-1] + 1), outside, dtype=x.dtype)
            return larger[..., 1::2].copy_(x)
        case "expanded":
            if x.dim() == 0 or x.numel() == 0:
                return x
            return x.narrow(seed % x.dim(), 0, 1).expand(x.shape)
        case "expanded_all":
            return x.flatten()[:1].clone().view([1] * x.dim()).expand(x.shape) if x.numel() else x
        case "overlapping":  # x[i, j, ...] is element i + j + ... of the storage
            if x.numel() == 0:
                return x
            return x.flatten()[: sum(x.shape) - x.dim() + 1].clone().as_strided(x.shape, [1] * x.dim())
        case "negated":  # a view whose negation is pending
            if not x.is_floating_point() or x.dtype.itemsize < 4:
                return x
            return torch.complex(torch.zeros_like(x), x).conj().imag
    raise ValueError(layout)
