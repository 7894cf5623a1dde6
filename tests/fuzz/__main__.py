"""A campaign: see fuzz/__init__.py. Drawing goes on for some minutes in a process of its own, so that one which crashes
or hangs is told of like any other fault: with the call that it made."""

from __future__ import annotations

import argparse
import collections
import functools
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROUND = 200
"""Calls of an operator before the next one's turn."""


def main() -> int:
    parser = argparse.ArgumentParser("python -m fuzz", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-k", dest="text", default="", help="only operators whose name contains this")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        Worker(options).run()
        return 0
    deadline = time.time() + 60 * options.minutes
    counts: collections.Counter[tuple[str, str]] = collections.Counter()
    faults: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        while (seconds := deadline - time.time()) > 1:
            report = Path(folder, str(options.seed))
            command = [sys.executable, "-m", "fuzz", f"--minutes={seconds / 60}", f"--seed={options.seed}"]
            command += ["-k", options.text, "--worker", str(report)]
            done = subprocess.run(command, stderr=subprocess.PIPE, text=True)
            lines = [json.loads(line) for line in report.read_text().splitlines()] if report.exists() else []
            for line in lines:
                if "fault" in line:
                    faults.append(line["fault"])
                else:
                    counts[(line["operator"], line["outcome"])] += line["count"]
            if done.returncode:
                last = report.with_suffix(".last")
                if not last.exists() or not last.read_text():
                    print(done.stderr, file=sys.stderr)
                    return done.returncode
                faults.append(f"exit status {done.returncode}\n{last.read_text()}\n{done.stderr[-3000:]}")
            options.seed += 1
    print_table(counts)
    for fault in dict.fromkeys(faults):
        print(f"\n==== fault\n{fault}")
    return 1 if faults else 0


def print_table(counts: collections.Counter[tuple[str, str]]) -> None:
    outcomes = sorted({outcome for _, outcome in counts})
    print("".join(f"{outcome:>18}" for outcome in outcomes))
    for operator in dict.fromkeys(name for name, _ in counts):
        print("".join(f"{counts[(operator, outcome)]:18}" for outcome in outcomes), operator)
    print(f"{counts.total()} calls")


class Worker:
    """Draws and judges calls until its time is up. `report` gets a line for each fault and each count, and `last` the
    call that is being made."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.report = Path(options.worker).open("a", buffering=1)  # noqa: SIM115
        self.last = Path(options.worker).with_suffix(".last").open("w")
        self.counts: collections.Counter[tuple[str, str]] = collections.Counter()

    def one(self, operator: Any, is_right: bool, data: Any) -> None:
        from fuzz.changes import changed
        from fuzz.judge import check_any, check_right

        arguments = operator.draw(data.draw)
        if not is_right:
            arguments = changed(data.draw, arguments)
        call = f"{operator.name}: {arguments}"
        self.last.seek(0)
        self.last.truncate()
        self.last.write(call)
        self.last.flush()
        try:
            outcome = check_right(operator, arguments) if is_right else check_any(operator, arguments)
        except Exception as error:
            raise AssertionError(f"{call}\n{type(error).__name__}: {error}") from error
        self.counts[(operator.name, outcome)] += 1

    def write_counts(self) -> None:
        for (operator, outcome), count in self.counts.items():
            print(json.dumps({"operator": operator, "outcome": outcome, "count": count}), file=self.report)
        self.counts.clear()

    def run(self) -> None:
        from hypothesis import HealthCheck, Phase, given, seed, settings
        from hypothesis import strategies as st

        from fuzz.operators import OPERATORS

        deadline, number = time.time() + 60 * self.options.minutes, 1_000_000 * self.options.seed
        kinds = [(op, is_right) for op in OPERATORS if self.options.text in op.name for is_right in (True, False)]
        rules = settings(
            max_examples=ROUND, deadline=None, database=None, phases=[Phase.generate, Phase.shrink],
            suppress_health_check=list(HealthCheck), report_multiple_bugs=False,
        )  # fmt: skip
        while time.time() < deadline and kinds:
            for kind in list(kinds):
                number += 1
                draw_and_judge = functools.partial(self.one, *kind)
                try:
                    seed(number)(rules(given(data=st.data())(lambda data: draw_and_judge(data))))()  # noqa: B023
                except AssertionError as error:
                    kinds.remove(kind)  # one fault of each is enough to look at
                    print(json.dumps({"fault": str(error)}), file=self.report)
                self.write_counts()
                if time.time() > deadline:
                    break


sys.exit(main())
