"""Helpers with which each operator's page registers what Python knows about it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

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

    def forward(ctx: Any, *args: Any) -> Any:
        with torch._C._AutoDispatchBelowAutograd():
            output = function(*args)
        setup_context(ctx, args, output)
        return output

    def jvp(ctx: Any, *tangents: Any) -> Any:
        raise NotImplementedError(
            f"{op.__name__}: forward-mode derivatives are not implemented; those of reverse mode (torch.func.vjp, "
            "jacrev) are"
        )

    def autograd_function(**rules: Any) -> Any:
        return type(op.__name__, (torch.autograd.Function,), {k: staticmethod(v) for k, v in rules.items()})

    # A Function that torch.func can transform takes its time to call.
    transformed = autograd_function(
        forward=function, setup_context=setup_context, backward=backward, vmap=vmap, jvp=jvp
    )
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
