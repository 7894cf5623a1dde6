"""The cases of channel_shuffle and concat_shuffle.

Sizes are easy to confuse on purpose: height unlike width, parts of unlike channels. The truth is a permutation, so
results are compared bit by bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# One of every element size, and those that torch treats specially.
DTYPES = (
    torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.bool, torch.uint8, torch.int8, torch.int16,
    torch.int32, torch.int64, torch.complex64, torch.complex128,
)  # fmt: skip
SIZES = (torch.int8, torch.bfloat16, torch.float32, torch.int64, torch.complex128)
LAYOUTS = ("nchw", "channels_last", "nchw_slice", "channels_last_slice", "nchw_offset", "channels_last_offset")


@dataclass(frozen=True)
class Case:
    """A concatenation of parts of these channels, shuffled. With one part, a channel shuffle."""

    channels: tuple[int, ...]
    groups: int
    size: tuple[int, ...] = (3, 5)
    batch: int = 2

    def __str__(self) -> str:
        channels = "+".join(map(str, self.channels))
        return f"{self.batch}x{channels}x{'x'.join(map(str, self.size))}g{self.groups}"

    @property
    def all_channels(self) -> int:
        return sum(self.channels)

    def shape(self, channels: int) -> tuple[int, ...]:
        return self.batch, channels, *self.size


SHUFFLES = [
    # Streams of every number that kernels have code for, and numbers made up of those.
    *(Case((groups * 20,), groups) for groups in (1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 16, 20)),
    # Groups of few channels: the reverse of the above.
    *(Case((groups * 37,), 37 * groups // k) for groups, k in ((2, 2), (3, 3), (4, 4), (8, 8), (37, 37), (5, 1))),
    Case((1,), 1),
    Case((6,), 2),
    Case((6,), 3, size=(1, 1)),
    Case((24,), 3, size=(7, 4)),
    Case((58,), 2, size=(5, 4), batch=1),
    Case((116,), 2, size=(3, 4)),
    Case((240,), 3, size=(2, 5)),
    Case((77,), 7, size=(7, 7), batch=3),
    Case((136,), 8, size=(1, 9), batch=1),
    # Planes shorter and longer than vectors, and longer than what is copied by memcpy.
    Case((6,), 3, size=(1, 70)),
    Case((4,), 2, size=(31, 21), batch=1),
    # Without batch, channels or pixels.
    Case((6,), 2, batch=0),
    Case((0,), 2),
    Case((6,), 2, size=(0, 4)),
    # torch takes these too: sequences, volumes and more.
    Case((12,), 3, size=(7,)),
    Case((12,), 4, size=(2, 3, 5)),
    Case((40,), 2, size=(3, 2, 4), batch=3),
    Case((6,), 2, size=(2, 3, 1, 4)),
]
CONCATS = [
    Case((58, 58), 2, size=(5, 4)),
    Case((24, 24), 2, size=(3, 4)),
    Case((3, 5), 2),
    Case((5, 3), 4, batch=3),
    Case((7, 20, 5), 2, size=(2, 7)),
    Case((30, 1, 29), 3),
    Case((8, 16, 24, 48), 8, batch=1),
    Case((1, 2, 3, 4, 5), 5),
    Case((17, 13), 1),
    Case((17, 13), 30),
    Case((40, 40, 40, 40), 40),
    Case((0, 6, 0, 3), 3),
    Case((0, 0), 4),
    Case((6,), 3),
    Case((4, 4), 2, batch=0),
    Case((4, 4), 2, size=(0, 3)),
    Case(tuple(range(1, 21)), 6),  # more parts than one pass of kernels takes
    Case((3,) * 33, 9, size=(2, 3), batch=1),
    Case((8, 4), 3, size=(5,)),
    Case((8, 4), 3, size=(2, 3, 4)),
    Case((2, 4), 3, size=(2, 1, 3, 4)),
]


def memory_format(layout: str, dims: int) -> torch.memory_format:
    """What a layout means for a tensor of so many dimensions."""
    if layout.startswith("channels_last") and dims in (4, 5):
        return torch.channels_last if dims == 4 else torch.channels_last_3d
    return torch.contiguous_format


def format_of(dense: Tensor) -> torch.memory_format:
    """The one that a dense tensor has; contiguous if it has both."""
    return torch.contiguous_format if dense.is_contiguous() else memory_format("channels_last", dense.dim())


def arrange(values: Tensor, layout: str) -> Tensor:
    """The same values in a layout. What surrounds a slice would show if it were read."""
    format = memory_format(layout, values.dim())
    if layout.endswith("_slice"):
        larger = values.new_full([size + 3 for size in values.shape], 77).contiguous(memory_format=format)
        return larger[tuple(slice(1 + d % 3, 1 + d % 3 + size) for d, size in enumerate(values.shape))].copy_(values)
    if layout.endswith("_offset"):  # dense, but not aligned to more than an element
        storage = values.new_full((values.numel() + 2,), 77)
        strides = torch.empty(values.shape, device="meta").contiguous(memory_format=format).stride()
        return storage.as_strided(values.shape, strides, 1).copy_(values)
    if layout == "transposed":  # the last two dimensions exchanged: no stride of 1 where a kernel expects it
        return values.transpose(-1, -2).contiguous().transpose(-1, -2)
    if layout == "expanded":
        return values[..., :1].expand(values.shape)
    return values.contiguous(memory_format=format)


def draw(shape: Sequence[int], dtype: torch.dtype, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    if dtype == torch.bool:
        return torch.randint(0, 2, shape, generator=generator).bool()
    if dtype.is_complex:
        return torch.complex(*(torch.randn(shape, generator=generator, dtype=torch.float64) for _ in "ri")).to(dtype)
    return (100 * torch.randn(shape, generator=generator, dtype=torch.float64)).to(dtype)


def parts(case: Case, dtype: torch.dtype, layout: str, device: str = "cpu") -> list[Tensor]:
    values = (draw(case.shape(channels), dtype, seed) for seed, channels in enumerate(case.channels))
    return [arrange(x.to(device), layout) for x in values]


def assert_same(actual: Tensor, expected: Tensor, format: torch.memory_format) -> None:
    assert actual.dtype == expected.dtype
    assert torch.equal(actual, expected.to(actual.device))
    assert actual.is_contiguous(memory_format=format)
