"""depthwise_conv2d against torch's own convolution (oneDNN on a CPU, cuDNN on a GPU), eager and compiled."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch

from benchmarks import convolution
from benchmarks.cases import DEPTHWISE_CONV2D, DepthwiseCase
from benchmarks.convolution import PEERS, torch_convolution
from benchmarks.gpu_counts import EMULATED_OUTPUTS, EMULATED_TERMS, KernelCall
from benchmarks.harness import NOT_SLOWER, Problem, Setting

OPERATOR = "depthwise_conv2d"
__all__ = ["OPERATOR", "PEERS", "cases", "kernel_calls", "prepare", "reduced", "target_ratio"]


def cases(device: str) -> Sequence[DepthwiseCase]:
    if device == "cuda":
        return [case for case in DEPTHWISE_CONV2D if not case.overhead]  # events do not see the host's time
    return [case for case in DEPTHWISE_CONV2D if not case.cuda_only]


def target_ratio(case: DepthwiseCase, setting: Setting) -> float:
    """The ratio over the best peer that this row has to reach."""
    if not case.targeted:
        return NOT_SLOWER
    if setting.device == "cuda":
        return 1.0
    nchw, forward, low_precision = (
        setting.layout == "nchw",
        setting.direction == "forward",
        setting.dtype in ("bf16", "f16"),
    )
    size = max(case.kernel)
    if size <= 5:
        if not forward:
            return 3.0 if nchw else 1.5
        if not nchw:
            return 1.0
        return 4.0 if low_precision or case.stride == 2 else 2.0
    if size <= 7:
        if not forward:
            return 15.0 if nchw else 5.0
        return 2.0 if nchw or low_precision else 1.4
    if not forward:
        return 15.0
    if size <= 13:
        return 1.5 if nchw else 3.0
    return 25.0 if nchw else 1.2


def prepare(case: DepthwiseCase, setting: Setting, copies: int, with_compile: bool) -> Problem:
    return convolution.prepare(
        OPERATOR, case, setting, copies, with_compile,
        theirs=torch_convolution(case),
        target=target_ratio(case, setting),
        # Sums are kept in f32 (f64 for f64), whatever the tensors hold; there is no matrix product in a depthwise
        # convolution for a matrix unit to work on.
        peak_dtype=torch.float64 if setting.dtype == "f64" else torch.float32,
    )  # fmt: skip


def kernel_calls(case: DepthwiseCase, setting: Setting) -> list[KernelCall]:
    return convolution.kernel_calls(OPERATOR, case, setting)


def reduced(case: DepthwiseCase, setting: Setting) -> tuple[DepthwiseCase, float]:
    """The case with fewer images and channels, for the emulator, and the share of the work that it is. Planes stay as
    large as they are. In channels_last the images go first, and blocks of channels (128 bytes) stay whole; in NCHW the
    channels, since the weight gradient's blocks take several images of one."""
    outputs = min(EMULATED_OUTPUTS, EMULATED_TERMS / (case.kernel[0] * case.kernel[1]))
    wanted = outputs / (case.output_size[0] * case.output_size[1] * case.multiplier)  # planes of the input
    batch, channels = case.batch, case.channels
    if setting.layout == "channels_last":
        block = 128 // setting.torch_dtype.itemsize
        batch = max(1, min(batch, int(wanted // channels)))
        if batch * channels > wanted and channels % block == 0:
            channels = max(block, int(wanted // batch // block) * block)
    else:
        channels = max(1, min(channels, int(wanted // batch)))
        batch = max(1, min(batch, int(wanted // channels)))
    smaller = dataclasses.replace(case, batch=batch, channels=channels)
    return smaller, batch * channels / (case.batch * case.channels)
