"""split_attention_combine of a map and of what is made of its split_attention_pool, joined in the backward pass.

One by one, the gradients of both are maps as large as the input, and autograd adds them up. Here the gradient of the
logits comes first, from one pass over the input and the output's gradient; and when what lies between has led it to the
gradient of the pooled numbers, a pass over the output's gradient writes that of the input, the pool's share included.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .._register import suggest_memory_format
from .split_attention_combine import _combine, _input_grad, _logits_grad
from .split_attention_pool import _backward as _pool_backward
from .split_attention_pool import split_attention_pool


def joins_gradients(input: Any) -> bool:
    """Whether `split_attention` is for this call: a backward pass may follow, by nothing but autograd."""
    if not (isinstance(input, Tensor) and input.requires_grad and torch.is_grad_enabled()):
        return False
    if torch.compiler.is_compiling():
        return not torch.compiler.is_exporting()
    return not torch._C._are_functorch_transforms_active() and forward_ad._current_level < 0


def split_attention(input: Tensor, logits_of: Callable[[Tensor], Tensor], radix: int, cardinality: int = 1) -> Tensor:
    """``split_attention_combine(input, logits_of(split_attention_pool(input, radix)), radix, cardinality)``, of which
    the gradients, of any order, are the same. `joins_gradients(input)` must be true."""
    pooled, *carried = _Pool.apply(input, radix, cardinality)
    logits = logits_of(pooled).to(input.dtype)
    return _Combine.apply(input, logits, *carried, radix, cardinality)


# The backward pass of _Combine hands the output's gradient and the logits on to that of _Pool, as the gradients of two
# tensors that nothing reads. They take no memory.


class _Pool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, radix: int, cardinality: int) -> tuple[Tensor, Tensor, Tensor]:
        ctx.radix, ctx.cardinality, ctx.size = radix, cardinality, input.shape[2:]
        ctx.set_materialize_grads(False)
        pooled, nothing = split_attention_pool(input, radix), input.new_empty(())
        return pooled, nothing.expand(*pooled.shape, *ctx.size), nothing.expand(input.shape[:2])

    @staticmethod
    def backward(ctx: Any, grad_pooled: Tensor | None, grad_output: Tensor | None, logits: Tensor | None) -> tuple:
        if grad_pooled is not None and (grad_output is None or logits is None):
            return _pool_backward(ctx, grad_pooled)[0], None, None  # the logits had another use, the output none
        return _input_grad(grad_output, logits, grad_pooled, ctx.radix, ctx.cardinality), None, None


class _Combine(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, input: Tensor, logits: Tensor, of_output: Tensor, of_logits: Tensor, radix: int, cardinality: int
    ) -> Tensor:
        ctx.radix, ctx.cardinality, ctx.memory_format = radix, cardinality, suggest_memory_format(input)
        ctx.save_for_backward(input, logits)
        return _combine(input, logits, radix, cardinality)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple:
        input, logits = ctx.saved_tensors
        # Once for both passes; autograd's own vmap does not know memory formats.
        if torch.compiler.is_compiling() or not torch._C._functorch.is_legacy_batchedtensor(grad):
            grad = grad.contiguous(memory_format=ctx.memory_format)
        of_logits = None
        if ctx.needs_input_grad[1]:
            of_logits = _logits_grad(grad, input, logits, ctx.radix, ctx.cardinality)
        return None, of_logits, grad, logits, None, None
