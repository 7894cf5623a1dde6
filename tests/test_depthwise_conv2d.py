"""depthwise_conv2d on every device: what holds for every convolution (convolution_tests.py), on its cases."""

from __future__ import annotations

from typing import Any

import fastconv.nn
import torch
from convolution_tests import ConvolutionTests, geometries
from depthwise_conv2d_cases import BY_NAME, CASES, Case, named, torch_conv2d
from hypothesis import strategies as st


def module(case: Case, kernel_size: tuple[int, int], **kwargs: Any) -> torch.nn.Module:
    return fastconv.nn.DepthwiseConv2d(case.channels, case.out_channels, kernel_size, **kwargs)


class TestDepthwiseConv2d(ConvolutionTests):
    name = "depthwise_conv2d"
    peer = staticmethod(torch_conv2d)
    module = staticmethod(module)
    drawn_cases = st.builds(
        lambda geometry, channels, multiplier: Case(**geometry, channels=channels, multiplier=multiplier),
        geometries(),
        st.integers(1, 20),
        st.integers(1, 3),
    )

    CASES = CASES
    # torch takes seconds for kernels of a thousand taps, and for float64 channel by channel.
    TORCH_IS_FAST = [case for case in CASES if case.products < 150 and case.out_channels < 60]
    ASYMMETRIC = BY_NAME["asymmetric_multiplier2"]
    PLAIN = BY_NAME["k3"]
    FEW = named("asymmetric", "asymmetric_multiplier2", "k3", "k3_stride2", "k5_multiplier2_dilation")
    ACTIVATED = named("asymmetric_multiplier2", "k3", "k3_channels67", "k7_stride2", "k13")
    NOT_FINITE = named(
        "k3",
        "asymmetric",
        "k5",
        "k7_stride2",
        "k13",
        "k3_multiplier2",
        "k3_dilation",
        "k3_stride2_even",
        "k4x9_channels8",
    )
    REPEATED = [
        *named("asymmetric", "k3_channels67", "k7", "k3_multiplier3_stride2", "k13"),
        Case("long_sums", batch=5, channels=3, size=(31, 29), padding=(1, 1)),
        Case("long_sums_any_size", batch=3, channels=2, size=(33, 35), kernel=(4, 3), padding=(1, 1), stride=(1, 2)),
    ]
    ONE_BY_ONE = Case("one_by_one", channels=3, kernel=(1, 1))
    TINY = [
        Case("tiny", batch=2, channels=3, size=(5, 4), kernel=(3, 2), stride=(2, 1), padding=(1, 0), dilation=(2, 1)),
        Case("tiny_multiplier2", batch=1, channels=2, multiplier=2, size=(4, 5), padding=(1, 1)),
        Case("tiny_stride2", batch=1, channels=2, size=(5, 6), stride=(2, 2), padding=(1, 1)),
        Case("tiny_padding", batch=1, channels=1, multiplier=3, size=(2, 3), kernel=(2, 2), stride=(1, 3),
             padding=(3, 2)),
        Case("tiny_k5", batch=1, channels=2, size=(6, 5), kernel=(5, 5), padding=(2, 1)),
    ]  # fmt: skip
    HUGE = Case("huge", batch=1, channels=2, size=(33000, 33000), padding=(1, 1))

    WEIGHT = "[channels * multiplier, 1, kernel_h, kernel_w]"
    NOT_ARGUMENTS = ("groups", "shuffle")
    ERRORS = {
        "weight_not_depthwise": ({"weight": torch.zeros(6, 3, 3, 2)}, "weight must be {WEIGHT}, got [6, 3, 3, 2]"),
        "channels_do_not_divide": (
            {"weight": torch.zeros(7, 1, 3, 2)},
            "weight.size(0) must be a multiple of 3, the channels of input, got 7 (input [2, 3, 5, 6], "
            "weight [7, 1, 3, 2])",
        ),
        "no_output_channels": (
            {"weight": torch.zeros(0, 1, 3, 2), "bias": None},
            "weight.size(0) must be a multiple of 3, the channels of input, got 0 (input [2, 3, 5, 6], "
            "weight [0, 1, 3, 2])",
        ),
    }

    def test_defaults_and_keywords(self, device: Any) -> None:
        x, w = torch.randn(1, 3, 6, 7, device=device.type), torch.randn(3, 1, 3, 3, device=device.type)
        want = self.op(x, w, None, [1, 1], [0, 0], [1, 1], "none")
        assert torch.equal(fastconv.depthwise_conv2d(x, w), want)
        assert torch.equal(self.op(x, w), want)
        keywords = {"bias": None, "stride": 1, "padding": "valid", "dilation": 1, "activation": "none"}
        assert torch.equal(fastconv.depthwise_conv2d(input=x, weight=w, **keywords), want)
