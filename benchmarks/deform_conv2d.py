"""deform_conv2d against torchvision's, and against torch's own operators composed."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import convolution
from benchmarks.cases import DEFORM_CONV2D, DeformCase
from benchmarks.gpu_counts import EMULATED_OUTPUTS, EMULATED_TERMS, KernelCall
from benchmarks.harness import NOT_SLOWER, OURS, Problem, Run, Setting

OPERATOR = "deform_conv2d"
PEERS = ("torchvision", "composed")
FIXED_WORK = True  # CUDA kernels reorder the weights once a call

# input, offset, weight, mask
Tensors = tuple[Tensor, Tensor, Tensor, Tensor | None]
Op = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]


def cases(device: str) -> Sequence[DeformCase]:
    # Events do not see the host's time.
    return [case for case in DEFORM_CONV2D if device == "cpu" or not case.overhead]


def target_ratio(case: DeformCase, setting: Setting) -> float:
    """The ratio over the best peer that this row has to reach: torchvision's, which has no 16-bit kernels on a CPU."""
    if not case.targeted or setting.dtype in ("bf16", "f16"):
        return NOT_SLOWER
    if setting.device == "cuda":
        return 2.0 if setting.direction == "forward" else 3.0
    return 7.0 if setting.direction == "forward" else 20.0


def prepare(case: DeformCase, setting: Setting, copies: int, with_compile: bool) -> Problem:
    sets = [_tensors(case, setting) for _ in range(copies)]
    ops: dict[str, Op] = {OURS: _ours(case), "torchvision": _torchvision(case), "composed": _composed(case)}
    prepare_run = _forward if setting.direction == "forward" else _backward
    providers: dict[str, Sequence[Run]] = {
        name: [prepare_run(op, *of_one) for of_one in sets] for name, op in ops.items()
    }
    operations, compulsory_bytes = cost(case, setting)
    return Problem(
        providers=providers,
        operations=operations,
        compulsory_bytes=compulsory_bytes,
        peak_dtype=setting.torch_dtype,
        target=target_ratio(case, setting),
        error=_error(case, setting, *sets[0]),
        tolerance=convolution.TOLERANCES[setting.torch_dtype],
    )


def cost(case: DeformCase, setting: Setting) -> tuple[float, float]:
    """Those of the convolution (the products with the weight), and offsets and masks."""
    operations, compulsory_bytes = convolution.cost(case, setting)
    values = case.batch * (3 if case.mask else 2) * case.offset_groups * math.prod((*case.kernel, *case.output_size))
    passes = 1 if setting.direction == "forward" else 2  # the gradients are written, too
    return operations, compulsory_bytes + passes * values * _offset_dtype(setting).itemsize


def kernel_calls(case: DeformCase, setting: Setting) -> list[KernelCall]:
    """The operators that a case calls on a GPU."""
    operations, forward_bytes = cost(case, dataclasses.replace(setting, direction="forward"))
    _, all_bytes = cost(case, dataclasses.replace(setting, direction="backward"))
    weight_bytes = float(math.prod(case.weight_shape) * setting.torch_dtype.itemsize)

    def prepare(name: str) -> Run:
        (input, offset, weight, mask), grad_output = _tensors(case, setting)
        ops, needed = torch.ops.fastconv, [0, 1, 2] if case.mask else [0, 1]
        if name == "forward":
            return lambda: ops.deform_conv2d(input, offset, weight, mask, None, *case.geometry)
        arguments = (grad_output, input, offset, weight, mask, *case.geometry)
        if name == "input_grad":
            return lambda: ops._deform_conv2d_input_grad(*arguments, needed, False)
        return lambda: ops._deform_conv2d_weight_grad(*arguments, False)

    return [
        KernelCall("forward", operations, forward_bytes, functools.partial(prepare, "forward")),
        # Writes the gradients of input, offset and mask, not that of weight.
        KernelCall("input_grad", operations, all_bytes - weight_bytes, functools.partial(prepare, "input_grad")),
        KernelCall("weight_grad", operations, forward_bytes, functools.partial(prepare, "weight_grad")),
    ]


def reduced(case: DeformCase, setting: Setting) -> tuple[DeformCase, float]:
    """The case with fewer images and fewer rows, for the emulator, and the share of the work that it is. A few rows are
    kept in any case, so that tiles of pixels are about as those of the whole case."""
    outputs = min(EMULATED_OUTPUTS, 1.25 * EMULATED_TERMS / math.prod(case.weight_shape[1:]))
    rows = max(4, int(outputs / (case.out_channels * case.output_size[1])))
    batch = max(1, min(case.batch, rows // case.output_size[0]))
    height = case.height if rows >= case.output_size[0] else min(case.height, rows * case.stride)
    smaller = dataclasses.replace(case, batch=batch, height=height)
    return smaller, batch * smaller.output_size[0] / (case.batch * case.output_size[0])


def _offset_dtype(setting: Setting) -> torch.dtype:
    return torch.promote_types(setting.torch_dtype, torch.float32)


def _tensors(case: DeformCase, setting: Setting) -> tuple[Tensors, Tensor]:
    """Offsets are a pixel and a half wide, as those of trained networks; they and masks are float32. Smooth ones differ
    by about a pixel from one end of the map to the other."""
    input, weight, _, grad_output = convolution.tensors(case, setting)
    samples, dtype = case.offset_groups * math.prod(case.kernel), _offset_dtype(setting)

    def random(channels: int, size: tuple[int, int]) -> Tensor:
        return torch.randn(case.batch, channels, *size, device=setting.device, dtype=dtype)

    if case.smooth:
        offset = F.interpolate(random(2 * samples, (2, 2)), case.output_size, mode="bilinear", align_corners=True)
    else:
        offset = random(2 * samples, case.output_size) * 1.5
    offset = offset.to(memory_format=setting.memory_format)
    mask = random(samples, case.output_size).sigmoid().to(memory_format=setting.memory_format) if case.mask else None
    return (input, offset, weight, mask), grad_output


def _ours(case: DeformCase) -> Op:
    import fastconv

    geometry = case.geometry
    return lambda input, offset, weight, mask: fastconv.deform_conv2d(input, offset, weight, None, *geometry, mask)


def _torchvision(case: DeformCase) -> Op:
    """Has no bf16 on a CPU; its rule for autocast is this: everything in f32."""
    from torchvision.ops import deform_conv2d

    geometry: Any = case.geometry

    def call(input: Tensor, offset: Tensor, weight: Tensor, mask: Tensor | None) -> Tensor:
        wide = offset.dtype
        output = deform_conv2d(input.to(wide), offset, weight.to(wide), None, *geometry, mask)
        return output.to(input.dtype)

    return call


def _composed(case: DeformCase) -> Op:
    from fastconv.reference import deform_conv2d

    geometry: Any = case.geometry

    def call(input: Tensor, offset: Tensor, weight: Tensor, mask: Tensor | None) -> Tensor:
        mask = None if mask is None else mask.to(input.dtype)
        return deform_conv2d(input, offset.to(input.dtype), weight, mask, None, *geometry)

    return call


def _forward(op: Op, tensors: Tensors, grad_output: Tensor) -> Run:
    return lambda: op(*tensors)


def _backward(op: Op, tensors: Tensors, grad_output: Tensor) -> Run:
    """All gradients by autograd, from an output computed beforehand."""
    input, offset, weight, mask = (x if x is None else x.detach().requires_grad_() for x in tensors)
    assert input is not None and offset is not None and weight is not None
    output = op(input, offset, weight, mask)
    leaves = [x for x in (input, offset, weight, mask) if x is not None]
    return lambda: torch.autograd.grad(output, leaves, grad_output, retain_graph=True)


def _error(case: DeformCase, setting: Setting, tensors: Tensors, grad_output: Tensor) -> float:
    """Norm of fastconv's error over the norm of the result of torchvision, in f32 (f64 for f64)."""
    wide = _offset_dtype(setting)
    make = _forward if setting.direction == "forward" else _backward
    input, offset, weight, mask = tensors
    got = make(_ours(case), tensors, grad_output)()
    want = make(_torchvision(case), (input.to(wide), offset, weight.to(wide), mask), grad_output.to(wide))()
    pairs = zip(convolution._as_tuple(got), convolution._as_tuple(want), strict=True)
    return max(convolution._relative_error(a.to(wide), b) for a, b in pairs)
