"""Makes a drawn call and holds it to what must be true of any call."""

from __future__ import annotations

import contextlib
import faulthandler
import math
import os
import re
import resource
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import fastconv
import torch
from torch import Tensor

from .operators import Arguments, Operator, Pooled, exact, made
from .tensors import FLOATS, MOST_ELEMENTS, Drawn, meta

TIMEOUT_S, MOST_MEMORY = 60, 3 << 30
NO_MEMORY = re.compile(
    r"allocate memory|(Storage size|Stride) calculation overflowed|integer multiplication overflow|not enough memory"
)
FEW_BYTES, ALL_BYTES = 1 << 22, 1 << 44
"""What a call may take, and what no machine has: with as much it must fail. What is between is not tried."""


@contextlib.contextmanager
def watched() -> Iterator[None]:
    """What takes minutes ends the process, with a traceback; what takes gigabytes gets an error."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    if not any(name in os.environ.get("LD_PRELOAD", "") for name in ("asan", "tsan")):  # they reserve terabytes
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + MOST_MEMORY, before[1]))
    faulthandler.dump_traceback_later(TIMEOUT_S, exit=True)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
        resource.setrlimit(resource.RLIMIT_AS, before)


def as_list(results: Any) -> list[Tensor]:
    return [results] if isinstance(results, Tensor) else list(results)


def check_right(operator: Operator, arguments: Arguments) -> str:
    """A call with right arguments: the results are the reference's."""
    with watched():
        results = as_list(operator.op(*map(made, operator.positional(arguments))))
    check_results(operator, arguments, results)
    if not operator.name.startswith("_") and operator.units == 0:
        check_derivatives(operator, arguments)
    return "right"


def check_results(operator: Operator, arguments: Arguments, results: Sequence[Tensor]) -> None:
    given = {key: exact(made(x)) for key, x in arguments.items()}
    with watched():
        scale, wanted = operator.scale(**given), operator.truth(**given)
    assert len(results) == len(wanted)
    for i, (result, want) in enumerate(zip(results, wanted)):
        assert_near(result, want.detach(), operator.units, scale, f"result {i}")


def assert_near(result: Tensor, want: Tensor, units: float, scale: float, what: str) -> None:
    assert result.shape == want.shape, f"{what}: {list(result.shape)} instead of {list(want.shape)}"
    if str(result.dtype)[6:] not in FLOATS:  # whose bits are only moved
        assert result.dtype == want.dtype, what
        if result.numel() > 0:
            assert torch.equal(result.flatten().view(torch.uint8), want.flatten().view(torch.uint8)), what
        return
    accumulator = torch.float64 if result.dtype == torch.float64 else torch.float32
    rounded = want.to(result.dtype)
    bound = 0 * rounded.double()
    if units:
        bound = 2 * torch.finfo(result.dtype).eps * want.abs() + units * torch.finfo(
            accumulator
        ).eps * want.abs().clamp(min=scale)
    same = (result == rounded) | (result.isnan() & rounded.isnan())
    wrong = ~(same | ((result.double() - want).abs() <= bound))
    if wrong.any():
        index = tuple(int(i) for i in wrong.nonzero()[0])
        raise AssertionError(
            f"{what}: {int(wrong.sum())} of {wrong.numel()} elements are wrong, the first at {list(index)}: "
            f"{result[index].item()} instead of {want[index].item()}"
        )


def check_derivatives(operator: Operator, arguments: Arguments) -> None:
    """The public function, with the gradients of all tensors."""
    drawn = [x for value in arguments.values() for x in (value if isinstance(value, tuple) else (value,))]
    if any(isinstance(x, Drawn) and (x.values == "special" or x.dtype not in FLOATS) for x in drawn):
        return

    def derivatives(function: Any, values: Arguments) -> list[Tensor]:
        leaves: list[Tensor] = []

        def leaf(x: Any) -> Any:
            if isinstance(x, list):
                return [leaf(y) for y in x]
            if isinstance(x, Tensor):
                leaves.append(x.requires_grad_())
            return x

        (output,) = as_list(function(**{key: leaf(x) for key, x in values.items()}))
        weights = torch.arange(output.numel(), dtype=torch.float64).remainder(3).sub(1).view(output.shape)
        grads = torch.autograd.grad(output, leaves, weights.to(output.dtype), allow_unused=True)
        return [torch.zeros_like(x) if g is None else g for g, x in zip(grads, leaves)]

    public = getattr(fastconv, operator.name)
    with watched():
        grads = derivatives(public, {key: made(x) for key, x in arguments.items()})
    wanted = derivatives(operator.truth, {key: exact(made(x)) for key, x in arguments.items()})
    for i, (grad, want) in enumerate(zip(grads, wanted)):
        assert_near(grad, want, 0, 1, f"gradient of tensor {i}")


def check_any(operator: Operator, arguments: Arguments) -> str:
    """A call with any arguments. Says what came of it."""
    try:
        values = [made(x) for x in operator.positional(arguments)]
    except RuntimeError:
        return "no such tensor"
    fake = outcome(operator, [_on_meta(x) for x in values])
    is_mixed = any(x.device.type == "meta" for x in _tensors(values))
    if isinstance(fake, list) and not is_mixed and _is_too_much(operator, arguments, values, fake):
        return "too large to try"
    with watched():
        real = outcome(operator, values)
    if isinstance(real, Exception):
        return check_error(operator, real, fake, is_mixed)
    if is_mixed:
        return "a fake"
    if isinstance(fake, Exception) and NO_MEMORY.search(str(fake)):  # strides of nothing
        return "accepted"
    assert isinstance(fake, list), f"accepted, but the fake kernel says: {fake}"
    for result, shadow in zip(real, fake, strict=True):
        assert (result.shape, result.dtype) == (shadow.shape, shadow.dtype)
        strides = [[s for s, n in zip(x.stride(), x.shape) if n > 1] for x in (result, shadow)]
        assert result.numel() == 0 or strides[0] == strides[1], strides
    drawn = [x for x in arguments.values() if isinstance(x, Drawn)]
    if any(x.is_huge or x.values == "special" for x in drawn):
        return "accepted"
    if any(isinstance(x, int) and x > MOST_ELEMENTS for x in arguments.values()):  # groups of nothing
        return "accepted"
    if any(isinstance(x, Pooled) and x.input != arguments["input"] for x in arguments.values()):
        return "accepted"
    check_results(operator, arguments, real)
    return "right"


def outcome(operator: Operator, values: Sequence[Any]) -> list[Tensor] | Exception:
    try:
        return as_list(operator.op(*values))
    except (RuntimeError, TypeError) as error:
        return error


def check_error(operator: Operator, real: Exception, fake: list[Tensor] | Exception, is_mixed: bool) -> str:
    text = str(real)
    if NO_MEMORY.search(text):
        return "no memory"
    names = [a.name for a in operator.op.default._schema.arguments]
    assert re.search(rf"\b{operator.name}\b", text), f"an error that does not name the operator: {text}"
    if "no tensor arguments" in text:  # the dispatcher's word for an empty list
        return "refused"
    assert re.search(rf"\b({'|'.join(names)})\b", text), f"an error that names no argument: {text}"
    if not is_mixed:
        assert isinstance(fake, Exception), f"the fake kernel accepts; the kernel says: {text}"
        assert NO_MEMORY.search(str(fake)) or text in str(fake), f"kernel: {text}\nfake kernel: {fake}"
    return "refused"


def _on_meta(x: Any) -> Any:
    return [_on_meta(y) for y in x] if isinstance(x, list) else meta(x) if isinstance(x, Tensor) else x


def _tensors(values: Sequence[Any]) -> list[Tensor]:
    return [y for x in values for y in (_tensors(x) if isinstance(x, list) else [x]) if isinstance(y, Tensor)]


def _is_too_much(operator: Operator, arguments: Arguments, values: Sequence[Any], fake: Sequence[Tensor]) -> bool:
    inputs = _tensors(values)
    sizes = [x.numel() * x.itemsize for x in (*inputs, *fake)]
    if any(FEW_BYTES < size < ALL_BYTES for size in sizes):
        return True
    outputs = sum(x.numel() for x in fake) + sum(math.prod(x.shape) for x in [arguments.get("grad_output")] if x)
    if outputs >= ALL_BYTES:
        return False  # fails before it does anything
    work = operator.work(**{"outputs": outputs, **arguments}) or outputs + sum(x.numel() for x in inputs)
    return work > 1 << 26
