"""The benchmarks run and report what they promise. No time is asserted."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def run_benchmarks(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def quick_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The JSON file and the printed text of a quick run over the smallest case."""
    file = tmp_path_factory.mktemp("benchmarks") / "rows.json"
    arguments = ["--quick", "--filter", "one call", "--budget", "0.01", "--threads", "1", "--json", str(file)]
    done = run_benchmarks("depthwise_conv2d", *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    return file, done.stdout


def test_rows_hold_times_ratios_limit_and_target(quick_run: tuple[Path, str]) -> None:
    rows = json.loads(quick_run[0].read_text())["rows"]
    settings = {(row["direction"], row["dtype"], row["layout"]) for row in rows}
    assert len(rows) == len(settings) == 8  # forward, backward; f32, bf16; nchw, channels_last
    for row in rows:
        assert row["operator"] == "depthwise_conv2d" and row["threads"] == 1 and row["device"] == "cpu"
        assert row["times"]["torch.compile"] == "not measured"
        assert row["times"]["fastconv"]["median_ms"] == row["time_ms"] > 0
        assert row["times"]["torch"]["median_ms"] == pytest.approx(row["ratio"] * row["time_ms"])
        assert row["best_peer"] == "torch" and row["ratios"] == {"torch": row["ratio"]}
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
    assert sum(line.startswith("1x8x8x8 k3 (one call)") for line in lines) == 8
    assert any(line.startswith("8 rows: geometric mean of ratios") for line in lines)


def test_table_prints_markdown_of_a_result(quick_run: tuple[Path, str]) -> None:
    done = run_benchmarks("table", str(quick_run[0]))
    assert done.returncode == 0, done.stderr
    assert "**forward, f32, nchw, 1 thread**" in done.stdout
    widths = {line.count("|") for line in done.stdout.splitlines() if line.startswith("|")}
    assert len(widths) == 1  # every line of every table has as many cells


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no_such_operator"], "invalid choice: 'no_such_operator'"),
        (["depthwise_conv2d", "--dtype", "f8"], "f8 is not one of f32, f64, bf16, f16"),
        (["table"], "table needs the file that --json wrote"),
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


def test_every_case_and_setting_has_a_target() -> None:
    sys.path.insert(0, str(ROOT))
    try:
        from benchmarks import depthwise_conv2d as page
        from benchmarks.harness import DIRECTIONS, DTYPES, LAYOUTS, Setting
    finally:
        sys.path.remove(str(ROOT))
    names = [case.name for case in page.cases("cpu")]
    assert len(names) == len(set(names))
    for device in ("cpu", "cuda"):
        for case in page.cases(device):
            for direction in DIRECTIONS:
                for dtype in DTYPES:
                    for layout in LAYOUTS:
                        assert page.target_ratio(case, Setting(direction, dtype, layout, device, 1)) >= 0.97
