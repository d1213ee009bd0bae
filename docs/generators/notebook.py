"""The notebook as a page: its text as it is, its code, and below each cell the output that is kept with it.

In: `examples/familiarity.ipynb`, whose outputs `tests/docs/test_examples.py` compares with a run. Out: Markdown. An
extension that runs notebooks would bring a kernel and many packages for what that test does anyway.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

NOTEBOOK = Path(__file__).parents[2] / "examples" / "familiarity.ipynb"


def page() -> str:
    """Give the notebook as Markdown."""
    return "\n".join(_cell(cell) for cell in json.loads(NOTEBOOK.read_text())["cells"])


def _cell(cell: dict[str, Any]) -> str:
    source = "".join(cell["source"])
    if cell["cell_type"] == "markdown":
        return source + "\n"
    printed = "".join(line for output in cell["outputs"] for line in output["text"])
    return f"```python\n{source}\n```\n" + (f"\n```text\n{printed}```\n" if printed else "")
