"""Runs grouped_conv2d's Triton kernels on CPU tensors in Triton's interpreter, against torch's in float64.

Not collected by itself: see triton_interpreter_depthwise_conv2d_cases.py.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, replace

import pytest
import torch
import torch.nn.functional as F
import triton.language as tl
from fastconv.ops.grouped_conv2d import check_arguments
from fastconv.triton_kernels import grouped_conv2d as kernels
from triton_interpreter import ACTIVATIONS, DTYPES, assert_close, make_map

conv, input_grad, weight_grad, backward = kernels.implementations().values()
DIRECTIONS = ("forward", "input_grad", "weight_grad")


@dataclass(frozen=True)
class Case:
    batch: int = 1
    groups: int = 3
    channels: int = 2  # of a group
    outputs: int = 3  # of a group
    size: tuple[int, int] = (3, 4)
    kernel: tuple[int, int] = (3, 2)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (1, 0)
    dilation: tuple[int, int] = (1, 1)
    shuffle: int = 1

    def __str__(self) -> str:
        changed = (f.name for f in dataclasses.fields(self) if getattr(self, f.name) != f.default)
        return "-".join(f"{name}{getattr(self, name)}".replace(" ", "") for name in changed) or "default"

    @property
    def geometry(self) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int], int]:
        return self.stride, self.padding, self.dilation, self.groups


GEOMETRIES = [
    Case(batch=3, channels=4, outputs=1),
    Case(stride=(2, 1), dilation=(2, 1), shuffle=3),
    Case(stride=(1, 2), padding=(2, 3), groups=2, channels=3, shuffle=2),
    Case(stride=(3, 2), kernel=(2, 5), padding=(0, 2), groups=2, size=(5, 4), shuffle=6),
    Case(kernel=(1, 1), padding=(0, 0), channels=5, outputs=4, size=(2, 5), shuffle=4),
    Case(padding=(5, 4), size=(2, 3), groups=2, outputs=1),  # tiles that see only padding
    Case(groups=5, channels=1, outputs=2, shuffle=2, kernel=(2, 2)),
    Case(groups=1, channels=2, outputs=3, size=(0, 3), padding=(2, 1)),  # no pixels, which torch's own takes not
    Case(batch=0),
]
WIDE = [
    Case(groups=2, channels=16, outputs=16, kernel=(2, 1), padding=(1, 0), size=(3, 6), shuffle=2),
    Case(batch=2, groups=2, channels=19, outputs=17, kernel=(1, 2), stride=(2, 1), size=(3, 9)),
]
BY_OTHERS = [
    Case(groups=4, channels=1, outputs=2),  # depthwise_conv2d
    Case(groups=1, shuffle=3),  # torch
    Case(groups=2, channels=34, outputs=2, shuffle=2, kernel=(1, 1), padding=(0, 0)),
]


def small_plan(plan: kernels.Plan, direction: str) -> kernels.Plan:
    """The default plan with blocks so small that tiles of these cases meet all of their boundaries."""
    if plan.kernel == "dot":
        return replace(plan, block_p=16, block_k=16, block_n=16, splits=min(plan.splits, 2))
    return replace(
        plan, block_g=min(plan.block_g, 2), block_p=8, results=min(plan.results, 2), taps=min(plan.taps, 2),
        splits=min(plan.splits, 2) if direction != "weight_grad" else 2,
    )  # fmt: skip


def truth(case: Case, x, w, b, gy, activation):  # type: ignore[no-untyped-def]
    """(y, gx, gw) by torch; the gradients are those of the convolution without activation."""
    x, w = x.detach().clone().requires_grad_(), w.detach().clone().requires_grad_()
    y = F.conv2d(F.pad(x, case.padding[1:] * 2 + case.padding[:1] * 2), w, b, case.stride, 0, *case.geometry[2:])
    y = y.unflatten(1, (case.shuffle, -1)).transpose(1, 2).flatten(1, 2)
    y.backward(gy)
    return ACTIVATIONS[activation](y.detach()), x.grad, w.grad


def run_case(
    case: Case, layout: str, dtype: torch.dtype, activation: str = "none", default_plans: bool = False
) -> None:
    channels, out_channels = case.groups * case.channels, case.groups * case.outputs
    x = make_map((case.batch, channels, *case.size), layout, dtype, seed=1)
    weight = make_map((out_channels, case.channels, *case.kernel), "nchw", dtype, seed=2, scale=0.5)
    b = make_map((out_channels, 1, 1, 1), "nchw", dtype, seed=3).flatten()
    g = check_arguments("grouped_conv2d", x, weight, b, *case.geometry, activation, case.shuffle)
    gy = make_map((case.batch, out_channels, g.out_height, g.out_width), layout, dtype, seed=4)
    if default_plans:
        y = conv(x, weight, b, *case.geometry, activation, case.shuffle)
        gx = input_grad(gy, x, weight, *case.geometry, case.shuffle)
        gw = weight_grad(gy, x, weight, *case.geometry, case.shuffle, True)
    else:
        plans = [small_plan(kernels.default_plan(direction, g, dtype), direction) for direction in DIRECTIONS]
        y = kernels.launch_forward(x, weight, b, g, activation, plans[0])
        gx = kernels.launch_input_grad(gy, x, weight, g, plans[1])
        gw = kernels.launch_weight_grad(gy, x, g, plans[2])

    assert {t.dtype for t in (y, gx, gw)} == {dtype}
    memory_format = torch.channels_last if g.channels_last else torch.contiguous_format
    assert y.is_contiguous(memory_format=memory_format) and gx.is_contiguous(memory_format=memory_format)
    expected = truth(case, x.double(), weight.double(), b.double(), gy.double(), activation)
    peers = (None,) * 3 if dtype == torch.float64 else truth(case, x, weight, b, gy, activation)
    for actual, wanted, peer in zip((y, gx, gw), expected, peers):
        assert_close(actual, wanted, peer)


def kernel_of(case: Case, dtype: torch.dtype) -> str:
    x = torch.empty(case.batch, case.groups * case.channels, *case.size, dtype=dtype)
    weight = torch.empty(case.groups * case.outputs, case.channels, *case.kernel, dtype=dtype)
    g = check_arguments("grouped_conv2d", x, weight, None, *case.geometry, "none", case.shuffle)
    [kernel] = {kernels.default_plan(direction, g, dtype).kernel for direction in DIRECTIONS}
    return kernel


@pytest.mark.parametrize("layout", ["nchw slice", "channels_last slice"])
@pytest.mark.parametrize("case", [*GEOMETRIES, WIDE[1]], ids=str)
def test_geometry(case: Case, layout: str) -> None:
    assert kernel_of(case, torch.float64) == "lanes"
    run_case(case, layout, torch.float64)


@pytest.mark.parametrize("layout", ["nchw slice", "channels_last slice"])
@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
@pytest.mark.parametrize("case", WIDE, ids=str)
def test_products(case: Case, dtype: torch.dtype, layout: str) -> None:
    assert kernel_of(case, dtype) == "dot"
    run_case(case, layout, dtype, "silu")


@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
@pytest.mark.parametrize("case", [*GEOMETRIES[:2], *WIDE, *BY_OTHERS], ids=str)
def test_default_plan(case: Case, layout: str) -> None:
    run_case(case, layout, torch.float32, default_plans=True)


def test_what_serves_a_call() -> None:
    assert [kernel_of(case, torch.float32) for case in BY_OTHERS] == ["depthwise", "torch", "torch"]
    assert kernel_of(replace(BY_OTHERS[0], shuffle=2), torch.float32) == "lanes"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activation(activation: str, dtype: torch.dtype) -> None:
    layout = ["nchw", "channels_last"][list(ACTIVATIONS).index(activation) % 2]
    run_case(Case(stride=(2, 1), groups=2, channels=1, shuffle=2), layout, dtype, activation, default_plans=True)


@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
@pytest.mark.parametrize("case", [Case(stride=(2, 1), shuffle=3), WIDE[0]], ids=str)
def test_offsets_of_64_bits(case: Case, layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "_index_type", lambda *args: tl.int64)
    run_case(case, layout, torch.float32)


def test_tensors_that_need_64_bits() -> None:
    x, w = torch.empty(1, 4, 8, 8, device="meta"), torch.empty(4, 2, 3, 3, device="meta")
    g = check_arguments("op", x, w, None, (1, 1), (1, 1), (1, 1), 2)
    assert kernels._index_type(g, x) is tl.int32
    assert kernels._index_type(g, x, x.as_strided(x.shape, (1, 2**30, 8, 1))) is tl.int64
    assert kernels._index_type(replace(g, padding=(1, 2**29)), x) is tl.int64


@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
@pytest.mark.parametrize("case", [Case(groups=2, padding=(1, 1)), replace(WIDE[0], padding=(1, 0))], ids=str)
def test_infinite_values_stay_where_they_are(case: Case, layout: str) -> None:
    """A pixel reaches the results of its group that read it; a gradient does not meet the zeros of the padding."""
    case = replace(case, shuffle=1)
    ones = torch.ones(case.groups * case.outputs, case.channels, *case.kernel)
    x = make_map((1, case.groups * case.channels, *case.size), layout, torch.float32, 1)
    clean = conv(x, ones, None, *case.geometry)
    gy = make_map(tuple(clean.shape), layout, torch.float32, 2)
    spoiled = x.clone()
    spoiled[0, 0, -1, 0] = torch.inf
    y = conv(spoiled, ones, None, *case.geometry)
    assert torch.equal(y[:, case.outputs :], clean[:, case.outputs :]) and y[:, : case.outputs].isinf().any()
    gy[0, 0, 0, 0] = torch.inf
    gw = weight_grad(gy, x, ones, *case.geometry, 1, True)
    assert not gw.isnan().any() and gw[0].isinf().any() and gw[1:].isfinite().all()


def test_unbatched_input() -> None:
    x, w = make_map((4, 4, 5), "nchw", torch.float64, 1), make_map((6, 2, 3, 2), "nchw", torch.float64, 2)
    geometry = ((2, 1), (1, 0), (1, 1), 2)
    y = conv(x, w, None, *geometry, "none", 3)
    assert torch.equal(y, conv(x[None], w, None, *geometry, "none", 3)[0])
    gx = input_grad(y, x, w, *geometry, 3)
    assert torch.equal(gx, input_grad(y[None], x[None], w, *geometry, 3)[0])
    both = backward(y, x, w, *geometry, 3, False)
    assert torch.equal(both[0], gx) and torch.equal(both[1], weight_grad(y, x, w, *geometry, 3, False))
    gw = weight_grad(y, x, w, *geometry, 3, False)
    assert torch.equal(gw, weight_grad(y[None], x[None], w, *geometry, 3, True))


def test_error_texts() -> None:
    x, w = torch.zeros(1, 4, 4, 5), torch.zeros(6, 2, 3, 2)
    geometry = ((1, 1), (1, 0), (1, 1))
    with pytest.raises(RuntimeError, match=r"^grouped_conv2d: groups must divide the channels of input, 4, got 3$"):
        conv(x, w, None, *geometry, 3)
    with pytest.raises(RuntimeError, match=r"^_grouped_conv2d_input_grad: shuffle must divide the channels of output"):
        input_grad(torch.zeros(1, 6, 4, 4), x, w, *geometry, 2, 4)
    with pytest.raises(RuntimeError, match=r"grad_output must be \[1, 6, 4, 4\], got \[1, 4, 4, 5\]$"):
        weight_grad(x, x, w, *geometry, 2, 1, True)
