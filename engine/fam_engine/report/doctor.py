"""What the doctor found, on a terminal: a line a check, its remedy below.

In: the values of the checks. Out: text through rich.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any, Final

from rich.console import Console
from rich.text import Text

from fam_engine.report.wording import visible

_STYLES: Final = {"ok": "green", "warn": "yellow", "fail": "red"}


def print_checks(checks: Sequence[Mapping[str, Any]], console: Console) -> None:
    """Print checks by section.

    Args:
        checks: section, name, level, found, remedy.
        console: Where to print.
    """
    for section, some in groupby(checks, key=lambda check: check["section"]):
        console.print(Text(section, style="bold"))
        for check in some:
            line = Text("  ")
            line.append(f"{check['level']:<4}", style=_STYLES[check["level"]])
            line.append(visible(f"  {check['name']}: {check['found']}"))
            console.print(line, soft_wrap=True)
            if check["remedy"]:
                console.print(Text(visible(f"        -> {check['remedy']}")), soft_wrap=True)
    counts = Counter(check["level"] for check in checks)
    console.print(Text(", ".join(f"{counts[level]} {level}" for level in _STYLES)))
