"""Runs depthwise_conv2d's Triton kernels on CPU tensors in Triton's interpreter, against torch's in float64.

Not collected by itself: test_triton_interpreter.py runs this file in a process with TRITON_INTERPRET=1, which Triton
reads when a kernel is decorated.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
import torch.nn.functional as F
import triton.language as tl
from fastconv import _load, triton_kernels
from fastconv.ops.depthwise_conv2d import check_arguments
from fastconv.triton_kernels import depthwise_conv2d as kernels
from triton_interpreter import ACTIVATIONS, DTYPES, assert_close, make_map

conv, input_grad, weight_grad = kernels.implementations().values()


@dataclass(frozen=True)
class Case:
    batch: int = 1
    channels: int = 5
    multiplier: int = 1
    size: tuple[int, int] = (5, 7)
    kernel: tuple[int, int] = (3, 2)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (1, 0)
    dilation: tuple[int, int] = (1, 1)

    def __str__(self) -> str:
        changed = (f.name for f in dataclasses.fields(self) if getattr(self, f.name) != f.default)
        return "-".join(f"{name}{getattr(self, name)}".replace(" ", "") for name in changed) or "default"


GEOMETRIES = [
    Case(batch=3),
    Case(multiplier=3, channels=3),  # blocks of channels that begin between the results of one input channel
    Case(stride=(2, 1), dilation=(2, 1)),
    Case(stride=(1, 2), multiplier=2, padding=(2, 3)),
    Case(stride=(2, 2), kernel=(3, 3), padding=(1, 1), batch=2, channels=3),
    Case(stride=(3, 2), kernel=(2, 5), padding=(0, 2), dilation=(3, 1), channels=3, size=(7, 6)),
    Case(stride=(4, 5), kernel=(4, 5), padding=(0, 0), channels=2, size=(9, 13)),  # more phases than are unrolled
    Case(kernel=(9, 2), padding=(4, 1), channels=2),  # more taps than are unrolled, in chunks of 4, 4 and 1
    Case(kernel=(9, 6), padding=(4, 2), channels=1, stride=(2, 1), multiplier=2),  # and a stride
    Case(kernel=(1, 1), padding=(0, 0), size=(1, 3)),
    Case(padding=(5, 4), size=(2, 3), channels=2),  # tiles that see only padding
    Case(channels=24, size=(3, 2), kernel=(3, 3), padding=(1, 1)),  # channels divisible by 8, not by 16
    Case(channels=1),
    Case(batch=0),
]


def small_plan(plan: kernels.Plan, case: Case, direction: str) -> kernels.Plan:
    """The default plan with blocks so small that tiles of these cases meet all of their boundaries."""
    step = case.stride[0] if direction == "input_grad" and plan.phased else 1
    rows = max(step, min(plan.rows, 2 * step)) if plan.phased else 1
    chunk_h = min(plan.chunk_h, 4)
    splits = min(plan.splits, 2) if direction == "weight_grad" else 1
    plan = replace(plan, block_c=min(plan.block_c, 4), block_w=min(plan.block_w, 4), rows=rows)
    return replace(plan, chunk_h=chunk_h, splits=splits)


def truth(case: Case, x, w, b, gy, activation):  # type: ignore[no-untyped-def]
    """(y, gx, gw) by torch; the gradients are those of the convolution without activation."""
    x, w = x.detach().clone().requires_grad_(), w.detach().clone().requires_grad_()
    y = F.conv2d(x, w, b, case.stride, case.padding, case.dilation, groups=case.channels)
    y.backward(gy)
    return ACTIVATIONS[activation](y.detach()), x.grad, w.grad


def run_case(case: Case, layout: str, dtype: torch.dtype, activation: str, bias: bool, default_plans: bool) -> None:
    n, c, (h, w) = case.batch, case.channels, case.size
    x = make_map((n, c, h, w), layout, dtype, seed=1)
    weight = make_map((c * case.multiplier, 1, *case.kernel), "nchw", dtype, seed=2, scale=0.5)
    b = make_map((c * case.multiplier, 1, 1, 1), "nchw", dtype, seed=3).flatten() if bias else None
    geometry = (case.stride, case.padding, case.dilation)
    g = check_arguments("depthwise_conv2d", x, weight, b, *geometry, activation)
    gy = make_map((n, c * case.multiplier, g.out_height, g.out_width), layout, dtype, seed=4)
    assert g.channels_last == (layout.startswith("channels_last") and n > 0) or c == 1

    if default_plans or n == 0:
        y = conv(x, weight, b, *geometry, activation)
        gx = input_grad(gy, x, weight, *geometry)
        gw = weight_grad(gy, x, weight, *geometry, True)
    else:
        plans = {
            direction: small_plan(kernels.default_plan(direction, g, x.element_size()), case, direction)
            for direction in ("forward", "input_grad", "weight_grad")
        }
        y = kernels.launch_forward(x, weight, b, g, activation, plans["forward"])
        gx = kernels.launch_input_grad(gy, x, weight, g, plans["input_grad"])
        gw = kernels.launch_weight_grad(gy, x, g, plans["weight_grad"])

    assert {t.dtype for t in (y, gx, gw)} == {dtype}
    memory_format = torch.channels_last if g.channels_last else torch.contiguous_format
    assert y.is_contiguous(memory_format=memory_format) and gx.is_contiguous(memory_format=memory_format)
    expected = truth(case, x.double(), weight.double(), None if b is None else b.double(), gy.double(), activation)
    peers = (None,) * 3 if dtype == torch.float64 else truth(case, x, weight, b, gy, activation)
    for actual, wanted, peer in zip((y, gx, gw), expected, peers):
        assert_close(actual, wanted, peer)


@pytest.mark.parametrize("layout", ["nchw slice", "channels_last slice"])
@pytest.mark.parametrize("case", GEOMETRIES, ids=str)
def test_geometry(case: Case, layout: str) -> None:
    run_case(case, layout, torch.float64, "none", bias=True, default_plans=False)


@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
@pytest.mark.parametrize("case", GEOMETRIES[:9], ids=str)
def test_default_plan(case: Case, layout: str) -> None:
    run_case(case, layout, torch.float32, "none", bias=False, default_plans=True)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activation(activation: str, dtype: torch.dtype) -> None:
    layout = ["nchw", "channels_last"][list(ACTIVATIONS).index(activation) % 2]
    run_case(Case(channels=3, stride=(2, 1), size=(4, 5)), layout, dtype, activation, bias=True, default_plans=True)


@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
def test_offsets_of_64_bits(layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "_index_type", lambda *args: tl.int64)
    run_case(Case(stride=(2, 1), multiplier=2), layout, torch.float64, "none", bias=True, default_plans=False)


def test_tensors_that_need_64_bits() -> None:
    x = torch.empty(1, 4, 8, 8, device="meta")
    g = check_arguments("op", x, torch.empty(4, 1, 3, 3, device="meta"), None, (1, 1), (1, 1), (1, 1))
    plan = kernels.default_plan("forward", g, 4)
    far = x.as_strided(x.shape, (1, 2**31, 8, 1))
    assert kernels._index_type(g, plan, x) is tl.int32
    assert kernels._index_type(g, plan, x, far) is tl.int64


def test_unbatched_input() -> None:
    x, w = make_map((3, 4, 5), "nchw", torch.float64, 1), make_map((6, 1, 3, 2), "nchw", torch.float64, 2)
    geometry = ((2, 1), (1, 0), (1, 1))
    y = conv(x, w, None, *geometry)
    assert torch.equal(y, conv(x[None], w, None, *geometry)[0])
    gx = input_grad(y, x, w, *geometry)
    assert torch.equal(gx, input_grad(y[None], x[None], w, *geometry)[0])
    gw = weight_grad(y, x, w, *geometry, False)
    assert torch.equal(gw, weight_grad(y[None], x[None], w, *geometry, True))


@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
def test_gradients_of_other_strides(layout: str) -> None:
    """What y.sum() gives (strides of 0), and a gradient in the other memory format."""
    x, w = make_map((2, 3, 4, 5), layout, torch.float64, 1), make_map((3, 1, 3, 2), "nchw", torch.float64, 2)
    geometry = ((1, 1), (1, 0), (1, 1))
    other = "nchw" if layout == "channels_last" else "channels_last"
    for gy in (torch.ones((), dtype=torch.float64).expand(2, 3, 4, 4), make_map((2, 3, 4, 4), other, torch.float64, 3)):
        _, gx, gw = truth(Case(batch=2, channels=3), x, w, None, gy, "none")
        torch.testing.assert_close(input_grad(gy, x, w, *geometry), gx)
        torch.testing.assert_close(weight_grad(gy, x, w, *geometry, True), gw)


@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
def test_infinite_pixels_stay_where_they_are(layout: str) -> None:
    """An infinite pixel that only some taps of the weight gradient read must not turn the others into NaN."""
    x, w = make_map((1, 2, 5, 6), layout, torch.float32, 1), make_map((2, 1, 3, 2), "nchw", torch.float32, 2)
    x[..., 4, 5] = torch.inf
    gy = torch.ones(1, 2, 3, 5)
    _, _, expected = truth(Case(channels=2, padding=(0, 0)), x, w, None, gy, "none")
    gw = weight_grad(gy, x, w, (1, 1), (0, 0), (1, 1), True)
    torch.testing.assert_close(gw, expected)
    assert gw.isinf().sum() == 2


def test_error_texts() -> None:
    x, w = torch.zeros(1, 2, 4, 5), torch.zeros(2, 1, 3, 2)
    geometry = ((1, 1), (1, 0), (1, 1))
    with pytest.raises(RuntimeError, match=r"^depthwise_conv2d: input must be \[N, C, H, W\] or \[C, H, W\], got \[4"):
        conv(x[0, 0], w, None, *geometry)
    with pytest.raises(RuntimeError, match="activation must be none, relu"):
        conv(x, w, None, *geometry, "tanh")
    for op in (input_grad, lambda *a: weight_grad(*a, True)):
        with pytest.raises(RuntimeError, match=r"grad_output must be \[1, 2, 4, 4\], got \[1, 2, 4, 5\]$"):
            op(x, x, w, *geometry)
        with pytest.raises(RuntimeError, match=r"grad_output must have the rank of input, got \[2, 4, 5\]$"):
            op(x[0], x, w, *geometry)
        with pytest.raises(RuntimeError, match=r"grad_output must have the dtype of input \(float32\), got float64$"):
            op(x[..., :4].double(), x, w, *geometry)


def test_registration_takes_the_arguments_of_the_schema() -> None:
    registered = {}

    class Library:
        def impl(self, name: str, function: Callable, key: str) -> None:
            assert key == "CUDA"
            registered[name] = function

    triton_kernels.register(Library())
    assert set(registered) == {name for page in triton_kernels.OPERATORS for name in _load.OPERATORS[page]}
    for name, function in registered.items():
        arguments = getattr(torch.ops.fastconv, name).default._schema.arguments
        inspect.signature(function).bind(*arguments)


@pytest.mark.parametrize("direction", ["forward", "input_grad", "weight_grad"])
def test_candidate_plans_agree(direction: str) -> None:
    case = Case(channels=2, stride=(2, 1), size=(5, 4))
    x, w = make_map((1, 2, 5, 4), "nchw", torch.float64, 1), make_map((2, 1, 3, 2), "nchw", torch.float64, 2)
    g = check_arguments("op", x, w, None, case.stride, case.padding, case.dilation)
    gy = make_map((1, 2, g.out_height, g.out_width), "nchw", torch.float64, 3)
    launch = {
        "forward": lambda plan: kernels.launch_forward(x, w, None, g, "none", plan),
        "input_grad": lambda plan: kernels.launch_input_grad(gy, x, w, g, plan),
        "weight_grad": lambda plan: kernels.launch_weight_grad(gy, x, g, plan),
    }[direction]
    plans = list(kernels.candidate_plans(direction, g, 8))
    assert plans[0] == kernels.default_plan(direction, g, 8) and len(set(plans)) == len(plans) > 4
    for plan in plans[1::3]:
        torch.testing.assert_close(launch(plan), launch(None))
