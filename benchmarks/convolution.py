"""What the pages of 2d convolutions share: their peer is torch's own convolution (oneDNN on a CPU, cuDNN on a GPU)."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence

import torch
import torch._functorch.config
import torch.nn.functional as F
from torch import Tensor

from benchmarks.cases import ConvolutionCase
from benchmarks.gpu_counts import KernelCall
from benchmarks.harness import OURS, Problem, Run, Setting

PEERS = ("torch", "torch.compile")

# Norm of the error over the norm of the result, against f32 arithmetic on the same values.
TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 8e-3}
# A rounded sum may fall on the other side of a kink of the activation, which changes a gradient altogether.
KINK_TOLERANCE = 0.2
OVERHEAD_FACTOR = 17
OVERHEAD_TARGET_US = 8.0

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda x: x,
    "relu": F.relu,
    "relu6": F.relu6,
    "silu": F.silu,
    "gelu": F.gelu,
    "hardswish": F.hardswish,
}
Op = Callable[[Tensor, Tensor, Tensor | None], Tensor]


def prepare(
    operator: str,
    case: ConvolutionCase,
    setting: Setting,
    copies: int,
    with_compile: bool,
    *,
    theirs: Op,
    target: float,
    peak_dtype: torch.dtype,
) -> Problem:
    ours = _ours(operator, case)
    sets = [tensors(case, setting) for _ in range(copies)]
    ops: dict[str, Op | None] = {OURS: ours, "torch": theirs, "torch.compile": None}
    if with_compile:
        torch.compiler.reset()
        ops["torch.compile"] = torch.compile(theirs, dynamic=False)
    prepare_run = _forward if setting.direction == "forward" else _backward
    providers: dict[str, Sequence[Run] | None] = {
        name: [prepare_run(op, *of_one) for of_one in sets] if op else None for name, op in ops.items()
    }
    probe = None
    if case.overhead and setting.threads == 1 and setting.direction == "forward":
        input, weight, bias, grad_output = sets[0]
        larger = input.detach().repeat(OVERHEAD_FACTOR, 1, 1, 1).to(memory_format=setting.memory_format)
        probe = _forward(ours, larger, weight, bias, grad_output)
    operations, compulsory_bytes = cost(case, setting)
    smooth = setting.direction == "forward" or case.activation == "none"
    return Problem(
        providers=providers,
        operations=operations,
        compulsory_bytes=compulsory_bytes,
        peak_dtype=peak_dtype,
        target=target,
        error=_error(case, setting, ours, theirs, *sets[0]),
        tolerance=TOLERANCES[setting.torch_dtype] if smooth else KINK_TOLERANCE,
        overhead_probe=probe,
        overhead_factor=OVERHEAD_FACTOR,
        overhead_target_us=OVERHEAD_TARGET_US if probe else None,
    )


def tensors(case: ConvolutionCase, setting: Setting) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    """input, weight, bias, grad_output"""

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, device=setting.device).to(setting.torch_dtype)

    input = random(case.batch, case.channels, case.height, case.width).to(memory_format=setting.memory_format)
    weight = random(*case.weight_shape)
    bias = random(case.out_channels) if case.activation != "none" else None
    grad_output = random(case.batch, case.out_channels, *case.output_size).to(memory_format=setting.memory_format)
    return input, weight, bias, grad_output


def _ours(operator: str, case: ConvolutionCase) -> Op:
    import fastconv

    function, arguments = getattr(fastconv, operator), case.arguments
    return lambda input, weight, bias: function(input, weight, bias, *arguments)


def torch_convolution(case: ConvolutionCase) -> Op:
    """torch's convolution and activation."""
    geometry, activation = (*case.geometry, case.groups), ACTIVATIONS[case.activation]
    if case.activation == "none":
        return lambda input, weight, bias: F.conv2d(input, weight, bias, *geometry)
    return lambda input, weight, bias: activation(F.conv2d(input, weight, bias, *geometry))


def cost(case: ConvolutionCase, setting: Setting) -> tuple[float, float]:
    """Operations (a multiply and an add for each product, those with padding counted) and compulsory bytes."""
    output = case.batch * case.out_channels * math.prod(case.output_size)
    input = case.batch * case.channels * case.height * case.width
    weight = math.prod(case.weight_shape)
    operations = 2.0 * output * math.prod(case.weight_shape[1:])
    if setting.direction == "forward":
        elements = input + weight + output
    else:  # reads grad_output, input and weight; writes the gradients of input and weight
        operations, elements = 2 * operations, output + 2 * input + 2 * weight
    return operations, float(elements * setting.torch_dtype.itemsize)


def kernel_calls(operator: str, case: ConvolutionCase, setting: Setting) -> list[KernelCall]:
    """The operators that a case calls on a GPU. Each works on the same three tensors, and on as many terms."""
    operations, compulsory_bytes = cost(case, dataclasses.replace(setting, direction="forward"))

    def prepare(name: str) -> Run:
        input, weight, bias, grad_output = tensors(case, setting)
        if name == "forward":
            op = getattr(torch.ops.fastconv, operator)
            return lambda: op(input, weight, bias, *case.arguments)
        op = getattr(torch.ops.fastconv, f"_{operator}_{name}")
        deterministic = [False] if name == "weight_grad" else []
        return lambda: op(grad_output, input, weight, *case.gradient_arguments, *deterministic)

    return [
        KernelCall(name, operations, compulsory_bytes, functools.partial(prepare, name))
        for name in ("forward", "input_grad", "weight_grad")
    ]


def _forward(op: Op, input: Tensor, weight: Tensor, bias: Tensor | None, grad_output: Tensor) -> Run:
    return lambda: op(input, weight, bias)


def _backward(op: Op, input: Tensor, weight: Tensor, bias: Tensor | None, grad_output: Tensor) -> Run:
    """Both gradients by autograd, from an output computed beforehand."""
    leaves = [tensor.detach().requires_grad_() for tensor in (input, weight, bias) if tensor is not None]
    # Inductor otherwise reuses the memory of saved tensors, and the graph could be walked only once.
    with torch._functorch.config.patch(donated_buffer=False):
        output = op(leaves[0], leaves[1], leaves[2] if bias is not None else None)
        torch.autograd.grad(output, leaves, grad_output, retain_graph=True)
    return lambda: torch.autograd.grad(output, leaves, grad_output, retain_graph=True)


def _error(
    case: ConvolutionCase,
    setting: Setting,
    ours: Op,
    theirs: Op,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    grad_output: Tensor,
) -> float:
    """Norm of fastconv's error over the norm of the correct result.

    Correct is torch in f32 (f64 for f64), in channels_last where the kernel is large: in NCHW that takes a second.
    """
    wide = torch.float64 if setting.dtype == "f64" else torch.float32
    memory_format = torch.channels_last if max(case.kernel) > 7 else torch.contiguous_format
    make = _forward if setting.direction == "forward" else _backward
    exact_bias = None if bias is None else bias.to(wide)
    exact_input = input.to(wide).to(memory_format=memory_format)
    got = make(ours, input, weight, bias, grad_output)()
    want = make(theirs, exact_input, weight.to(wide), exact_bias, grad_output.to(wide))()
    pairs = zip(_as_tuple(got), _as_tuple(want), strict=True)
    return max(_relative_error(a.to(wide), b) for a, b in pairs)


def _as_tuple(result: object) -> tuple[Tensor, ...]:
    return result if isinstance(result, tuple) else (result,)  # type: ignore[return-value]


def _relative_error(got: Tensor, want: Tensor) -> float:
    if got.shape != want.shape:
        return math.inf
    return (torch.linalg.vector_norm(got - want) / torch.linalg.vector_norm(want)).item()
