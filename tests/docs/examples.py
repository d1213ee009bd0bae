"""What a page shows a reader typing, run for real, and its output compared with what the page says.

In: a page whose `console` blocks hold commands after `$ ` with their output below, and whose `python` blocks are
followed by a `text` block with what they print; or a notebook. Out: what each shows and prints, and the same page with
the output as it is now. Commands share a folder, as a reader's would; only standard output is shown. Computed figures
may differ a little between processors: words must be equal, numbers within 5 % (or one last digit), durations anything.

`python -m tests.docs.examples` rewrites the pages after a change of what the program prints.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
TUTORIAL = ROOT / "docs" / "tutorial.md"
NOTEBOOK = ROOT / "examples" / "familiarity.ipynb"
BLOCK = re.compile(r"```(console|python|text)\n(.*?)```", re.DOTALL)
NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?")
DURATION = re.compile(r"\d[\d,.]* ?(?:s|ms|min|h)\b")


def run_page(page: str, folder: Path) -> Iterator[tuple[str, str, str]]:
    """Run a page's blocks in order; give (what was typed, what the page shows, what was printed)."""
    blocks = list(BLOCK.finditer(page))
    names: dict[str, Any] = {}
    for block, following in zip(blocks, [*blocks[1:], None], strict=True):
        if block[1] == "console":
            for typed, shown in commands(block[2]):
                yield typed, shown, run_command(typed, folder)
        elif block[1] == "python":
            assert following is not None
            assert following[1] == "text", "a python block without its output"
            yield block[2], following[2], run_code(block[2], names, folder)


def commands(block: str) -> Iterator[tuple[str, str]]:
    """Split a console block into commands, here-documents included, and the output below each."""
    for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
        here = "<<'END'" in part
        end = re.search(r"^END\n" if here else r"(?<!\\)\n", part, re.MULTILINE)
        assert end is not None, part
        yield part[: end.end()], part[end.end() :]


def run_command(typed: str, folder: Path) -> str:
    """Run a command as a shell of 80 columns would."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    env = os.environ | {"PATH": path, "COLUMNS": "80", "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        ["bash", "-c", typed], cwd=folder, env=env, capture_output=True, text=True, check=False
    )
    assert run.stdout or run.returncode == 0, run.stderr
    return run.stdout


def run_code(code: str, names: dict[str, Any], folder: Path) -> str:
    """Run Python whose names stay for the next piece; give what it prints."""
    printed = io.StringIO()
    with contextlib.chdir(folder), contextlib.redirect_stdout(printed):
        exec(code, names)
    return printed.getvalue()


def is_same(shown: str, printed: str) -> bool:
    """Whether words are equal and numbers close; blanks at ends of lines and lengths of rules count for nothing."""
    one, two = (DURATION.sub("(duration)", text) for text in (shown, printed))
    if _words(one) != _words(two):
        return False
    pairs = zip(NUMBER.findall(one), NUMBER.findall(two), strict=True)
    return all(_is_close(*pair) for pair in pairs)


def _words(text: str) -> list[str]:
    return re.sub("─+", "─", NUMBER.sub("#", text)).split()


def _is_close(one: str, two: str) -> bool:
    decimals = len(one.partition(".")[2])
    a, b = (float(number.replace(",", "")) for number in (one, two))
    return abs(a - b) <= max(0.05 * abs(a), 1.01 * 10**-decimals)


def read_notebook() -> dict[str, Any]:
    """Give the notebook."""
    notebook: dict[str, Any] = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    return notebook


def run_notebook(notebook: dict[str, Any], folder: Path) -> Iterator[tuple[dict[str, Any], str]]:
    """Run its cells of code in order; give each with what it prints. Cells are plain Python."""
    names: dict[str, Any] = {}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            yield cell, run_code("".join(cell["source"]), names, folder)


def shown_by(cell: dict[str, Any]) -> str:
    """Give the output that is kept with a cell."""
    return "".join(line for output in cell["outputs"] for line in output["text"])


def main() -> None:
    """Write into the tutorial and the notebook what is printed now, where that is not the same."""
    page = TUTORIAL.read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory() as folder:
        for typed, shown, printed in run_page(page, Path(folder)):
            if not is_same(shown, printed):
                now = "".join(f"{line.rstrip()}\n" for line in printed.splitlines())
                below = "```\n\n```text\n" if f"```python\n{typed}" in page else ""
                page = page.replace(f"{typed}{below}{shown}", f"{typed}{below}{now}", 1)
    TUTORIAL.write_text(page, encoding="utf-8")
    notebook = read_notebook()
    with tempfile.TemporaryDirectory() as folder:
        for cell, printed in run_notebook(notebook, Path(folder)):
            if not is_same(shown_by(cell), printed):
                lines = printed.splitlines(keepends=True)
                cell["outputs"] = [{"name": "stdout", "output_type": "stream", "text": lines}]
    NOTEBOOK.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
