"""split_attention_pool and split_attention_combine on every device (see conftest.py): the cases are in
split_attention_cases.py."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from typing import Any

import fastconv
import pytest
import torch
from conftest import Device
from convolution_cases import DTYPES, arrange
from fastconv import reference
from fastconv.ops.split_attention import joins_gradients, split_attention
from hypothesis import given, settings
from hypothesis import strategies as st
from split_attention_cases import CASES, Case, Sample, composition, draw, expected, tolerances
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

pool_op = torch.ops.fastconv.split_attention_pool
combine_op = torch.ops.fastconv.split_attention_combine
backward_op = torch.ops.fastconv._split_attention_combine_backward
logits_grad_op = torch.ops.fastconv._split_attention_combine_logits_grad
input_grad_op = torch.ops.fastconv._split_attention_combine_input_grad

LAYOUTS = ("nchw", "channels_last", "nchw_slice", "channels_last_slice")
FORMATS = {"nchw": torch.contiguous_format, "channels_last": torch.channels_last}


def name_of(value: Any) -> str | None:
    if isinstance(value, Case):
        return str(value)
    return str(value).removeprefix("torch.") if isinstance(value, torch.dtype) else None


def parametrize(names: str, values: Any) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(names, values, ids=name_of)


def results(case: Case, sample: Sample) -> dict[str, list[Tensor]]:
    """Of every operator, by what they compute."""
    x, logits, g = sample.input, sample.logits, sample.grad_output
    grad_input, grad_logits = backward_op(g, x, logits, *case.arguments)
    return {
        "pool": [pool_op(x, case.radix)],
        "combine": [combine_op(x, logits, *case.arguments)],
        "grad_input": [grad_input, input_grad_op(g, logits, None, *case.arguments)],
        "grad_logits": [grad_logits, logits_grad_op(g, x, logits, *case.arguments)],
        "grad_input_with_pool": [input_grad_op(g, logits, sample.grad_pooled, *case.arguments)],
    }


def check_results(case: Case, sample: Sample, format: torch.memory_format | None = None) -> None:
    want, allowed = expected(case, sample), tolerances(case, sample, sample.input.dtype)
    for name, tensors in results(case, sample).items():
        for got in tensors:
            assert got.dtype == sample.input.dtype
            torch.testing.assert_close(got.double(), want[name], rtol=0, atol=allowed[name], equal_nan=True, msg=name)
            if format is not None:
                assert got.is_contiguous(memory_format=format if got.dim() == 4 else torch.contiguous_format)


# ---------------------------------------------------------------------------------------------------------------------
# Results and gradients


@pytest.mark.core
@parametrize("layout", LAYOUTS)
@parametrize("dtype", DTYPES)
@parametrize("case", CASES)
def test_against_reference(device: Device, case: Case, dtype: torch.dtype, layout: str) -> None:
    sample = draw(case, dtype, layout, device.type)
    format = FORMATS[layout.removesuffix("_slice")]
    is_plain = sample.input.numel() > 0 and case.channels > 1  # otherwise it has both formats
    check_results(case, sample, format if is_plain else None)


@pytest.mark.core
@parametrize("dtype", [torch.float32, torch.bfloat16])
@parametrize(
    "layout",
    [
        "nchw_offset",
        "channels_last_offset",
        "nchw_transposed",
        "nchw_every_other",
        "channels_last_every_other",
        "channels_first_and_last",
    ],
)
def test_awkward_layouts(device: Device, dtype: torch.dtype, layout: str) -> None:
    for case in (Case(2, 12, 3, (5, 7), 3), Case(1, 9, size=(4, 6)), Case(2, 64, size=(4, 8))):
        check_results(case, draw(case, dtype, layout, device.type))


@parametrize("layout", ["nchw", "channels_last"])
def test_a_gradient_of_another_layout(device: Device, layout: str) -> None:
    case = Case(2, 12, 2, (5, 7), 3)
    sample = draw(case, torch.float32, layout, device.type)
    other = "channels_last" if layout == "nchw" else "nchw"
    for grad in (arrange(sample.grad_output, other), sample.grad_output[:, :, :1, :1].expand(case.output_shape)):
        check_results(case, Sample(sample.input, sample.logits, grad, sample.grad_pooled))
    check_results(case, Sample(sample.input, sample.logits.t().contiguous().t(), sample.grad_output,
                               sample.grad_pooled.t().contiguous().t()))  # fmt: skip


@parametrize("dtype", DTYPES)
@parametrize("layout", ["nchw", "channels_last"])
def test_large_logits(device: Device, dtype: torch.dtype, layout: str) -> None:
    """The softmax is shifted, so nothing overflows; and what is far below the largest is nothing."""
    for radix in (1, 2, 3):
        case = Case(radix, 20, size=(3, 4))
        sample = draw(case, dtype, layout, device.type)
        sample.logits = torch.linspace(-20000, 20000, sample.logits.numel(), device=device.type)[
            torch.randperm(sample.logits.numel())
        ].view_as(sample.logits).to(dtype)  # fmt: skip
        check_results(case, sample)


@parametrize("value", [torch.nan, torch.inf, -torch.inf])
@parametrize("layout", ["nchw", "channels_last"])
def test_values_that_are_not_finite(device: Device, layout: str, value: float) -> None:
    case = Case(2, 20, size=(3, 7))
    sample = draw(case, torch.float32, layout, device.type)
    sample.logits.zero_()
    sample.input[0, 3, 1, 2] = value
    got, want = combine_op(sample.input, sample.logits, 2), composition(sample.input, sample.logits, 2, 1)
    torch.testing.assert_close(got, want, equal_nan=True)
    torch.testing.assert_close(
        pool_op(sample.input, 2), reference.split_attention_pool(sample.input, 2), equal_nan=True
    )
    sample.input[0, 3, 1, 2] = 1
    sample.logits[1, 21] = torch.nan
    for got, want in (
        (combine_op(sample.input, sample.logits, 2), composition(sample.input, sample.logits, 2, 1)),
        (combine_op(sample.input, sample.logits, 1), composition(sample.input, sample.logits, 1, 1)),
    ):
        torch.testing.assert_close(got, want, equal_nan=True)


@parametrize("layout", ["nchw", "channels_last"])
@parametrize("case", [Case(r, 12, k, (7, 9), 3) for r in (1, 2, 4) for k in (1, 2)])
@parametrize("dtype", [torch.bfloat16, torch.float16])
def test_error_is_at_most_twice_that_of_torch(device: Device, case: Case, dtype: torch.dtype, layout: str) -> None:
    sample = draw(case, dtype, layout, device.type)
    want = expected(case, sample)
    x, logits = sample.input.clone().requires_grad_(), sample.logits.clone().requires_grad_()
    output = composition(x, logits, *case.arguments)
    grads = torch.autograd.grad(output, (x, logits), sample.grad_output)
    pooled = x.unflatten(1, (case.radix, -1)).sum(1).mean((2, 3))
    peers = {"pool": pooled, "combine": output, "grad_input": grads[0], "grad_logits": grads[1]}
    ours = results(case, sample)
    # Where torch's error is by chance nearly none: a rounding of the largest number.
    for name, peer in peers.items():
        error = (peer.double() - want[name]).abs().max()
        allowed = max(2 * error, want[name].abs().max() * torch.finfo(dtype).eps)
        for got in ours[name]:
            assert (got.double() - want[name]).abs().max() <= allowed, name


@parametrize("case", [Case(2, 48, size=(56, 56)), Case(1, 24, size=(40, 30), batch=1)])
def test_radix_1_is_squeeze_and_excitation(device: Device, case: Case) -> None:
    """Bit by bit, but for the sigmoid's own rounding and the order of the pool's sum."""
    if device.is_emulated:
        pytest.skip("too large to emulate")
    sample = draw(Case(1, case.channels, size=case.size, batch=case.batch), torch.float32, "nchw", device.type)
    got = combine_op(sample.input, sample.logits, 1)
    want = sample.input * sample.logits.sigmoid()[:, :, None, None]
    assert ((got - want).abs() <= 3 * torch.finfo(torch.float32).eps * want.abs()).all()
    mean = sample.input.mean((2, 3))
    assert ((pool_op(sample.input, 1) - mean).abs() <= 4e-7 * sample.input.abs().mean((2, 3))).all()


@parametrize("layout", ["nchw", "channels_last", "channels_last_slice"])
@parametrize("case", [Case(r, 4, k, (2, 3)) for r, k in ((1, 1), (2, 1), (2, 2), (3, 4))])
def test_gradcheck(device: Device, case: Case, layout: str) -> None:
    sample = draw(case, torch.float64, layout, device.type).map(lambda x: x.requires_grad_())
    x, logits, g, p = vars(sample).values()
    fast = device.is_emulated
    for function, inputs in (
        (lambda x, logits: combine_op(x, logits, *case.arguments), (x, logits)),
        (lambda x: pool_op(x, case.radix), (x,)),
        (lambda g, x, logits: backward_op(g, x, logits, *case.arguments), (g, x, logits)),
        (lambda g, x, logits: logits_grad_op(g, x, logits, *case.arguments), (g, x, logits)),
        (lambda g, logits, p: input_grad_op(g, logits, p, *case.arguments), (g, logits, p)),
        (lambda g, logits: input_grad_op(g, logits, None, *case.arguments), (g, logits)),
    ):
        assert torch.autograd.gradcheck(function, inputs, fast_mode=fast)
        assert torch.autograd.gradgradcheck(function, inputs, fast_mode=True)

    def both(x: Tensor, logits: Tensor) -> Tensor:
        return combine_op(x, logits, *case.arguments) ** 3 + pool_op(x, case.radix)[:, :, None, None]

    assert torch.autograd.gradgradcheck(both, (x, logits), fast_mode=fast)


@parametrize("layout", ["nchw", "channels_last"])
@parametrize("needed", [(True, True), (True, False), (False, True), (False, False)])
def test_gradients_of_what_is_asked_for(device: Device, needed: tuple[bool, bool], layout: str) -> None:
    case = Case(2, 12, 2)
    sample = draw(case, torch.float64, layout, device.type)
    want = expected(case, sample)
    x, logits = (t.requires_grad_(n) for t, n in zip((sample.input, sample.logits), needed))
    output = fastconv.split_attention_combine(x, logits, *case.arguments)
    assert output.requires_grad == any(needed)
    if any(needed):
        output.backward(sample.grad_output)
    for tensor, n, name in ((x, needed[0], "grad_input"), (logits, needed[1], "grad_logits")):
        assert (tensor.grad is not None) == n
        if n:
            torch.testing.assert_close(tensor.grad, want[name])


@parametrize("layout", ["nchw", "channels_last"])
def test_results_are_repeatable(device: Device, layout: str) -> None:
    """Bit by bit, and whatever the number of threads."""
    case = Case(2, 40, 2, (9, 11) if device.is_emulated else (60, 50))
    sample = draw(case, torch.float32, layout, device.type)
    before = torch.get_num_threads()
    try:
        first = results(case, sample)
        for count in (1, 2, 3, 7):
            torch.set_num_threads(count)
            for name, tensors in results(case, sample).items():
                assert all(torch.equal(a, b) for a, b in zip(tensors, first[name])), name
    finally:
        torch.set_num_threads(before)


# ---------------------------------------------------------------------------------------------------------------------
# Pool and combine joined


class Operators(TorchDispatchMode):
    """The names of the operators that are called, those that only make views left out."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not func.is_view:
            self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def logits_of(case: Case, weight: Tensor) -> Any:
    return lambda pooled: pooled.sin().repeat(1, case.radix) * weight


def joined(case: Case) -> Any:
    return lambda x, weight: split_attention(x, logits_of(case, weight), *case.arguments)


def one_by_one(case: Case) -> Any:
    def function(x: Tensor, weight: Tensor) -> Tensor:
        return combine_op(x, logits_of(case, weight)(pool_op(x, case.radix)), *case.arguments)

    return function


JOINED = [Case(r, 4, k, (2, 3)) for r, k in ((1, 1), (2, 1), (2, 2), (3, 4))]


@parametrize("layout", ["nchw", "channels_last", "channels_last_slice"])
@parametrize("case", JOINED)
def test_gradients_of_both_joined(device: Device, case: Case, layout: str) -> None:
    sample = draw(case, torch.float64, layout, device.type).map(lambda x: x.requires_grad_())
    inputs = sample.input, sample.logits
    assert joins_gradients(sample.input)
    fast = device.is_emulated
    assert torch.autograd.gradcheck(joined(case), inputs, fast_mode=fast, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(joined(case), inputs, fast_mode=fast)
    for function in (joined, one_by_one):
        with Operators() as called:
            output = function(case)(*inputs)
            got = torch.autograd.grad(output, inputs, sample.grad_output.detach())
        gradients = [name.removesuffix("_") for name in called.names if name.startswith(("_split_attention", "add"))]
        if function is joined:
            first, output_of_joined = got, output
            assert gradients == ["_split_attention_combine_logits_grad", "_split_attention_combine_input_grad"]
        else:
            assert gradients == ["_split_attention_combine_backward", "add"]
    torch.testing.assert_close(output_of_joined, output, rtol=0, atol=0)
    torch.testing.assert_close(first, got)
    assert first[0].stride() == torch.empty_like(sample.input).stride()


@parametrize("layout", ["nchw", "channels_last"])
def test_uses_of_what_is_between_the_joined(device: Device, layout: str) -> None:
    """The logits used elsewhere, or not made of the pool; the output unused; a gradient that is expanded."""
    case = Case(2, 6, 3, (4, 5))
    sample = draw(case, torch.float64, layout, device.type)
    results = []
    for function in (split_attention, None):
        x, weight = sample.input.clone().requires_grad_(), sample.logits.clone().requires_grad_()
        kept: list[Tensor] = []

        def logits(pooled: Tensor, weight: Tensor = weight, kept: list[Tensor] = kept) -> Tensor:
            kept.append(logits_of(case, weight)(pooled))
            return kept[-1]

        def call(x: Tensor, logits: Any, function: Any = function) -> Tensor:
            if function is not None:
                return function(x, logits, 2, 3)
            return combine_op(x, logits(pool_op(x, 2)), 2, 3)

        output = call(x, logits)
        apart = call(x, lambda pooled, weight=weight: weight)
        for loss in (output.sum(), output.sum() + kept[0].square().sum(), kept[0].square().sum(), apart.cos().sum()):
            results.append(torch.autograd.grad(loss, (x, weight), retain_graph=True))
    half = len(results) // 2
    for got, want in zip(results[:half], results[half:], strict=True):
        torch.testing.assert_close(got, want)


# ---------------------------------------------------------------------------------------------------------------------
# The rest of torch: autocast, compile, export, vmap, FLOPs


@parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_keeps_the_dtype_of_the_input(device: Device, dtype: torch.dtype) -> None:
    case = Case(2, 12, 2)
    wide = draw(case, torch.float32, "nchw", device.type)
    with torch.autocast(device.type, dtype=dtype):
        for x in (wide.input, wide.input.to(dtype)):
            for logits in (wide.logits, wide.logits.to(dtype)):
                x.requires_grad_(), logits.requires_grad_()
                y = fastconv.split_attention_combine(x, logits, *case.arguments)
                assert y.dtype == x.dtype and fastconv.split_attention_pool(x, 2).dtype == x.dtype
                torch.testing.assert_close(y, combine_op(x, logits.to(x.dtype), *case.arguments), rtol=0, atol=0)
                grads = torch.autograd.grad(y, (x, logits), wide.grad_output.to(y.dtype))
                assert [g.dtype for g in grads] == [x.dtype, logits.dtype]


class Network(torch.nn.Module):
    """The public functions between other operators."""

    def forward(self, x: Tensor) -> Tensor:
        x = x * 2
        logits = fastconv.split_attention_pool(x, 2).sin().repeat(1, 2)
        return fastconv.split_attention_combine(x, logits, 2, 3).cos()


def network_input(batch: int, height: int, layout: str, device: Device) -> Tensor:
    return draw(Case(2, 6, 3, (height, 5), batch), torch.float32, layout, device.type).input.requires_grad_()


def assert_same_step(compiled: Any, x: Tensor) -> None:
    got, want = compiled(x), Network()(x)
    torch.testing.assert_close(got, want)
    assert got.stride() == want.stride()
    a, b = (torch.autograd.grad(y.square().sum(), x)[0] for y in (got, want))
    torch.testing.assert_close(a, b)
    assert a.stride() == b.stride()


@parametrize("layout", ["nchw", "channels_last"])
@parametrize("dynamic", [False, True])
def test_compile(device: Device, dynamic: bool, layout: str) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(Network(), fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for batch, height in ((2, 3), (3, 7)):
        assert_same_step(compiled, network_input(batch, height, layout, device))


def test_compile_with_inductor(device: Device) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(Network(), fullgraph=True)
    for layout in ("nchw", "channels_last"):
        assert_same_step(compiled, network_input(2, 3, layout, device))


def test_export(device: Device) -> None:
    x = network_input(2, 3, "nchw", device).detach()
    sizes = {0: torch.export.Dim("batch", min=2, max=64), 2: torch.export.Dim("height", min=2, max=64)}
    program = torch.export.export(Network(), (x,), dynamic_shapes={"x": sizes})
    assert {pool_op.default, combine_op.default} <= {node.target for node in program.graph.nodes}
    for shape in ((2, 3), (5, 9)):
        x = network_input(*shape, "nchw", device).detach()
        torch.testing.assert_close(program.module()(x), Network()(x))


@parametrize("layout", ["nchw", "channels_last"])
@parametrize("dims", [(0, 0), (1, None), (None, 1), (3, 2), (4, 0)])
def test_vmap(device: Device, dims: tuple[int | None, int | None], layout: str) -> None:
    case = Case(2, 6, 3, (4, 5))
    sample = draw(case, torch.float64, layout, device.type)
    examples = [[x, x + 1, 2 * x] for x in (sample.input, sample.logits)]
    stacked = [xs[0] if dim is None else torch.stack(xs, dim) for xs, dim in zip(examples, dims)]
    each = [[xs[0 if dim is None else i] for xs, dim in zip(examples, dims)] for i in range(3)]
    for function in (combine_op, fastconv.split_attention_combine):
        got = torch.vmap(lambda x, logits: function(x, logits, 2, 3), dims)(*stacked)  # noqa: B023
        torch.testing.assert_close(got, torch.stack([combine_op(x, logits, 2, 3) for x, logits in each]))
    if dims[0] is not None:
        got = torch.vmap(lambda x: fastconv.split_attention_pool(x, 2), dims[0])(stacked[0])
        torch.testing.assert_close(got, torch.stack([pool_op(x, 2) for x in examples[0]]))


def test_vmap_of_the_gradient_operators(device: Device) -> None:
    case = Case(2, 6, 3, (4, 5))
    x, logits, g, p = (
        torch.stack([t, 2 * t, t + 1]) for t in vars(draw(case, torch.float64, "nchw", device.type)).values()
    )
    for function, tensors in (
        (lambda g, x, logits: backward_op(g, x, logits, 2, 3), (g, x, logits)),
        (lambda g, x, logits: logits_grad_op(g, x, logits, 2, 3), (g, x, logits)),
        (lambda g, logits, p: input_grad_op(g, logits, p, 2, 3), (g, logits, p)),
        (lambda g, logits, p: input_grad_op(g, logits, None, 2, 3), (g, logits, p)),
    ):
        got = torch.vmap(function)(*tensors)
        want = [function(*(t[i] for t in tensors)) for i in range(3)]
        if isinstance(got, Tensor):
            got, want = (got,), [(w,) for w in want]
        for ours, each in zip(got, zip(*want)):
            torch.testing.assert_close(ours, torch.stack(each))


def test_transforms_of_torch_func(device: Device) -> None:
    sample = draw(Case(2, 4, 2, (2, 2), 1), torch.float64, "nchw", device.type)
    x, logits = sample.input, sample.logits

    def value(combine: Any, pool: Any) -> Any:
        return lambda x, logits: (combine(x, logits, 2, 2) + pool(x, 2)[:, :, None, None]).pow(3).sum()

    ours = value(fastconv.split_attention_combine, fastconv.split_attention_pool)
    own = value(composition, reference.split_attention_pool)
    for transform in (
        lambda f: torch.func.grad(f, (0, 1))(x, logits),
        lambda f: torch.func.jacrev(torch.func.jacrev(f, (0, 1)), (0, 1))(x, logits),
        lambda f: torch.func.vmap(torch.func.grad(f, (0, 1)), (None, 0))(x, torch.stack([logits, 2 * logits])),
        lambda f: torch.func.grad(lambda x: torch.func.vmap(f, (None, 0))(x, torch.stack([logits, 2 * logits])).sum())(
            x
        ),
    ):
        torch.testing.assert_close(transform(ours), transform(own))


def test_batched_gradients(device: Device) -> None:
    """autograd's own vmap, over the backward pass of a graph that was made without one."""
    sample = draw(Case(2, 3, 1, (2, 2), 1), torch.float64, "nchw", device.type)
    inputs = [sample.input.requires_grad_(), sample.logits.requires_grad_()]
    output = fastconv.split_attention_combine(*inputs, 2)
    basis = torch.eye(output.numel(), dtype=torch.float64, device=device.type).view(-1, *output.shape)
    batched = torch.autograd.grad(output, inputs, basis, is_grads_batched=True, retain_graph=True)
    for i, vector in enumerate(basis):
        for ours, want in zip(batched, torch.autograd.grad(output, inputs, vector, retain_graph=True)):
            torch.testing.assert_close(ours[i], want)


def test_flops_are_none(device: Device) -> None:
    with FlopCounterMode(display=False) as counter:
        Network()(network_input(2, 3, "nchw", device)).sum().backward()
    assert counter.get_total_flops() == 0


# ---------------------------------------------------------------------------------------------------------------------
# Property test


@st.composite
def calls(draw_: Any) -> tuple[Case, torch.dtype, str]:
    cardinality, width = draw_(st.integers(1, 4)), draw_(st.integers(1, 40))
    size = draw_(st.tuples(st.integers(1, 20), st.integers(1, 20)))
    case = Case(draw_(st.integers(1, 5)), cardinality * width, cardinality, size, draw_(st.integers(0, 3)))
    return case, draw_(st.sampled_from(DTYPES)), draw_(st.sampled_from(LAYOUTS))


@pytest.mark.core
@settings(max_examples=100)
@given(call=calls())
def test_drawn_calls(device: Device, call: tuple[Case, torch.dtype, str]) -> None:
    case, dtype, layout = call
    check_results(case, draw(case, dtype, layout, device.type))


# ---------------------------------------------------------------------------------------------------------------------
# Wrong arguments. One text for one mistake, whoever finds it: the operator's host code or the fake kernel.

X, L, G, P = torch.zeros(2, 6, 5, 4), torch.zeros(2, 6), torch.zeros(2, 3, 5, 4), torch.zeros(2, 3)
ERRORS: dict[str, tuple[Any, tuple, str]] = {
    "pool_rank": (pool_op, (X[0], 2), "input must be [N, C, H, W], got [6, 5, 4]"),
    "pool_dtype": (pool_op, (X.int(), 2), "input must be float32, float64, bfloat16 or float16, got int32"),
    "pool_no_radix": (pool_op, (X, 0), "radix must be at least 1, got 0"),
    "pool_radix": (pool_op, (X, 4), "radix must divide the 6 channels of input, got 4"),
    "combine_rank": (combine_op, (X[0], L, 2), "input must be [N, C, H, W], got [6, 5, 4]"),
    "combine_dtype": (
        combine_op, (X.bool(), L, 2), "input must be float32, float64, bfloat16 or float16, got bool"
    ),
    "combine_radix": (combine_op, (X, L, -1), "radix must be at least 1, got -1"),
    "combine_channels": (combine_op, (X, L, 5), "radix must divide the 6 channels of input, got 5"),
    "combine_logits_dtype": (
        combine_op, (X, L.double(), 2), "logits must have the dtype of input (float32), got float64"
    ),
    "combine_no_cardinality": (combine_op, (X, L, 2, 0), "cardinality must be at least 1, got 0"),
    "combine_cardinality": (combine_op, (X, L, 2, 2), "cardinality must divide the 3 channels of a split, got 2"),
    "combine_logits": (combine_op, (X, L[:, :5], 2), "logits must be [2, 6], got [2, 5]"),
    "combine_logits_batch": (combine_op, (X, L[:1], 2), "logits must be [2, 6], got [1, 6]"),
    "combine_logits_rank": (combine_op, (X, L[..., None, None], 2), "logits must be [2, 6], got [2, 6, 1, 1]"),
    "backward_grad": (backward_op, (G[:, :2], X, L, 2, 1), "grad_output must be [2, 3, 5, 4], got [2, 2, 5, 4]"),
    "backward_grad_dtype": (
        backward_op, (G.double(), X, L, 2, 1), "grad_output must have the dtype of input (float32), got float64"
    ),
    "backward_logits": (backward_op, (G, X, P, 2, 1), "logits must be [2, 6], got [2, 3]"),
    "logits_grad_grad": (logits_grad_op, (G[0], X, L, 2, 1), "grad_output must be [2, 3, 5, 4], got [3, 5, 4]"),
    "logits_grad_radix": (logits_grad_op, (G, X, L, 4, 1), "radix must divide the 6 channels of input, got 4"),
    "input_grad_rank": (input_grad_op, (G[0], L, P, 2, 1), "grad_output must be [N, C, H, W], got [3, 5, 4]"),
    "input_grad_radix": (input_grad_op, (G, L, P, 0, 1), "radix must be at least 1, got 0"),
    "input_grad_logits": (input_grad_op, (G, L, None, 3, 1), "logits must be [2, 9], got [2, 6]"),
    "input_grad_pooled": (input_grad_op, (G, L, L, 2, 1), "grad_pooled must be [2, 3], got [2, 6]"),
}  # fmt: skip


@parametrize("name", ERRORS)
def test_error_texts(device: Device, name: str) -> None:
    op, arguments, text = ERRORS[name]
    match = re.escape(f"{op.__name__}: {text}") + "$"
    for prefix, to in (("^", device.type), ("", "meta")):  # the kernels and the fake kernel
        with pytest.raises(RuntimeError, match=prefix + match):
            op(*(x.to(to) if isinstance(x, Tensor) else x for x in arguments))


def test_devices_are_not_mixed(device: Device) -> None:
    if device.is_emulated:
        pytest.skip("a tensor of another device is not dispatched to the emulated kernels")
    x = X.to(device.type)
    elsewhere = L.to("cpu" if device.type == "cuda" else "meta")
    text = f"split_attention_combine: logits must be on the device of input ({x.device}), got {elsewhere.device}"
    with pytest.raises(RuntimeError, match=re.escape(text)):
        combine_op(x, elsewhere, 2)


# ---------------------------------------------------------------------------------------------------------------------
# The machine


@pytest.mark.process
@pytest.mark.parametrize("capability", ["avx2", "baseline"])
def test_instruction_sets(capability: str) -> None:
    """The core of this file on the CPU kernels that this machine would not choose."""
    environment = os.environ | {"FASTCONV_CPU_CAPABILITY": capability}
    asked = [sys.executable, "-c", "from fastconv import _C; print(_C.cpu_capability())"]
    chosen = subprocess.run(asked, env=environment, capture_output=True, text=True, check=True).stdout.strip()
    if chosen != capability:
        pytest.skip(f"this machine has no {capability}")
    command = [
        sys.executable,
        "-m",
        "pytest",
        __file__,
        "-m",
        "core",
        "-q",
        "-p",
        "no:cacheprovider",
    ]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-6000:] + result.stderr[-2000:]


@pytest.mark.long
@parametrize("layout", ["nchw", "channels_last"])
def test_more_than_2_to_the_31_elements(device: Device, layout: str) -> None:
    """Offsets of the last channels and pixels need 64 bits. Takes 8 GB."""
    if device.is_emulated:
        pytest.skip("too large to emulate")
    case = Case(2, 3, 1, (19000, 19000), 1)
    x = torch.zeros(case.input_shape, dtype=torch.bfloat16, device=device.type).contiguous(
        memory_format=FORMATS[layout]
    )
    assert x.numel() > 2**31
    tail, logits = torch.randn(1, 6, 3, 19000).to(x), torch.randn(1, 6).to(x)
    x[:, :, -3:] = tail
    got = combine_op(x, logits, 2)[:, :, -3:]
    torch.testing.assert_close(got, combine_op(tail, logits, 2), rtol=0, atol=0)
    want = reference.split_attention_pool(tail.double(), 2) * 3 / 19000
    torch.testing.assert_close(pool_op(x, 2).double(), want, rtol=1e-2, atol=1e-6)
