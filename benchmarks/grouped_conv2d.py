"""grouped_conv2d against torch's own convolution (oneDNN on a CPU, cuDNN on a GPU), activation and channel shuffle."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import torch.nn.functional as F

from benchmarks import convolution
from benchmarks.cases import GROUPED_CONV2D, GroupedCase
from benchmarks.convolution import PEERS, Op, torch_convolution
from benchmarks.gpu_counts import EMULATED_OUTPUTS, EMULATED_TERMS, KernelCall
from benchmarks.harness import NOT_SLOWER, Problem, Setting

OPERATOR = "grouped_conv2d"
__all__ = ["OPERATOR", "PEERS", "cases", "kernel_calls", "prepare", "reduced", "target_ratio"]


def cases(device: str) -> Sequence[GroupedCase]:
    if device == "cuda":
        return [case for case in GROUPED_CONV2D if not case.overhead]  # events do not see the host's time
    return [case for case in GROUPED_CONV2D if not case.cuda_only]


def target_ratio(case: GroupedCase, setting: Setting) -> float:
    """The ratio over the best peer that this row has to reach."""
    if not case.targeted or case.group_width > 16:
        return NOT_SLOWER
    if setting.device == "cuda":
        return 1.0
    if case.group_width > 4:
        return 1.3
    return 3.0 if setting.direction == "forward" else 5.0


def prepare(case: GroupedCase, setting: Setting, copies: int, with_compile: bool) -> Problem:
    return convolution.prepare(
        OPERATOR, case, setting, copies, with_compile,
        theirs=_torch(case),
        target=target_ratio(case, setting),
        peak_dtype=setting.torch_dtype,
    )  # fmt: skip


def _torch(case: GroupedCase) -> Op:
    conv, shuffle = torch_convolution(case), case.shuffle
    if shuffle == 1:
        return conv
    return lambda input, weight, bias: F.channel_shuffle(conv(input, weight, bias), shuffle)


def kernel_calls(case: GroupedCase, setting: Setting) -> list[KernelCall]:
    return convolution.kernel_calls(OPERATOR, case, setting)


def reduced(case: GroupedCase, setting: Setting) -> tuple[GroupedCase, float]:
    """The case with fewer images, then fewer groups, for the emulator, and the share of the work that it is. Planes and
    groups stay as large as they are."""
    outputs = min(EMULATED_OUTPUTS, EMULATED_TERMS / math.prod(case.weight_shape[1:]))
    wanted = outputs / math.prod(case.output_size) / (case.out_channels // case.groups)  # groups of all images
    batch = max(1, min(case.batch, int(wanted // case.groups)))
    fitting = (n for n in range(1, case.groups + 1) if case.groups % n == 0 and batch * n <= max(1, wanted))
    groups = max(fitting, default=1)
    smaller = dataclasses.replace(
        case, batch=batch, groups=groups, channels=case.channels // case.groups * groups,
        outputs=case.outputs // case.groups * groups, shuffle=math.gcd(case.shuffle, groups),
    )  # fmt: skip
    return smaller, batch * groups / (case.batch * case.groups)
