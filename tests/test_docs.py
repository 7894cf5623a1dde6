"""The documentation builds without a warning, and its examples print what it says they do (`make docs`)."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import fastconv
import pytest

ROOT = Path(__file__).resolve().parent.parent
for _package in ("sphinx", "myst_parser", "furo", "matplotlib"):
    pytest.importorskip(_package)


def test_pages(tmp_path: Path) -> None:
    for builder in ("html", "doctest"):
        command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", builder, "docs", str(tmp_path)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]


def test_every_function_has_its_place() -> None:
    def documented(*pages: Path) -> set[str]:
        text = "\n".join(page.read_text() for page in pages)
        return set(re.findall(r"autofunction:: fastconv\.(\w+)", text))

    functions = {name for name in fastconv.__all__ if callable(getattr(fastconv, name))}
    of_models = {"optimize", "restore"}
    assert functions - of_models <= documented(*(ROOT / "docs" / "operators").glob("*.md"))
    assert of_models <= documented(ROOT / "docs" / "usage.md")
