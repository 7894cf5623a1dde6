"""choose_plan of CBAM's operators, checked on the CPU: every plan is legal, and what is chosen is what ought to be."""

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
#include "cbam/cbam_plan.h"
using namespace fastconv;
using namespace fastconv::cbam;

int main() {
  int task, dtype;
  int64_t misalign, pad;
  DeviceFacts device;
  Params p{};
  while (std::cin >> task >> dtype >> p.rows >> p.batch >> p.kept >> p.reduced >> misalign >> pad >>
         device.multiprocessors) {
    p.task = Task(task), p.dtype = ElementType(dtype), p.outer = p.turns = 1;
    void* data = reinterpret_cast<void*>(4096 + misalign);
    const int64_t line = (p.rows ? p.reduced : p.kept) + pad;
    p.input = {data, (p.rows ? p.kept : p.reduced) * line, 0, p.rows ? line : 1, 0, p.rows ? 1 : line};
    p.output = p.input;
    p.pooled = {data, p.kept, 2 * p.kept, 0, 1};
    const Plan plan = choose_plan(p, device);
    std::cout << "{\"elements\": " << plan.elements << ", \"lanes\": " << plan.lanes << ", \"wide\": "
              << plan.wide_kept << ", \"tiles\": " << plan.tiles << ", \"grid\": " << plan.grid << ", \"chunks\": "
              << plan.chunks << ", \"chunk\": " << plan.chunk << ", \"text\": \"" << describe(p, plan) << "\"}"
              << std::endl;
  }
}
"""

POOL, POOL_GRAD, GATE, GATE_GRAD = range(4)
F32, F64, BF16 = range(3)
COLUMNS, ROWS = 0, 1
THREADS = 256


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plan")
    (folder / "plan.cpp").write_text(PROGRAM)
    command = [COMPILER, "-std=c++20", "-O1", "-Wall", "-Werror", f"-I{CSRC}", "plan.cpp", "-o", "plan"]
    subprocess.run(command, cwd=folder, check=True)
    with subprocess.Popen([folder / "plan"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:

        def ask(rows, batch, kept, reduced, task=POOL, dtype=F32, misalign=0, pad=0, multiprocessors=132):
            call = (task, dtype, rows, batch, kept, reduced, misalign, pad, multiprocessors)
            process.stdin.write(" ".join(map(str, call)) + "\n")
            process.stdin.flush()
            return json.loads(process.stdout.readline())

        yield ask
        process.stdin.close()


@pytest.mark.parametrize("rows", [COLUMNS, ROWS])
@pytest.mark.parametrize("task", [POOL, POOL_GRAD, GATE, GATE_GRAD])
@pytest.mark.parametrize("dtype", [F32, F64, BF16])
def test_every_element_is_someones(plan, dtype, task, rows):
    for batch, kept, reduced in ((1, 1, 1), (8, 3136, 256), (8, 49, 2048), (3, 49, 7), (1, 64, 802816), (8, 7, 0),
                                 (256, 2048, 49), (1, 50176, 3), (2, 1, 100000)):  # fmt: skip
        got = plan(rows, batch, kept, reduced, task, dtype)
        lanes, elements = got["lanes"], got["elements"]
        assert lanes in (1, 2, 4, 8, 16, 32, THREADS) and elements in (1, 16 // (4, 8, 2)[dtype])
        assert lanes <= 32 or rows
        kept_of_block = THREADS // lanes if rows else lanes * elements
        assert (got["tiles"] - 1) * kept_of_block < kept <= got["tiles"] * kept_of_block
        assert got["grid"] == batch * got["tiles"]
        assert got["chunks"] * got["chunk"] >= reduced and got["chunks"] <= 65535
        assert (got["chunks"] - 1) * got["chunk"] <= reduced
        assert task == GATE or got["chunks"] == 1, "one block adds up"
        assert not got["wide"] or elements > 1


def test_accesses_have_16_bytes_where_all_is_aligned(plan):
    for rows, kept, reduced in ((COLUMNS, 3136, 255), (ROWS, 49, 256)):
        assert plan(rows, 8, kept, reduced)["elements"] == 4
        assert plan(rows, 8, kept, reduced, dtype=BF16)["elements"] == 8
        assert plan(rows, 8, kept, reduced, dtype=F64)["elements"] == 1
        assert plan(rows, 8, kept, reduced, misalign=4)["elements"] == 1
        assert plan(rows, 8, kept, reduced, pad=2)["elements"] == 1
    assert plan(COLUMNS, 8, 49, 2048)["elements"] == plan(ROWS, 8, 2048, 49)["elements"] == 1
    assert plan(COLUMNS, 8, 3136, 256)["wide"] and not plan(ROWS, 8, 3136, 256)["wide"]


def test_enough_blocks_but_whole_sectors(plan):
    # 784 accesses: 8 x 25 blocks of 32 lanes would be fewer than two for each of 132 multiprocessors.
    assert (plan(COLUMNS, 8, 3136, 256)["lanes"], plan(COLUMNS, 8, 3136, 256)["grid"]) == (16, 8 * 49)
    assert plan(COLUMNS, 8, 3136, 256, multiprocessors=40)["lanes"] == 32
    assert plan(COLUMNS, 1, 64, 256)["lanes"] == 4  # of 16 bytes: two sectors
    assert plan(COLUMNS, 1, 49, 2048)["lanes"] == 16  # of 4 bytes
    # Rows: at least two accesses a lane; few rows, and long, have a block each.
    assert plan(ROWS, 8, 3136, 256)["lanes"] == 32
    assert plan(ROWS, 8, 3136, 64)["lanes"] == 8
    assert plan(ROWS, 1, 64, 12544)["lanes"] == THREADS
    assert plan(ROWS, 1, 64, 49)["lanes"] == 16


def test_the_gate_is_cut_into_chunks(plan):
    got = plan(COLUMNS, 1, 64, 1024, task=GATE)
    assert (got["lanes"], got["chunk"], got["chunks"]) == (16, 8 * THREADS // 16, 8)
    assert plan(COLUMNS, 8, 3136, 1024, task=GATE)["chunks"] > 1


def test_plans_are_described(plan):
    text = plan(ROWS, 8, 3136, 256)["text"]
    assert text == "rows, accesses of 16 bytes, 32 lanes; 3136 blocks of 256 threads"
