"""choose_plan of deform_conv2d, checked on the CPU: every plan is legal on its GPU, and the kernels that ought to be
chosen are."""

import pytest
from test_cuda_plan import (
    BF16,
    F16,
    F32,
    F64,
    FORWARD,
    H100,
    INPUT_GRAD,
    RTX_4090,
    T4,
    WEIGHT_GRAD,
    planner,
    pytestmark,
)

__all__ = ["pytestmark"]  # skipped where that page is

PROGRAM = r"""
#include <iostream>
#include "deform_conv2d/deform_conv2d_plan.h"
using namespace fastconv;
using namespace fastconv::deform_conv2d;

static FeatureMap dense(bool last, int64_t c, int64_t h, int64_t w, int64_t misalign) {
  void* data = reinterpret_cast<void*>(4096 + misalign);
  if (last) return {data, c * h * w, 1, w * c, c};
  return {data, c * h * w, h * w, w, 1};
}

int main() {
  int direction, dtype, last, deterministic;
  int64_t group_channels, group_outputs, k, s, misalign;
  DeviceFacts device;
  Params p{};
  while (std::cin >> direction >> dtype >> last >> deterministic >> p.batch >> p.groups >> p.offset_groups >>
         group_channels >> group_outputs >> p.height >> p.width >> k >> s >> misalign >> device.multiprocessors >>
         device.smem_per_block >> device.smem_per_multiprocessor >> device.compute_capability) {
    p.channels = p.groups * group_channels, p.out_channels = p.groups * group_outputs;
    p.dtype = ElementType(dtype), p.offset_dtype = p.dtype, p.layout = last ? Layout::channels_last : Layout::nchw;
    p.deterministic = deterministic;
    p.kernel_h = p.kernel_w = k, p.stride_h = p.stride_w = s, p.dilation_h = p.dilation_w = 1;
    p.padding_h = p.padding_w = k / 2;
    p.out_height = (p.height + 2 * p.padding_h - k) / s + 1, p.out_width = (p.width + 2 * p.padding_w - k) / s + 1;
    p.input = p.grad_input = dense(last, p.channels, p.height, p.width, misalign);
    p.output = dense(last, p.out_channels, p.out_height, p.out_width, 0);
    const Plan plan = choose_plan(Direction(direction), p, device);
    const PixelTiles& tiles = plan.tile.pixels;
    std::cout << "{\"kernel\": \"" << (plan.kernel == KernelKind::tiled ? "tiled" : "generic") << "\", \"grid\": "
              << plan.grid << ", \"block\": " << plan.block << ", \"smem\": " << plan.smem_bytes << ", \"bits\": "
              << plan.index_bits << ", \"width\": " << plan.vector_width << ", \"splits\": " << plan.splits
              << ", \"workspace\": " << plan.workspace_bytes << ", \"sums\": " << plan.sum_bytes << ", \"fixed\": "
              << (plan.fixed_point ? "true" : "false") << ", \"outputs\": " << plan.tile.outputs << ", \"tile\": ["
              << tiles.rows << ", " << tiles.columns << ", " << tiles.slots << "], \"covered\": "
              << (tiles.rows * tiles.tiles_y >= p.out_height && tiles.columns * tiles.tiles_x >= p.out_width ? "true"
                                                                                                             : "false")
              << ", \"text\": \"" << describe(plan) << "\"}" << std::endl;
  }
}
"""


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    with planner(tmp_path_factory.mktemp("deform_plan"), PROGRAM) as answer:

        def ask(
            direction, dtype, last, n, widths, h, w, k=3, s=1, groups=1, offset_groups=1, deterministic=False,
            misalign=0, gpu=H100,
        ):  # fmt: skip
            call = (direction, dtype, int(last), int(deterministic), n, groups, offset_groups, *widths, h, w, k, s)
            return answer(*call, misalign, *gpu, 75 if gpu is T4 else 90)

        yield ask


@pytest.mark.parametrize("gpu", [H100, T4, RTX_4090], ids=["H100", "T4", "RTX 4090"])
@pytest.mark.parametrize("direction", [FORWARD, INPUT_GRAD, WEIGHT_GRAD])
@pytest.mark.parametrize("dtype", [F32, F64, BF16, F16])
def test_plans_are_legal(plan, direction, dtype, gpu):
    for last in (False, True):
        for n, h, w in ((1, 1, 1), (1, 3, 500), (8, 56, 56), (64, 7, 7), (1, 512, 512)):
            for groups, offset_groups, widths in (
                (1, 1, (64, 64)),
                (2, 4, (24, 17)),
                (1, 1, (3, 700)),
                (4, 2, (96, 40)),
            ):
                for k, s in ((1, 1), (3, 1), (3, 2), (7, 1)):
                    got = plan(direction, dtype, last, n, widths, h, w, k, s, groups, offset_groups, gpu=gpu)
                    assert 0 < got["grid"] < 2**31, got
                    assert 32 <= got["block"] <= 256 and got["block"] % 32 == 0, got
                    assert 0 <= got["smem"] <= gpu[1], got
                    if dtype == F64 or (dtype == BF16 and gpu is T4):
                        assert got["kernel"] == "generic"
                    elif got["kernel"] == "tiled":
                        rows, columns, slots = got["tile"]
                        assert got["covered"] and rows * columns <= slots and slots & (slots - 1) == 0, got


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("direction", [FORWARD, INPUT_GRAD, WEIGHT_GRAD])
@pytest.mark.parametrize("dtype, width", [(F32, 4), (BF16, 8), (F16, 8)])
def test_usual_calls_have_tiled_kernels(plan, last, direction, dtype, width):
    for channels, size in ((64, 56), (128, 28), (256, 14)):
        for offset_groups in (1, 4):
            got = plan(direction, dtype, last, 4, (channels, channels), size, size, offset_groups=offset_groups)
            assert got["kernel"] == "tiled" and got["width"] == (width if last else 1)
            # The least: 4 images x 7 tiles of 32 pixels x 4 blocks of 64 output channels.
            assert got["grid"] >= 112, f"too few blocks to fill an H100: {got}"


def test_large_maps_are_sampled_once_for_all_output_channels(plan):
    for outputs in (64, 128, 256):
        assert plan(FORWARD, BF16, True, 16, (64, outputs), 112, 112)["outputs"] == outputs


def test_tiles_waste_few_pixels(plan):
    for size in (7, 14, 28, 56, 100):
        rows, columns, slots = plan(INPUT_GRAD, F32, True, 8, (64, 64), size, size)["tile"]
        covered = -(-size // rows) * -(-size // columns) * slots
        assert covered <= 1.35 * size * size, (size, rows, columns, slots)


def test_gradients_of_16_bit_inputs_are_summed_in_float32(plan):
    elements = 2 * 64 * 28 * 28
    for dtype in (BF16, F16):
        got = plan(INPUT_GRAD, dtype, True, 2, (64, 64), 28, 28)
        assert got["sums"] == 4 * elements and not got["fixed"]
        assert got["sums"] < got["workspace"] == got["sums"] + 64 * 64 * 9 * 2
    assert plan(INPUT_GRAD, F32, True, 2, (64, 64), 28, 28)["sums"] == 0


def test_deterministic_gradients_are_summed_in_fixed_point(plan):
    for dtype in (F32, BF16):
        got = plan(INPUT_GRAD, dtype, True, 2, (64, 64), 28, 28, deterministic=True)
        assert got["fixed"] and got["sums"] >= 12 * 2 * 64 * 28 * 28
        assert "fixed point" in got["text"]
    generic = plan(INPUT_GRAD, F64, True, 2, (64, 64), 28, 28, deterministic=True)
    assert generic["kernel"] == "generic" and not generic["fixed"]
    assert generic["grid"] == 1 and plan(INPUT_GRAD, F64, True, 2, (64, 64), 28, 28)["grid"] == 2 * 64 * 28 * 28 / 256


def test_what_no_tiled_kernel_takes_is_generic(plan):
    assert plan(FORWARD, F32, True, 2, (4, 64), 28, 28)["kernel"] == "generic"  # narrow
    assert plan(FORWARD, F32, True, 2, (64, 4), 28, 28)["kernel"] == "generic"
    assert plan(FORWARD, F32, False, 1, (8, 8), 2**14, 2**13)["kernel"] == "generic"  # images of 2^30 elements
    assert plan(FORWARD, F32, False, 1, (8, 8), 2**14, 2**13)["bits"] == 64
    assert plan(FORWARD, F32, False, 3, (4, 4), 2**12, 2**12)["bits"] == 32
    # Runs of 10 channels of a group of 30 do not begin at multiples of 16 bytes of its weights.
    assert plan(INPUT_GRAD, BF16, True, 2, (30, 64), 28, 28, offset_groups=3)["kernel"] == "generic"
    assert plan(INPUT_GRAD, BF16, True, 2, (30, 64), 28, 28)["kernel"] == "tiled"


def test_vectors_are_aligned(plan):
    assert plan(FORWARD, BF16, True, 2, (64, 64), 28, 28)["width"] == 8
    assert plan(FORWARD, BF16, True, 2, (64, 64), 28, 28, misalign=8)["width"] == 1
    assert plan(FORWARD, BF16, True, 2, (60, 64), 28, 28)["width"] == 1


def test_plans_are_described(plan):
    text = plan(WEIGHT_GRAD, BF16, True, 4, (64, 64), 56, 56)["text"]
    assert "tiled kernel, tiles of 8 x 8 pixels, loads of 8 elements" in text and "partial sums" in text
    assert "generic kernel, 32-bit indices" in plan(FORWARD, F64, False, 2, (8, 8), 32, 32)["text"]
