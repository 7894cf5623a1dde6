"""Triton's interpreter as the cases of Triton kernels need it, and what they compare by.

It takes about a millisecond a program and tap, so cases are tiny; blocks are so small that cases have several tiles,
and a partial one, in each direction.
"""

from __future__ import annotations

import os

import torch
import torch.nn.functional as F

assert os.environ.get("TRITON_INTERPRET") == "1", "run through test_triton_interpreter.py"

import triton.language as tl  # noqa: E402
import triton.runtime.interpreter as interpreter  # noqa: E402

_cast = interpreter.InterpreterBuilder.cast_impl


def _cast_with_right_rounding(self, src, dst_type):  # type: ignore[no-untyped-def]
    """The interpreter (3.6 to 3.8) truncates float32 to bfloat16; GPUs round to nearest even."""
    if src.dtype.scalar == tl.float32 and dst_type.scalar == tl.bfloat16:
        rounded = torch.tensor(src.data).to(torch.bfloat16).view(torch.int16).numpy().view("uint16")
        return interpreter.TensorHandle(rounded.reshape(src.data.shape), dst_type.scalar)
    return _cast(self, src, dst_type)


interpreter.InterpreterBuilder.cast_impl = _cast_with_right_rounding
for _name in ("create_fp_trunc", "create_fp_ext"):
    setattr(interpreter.InterpreterBuilder, _name, lambda self, src, dst_type: self.cast_impl(src, dst_type))


_dot = interpreter.InterpreterBuilder.create_dot


def _dot_of_numbers(self, a, b, *args):  # type: ignore[no-untyped-def]
    """The interpreter multiplies bfloat16 as the integers that it keeps them as."""
    a, b = (self.cast_impl(x, tl.float32) if x.dtype.scalar == tl.bfloat16 else x for x in (a, b))
    return _dot(self, a, b, *args)


interpreter.InterpreterBuilder.create_dot = _dot_of_numbers


def _call_without_patching_again(self, *args, **kwargs):  # type: ignore[no-untyped-def]
    return self.rewrite()(*args, **kwargs)


# Twice the speed: overflow is checked at every integer operation, and triton.language is patched at every nested call.
interpreter.interpreter_builder.options = interpreter.InterpreterOptions(sanitize_overflow=False)
_call = interpreter.InterpretedFunction.__call__
interpreter.InterpretedFunction.__call__ = lambda self, *args, **kwargs: (
    _call_without_patching_again if self.fn.__module__.startswith("fastconv.triton_kernels.") else _call
)(self, *args, **kwargs)


DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
ACTIVATIONS = {
    "none": lambda x: x,
    "relu": torch.relu,
    "relu6": F.relu6,
    "silu": F.silu,
    "gelu": F.gelu,
    "hardswish": F.hardswish,
}


def make_map(sizes: tuple[int, ...], layout: str, dtype: torch.dtype, seed: int, scale: float = 1.0) -> torch.Tensor:
    """A feature map whose surroundings, if it is a slice, are NaN: reading them shows."""
    values = torch.randn(sizes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale
    memory_format = torch.channels_last if layout.startswith("channels_last") else torch.contiguous_format
    if not layout.endswith("slice"):
        return values.to(dtype).contiguous(memory_format=memory_format)
    n, c, h, w = sizes
    larger = torch.full((n + 1, c + 2, h + 2, w + 3), torch.nan, dtype=dtype).contiguous(memory_format=memory_format)
    part = larger[:n, 1 : c + 1, 2:, 1 : w + 1]
    return part.copy_(values)


def assert_close(actual: torch.Tensor, expected: torch.Tensor, peer: torch.Tensor | None) -> None:
    """Against float64: at most twice the error of torch at the same dtype, or the rounding of a few sums."""
    assert actual.shape == expected.shape
    if actual.numel() == 0:
        return
    error = (actual.double() - expected).abs().max().item()
    roundings = 1 if actual.dtype in (torch.bfloat16, torch.float16) else 10
    allowed = expected.abs().max().item() * torch.finfo(actual.dtype).eps * roundings
    if peer is not None:
        allowed = max(allowed, 2 * (peer.double() - expected).abs().max().item())
    assert error <= allowed, f"error {error:.3g}, allowed {allowed:.3g}"
