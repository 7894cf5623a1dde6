"""deform_conv2d on every device (see conftest.py): the cases are in deform_conv2d_cases.py."""

from __future__ import annotations

import itertools
import math
import sys
from dataclasses import replace
from typing import Any

import fastconv
import pytest
import torch
import torchvision
from conftest import Device
from convolution_cases import LAYOUTS, MEMORY_FORMATS
from deform_conv2d_cases import CASES, DTYPES, Case, Sample, assert_results, expected, make_sample, named, place, run
from fastconv import reference
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

op = torch.ops.fastconv.deform_conv2d
input_grad_op = torch.ops.fastconv._deform_conv2d_input_grad
weight_grad_op = torch.ops.fastconv._deform_conv2d_weight_grad

FEW = named("asymmetric", "asymmetric_v1", "k3_offset_groups4")
TINY = [
    Case("tiny", batch=1, groups=2, offset_groups=2, group_channels=2, group_outputs=1, size=(4, 3), kernel=(3, 2),
         stride=(2, 1), padding=(1, 0), dilation=(1, 2), reach=1.0),
    Case("tiny_v1", batch=2, offset_groups=2, group_channels=2, group_outputs=2, size=(2, 3), kernel=(1, 2),
         mask=False, reach=1.0),
]  # fmt: skip
few = pytest.mark.parametrize("case", FEW, ids=str)
both_formats = pytest.mark.parametrize("layout", MEMORY_FORMATS)


def torchvision_op(input, offset, weight, mask, bias, stride, padding, dilation):  # type: ignore[no-untyped-def]
    return torchvision.ops.deform_conv2d(input, offset, weight, bias, stride, padding, dilation, mask)


def arguments(sample: Sample) -> list[Any]:
    return [sample.input, sample.offset, sample.weight, sample.mask, sample.bias]


def between_pixels(sample: Sample) -> Sample:
    """Where finite differences may be taken: no offset is near a whole number."""
    return replace(sample, offset=sample.offset.floor() + 0.2 + 0.6 * torch.rand_like(sample.offset))


# ---------------------------------------------------------------------------------------------------------------------
# Results and gradients


@pytest.mark.core
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_against_reference(device: Device, case: Case, dtype: str, layout: str) -> None:
    sample, exact, magnitude = expected(case, dtype)
    assert_results(run(op, place(sample, device.type, layout), case), case, exact, magnitude)


@pytest.mark.core
@few
@pytest.mark.parametrize(
    "layout, offset_layout",
    [
        ("nchw_offset", "channels_last_offset"),
        ("channels_last_offset", "nchw_slice"),
        ("nchw", "transposed"),
        ("transposed", "every_other"),
        ("channels_last", "channels_first_and_last"),
        ("channels_first_and_last", "nchw"),
        ("every_other", "channels_last"),
    ],
)
def test_awkward_layouts(device: Device, case: Case, layout: str, offset_layout: str) -> None:
    sample, exact, magnitude = expected(case, "float32")
    assert_results(run(op, place(sample, device.type, layout, offset_layout), case), case, exact, magnitude)


@pytest.mark.core
@both_formats
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("needed", [n for n in itertools.product([True, False], repeat=5) if any(n)])
def test_gradients_of_what_is_asked_for(device: Device, needed: tuple[bool, ...], dtype: str, layout: str) -> None:
    case = FEW[0]
    sample, exact, magnitude = expected(case, dtype)
    sample = place(sample, device.type, layout)
    leaves = [x.clone().requires_grad_(n) for x, n in zip(arguments(sample), needed)]
    op(*leaves, *case.geometry).backward(sample.grad_output)
    assert [x.grad is not None for x in leaves] == list(needed)
    names = ("input", "offset", "weight", "mask", "bias")
    found = {name: x.grad for name, x in zip(names, leaves)}
    assert_results(
        replace(exact.to(*DTYPES[dtype]), **{n: x for n, x in found.items() if x is not None}), case, exact, magnitude
    )


@both_formats
@pytest.mark.parametrize("case", [case for case in CASES if case.batch], ids=str)
def test_against_torchvision_in_float64(device: Device, case: Case, layout: str) -> None:
    sample = place(make_sample(case), device.type, layout)
    ours, own = run(op, sample, case), run(torchvision_op, sample, case)
    for name, a in ours.tensors().items():
        b = own.tensors()[name]
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12 * b.abs().max().item() + 1e-300, msg=name)


@pytest.mark.parametrize("value", [0.0, -1.0, 2.0, 30.0])
def test_whole_offsets_against_torchvision(device: Device, value: float) -> None:
    """Where samples have no derivative, that towards greater positions is taken: also at -1, where they are zero."""
    case = replace(FEW[0], padding=(3, 2))
    sample = place(make_sample(case), device.type, "nchw")
    sample = replace(sample, offset=torch.full_like(sample.offset, value))
    ours, own = run(op, sample, case), run(torchvision_op, sample, case)
    for name, a in ours.tensors().items():
        torch.testing.assert_close(a, own.tensors()[name], rtol=1e-12, atol=1e-12, msg=name)


@pytest.mark.parametrize(
    "groups, offset_groups, kernel", list(itertools.product((1, 2, 4), (1, 2, 4), ((3, 3), (2, 1))))
)
def test_sweep_against_torchvision(device: Device, groups: int, offset_groups: int, kernel: tuple[int, int]) -> None:
    for stride, dilation, mask in itertools.product(((1, 1), (2, 1), (1, 3)), ((1, 1), (1, 2)), (True, False)):
        case = Case(
            "sweep", size=(7, 8), kernel=kernel, stride=stride, dilation=dilation, padding=(1, 2), groups=groups,
            offset_groups=offset_groups, group_channels=8 // groups, group_outputs=3, mask=mask,
        )  # fmt: skip
        sample = place(between_pixels(make_sample(case)), device.type, "channels_last")
        ours, own = run(op, sample, case), run(torchvision_op, sample, case)
        for name, a in ours.tensors().items():
            torch.testing.assert_close(a, own.tensors()[name], rtol=1e-11, atol=1e-11, msg=f"{case} {name}")


@both_formats
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("case", named("asymmetric", "k3", "k3_wide", "k3_groups_wide", "k7"), ids=str)
def test_error_is_at_most_twice_that_of_torch(device: Device, case: Case, dtype: torch.dtype, layout: str) -> None:
    """Torch's own operators, composed in the dtype."""
    sample = between_pixels(make_sample(case)).to(dtype, dtype)
    exact = run(reference.deform_conv2d, sample.map(torch.Tensor.double), case)
    ours = run(op, place(sample, device.type, layout), case)
    own = run(reference.deform_conv2d, place(sample, device.type, layout), case)
    for name, a in ours.tensors().items():
        e = exact.tensors()[name]

        def error(x: Tensor, exact: Tensor = e) -> float:
            return (x.cpu().double() - exact).abs().max().item()

        assert error(a) <= 2 * error(own.tensors()[name]) + 1e-6 * e.abs().max().item(), name


@both_formats
@few
def test_memory_formats_are_kept(device: Device, case: Case, layout: str) -> None:
    for offset_layout in MEMORY_FORMATS:
        actual = run(op, place(expected(case, "float32")[0], device.type, layout, offset_layout), case)
        for name, x in actual.tensors().items():
            if name in ("input", "grad_output"):
                assert x.is_contiguous(memory_format=MEMORY_FORMATS[layout]), name
            if name in ("offset", "mask"):
                assert x.is_contiguous(memory_format=MEMORY_FORMATS[offset_layout]), name


@pytest.mark.core
@both_formats
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e30, -1e9, 2.0**31, 2.0**40])
def test_positions_far_away(device: Device, value: float, dtype: str, layout: str) -> None:
    """Their samples are zero and have no gradient, whatever their masks are; the rest is as if those were zero."""
    case = FEW[0]
    sample, *_ = expected(case, dtype)
    sample = place(sample, device.type, layout)
    far = torch.rand(sample.offset.shape, device=device.type) < 0.2
    of_tap = far[:, ::2] | far[:, 1::2]
    mask = torch.where(of_tap & (torch.rand(of_tap.shape, device=device.type) < 0.5), math.nan, sample.mask)
    moved = replace(sample, offset=torch.where(far, value, sample.offset), mask=mask)
    hidden = replace(sample, mask=torch.where(of_tap, 0, sample.mask))
    actual, want = run(op, moved, case), run(op, hidden, case)
    if dtype == "float32":
        stated = reference.deform_conv2d(*arguments(moved), *case.geometry)
        torch.testing.assert_close(stated, want.grad_output, rtol=1e-5, atol=1e-5)
    for name in ("grad_output", "input", "weight"):
        a, b = getattr(actual, name), getattr(want, name)
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5 if dtype == "float32" else 2e-2, msg=name)
    assert not actual.mask[of_tap].any()
    assert not actual.offset[of_tap.repeat_interleave(2, 1)].any()


@pytest.mark.core
@both_formats
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_values_that_are_not_finite_reach_what_reads_them(device: Device, value: float, layout: str) -> None:
    case = replace(FEW[0], groups=1, group_channels=6, offset_groups=1)
    sample = make_sample(case).to(torch.float32, torch.float32)
    sample.input[0, 1, 4, 5] = value
    sample = place(between_pixels(sample), device.type, layout)
    actual, want = (f(*arguments(sample), *case.geometry) for f in (op, reference.deform_conv2d))
    assert torch.equal(actual.isfinite(), want.isfinite()) and not want.isfinite().all()


@both_formats
@pytest.mark.parametrize("size", [(0, 5), (6, 0), (0, 0)])
def test_map_without_pixels(device: Device, size: tuple[int, int], layout: str) -> None:
    case = replace(FEW[0], size=size, kernel=(3, 2), stride=(1, 1), padding=(2, 1), dilation=(1, 1))
    sample = place(make_sample(case), device.type, "nchw")
    sample.input = sample.input.contiguous(memory_format=MEMORY_FORMATS[layout])
    actual = run(op, sample, case)
    assert actual.grad_output.numel() > 0
    assert torch.equal(actual.grad_output, sample.bias[:, None, None].expand(case.output_shape))
    for name in ("input", "offset", "weight", "mask"):
        assert getattr(actual, name).shape == getattr(sample, name).shape and not getattr(actual, name).any(), name


@pytest.mark.core
@both_formats
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "case", [FEW[0], Case("long_sums", batch=2, size=(19, 17), group_channels=20, offset_groups=2, padding=(1, 1))],
    ids=str,
)  # fmt: skip
def test_deterministic(device: Device, case: Case, dtype: str, layout: str) -> None:
    sample = place(make_sample(case).to(*DTYPES[dtype]), device.type, layout)
    torch.use_deterministic_algorithms(True)
    try:
        first = run(op, sample, case)
        for _ in range(3):
            for name, x in run(op, sample, case).tensors().items():
                assert torch.equal(x, first.tensors()[name]), name
    finally:
        torch.use_deterministic_algorithms(False)


def test_results_do_not_depend_on_the_number_of_threads(device: Device) -> None:
    case = Case("threads", batch=2, size=(19, 17), group_channels=20, offset_groups=2, padding=(1, 1))
    sample = place(make_sample(case).to(torch.float32, torch.float32), device.type, "nchw")
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(run(op, sample, case))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        for name, x in other.tensors().items():
            torch.testing.assert_close(x, results[0].tensors()[name], rtol=1e-5, atol=1e-4, msg=name)


# ---------------------------------------------------------------------------------------------------------------------
# Derivatives


@both_formats
@pytest.mark.parametrize("case", TINY, ids=str)
def test_gradcheck(device: Device, case: Case, layout: str) -> None:
    sample = place(between_pixels(make_sample(case)), device.type, layout)
    leaves = [x if x is None else x.requires_grad_() for x in arguments(sample)]

    def function(*leaves: Any) -> Tensor:
        return op(*leaves, *case.geometry)

    assert torch.autograd.gradcheck(function, leaves, fast_mode=device.is_emulated)
    assert torch.autograd.gradgradcheck(function, leaves, fast_mode=layout != "nchw")


@pytest.mark.parametrize("case", TINY, ids=str)
def test_gradcheck_of_the_gradient_operators(device: Device, case: Case) -> None:
    sample = place(between_pixels(make_sample(case)), device.type, "nchw")
    leaves = [sample.grad_output, sample.input, sample.offset, sample.weight, sample.mask]
    leaves = [x if x is None else x.requires_grad_() for x in leaves]
    for needed in ([0, 1], [1], [2, 0])[: 3 if case.mask else 2]:
        assert torch.autograd.gradcheck(
            lambda *a, needed=needed: tuple(input_grad_op(*a, *case.geometry, needed, False)), leaves, fast_mode=True
        )
    assert torch.autograd.gradcheck(lambda *a: weight_grad_op(*a, *case.geometry, False), leaves, fast_mode=True)
    assert torch.autograd.gradgradcheck(lambda *a: weight_grad_op(*a, *case.geometry, False), leaves, fast_mode=True)


@pytest.mark.parametrize("case", TINY, ids=str)
def test_second_and_third_derivatives_are_those_of_the_reference(device: Device, case: Case) -> None:
    sample = place(between_pixels(make_sample(case)), device.type, "nchw")

    def derivatives(function: Any) -> list[Tensor]:
        leaves = [x if x is None else x.detach().requires_grad_() for x in arguments(sample)]
        given = [x for x in leaves[:4] if x is not None]
        value = function(*leaves, *case.geometry).pow(3).sum()
        found = []
        for _ in range(3):
            grads = torch.autograd.grad(value, given, create_graph=True)
            value = sum((g.pow(2).sum() for g in grads), torch.zeros(()))
            found.append(torch.cat([g.flatten() for g in grads]))
        return found

    for ours, own in zip(derivatives(op), derivatives(reference.deform_conv2d)):
        torch.testing.assert_close(ours, own, rtol=1e-9, atol=1e-9 * own.abs().max().item())


# ---------------------------------------------------------------------------------------------------------------------
# The rest of torch: autocast, compile, export, vmap, FLOPs


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("public", [True, False])
def test_autocast(device: Device, dtype: torch.dtype, public: bool) -> None:
    """Input and weight are lowered; offset and mask, whatever they came as, are float32."""
    case = FEW[0]
    sample = place(make_sample(case).to(torch.float32, torch.float32), device.type, "nchw")
    sample.mask = sample.mask.to(dtype)

    def call(x: Tensor, offset: Tensor, w: Tensor, mask: Tensor, bias: Tensor, *geometry: Any) -> Tensor:
        with torch.autocast(device.type, dtype=dtype):
            if public:
                return fastconv.deform_conv2d(x, offset, w, bias, *geometry, mask)
            return op(x, offset, w, mask, bias, *geometry)

    lowered = sample.to(dtype, torch.float32)
    actual = run(call, replace(sample, grad_output=lowered.grad_output), case)
    want = run(op, lowered, case)
    assert actual.grad_output.dtype == dtype
    for name, x in actual.tensors().items():
        assert torch.equal(x.float(), want.tensors()[name].to(x.dtype).float()), name
        assert name == "grad_output" or x.dtype == sample.tensors()[name].dtype
    wide = place(make_sample(case), device.type, "nchw")
    assert run(call, replace(wide, mask=wide.mask.double()), case).grad_output.dtype == torch.float64


class Network(torch.nn.Module):
    def __init__(self, case: Case) -> None:
        super().__init__()
        self.geometry = case.geometry
        self.weight = torch.nn.Parameter(torch.randn(case.weight_shape))
        per_tap = 3 if case.mask else 2
        self.offsets = torch.nn.Conv2d(case.channels, per_tap * case.offset_groups * case.taps, case.kernel,
                                       *case.geometry)  # fmt: skip
        self.mask = case.mask

    def forward(self, x: Tensor) -> Tensor:
        offsets, mask = self.offsets(x), None
        if self.mask:
            offsets, mask = offsets.split([offsets.shape[1] // 3 * 2, offsets.shape[1] // 3], 1)
        return fastconv.deform_conv2d(x * 2, offsets, self.weight, None, *self.geometry, mask).sin()


def step(network: Any, x: Tensor) -> list[Tensor]:
    x = x.detach().requires_grad_()
    output = network(x)
    return [output, *torch.autograd.grad(output.square().sum(), [x, *network.parameters()])]


@both_formats
@pytest.mark.parametrize("dynamic", [False, True])
@few
def test_compile(device: Device, case: Case, dynamic: bool, layout: str) -> None:
    torch._dynamo.reset()
    network = Network(case).to(device.type)
    compiled = torch.compile(network, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for batch, height in ((2, 9), (3, 11)) if dynamic else ((2, 9),):
        x = torch.randn(batch, case.channels, height, 12, device=device.type)
        x = x.contiguous(memory_format=MEMORY_FORMATS[layout])
        for a, b in zip(step(compiled, x), step(network, x)):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
            assert a.stride() == b.stride()


def test_export(device: Device) -> None:
    case = FEW[0]
    network, x = Network(case).to(device.type), torch.randn(case.input_shape, device=device.type)
    batch, height = torch.export.Dim("batch", min=2, max=64), torch.export.Dim("height", min=6, max=64)
    program = torch.export.export(network, (x,), dynamic_shapes={"x": {0: batch, 2: height}})
    assert op.default in {node.target for node in program.graph.nodes}
    other = torch.randn(4, case.channels, 13, case.size[1], device=device.type)
    torch.testing.assert_close(program.module()(other), network(other))


@few
@pytest.mark.parametrize("batched", ["input", "offset", "weight", "mask", "bias", "input weight", "offset mask", "all"])
def test_vmap(device: Device, case: Case, batched: str) -> None:
    samples = [place(make_sample(case, seed=i).to(torch.float32, torch.float32), device.type, "nchw") for i in range(3)]
    names = ("input", "offset", "weight", "mask", "bias")
    lists = [[getattr(s, name) for s in samples] for name in names]
    in_dims = tuple(
        None if xs[0] is None or not (batched == "all" or name in batched.split()) else min(i, xs[0].dim())
        for i, (name, xs) in enumerate(zip(names, lists))
    )
    if all(dim is None for dim in in_dims):
        pytest.skip("v1 has no mask")
    stacked = [xs[0] if dim is None else torch.stack(xs, dim) for xs, dim in zip(lists, in_dims)]

    def call(*leaves: Any) -> Tensor:
        return op(*leaves, *case.geometry)

    want = [call(*(xs[0 if dim is None else i] for xs, dim in zip(lists, in_dims))) for i in range(3)]
    torch.testing.assert_close(torch.vmap(call, in_dims)(*stacked), torch.stack(want), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", TINY, ids=str)
def test_transforms_of_torch_func(device: Device, case: Case) -> None:
    sample = place(between_pixels(make_sample(case)), device.type, "nchw")

    def loss(function: Any) -> Any:
        return lambda w, x, o: function(x, o, w, sample.mask, sample.bias, *case.geometry).sin().sum()

    def public(x: Tensor, o: Tensor, w: Tensor, m: Any, b: Any, *geometry: Any) -> Tensor:
        return fastconv.deform_conv2d(x, o, w, b, *geometry, m)

    def grad_of_grad(f: Any) -> Any:
        return torch.func.grad(lambda w, x, o: torch.func.grad(f, 2)(w, x, o).square().sum(), (0, 1, 2))

    transforms: dict[str, Any] = {
        "jacrev of grad": lambda f: torch.func.jacrev(torch.func.grad(f)),
        "grad of grad": grad_of_grad,
        "vmap of grad": lambda f: torch.func.vmap(torch.func.grad(f, (0, 1, 2)), (None, 0, None)),
        "vmap over weight of grad": lambda f: torch.func.vmap(torch.func.grad(f, (0, 1, 2)), (0, None, None)),
        "vmap of grad of grad": lambda f: torch.func.vmap(grad_of_grad(f), (None, 0, None)),
        "grad of vmap": lambda f: torch.func.grad(
            lambda w, x, o: torch.func.vmap(f, (None, 0, None))(w, x, o).square().sum()
        ),
    }
    for name, transform in transforms.items():
        w, x = sample.weight, sample.input
        if "over weight" in name:
            w = torch.stack([w, -w])
        elif "vmap" in name:
            x = torch.stack([x, -x])
        actual, want = (transform(loss(f))(w, x, sample.offset) for f in (public, reference.deform_conv2d))
        torch.testing.assert_close(actual, want, rtol=1e-9, atol=1e-9, msg=name)


@few
def test_flops(device: Device, case: Case) -> None:
    """The products with the weight, as torch counts those of a convolution."""
    sample = place(expected(case, "float32")[0], device.type, "nchw")
    with FlopCounterMode(display=False) as forward:
        op(*arguments(sample), *case.geometry)
    with FlopCounterMode(display=False) as both:
        run(op, sample, case)
    assert forward.get_total_flops() == 2 * math.prod(case.output_shape) * case.products
    assert both.get_total_flops() == 3 * forward.get_total_flops()


# ---------------------------------------------------------------------------------------------------------------------
# The public function and its errors


def test_signature_is_that_of_torchvision(device: Device) -> None:
    import inspect

    ours, own = (list(inspect.signature(f.deform_conv2d).parameters.values()) for f in (fastconv, torchvision.ops))
    assert [(p.name, p.default) for p in ours] == [(p.name, p.default) for p in own]
    case = FEW[0]
    s = place(expected(case, "float32")[0], device.type, "nchw")
    call = {"stride": case.stride, "padding": case.padding, "dilation": case.dilation, "mask": s.mask, "bias": s.bias}
    actual = fastconv.deform_conv2d(s.input, s.offset, s.weight, **call)
    torch.testing.assert_close(actual, torchvision.ops.deform_conv2d(s.input, s.offset, s.weight, **call),
                               rtol=1e-4, atol=1e-4)  # fmt: skip
    k1 = torch.randn(3, case.channels, 1, 1, device=device.type)
    offset = torch.zeros(case.batch, 2, *case.size, device=device.type)
    torch.testing.assert_close(
        fastconv.deform_conv2d(s.input, offset, k1, stride=1, padding=0, dilation=1),
        torch.nn.functional.conv2d(s.input, k1), rtol=1e-4, atol=1e-4,
    )  # fmt: skip


GOOD: dict[str, Any] = {
    "input": torch.zeros(2, 4, 5, 6), "offset": torch.zeros(2, 24, 3, 5), "weight": torch.zeros(6, 2, 3, 2),
    "mask": torch.zeros(2, 12, 3, 5), "bias": torch.zeros(6), "stride": [1, 1], "padding": [0, 0], "dilation": [1, 1],
}  # fmt: skip
OFFSET_CHANNELS = (
    "offset.size(1) must be 12 (2 * kernel_h * kernel_w) times offset groups that divide the channels of input, 4, got "
)
ERRORS: dict[str, tuple[dict[str, Any], str]] = {
    "input_rank": ({"input": torch.zeros(4, 5, 6)}, "input must be [N, C, H, W], got [4, 5, 6]"),
    "input_dtype": ({"input": torch.zeros(2, 4, 5, 6, dtype=torch.int32)},
                    "input must be float32, float64, bfloat16 or float16, got int32"),
    "weight_dtype": ({"weight": torch.zeros(6, 2, 3, 2).half()},
                     "weight must have the dtype of input (float32), got float16"),
    "weight_rank": ({"weight": torch.zeros(6, 2, 6)},
                    "weight must be [out_channels, channels / groups, kernel_h, kernel_w], got [6, 2, 6]"),
    "weight_without_taps": ({"weight": torch.zeros(6, 2, 0, 2)},
                            "weight must be [out_channels, channels / groups, kernel_h, kernel_w], got [6, 2, 0, 2]"),
    "weight_without_channels": (
        {"weight": torch.zeros(6, 0, 3, 2)},
        "weight must be [out_channels, channels / groups, kernel_h, kernel_w], got [6, 0, 3, 2]"),
    "channels": ({"weight": torch.zeros(6, 3, 3, 2)},
                 "the channels of input must be a multiple of weight.size(1), 3, got 4"),
    "out_channels": ({"weight": torch.zeros(5, 2, 3, 2)}, "weight.size(0) must be a multiple of groups, 2, got 5"),
    "stride": ({"stride": [0, 1]}, "stride must be at least 1 and less than 2^31, got (0, 1)"),
    "padding": ({"padding": [0, -1]}, "padding must be at least 0 and less than 2^31, got (0, -1)"),
    "kernel": ({"dilation": [3, 1]},
               "the dilated kernel (7 x 2) must not be larger than the padded input (5 x 6); input [2, 4, 5, 6], "
               "weight [6, 2, 3, 2], padding (0, 0), dilation (3, 1)"),
    "offset_rank": ({"offset": torch.zeros(24, 3, 5)}, "offset must be [N, C, H, W], got [24, 3, 5]"),
    "offset_dtype": ({"offset": torch.zeros(2, 24, 3, 5).bfloat16()},
                     "offset must have the dtype of input (float32), got bfloat16"),
    "offset_dtype_of_low_input": (
        {"input": torch.zeros(2, 4, 5, 6).half(), "weight": torch.zeros(6, 2, 3, 2).half(),
         "offset": torch.zeros(2, 24, 3, 5).bfloat16()},
        "offset must have the dtype of input (float16) or float32, got bfloat16"),
    "offset_channels": ({"offset": torch.zeros(2, 18, 3, 5)}, OFFSET_CHANNELS + "18"),
    "offset_few_channels": ({"offset": torch.zeros(2, 6, 3, 5)}, OFFSET_CHANNELS + "6"),
    "offset_groups": ({"offset": torch.zeros(2, 36, 3, 5)}, OFFSET_CHANNELS + "36"),
    "offset_size": ({"offset": torch.zeros(2, 24, 5, 6)}, "offset must be [2, 24, 3, 5], got [2, 24, 5, 6]"),
    "offset_batch": ({"offset": torch.zeros(1, 24, 3, 5)}, "offset must be [2, 24, 3, 5], got [1, 24, 3, 5]"),
    "mask_rank": ({"mask": torch.zeros(12, 3, 5)}, "mask must be [N, C, H, W], got [12, 3, 5]"),
    "mask_dtype": ({"mask": torch.zeros(2, 12, 3, 5).double()},
                   "mask must have the dtype of offset (float32), got float64"),
    "mask_channels": ({"mask": torch.zeros(2, 6, 3, 5)}, "mask must be [2, 12, 3, 5], got [2, 6, 3, 5]"),
    "mask_size": ({"mask": torch.zeros(2, 12, 3, 4)}, "mask must be [2, 12, 3, 5], got [2, 12, 3, 4]"),
    "bias_shape": ({"bias": torch.zeros(4)}, "bias must be [6], got [4]"),
    "bias_dtype": ({"bias": torch.zeros(6).half()}, "bias must have the dtype of input (float32), got float16"),
}  # fmt: skip


@pytest.mark.parametrize("error", ERRORS)
def test_errors(device: Device, error: str) -> None:
    """One text for one mistake, from the operator and from its fake."""
    wrong, text = ERRORS[error]
    call = {**GOOD, **wrong}
    on_device = {k: x.to(device.type) if isinstance(x, Tensor) else x for k, x in call.items()}
    with pytest.raises(RuntimeError) as real:
        op(*on_device.values())
    assert str(real.value) == f"deform_conv2d: {text}"
    check = sys.modules["fastconv.ops.deform_conv2d"].check_arguments
    with pytest.raises(RuntimeError) as fake:
        check("deform_conv2d", *call.values())
    assert str(fake.value) == f"deform_conv2d: {text}"


def test_errors_of_the_gradients(device: Device) -> None:
    good = {k: x.to(device.type) if isinstance(x, Tensor) else x for k, x in GOOD.items() if k != "bias"}
    grad = torch.zeros(2, 6, 3, 5, device=device.type)
    for kind in (torch.Tensor.clone, lambda x: x.to("meta")):
        tensors = [kind(x) for x in (grad, *list(good.values())[:4])]
        geometry = [good[name] for name in ("stride", "padding", "dilation")]
        for needed, mask, text in (
            ([0, 3], True, ", 2 mask, each once, got (0, 3)"),
            ([1, 1], True, ", 2 mask, each once, got (1, 1)"),
            ([2], False, ", each once, got (2)"),
        ):
            with pytest.raises(RuntimeError) as error:
                input_grad_op(*tensors[:4], tensors[4] if mask else None, *geometry, needed, False)
            text = f"_deform_conv2d_input_grad: needed must be some of 0 input, 1 offset{text}"
            assert str(error.value) == text
        for call, name in (
            (lambda g: input_grad_op(g, *tensors[1:], *geometry, [0], False), "_deform_conv2d_input_grad"),  # noqa: B023
            (lambda g: weight_grad_op(g, *tensors[1:], *geometry, False), "_deform_conv2d_weight_grad"),  # noqa: B023
        ):
            with pytest.raises(RuntimeError) as error:
                call(tensors[0][:, :4])
            assert str(error.value) == f"{name}: grad_output must be [2, 6, 3, 5], got [2, 4, 3, 5]"


@pytest.mark.long
@both_formats
def test_more_than_2_to_the_31_elements(device: Device, layout: str) -> None:
    """Offsets of the last image need 64 bits. Takes 12 GB."""
    if device.is_emulated:
        pytest.skip("too large to emulate")
    x = torch.zeros(9, 4, 8000, 8000, dtype=torch.float16, device=device.type)
    x = x.contiguous(memory_format=MEMORY_FORMATS[layout])
    assert x.numel() > 2**31
    tail = torch.randn(1, 4, 4, 8000).half().to(device.type)
    x[-1:, :, -4:] = tail
    weight = torch.randn(3, 4, 1, 1).half().to(device.type)
    mask = torch.ones(9, 1, 4, 4000, device=device.type)
    near = torch.full((9, 2, 4, 4000), 0.25, device=device.type)
    far = near.clone()  # all of the rows' samples are moved to the last four.
    far[:, 0] += 8000 - 4 - torch.arange(4, device=device.type)[:, None] * (2000 - 1)
    geometry = [0, 0], [1, 1]
    want = op(tail, near[:1], weight, mask[:1], None, [1, 2], *geometry)
    result = op(x, far, weight, mask, None, [2000, 2], *geometry)
    assert torch.equal(result[-1:], want)
    assert not result[:-1].any()

    grad = torch.zeros_like(result)
    grad[-1] = torch.randn(3, 4, 4000).half()
    want = weight_grad_op(grad[-1:], tail, near[:1], weight, mask[:1], [1, 2], *geometry, False)
    assert torch.equal(weight_grad_op(grad, x, far, weight, mask, [2000, 2], *geometry, False), want)
    [want] = input_grad_op(grad[-1:], tail, near[:1], weight, mask[:1], [1, 2], *geometry, [0], False)
    [result] = input_grad_op(grad, x, far, weight, mask, [2000, 2], *geometry, [0], False)
    assert torch.equal(result[-1:, :, -4:], want)
    assert not result[-1, :, :-4].any()
