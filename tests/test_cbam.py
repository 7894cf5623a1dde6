"""channel_pool, average_max_pool and spatial_gate on every device (see conftest.py): the cases are in cbam_cases.py."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from typing import Any

import fastconv
import pytest
import torch
from cbam_cases import CASES, EMPTY, POOLS, Case, Sample, draw, expected, tolerances
from conftest import Device
from convolution_cases import DTYPES, arrange
from fastconv import reference
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

ops = torch.ops.fastconv
gate_op, gate_backward_op = ops.spatial_gate, ops._spatial_gate_backward
LAYOUTS = ("nchw", "channels_last", "nchw_slice", "channels_last_slice", "nchw_offset", "channels_last_offset")
FORMATS = {"nchw": torch.contiguous_format, "channels_last": torch.channels_last}


def name_of(value: Any) -> str | None:
    if isinstance(value, Case):
        return str(value)
    return str(value).removeprefix("torch.") if isinstance(value, torch.dtype) else None


def parametrize(names: str, values: Any) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(names, values, ids=name_of)


def pool_op(pool: str) -> Any:
    return getattr(ops, pool)


def pool_grad_op(pool: str) -> Any:
    return getattr(ops, f"_{pool}_input_grad")


def results(sample: Sample) -> dict[str, Tensor]:
    """Of every operator."""
    found = {}
    for pool in POOLS:
        if sample.input.shape != EMPTY[pool].shape:
            found[pool] = pool_op(pool)(sample.input)
            found[f"{pool}_grad"] = pool_grad_op(pool)(sample.grad_of(pool), sample.input, found[pool])
    found["spatial_gate"] = gate_op(sample.input, sample.logits)
    found["grad_input"], found["grad_logits"] = gate_backward_op(sample.grad_output, sample.input, sample.logits)
    return found


def check_results(sample: Sample, format: torch.memory_format | None = None) -> None:
    want, allowed = expected(sample), tolerances(sample, sample.input.dtype)
    got = results(sample)
    assert got.keys() == want.keys()
    for name, tensor in got.items():
        assert tensor.dtype == sample.input.dtype
        torch.testing.assert_close(tensor.double(), want[name], rtol=0, atol=allowed[name], msg=name)
        if format is not None and name not in ("average_max_pool", "grad_logits"):
            assert tensor.is_contiguous(memory_format=format), name
    for pool, dims in POOLS.items():
        if pool in got:  # a maximum is one of the numbers
            assert torch.equal(got[pool].select(1, 1), sample.input.amax(dims)), pool


# ---------------------------------------------------------------------------------------------------------------------
# Results and gradients


@pytest.mark.core
@parametrize("layout", LAYOUTS)
@parametrize("dtype", DTYPES)
@parametrize("case", [*CASES, *EMPTY.values()])
def test_against_reference(device: Device, case: Case, dtype: torch.dtype, layout: str) -> None:
    sample = draw(case, dtype, layout, device.type)
    is_plain = sample.input.numel() > 0 and case.channels > 1  # otherwise it has both formats
    check_results(sample, FORMATS[layout.removesuffix("_slice").removesuffix("_offset")] if is_plain else None)


@pytest.mark.core
@parametrize("dtype", [torch.float32, torch.bfloat16])
@parametrize("layout", ["nchw_transposed", "nchw_every_other", "channels_last_every_other", "channels_first_and_last"])
def test_awkward_layouts(device: Device, dtype: torch.dtype, layout: str) -> None:
    check_results(draw(Case(12, (5, 7), 3), dtype, layout, device.type))


@parametrize("layout", ["nchw", "channels_last"])
def test_gradients_of_another_layout(device: Device, layout: str) -> None:
    case = Case(12, (5, 7), 3)
    sample = draw(case, torch.float32, layout, device.type)
    other = "channels_last" if layout == "nchw" else "nchw"
    for function in (lambda x: arrange(x, other), lambda x: x[..., :1].expand(x.shape)):
        mixed = {name: x if name == "input" or x.dim() != 4 else function(x) for name, x in vars(sample).items()}
        check_results(Sample(**mixed))


@parametrize("layout", ["nchw", "channels_last"])
@parametrize("pool", POOLS)
def test_ties_share_the_gradient(device: Device, pool: str, layout: str) -> None:
    """Also where all are alike, as behind a ReLU, and where zeros have both signs."""
    x = arrange(torch.zeros(2, 40, 9, 11), layout).to(device.type)
    x[1, ::2] = -0.0
    want = x.clone().requires_grad_()
    getattr(reference, pool)(want)[:, 1].sum().backward()
    x.requires_grad_()
    getattr(fastconv, pool)(x)[:, 1].sum().backward()
    torch.testing.assert_close(x.grad, want.grad, rtol=1e-6, atol=0)


@parametrize("layout", ["nchw", "channels_last"])
@parametrize("value", [torch.nan, torch.inf, -torch.inf])
@parametrize("pool", POOLS)
def test_values_that_are_not_finite(device: Device, pool: str, value: float, layout: str) -> None:
    """Results, and gradients, are those of torch: where the maximum is NaN, all that it is taken from get NaN."""
    dims = POOLS[pool]
    for place in (0, 17, -1):
        x = arrange(torch.randn(2, 37, 5, 7), layout).to(device.type)
        index: list[Any] = [1, 3, 2, 4]
        for dim in dims:
            index[dim] = place % x.shape[dim]
        x[tuple(index)] = value
        if value == -torch.inf:
            x[0] = value
        grads = []
        for function in (getattr(fastconv, pool), getattr(reference, pool)):
            leaf = x.clone().requires_grad_()
            output = function(leaf)
            grads.append((output, *torch.autograd.grad(output[:, 1].sum(), leaf)))
        for ours, own in zip(*grads):
            torch.testing.assert_close(ours, own, equal_nan=True)


@parametrize("layout", ["nchw", "channels_last"])
def test_gates_that_are_not_finite(device: Device, layout: str) -> None:
    sample = draw(Case(20, (4, 7)), torch.float32, layout, device.type)
    for i, value in enumerate((torch.nan, torch.inf, -torch.inf, 1e4, -1e4)):
        sample.logits[0, 0, 1, i] = value
    sample.input[1, 3, 2, 4] = torch.nan
    want, got = expected(sample), results(sample)
    for name in ("spatial_gate", "grad_input", "grad_logits"):
        torch.testing.assert_close(got[name].double(), want[name], rtol=1e-5, atol=1e-5, equal_nan=True)


@parametrize("layout", ["nchw", "channels_last"])
@parametrize("case", [Case(12, (7, 9), 3), Case(70, (14, 13), 1)])
@parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_error_is_at_most_twice_that_of_torch(device: Device, case: Case, dtype: torch.dtype, layout: str) -> None:
    sample = draw(case, dtype, layout, device.type)
    want, ours = expected(sample), results(sample)
    input, logits = sample.input.clone().requires_grad_(), sample.logits.clone().requires_grad_()
    peers = {}
    for pool in POOLS:
        peers[pool] = getattr(reference, pool)(input)
        [peers[f"{pool}_grad"]] = torch.autograd.grad(peers[pool], input, sample.grad_of(pool))
    peers["spatial_gate"] = reference.spatial_gate(input, logits)
    grads = torch.autograd.grad(peers["spatial_gate"], (input, logits), sample.grad_output)
    peers["grad_input"], peers["grad_logits"] = grads
    for name, peer in peers.items():
        # Where torch's error is by chance nearly none: a rounding or, in float32, a few of the largest number.
        roundings = 4 if dtype == torch.float32 else 1
        allowed = max(
            2 * (peer.double() - want[name]).abs().max(),
            roundings * want[name].abs().max() * torch.finfo(dtype).eps,
        )
        assert (ours[name].double() - want[name]).abs().max() <= allowed, name


@parametrize("layout", ["nchw", "channels_last", "channels_last_slice"])
def test_gradcheck(device: Device, layout: str) -> None:
    case = Case(4, (2, 3))
    sample = draw(case, torch.float64, layout, device.type)
    sample.input = sample.input + torch.rand_like(sample.input)  # a maximum with ties has no derivative
    sample = sample.map(lambda x: x.detach().requires_grad_())
    x, logits, g = sample.input, sample.logits, sample.grad_output
    fast = device.is_emulated
    for function, inputs in (
        (pool_op("channel_pool"), (x,)),
        (pool_op("average_max_pool"), (x,)),
        (gate_op, (x, logits)),
        (gate_backward_op, (g, x, logits)),
        (lambda x: pool_op("channel_pool")(x) ** 3, (x,)),
        (lambda x: pool_op("average_max_pool")(x) ** 3, (x,)),
    ):
        assert torch.autograd.gradcheck(function, inputs, fast_mode=fast)
        assert torch.autograd.gradgradcheck(function, inputs, fast_mode=True)
    for pool in POOLS:
        pooled = pool_op(pool)(x).detach()
        linear = lambda g, pool=pool, pooled=pooled: pool_grad_op(pool)(g, x.detach(), pooled)  # noqa: E731
        assert torch.autograd.gradcheck(linear, (sample.grad_of(pool),), fast_mode=fast)
        assert torch.autograd.gradgradcheck(linear, (sample.grad_of(pool),), fast_mode=True)


@parametrize("layout", ["nchw", "channels_last"])
@parametrize("needed", [(True, True), (True, False), (False, True), (False, False)])
def test_gradients_of_what_is_asked_for(device: Device, needed: tuple[bool, bool], layout: str) -> None:
    sample = draw(Case(12), torch.float64, layout, device.type)
    want = expected(sample)
    x, logits = (t.requires_grad_(n) for t, n in zip((sample.input, sample.logits), needed))
    output = fastconv.spatial_gate(x, logits)
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
    sample = draw(Case(40, (9, 11) if device.is_emulated else (60, 90)), torch.float32, layout, device.type)
    before = torch.get_num_threads()
    try:
        first = results(sample)
        for count in (1, 2, 3, 7):
            torch.set_num_threads(count)
            for name, tensor in results(sample).items():
                assert torch.equal(tensor, first[name]), name
    finally:
        torch.set_num_threads(before)


# ---------------------------------------------------------------------------------------------------------------------
# The rest of torch: autocast, compile, export, vmap, FLOPs


@parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_keeps_and_promotes_dtypes_as_torch_does(device: Device, dtype: torch.dtype) -> None:
    wide = draw(Case(12), torch.float32, "nchw", device.type)
    with torch.autocast(device.type, dtype=dtype):
        for x in (wide.input, wide.input.to(dtype)):
            for pool in POOLS:
                assert getattr(fastconv, pool)(x).dtype == getattr(reference, pool)(x).dtype == x.dtype
            for logits in (wide.logits, wide.logits.to(dtype)):
                x.requires_grad_(), logits.requires_grad_()
                ours, own = fastconv.spatial_gate(x, logits), reference.spatial_gate(x, logits)
                assert ours.dtype == own.dtype
                torch.testing.assert_close(ours, own, rtol=2 * torch.finfo(dtype).eps, atol=1e-6)
                grads = torch.autograd.grad(ours, (x, logits), wide.grad_output.to(ours.dtype))
                assert [g.dtype for g in grads] == [x.dtype, logits.dtype]


class Network(torch.nn.Module):
    """The public functions between other operators."""

    def forward(self, x: Tensor) -> Tensor:
        x = x * 2
        x = x * fastconv.average_max_pool(x).sin().sum(1)[..., None, None]
        return fastconv.spatial_gate(x, fastconv.channel_pool(x).sum(1, keepdim=True)).cos()


def network_input(batch: int, height: int, layout: str, device: Device) -> Tensor:
    return draw(Case(6, (height, 5), batch), torch.float32, layout, device.type).input.requires_grad_()


def assert_same_step(compiled: Any, x: Tensor) -> None:
    got, want = compiled(x), Network()(x)
    torch.testing.assert_close(got, want)
    assert got.stride() == want.stride()
    a, b = (torch.autograd.grad(y.square().sum(), x)[0] for y in (got, want))
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
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
    targets = {node.target for node in program.graph.nodes}
    assert {ops.channel_pool.default, ops.average_max_pool.default, gate_op.default} <= targets
    for shape in ((2, 3), (5, 9)):
        x = network_input(*shape, "nchw", device).detach()
        torch.testing.assert_close(program.module()(x), Network()(x))


@parametrize("layout", ["nchw", "channels_last"])
@parametrize("dims", [(0, 0), (1, None), (None, 1), (3, 2), (4, 4)])
def test_vmap(device: Device, dims: tuple[int | None, int | None], layout: str) -> None:
    sample = draw(Case(6, (4, 5)), torch.float64, layout, device.type)
    examples = [[x, x + 1, 2 * x] for x in (sample.input, sample.logits)]
    stacked = [xs[0] if dim is None else torch.stack(xs, dim) for xs, dim in zip(examples, dims)]
    each = [[xs[0 if dim is None else i] for xs, dim in zip(examples, dims)] for i in range(3)]
    want = torch.stack([gate_op(x, logits) for x, logits in each])
    for function in (gate_op, fastconv.spatial_gate):
        torch.testing.assert_close(torch.vmap(function, dims)(*stacked), want)
    if dims[0] is not None:
        for pool in POOLS:
            got = torch.vmap(getattr(fastconv, pool), dims[0])(stacked[0])
            torch.testing.assert_close(got, torch.stack([pool_op(pool)(x) for x in examples[0]]))


def test_vmap_of_the_gradient_operators(device: Device) -> None:
    sample = draw(Case(6, (4, 5)), torch.float64, "nchw", device.type)
    x, logits, g, *grads = (torch.stack([t, 2 * t, t + 1]) for t in vars(sample).values())
    got = torch.vmap(gate_backward_op)(g, x, logits)
    for ours, want in zip(got, zip(*(gate_backward_op(g[i], x[i], logits[i]) for i in range(3)))):
        torch.testing.assert_close(ours, torch.stack(want))
    for pool, grad in zip(POOLS, grads):
        pooled = pool_op(pool)(x[0])
        got = torch.vmap(pool_grad_op(pool), (0, None, None))(grad, x[0], pooled)
        torch.testing.assert_close(got, torch.stack([pool_grad_op(pool)(g, x[0], pooled) for g in grad]))


def test_transforms_of_torch_func(device: Device) -> None:
    sample = draw(Case(4, (2, 2), 1), torch.float64, "nchw", device.type)
    x, logits = sample.input + torch.rand_like(sample.input), sample.logits

    def value(page: Any) -> Any:
        def function(x: Tensor, logits: Tensor) -> Tensor:
            y = page.spatial_gate(x, logits).pow(3)
            return page.channel_pool(y).pow(2).sum() + page.average_max_pool(y).pow(2).sum()

        return function

    for transform in (
        lambda f: torch.func.grad(f, (0, 1))(x, logits),
        lambda f: torch.func.jacrev(torch.func.jacrev(f))(x, logits),
        lambda f: torch.func.vmap(torch.func.grad(f), (None, 0))(x, torch.stack([logits, 2 * logits])),
    ):
        torch.testing.assert_close(transform(value(fastconv)), transform(value(reference)))


def test_batched_gradients(device: Device) -> None:
    """autograd's own vmap, over the backward pass of a graph that was made without one."""
    sample = draw(Case(3, (2, 2), 1), torch.float64, "nchw", device.type)
    x, logits = sample.input.requires_grad_(), sample.logits.requires_grad_()
    output = fastconv.channel_pool(fastconv.spatial_gate(x, logits) * fastconv.average_max_pool(x)[:, 1, :, None, None])
    basis = torch.eye(output.numel(), dtype=torch.float64, device=device.type).view(-1, *output.shape)
    batched = torch.autograd.grad(output, (x, logits), basis, is_grads_batched=True, retain_graph=True)
    for i, vector in enumerate(basis):
        for ours, want in zip(batched, torch.autograd.grad(output, (x, logits), vector, retain_graph=True)):
            torch.testing.assert_close(ours[i], want)


def test_flops_are_none(device: Device) -> None:
    x = draw(Case(), torch.float32, "nchw", device.type).input.requires_grad_()
    with FlopCounterMode(display=False) as counter:
        Network()(x).sum().backward()
    assert counter.get_total_flops() == 0


# ---------------------------------------------------------------------------------------------------------------------
# Property test


@pytest.mark.core
@settings(max_examples=100)
@given(
    channels=st.integers(1, 70), size=st.tuples(st.integers(1, 20), st.integers(1, 20)), batch=st.integers(0, 3),
    dtype=st.sampled_from(DTYPES), layout=st.sampled_from(LAYOUTS),
)  # fmt: skip
def test_drawn_calls(
    device: Device, channels: int, size: tuple[int, int], batch: int, dtype: torch.dtype, layout: str
) -> None:
    check_results(draw(Case(channels, size, batch), dtype, layout, device.type))


# ---------------------------------------------------------------------------------------------------------------------
# Wrong arguments. One text for one mistake, whoever finds it: the operator's host code or the fake kernel.

X = torch.zeros(2, 6, 5, 4)
LOGITS, POOLED, AVERAGES = X[:, :1], X[:, :2], torch.zeros(2, 2, 6)
NOT_FLOAT = "must be float32, float64, bfloat16 or float16, got int64"
ERRORS: dict[str, tuple[Any, tuple, str]] = {
    "pool_rank": (ops.channel_pool, (X[0],), "input must be [N, C, H, W], got [6, 5, 4]"),
    "pool_dtype": (ops.channel_pool, (X.long(),), f"input {NOT_FLOAT}"),
    "pool_nothing": (ops.channel_pool, (X[:, :0],), "input must have at least one channel, got [2, 0, 5, 4]"),
    "average_rank": (ops.average_max_pool, (X[0],), "input must be [N, C, H, W], got [6, 5, 4]"),
    "average_dtype": (ops.average_max_pool, (X.long(),), f"input {NOT_FLOAT}"),
    "average_nothing": (ops.average_max_pool, (X[..., :0],), "input must have at least one pixel, got [2, 6, 5, 0]"),
    "pool_grad_size": (
        ops._channel_pool_input_grad, (X, X, POOLED), "grad_output must be [2, 2, 5, 4], got [2, 6, 5, 4]"
    ),
    "pool_grad_dtype": (
        ops._channel_pool_input_grad, (POOLED.double(), X, POOLED),
        "grad_output must have the dtype of input (float32), got float64",
    ),
    "pool_grad_output": (
        ops._channel_pool_input_grad, (POOLED, X, POOLED[:1]), "output must be [2, 2, 5, 4], got [1, 2, 5, 4]"
    ),
    "average_grad_size": (
        ops._average_max_pool_input_grad, (AVERAGES[:, :1], X, AVERAGES),
        "grad_output must be [2, 2, 6], got [2, 1, 6]",
    ),
    "average_grad_nothing": (
        ops._average_max_pool_input_grad, (AVERAGES, X[:, :, :0], AVERAGES),
        "input must have at least one pixel, got [2, 6, 0, 4]",
    ),
    "gate_rank": (gate_op, (X[0], LOGITS), "input must be [N, C, H, W], got [6, 5, 4]"),
    "gate_dtype": (gate_op, (X.long(), LOGITS), f"input {NOT_FLOAT}"),
    "gate_logits_dtype": (
        gate_op, (X, LOGITS.half()), "logits must have the dtype of input (float32), got float16"
    ),
    "gate_logits": (gate_op, (X, POOLED), "logits must be [2, 1, 5, 4], got [2, 2, 5, 4]"),
    "gate_logits_rank": (gate_op, (X, LOGITS[:, 0]), "logits must be [2, 1, 5, 4], got [2, 5, 4]"),
    "gate_backward_logits": (gate_backward_op, (X, X, POOLED), "logits must be [2, 1, 5, 4], got [2, 2, 5, 4]"),
    "gate_backward_grad": (
        gate_backward_op, (POOLED, X, LOGITS), "grad_output must be [2, 6, 5, 4], got [2, 2, 5, 4]"
    ),
}  # fmt: skip


@parametrize("name", ERRORS)
def test_error_texts(device: Device, name: str) -> None:
    op, arguments, text = ERRORS[name]
    match = re.escape(f"{op.__name__}: {text}") + "$"
    with pytest.raises(RuntimeError, match="^" + match):
        op(*(x.to(device.type) for x in arguments))
    with pytest.raises(RuntimeError, match=match):  # the fake kernel
        op(*(x.to("meta") for x in arguments))


def test_devices_are_not_mixed(device: Device) -> None:
    if device.is_emulated:
        pytest.skip("a tensor of another device is not dispatched to the emulated kernels")
    x, logits = X.to(device.type), LOGITS.to("cpu" if device.type == "cuda" else "meta")
    text = f"spatial_gate: logits must be on the device of input ({x.device}), got {logits.device}"
    with pytest.raises(RuntimeError, match=re.escape(text)):
        gate_op(x, logits)


# ---------------------------------------------------------------------------------------------------------------------
# The machine


@pytest.mark.parametrize("capability", ["avx2", "baseline"])
def test_instruction_sets(capability: str) -> None:
    """The core of this file on the CPU kernels that this machine would not choose."""
    environment = os.environ | {"FASTCONV_CPU_CAPABILITY": capability}
    asked = [sys.executable, "-c", "from fastconv import _C; print(_C.cpu_capability())"]
    chosen = subprocess.run(asked, env=environment, capture_output=True, text=True, check=True).stdout.strip()
    if chosen != capability:
        pytest.skip(f"this machine has no {capability}")
    command = [sys.executable, "-m", "pytest", __file__, "-m", "core and not long", "-q", "-p", "no:cacheprovider"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-6000:] + result.stderr[-2000:]


@pytest.mark.long
@parametrize("layout", ["nchw", "channels_last"])
def test_more_than_2_to_the_31_elements(device: Device, layout: str) -> None:
    """Offsets of the last channels and pixels need 64 bits. Takes 9 GB."""
    if device.is_emulated:
        pytest.skip("too large to emulate")
    x = torch.zeros(1, 6, 19000, 19000, dtype=torch.float16, device=device.type)
    x = x.contiguous(memory_format=FORMATS[layout])
    assert x.numel() > 2**31
    x[:, :, -3:] = torch.randn(1, 6, 3, 19000)
    torch.testing.assert_close(
        ops.channel_pool(x)[:, :, -3:], reference.channel_pool(x[:, :, -3:]), rtol=2e-3, atol=1e-3
    )
    assert torch.equal(ops.average_max_pool(x)[:, 1], x.amax((2, 3)))
    logits = torch.ones(1, 1, 1, 1, dtype=torch.float16, device=device.type).expand(1, 1, 19000, 19000)
    gated = gate_op(x, logits)[:, :, -3:]
    torch.testing.assert_close(gated, reference.spatial_gate(x[:, :, -3:], logits[:, :, -3:]), rtol=2e-3, atol=1e-3)
