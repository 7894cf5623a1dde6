"""deform_aggregate2d against what people write without it: torch's grid_sample, eager and compiled."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch._functorch.config
import torch.nn.functional as F
from torch import Tensor

from benchmarks.cases import DEFORM_AGGREGATE2D, AggregateCase
from benchmarks.convolution import OVERHEAD_FACTOR, OVERHEAD_TARGET_US, TOLERANCES
from benchmarks.gpu_counts import EMULATED_OUTPUTS, EMULATED_TERMS, KernelCall
from benchmarks.harness import OURS, Problem, Run, Setting

OPERATOR = "deform_aggregate2d"
PEERS = ("torch", "torch.compile")
TARGET = 5.0

Op = Callable[[Tensor, Tensor, Tensor], Tensor]


def cases(device: str) -> Sequence[AggregateCase]:
    # Events do not see the host's time.
    return [case for case in DEFORM_AGGREGATE2D if device == "cpu" or not case.overhead]


def target_ratio(case: AggregateCase, setting: Setting) -> float:
    return 1.0 if case.overhead else TARGET


def prepare(case: AggregateCase, setting: Setting, copies: int, with_compile: bool) -> Problem:
    sets = [_tensors(case, setting) for _ in range(copies)]
    ops: dict[str, Op | None] = {OURS: _ours(case), "torch": _grid_sample(case), "torch.compile": None}
    if with_compile:
        torch.compiler.reset()
        ops["torch.compile"] = torch.compile(_grid_sample(case), dynamic=False)
    prepare_run = _forward if setting.direction == "forward" else _backward
    providers: dict[str, Sequence[Run] | None] = {
        name: [prepare_run(op, *tensors) for tensors in sets] if op else None for name, op in ops.items()
    }
    probe = None
    if case.overhead and setting.threads == 1 and setting.direction == "forward":
        larger = [x.repeat(OVERHEAD_FACTOR, 1, 1, 1).to(memory_format=setting.memory_format) for x in sets[0]]
        probe = _forward(_ours(case), *larger)
    operations, compulsory_bytes = _cost(case, setting)
    return Problem(
        providers=providers,
        operations=operations,
        compulsory_bytes=compulsory_bytes,
        peak_dtype=torch.float32,
        target=target_ratio(case, setting),
        error=_error(
            prepare_run(_ours(case), *sets[0])(), prepare_run(_grid_sample(case), *(x.double() for x in sets[0]))()
        ),
        tolerance=TOLERANCES[setting.torch_dtype],
        overhead_probe=probe,
        overhead_factor=OVERHEAD_FACTOR,
        overhead_target_us=OVERHEAD_TARGET_US if probe else None,
    )


def kernel_calls(case: AggregateCase, setting: Setting) -> list[KernelCall]:
    """The operators that a case calls on a GPU."""

    def prepare(name: str) -> Run:
        input, offset, mask, grad_output = _tensors(case, setting)
        ops = torch.ops.fastconv
        if name == "forward":
            return lambda: ops.deform_aggregate2d(input, offset, mask, *case.arguments)
        arguments = (*case.arguments, 1.0, False, False)
        return lambda: ops._deform_aggregate2d_backward(grad_output, input, offset, mask, *arguments)

    return [
        KernelCall(name, *_cost(case, dataclasses.replace(setting, direction=name)), functools.partial(prepare, name))
        for name in ("forward", "backward")
    ]


def reduced(case: AggregateCase, setting: Setting) -> tuple[AggregateCase, float]:
    """The case with fewer images for the emulator, and the share of the work that it is."""
    outputs = case.channels * case.height * case.width
    fitting = min(EMULATED_OUTPUTS // outputs, EMULATED_TERMS // (4 * outputs * math.prod(case.kernel)))
    batch = max(1, min(case.batch, fitting))
    return dataclasses.replace(case, batch=batch), batch / case.batch


def _tensors(case: AggregateCase, setting: Setting) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """input, offset, mask, grad_output. Offsets vary slowly from pixel to pixel, by a pixel or so: as trained ones.

    They are odd multiples of 1/32, exact in every dtype: no sample is near a pixel, where the derivative jumps and the
    rounding of grid_sample's coordinates decides its side."""
    size, taps = (case.height, case.width), case.groups * math.prod(case.kernel)

    def finish(x: Tensor) -> Tensor:
        return x.to(setting.torch_dtype).to(memory_format=setting.memory_format)

    maps = [torch.randn(case.batch, case.channels, *size, device=setting.device) for _ in range(2)]
    coarse = torch.randn(case.batch, 2 * taps, 4, 4, device=setting.device)
    offset = F.interpolate(coarse, size, mode="bilinear", align_corners=True).clamp(-7.5, 7.5)
    offset = ((16 * offset).floor() + 0.5) / 16
    logits = torch.randn(case.batch, case.groups, math.prod(case.kernel), *size, device=setting.device)
    return finish(maps[0]), finish(offset), finish(logits.softmax(2).flatten(1, 2)), finish(maps[1])


def _ours(case: AggregateCase) -> Op:
    from fastconv import deform_aggregate2d

    return lambda input, offset, mask: deform_aggregate2d(input, offset, mask, *case.arguments)


def _grid_sample(case: AggregateCase) -> Op:
    """As the authors' own composition for machines without their kernels."""
    taps, groups, (kernel_h, kernel_w) = math.prod(case.kernel), case.groups, case.kernel
    pixels = case.height * case.width

    def aggregate(input: Tensor, offset: Tensor, mask: Tensor) -> Tensor:
        n = input.shape[0]
        like: dict[str, Any] = {"dtype": input.dtype, "device": input.device}
        y = torch.arange(case.height, **like)[:, None] - kernel_h // 2
        x = torch.arange(case.width, **like) - kernel_w // 2
        moves = offset.view(n * groups, kernel_h, kernel_w, 2, case.height, case.width)
        at_y = y + torch.arange(kernel_h, **like)[:, None, None, None] + moves[:, :, :, 0]
        at_x = x + torch.arange(kernel_w, **like)[:, None, None] + moves[:, :, :, 1]
        grid = torch.stack([(2 * at_x + 1) / case.width - 1, (2 * at_y + 1) / case.height - 1], -1)
        maps = input.reshape(n * groups, case.channels // groups, case.height, case.width)
        samples = F.grid_sample(maps, grid.view(n * groups, taps, pixels, 2), align_corners=False)
        output = (samples * mask.reshape(n * groups, 1, taps, pixels)).sum(2)
        return output.view(n, case.channels, case.height, case.width)

    return lambda input, offset, mask: aggregate(input, offset.contiguous(), mask)


def _forward(op: Op, input: Tensor, offset: Tensor, mask: Tensor, grad_output: Tensor) -> Run:
    return lambda: op(input, offset, mask)


def _backward(op: Op, input: Tensor, offset: Tensor, mask: Tensor, grad_output: Tensor) -> Run:
    """All gradients by autograd, from an output computed beforehand."""
    leaves = [x.detach().requires_grad_() for x in (input, offset, mask)]
    with torch._functorch.config.patch(donated_buffer=False):
        output = op(*leaves)
    return lambda: torch.autograd.grad(output, leaves, grad_output, retain_graph=True)


def _cost(case: AggregateCase, setting: Setting) -> tuple[float, float]:
    """Four multiply-adds a tap and channel, in the backward pass eight; every tensor read or written once."""
    map = case.batch * case.channels * case.height * case.width
    taps = case.batch * case.groups * math.prod(case.kernel) * case.height * case.width
    operations = 8.0 * map * math.prod(case.kernel)
    if setting.direction == "forward":
        return operations, float((2 * map + 3 * taps) * setting.torch_dtype.itemsize)
    return 2 * operations, float((3 * map + 6 * taps) * setting.torch_dtype.itemsize)


def _error(got: object, want: object) -> float:
    """The largest error among the results, each as a norm over the result's."""
    pairs = zip(*(result if isinstance(result, tuple) else (result,) for result in (got, want)), strict=True)
    return max(float((a.double() - b.double()).norm() / b.double().norm()) for a, b in pairs)
