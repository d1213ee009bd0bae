"""The shape of a finding. Apart from what finds things, so that a report can be made without torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fam_engine.errors import FamEngineError

Level = Literal["ok", "warn", "fail"]


@dataclass(frozen=True)
class Check:
    """One finding.

    Attributes:
        section: What it belongs to, such as `versions`.
        name: What was looked at.
        level: `warn`: something works less well, or not at all, that not everybody needs. `fail`: commands fail.
        found: What was found.
        remedy: What to do; empty where nothing needs doing.
    """

    section: str
    name: str
    level: Level
    found: str
    remedy: str = ""


def refused_check(section: str, error: FamEngineError) -> Check:
    """Make a finding of the error a command would end with."""
    where = f"{error.where}: " if error.where else ""
    return Check(section, "refused", "fail", f"{where}{error.message}", error.hint or "")
