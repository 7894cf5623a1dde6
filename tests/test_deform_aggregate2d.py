"""deform_aggregate2d on every device (see conftest.py): the cases are in deform_aggregate2d_cases.py."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from typing import Any

import fastconv
import pytest
import torch
import torchvision
from conftest import Device
from convolution_cases import deterministic_algorithms, threads
from deform_aggregate2d_cases import (
    BY_NAME,
    CASES,
    EMPTY,
    LAYOUTS,
    Case,
    Results,
    Sample,
    assert_results,
    expected,
    make_sample,
    run,
)
from fastconv import reference
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

op = torch.ops.fastconv.deform_aggregate2d
backward_op = torch.ops.fastconv._deform_aggregate2d_backward
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
NAN, INF = float("nan"), float("inf")


def parametrize(names: str, values: Any) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(names, values, ids=lambda value: str(value).removeprefix("torch."))


def named(*names: str) -> list[Case]:
    return [BY_NAME[name] for name in names]


def assert_same_bits(a: Results, b: Results) -> None:
    for name in ("output", "input", "offset", "mask"):
        assert torch.equal(getattr(a, name), getattr(b, name)), name


# ---------------------------------------------------------------------------------------------------------------------
# Results and gradients


@pytest.mark.core
@parametrize("layout", LAYOUTS)
@parametrize("dtype", DTYPES)
@parametrize("case", CASES)
def test_against_reference(device: Device, case: Case, dtype: torch.dtype, layout: str) -> None:
    sample, exact, magnitude = expected(case, dtype)
    placed = sample.place(device.type, layout)
    results = run(op, placed, case)
    assert_results(results, case, exact, magnitude)
    format = torch.channels_last if "channels_last" in layout else torch.contiguous_format
    assert results.output.is_contiguous(memory_format=format)
    assert results.input.is_contiguous(memory_format=format)


@pytest.mark.core
@parametrize("layouts", [("nchw", "channels_last"), ("channels_last", "nchw"), ("nchw_offset", "transposed"),
                         ("channels_last_offset", "channels_last_offset"), ("transposed", "nchw_slice"),
                         ("channels_last", "channels_first_and_last")])  # fmt: skip
@parametrize("dtype", [torch.float32, torch.bfloat16])
@parametrize("case", named("asymmetric", "internimage"))
def test_awkward_layouts(device: Device, case: Case, dtype: torch.dtype, layouts: tuple[str, str]) -> None:
    sample, exact, magnitude = expected(case, dtype)
    assert_results(run(op, sample.place(device.type, *layouts), case), case, exact, magnitude)


@pytest.mark.core
@parametrize("layout", ["nchw", "channels_last"])
@parametrize("dtype", [torch.bfloat16, torch.float16])
@parametrize("case", named("internimage", "asymmetric", "group_of_40"))
def test_float32_offsets_beside_16_bit_input(device: Device, case: Case, dtype: torch.dtype, layout: str) -> None:
    sample, exact, magnitude = expected(case, dtype, torch.float32)
    results = run(op, sample.place(device.type, layout), case)
    assert (results.output.dtype, results.offset.dtype, results.mask.dtype) == (dtype, torch.float32, torch.float32)
    assert_results(results, case, exact, magnitude)
    mixed = sample.place(device.type, layout)
    mixed.offset = mixed.offset.to(dtype)  # exact
    mixed_results = run(op, mixed, case)
    assert mixed_results.offset.dtype == dtype
    assert torch.equal(mixed_results.output, results.output) and torch.equal(mixed_results.mask, results.mask)


@pytest.mark.core
@parametrize("layout", ["nchw", "channels_last"])
@parametrize("case", EMPTY)
def test_empty_maps(device: Device, case: Case, layout: str) -> None:
    sample = make_sample(case, torch.float32).place(device.type, layout)
    results = run(op, sample, case)
    assert results.output.shape == (case.batch, case.channels, *case.output_size)
    assert not results.output.any()  # where nothing can be sampled there are zeros
    for grad, x in zip((results.input, results.offset, results.mask), sample.tensors):
        assert grad.shape == x.shape and not grad.any()


@parametrize("layout", ["nchw", "channels_last"])
@parametrize("case", named("plain", "asymmetric", "even_kernel", "k25", "far", "group_of_40", "strided", "one_pixel"))
def test_against_torchvision(device: Device, case: Case, layout: str) -> None:
    """Its deformable convolution with ones for weights, a filter a channel. On pixels too, where derivatives jump."""

    def peer(input: Tensor, offset: Tensor, mask: Tensor, *_: Any) -> Tensor:
        weight = input.new_ones(case.channels, 1, *case.kernel)
        return torchvision.ops.deform_conv2d(
            input, offset, weight, None, case.stride, case.padding, case.dilation, mask
        )

    sample = make_sample(case).place("cpu", layout)
    for offset in (sample.offset, sample.offset.round()):
        sample.offset = offset
        want = run(peer, sample, case)
        got = run(op, sample.map(lambda x: x.to(device.type)), case)
        for name in ("output", "input", "offset", "mask"):
            torch.testing.assert_close(getattr(got, name).cpu(), getattr(want, name), rtol=1e-10, atol=1e-10)


def test_without_offsets_it_is_a_depthwise_convolution(device: Device) -> None:
    weight = torch.randn(3, 1, 3, 2, dtype=torch.float64, device=device.type)
    x = torch.randn(2, 12, 7, 8, dtype=torch.float64, device=device.type)
    want = torch.nn.functional.conv2d(x, weight.repeat_interleave(4, 0), None, (2, 1), (1, 1), (1, 2), 12)
    mask = weight.flatten()[None, :, None, None].expand(2, -1, *want.shape[2:])
    offset = x.new_zeros(2, 36, *want.shape[2:])
    got = fastconv.deform_aggregate2d(x, offset, mask, (3, 2), (2, 1), 1, (1, 2), groups=3)
    torch.testing.assert_close(got, want)


def test_offset_scale_moves_taps_away_from_the_centre(device: Device) -> None:
    """Doubled, a 3 x 3 kernel is one of dilation 2 and padding 2; a tap of an even kernel stays where it is: the centre
    of (2 - 1) / 2, rounded down."""
    x = torch.randn(1, 3, 6, 7, dtype=torch.float64, device=device.type)
    mask = torch.randn(1, 9, 6, 7, dtype=torch.float64, device=device.type)
    offset = x.new_zeros(1, 18, 6, 7)
    twice = fastconv.deform_aggregate2d(x, offset, mask, 3, padding=1, offset_scale=2)
    torch.testing.assert_close(twice, fastconv.deform_aggregate2d(x, offset, mask, 3, padding=2, dilation=2))
    even = fastconv.deform_aggregate2d(x, offset[:, :8, 1:, 1:], mask[:, :4, 1:, 1:], 2, offset_scale=0)
    torch.testing.assert_close(even, x[:, :, :-1, :-1] * mask[:, :4, 1:, 1:].sum(1, keepdim=True))


@pytest.mark.core
@parametrize("layout", ["nchw", "channels_last"])
@parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_positions_that_are_nowhere(device: Device, dtype: torch.dtype, layout: str) -> None:
    """NaN, infinite and far positions contribute zero and have zero gradients, whatever their masks are."""
    case = BY_NAME["internimage"]
    sample = make_sample(case, dtype).place(device.type, layout)
    values = (NAN, INF, -INF, 1e30, -1e30, 2.0**31, -(2.0**31), 2.0**32, 1e4, -1e4)
    limit = torch.finfo(dtype).max
    nowhere = torch.zeros_like(sample.mask, dtype=torch.bool)
    for i, value in enumerate(values):
        channel = 7 * i % (2 * 36)
        sample.offset[0, channel, i % 6, :5] = value if abs(value) <= limit or value != value else INF
        nowhere[0, channel // 2, i % 6, :5] = True
    got = run(op, sample, case)
    without = Sample(sample.input, sample.offset.masked_fill(nowhere.repeat_interleave(2, 1), 0),
                     sample.mask.masked_fill(nowhere, 0), sample.grad_output)  # fmt: skip
    want = run(op, without, case)
    tolerance = {"rtol": 2 * torch.finfo(dtype).eps, "atol": 20 * torch.finfo(dtype).eps}
    torch.testing.assert_close(got.output, want.output, **tolerance)
    torch.testing.assert_close(got.input, want.input, **tolerance)
    assert not got.offset[nowhere.repeat_interleave(2, 1)].any() and not got.mask[nowhere].any()
    torch.testing.assert_close(got.mask[~nowhere], want.mask[~nowhere], **tolerance)
    sample.mask.masked_fill_(nowhere, NAN)
    again = run(op, sample, case)
    assert_same_bits(again, got)


@pytest.mark.core
@parametrize("layout", ["nchw", "channels_last"])
@parametrize("bad", [NAN, INF])
@parametrize("name", ["odd_channels", "internimage"])
def test_values_that_are_not_finite_reach_only_what_samples_them(
    device: Device, name: str, bad: float, layout: str
) -> None:
    case = BY_NAME[name]
    sample = make_sample(case, torch.float32)
    sample.input[0, 3, 0, 0] = bad  # a corner: positions beyond it must not read it with weight zero
    sample.grad_output[0, 5, 1, 2] = bad
    placed = sample.place(device.type, layout)
    got, want = run(op, placed, case), run(reference.deform_aggregate2d, sample, case)
    for part in ("output", "input", "mask", "offset"):
        finite = getattr(want, part).isfinite()
        assert not finite.all()
        assert torch.equal(getattr(got, part).cpu().isfinite(), finite), part


@parametrize("needed", [(True, False, False), (False, True, False), (False, False, True), (False, True, True)])
def test_gradients_of_what_is_asked_for(device: Device, needed: tuple[bool, ...]) -> None:
    case = BY_NAME["asymmetric"]
    sample, exact, _ = expected(case, torch.float64)
    leaves = [x.to(device.type).requires_grad_(n) for x, n in zip(sample.map(torch.clone).tensors, needed)]
    fastconv.deform_aggregate2d(*leaves, *case.arguments).backward(sample.grad_output.to(device.type))
    for leaf, n, name in zip(leaves, needed, ("input", "offset", "mask")):
        assert (leaf.grad is not None) == n
        if n:
            torch.testing.assert_close(leaf.grad.cpu(), getattr(exact, name))


TINY = [
    Case("tiny", batch=1, channels=2, size=(3, 4), kernel=(2, 2), padding=(0, 1)),
    Case("tiny_groups", batch=1, channels=6, size=(3, 3), stride=(2, 2), groups=2, scale=1.5, remove_center=True),
]


@parametrize("layout", ["nchw", "channels_last"])
@parametrize("case", TINY)
def test_gradcheck(device: Device, case: Case, layout: str) -> None:
    tensors = [x.requires_grad_() for x in make_sample(case).place(device.type, layout).tensors]
    function = lambda *tensors: op(*tensors, *case.arguments)  # noqa: E731
    assert torch.autograd.gradcheck(function, tensors, fast_mode=device.is_emulated)
    assert torch.autograd.gradgradcheck(function, tensors, fast_mode=True)


def test_second_derivatives_entry_by_entry(device: Device) -> None:
    case = TINY[0]
    sample = make_sample(case).place(device.type, "nchw")
    tensors = [x.requires_grad_() for x in (sample.grad_output, *sample.tensors)]
    function = lambda *tensors: backward_op(*tensors, *case.arguments, False)  # noqa: E731
    assert torch.autograd.gradcheck(function, tensors, fast_mode=device.is_emulated)


@parametrize("dtype", [torch.float32, torch.bfloat16])
def test_second_derivatives_in_low_precision(device: Device, dtype: torch.dtype) -> None:
    case = BY_NAME["plain"]

    def penalty(sample: Sample) -> list[Tensor]:
        leaves = [x.requires_grad_() for x in sample.tensors]
        output = fastconv.deform_aggregate2d(*leaves, *case.arguments)
        grads = torch.autograd.grad(output, leaves, sample.grad_output, create_graph=True)
        return list(torch.autograd.grad(sum(g.double().square().mean() for g in grads), leaves))

    sample = make_sample(case, dtype, torch.float32)
    got = penalty(sample.place(device.type, "nchw"))
    want = penalty(sample.map(torch.Tensor.double).place(device.type, "nchw"))
    for a, b in zip(got, want):
        assert (a.double() - b).norm() <= 4 * torch.finfo(dtype).eps * b.norm()


# ---------------------------------------------------------------------------------------------------------------------
# The rest of torch


@parametrize("layout", ["nchw", "channels_last"])
@parametrize("dtype", [torch.float32, torch.bfloat16])
@parametrize("case", named("far", "internimage", "group_of_72"))
def test_deterministic_results_repeat_bit_by_bit(device: Device, case: Case, dtype: torch.dtype, layout: str) -> None:
    sample, exact, magnitude = expected(case, dtype)
    placed = sample.place(device.type, layout)
    with deterministic_algorithms():
        first = run(op, placed, case)
        assert_results(first, case, exact, magnitude)
        for _ in range(3):
            assert_same_bits(run(op, placed, case), first)


@parametrize("layout", ["nchw", "channels_last"])
@parametrize("case", named("far", "internimage", "group_of_136", "wide_map"))
def test_number_of_threads_does_not_matter(device: Device, case: Case, layout: str) -> None:
    if device.name != "cpu":
        pytest.skip("the kernels of this device do not use CPU threads")
    sample = make_sample(case, torch.float32).place("cpu", layout)
    results = []
    for count in (1, 2, 5):
        with threads(count):
            results.append(run(op, sample, case))
    for other in results[1:]:
        assert_same_bits(other, results[0])


@parametrize("public", [False, True])
@parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(device: Device, dtype: torch.dtype, public: bool) -> None:
    case = BY_NAME["asymmetric"]
    function = fastconv.deform_aggregate2d if public else op
    sample = make_sample(case, torch.float32).place(device.type, "nchw")
    leaves = [x.requires_grad_() for x in sample.tensors]
    with torch.autocast(device.type, dtype=dtype):
        output = function(*leaves, *case.arguments)
    assert output.dtype == dtype
    assert torch.equal(output, op(sample.input.to(dtype), sample.offset, sample.mask, *case.arguments))
    grads = torch.autograd.grad(output, leaves, torch.ones_like(output))
    assert all(g.dtype == torch.float32 for g in grads)
    with torch.autocast(device.type, dtype=dtype):  # linear layers give these
        assert function(*(x.to(dtype) for x in leaves), *case.arguments).dtype == dtype
        assert function(*(x.double() for x in leaves), *case.arguments).dtype == torch.float64


class Network(torch.nn.Module):
    """The public function between other operators."""

    def forward(self, x: Tensor, offset: Tensor, mask: Tensor) -> Tensor:
        return fastconv.deform_aggregate2d(x * 2, offset.tanh(), mask, 3, padding=1, groups=2).cos()


def network_inputs(batch: int, height: int, layout: str, device: Device) -> list[Tensor]:
    case = Case("network", batch=batch, size=(height, 5), groups=2)
    tensors = make_sample(case, torch.float32).place(device.type, layout).tensors
    return [x.detach().requires_grad_() for x in tensors]


def assert_same_step(compiled: Any, inputs: list[Tensor]) -> None:
    got, want = compiled(*inputs), Network()(*inputs)
    torch.testing.assert_close(got, want)
    assert got.stride() == want.stride()
    for a, b in zip(*(torch.autograd.grad(y.square().sum(), inputs) for y in (got, want))):
        torch.testing.assert_close(a, b)


@parametrize("layout", ["nchw", "channels_last"])
@parametrize("dynamic", [False, True])
def test_compile(device: Device, dynamic: bool, layout: str) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(Network(), fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for batch, height in ((2, 3), (3, 7)):
        assert_same_step(compiled, network_inputs(batch, height, layout, device))


def test_export(device: Device) -> None:
    inputs = tuple(x.detach() for x in network_inputs(2, 4, "nchw", device))
    sizes = {0: torch.export.Dim("batch", min=2, max=64), 2: torch.export.Dim("height", min=3, max=64)}
    program = torch.export.export(Network(), inputs, dynamic_shapes={"x": sizes, "offset": sizes, "mask": sizes})
    assert op.default in {node.target for node in program.graph.nodes}
    other = tuple(x.detach() for x in network_inputs(5, 9, "nchw", device))
    assert torch.equal(program.module()(*other), Network()(*other))


@parametrize("dims", [(0, 0, 0), (1, None, 2), (None, 4, None)])
def test_vmap(device: Device, dims: tuple[int | None, ...]) -> None:
    case = BY_NAME["asymmetric"]
    sample = make_sample(case).place(device.type, "nchw")
    examples = [[x, x.roll(1, 0), x.roll(1, 1)] for x in sample.tensors]
    stacked = [xs[0] if dim is None else torch.stack(xs, dim) for xs, dim in zip(examples, dims)]

    def chosen(i: int) -> list[Tensor]:
        return [xs[0 if dim is None else i] for xs, dim in zip(examples, dims)]

    want = torch.stack([op(*chosen(i), *case.arguments) for i in range(3)])
    for function in (op, fastconv.deform_aggregate2d):
        assert torch.equal(torch.vmap(lambda *xs: function(*xs, *case.arguments), dims)(*stacked), want)  # noqa: B023

    def call(*tensors: Tensor) -> Any:
        return backward_op(sample.grad_output, *tensors, *case.arguments, False)

    for i, grads in enumerate(zip(*torch.vmap(call, dims)(*stacked))):
        for got, expect in zip(grads, call(*chosen(i))):
            torch.testing.assert_close(got, expect)


def test_transforms_of_torch_func(device: Device) -> None:
    case = TINY[0]
    tensors = make_sample(case).place(device.type, "nchw").tensors

    def value(function: Any) -> Any:
        return lambda *xs: function(*xs, *case.arguments).pow(3).sum()

    ours, own = value(fastconv.deform_aggregate2d), value(reference.deform_aggregate2d)
    twice = [torch.stack([x, x.roll(1, -1)]) for x in tensors]
    for transform in (
        lambda f: torch.func.grad(f, (0, 1, 2))(*tensors),
        lambda f: torch.func.vmap(torch.func.grad(f, (0, 1, 2)))(*twice),
        lambda f: torch.func.grad(lambda x: torch.func.grad(f, 1)(x, *tensors[1:]).square().sum())(tensors[0]),
    ):
        torch.testing.assert_close(transform(ours), transform(own))


def test_flops(device: Device) -> None:
    """A channel of a pixel takes four multiply-adds a tap; the backward pass twice as many."""
    case = BY_NAME["asymmetric"]
    sample = make_sample(case).place(device.type, "nchw")
    leaves = [x.requires_grad_() for x in sample.tensors]
    with FlopCounterMode(display=False) as counter:
        output = fastconv.deform_aggregate2d(*leaves, *case.arguments)
    assert counter.get_total_flops() == 8 * output.numel() * 6
    with FlopCounterMode(display=False) as counter:
        output.sum().backward()
    assert counter.get_total_flops() == 16 * output.numel() * 6


# ---------------------------------------------------------------------------------------------------------------------
# Modules, against the authors' definitions: offsets and masks column by column, x before y


def authors_core(x: Tensor, offset: Tensor, mask: Tensor, module: Any) -> Tensor:
    """x [N, H, W, C], offset [N, H, W, group, taps, 2], mask [N, H, W, group, taps], by grid_sample."""
    n, height, width, channels = x.shape
    group, k, center = module.group, module.kernel_size, module.dilation * (module.kernel_size - 1) // 2
    places = [(kx * module.dilation - center, ky * module.dilation - center) for kx in range(k) for ky in range(k)]
    if module.remove_center:
        del places[k * k // 2]
    ys, xs = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    start = torch.stack([xs, ys], -1).to(x) + center - module.pad
    at = start[:, :, None, None] + (torch.tensor(places).to(x) + offset) * module.offset_scale
    at = (2 * at + 1) / torch.tensor([width, height]).to(x) - 1  # pixels of which -1 and 1 are the outer borders
    maps = x.permute(0, 3, 1, 2).reshape(n * group, channels // group, height, width)
    grid = at.movedim(3, 1).reshape(n * group, height * width, len(places), 2)
    samples = torch.nn.functional.grid_sample(maps, grid, align_corners=False)
    weights = mask.movedim(3, 1).reshape(n * group, 1, height * width, len(places))
    return (samples * weights).sum(-1).view(n, channels, height, width).permute(0, 2, 3, 1)


def authors_dcnv3(module: Any, x: Tensor) -> Tensor:
    query = module.dw_conv(x.permute(0, 3, 1, 2))
    offset = module.offset(query).unflatten(-1, (module.group, -1, 2))
    mask = module.mask(query).unflatten(-1, (module.group, -1)).softmax(-1)
    value = module.input_proj(x)
    output = authors_core(value, offset, mask, module)
    if module.center_feature_scale:
        gate = torch.nn.functional.linear(
            query, module.center_feature_scale_proj_weight, module.center_feature_scale_proj_bias
        ).sigmoid()
        gate = gate[..., None].repeat(1, 1, 1, 1, module.channels // module.group).flatten(-2)
        output = output * (1 - gate) + value * gate
    return module.output_proj(output)


def authors_dcnv4(module: Any, x: Tensor) -> Tensor:
    query = x
    if module.offset_mask_dw is not None:
        query = module.offset_mask_dw(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    taps = module.kernel_size**2 - module.remove_center
    both = module.offset_mask(query)[..., : 3 * module.group * taps].unflatten(-1, (module.group, 3 * taps))
    offset, mask = both[..., : 2 * taps].unflatten(-1, (taps, 2)), both[..., 2 * taps :]
    value = x if module.without_pointwise else module.value_proj(x)
    output = authors_core(value, offset, mask, module)
    if module.center_feature_scale:
        gate = torch.nn.functional.linear(
            output, module.center_feature_scale_proj_weight, module.center_feature_scale_proj_bias
        ).sigmoid()
        gate = gate[..., None].repeat(1, 1, 1, 1, module.channels // module.group).flatten(-2)
        output = output * (1 - gate) + value * gate
    return output if module.without_pointwise else module.output_proj(output)


V3, V4 = fastconv.nn.DCNv3, fastconv.nn.DCNv4
LAST_TWO = ["center_feature_scale_proj_bias", "center_feature_scale_proj_weight"]
V3_KEYS = ["dw_conv.0.bias", "dw_conv.0.weight", "input_proj.bias", "input_proj.weight", "mask.bias", "mask.weight",
           "offset.bias", "offset.weight", "output_proj.bias", "output_proj.weight"]  # fmt: skip
V4_KEYS = ["offset_mask.bias", "offset_mask.weight"]
V4_POINTWISE = ["output_proj.bias", "output_proj.weight", "value_proj.bias", "value_proj.weight"]
MODULES: dict[str, tuple[Any, Any, dict[str, Any], list[str]]] = {
    "v3": (V3, authors_dcnv3, {}, [*V3_KEYS, "dw_conv.1.1.bias", "dw_conv.1.1.weight"]),
    "v3_all": (
        V3, authors_dcnv3,
        dict(channels=30, kernel_size=5, dw_kernel_size=3, pad=2, group=3, offset_scale=1.5, act_layer="SiLU",
             norm_layer="BN", center_feature_scale=True, remove_center=True),
        [*V3_KEYS, *LAST_TWO, "dw_conv.1.0.bias", "dw_conv.1.0.num_batches_tracked", "dw_conv.1.0.running_mean",
         "dw_conv.1.0.running_var", "dw_conv.1.0.weight"],
    ),
    "v4": (V4, authors_dcnv4, {}, [*V4_KEYS, *V4_POINTWISE]),
    "v4_all": (
        V4, authors_dcnv4,
        dict(channels=48, dilation=2, pad=2, group=3, offset_scale=0.5, dw_kernel_size=3, center_feature_scale=True,
             remove_center=True, output_bias=False),
        [*V4_KEYS, *V4_POINTWISE[1:], *LAST_TWO, "offset_mask_dw.bias", "offset_mask_dw.weight"],
    ),
    "v4_bare": (V4, authors_dcnv4, dict(channels=16, group=1, without_pointwise=True), V4_KEYS),
}  # fmt: skip


@parametrize("name", MODULES)
def test_modules_are_those_of_the_authors(device: Device, name: str) -> None:
    make, authors, arguments, keys = MODULES[name]
    module = make(**arguments).double().eval()
    assert sorted(module.state_dict()) == sorted(keys)
    x = torch.randn(2, 5, 7, module.channels, dtype=torch.float64)
    with torch.no_grad():
        for parameter in module.parameters():  # not the zeros of initialisation
            parameter.add_(torch.randn_like(parameter), alpha=0.3)
    want = authors(module, x)
    names = [key for key, parameter in module.named_parameters()]
    grads = torch.autograd.grad(want.square().sum(), list(module.parameters()))
    module.to(device.type)
    got = module(x.to(device.type))
    assert got.shape == x.shape
    torch.testing.assert_close(got.cpu(), want)
    for key, ours, theirs in zip(names, torch.autograd.grad(got.square().sum(), list(module.parameters())), grads):
        assert torch.allclose(ours.cpu(), theirs, atol=1e-8 * float(theirs.abs().max())), key


def test_initialisation_of_modules() -> None:
    """Zero offsets and equal masks (v3), zero masks (v4); linear layers by Xavier, without bias."""
    v3, v4 = V3(center_feature_scale=True), V4(group=2)
    x = torch.randn(1, 8, 8, 64)
    middle = v3.input_proj(x).permute(0, 3, 1, 2)
    mean = torch.nn.functional.avg_pool2d(middle, 3, 1, 1)
    want = v3.output_proj((mean + middle).permute(0, 2, 3, 1) / 2)  # the gate is sigmoid(0)
    torch.testing.assert_close(v3(x), want)
    assert not v4(x).any() and v4.offset_mask.out_features == 56  # 54, up to a multiple of 8
    limit = (6 / 128) ** 0.5
    for layer in (v3.input_proj, v3.output_proj, v4.value_proj, v4.output_proj):
        assert not layer.bias.any() and 0.95 * limit < layer.weight.abs().max() <= limit


def test_flat_input_of_dcnv4() -> None:
    module = V4(channels=16, group=2)
    torch.nn.init.normal_(module.offset_mask.weight)
    x = torch.randn(2, 4, 9, 16)
    assert torch.equal(module(x.flatten(1, 2), (4, 9)), module(x).flatten(1, 2))
    square = x.reshape(2, 6, 6, 16)
    assert torch.equal(module(square.flatten(1, 2)), module(square).flatten(1, 2))


@parametrize("make", [V3, V4])
@parametrize("arguments, text", [
    (dict(channels=10, group=4), "channels must be divisible by group, got 10 and 4"),
    (dict(kernel_size=4, remove_center=True), "remove_center needs an odd kernel_size, got 4"),
])  # fmt: skip
def test_wrong_modules(make: Any, arguments: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        make(**arguments)


def test_wrong_layers_of_dcnv3() -> None:
    with pytest.raises(ValueError, match="act_layer must be one of GELU, ReLU, SiLU, got 'Tanh'"):
        V3(act_layer="Tanh")
    with pytest.raises(ValueError, match="norm_layer must be one of LN, BN, got 'GN'"):
        V3(norm_layer="GN")


# ---------------------------------------------------------------------------------------------------------------------
# Wrong arguments. One text for one mistake, whoever finds it: the operator's host code or the fake kernel.

GOOD: dict[str, Any] = {
    "input": torch.zeros(2, 6, 5, 4), "offset": torch.zeros(2, 36, 5, 4), "mask": torch.zeros(2, 18, 5, 4),
    "kernel_size": [3, 3], "stride": [1, 1], "padding": [1, 1], "dilation": [1, 1], "groups": 2,
    "offset_scale": 1.0, "remove_center": False,
}  # fmt: skip
OFFSET = "offset must be [N, groups * taps * 2, out_h, out_w] = "
MASK = "mask must be [N, groups * taps, out_h, out_w] = "
ERRORS: dict[str, tuple[dict[str, Any], str]] = {
    "rank": ({"input": torch.zeros(6, 5, 4)}, "input must be [N, C, H, W], got [6, 5, 4]"),
    "dtype": ({"input": GOOD["input"].int()}, "input must be float32, float64, bfloat16 or float16, got int32"),
    "offset_dtype": (
        {"offset": GOOD["offset"].half()},
        "offset must have the dtype of input (float32) or, beside a 16-bit one, float32, got float16",
    ),
    "mask_dtype": (
        {"input": GOOD["input"].half(), "mask": GOOD["mask"].bfloat16()},
        "mask must have the dtype of input (float16) or, beside a 16-bit one, float32, got bfloat16",
    ),
    "kernel_size": ({"kernel_size": [3, 0]}, "kernel_size must be at least 1 and less than 2^31, got (3, 0)"),
    "stride": ({"stride": [0, 1]}, "stride must be at least 1 and less than 2^31, got (0, 1)"),
    "padding": ({"padding": [1, -1]}, "padding must be at least 0 and less than 2^31, got (1, -1)"),
    "dilation": ({"dilation": [1, 0]}, "dilation must be at least 1 and less than 2^31, got (1, 0)"),
    "groups": ({"groups": 4}, "groups must divide the 6 channels of input, got 4"),
    "no_groups": ({"groups": 0}, "groups must divide the 6 channels of input, got 0"),
    "remove_center": (
        {"kernel_size": [3, 2], "remove_center": True},
        "remove_center needs odd kernel sizes and more than one tap, got kernel_size (3, 2)",
    ),
    "remove_only_tap": (
        {"kernel_size": [1, 1], "remove_center": True},
        "remove_center needs odd kernel sizes and more than one tap, got kernel_size (1, 1)",
    ),
    "kernel_too_large": (
        {"dilation": [3, 3]},
        "the dilated kernel (7 x 7) must not be larger than the padded input (7 x 6); input [2, 6, 5, 4], "
        "kernel_size (3, 3), padding (1, 1), dilation (3, 3)",
    ),
    "offset_channels": ({"offset": torch.zeros(2, 18, 5, 4)}, OFFSET + "[2, 36, 5, 4], got [2, 18, 5, 4]"),
    "offset_rank": ({"offset": torch.zeros(36, 5, 4)}, OFFSET + "[2, 36, 5, 4], got [36, 5, 4]"),
    "offset_size": ({"stride": [2, 1]}, OFFSET + "[2, 36, 3, 4], got [2, 36, 5, 4]"),
    "mask_channels": ({"mask": torch.zeros(2, 9, 5, 4)}, MASK + "[2, 18, 5, 4], got [2, 9, 5, 4]"),
    "removed_center": ({"remove_center": True}, OFFSET + "[2, 32, 5, 4], got [2, 36, 5, 4]"),
}  # fmt: skip


@parametrize("name", ERRORS)
def test_error_texts(device: Device, name: str) -> None:
    changed, text = ERRORS[name]
    arguments = [*(GOOD | changed).values()]

    def on(to: str) -> list[Any]:
        return [x.to(to) if isinstance(x, Tensor) else x for x in arguments]

    grad_output = torch.zeros(2, 6, 5, 4, dtype=arguments[0].dtype)
    for place in (device.type, "meta"):  # the host code, the fake kernel
        with pytest.raises(RuntimeError, match=re.escape(f"deform_aggregate2d: {text}") + "$"):
            op(*on(place))
        with pytest.raises(RuntimeError, match=re.escape(f"_deform_aggregate2d_backward: {text}") + "$"):
            backward_op(grad_output.to(place), *on(place), False)


@parametrize("shape, dtype, text", [
    ((2, 6, 5, 3), torch.float32, "grad_output must be [N, C, out_h, out_w] = [2, 6, 5, 4], got [2, 6, 5, 3]"),
    ((2, 6, 5, 4), torch.float64, "grad_output must have the dtype of input (float32), got float64"),
])  # fmt: skip
def test_wrong_grad_output(device: Device, shape: tuple[int, ...], dtype: torch.dtype, text: str) -> None:
    for place in (device.type, "meta"):
        tensors = [x.to(place) if isinstance(x, Tensor) else x for x in GOOD.values()]
        with pytest.raises(RuntimeError, match=re.escape(text) + "$"):
            backward_op(torch.zeros(shape, dtype=dtype, device=place), *tensors, False)


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
    command = [sys.executable, "-m", "pytest", __file__, "-m", "core", "-q", "-p", "no:cacheprovider"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-6000:] + result.stderr[-2000:]


@pytest.mark.long
@parametrize("layout", ["nchw", "channels_last"])
def test_more_than_2_to_the_31_elements(device: Device, layout: str) -> None:
    """Offsets of the last rows need 64 bits. Takes 10 GB."""
    if device.is_emulated:
        pytest.skip("too large to emulate")
    x = torch.zeros(1, 4, 24000, 24000, dtype=torch.float16, device=device.type)
    x = x.contiguous(memory_format=torch.channels_last if layout == "channels_last" else torch.contiguous_format)
    assert x.numel() > 2**31
    tail = torch.randn(1, 4, 4, 24000).half().to(device.type)
    x[:, :, -4:] = tail
    # All of the rows' samples are moved to the last four.
    offset = torch.full((1, 2, 4, 12000), 0.25, device=device.type)
    mask = torch.ones(1, 1, 4, 12000, device=device.type)
    want = op(tail, offset, mask, [1, 1], [1, 2])
    offset[:, 0] += 24000 - 4 - torch.arange(4, device=device.type)[:, None] * (6000 - 1)
    assert torch.equal(op(x, offset, mask, [1, 1], [6000, 2]), want)
