"""Helpers with which each operator's page registers what Python knows about it."""

from __future__ import annotations

import types
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._library.autograd import Info, make_autograd_impl
from torch.autograd import forward_ad
from torch.utils._pytree import tree_leaves

_library = torch.library.Library("fastconv", "IMPL")  # registrations last as long as this object


suggest_memory_format: Callable[[Tensor], torch.memory_format] = torch._prims_common.suggest_memory_format
"""The format that torch would keep a tensor with these strides in (`Tensor::suggest_memory_format`)."""


def suggest_channels_last(x: Tensor) -> bool:
    return suggest_memory_format(x) == torch.channels_last


def register_autocast_lower(name: str, float32: Sequence[str] = ()) -> Callable[[Sequence[Any]], Sequence[Any]]:
    """Under autocast, run the operator in autocast's dtype, as torch does for its convolutions, but with the arguments
    named in `float32` in that. Returns what does so with the arguments of a call, for `transformable`.

    `torch.library.register_autocast` would fix the dtype at registration, so that fp16 came out under bf16 autocast.
    """
    overload = getattr(torch.ops.fastconv, name).default
    parameters = [argument.name for argument in overload._schema.arguments]

    def cast(args: Sequence[Any], device: str) -> Sequence[Any]:
        low = torch.get_autocast_dtype(device)
        return [
            value.to(torch.float32 if parameter in float32 else low)
            # float64 stays, as in torch's own rule.
            if isinstance(value, Tensor) and value.is_floating_point() and value.dtype != torch.float64
            else value
            for parameter, value in zip(parameters, args)
        ]

    def rule_for(device: str, key: str) -> Callable[..., Any]:
        keys = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, key))

        def rule(*args: Any) -> Any:
            with torch._C._ExcludeDispatchKeyGuard(keys):
                return overload(*cast(args, device))

        return rule

    for device, key in (("cpu", "AutocastCPU"), ("cuda", "AutocastCUDA")):
        _library.impl(name, rule_for(device, key), key)

    def autocast(args: Sequence[Any]) -> Sequence[Any]:
        device = args[0].device.type
        return cast(args, device) if torch.is_autocast_enabled(device) else args

    return autocast


def move_batch_dim(x: Tensor, dim: int | None, size: int, to: int) -> Tensor:
    """`x` with its vmapped dimension at `to`; expanded there if it has none."""
    if dim is not None:
        return x.movedim(dim, to)
    shape: Sequence[int] = [*x.shape[:to], size, *x.shape[to:]]
    return x.unsqueeze(to).expand(shape)


def register_autograd(name: str, backward: Callable[..., tuple], setup_context: Callable[..., None]) -> None:
    """As `torch.library.register_autograd`, which knows no forward mode and drops tangents: this refuses them."""
    overload = getattr(torch.ops.fastconv, name).default
    reverse = make_autograd_impl(overload, Info(backward, setup_context))

    def rule(keyset: torch._C.DispatchKeySet, *args: Any) -> Any:
        if forward_ad._current_level >= 0 and any(
            isinstance(x, Tensor) and forward_ad.unpack_dual(x).tangent is not None for x in tree_leaves(args)
        ):
            raise NotImplementedError(
                f"{name}: torch.ops.fastconv.{name} has no forward-mode derivatives, nor has compiled code; call "
                "fastconv's public function, not compiled"
            )
        return reverse(keyset, *args)

    _library.impl(name, rule, "Autograd", with_keyset=True)


def _jvp_of_backward(ctx: Any, backward: Callable[..., tuple], tangents: Sequence[Tensor | None]) -> Any:
    """Forward mode by the rule of reverse mode: J u is the gradient of v -> (J^T v) . u, which is linear in v.

    It costs a backward pass more than a rule of its own would, and is right wherever second derivatives are.
    """
    # Without their tangents: the rule is linear in those, and is applied to them alone.
    saved: Any = [None if x is None else forward_ad.unpack_dual(x).primal for x in ctx.saved_tensors]
    saved, outputs = saved[: -ctx.outputs], saved[-ctx.outputs :]
    needs = tuple(tangent is not None for tangent in tangents)
    rule = types.SimpleNamespace(**vars(ctx), saved_tensors=saved, needs_input_grad=needs)

    def along_tangents(*cotangents: Tensor) -> Tensor:
        pairs = zip(backward(rule, *cotangents), tangents)
        parts = [(grad * tangent).sum() for grad, tangent in pairs if grad is not None and tangent is not None]
        return sum(parts, start=torch.zeros((), dtype=outputs[0].dtype, device=outputs[0].device))

    zeros = tuple(torch.zeros_like(output) for output in outputs)
    derivatives = torch.func.grad(along_tangents, argnums=tuple(range(ctx.outputs)))(*zeros)
    return derivatives if ctx.outputs > 1 else derivatives[0]


def transformable(
    op: Any,
    backward: Callable[..., tuple],
    setup_context: Callable[..., None],
    vmap: Any,
    autocast: Callable[[Sequence[Any]], Sequence[Any]] | None = None,
) -> Any:
    """`op`, or a function that calls one, for callers that want derivatives or that torch.func transforms.

    Derivatives of `torch.library.register_autograd` refuse torch.func's transforms (grad, vmap of grad, jacrev); those
    of an autograd.Function with the same rules do not. Nor do they cost as much: a call that needs gradients takes half
    the time. `op` is called with all of its arguments; what `autocast` makes of them, under autocast, is also what the
    derivatives are told of.
    """
    function = getattr(op, "default", op)

    def keep(ctx: Any, inputs: tuple, output: Any) -> None:
        setup_context(ctx, inputs, output)
        # A call below forward mode may have tangents.
        if forward_ad._current_level >= 0 or torch._C._are_functorch_transforms_active():
            outputs = output if isinstance(output, tuple) else (output,)
            ctx.outputs = len(outputs)
            ctx.save_for_forward(*(ctx.to_save or ()), *outputs)

    def forward(ctx: Any, *args: Any) -> Any:
        with torch._C._AutoDispatchBelowAutograd():
            output = function(*args)
        keep(ctx, args, output)
        return output

    def jvp(ctx: Any, *tangents: Any) -> Any:
        return _jvp_of_backward(ctx, backward, tangents)

    def autograd_function(**rules: Any) -> Any:
        return type(op.__name__, (torch.autograd.Function,), {k: staticmethod(v) for k, v in rules.items()})

    # A Function that torch.func can transform takes its time to call.
    transformed = autograd_function(forward=function, setup_context=keep, backward=backward, vmap=vmap, jvp=jvp)
    differentiated = autograd_function(forward=forward, backward=backward, jvp=jvp)

    def call(*args: Any) -> Any:
        if torch.compiler.is_compiling():
            return op(*args)
        if autocast is not None and torch._C._is_any_autocast_enabled():
            args = tuple(autocast(args))
        if not torch._C._are_functorch_transforms_active():
            # In forward mode a tensor may have a tangent, which a call below autograd would silently drop.
            in_reverse = torch.is_grad_enabled() and torch._C._any_requires_grad(*args)
            if in_reverse or forward_ad._current_level >= 0:
                return differentiated.apply(*args)
            with torch._C._AutoDispatchBelowAutograd():  # register_autograd's rule does the same, in 4 us more
                return function(*args)
        # In a rule that the dispatcher called, the transform is already being carried out.
        if torch._C._dispatch_tls_is_dispatch_key_excluded(torch._C.DispatchKey.FuncTorchDynamicLayerFrontMode):
            return op(*args)
        return transformed.apply(*args)

    return call
