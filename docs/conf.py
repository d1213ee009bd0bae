"""Settings of the documentation site (`make docs`): Sphinx reads the Markdown of this folder by MyST.

In: the pages, and what `generators/` makes from the program and from raw data into `_generated/` before they are read.
Out: plain pages that fetch nothing. Sphinx because it is kept, documents Python from its own docstrings and fails on a
broken reference; MkDocs was smaller in nothing (167 against 120 MB) and its core has had no release since 2024.
"""

from __future__ import annotations

import sys
from pathlib import Path

from sphinx.application import Sphinx

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from docs.generators import benchmarks, commands, errors, files, notebook, stubs  # noqa: E402
from fam_engine import __version__  # noqa: E402

project = "fam-engine"
version = release = __version__
copyright = "the authors of fam-engine, Apache-2.0"  # noqa: A001 - Sphinx's name
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_generated/*", "generators"]
default_role = "code"
highlight_language = "none"
smartquotes = False  # they would make one dash of --out
html_theme = "furo"
html_title = f"fam-engine {version}"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_show_sphinx = False
html_copy_source = False
myst_heading_anchors = 3
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
python_use_unqualified_type_names = True
nitpicky = False  # types of torch, numpy and pyarrow are documented elsewhere, out of reach without a network

MADE = {
    "commands.md": commands.commands_page,
    "settings.md": commands.settings_page,
    "exit-codes.md": errors.exit_codes,
    "errors.md": errors.error_codes,
    "record-errors.md": errors.record_codes,
    "columns.md": files.columns,
    "bench-score.md": benchmarks.score,
    "bench-gpu.md": benchmarks.gpu,
    "bench-tokenize.md": benchmarks.tokenize,
    "bench-tokenize-threads.md": lambda: benchmarks.tokenize("tokenize_cpu_2_threads"),
    "bench-records.md": benchmarks.records,
    "bench-packing.md": benchmarks.packing,
    "bench-lm-eval.md": benchmarks.lm_eval,
    "compatibility.md": benchmarks.compatibility,
    "notebook.md": notebook.page,
    "tokenizer.rst": stubs.tokenizer,
}


def make_pages(_: Sphinx) -> None:
    """Write what pages include, touching only what has changed."""
    folder = HERE / "_generated"
    folder.mkdir(exist_ok=True)
    for name, make in MADE.items():
        file, text = folder / name, make()
        if not file.exists() or file.read_text(encoding="utf-8") != text:
            file.write_text(text, encoding="utf-8")


def setup(app: Sphinx) -> None:
    """Have the generated parts made before any page is read."""
    app.connect("builder-inited", make_pages)
