"""Measures an operator of fastconv against its peers, row by row.

Examples:
    python -m benchmarks depthwise_conv2d --quick
    python -m benchmarks depthwise_conv2d --threads 1,2 --json benchmarks/results/depthwise_conv2d.json
    python -m benchmarks models --filter resnest --direction backward
    python -m benchmarks table benchmarks/results/depthwise_conv2d.json
    python -m benchmarks figures
    python -m benchmarks gpu-estimate depthwise_conv2d --dtype f32 --filter k7
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import json
import logging
import re
import sys
from pathlib import Path

OPERATORS = (
    "depthwise_conv2d",
    "grouped_conv2d",
    "deform_conv2d",
    "channel_shuffle",
    "split_attention",
    "cbam",
    "deform_aggregate2d",
)


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    def words(text: str) -> list[str]:
        return [word.strip().lower() for word in text.split(",") if word.strip()]

    parser = argparse.ArgumentParser(
        "python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "what",
        choices=(*OPERATORS, "models", "table", "figures", "plots", "gpu-estimate"),
        help="an operator, `table` to print a result file, `figures` to write the documents' tables from "
        "benchmarks/results, `plots` to draw them, or `gpu-estimate` for what CUDA kernels take at least",
    )
    parser.add_argument(
        "of",
        nargs="?",
        help="with table: a file that --json wrote; with plots: a folder; with gpu-estimate: an operator",
    )
    parser.add_argument("--quick", action="store_true", help="few cases, short timing, no torch.compile, one thread")
    parser.add_argument("--threads", type=words, help="CPU threads, such as 1,2 (default: 1 and all)")
    parser.add_argument("--dtype", type=words, default=["f32", "bf16"], help="of f32, f64, bf16, f16 (f32,bf16)")
    parser.add_argument("--layout", type=words, default=["nchw", "channels_last"], help="nchw,channels_last")
    parser.add_argument("--direction", type=words, default=["forward", "backward"], help="forward,backward")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--filter", default="", help="only the cases whose name matches this regular expression")
    parser.add_argument(
        "--compile", action=argparse.BooleanOptionalAction, help="a torch.compile column (default: unless --quick)"
    )
    parser.add_argument("--budget", type=float, help="seconds of timing each column of a row gets (0.4; --quick 0.1)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the rows and the machine to FILE")
    options = parser.parse_args(arguments)
    if options.what == "table" and options.of is None:
        parser.error("table needs the file that --json wrote")
    if options.what == "plots" and options.of is None:
        parser.error("plots needs a folder to write to")
    if options.what == "gpu-estimate" and options.of not in OPERATORS:
        parser.error(f"gpu-estimate needs an operator: {', '.join(OPERATORS)}")
    for name, known in (
        ("dtype", ("f32", "f64", "bf16", "f16")),
        ("layout", ("nchw", "channels_last")),
        ("direction", ("forward", "backward")),
    ):
        if unknown := set(getattr(options, name)) - set(known):
            parser.error(f"--{name}: {', '.join(sorted(unknown))} is not one of {', '.join(known)}")
    return options


def estimate(options: argparse.Namespace, pattern: re.Pattern[str]) -> int:
    from benchmarks import gpu_counts, gpu_estimate, harness

    if reason := gpu_counts.load_kernels(options.of):
        print(reason, file=sys.stderr)
        return 2
    page: gpu_counts.CountedPage = importlib.import_module(f"benchmarks.{options.of}")  # type: ignore[assignment]
    pairs = itertools.product(options.dtype, options.layout)
    settings = [harness.Setting("all", dtype, layout, "cpu", 1) for dtype, layout in pairs]
    return gpu_estimate.run(page, settings, lambda name: pattern.search(name) is not None, options.json)


def main(arguments: list[str] | None = None) -> int:
    options = parse_arguments(arguments)
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # warns where there is nvcc and no GPU
    from benchmarks import harness  # imports torch, which --help does without

    if options.what == "table":
        print(harness.markdown_tables(json.loads(Path(options.of).read_text())))
        return 0

    if options.what == "figures":
        from benchmarks import figures

        print("written:", *figures.write())
        return 0
    if options.what == "plots":
        from benchmarks import plots  # imports matplotlib, which nothing else here needs

        print("written:", *plots.draw(Path(options.of)))
        return 0

    pattern = re.compile(options.filter)
    if options.what == "gpu-estimate":
        return estimate(options, pattern)

    import torch

    everything = torch.get_num_threads()
    if options.device == "cuda":
        if not torch.cuda.is_available():
            print("This torch sees no CUDA device.", file=sys.stderr)
            return 2
        threads = [everything]
    elif options.threads:
        threads = [int(count) for count in options.threads]
    else:
        threads = [1] if options.quick else sorted({1, everything})
    settings = [
        harness.Setting(direction, dtype, layout, options.device, count)
        for count, direction, dtype, layout in itertools.product(
            threads, options.direction, options.dtype, options.layout
        )
    ]
    page: harness.Page = importlib.import_module(f"benchmarks.{options.what}")  # type: ignore[assignment]
    printer = harness.TablePrinter(page.PEERS)
    machine = harness.describe_machine(options.device)

    def report(setting: harness.Setting, rows: list[harness.Row]) -> None:
        printer(setting, rows[-1])
        if options.json:  # after every row, so that a long run that is stopped leaves what it had
            harness.write_json(options.json, options.what, machine, rows)

    rows = harness.run(
        page,
        harness.Options(
            settings=settings,
            quick=options.quick,
            with_compile=not options.quick if options.compile is None else options.compile,
            budget_s=options.budget or (0.1 if options.quick else 0.4),
            only=lambda name: pattern.search(name) is not None,
        ),
        report,
    )
    print()
    print("\n".join(harness.summary_lines(rows)))
    if options.json:
        print(f"written: {options.json}")
    if not rows:
        return 2
    return 0 if all(row["correct"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
