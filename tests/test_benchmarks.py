"""The benchmarks run and report what they promise. No time is asserted."""

from __future__ import annotations

import copy
import importlib
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import fastconv
import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent


def run_benchmarks(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)


CONVOLUTIONS = ("depthwise_conv2d", "grouped_conv2d")
OPERATORS = (*CONVOLUTIONS, "channel_shuffle", "cbam", "split_attention", "deform_aggregate2d")


def load_page(operator: str) -> Any:
    sys.path.insert(0, str(ROOT))
    try:
        return importlib.import_module(f"benchmarks.{operator}")
    finally:
        sys.path.remove(str(ROOT))


@pytest.fixture(scope="module", params=OPERATORS)
def quick_run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The JSON file and the printed text of a quick run over the smallest case."""
    file = tmp_path_factory.mktemp("benchmarks") / f"{request.param}.json"
    arguments = ["--quick", "--filter", "one call", "--budget", "0.01", "--threads", "1", "--json", str(file)]
    done = run_benchmarks(request.param, *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    return file, done.stdout


def test_rows_hold_times_ratios_limit_and_target(quick_run: tuple[Path, str]) -> None:
    rows = json.loads(quick_run[0].read_text())["rows"]
    settings = {(row["direction"], row["dtype"], row["layout"]) for row in rows}
    assert len(rows) == len(settings) == 8  # forward, backward; f32, bf16; nchw, channels_last
    for row in rows:
        assert row["operator"] == quick_run[0].stem and row["threads"] == 1 and row["device"] == "cpu"
        assert row["times"]["torch.compile"] == "not measured"
        assert row["times"]["fastconv"]["median_ms"] == row["time_ms"] > 0
        assert row["times"]["torch"]["median_ms"] == pytest.approx(row["ratios"]["torch"] * row["time_ms"])
        assert row["ratios"].keys() == row["times"].keys() - {"fastconv", "torch.compile"}
        assert row["ratio"] == row["ratios"][row["best_peer"]] == min(row["ratios"].values())
        assert row["limit_ms"] > 0 and row["efficiency"] == pytest.approx(row["limit_ms"] / row["time_ms"])
        assert row["limited_by"] in ("operations", "bytes")
        assert row["target"].startswith((">=", "<=")) and row["met"] in (True, False)
        assert row["correct"] is True
        assert ("overhead_us" in row) == (row["direction"] == "forward")


def test_json_names_the_machine_and_sums_up(quick_run: tuple[Path, str]) -> None:
    content = json.loads(quick_run[0].read_text())
    assert {"date", "cpu", "cpu_capability", "cpus", "torch", "fastconv", "git_commit"} <= content["machine"].keys()
    summary, rows = content["summary"], content["rows"]
    assert summary["rows"] == len(rows)
    assert summary["worst_ratio"] == min(row["ratio"] for row in rows)
    logarithms = [math.log(row["ratio"]) for row in rows]
    assert math.log(summary["geomean_ratio"]) == pytest.approx(sum(logarithms) / len(logarithms))
    assert summary["targets_met"] + len(summary["targets_missed"]) == len(rows)


def test_text_has_a_line_for_each_row_and_a_summary(quick_run: tuple[Path, str]) -> None:
    lines = quick_run[1].splitlines()
    assert sum(line.startswith("1x8x8x8 ") and "(one call)" in line for line in lines) == 8
    assert any(line.startswith("8 rows: geometric mean of ratios") for line in lines)


def test_table_prints_markdown_of_a_result(quick_run: tuple[Path, str]) -> None:
    done = run_benchmarks("table", str(quick_run[0]))
    assert done.returncode == 0, done.stderr
    assert "**forward, f32, nchw, 1 thread**" in done.stdout
    widths = {line.count("|") for line in done.stdout.splitlines() if line.startswith("|")}
    assert len(widths) == 1  # every line of every table has as many cells


def test_networks_have_a_rate_and_memory(tmp_path: Path) -> None:
    file = tmp_path / "rows.json"
    options = ["--quick", "--dtype", "f32", "--layout", "channels_last", "--json", str(file)]
    done = run_benchmarks("models", *options)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads(file.read_text())["rows"]
    assert [row["direction"] for row in rows] == ["forward", "backward"]
    for row in rows:
        assert row["images_per_s"] == pytest.approx(1e3 / row["time_ms"]) and row["correct"]
        assert row["peak_mib"].keys() == row["ratios"].keys() | {"fastconv"}


def test_peer_of_a_deformable_network_has_torchvisions_modules() -> None:
    torchvision = pytest.importorskip("torchvision")
    page = load_page("models")
    arguments = {"layers": (1, 1, 1, 1), "num_classes": 7}
    peer = page.make_peer("deformable_resnet50", **arguments).eval()
    ours = fastconv.models.create_model("deformable_resnet50", **arguments).eval()
    ours.load_state_dict(peer.state_dict())
    optimized = fastconv.optimize(copy.deepcopy(peer))
    stages = ("layer2", "layer3", "layer4")
    for model, kind in ((peer, torchvision.ops.DeformConv2d), (optimized, fastconv.nn.DeformConv2d)):
        assert all(type(getattr(model, stage)[0].conv2.deform) is kind for stage in stages)
    x = torch.randn(2, 3, 64, 49)
    with torch.no_grad():
        want = copy.deepcopy(peer).double()(x.double())
        assert (peer.layer2[0].conv2.conv_offset(torch.randn(1, 128, 8, 9)).abs() > 0.1).any()  # not on pixels
        for model in (peer, ours, optimized):
            torch.testing.assert_close(model(x).double(), want, rtol=1e-4, atol=1e-5 * want.abs().max().item())
        for model in (peer, ours, optimized):
            got = model.bfloat16()(x.bfloat16())
            assert got.dtype == torch.bfloat16 and (got - want).norm() < 2**-5 * want.norm()


def test_peak_memory_is_the_most_that_is_held_at_once() -> None:
    harness = load_page("harness")
    x = torch.zeros(1 << 20)
    # Three results, of which two are held at a time.
    assert harness.peak_memory(lambda: x.add(1).mul(2).sub(3), "cpu") == pytest.approx(2 * 4 * x.numel(), rel=1e-3)
    assert harness.peak_memory(lambda: x.add_(1), "cpu") < 1000


def test_documents_hold_the_figures_of_the_result_files() -> None:
    figures = load_page("figures")
    results = figures.read_results()
    assert figures.PAGE.read_text() == figures.page(results), "run `python -m benchmarks figures`"
    [summary] = figures.SUMMARY.findall(figures.README.read_text())
    assert summary == figures.summary(results), "run `python -m benchmarks figures`"


def cells_of(page: str) -> dict[str, list[str]]:
    """The table of networks: name to the other cells."""
    lines = [line.split("|")[1:-1] for line in page.splitlines() if line.startswith("| `")]
    return {name.strip(" `"): [cell.strip() for cell in cells] for name, *cells in lines}


def test_table_of_networks_has_the_speeds_of_the_result_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = load_page("models_table")

    def row(case: str, direction: str, rate: float, ratio: float, **setting: Any) -> dict[str, Any]:
        setting = {"dtype": "f32", "layout": "channels_last", "threads": 2} | setting
        ratios = {"eager": ratio, "torch.compile": 0.5}
        return {"case": case, "direction": direction, "images_per_s": rate, "ratios": ratios} | setting

    rows = [
        row("mobilenet_v2 batch 16 224x224", "forward", 70.25, 1.5),
        row("mobilenet_v2 batch 16 224x224", "forward", 40.0, 1.75, threads=1),
        row("mobilenet_v2 batch 16 224x224", "forward", 60.0, 2.0, layout="nchw"),
        row("mobilenet_v2 batch 16 224x224", "backward", 12.0, 0.875),
        row("mobilenet_v2 batch 1 224x224", "forward", 50.0, 3.0),
        row("replknet_31b reduced batch 16 224x224", "forward", 9.0, 4.0),
        row("resnet18 batch 16 224x224", "backward", 30.0, 1.0, dtype="bf16"),
    ]
    machine = {"cpu": "a CPU", "cpu_capability": "AVX2", "torch": "2.14", "git_commit": "0" * 40, "date": "2026-01-02T"}
    results, page = tmp_path / "models_cpu.json", tmp_path / "models.md"
    monkeypatch.setattr(fastconv.models, "list_models", lambda: ["mobilenet_v2", "replknet_31b", "resnet18"])

    def cells() -> dict[str, list[str]]:
        assert table.main(["--no-parity", "--speeds", str(results), "--output", str(page)]) == 0
        return cells_of(page.read_text())

    without = cells()
    assert "Speed: not measured." in page.read_text()
    results.write_text(json.dumps({"machine": machine, "rows": rows}))
    filled = cells()
    assert "Speed: 2 threads of a CPU, AVX2; torch 2.14; fastconv 000000000000; 2026-01-02." in page.read_text()
    # torchvision's documentation says 3504872 parameters and 0.3 G multiply-adds.
    assert filled["mobilenet_v2"][:4] == ["224", "torchvision mobilenet_v2", "3.50", "301"]
    assert filled["mobilenet_v2"][4:] == ["", "70.2, 1.50x", "12.0, 0.88x"]
    assert filled["replknet_31b"][-2:] == filled["resnet18"][-2:] == ["", ""]
    for name, line in without.items():
        assert line == [*filled[name][:-2], "", ""] and len(line) == len(table.HEADER) - 1


def test_document_of_networks_lists_them_with_their_measured_speeds() -> None:
    table = load_page("models_table")
    text, results = table.PAGE.read_text(), table.read_speeds()
    found = {name: cells[-2:] for name, cells in cells_of(text).items()}
    assert table.speed_line(results) in text.splitlines(), "run `python -m benchmarks.models_table`"
    assert found == {name: table.speeds(results, name) for name in fastconv.models.list_models()}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no_such_operator"], "invalid choice: 'no_such_operator'"),
        (["depthwise_conv2d", "--dtype", "f8"], "f8 is not one of f32, f64, bf16, f16"),
        (["table"], "table needs the file that --json wrote"),
        (["gpu-estimate"], "gpu-estimate needs an operator: depthwise_conv2d"),
    ],
)
def test_wrong_arguments_are_named(arguments: list[str], message: str) -> None:
    done = run_benchmarks(*arguments)
    assert done.returncode == 2
    assert message in done.stderr


def test_a_filter_that_matches_nothing_says_so() -> None:
    done = run_benchmarks("depthwise_conv2d", "--quick", "--filter", "no such case")
    assert done.returncode == 2
    assert "No case matches." in done.stdout


@pytest.mark.parametrize("operator", OPERATORS)
def test_every_case_and_setting_has_a_target(operator: str) -> None:
    page = load_page(operator)
    from benchmarks.harness import DIRECTIONS, DTYPES, LAYOUTS, Setting

    names = [case.name for case in page.cases("cpu")]
    assert len(names) == len(set(names))
    for device in ("cpu", "cuda"):
        for case in page.cases(device):
            for direction in DIRECTIONS:
                for dtype in DTYPES:
                    for layout in LAYOUTS:
                        assert page.target_ratio(case, Setting(direction, dtype, layout, device, 1)) >= 0.97


@pytest.fixture
def gpu_counts() -> Any:
    return load_page("gpu_counts")


def test_estimate_divides_counts_by_rates(gpu_counts) -> None:
    """A made-up GPU of two multiprocessors at 1 GHz: 2e9 wavefronts and 8e9 warp instructions a second."""
    gpu = gpu_counts.Gpu("made up", 2, 1e9, dram_bytes=1e9, fp32_flops=64e9, tensor_flops=4096e9, l2_bytes_per_clock=4)
    counts = gpu_counts.Counts(
        dram_bytes=3e9, l2_bytes=8e9, sectors=0, ideal_sectors=0, wavefronts=1e9, ideal_wavefronts=0,
        instructions=16e9, fp32=2e9, mma=3e9,
    )  # fmt: skip
    expected = {"DRAM": 3.0, "L2": 2.0, "shared memory": 0.5, "math": 2.0 + 3.0, "issue": 2.0}
    assert counts.seconds(gpu) == pytest.approx(expected)
    assert counts.scaled(2).seconds(gpu) == pytest.approx({name: 2 * value for name, value in expected.items()})

    call = gpu_counts.KernelCall("forward", operations=128e9, compulsory_bytes=2.5e9, prepare=lambda: lambda: None)
    assert call.floor_seconds(gpu) == 2.5  # 2 s of arithmetic, 2.5 s of DRAM
    bound = gpu_counts.Bound(gpu, counts.seconds(gpu), call.floor_seconds(gpu))
    assert bound.resource == "math" and bound.ratio == pytest.approx(2.0)


@pytest.mark.parametrize("operator", CONVOLUTIONS)
def test_estimate_counts_a_share_of_a_case(operator: str) -> None:
    page = load_page(operator)
    from benchmarks.harness import Setting

    for case in page.cases("cuda"):
        for layout, dtype in (("nchw", "f32"), ("channels_last", "bf16")):
            setting = Setting("all", dtype, layout, "cpu", 1)
            smaller, share = page.reduced(case, setting)
            assert (smaller.height, smaller.width, smaller.kernel) == (case.height, case.width, case.kernel)
            assert 1 <= smaller.batch <= case.batch and 1 <= smaller.channels <= case.channels
            whole, part = page.kernel_calls(case, setting)[0], page.kernel_calls(smaller, setting)[0]
            assert part.operations == pytest.approx(share * whole.operations)


def test_estimate_counts_a_share_of_a_shuffle() -> None:
    page = load_page("channel_shuffle")
    from benchmarks.harness import Setting

    setting = Setting("all", "bf16", "nchw", "cpu", 1)
    for case in page.cases("cuda"):
        smaller, share = page.reduced(case, setting)
        assert (smaller.channels, smaller.width, smaller.groups) == (case.channels, case.width, case.groups)
        whole, part = page.kernel_calls(case, setting)[0], page.kernel_calls(smaller, setting)[0]
        assert part.compulsory_bytes == pytest.approx(share * whole.compulsory_bytes) and 0 < share <= 1


def test_estimate_of_a_call_is_labelled(gpu_counts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sys.path.insert(0, str(ROOT / "tests"))
    from cuda_on_cpu import build
    from test_cuda_on_cpu_devices import CHECKED_DTYPES

    monkeypatch.setenv("CUDA_ON_CPU_DTYPES", CHECKED_DTYPES)  # the same library as that of test_counts.py

    if reason := build.why_unavailable("ptx"):
        pytest.skip(reason)
    file = tmp_path / "estimate.json"
    arguments = ["--dtype", "f32", "--layout", "nchw", "--filter", "^1x96x56x56 k3", "--json", str(file)]
    done = run_benchmarks("gpu-estimate", "depthwise_conv2d", *arguments)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("ESTIMATE") == 2
    rows = json.loads(file.read_text())
    assert [row["call"] for row in rows] == ["forward", "input_grad", "weight_grad"]
    tensor_bytes = 4 * 96 * 56 * 56
    for row in rows:
        assert "ESTIMATE" in row["what"]
        assert set(row["bounds"]) == {"T4", "A100", "L4", "RTX 4090", "H100", "H200", "B200"}
        # Every kernel reads one tensor of this size and another, or writes it; weights and partial sums are small.
        assert 2 * tensor_bytes < row["counts"]["dram_bytes"] < 2.2 * tensor_bytes
        assert row["bounds"]["T4"]["us"] == pytest.approx(1e6 * row["counts"]["dram_bytes"] / 320e9)
        assert row["bounds"]["T4"]["limited_by"] == "DRAM"
