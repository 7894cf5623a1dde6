"""channel_shuffle and concat_shuffle on every device (see conftest.py): the cases are in channel_shuffle_cases.py."""

from __future__ import annotations

import itertools
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import fastconv
import pytest
import torch
import torch.nn.functional as F
from channel_shuffle_cases import (
    CONCATS,
    DTYPES,
    LAYOUTS,
    SHUFFLES,
    SIZES,
    Case,
    arrange,
    assert_same,
    draw,
    format_of,
    memory_format,
    parts,
)
from conftest import Device
from fastconv import reference
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

shuffle_op = torch.ops.fastconv.channel_shuffle
concat_op = torch.ops.fastconv.concat_shuffle
input_grad_op = torch.ops.fastconv._concat_shuffle_input_grad


def name_of(value: Any) -> str | None:
    if isinstance(value, Case):
        return str(value)
    return str(value).removeprefix("torch.") if isinstance(value, (torch.dtype, torch.memory_format)) else None


def parametrize(names: str, values: Any) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(names, values, ids=name_of)


def torch_concat_shuffle(inputs: Sequence[Tensor], groups: int) -> Tensor:
    x = torch.cat(tuple(inputs), 1)
    return x.unflatten(1, (groups, x.shape[1] // groups)).transpose(1, 2).flatten(1, 2)


# ---------------------------------------------------------------------------------------------------------------------
# Results and gradients


@pytest.mark.core
@parametrize("layout", LAYOUTS)
@parametrize("dtype", SIZES)
@parametrize("case", SHUFFLES)
def test_shuffle_against_reference(device: Device, case: Case, dtype: torch.dtype, layout: str) -> None:
    [x] = parts(case, dtype, layout, device.type)
    format = memory_format(layout if x.numel() else "nchw", x.dim())
    assert_same(shuffle_op(x, case.groups), reference.channel_shuffle(x, case.groups), format)
    if case.all_channels:  # and the reverse
        inverse = case.all_channels // case.groups
        assert_same(shuffle_op(x, inverse), reference.channel_shuffle(x, inverse), format)


@pytest.mark.core
@parametrize("layout", LAYOUTS)
@parametrize("dtype", SIZES)
@parametrize("case", CONCATS)
def test_concat_against_reference(device: Device, case: Case, dtype: torch.dtype, layout: str) -> None:
    inputs = parts(case, dtype, layout, device.type)
    output = concat_op(inputs, case.groups)
    assert_same(output, reference.concat_shuffle(inputs, case.groups), format_of(torch.cat(inputs, 1)))
    grad_output = arrange(output, layout)
    format = memory_format(layout if output.numel() else "nchw", output.dim())
    everything = range(len(inputs))
    for needed in (list(everything), list(everything)[1::2], [len(inputs) - 1], []):
        grads = input_grad_op(grad_output, case.channels, case.groups, needed)
        assert len(grads) == len(needed)
        for i, grad in zip(needed, grads):
            assert_same(grad, inputs[i], format)


@parametrize("dtype", DTYPES)
@parametrize("layout", ["nchw", "channels_last"])
def test_every_dtype(device: Device, dtype: torch.dtype, layout: str) -> None:
    case = Case((10, 14), 3)
    a, b = parts(case, dtype, layout, device.type)
    assert torch.equal(fastconv.channel_shuffle(a, 2), reference.channel_shuffle(a, 2))
    assert torch.equal(fastconv.concat_shuffle([a, b], 3), reference.concat_shuffle([a, b], 3))


def test_lazy_conjugates_and_negatives_are_carried_out(device: Device) -> None:
    x = draw((2, 6, 3, 4), torch.complex64).to(device.type)
    for lazy in (x.conj(), x.conj().imag):
        assert lazy.is_conj() or lazy.is_neg()
        assert torch.equal(shuffle_op(lazy, 3), reference.channel_shuffle(lazy, 3))
        assert torch.equal(concat_op([lazy, lazy.resolve_conj().resolve_neg()], 4),
                           reference.concat_shuffle([lazy, lazy], 4))  # fmt: skip


@pytest.mark.core
@parametrize("dtype", [torch.float32, torch.bfloat16])
@parametrize("case", [Case((58,), 2, (5, 4)), Case((24,), 8), Case((12,), 3, (2, 3, 4))])
@parametrize("layout", ["transposed", "expanded"])
def test_awkward_layouts(device: Device, case: Case, dtype: torch.dtype, layout: str) -> None:
    [x] = parts(case, dtype, layout, device.type)
    assert torch.equal(shuffle_op(x, case.groups), reference.channel_shuffle(x, case.groups))
    grads = input_grad_op(x, [case.all_channels - 3, 3], case.groups, [0, 1])
    assert torch.equal(torch.cat(grads, 1), reference.channel_shuffle(x, case.all_channels // case.groups))


@parametrize("size", [(3, 5), (2, 3, 5)])
@parametrize("layouts", list(itertools.permutations(["nchw", "channels_last", "channels_last_slice"])))
def test_inputs_of_several_layouts(device: Device, layouts: Sequence[str], size: tuple[int, ...]) -> None:
    case = Case((4, 6, 2), 3, size)
    values = parts(case, torch.float32, "nchw", device.type)
    mixed = [arrange(x, layout) for x, layout in zip(values, layouts)]
    expected = reference.concat_shuffle(values, 3)
    # torch.cat's rule.
    assert torch.cat(mixed, 1).is_contiguous()
    assert_same(concat_op(mixed, 3), expected, torch.contiguous_format)
    last = [arrange(x, layout) for x, layout in zip(values, ("channels_last", "channels_last_slice", "channels_last"))]
    assert_same(concat_op(last, 3), expected, memory_format("channels_last", len(size) + 2))


def test_one_tensor_given_several_times(device: Device) -> None:
    x = draw((2, 6, 3, 4), torch.float64).to(device.type).requires_grad_()
    fastconv.concat_shuffle([x, x, x], 2).sum().backward()
    assert torch.equal(x.grad, torch.full_like(x, 3))


# The peer: torch's own operator where it has the dtype, its own pieces otherwise.


@parametrize("layout", LAYOUTS)
@parametrize("dtype", [torch.float32, torch.bfloat16])
@parametrize("case", [case for case in SHUFFLES if case.all_channels])
def test_against_torch(device: Device, case: Case, dtype: torch.dtype, layout: str) -> None:
    [x] = parts(case, dtype, layout, device.type)
    own = F.channel_shuffle(x, case.groups)
    assert torch.equal(fastconv.channel_shuffle(x, case.groups), own)


@parametrize("layout", ["nchw", "channels_last", "channels_last_slice"])
@parametrize("case", [*SHUFFLES, *CONCATS])
def test_gradients_are_those_of_torch(device: Device, case: Case, layout: str) -> None:
    def gradients(function: Any) -> list[Tensor]:
        inputs = [x.requires_grad_() for x in parts(case, torch.float64, layout, device.type)]
        output = function(inputs, case.groups)
        weight = draw(output.shape, torch.float64, 99).to(device.type)
        first = torch.autograd.grad((output.square() * weight).sum(), inputs, create_graph=True)
        second = torch.autograd.grad(sum((g * g).sum() for g in first), inputs)
        return [output.detach(), *first, *second]

    for ours, own in zip(gradients(fastconv.concat_shuffle), gradients(torch_concat_shuffle)):
        torch.testing.assert_close(ours, own, rtol=1e-12, atol=0)


@parametrize("layout", ["nchw", "channels_last"])
@parametrize("needed", list(itertools.product([True, False], repeat=3)))
def test_gradients_of_what_is_asked_for(device: Device, needed: tuple[bool, ...], layout: str) -> None:
    inputs = [x.requires_grad_(n) for x, n in zip(parts(Case((4, 6, 2), 3), torch.float32, layout), needed)]
    inputs = [x.detach().to(device.type).requires_grad_(n) for x, n in zip(inputs, needed)]
    output = fastconv.concat_shuffle(tuple(inputs), 3)
    assert output.requires_grad == any(needed)
    if not any(needed):
        return
    grad_output = torch.randn_like(output)
    output.backward(grad_output)
    whole = reference.channel_shuffle(grad_output, 4)  # undoes 3 groups of 12 channels
    for x, n, want in zip(inputs, needed, whole.split([4, 6, 2], 1)):
        assert (x.grad is not None) == n
        if n:
            assert_same(x.grad, want, memory_format(layout, 4))


@parametrize("layout", ["nchw", "channels_last", "channels_last_slice"])
@parametrize("case", [Case((6,), 3, (2, 3)), Case((2, 4), 3, (2, 3)), Case((1, 0, 5), 2, (3,))])
def test_gradcheck(device: Device, case: Case, layout: str) -> None:
    inputs = [x.requires_grad_() for x in parts(case, torch.float64, layout, device.type)]

    def function(*inputs: Tensor) -> Tensor:
        if len(inputs) == 1:
            return shuffle_op(inputs[0], case.groups)
        return concat_op(inputs, case.groups)

    fast = device.is_emulated
    assert torch.autograd.gradcheck(function, inputs, fast_mode=fast)
    assert torch.autograd.gradgradcheck(function, inputs, fast_mode=fast)
    assert torch.autograd.gradgradcheck(lambda *inputs: function(*inputs) ** 3, inputs, fast_mode=True)


@parametrize("needed", [[0, 1, 2], [2, 0], [1]])
def test_gradcheck_of_the_gradient_operator(device: Device, needed: list[int]) -> None:
    grad = draw((2, 6, 2, 3), torch.float64).to(device.type).requires_grad_()
    function = lambda grad: tuple(input_grad_op(grad, [1, 3, 2], 3, needed))  # noqa: E731
    assert torch.autograd.gradcheck(function, (grad,), fast_mode=device.is_emulated)
    assert torch.autograd.gradgradcheck(function, (grad,), fast_mode=True)


# ---------------------------------------------------------------------------------------------------------------------
# The rest of torch: promotion, autocast, compile, export, vmap, FLOPs


def test_dtypes_are_promoted_as_by_cat(device: Device) -> None:
    for dtypes in itertools.product((torch.bfloat16, torch.float16, torch.float32, torch.int32, torch.bool), repeat=2):
        inputs = [draw((2, 3, 2, 3), dtype, i).to(device.type) for i, dtype in enumerate(dtypes)]
        assert_same(fastconv.concat_shuffle(inputs, 3), torch_concat_shuffle(inputs, 3), torch.contiguous_format)
    a, b = (draw((2, 3, 2, 3), t).to(device.type).requires_grad_() for t in (torch.bfloat16, torch.float64))
    fastconv.concat_shuffle([a, b], 2).sum().backward()
    assert (a.grad.dtype, b.grad.dtype) == (torch.bfloat16, torch.float64)


@parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_keeps_dtypes(device: Device, dtype: torch.dtype) -> None:
    """As it does for torch's own shuffle; its cat promotes to the widest, which ours always does."""
    wide, low = draw((2, 6, 3, 4), torch.float32).to(device.type), draw((2, 6, 3, 4), dtype).to(device.type)
    with torch.autocast(device.type, dtype=dtype):
        for x in (wide, low):
            assert fastconv.channel_shuffle(x, 3).dtype == F.channel_shuffle(x, 3).dtype == x.dtype
            assert fastconv.concat_shuffle([x, x], 3).dtype == torch.cat([x, x], 1).dtype == x.dtype
        assert fastconv.concat_shuffle([low, wide], 3).dtype == torch.cat([low, wide], 1).dtype == torch.float32


class Network(torch.nn.Module):
    """The public functions between other operators."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        x = fastconv.channel_shuffle(x * 2, 3)
        return fastconv.concat_shuffle([x.chunk(2, 1)[0], y.sin()], 2).cos()


def network_inputs(batch: int, height: int, layout: str, device: Device) -> tuple[Tensor, Tensor]:
    x, y = draw((batch, 12, height, 5), torch.float32), draw((batch, 10, height, 5), torch.float32, 1)
    return arrange(x.to(device.type), layout).requires_grad_(), arrange(y.to(device.type), layout).requires_grad_()


def assert_same_step(compiled: Any, inputs: tuple[Tensor, Tensor]) -> None:
    got, want = compiled(*inputs), Network()(*inputs)
    torch.testing.assert_close(got, want)
    assert got.stride() == want.stride()
    for a, b in zip(*(torch.autograd.grad(y.square().sum(), inputs) for y in (got, want))):
        torch.testing.assert_close(a, b)
        assert a.stride() == b.stride()


@parametrize("layout", ["nchw", "channels_last"])
@parametrize("dynamic", [False, True])
def test_compile(device: Device, dynamic: bool, layout: str) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(Network(), fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for batch, height in ((2, 3), (3, 7)):
        assert_same_step(compiled, network_inputs(batch, height, layout, device))


def test_compile_with_inductor(device: Device) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(Network(), fullgraph=True)
    for layout in ("nchw", "channels_last"):
        assert_same_step(compiled, network_inputs(2, 3, layout, device))


def test_export(device: Device) -> None:
    x, y = (z.detach() for z in network_inputs(2, 3, "nchw", device))
    batch, height = torch.export.Dim("batch", min=2, max=64), torch.export.Dim("height", min=2, max=64)
    sizes = {0: batch, 2: height}
    program = torch.export.export(Network(), (x, y), dynamic_shapes={"x": sizes, "y": sizes})
    targets = {node.target for node in program.graph.nodes}
    assert {shuffle_op.default, concat_op.default} <= targets
    for shape in ((2, 3), (5, 9)):
        inputs = [z.detach() for z in network_inputs(*shape, "nchw", device)]
        assert torch.equal(program.module()(*inputs), Network()(*inputs))


@parametrize("layout", ["nchw", "channels_last"])
@parametrize("dims", [(0, 0), (1, None), (None, 2), (3, 1), (4, 4)])
def test_vmap(device: Device, dims: tuple[int | None, ...], layout: str) -> None:
    values = parts(Case((4, 6), 5, batch=7), torch.float32, layout, device.type)
    examples = [[x, x + 1, x + 2] for x in values]
    stacked = [xs[0] if dim is None else torch.stack(xs, dim) for xs, dim in zip(examples, dims)]
    want = torch.stack([
        concat_op([xs[0 if dim is None else i] for xs, dim in zip(examples, dims)], 5) for i in range(3)
    ])  # fmt: skip
    assert torch.equal(torch.vmap(lambda *xs: fastconv.concat_shuffle(xs, 5), dims)(*stacked), want)
    assert torch.equal(torch.vmap(lambda *xs: concat_op(xs, 5), dims)(*stacked), want)
    if dims[0] is not None:
        shuffled = torch.vmap(lambda x: fastconv.channel_shuffle(x, 2), dims[0])(stacked[0])
        assert torch.equal(shuffled, torch.stack([shuffle_op(x, 2) for x in examples[0]]))


def test_vmap_of_the_gradient_operator(device: Device) -> None:
    grads = draw((2, 3, 6, 2, 5), torch.float32).to(device.type)
    batched = torch.vmap(lambda g: tuple(input_grad_op(g, [1, 3, 2], 3, [2, 0])), 1)(grads)
    for i in range(3):
        for ours, want in zip(batched, input_grad_op(grads[:, i], [1, 3, 2], 3, [2, 0])):
            assert torch.equal(ours[i], want)


def test_transforms_of_torch_func(device: Device) -> None:
    a, b = (x.to(device.type) for x in parts(Case((2, 4), 3, (2, 2), batch=1), torch.float64, "nchw"))

    def value(function: Any, shuffle: Any) -> Any:
        return lambda a, b: shuffle(function([a, b], 3), 2).pow(3).sum()

    ours = value(fastconv.concat_shuffle, fastconv.channel_shuffle)
    own = value(torch_concat_shuffle, lambda x, groups: torch_concat_shuffle([x], groups))
    for transform in (
        lambda f: torch.func.grad(f, (0, 1))(a, b),
        lambda f: torch.func.jacrev(torch.func.jacrev(f))(a, b),
        lambda f: torch.func.vmap(torch.func.grad(f), (None, 0))(a, torch.stack([b, 2 * b])),
        lambda f: torch.func.grad(lambda a: torch.func.vmap(f, (None, 0))(a, torch.stack([b, 2 * b])).sum())(a),
    ):
        torch.testing.assert_close(transform(ours), transform(own))


def test_batched_gradients(device: Device) -> None:
    """autograd's own vmap, over the backward pass of a graph that was made without one."""
    inputs = [x.requires_grad_() for x in parts(Case((2, 4), 3, (2, 2), batch=1), torch.float64, "nchw", device.type)]
    output = fastconv.channel_shuffle(fastconv.concat_shuffle(inputs, 3), 2)
    basis = torch.eye(output.numel(), dtype=torch.float64, device=device.type).view(-1, *output.shape)
    batched = torch.autograd.grad(output, inputs, basis, is_grads_batched=True, retain_graph=True)
    for i, vector in enumerate(basis):
        for ours, want in zip(batched, torch.autograd.grad(output, inputs, vector, retain_graph=True)):
            assert torch.equal(ours[i], want)


def test_flops_are_none(device: Device) -> None:
    x = draw((2, 6, 3, 4), torch.float32).to(device.type).requires_grad_()
    with FlopCounterMode(display=False) as counter:
        fastconv.concat_shuffle([fastconv.channel_shuffle(x, 3), x], 2).sum().backward()
    assert counter.get_total_flops() == 0


# ---------------------------------------------------------------------------------------------------------------------
# Property test


@st.composite
def calls(draw_: Any) -> tuple[Case, torch.dtype, list[str]]:
    channels = draw_(st.lists(st.integers(0, 40), min_size=1, max_size=5))
    total = sum(channels)
    groups = draw_(st.sampled_from([g for g in range(1, total + 1) if total % g == 0] or [1, 3]))
    size = tuple(draw_(st.lists(st.integers(1, 9), min_size=1, max_size=3)))
    case = Case(tuple(channels), groups, size, draw_(st.integers(0, 3)))
    layouts = st.sampled_from([*LAYOUTS, *(("transposed", "expanded") if len(size) > 1 else ())])
    same = draw_(st.booleans())
    first = draw_(layouts)
    return case, draw_(st.sampled_from(DTYPES)), [first if same else draw_(layouts) for _ in channels]


@pytest.mark.core
@settings(max_examples=150)
@given(call=calls())
def test_drawn_calls(device: Device, call: tuple[Case, torch.dtype, list[str]]) -> None:
    case, dtype, layouts = call
    inputs = [
        arrange(draw(case.shape(c), dtype, i).to(device.type), layout)
        for i, (c, layout) in enumerate(zip(case.channels, layouts))
    ]
    output = concat_op(inputs, case.groups)
    assert torch.equal(output, reference.concat_shuffle(inputs, case.groups))
    grads = input_grad_op(arrange(output, layouts[0]), case.channels, case.groups, list(range(len(inputs))))
    if layouts[0] != "expanded":
        assert all(torch.equal(grad, x) for grad, x in zip(grads, inputs))


# ---------------------------------------------------------------------------------------------------------------------
# Wrong arguments. One text for one mistake, whoever finds it: the operator's host code or the fake kernel.

X = torch.zeros(2, 6, 5, 4)
ERRORS: dict[str, tuple[Any, tuple, str]] = {
    "shuffle_rank": (shuffle_op, (X[0, 0], 2), "input must be [N, C, ...] with at least 3 dimensions, got [5, 4]"),
    "shuffle_no_groups": (shuffle_op, (X, 0), "groups must be at least 1, got 0"),
    "shuffle_negative_groups": (shuffle_op, (X, -2), "groups must be at least 1, got -2"),
    "shuffle_groups": (shuffle_op, (X, 4), "groups must divide the 6 channels of input, got 4"),
    "concat_rank": (
        concat_op, ([X[0, 0]], 2), "inputs[0] must be [N, C, ...] with at least 3 dimensions, got [5, 4]"
    ),
    "concat_dtype": (
        concat_op, ([X, X.long()], 2), "inputs[1] must have the dtype of inputs[0] (float32), got int64"
    ),
    "concat_other_rank": (
        concat_op, ([X, X[0]], 2),
        "inputs[1] must have the sizes of inputs[0] but for the channels ([2, 6, 5, 4]), got [6, 5, 4]",
    ),
    "concat_size": (
        concat_op, ([X, X, X[..., :3]], 2),
        "inputs[2] must have the sizes of inputs[0] but for the channels ([2, 6, 5, 4]), got [2, 6, 5, 3]",
    ),
    "concat_batch": (
        concat_op, ([X, X[:1]], 2),
        "inputs[1] must have the sizes of inputs[0] but for the channels ([2, 6, 5, 4]), got [1, 6, 5, 4]",
    ),
    "concat_no_groups": (concat_op, ([X, X], 0), "groups must be at least 1, got 0"),
    "concat_groups": (concat_op, ([X, X[:, :3]], 2), "groups must divide the 9 channels of all inputs, got 2"),
    "grad_rank": (
        input_grad_op, (X[0, 0], [5], 1, [0]),
        "grad_output must be [N, C, ...] with at least 3 dimensions, got [5, 4]",
    ),
    "grad_channels": (
        input_grad_op, (X, [2, 3], 2, [0]), "channels must add up to the 6 of grad_output, got (2, 3)"
    ),
    "grad_negative_channels": (
        input_grad_op, (X, [7, -1], 2, [0]), "channels must add up to the 6 of grad_output, got (7, -1)"
    ),
    "grad_groups": (input_grad_op, (X, [2, 4], 4, [0]), "groups must divide the 6 channels of grad_output, got 4"),
    "grad_needed": (
        input_grad_op, (X, [2, 4], 2, [0, 2]), "needed must be indices of the 2 inputs, each once, got (0, 2)"
    ),
    "grad_needed_twice": (
        input_grad_op, (X, [2, 4], 2, [1, 1]), "needed must be indices of the 2 inputs, each once, got (1, 1)"
    ),
    "grad_negative_needed": (
        input_grad_op, (X, [6], 2, [-1]), "needed must be indices of the 1 inputs, each once, got (-1)"
    ),
}  # fmt: skip


@parametrize("name", ERRORS)
def test_error_texts(device: Device, name: str) -> None:
    op, arguments, text = ERRORS[name]
    match = re.escape(f"{op.__name__}: {text}") + "$"

    def move(value: Any, to: str) -> Any:
        if isinstance(value, list):
            return [move(x, to) for x in value]
        return value.to(to) if isinstance(value, Tensor) else value

    with pytest.raises(RuntimeError, match="^" + match):
        op(*(move(x, device.type) for x in arguments))
    with pytest.raises(RuntimeError, match=match):  # the fake kernel
        op(*(move(x, "meta") for x in arguments))


def test_no_inputs(device: Device) -> None:
    text = r"^concat_shuffle: inputs must hold at least one tensor, got none$"
    with pytest.raises(RuntimeError, match=text):
        fastconv.concat_shuffle([], 2)
    keys = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA if device.type == "cuda" else torch._C.DispatchKey.CPU)
    with pytest.raises(RuntimeError, match=text):
        concat_op.default.redispatch(keys, [], 2)


def test_devices_are_not_mixed(device: Device) -> None:
    if device.is_emulated:
        pytest.skip("a tensor of another device is not dispatched to the emulated kernels")
    x = X.to(device.type)
    elsewhere = X.to("cpu" if device.type == "cuda" else "meta")
    text = re.escape(
        f"concat_shuffle: inputs[1] must be on the device of inputs[0] ({x.device}), got {elsewhere.device}"
    )
    with pytest.raises(RuntimeError, match=text):
        concat_op([x, elsewhere], 2)


# ---------------------------------------------------------------------------------------------------------------------
# The machine


@parametrize("layout", ["nchw", "channels_last"])
@parametrize("case", [Case((2,), 2, (301, 403), 1), Case((240,), 3, (31, 17), 3), Case((58, 58), 2, (41, 23), 2)])
def test_threads_share_the_work(device: Device, case: Case, layout: str) -> None:
    if device.name != "cpu":
        pytest.skip("the kernels of this device do not use CPU threads")
    inputs = parts(case, torch.bfloat16, layout)
    want = reference.concat_shuffle(inputs, case.groups)
    before = torch.get_num_threads()
    try:
        for count in (1, 2, 3, 7):
            torch.set_num_threads(count)
            assert torch.equal(concat_op(inputs, case.groups), want)
            grads = input_grad_op(want, case.channels, case.groups, list(range(len(inputs))))
            assert all(torch.equal(grad, x) for grad, x in zip(grads, inputs))
    finally:
        torch.set_num_threads(before)


@pytest.mark.process
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
    """Offsets of the last channels and pixels need 64 bits. Takes 5 GB."""
    if device.is_emulated:
        pytest.skip("too large to emulate")
    x = torch.zeros(1, 6, 19000, 19000, dtype=torch.int8, device=device.type)
    x = x.contiguous(memory_format=memory_format(layout, 4))
    assert x.numel() > 2**31
    tail = draw((1, 6, 3, 19000), torch.int8).to(device.type)
    x[:, :, -3:] = tail
    assert torch.equal(shuffle_op(x, 3)[:, :, -3:], reference.channel_shuffle(tail, 3))
    assert torch.equal(shuffle_op(x, 2)[:, :, -3:], reference.channel_shuffle(tail, 2))
