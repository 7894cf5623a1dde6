"""Writes docs/figures.md and the README's summary from benchmarks/results/*.json, so that neither holds a figure that
no run gave: `python -m benchmarks figures` (tests/test_benchmarks.py compares).
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness import NOT_SLOWER, OURS, ROOT, Row, describe_row, summarise

RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "figures.md"
README = ROOT / "README.md"
SUMMARY = re.compile(r"(?<=<!-- python -m benchmarks figures -->\n).*?(?=<!-- end of figures -->)", re.DOTALL)

COLUMNS = (("f32", "nchw"), ("f32", "channels_last"), ("bf16", "nchw"), ("bf16", "channels_last"))
NAMES = [f"{dtype} {'NCHW' if layout == 'nchw' else layout}" for dtype, layout in COLUMNS]
Group = tuple[str, str, str, list[Row]]
"""Operator, direction, place, and their rows."""


def write() -> list[Path]:
    """Writes both; returns the files."""
    results = read_results()
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page(results))
    README.write_text(SUMMARY.sub(lambda match: summary(results), README.read_text()))
    return [PAGE, README]


def read_results() -> list[dict[str, Any]]:
    """The result files of operators on CPUs and GPUs, in the order of their names."""
    files = sorted(RESULTS.glob("*.json"))
    contents = [json.loads(file.read_text()) | {"file": file.stem} for file in files]
    return [content for content in contents if content.get("rows") and "times" in content["rows"][0]]


def groups_of(content: dict[str, Any]) -> Iterator[Group]:
    def place(row: Row) -> str:
        if row["device"] != "cpu":
            return str(row["device"])
        threads = "1 thread" if row["threads"] == 1 else f"{row['threads']} threads"
        return f"{content['machine']['cpu_capability']}, {threads}"

    def key(row: Row) -> tuple[str, str, str]:
        return row["operator"], row["direction"], place(row)

    for names, group in itertools.groupby(content["rows"], key):
        yield *names, list(group)


def table(header: Sequence[str], lines: Iterable[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *lines)]


def summary(results: Sequence[dict[str, Any]]) -> str:
    """A line for each operator, direction and place: geometric means of the ratios, the worst, how many are lost."""
    lines = []
    for operator, direction, place, rows in itertools.chain.from_iterable(map(groups_of, results)):
        columns = [[row for row in rows if (row["dtype"], row["layout"]) == column] for column in COLUMNS]
        means = [f"{summarise(column)['geomean_ratio']:.2f}" if column else "-" for column in columns]
        whole = summarise(rows)
        lost = f"{len(whole['rows_below_0.97'])} of {whole['rows']}"
        lines.append([f"`{operator}`", direction, place, *means, f"{whole['worst_ratio']:.2f}", lost])
    header = ["operator", "direction", "", *NAMES, "worst row", "rows slower"]
    return "\n".join(["", *table(header, lines), "", ""])


def page(results: Sequence[dict[str, Any]]) -> str:
    """Every measured row: fastconv's time and the ratio of the fastest peer's to it."""
    text = [
        "# Figures",
        "",
        "Made from `benchmarks/results/*.json` by `python -m benchmarks figures`; the README says how to measure.",
        "A cell is fastconv's median time and how many times faster than the fastest peer it is; below 1: slower.",
        "Of networks also images a second, and the most memory that a call takes (in brackets: that the peer's takes).",
        f"In *italics*: slower than {NOT_SLOWER}. The result files hold peers' times, limits and targets too.",
    ]
    for content in results:
        machine, rows = content["machine"], content["rows"]
        text += ["", f"## {content['operator']}, {heading_place(content)}", "", *introduction(machine, rows)]
        for _, direction, place, group in groups_of(content):
            text += ["", f"### {direction}, {place}", "", *table(["case", *NAMES], cases(group))]
    return "\n".join(text) + "\n"


def heading_place(content: dict[str, Any]) -> str:
    places = dict.fromkeys(place for _, _, place, _ in groups_of(content))
    return " and ".join(places)


def machine_line(machine: dict[str, Any]) -> str:
    place = machine.get("gpu") or f"{machine['cpu']}, {machine['cpu_capability']}"
    return f"{place}; torch {machine['torch']}; fastconv {machine['git_commit'][:12]}; {machine['date'][:10]}."


def introduction(machine: dict[str, Any], rows: Sequence[Row]) -> list[str]:
    peers = [
        name + ("" if any(name in row["ratios"] for row in rows) else " (not measured)")
        for name in rows[0]["times"]
        if name != OURS
    ]
    whole = summarise(rows)
    targets = f"Targets met: {whole['targets_met']} of {whole['rows']}."
    return [
        machine_line(machine),
        f"Peers: {', '.join(peers)}. Geometric mean {whole['geomean_ratio']:.2f}, worst {whole['worst_ratio']:.2f}",
        f"({describe_row(min(rows, key=lambda row: row['ratio']))}). {targets}",
    ]


def cases(rows: Sequence[Row]) -> Iterator[list[str]]:
    found = {(row["case"], row["dtype"], row["layout"]): row for row in rows}
    for case in dict.fromkeys(row["case"] for row in rows):
        cells = [found.get((case, *column)) for column in COLUMNS]
        yield [case, *(cell(row) if row else "-" for row in cells)]


def cell(row: Row) -> str:
    digits = 3 if row["time_ms"] < 1 else 2
    text = f"{row['time_ms']:.{digits}f} ms, {row['ratio']:.2f}x"
    if "images_per_s" in row:
        peer = row["best_peer"]
        text += f", {row['images_per_s']:.1f} images/s, {row['peak_mib'][OURS]:.0f} MiB ({row['peak_mib'][peer]:.0f})"
    return f"*{text}*" if row["ratio"] < NOT_SLOWER else text
