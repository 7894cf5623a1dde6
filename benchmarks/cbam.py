"""channel_pool, average_max_pool and spatial_gate against what people write, eager and compiled."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence

import torch
import torch._functorch.config
from torch import Tensor

from benchmarks.cases import CBAM, CbamCase
from benchmarks.gpu_counts import EMULATED_OUTPUTS, KernelCall
from benchmarks.harness import OURS, Problem, Run, Setting

OPERATOR = "cbam"
PEERS = ("torch", "torch.compile")
OVERHEAD_FACTOR = 17
OVERHEAD_TARGET_US = 8.0

Op = Callable[..., Tensor]


def cases(device: str) -> Sequence[CbamCase]:
    # Events do not see the host's time.
    return [case for case in CBAM if device == "cpu" or not case.overhead]


def target_ratio(case: CbamCase, setting: Setting) -> float:
    """The ratio over eager torch that this row has to reach; over torch.compile it is 1."""
    if case.overhead:
        return 1.0
    if setting.direction == "backward":
        return 2.0
    if case.operator == "spatial_gate":  # torch's product is the one pass that it takes, its sigmoid is of few numbers
        return 1.0
    if setting.torch_dtype.itemsize > 2:  # torch's mean and maximum are two passes at the rate of memory, ours is one
        return 2.0
    return 8.0 if setting.layout == "channels_last" else 2.5


def prepare(case: CbamCase, setting: Setting, copies: int, with_compile: bool) -> Problem:
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
        inputs, grad_output = sets[0]
        larger = [x.repeat(OVERHEAD_FACTOR, 1, 1, 1).to(memory_format=setting.memory_format) for x in inputs]
        probe = _forward(_ours(case), larger, grad_output)
    wide = [x.double() for x in sets[0][0]], sets[0][1].double()
    got, peer = (prepare_run(op(case), *sets[0])() for op in (_ours, _torch))
    want = prepare_run(_torch(case), *wide)()
    return Problem(
        providers=providers,
        operations=0.0,
        compulsory_bytes=_bytes(case, setting, setting.direction),
        peak_dtype=torch.float32,
        target=1.0 if with_compile else target_ratio(case, setting),
        error=_error(got, want),
        tolerance=2.0 * max(_error(peer, want), torch.finfo(setting.torch_dtype).eps),
        overhead_probe=probe,
        overhead_factor=OVERHEAD_FACTOR,
        overhead_target_us=OVERHEAD_TARGET_US if probe else None,
    )


def kernel_calls(case: CbamCase, setting: Setting) -> list[KernelCall]:
    """The operators that a case calls on a GPU."""
    ops = torch.ops.fastconv

    def prepare(name: str) -> Run:
        inputs, grad_output = _tensors(case, setting)
        op = getattr(ops, case.operator)
        if name == "forward":
            return functools.partial(op, *inputs)
        if case.operator == "spatial_gate":
            return functools.partial(ops._spatial_gate_backward, grad_output, *inputs)
        output = _torch(case)(*inputs)
        output = output.to(memory_format=setting.memory_format) if output.dim() == 4 else output
        return functools.partial(getattr(ops, f"_{case.operator}_input_grad"), grad_output, *inputs, output)

    return [
        KernelCall(name, 0.0, _bytes(case, setting, direction), functools.partial(prepare, name))
        for name, direction in (("forward", "forward"), ("input_grad", "backward"))
    ]


def reduced(case: CbamCase, setting: Setting) -> tuple[CbamCase, float]:
    """The case with fewer images, and what reduces few elements with fewer channels, for the emulator, and the share of
    the work that it is."""
    image = case.channels * case.height * case.width
    batch = max(1, min(case.batch, EMULATED_OUTPUTS // image))
    smaller = dataclasses.replace(case, batch=batch)
    if image > EMULATED_OUTPUTS:  # multiples of 32 channels and 8 rows: as well aligned as the whole
        if case.operator == "average_max_pool":
            channels = EMULATED_OUTPUTS // (case.height * case.width) // 32 * 32
            smaller = dataclasses.replace(smaller, channels=max(32, channels))
        elif case.height > 14:
            height = EMULATED_OUTPUTS // (case.channels * case.width) // 8 * 8
            smaller = dataclasses.replace(smaller, height=max(8, height))
    share = smaller.batch * smaller.channels * smaller.height / (case.batch * case.channels * case.height)
    return smaller, share


def _tensors(case: CbamCase, setting: Setting) -> tuple[list[Tensor], Tensor]:
    def random(*shape: int) -> Tensor:
        x = torch.randn(shape, device=setting.device).to(setting.torch_dtype)
        return x.to(memory_format=setting.memory_format) if len(shape) == 4 else x

    n, c, h, w = case.shape
    x = random(n, c, h, w).relu_()  # maxima have ties, as in a network
    if case.operator == "channel_pool":
        return [x], random(n, 2, h, w)
    if case.operator == "average_max_pool":
        return [x], random(n, 2, c)
    return [x, random(n, 1, h, w)], random(n, c, h, w)


def _ours(case: CbamCase) -> Op:
    import fastconv

    return getattr(fastconv, case.operator)


def _torch(case: CbamCase) -> Op:
    """As timm has it."""

    def channel_pool(x: Tensor) -> Tensor:
        return torch.cat([x.mean(dim=1, keepdim=True), x.amax(dim=1, keepdim=True)], dim=1)

    def average_max_pool(x: Tensor) -> Tensor:
        return torch.stack([x.mean((2, 3)), x.amax((2, 3))], 1)

    def spatial_gate(x: Tensor, logits: Tensor) -> Tensor:
        return x * logits.sigmoid()

    return locals()[case.operator]


def _forward(op: Op, inputs: Sequence[Tensor], grad_output: Tensor) -> Run:
    return lambda: op(*inputs)


def _backward(op: Op, inputs: Sequence[Tensor], grad_output: Tensor) -> Run:
    """All gradients by autograd, from an output computed beforehand."""
    leaves = [x.detach().requires_grad_() for x in inputs]
    with torch._functorch.config.patch(donated_buffer=False):
        output = op(*leaves)
    return lambda: torch.autograd.grad(output, leaves, grad_output, retain_graph=True)


def _bytes(case: CbamCase, setting: Setting, direction: str) -> float:
    """Each input is read once, each output is written once."""
    n, c, h, w = case.shape
    image = n * c * h * w
    if case.operator == "spatial_gate":
        elements = 2 * image + n * h * w if direction == "forward" else 3 * image + 2 * n * h * w
    else:
        pooled = n * 2 * (h * w if case.operator == "channel_pool" else c)
        # A gradient reads the maxima, and the gradients of both.
        elements = image + pooled if direction == "forward" else 2 * image + 3 * pooled // 2
    return float(elements * setting.torch_dtype.itemsize)


def _error(got: object, want: object) -> float:
    pairs = list(zip(*(x if isinstance(x, tuple) else (x,) for x in (got, want)), strict=True))
    return max(float((a.double() - b).norm() / b.norm()) for a, b in pairs)
