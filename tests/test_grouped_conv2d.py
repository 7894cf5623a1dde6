"""grouped_conv2d on every device: what holds for every convolution (convolution_tests.py), on its cases."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import fastconv.nn
import pytest
import torch
from conftest import Device
from convolution_cases import MEMORY_FORMATS, Sample, make_sample, place, run
from convolution_tests import ConvolutionTests, geometries, parametrize
from fastconv import backends
from grouped_conv2d_cases import BY_NAME, CASES, Case, named, torch_conv2d
from hypothesis import strategies as st


@st.composite
def drawn_cases(draw: Any) -> Case:
    groups, channels, outputs = draw(st.integers(1, 6)), draw(st.integers(1, 20)), draw(st.integers(1, 20))
    shuffle = draw(st.sampled_from([n for n in range(1, groups * outputs + 1) if groups * outputs % n == 0]))
    return Case(**draw(geometries()), groups=groups, group_channels=channels, group_outputs=outputs, shuffle=shuffle)


def module(case: Case, kernel_size: tuple[int, int], **kwargs: Any) -> torch.nn.Module:
    return fastconv.nn.GroupedConv2d(
        case.channels, case.out_channels, kernel_size, groups=case.groups, shuffle=case.shuffle, **kwargs
    )


class TestGroupedConv2d(ConvolutionTests):
    name = "grouped_conv2d"
    peer = staticmethod(torch_conv2d)
    module = staticmethod(module)
    drawn_cases = drawn_cases()

    CASES = CASES
    TORCH_IS_FAST = CASES
    ASYMMETRIC = BY_NAME["asymmetric_shuffle"]
    PLAIN = Case("plain", groups=3, group_channels=4, group_outputs=2, shuffle=3, padding=(1, 1))
    FEW = [PLAIN, *named("asymmetric", "asymmetric_shuffle", "k3_stride2", "k1_groups3_shuffle")]
    ACTIVATED = named(
        "asymmetric_shuffle", "k3_4to4", "k3_9to11", "k3_16to16", "k5_stride2_shuffle", "k1_groups3_shuffle", "wide",
        "depthwise_multiplier_shuffle",
    )  # fmt: skip
    NOT_FINITE = named(  # none that torch's kernels serve
        "asymmetric_shuffle", "k3_4to4", "k3_5to7", "k3_8to8", "k3_stride2", "k3_dilation", "k5", "k1_groups3_shuffle",
        "k7_stride2",
    )  # fmt: skip
    REPEATED = [
        *named("asymmetric_shuffle", "k3_4to4", "k3_16to16", "k1_groups4_shuffle8"),
        Case("long_sums", batch=5, groups=2, group_channels=3, size=(31, 29), padding=(1, 1)),
        Case("long_sums_any_size", groups=2, size=(33, 35), kernel=(4, 3), padding=(1, 1), stride=(1, 2)),
    ]
    ONE_BY_ONE = Case("one_by_one", groups=3, group_channels=2, group_outputs=3, kernel=(1, 1), shuffle=3)
    TINY = [
        Case("tiny", groups=2, group_channels=2, group_outputs=1, size=(5, 4), kernel=(3, 2), stride=(2, 1),
             padding=(1, 0), dilation=(2, 1)),
        Case("tiny_shuffle", batch=1, groups=2, group_channels=1, group_outputs=3, shuffle=3, size=(3, 4),
             padding=(1, 1)),
        Case("tiny_stride2", batch=1, groups=2, group_outputs=2, shuffle=2, size=(4, 5), stride=(2, 2), padding=(1, 1)),
        Case("tiny_pointwise", groups=3, group_outputs=2, shuffle=3, size=(2, 3), kernel=(1, 1)),
        Case("tiny_padding", batch=1, groups=1, group_outputs=2, size=(2, 3), kernel=(2, 2), stride=(1, 3),
             padding=(3, 2)),
    ]  # fmt: skip
    HUGE = Case("huge", batch=1, groups=2, group_channels=2, group_outputs=2, size=(23500, 23500), padding=(1, 1))

    @pytest.fixture(autouse=True)
    def _needs_kernels_of_ours(self, request: pytest.FixtureRequest) -> None:
        """On a GPU one group and wide ones are for torch's convolution. On an emulated one that is the CPU's, which in
        16 bits may round between its products."""
        parameters = getattr(request.node, "callspec", None) and request.node.callspec.params
        if not parameters or not {"device", "case", "dtype"} <= set(parameters):
            return
        case, is_16_bit = parameters["case"], parameters["dtype"] in (torch.bfloat16, torch.float16)
        if parameters["device"].is_emulated and is_16_bit and (case.groups == 1 or case.name == "wide"):
            pytest.skip("torch's convolution serves it")

    WEIGHT = "[out_channels, channels / groups, kernel_h, kernel_w]"
    ERRORS = {
        "groups_0": ({"groups": 0}, "groups must divide the channels of input, 3, got 0"),
        "groups_negative": ({"groups": -3}, "groups must divide the channels of input, 3, got -3"),
        "groups_do_not_divide": ({"groups": 2}, "groups must divide the channels of input, 3, got 2"),
        "weight_of_other_groups": (
            {"groups": 1},
            "weight.size(1) must be 3, the channels of input by groups, got 1 (input [2, 3, 5, 6], "
            "weight [6, 1, 3, 2], groups 1)",
        ),
        "out_channels_do_not_divide": (
            {"weight": torch.zeros(7, 1, 3, 2)}, "weight.size(0) must be a multiple of groups, 3, got 7"
        ),
        "no_output_channels": (
            {"weight": torch.zeros(0, 1, 3, 2), "bias": None}, "weight.size(0) must be a multiple of groups, 3, got 0"
        ),
        "shuffle_0": ({"shuffle": 0}, "shuffle must divide the channels of output, 6, got 0"),
        "shuffle_negative": ({"shuffle": -2}, "shuffle must divide the channels of output, 6, got -2"),
        "shuffle_does_not_divide": ({"shuffle": 4}, "shuffle must divide the channels of output, 6, got 4"),
    }  # fmt: skip

    def rounds_before_activation(self, device: Device, case: Case, sample: Sample) -> bool:
        """torch's convolution does, where that is the faster one."""
        if device.name != "cpu":  # a plan is told of the CPU's kernels and Triton's
            return True
        plan = backends.plan(sample.input, sample.weight, case.gradient_arguments)
        return "torch's convolution" in plan["forward"]["cpu"]

    @parametrize("layout", MEMORY_FORMATS)
    @pytest.mark.parametrize("size", [(0, 4), (3, 0)])
    def test_wide_map_without_pixels(self, device: Device, size: tuple[int, int], layout: str) -> None:
        """torch's convolution, which serves wide groups, takes none."""
        case = replace(BY_NAME["wide"], size=size, padding=(2, 2))
        sample = place(make_sample(case, torch.float32), device, layout)
        actual = run(self.op, sample, case)
        places = [case.place_of(channel) for channel in range(case.out_channels)]
        assert actual.output.numel() > 0 and actual.input.shape == case.input_shape and not actual.weight.any()
        assert torch.equal(actual.output[:, places], sample.bias[:, None, None].expand(case.output_shape))

    @parametrize("layout", MEMORY_FORMATS)
    @parametrize("dtype", [torch.float32, torch.bfloat16])
    @pytest.mark.parametrize("case", named("wide", "one_group", "k1_groups3_shuffle", "k3_20to20"), ids=str)
    def test_both_gradients_in_one_call(self, device: Device, case: Case, dtype: torch.dtype, layout: str) -> None:
        """The same as each alone, whoever serves them."""
        sample = place(make_sample(case, dtype), device, layout)
        tensors = (sample.grad_output, sample.input, sample.weight)
        grad_input, grad_weight = self.backward_op(*tensors, *case.gradient_arguments, True)
        want_input = self.input_grad_op(*tensors, *case.gradient_arguments)
        want_weight = self.weight_grad_op(*tensors, *case.gradient_arguments, True)
        assert torch.equal(grad_input, want_input) and grad_input.stride() == want_input.stride()
        assert torch.equal(grad_weight, want_weight) and grad_weight.stride() == want_weight.stride()

    def test_defaults_and_keywords(self, device: Device) -> None:
        x, w = torch.randn(1, 4, 6, 7, device=device.type), torch.randn(6, 4, 3, 3, device=device.type)
        want = self.op(x, w, None, [1, 1], [0, 0], [1, 1], 1, "none", 1)
        assert torch.equal(fastconv.grouped_conv2d(x, w), want)
        assert torch.equal(self.op(x, w), want)
        keywords = {"bias": None, "stride": 1, "padding": "valid", "dilation": 1, "groups": 1, "activation": "none"}
        assert torch.equal(fastconv.grouped_conv2d(input=x, weight=w, **keywords, shuffle=1), want)

    @parametrize("layout", MEMORY_FORMATS)
    @parametrize("activation", ["none", "relu", "silu"])
    @pytest.mark.parametrize("case", named("k1_groups3_shuffle", "asymmetric_shuffle", "wide"), ids=str)
    def test_shuffle_moves_channels_and_nothing_else(
        self, device: Device, case: Case, activation: str, layout: str
    ) -> None:
        """The very bits of the call without it, and of its gradients, at other places."""
        sample = place(make_sample(case, torch.float32), device, layout)
        places = [case.place_of(channel) for channel in range(case.out_channels)]
        torch_places = torch.nn.functional.channel_shuffle(
            torch.arange(case.out_channels).view(1, -1, 1, 1), case.shuffle
        ).flatten()
        assert places == torch_places.argsort().tolist()
        shuffled = run(self.op, sample, case, activation)
        geometry, groups = case.geometry, case.groups
        leaves = [x.clone().requires_grad_() for x in (sample.input, sample.weight, sample.bias)]
        plain = self.op(*leaves, *geometry, groups, activation)
        plain.backward(sample.grad_output[:, places].contiguous(memory_format=MEMORY_FORMATS[layout]))
        assert torch.equal(shuffled.output[:, places], plain)
        for (name, a), leaf in zip(shuffled.items()[1:], leaves):
            torch.testing.assert_close(a, leaf.grad, rtol=1e-5, atol=1e-5, msg=name)

    @parametrize("layout", MEMORY_FORMATS)
    @parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_sweep_against_torch(self, device: Device, dtype: torch.dtype, layout: str) -> None:
        """Every width of a group from 1 to 20: outputs and gradients beside torch's, which has errors of its own."""
        for channels, kernel in itertools.product(range(1, 21), [(1, 1), (3, 3)]):
            outputs = channels % 7 + 1 if kernel == (1, 1) else channels
            case = Case(
                f"{channels}to{outputs}", batch=1, groups=2, group_channels=channels, group_outputs=outputs,
                size=(5, 6), kernel=kernel, stride=(1 + channels % 2, 1), padding=(kernel[0] // 2, 1), shuffle=2,
            )  # fmt: skip
            sample = place(make_sample(case, dtype), device, layout)
            tolerance = 20 * torch.finfo(dtype).eps
            for (name, a), (_, b) in zip(run(self.op, sample, case).items(), run(self.peer, sample, case).items()):
                scale = b.abs().max().item()
                torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance * scale, msg=f"{case}: {name}")
