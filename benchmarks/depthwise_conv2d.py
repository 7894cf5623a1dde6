"""depthwise_conv2d against torch's own convolution (oneDNN on a CPU, cuDNN on a GPU), eager and compiled."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence

import torch
import torch._functorch.config
import torch.nn.functional as F
from torch import Tensor

from benchmarks.cases import DEPTHWISE_CONV2D, DepthwiseCase
from benchmarks.gpu_counts import EMULATED_OUTPUTS, EMULATED_TERMS, KernelCall
from benchmarks.harness import NOT_SLOWER, OURS, Problem, Run, Setting

OPERATOR = "depthwise_conv2d"
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


def cases(device: str) -> Sequence[DepthwiseCase]:
    if device == "cuda":
        return [case for case in DEPTHWISE_CONV2D if not case.overhead]  # events do not see the host's time
    return [case for case in DEPTHWISE_CONV2D if not case.cuda_only]


def target_ratio(case: DepthwiseCase, setting: Setting) -> float:
    """The ratio over the best peer that this row has to reach."""
    if not case.targeted:
        return NOT_SLOWER
    if setting.device == "cuda":
        return 1.0
    nchw, forward, low_precision = (
        setting.layout == "nchw",
        setting.direction == "forward",
        setting.dtype in ("bf16", "f16"),
    )
    size = max(case.kernel)
    if size <= 5:
        if not forward:
            return 3.0 if nchw else 1.5
        if not nchw:
            return 1.0
        return 4.0 if low_precision or case.stride == 2 else 2.0
    if size <= 7:
        if not forward:
            return 15.0 if nchw else 5.0
        return 2.0 if nchw or low_precision else 1.4
    if not forward:
        return 15.0
    if size <= 13:
        return 1.5 if nchw else 3.0
    return 25.0 if nchw else 1.2


def prepare(case: DepthwiseCase, setting: Setting, copies: int, with_compile: bool) -> Problem:
    sets = [_tensors(case, setting) for _ in range(copies)]
    ops: dict[str, Op | None] = {OURS: _ours(case), "torch": _torch(case), "torch.compile": None}
    if with_compile:
        torch.compiler.reset()
        ops["torch.compile"] = torch.compile(_torch(case), dynamic=False)
    prepare_run = _forward if setting.direction == "forward" else _backward
    providers: dict[str, Sequence[Run] | None] = {
        name: [prepare_run(op, *tensors) for tensors in sets] if op else None for name, op in ops.items()
    }
    probe = None
    if case.overhead and setting.threads == 1 and setting.direction == "forward":
        input, weight, bias, grad_output = sets[0]
        larger = input.detach().repeat(OVERHEAD_FACTOR, 1, 1, 1).to(memory_format=setting.memory_format)
        probe = _forward(_ours(case), larger, weight, bias, grad_output)
    operations, compulsory_bytes = _cost(case, setting)
    smooth = setting.direction == "forward" or case.activation == "none"
    return Problem(
        providers=providers,
        operations=operations,
        compulsory_bytes=compulsory_bytes,
        # Sums are kept in f32 (f64 for f64), whatever the tensors hold; there is no matrix product in a depthwise
        # convolution for a matrix unit to work on.
        peak_dtype=torch.float64 if setting.dtype == "f64" else torch.float32,
        target=target_ratio(case, setting),
        error=_error(case, setting, *sets[0]),
        tolerance=TOLERANCES[setting.torch_dtype] if smooth else KINK_TOLERANCE,
        overhead_probe=probe,
        overhead_factor=OVERHEAD_FACTOR,
        overhead_target_us=OVERHEAD_TARGET_US if probe else None,
    )


def kernel_calls(case: DepthwiseCase, setting: Setting) -> list[KernelCall]:
    """The operators that a case calls on a GPU. Each works on the same three tensors, and on as many terms."""
    operations, compulsory_bytes = _cost(case, dataclasses.replace(setting, direction="forward"))

    def prepare(name: str) -> Run:
        input, weight, bias, grad_output = _tensors(case, setting)
        geometry = [case.stride] * 2, list(case.padding), [case.dilation] * 2
        ops = torch.ops.fastconv
        if name == "forward":
            return lambda: ops.depthwise_conv2d(input, weight, bias, *geometry, case.activation)
        if name == "input_grad":
            return lambda: ops._depthwise_conv2d_input_grad(grad_output, input, weight, *geometry)
        return lambda: ops._depthwise_conv2d_weight_grad(grad_output, input, weight, *geometry, False)

    return [
        KernelCall(name, operations, compulsory_bytes, functools.partial(prepare, name))
        for name in ("forward", "input_grad", "weight_grad")
    ]


def reduced(case: DepthwiseCase, setting: Setting) -> tuple[DepthwiseCase, float]:
    """The case with fewer images and channels, for the emulator, and the share of the work that it is. Planes stay as
    large as they are. In channels_last the images go first, and blocks of channels (128 bytes) stay whole; in NCHW the
    channels, since the weight gradient's blocks take several images of one."""
    outputs = min(EMULATED_OUTPUTS, EMULATED_TERMS / (case.kernel[0] * case.kernel[1]))
    wanted = outputs / (case.output_size[0] * case.output_size[1] * case.multiplier)  # planes of the input
    batch, channels = case.batch, case.channels
    if setting.layout == "channels_last":
        block = 128 // setting.torch_dtype.itemsize
        batch = max(1, min(batch, int(wanted // channels)))
        if batch * channels > wanted and channels % block == 0:
            channels = max(block, int(wanted // batch // block) * block)
    else:
        channels = max(1, min(channels, int(wanted // batch)))
        batch = max(1, min(batch, int(wanted // channels)))
    smaller = dataclasses.replace(case, batch=batch, channels=channels)
    return smaller, batch * channels / (case.batch * case.channels)


def _tensors(case: DepthwiseCase, setting: Setting) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    def random(*shape: int) -> Tensor:
        return torch.randn(shape, device=setting.device).to(setting.torch_dtype)

    out_channels = case.channels * case.multiplier
    input = random(case.batch, case.channels, case.height, case.width).to(memory_format=setting.memory_format)
    weight = random(out_channels, 1, *case.kernel)
    bias = random(out_channels) if case.activation != "none" else None
    grad_output = random(case.batch, out_channels, *case.output_size).to(memory_format=setting.memory_format)
    return input, weight, bias, grad_output


def _ours(case: DepthwiseCase) -> Op:
    from fastconv import depthwise_conv2d

    stride, padding, dilation, activation = case.stride, case.padding, case.dilation, case.activation
    return lambda input, weight, bias: depthwise_conv2d(input, weight, bias, stride, padding, dilation, activation)


def _torch(case: DepthwiseCase) -> Op:
    stride, padding, dilation, groups = case.stride, case.padding, case.dilation, case.channels
    activation = ACTIVATIONS[case.activation]
    if case.activation == "none":
        return lambda input, weight, bias: F.conv2d(input, weight, bias, stride, padding, dilation, groups)
    return lambda input, weight, bias: activation(F.conv2d(input, weight, bias, stride, padding, dilation, groups))


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


def _cost(case: DepthwiseCase, setting: Setting) -> tuple[float, float]:
    """Operations (a multiply and an add for each tap, those on padding counted) and compulsory bytes."""
    out_height, out_width = case.output_size
    output = case.batch * case.channels * case.multiplier * out_height * out_width
    input = case.batch * case.channels * case.height * case.width
    weight = case.channels * case.multiplier * case.kernel[0] * case.kernel[1]
    operations = 2.0 * output * case.kernel[0] * case.kernel[1]
    if setting.direction == "forward":
        elements = input + weight + output
    else:  # reads grad_output, input and weight; writes the gradients of input and weight
        operations, elements = 2 * operations, output + 2 * input + 2 * weight
    return operations, float(elements * setting.torch_dtype.itemsize)


def _error(
    case: DepthwiseCase, setting: Setting, input: Tensor, weight: Tensor, bias: Tensor | None, grad_output: Tensor
) -> float:
    """Norm of fastconv's error over the norm of the correct result.

    Correct is torch in f32 (f64 for f64), in channels_last where the kernel is large: in NCHW that takes a second.
    """
    wide = torch.float64 if setting.dtype == "f64" else torch.float32
    memory_format = torch.channels_last if max(case.kernel) > 7 else torch.contiguous_format
    make = _forward if setting.direction == "forward" else _backward
    exact_bias = None if bias is None else bias.to(wide)
    exact_input = input.to(wide).to(memory_format=memory_format)
    got = make(_ours(case), input, weight, bias, grad_output)()
    want = make(_torch(case), exact_input, weight.to(wide), exact_bias, grad_output.to(wide))()
    pairs = zip(_as_tuple(got), _as_tuple(want), strict=True)
    return max(_relative_error(a.to(wide), b) for a, b in pairs)


def _as_tuple(result: object) -> tuple[Tensor, ...]:
    return result if isinstance(result, tuple) else (result,)  # type: ignore[return-value]


def _relative_error(got: Tensor, want: Tensor) -> float:
    if got.shape != want.shape:
        return math.inf
    return (torch.linalg.vector_norm(got - want) / torch.linalg.vector_norm(want)).item()
