"""Sharding rules of the operators for DTensor (`torch.distributed.tensor`): importing this page registers them.

    import fastconv.distributed

Tensors may be sharded along the batch (with weights replicated) and along the channels (with weights sharded along
their first dimension), where each part is a call of its own; anything else is redistributed to one of these first.
Data parallel training (DDP, FSDP) needs no rule, nor this page.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard
from torch.distributed.tensor.experimental import register_sharding

Rule = tuple[Placement | Sequence[Placement], Mapping[str, Placement]]
"""The placement of the output, or of each, and those of the tensors that are not replicated, by the names of the
arguments."""


def _register(name: str, rules: Callable[..., Sequence[Rule]]) -> None:
    """`rules` takes the operator's arguments; every tensor of a list, and every output, is placed alike."""
    operator = getattr(torch.ops.fastconv, name).default
    names = [argument.name for argument in operator._schema.arguments]
    outputs = len(operator._schema.returns)

    def placements(arguments: Sequence[Any], rule: Mapping[str, Placement]) -> list[Placement | None]:
        found: list[Placement | None] = []
        for name, value in zip(names, arguments):
            if isinstance(value, (list, tuple)) and value and hasattr(value[0], "placements"):
                found += [rule.get(name, Replicate())] * len(value)
            else:
                found.append(rule.get(name, Replicate()) if hasattr(value, "placements") else None)
        return found

    @register_sharding(operator)
    def _(*arguments: Any) -> Sequence[tuple[list[Any], list[Any]]]:
        everywhere: Rule = (Replicate(), {})
        return [
            (list(output) if isinstance(output, Sequence) else [output] * outputs, placements(arguments, inputs))
            for output, inputs in (everywhere, *rules(*arguments))
        ]


# ---------------------------------------------------------------------------------------------------------------------
# Convolutions. An example without a batch dimension has its channels in front.


def _register_convolution(name: str, *, channels_together: bool) -> None:
    """Of a convolution whose channels, if not `channels_together`, are independent of one another."""

    def register(name: str, result: str, batch: Placement | None = None) -> None:
        """`result` is the name of the tensor that the operator computes; `batch` its placement where examples are."""

        def rules(first: Any, *_: Any) -> Sequence[Rule]:
            channels = Shard(first.ndim - 3)
            sharded: dict[str, Placement] = {"grad_output": channels, "input": channels, "output": channels}
            sharded |= {"weight": Shard(0), "bias": Shard(0)}
            found: list[Rule] = []
            if first.ndim == 4:
                found.append((batch or Shard(0), dict.fromkeys(("grad_output", "input"), Shard(0))))
            if not channels_together:
                found.append((sharded[result], sharded))
            return found

        _register(name, rules)

    register(name, "output")
    register(f"_{name}_input_grad", "input")
    register(f"_{name}_weight_grad", "weight", Partial())


# A shard of a grouped convolution's channels would need a number of groups of its own, which no rule can give it.
_register_convolution("depthwise_conv2d", channels_together=False)
_register_convolution("grouped_conv2d", channels_together=True)
_register(
    "_grouped_conv2d_backward",
    lambda grad_output, *_: (
        [((Shard(0), Partial()), {"grad_output": Shard(0), "input": Shard(0)})] if grad_output.ndim == 4 else []
    ),
)


# ---------------------------------------------------------------------------------------------------------------------
# Shuffles: every dimension but the channels is a batch.


def _but_channels(argument: str) -> Callable[..., Sequence[Rule]]:
    def rules(value: Any, *_: Any) -> Sequence[Rule]:
        first = value[0] if isinstance(value, (list, tuple)) else value
        return [(Shard(dim), {argument: Shard(dim)}) for dim in range(first.ndim) if dim != 1]

    return rules


_register("channel_shuffle", _but_channels("input"))
_register("concat_shuffle", _but_channels("inputs"))


@torch.library.register_torch_dispatch("fastconv::_concat_shuffle_input_grad", DTensor)
def _(subclass: Any, function: Any, types: Any, arguments: Any, keywords: Any) -> Any:
    """A rule cannot say how many tensors a list has that an operator returns."""
    grad_output, channels, groups, needed = arguments
    shuffled = torch.ops.fastconv.channel_shuffle(grad_output, max(sum(channels) // groups, 1))
    parts = shuffled.split(channels, 1)
    return [parts[i] for i in needed]


# ---------------------------------------------------------------------------------------------------------------------
# Split attention: examples are independent. A shard of the channels would not hold all splits of any.


def _examples(*arguments: str) -> Callable[..., Sequence[Rule]]:
    return lambda *_: [(Shard(0), dict.fromkeys(arguments, Shard(0)))]


_register("split_attention_pool", _examples("input"))
_register("split_attention_combine", _examples("input", "logits"))
_register("_split_attention_combine_backward", _examples("grad_output", "input", "logits"))
_register("_split_attention_combine_logits_grad", _examples("grad_output", "input", "logits"))
_register("_split_attention_combine_input_grad", _examples("grad_output", "logits", "grad_pooled"))


# ---------------------------------------------------------------------------------------------------------------------
# CBAM: each pixel, or each channel, is a batch.


def _register_pool(name: str, dims: Mapping[int, int]) -> None:
    """`dims`: those of the input that are not pooled, with those of the output."""

    def rules(*_: Any) -> Sequence[Rule]:
        return [(Shard(output), {"input": Shard(input)}) for input, output in dims.items()]

    def gradient_rules(*_: Any) -> Sequence[Rule]:
        return [
            (Shard(input), {"grad_output": Shard(output), "input": Shard(input), "output": Shard(output)})
            for input, output in dims.items()
        ]

    _register(name, rules)
    _register(f"_{name}_input_grad", gradient_rules)


def _gate_rules(*_: Any) -> Sequence[Rule]:
    rules: list[Rule] = [(Shard(dim), {"input": Shard(dim), "logits": Shard(dim)}) for dim in (0, 2, 3)]
    return [*rules, (Shard(1), {"input": Shard(1)})]


def _gate_gradient_rules(*_: Any) -> Sequence[Rule]:
    rules: list[Rule] = [
        (Shard(dim), dict.fromkeys(("grad_output", "input", "logits"), Shard(dim))) for dim in (0, 2, 3)
    ]
    return [*rules, ((Shard(1), Partial()), dict.fromkeys(("grad_output", "input"), Shard(1)))]


_register_pool("channel_pool", {0: 0, 2: 2, 3: 3})
_register_pool("average_max_pool", {0: 0, 1: 2})
_register("spatial_gate", _gate_rules)
_register("_spatial_gate_backward", _gate_gradient_rules)


# ---------------------------------------------------------------------------------------------------------------------
# Deformable operators: examples are independent. As for grouped_conv2d, there is no rule for channels.

_register("deform_conv2d", _examples("input", "offset", "mask"))


_of_examples = dict.fromkeys(("grad_output", "input", "offset", "mask"), Shard(0))
_register("_deform_conv2d_weight_grad", lambda *_: [(Partial(), _of_examples)])


@torch.library.register_torch_dispatch("fastconv::_deform_conv2d_input_grad", DTensor)
def _(subclass: Any, function: Any, types: Any, arguments: Any, keywords: Any) -> Any:
    """Examples where the output's gradient has them; a list of results, as above, that no rule describes."""
    mesh, placements = arguments[0].device_mesh, arguments[0].placements
    by_example = [place if place == Shard(0) else Replicate() for place in placements]
    everywhere = [Replicate()] * len(by_example)
    grad_output, input, offset, weight, mask, *rest = arguments
    local = [
        tensor
        if tensor is None
        else tensor.redistribute(mesh, everywhere if tensor is weight else by_example).to_local()
        for tensor in (grad_output, input, offset, weight, mask)
    ]
    return [DTensor.from_local(grad, mesh, by_example, run_check=False) for grad in function(*local, *rest)]


_register("deform_aggregate2d", _examples("input", "offset", "mask"))
_register("_deform_aggregate2d_backward", _examples("grad_output", "input", "offset", "mask"))
