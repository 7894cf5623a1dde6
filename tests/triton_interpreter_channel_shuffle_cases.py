"""Runs the Triton kernels of the shuffles on CPU tensors in Triton's interpreter, bit by bit against the reference.

Not collected by itself: see triton_interpreter_depthwise_conv2d_cases.py. One of the plans has blocks so small that
cases have several tiles, and a partial one, in each direction.
"""

from __future__ import annotations

import os

import pytest
import torch

assert os.environ.get("TRITON_INTERPRET") == "1", "run through test_triton_interpreter.py"

import triton.runtime.interpreter as interpreter  # noqa: E402
from channel_shuffle_cases import (  # noqa: E402
    CONCATS,
    SHUFFLES,
    SIZES,
    Case,
    arrange,
    assert_same,
    format_of,
    memory_format,
    parts,
)
from fastconv import reference  # noqa: E402
from fastconv.triton_kernels import channel_shuffle as kernels  # noqa: E402

interpreter.interpreter_builder.options = interpreter.InterpreterOptions(sanitize_overflow=False)
LAYOUTS = ("nchw", "channels_last", "channels_last_slice")


@pytest.fixture(params=["default_plan", "small_plan"], autouse=True)
def plan(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "small_plan":
        monkeypatch.setattr(kernels, "default_plan", lambda *args: kernels.Plan(block_c=8, block_p=4))


def small(case: Case) -> bool:
    return case.batch * case.all_channels * torch.Size(case.size).numel() < 2000


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", [*filter(small, SHUFFLES)][::2], ids=str)
def test_shuffle(case: Case, layout: str) -> None:
    [x] = parts(case, torch.bfloat16, layout)
    format = memory_format(layout if x.numel() else "nchw", x.dim())
    assert_same(kernels.channel_shuffle(x, case.groups), reference.channel_shuffle(x, case.groups), format)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", [*filter(small, CONCATS)], ids=str)
def test_concat(case: Case, layout: str) -> None:
    inputs = parts(case, torch.float32, layout)
    output = kernels.concat_shuffle(inputs, case.groups)
    assert_same(output, reference.concat_shuffle(inputs, case.groups), format_of(torch.cat(inputs, 1)))
    for needed in (list(range(len(inputs))), [len(inputs) - 1]):
        grads = kernels._concat_shuffle_input_grad(arrange(output, layout), case.channels, case.groups, needed)
        assert len(grads) == len(needed) and all(torch.equal(grad, inputs[i]) for i, grad in zip(needed, grads))


@pytest.mark.parametrize("layout", [*LAYOUTS, "transposed", "expanded"])
@pytest.mark.parametrize("dtype", SIZES, ids=str)
def test_element_sizes(dtype: torch.dtype, layout: str) -> None:
    case = Case((5, 7), 3, size=(2, 3, 4) if dtype == torch.int64 else (3, 4))
    inputs = parts(case, dtype, layout)
    assert torch.equal(kernels.concat_shuffle(inputs, 3), reference.concat_shuffle(inputs, 3))


def test_error_texts() -> None:
    x = torch.zeros(2, 6, 3, 4)
    with pytest.raises(RuntimeError, match=r"^channel_shuffle: groups must divide the 6 channels of input, got 4$"):
        kernels.channel_shuffle(x, 4)
    with pytest.raises(RuntimeError, match=r"^concat_shuffle: inputs\[1\] must have the sizes of inputs\[0\]"):
        kernels.concat_shuffle([x, x[..., 1:]], 4)
    with pytest.raises(
        RuntimeError, match=r"^_concat_shuffle_input_grad: channels must add up to the 6 of grad_output"
    ):
        kernels._concat_shuffle_input_grad(x, [2, 3], 2, [0])
