"""split_attention_pool and split_attention_combine against the same in torch's operators, eager and compiled."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence

import torch
import torch._functorch.config
from torch import Tensor

from benchmarks.cases import SPLIT_ATTENTION, SplitAttentionCase
from benchmarks.gpu_counts import EMULATED_OUTPUTS, KernelCall
from benchmarks.harness import OURS, Problem, Run, Setting

OPERATOR = "split_attention"
PEERS = ("torch", "torch.compile")
OVERHEAD_FACTOR = 17
OVERHEAD_TARGET_US = 8.0

Op = Callable[[Tensor, Tensor], Tensor]


def cases(device: str) -> Sequence[SplitAttentionCase]:
    # Events do not see the host's time.
    return [case for case in SPLIT_ATTENTION if device == "cpu" or not case.overhead]


def target_ratio(case: SplitAttentionCase, setting: Setting) -> float:
    """The ratio over eager torch that this row has to reach; over torch.compile it is 1."""
    if case.overhead or (case.part == "pool" and setting.direction == "backward"):  # a view
        return 1.0
    if setting.direction == "backward":
        return 2.0
    return 8.0 if setting.layout == "channels_last" and case.radix > 1 else 2.5 if case.radix > 1 else 1.0


def prepare(case: SplitAttentionCase, setting: Setting, copies: int, with_compile: bool) -> Problem:
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
        larger = dataclasses.replace(case, batch=case.batch * OVERHEAD_FACTOR)
        probe = _forward(_ours(case), *_tensors(larger, setting))
    exact = prepare_run(_torch(case), *(x.double() for x in sets[0]))()
    return Problem(
        providers=providers,
        operations=0.0,  # a multiply-add for each element that is read: never the limit
        compulsory_bytes=_bytes(case, setting),
        peak_dtype=torch.float32,
        target=1.0 if with_compile else target_ratio(case, setting),
        error=_error(prepare_run(_ours(case), *sets[0])(), exact),
        tolerance=2.0 * max(_error(prepare_run(_torch(case), *sets[0])(), exact), torch.finfo(setting.torch_dtype).eps),
        overhead_probe=probe,
        overhead_factor=OVERHEAD_FACTOR,
        overhead_target_us=OVERHEAD_TARGET_US if probe else None,
    )


def kernel_calls(case: SplitAttentionCase, setting: Setting) -> list[KernelCall]:
    """The operators that a case calls on a GPU; the gradient of the pool is a view."""
    ops = torch.ops.fastconv
    more = (case.radix, case.cardinality)
    calls: dict[str, Callable[[Tensor, Tensor, Tensor], object]] = {
        "pool": lambda x, logits, grad: ops.split_attention_pool(x, case.radix),
        "combine": lambda x, logits, grad: ops.split_attention_combine(x, logits, *more),
        "backward": lambda x, logits, grad: ops._split_attention_combine_backward(grad, x, logits, *more),
        "logits_grad": lambda x, logits, grad: ops._split_attention_combine_logits_grad(grad, x, logits, *more),
        "input_grad": lambda x, logits, grad: ops._split_attention_combine_input_grad(
            grad, logits, logits[:, : case.channels], *more
        ),
    }
    maps = {"pool": case.radix, "combine": case.radix + 1, "backward": 2 * case.radix + 1}
    maps |= {"logits_grad": case.radix + 1, "input_grad": case.radix + 1}

    def prepare(name: str) -> Run:
        tensors = _tensors(case, setting)
        return lambda: calls[name](*tensors)

    of_case = {"pool": ("pool",), "combine": ("combine", "backward"), "attention": ("logits_grad", "input_grad")}
    return [
        KernelCall(name, 0.0, maps[name] * _map_bytes(case, setting), functools.partial(prepare, name))
        for name in of_case[case.part]
    ]


def reduced(case: SplitAttentionCase, setting: Setting) -> tuple[SplitAttentionCase, float]:
    """The case with fewer images, and of a large one fewer channels or, where those are neighbours in memory, fewer
    rows, for the emulator; and the share of the work that it is."""
    image = case.radix * case.channels * case.height * case.width
    smaller = dataclasses.replace(case, batch=max(1, min(case.batch, EMULATED_OUTPUTS // image)))
    if image > EMULATED_OUTPUTS and setting.layout == "nchw":
        channels = EMULATED_OUTPUTS // (case.radix * case.height * case.width)
        smaller = dataclasses.replace(smaller, channels=max(8, channels // 8 * 8))
    elif image > EMULATED_OUTPUTS:
        rows = EMULATED_OUTPUTS // (case.radix * case.channels * case.width)
        smaller = dataclasses.replace(smaller, height=max(8, rows // 8 * 8))
    share = smaller.batch * smaller.channels * smaller.height / (case.batch * case.channels * case.height)
    return smaller, share


def _tensors(case: SplitAttentionCase, setting: Setting) -> tuple[Tensor, Tensor, Tensor]:
    def random(channels: int) -> Tensor:
        x = torch.randn(case.batch, channels, case.height, case.width, device=setting.device)
        return x.to(setting.torch_dtype).to(memory_format=setting.memory_format)

    channels = case.radix * case.channels
    logits = torch.randn(case.batch, channels, device=setting.device).to(setting.torch_dtype)
    return random(channels), logits, random(case.channels)


def _ours(case: SplitAttentionCase) -> Op:
    from fastconv import split_attention_combine, split_attention_pool
    from fastconv.nn.split_attention import attend

    def attention(x: Tensor, logits: Tensor) -> Tensor:
        return attend(x, lambda pooled: pooled.repeat(1, case.radix) * logits, case.radix, case.cardinality)

    ops: dict[str, Op] = {
        "pool": lambda x, logits: split_attention_pool(x, case.radix),
        "combine": lambda x, logits: split_attention_combine(x, logits, case.radix, case.cardinality),
        "attention": attention,
    }
    return ops[case.part]


def _torch(case: SplitAttentionCase) -> Op:
    """As timm has it."""

    def pool(x: Tensor, logits: Tensor) -> Tensor:
        if case.radix > 1:
            x = x.reshape(case.batch, case.radix, case.channels, *x.shape[2:]).sum(1)
        return x.mean((2, 3))

    def combine(x: Tensor, logits: Tensor) -> Tensor:
        if case.radix == 1:
            return x * logits.sigmoid()[:, :, None, None]
        splits = (case.batch, case.radix, case.channels)
        attention = logits.view(case.batch, case.cardinality, case.radix, -1).transpose(1, 2).softmax(1)
        return (x.reshape(*splits, *x.shape[2:]) * attention.reshape(*splits, 1, 1)).sum(1)

    ops: dict[str, Op] = {
        "pool": pool,
        "combine": combine,
        "attention": lambda x, logits: combine(x, pool(x, logits).repeat(1, case.radix) * logits),
    }
    return ops[case.part]


def _forward(op: Op, x: Tensor, logits: Tensor, grad_output: Tensor) -> Run:
    return lambda: op(x, logits)


def _backward(op: Op, x: Tensor, logits: Tensor, grad_output: Tensor) -> Run:
    """All gradients by autograd, from an output computed beforehand."""
    leaves = [x.detach().requires_grad_(), logits.detach().requires_grad_()]
    with torch._functorch.config.patch(donated_buffer=False):
        output = op(*leaves)
    grad = grad_output if output.dim() == 4 else grad_output[:, :, 0, 0].contiguous()
    return lambda: torch.autograd.grad(output, leaves, grad, retain_graph=True, allow_unused=True)


def _map_bytes(case: SplitAttentionCase, setting: Setting) -> float:
    """Of one split, which is as large as the output."""
    return float(case.batch * case.channels * case.height * case.width * setting.torch_dtype.itemsize)


def _bytes(case: SplitAttentionCase, setting: Setting) -> float:
    """Maps are read and written once, but twice for the attention, whose logits need a pass before."""
    r = case.radix
    forward = {"pool": r, "combine": r + 1, "attention": 2 * r + 1}
    backward = {"pool": 0, "combine": 2 * r + 1, "attention": 2 * r + 2}
    maps = (forward if setting.direction == "forward" else backward)[case.part]
    return max(1.0, maps * _map_bytes(case, setting))


def _error(got: object, exact: object) -> float:
    """The norm of the error over that of the exact result, the worst of all."""
    pairs = zip(*(result if isinstance(result, tuple) else (result,) for result in (got, exact)), strict=True)
    return max(((a.double() - b).norm() / b.norm()).item() for a, b in pairs if a is not None)
