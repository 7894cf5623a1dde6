"""choose_plan of split attention, on the CPU: every plan is legal on its GPU, and what ought to be chosen is."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

CSRC = Path(__file__).resolve().parent.parent / "csrc"
COMPILER = shutil.which("g++") or shutil.which("clang++")
pytestmark = pytest.mark.skipif(COMPILER is None, reason="needs a C++ compiler")

# Reads one call a line, writes its plan as a line of JSON.
PROGRAM = r"""
#include <iostream>
#include "split_attention/split_attention_plan.h"
using namespace fastconv;
using namespace fastconv::split_attention;

int main() {
  int pass, dtype, last;
  int64_t misalign, pad;
  DeviceFacts device;
  while (std::cin >> pass >> dtype >> last) {
    Params p{};
    std::cin >> p.batch >> p.channels >> p.radix >> p.height >> p.width >> misalign >> pad >> device.multiprocessors;
    p.dtype = ElementType(dtype), p.layout = last ? Layout::channels_last : Layout::nchw, p.cardinality = 1;
    auto map = [&](int64_t c) {
      const int64_t w = p.width + pad, pixels = p.height * w;
      void* data = reinterpret_cast<void*>(4096 + misalign);
      return last ? FeatureMap{data, c * pixels, 1, w * c, c} : FeatureMap{data, c * pixels, pixels, w, 1};
    };
    p.input = map(p.radix * p.channels);
    if (pass > 0) p.output = map(p.channels);
    if (pass > 1) p.grad_input = map(p.radix * p.channels), p.grad_logits = &p;
    const Plan plan = choose_plan(Pass(pass), p, device);
    std::cout << "{\"count\": " << plan.count << ", \"grid\": " << plan.grid << ", \"lanes\": " << plan.lanes
              << ", \"tiles\": " << plan.tiles << ", \"tile_size\": " << plan.tile_size << ", \"channel_tiles\": "
              << plan.channel_tiles << ", \"smem\": " << plan.smem_bytes << ", \"workspace\": "
              << plan.workspace_bytes << ", \"text\": \"" << describe(p, plan) << "\"}" << std::endl;
  }
}
"""

POOL, COMBINE, BACKWARD = range(3)
F32, F64, BF16, F16 = range(4)
SIZES = {F32: 4, F64: 8, BF16: 2, F16: 2}
NCHW, LAST = 0, 1
H100, T4 = 132, 40


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plan")
    (folder / "plan.cpp").write_text(PROGRAM)
    command = [COMPILER, "-std=c++20", "-O1", "-Wall", "-Werror", f"-I{CSRC}", "plan.cpp", "-o", "plan"]
    subprocess.run(command, cwd=folder, check=True)
    with subprocess.Popen([folder / "plan"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:

        def ask(kind, dtype, layout, n, c, r, h, w, misalign=0, pad=0, gpu=H100):
            call = (kind, dtype, layout, n, c, r, h, w, misalign, pad, gpu)
            process.stdin.write(" ".join(map(str, call)) + "\n")
            process.stdin.flush()
            return json.loads(process.stdout.readline())

        yield ask
        process.stdin.close()


@pytest.mark.parametrize("gpu", [H100, T4])
@pytest.mark.parametrize("kind", [POOL, COMBINE, BACKWARD])
@pytest.mark.parametrize("dtype", [F32, F64, BF16])
@pytest.mark.parametrize("layout", [NCHW, LAST])
def test_plans_are_legal(plan, layout, dtype, kind, gpu):
    for n, c, r, h, w in ((1, 1, 1, 1, 1), (8, 64, 2, 1, 3136), (256, 512, 4, 1, 49), (3, 37, 2, 5, 7),
                          (1, 6, 1, 1, 4_000_000), (2, 2000, 5, 3, 3), (1, 8, 2, 1, 0)):  # fmt: skip
        for misalign in (0, SIZES[dtype], 8):
            got = plan(kind, dtype, layout, n, c, r, h, w, misalign=misalign, pad=3 if h > 1 else 0, gpu=gpu)
            access = got["count"] * SIZES[dtype]
            assert got["count"] == 1 or access in (8, 16)
            assert (4096 + misalign) % access == 0 and (c if layout == LAST else w) % got["count"] == 0
            assert 0 < got["grid"] < 2**31 and got["smem"] <= 48 * 1024
            assert got["lanes"] in (1, 2, 4, 8, 16, 32, 64, 128, 256)
            accesses = h * w // got["count"] if layout == NCHW else h * w
            assert got["tiles"] * got["tile_size"] >= accesses, "every pixel is in a tile"
            if layout == LAST:
                width = got["lanes"] * got["count"]
                assert width <= 256, "a thread for each channel of a block"
                assert got["channel_tiles"] * width >= c
                assert got["grid"] == n * got["channel_tiles"] * got["tiles"]
                sums = {POOL: 1, COMBINE: 0, BACKWARD: r}[kind] * c * n * got["tiles"]
                assert got["workspace"] == (sums * (8 if dtype == F64 else 4) if got["tiles"] > 1 else 0)
            else:
                assert got["workspace"] == 0 and (kind == COMBINE or got["tiles"] == 1), "sums of a plane are a block's"
                assert got["grid"] * (256 // got["lanes"]) >= n * c * got["tiles"]


def test_accesses_are_no_wider_than_the_alignment(plan):
    assert plan(COMBINE, F32, NCHW, 8, 64, 2, 1, 3136)["count"] == 4
    assert plan(COMBINE, BF16, NCHW, 8, 64, 2, 1, 3136)["count"] == 8
    assert plan(COMBINE, BF16, NCHW, 8, 256, 2, 1, 196)["count"] == 4  # planes of 392 bytes
    assert plan(COMBINE, BF16, NCHW, 8, 512, 2, 1, 49)["count"] == 1
    assert plan(COMBINE, BF16, LAST, 8, 512, 2, 1, 49)["count"] == 8
    assert plan(COMBINE, BF16, LAST, 8, 36, 2, 1, 49)["count"] == 4
    assert plan(COMBINE, F32, LAST, 8, 64, 2, 1, 3136, misalign=8)["count"] == 2
    assert plan(COMBINE, F64, LAST, 8, 64, 2, 1, 3136)["count"] == 1


def test_large_maps_of_few_images_are_cut_into_tiles(plan):
    few = plan(POOL, BF16, LAST, 8, 64, 2, 1, 3136)
    assert few["tiles"] > 8 and few["tile_size"] * 2 >= 2 * 128 * 0.5, "of enough pixels to be worth their sums"
    assert few["workspace"] > 0 and few["text"].endswith("added up by a second launch")
    many = plan(POOL, BF16, LAST, 1024, 64, 2, 1, 3136)
    assert many["tiles"] == 1 and many["workspace"] == 0
    assert plan(COMBINE, F32, NCHW, 1, 8, 2, 1, 2**20)["tiles"] > 1


def test_small_planes_share_blocks(plan):
    got = plan(POOL, F32, NCHW, 8, 512, 2, 1, 49)
    assert got["lanes"] == 16 and got["grid"] == 8 * 512 // 16
    assert plan(POOL, F32, NCHW, 8, 64, 2, 1, 3136)["lanes"] == 256
