"""Of each operator: right arguments, and what the reference makes of them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import fastconv
import torch
import torch.nn.functional as F
from fastconv import reference
from hypothesis import strategies as st
from torch import Tensor

from .tensors import DTYPES, FLOATS, LAYOUTS, MOST_ELEMENTS, Drawn, meta

Draw = Callable[[st.SearchStrategy], Any]
Arguments = dict[str, Any]
"""By the names of the schema. Tensors are Drawn or another object with `make`; a list of them is a tuple."""


@dataclass(frozen=True)
class Operator:
    name: str
    draw: Callable[[Draw], Arguments]
    truth: Callable[..., list[Tensor]]
    """All results, of arguments whose tensors are float64 (as they are, where nothing is computed)."""
    units: float = 0
    """How far a result may be off, in roundings of `scale`, or of itself if that is more. 0: the bits must be right."""
    scale: Callable[..., float] = lambda **arguments: 1.0
    """What the largest sums before a division, of the same arguments as `truth`, may be."""
    work: Callable[..., int] = lambda **arguments: 0
    """Operations of a call, of the tensors' descriptions, where they are more than the elements of all tensors."""

    @property
    def op(self) -> Any:
        return getattr(torch.ops.fastconv, self.name)

    def positional(self, arguments: Mapping[str, Any]) -> list[Any]:
        schema = self.op.default._schema.arguments
        return [arguments.get(a.name, a.default_value) for a in schema]


def made(value: Any) -> Any:
    """The argument itself, of its description."""
    if isinstance(value, tuple) and value and hasattr(value[0], "make"):
        return [x.make() for x in value]
    return value.make() if hasattr(value, "make") else list(value) if isinstance(value, tuple) else value


def exact(value: Any) -> Any:
    """A tensor as the truth is told it: dense, in float64 if it is one of the operators' numbers."""
    if isinstance(value, list) and value and isinstance(value[0], Tensor):
        return [exact(x) for x in value]
    if not isinstance(value, Tensor):
        return value
    return value.detach().clone().contiguous().to(torch.float64 if str(value.dtype)[6:] in FLOATS else value.dtype)


# ---------------------------------------------------------------------------------------------------------------------
# What arguments are made of


def number(draw: Draw, low: int, high: int) -> int:
    return draw(st.integers(low, high))


def pair(draw: Draw, low: int, high: int) -> tuple[int, int]:
    return number(draw, low, high), number(draw, low, high)


def divisor(draw: Draw, of: int) -> int:
    return draw(st.sampled_from([d for d in range(1, of + 1) if of % d == 0] or [1, 2]))


def tensor(draw: Draw, shape: Sequence[int], dtype: str, values: str = "whole") -> Drawn:
    return Drawn(tuple(shape), dtype, draw(st.sampled_from(LAYOUTS)), values, number(draw, 0, 99))


def values_of(draw: Draw) -> str:
    return draw(st.sampled_from(("whole", "whole", "whole", "special")))


@dataclass(frozen=True)
class Geometry:
    """Of a kernel over a map that may be smaller than it, or empty, if the padding allows."""

    size: tuple[int, int]
    kernel: tuple[int, int]
    arguments: Arguments

    @property
    def is_far(self) -> bool:
        return any(max(pair) > 999 for pair in self.arguments.values())

    @classmethod
    def drawn(cls, draw: Draw, largest_kernel: int = 7) -> Geometry:
        kernel, stride = pair(draw, 1, largest_kernel), pair(draw, 1, 4)
        if number(draw, 0, 9) == 0:
            return cls.far(draw, kernel, stride)
        padding, dilation = pair(draw, 0, 4), pair(draw, 1, 3)
        smallest = [max(0, d * (k - 1) + 1 - 2 * p) for d, k, p in zip(dilation, kernel, padding)]
        size = smallest[0] + number(draw, 0, 9), smallest[1] + number(draw, 0, 40)
        return cls(size, kernel, {"stride": stride, "padding": padding, "dilation": dilation})

    @classmethod
    def far(cls, draw: Draw, kernel: tuple[int, int], stride: tuple[int, int]) -> Geometry:
        """Taps so far apart that most are in the padding, or a padding of many strides."""
        size = pair(draw, 0, 20)
        axes = []
        for n, k, s in zip(size, kernel, stride):
            if draw(st.booleans()):
                d = draw(st.sampled_from((1, 1000, 2**20 + 1, 2**29 + 1, 2**31 - 1)))
                p = max(0, (d * (k - 1) + 1 - n + 1) // 2) + number(draw, 0, 3)
            else:
                d, p = 1, draw(st.sampled_from((1000, 2**20 + 1, 2**31 - 1)))
                s = (n + 2 * p) // number(draw, 1, 4)
            # What is too large for an argument becomes small.
            axes.append((s, p, d) if max(s, p, d) < 2**31 else (1, k, 1))
        strides, paddings, dilations = zip(*axes)
        return cls(size, kernel, {"stride": strides, "padding": paddings, "dilation": dilations})

    @property
    def output_size(self) -> tuple[int, int]:
        stride, padding, dilation = self.arguments.values()
        height, width = (
            (size + 2 * p - d * (k - 1) - 1) // s + 1
            for size, k, s, p, d in zip(self.size, self.kernel, stride, padding, dilation)
        )
        return height, width


# ---------------------------------------------------------------------------------------------------------------------
# Convolutions

ACTIVATIONS = ("none", "relu", "relu6")
"""The exact ones; others are in every operator's own tests."""


def depthwise(draw: Draw) -> Arguments:
    g, dtype, channels = Geometry.drawn(draw), draw(st.sampled_from(FLOATS)), number(draw, 1, 20)
    outputs = channels * number(draw, 1, 3)
    return {
        "input": tensor(draw, unbatched(draw, (number(draw, 0, 3), channels, *g.size)), dtype, values_of(draw)),
        "weight": tensor(draw, (outputs, 1, *g.kernel), dtype),
        "bias": draw(st.sampled_from((None, tensor(draw, (outputs,), dtype)))),
        **g.arguments,
        "activation": draw(st.sampled_from(ACTIVATIONS)),
    }


def grouped(draw: Draw) -> Arguments:
    g, dtype, groups = Geometry.drawn(draw, 4), draw(st.sampled_from(FLOATS)), number(draw, 1, 6)
    inputs, outputs = number(draw, 1, 8), number(draw, 1, 8) * groups
    return {
        "input": tensor(
            draw, unbatched(draw, (number(draw, 0, 3), groups * inputs, *g.size)), dtype
        ),  # torch spreads NaN
        "weight": tensor(draw, (outputs, inputs, *g.kernel), dtype),
        "bias": draw(st.sampled_from((None, tensor(draw, (outputs,), dtype)))),
        **g.arguments,
        "groups": groups,
        "activation": draw(st.sampled_from(ACTIVATIONS)),
        "shuffle": divisor(draw, outputs),
    }


def unbatched(draw: Draw, shape: tuple[int, ...]) -> tuple[int, ...]:
    return shape if draw(st.integers(0, 4)) else shape[1:]


def deformable(draw: Draw) -> Arguments:
    g, groups = Geometry.drawn(draw, 3), number(draw, 1, 3)
    dtype = "float64" if g.is_far else draw(st.sampled_from(FLOATS))  # float32 does not hold such positions
    channels, outputs = groups * number(draw, 1, 6), groups * number(draw, 1, 4)
    batch, taps = number(draw, 0, 3), math.prod(g.kernel) * divisor(draw, channels)
    beside = draw(st.sampled_from((dtype, "float32"))) if dtype in FLOATS[2:] else dtype
    special = values_of(draw)
    offsets = draw(st.sampled_from(("quarters", "between", "special"))) if special == "whole" else "between"
    return {
        "input": tensor(draw, (batch, channels, *g.size), dtype, special),
        "offset": tensor(draw, (batch, 2 * taps, *g.output_size), beside, offsets),
        "weight": tensor(draw, (outputs, channels // groups, *g.kernel), dtype),
        "mask": draw(st.sampled_from((None, tensor(draw, (batch, taps, *g.output_size), beside)))),
        "bias": draw(st.sampled_from((None, tensor(draw, (outputs,), dtype)))),
        **g.arguments,
    }


def aggregated(draw: Draw) -> Arguments:
    g, groups = Geometry.drawn(draw, 5), number(draw, 1, 4)
    dtype = "float64" if g.is_far else draw(st.sampled_from(FLOATS))
    channels, batch = groups * number(draw, 1, 9), number(draw, 0, 3)
    has_center = all(k % 2 for k in g.kernel) and math.prod(g.kernel) > 1
    remove_center = has_center and draw(st.booleans())
    taps = groups * (math.prod(g.kernel) - remove_center)
    beside = [draw(st.sampled_from((dtype, "float32"))) if dtype in FLOATS[2:] else dtype for _ in range(2)]
    special = values_of(draw)
    offsets = draw(st.sampled_from(("quarters", "between", "special"))) if special == "whole" else "between"
    return {
        "input": tensor(draw, (batch, channels, *g.size), dtype, special),
        "offset": tensor(draw, (batch, 2 * taps, *g.output_size), beside[0], offsets),
        "mask": tensor(draw, (batch, taps, *g.output_size), beside[1]),
        "kernel_size": g.kernel,
        **g.arguments,
        "groups": groups,
        "offset_scale": draw(st.sampled_from((1.0, 0.5, 2.0))),
        "remove_center": remove_center,
    }


def convolution(
    input: Tensor, weight: Tensor, bias: Tensor | None, groups: int, activation: str, shuffle: int, **geometry: Any
) -> Tensor:
    """The reference, which pads the map; where it would be too large, what each tap reads of the map as it is."""
    padded = [size + 2 * p for size, p in zip(input.shape[-2:], geometry["padding"])]
    if math.prod(padded) * input.shape[-3] <= MOST_ELEMENTS:
        return reference.grouped_conv2d(
            input, weight, bias, **geometry, groups=groups, activation=activation, shuffle=shuffle
        )
    out = [
        (size - d * (k - 1) - 1) // s + 1
        for size, k, s, d in zip(padded, weight.shape[2:], geometry["stride"], geometry["dilation"])
    ]

    def read(x: Tensor, axis: int, tap: int) -> Tensor:
        """The rows or the columns that a tap reads, zero outside."""
        stride, padding, dilation = (geometry[key][axis] for key in ("stride", "padding", "dilation"))
        at = torch.arange(out[axis]) * stride + tap * dilation - padding
        inside = (at >= 0) & (at < x.shape[axis - 2])
        x = F.pad(x, (0, 1) if axis else (0, 0, 0, 1))  # one row or column of zeros, which all that is outside reads
        return x.index_select(axis - 2, torch.where(inside, at, x.shape[axis - 2] - 1))

    outputs, kernel_h, kernel_w = weight.shape[0], *weight.shape[2:]
    output = input.new_zeros(*input.shape[:-3], outputs, *out)
    for ky, kx in itertools.product(range(kernel_h), range(kernel_w)):
        sources = read(read(input, 0, ky), 1, kx).unflatten(-3, (groups, -1))
        product = torch.einsum("...gshw,gos->...gohw", sources, weight[:, :, ky, kx].unflatten(0, (groups, -1)))
        output = output + product.flatten(-4, -3)
    if bias is not None:
        output = output + bias[:, None, None]
    return reference.channel_shuffle(output if activation == "none" else getattr(F, activation)(output), shuffle)


# ---------------------------------------------------------------------------------------------------------------------
# Shuffles, split attention, pools, gate


def shuffled(draw: Draw) -> Arguments:
    channels = number(draw, 0, 24)
    shape = number(draw, 0, 3), channels, *(number(draw, 0, 9) for _ in range(number(draw, 1, 4)))
    input = tensor(draw, shape, draw(st.sampled_from(DTYPES)), values_of(draw))
    return {"input": input, "groups": divisor(draw, channels)}


def concatenated(draw: Draw) -> Arguments:
    channels = draw(st.lists(st.integers(0, 9), min_size=1, max_size=10))
    batch, size = number(draw, 0, 3), [number(draw, 0, 9) for _ in range(number(draw, 1, 3))]
    dtype = draw(st.sampled_from(DTYPES))
    inputs = tuple(tensor(draw, (batch, count, *size), dtype) for count in channels)
    return {"inputs": inputs, "groups": divisor(draw, sum(channels))}


def concatenated_grad(draw: Draw) -> Arguments:
    channels = tuple(draw(st.lists(st.integers(0, 9), min_size=1, max_size=10)))
    size = [number(draw, 0, 9) for _ in range(number(draw, 1, 3))]
    needed = draw(st.lists(st.integers(0, len(channels) - 1), unique=True, max_size=len(channels)))
    return {
        "grad_output": tensor(draw, (number(draw, 0, 3), sum(channels), *size), draw(st.sampled_from(DTYPES))),
        "channels": channels,
        "groups": divisor(draw, sum(channels)),
        "needed": tuple(needed),
    }


def parts_of(grad_output: Tensor, channels: Sequence[int], groups: int, needed: Sequence[int]) -> list[Tensor]:
    inverse = max(grad_output.shape[1] // groups, 1)
    parts = reference.channel_shuffle(grad_output, inverse).split(list(channels), 1)
    return [parts[i] for i in needed]


def split(draw: Draw) -> Arguments:
    radix, cardinality = number(draw, 1, 5), number(draw, 1, 4)
    channels = radix * cardinality * number(draw, 0, 9)
    shape = number(draw, 0, 3), channels, number(draw, 0, 9), number(draw, 0, 20)
    dtype = draw(st.sampled_from(FLOATS))
    return {
        "input": tensor(draw, shape, dtype),
        "logits": tensor(draw, shape[:2], dtype, "quarters"),
        "radix": radix,
        "cardinality": cardinality,
    }


def split_pooled(draw: Draw) -> Arguments:
    arguments = split(draw)
    return {"input": arguments["input"], "radix": arguments["radix"]}


def split_input_grad(draw: Draw) -> Arguments:
    arguments = split(draw)
    input, logits, radix = arguments["input"], arguments["logits"], arguments["radix"]
    n, c, *size = input.shape
    return {
        "grad_output": replace(input, shape=(n, c // radix, *size)),
        "logits": logits,
        "grad_pooled": draw(st.sampled_from((None, tensor(draw, (n, c // radix), input.dtype)))),
        "radix": radix,
        "cardinality": arguments["cardinality"],
    }


def split_input_grad_truth(
    grad_output: Tensor, logits: Tensor, grad_pooled: Tensor | None, radix: int, cardinality: int
) -> list[Tensor]:
    n, c, height, width = grad_output.shape
    input = grad_output.new_zeros(n, radix * c, height, width).requires_grad_()
    output = reference.split_attention_combine(input, logits, radix, cardinality)
    (grad,) = torch.autograd.grad(output, input, grad_output)
    if grad_pooled is not None and height * width > 0:
        grad = grad + grad_pooled.repeat(1, radix)[:, :, None, None] / (height * width)
    return [grad]


def map_with(draw: Draw, *, empty: bool, special: bool = False) -> Drawn:
    low = 0 if empty else 1
    shape = number(draw, 0, 3), number(draw, low, 40), number(draw, low, 9), number(draw, low, 40)
    return tensor(draw, shape, draw(st.sampled_from(FLOATS)), values_of(draw) if special else "whole")


def gated(draw: Draw) -> Arguments:
    input = map_with(draw, empty=True)
    n, _, *size = input.shape
    return {"input": input, "logits": tensor(draw, (n, 1, *size), input.dtype, "quarters")}


@dataclass(frozen=True)
class Pooled:
    """The result of a pool, which its gradient takes."""

    name: str
    input: Drawn

    def make(self) -> Tensor:
        return getattr(torch.ops.fastconv, self.name)(self.input.make())


def pool_grad(name: str) -> Callable[[Draw], Arguments]:
    def drawn(draw: Draw) -> Arguments:
        input = map_with(draw, empty=False)
        n, c, *size = input.shape
        shape = (n, 2, *size) if name == "channel_pool" else (n, 2, c)
        return {"grad_output": tensor(draw, shape, input.dtype), "input": input, "output": Pooled(name, input)}

    return drawn


# ---------------------------------------------------------------------------------------------------------------------
# All of them


def of(forward: Callable[..., Tensor]) -> Callable[..., list[Tensor]]:
    return lambda **arguments: [forward(**arguments)]


def output_of(name: str, arguments: Arguments) -> tuple[tuple[int, ...], str]:
    """Shape and dtype, as the fake kernel tells them."""
    operator = getattr(torch.ops.fastconv, name)
    schema = operator.default._schema.arguments
    values = [made(arguments.get(a.name, a.default_value)) for a in schema]
    output = operator(*(meta(x) if isinstance(x, Tensor) else x for x in values))
    return tuple(output.shape), str(output.dtype).removeprefix("torch.")


def gradient(forward: Operator, suffix: str, leaves: Sequence[str], **more: Any) -> Operator:
    """A gradient operator: those of `leaves`, or, where the schema has `needed`, those that it asks for."""
    name = f"_{forward.name}_{suffix}"
    schema, schema_of_forward = (
        [a.name for a in getattr(torch.ops.fastconv, n).default._schema.arguments] for n in (name, forward.name)
    )

    def drawn(draw: Draw) -> Arguments:
        arguments = forward.draw(draw)
        if "activation" in arguments:
            arguments["activation"] = "none"
        for key, x in arguments.items():  # of gradients with NaN the suite has tests of its own
            if isinstance(x, Drawn) and x.values == "special":
                arguments[key] = replace(x, values="quarters" if key == "offset" else "whole")
        shape, dtype = output_of(forward.name, arguments)
        arguments["grad_output"] = tensor(draw, shape, dtype)
        arguments["deterministic"] = draw(st.booleans())
        if "needed" in schema:
            possible = [0, 1] if arguments["mask"] is None else [0, 1, 2]
            arguments["needed"] = tuple(draw(st.lists(st.sampled_from(possible), unique=True, max_size=3)))
        return {key: arguments[key] for key in schema if key in arguments}

    def truth(grad_output: Tensor, needed: Sequence[int] | None = None, **arguments: Any) -> list[Tensor]:
        arguments = {key: x for key, x in arguments.items() if key in schema_of_forward}
        wanted = leaves if needed is None else [("input", "offset", "mask")[i] for i in needed]
        given = {key: arguments[key].requires_grad_() for key in wanted}
        if not given:
            return []
        (output,) = forward.truth(**arguments)
        if not output.requires_grad:  # no result depends on anything
            return [torch.zeros_like(x) for x in given.values()]
        grads = torch.autograd.grad(output, list(given.values()), grad_output, allow_unused=True)
        return [torch.zeros_like(x) if g is None else g for g, x in zip(grads, given.values())]

    return Operator(name, drawn, truth, **{"work": forward.work, **more})


def conv_truth(
    bias: Tensor | None = None, activation: str = "none", shuffle: int = 1, **arguments: Any
) -> list[Tensor]:
    groups = arguments.pop("groups", arguments["input"].shape[-3])
    return [convolution(bias=bias, activation=activation, groups=groups, shuffle=shuffle, **arguments)]


def deform_truth(**arguments: Any) -> list[Tensor]:
    return [reference.deform_conv2d(**arguments)]


def _work_of_convolution(weight: Drawn | None = None, outputs: int = 0, **arguments: Any) -> int:
    return outputs * (math.prod(weight.shape[1:]) if weight is not None else 1)


def _work_of_aggregation(kernel_size: Sequence[int], outputs: int = 0, **arguments: Any) -> int:
    return outputs * math.prod(kernel_size)


def _products(grad_output: Tensor, input: Tensor, **arguments: Any) -> float:
    """More than any sum over pixels or channels of products of the two is."""
    largest = [x.abs().max().item() if x.numel() else 0.0 for x in (grad_output, input)]
    return 1 + math.prod(largest) * max(math.prod(input.shape[2:]), input.shape[1])


DEPTHWISE = Operator("depthwise_conv2d", depthwise, conv_truth, work=_work_of_convolution)
GROUPED = Operator("grouped_conv2d", grouped, conv_truth, work=_work_of_convolution)
DEFORM = Operator("deform_conv2d", deformable, deform_truth, work=_work_of_convolution)
AGGREGATE = Operator(
    "deform_aggregate2d", aggregated, of(reference.deform_aggregate2d), work=_work_of_aggregation
)  # fmt: skip
COMBINE = Operator(
    "split_attention_combine", split, of(reference.split_attention_combine), 64, lambda **_: 10.0
)  # fmt: skip
GATE = Operator("spatial_gate", gated, of(reference.spatial_gate), 8)
POOLS = {
    name: Operator(
        name, lambda draw: {"input": map_with(draw, empty=False, special=True)}, of(getattr(reference, name)), 4
    )
    for name in ("channel_pool", "average_max_pool")
}

OPERATORS = [
    DEPTHWISE,
    gradient(DEPTHWISE, "input_grad", ["input"]),
    gradient(DEPTHWISE, "weight_grad", ["weight"]),
    GROUPED,
    gradient(GROUPED, "input_grad", ["input"]),
    gradient(GROUPED, "weight_grad", ["weight"]),
    gradient(GROUPED, "backward", ["input", "weight"]),
    DEFORM,
    gradient(DEFORM, "input_grad", []),
    gradient(DEFORM, "weight_grad", ["weight"]),
    AGGREGATE,
    gradient(AGGREGATE, "backward", ["input", "offset", "mask"]),
    Operator("channel_shuffle", shuffled, of(reference.channel_shuffle)),
    Operator("concat_shuffle", concatenated, of(reference.concat_shuffle)),
    Operator("_concat_shuffle_input_grad", concatenated_grad, parts_of),
    Operator("split_attention_pool", split_pooled, of(reference.split_attention_pool), 4),
    COMBINE,
    gradient(COMBINE, "backward", ["input", "logits"], units=64, scale=_products),
    gradient(COMBINE, "logits_grad", ["logits"], units=64, scale=_products),
    Operator("_split_attention_combine_input_grad", split_input_grad, split_input_grad_truth, 64, lambda **_: 10.0),
    *POOLS.values(),
    *(
        replace(gradient(pool, "input_grad", ["input"], units=8, scale=lambda **_: 4.0), draw=pool_grad(pool.name))
        for pool in POOLS.values()
    ),
    GATE,
    gradient(GATE, "backward", ["input", "logits"], units=16, scale=_products),
]
BY_NAME = {operator.name: operator for operator in OPERATORS}
assert set(BY_NAME) == {name for names in fastconv._load.OPERATORS.values() for name in names}
