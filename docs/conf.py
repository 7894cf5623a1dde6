"""Sphinx: `make docs` writes the pages to docs/_build/html. Warnings are errors there."""

from __future__ import annotations

import sys
from pathlib import Path

DOCS = Path(__file__).resolve().parent
sys.path[:0] = [str(DOCS.parent), str(DOCS)]

import fastconv  # noqa: E402
import pictures  # noqa: E402

from benchmarks import plots  # noqa: E402

project = "fastconv"
copyright = "fastconv contributors"
version = release = fastconv.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.doctest",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
myst_enable_extensions = ["attrs_inline", "colon_fence", "dollarmath"]
myst_heading_anchors = 3
autodoc_typehints = "none"  # docstrings give shapes and dtypes, which types do not
autodoc_member_order = "bysource"
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"fastconv {version}"
html_static_path = ["_drawn"]
default_role = "literal"  # docstrings write `code`, not roles

DRAWN = DOCS / "_drawn"
pictures.draw(DRAWN)
plots.draw(DRAWN)
