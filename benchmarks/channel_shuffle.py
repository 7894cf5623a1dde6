"""channel_shuffle and concat_shuffle against torch's own operators and what people write, eager and compiled."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence

import torch
import torch._functorch.config
import torch.nn.functional as F
from torch import Tensor

from benchmarks.cases import CHANNEL_SHUFFLE, ShuffleCase
from benchmarks.gpu_counts import EMULATED_OUTPUTS, KernelCall
from benchmarks.harness import OURS, Problem, Run, Setting

OPERATOR = "channel_shuffle"
PEERS = ("torch", "transpose", "torch.compile")
OVERHEAD_FACTOR = 17
OVERHEAD_TARGET_US = 8.0

Op = Callable[[Sequence[Tensor]], Tensor]


def cases(device: str) -> Sequence[ShuffleCase]:
    # Events do not see the host's time.
    return [case for case in CHANNEL_SHUFFLE if device == "cpu" or not case.overhead]


def target_ratio(case: ShuffleCase, setting: Setting) -> float:
    """The ratio over the best peer that this row has to reach."""
    return 2.0 if setting.dtype in ("bf16", "f16") and setting.layout == "channels_last" else 1.0


def prepare(case: ShuffleCase, setting: Setting, copies: int, with_compile: bool) -> Problem:
    sets = [_tensors(case, setting) for _ in range(copies)]
    ops: dict[str, Op | None] = {
        OURS: _ours(case), "torch": _torch(case), "transpose": _transpose(case), "torch.compile": None
    }  # fmt: skip
    if with_compile:
        torch.compiler.reset()
        ops["torch.compile"] = torch.compile(_transpose(case), dynamic=False)
    prepare_run = _forward if setting.direction == "forward" else _backward
    providers: dict[str, Sequence[Run] | None] = {
        name: [prepare_run(op, *tensors) for tensors in sets] if op else None for name, op in ops.items()
    }
    probe = None
    if case.overhead and setting.threads == 1 and setting.direction == "forward":
        inputs, grad_output = sets[0]
        larger = [x.repeat(OVERHEAD_FACTOR, 1, 1, 1).to(memory_format=setting.memory_format) for x in inputs]
        probe = _forward(_ours(case), larger, grad_output)
    got, want = (prepare_run(op(case), *sets[0])() for op in (_ours, _transpose))
    return Problem(
        providers=providers,
        operations=0.0,
        compulsory_bytes=_bytes(case, setting),
        peak_dtype=torch.float32,
        target=target_ratio(case, setting),
        error=0.0 if _equal(got, want) else 1.0,
        tolerance=0.0,  # no number is computed
        overhead_probe=probe,
        overhead_factor=OVERHEAD_FACTOR,
        overhead_target_us=OVERHEAD_TARGET_US if probe else None,
    )


def kernel_calls(case: ShuffleCase, setting: Setting) -> list[KernelCall]:
    """The operators that a case calls on a GPU."""
    inverse = case.all_channels // case.groups

    def prepare(name: str) -> Run:
        inputs, grad_output = _tensors(case, setting)
        ops = torch.ops.fastconv
        if name == "forward":
            one = functools.partial(ops.channel_shuffle, inputs[0], case.groups)
            return one if len(inputs) == 1 else lambda: ops.concat_shuffle(inputs, case.groups)
        if len(inputs) == 1:
            return lambda: ops.channel_shuffle(grad_output, inverse)
        needed = list(range(len(inputs)))
        return lambda: ops._concat_shuffle_input_grad(grad_output, list(case.channels), case.groups, needed)

    return [
        KernelCall(name, 0.0, _bytes(case, setting), functools.partial(prepare, name))
        for name in ("forward", "input_grad")
    ]


def reduced(case: ShuffleCase, setting: Setting) -> tuple[ShuffleCase, float]:
    """The case with fewer images, and fewer rows of them, for the emulator, and the share of the work that it is."""
    image = case.all_channels * case.height * case.width
    batch = max(1, min(case.batch, EMULATED_OUTPUTS // image))
    height = max(1, min(case.height, EMULATED_OUTPUTS // (case.all_channels * case.width)))
    smaller = dataclasses.replace(case, batch=batch, height=height)
    return smaller, batch * height / (case.batch * case.height)


def _tensors(case: ShuffleCase, setting: Setting) -> tuple[list[Tensor], Tensor]:
    def random(channels: int) -> Tensor:
        x = torch.randn(case.batch, channels, case.height, case.width, device=setting.device)
        return x.to(setting.torch_dtype).to(memory_format=setting.memory_format)

    inputs = [random(channels) for channels in case.channels]
    if case.chunked:
        inputs[0] = random(case.all_channels)[:, : case.channels[0]]
    return inputs, random(case.all_channels)


def _ours(case: ShuffleCase) -> Op:
    from fastconv import channel_shuffle, concat_shuffle

    if len(case.channels) == 1:
        return lambda inputs: channel_shuffle(inputs[0], case.groups)
    return lambda inputs: concat_shuffle(inputs, case.groups)


def _torch(case: ShuffleCase) -> Op:
    if len(case.channels) == 1:
        return lambda inputs: F.channel_shuffle(inputs[0], case.groups)
    return lambda inputs: F.channel_shuffle(torch.cat(tuple(inputs), 1), case.groups)


def _transpose(case: ShuffleCase) -> Op:
    """As torchvision's ShuffleNet has it."""

    def shuffle(inputs: Sequence[Tensor]) -> Tensor:
        x = inputs[0] if len(inputs) == 1 else torch.cat(tuple(inputs), 1)
        return x.unflatten(1, (case.groups, -1)).transpose(1, 2).reshape(x.shape)

    return shuffle


def _forward(op: Op, inputs: Sequence[Tensor], grad_output: Tensor) -> Run:
    return lambda: op(inputs)


def _backward(op: Op, inputs: Sequence[Tensor], grad_output: Tensor) -> Run:
    """All gradients by autograd, from an output computed beforehand."""
    leaves = [x.detach().requires_grad_() for x in inputs]
    with torch._functorch.config.patch(donated_buffer=False):
        output = op(leaves)
    return lambda: torch.autograd.grad(output, leaves, grad_output, retain_graph=True)


def _bytes(case: ShuffleCase, setting: Setting) -> float:
    """Each element is read once and written once, in either direction."""
    return 2.0 * case.batch * case.all_channels * case.height * case.width * setting.torch_dtype.itemsize


def _equal(got: object, want: object) -> bool:
    pairs = zip(*(result if isinstance(result, tuple) else (result,) for result in (got, want)), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)
