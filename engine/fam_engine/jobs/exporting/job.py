"""The export job from its settings to its file.

In: an `ExportConfig` and somebody to tell about progress. Out: one JSON Lines file, whole or absent, and the summary,
which names the records left out and holds what goes into the tool's own settings. Records pass through one at a time.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fam_engine.config import ExportConfig
from fam_engine.data.files import write_whole
from fam_engine.data.json_lines import json_line
from fam_engine.errors import InputError, RecordError, UsageError
from fam_engine.jobs.data_files import find_distinct_files, note_unseen_columns
from fam_engine.jobs.exporting.formats import FORMATS
from fam_engine.jobs.interrupts import Interrupts
from fam_engine.jobs.journal import storage_errors
from fam_engine.jobs.outcome import JobOutcome
from fam_engine.jobs.selection.records import iterate_records

if TYPE_CHECKING:
    # Importing it for real would load torch, which an export does without.
    from fam_engine.jobs.data_files import DataFile
    from fam_engine.jobs.progress import Progress

# So many records left out are named; the others are counted.
_NAMED = 5


def run_export(config: ExportConfig, progress: Progress) -> JobOutcome:
    """Write records in another trainer's format.

    Raises:
        UsageError: The output is one of the inputs.
        InputError: A file is missing, or not one record can be exported.
        StorageError: The disk would not take the file; what was there before is still there.
        Interrupted: A signal came; nothing was written.
    """
    files = find_distinct_files(config.data)
    out = config.out
    if any(os.path.realpath(file.path) == os.path.realpath(out) for file in files):
        raise UsageError(f"--out {out} is the data itself", code="E_OUT", hint="name another file")
    progress.start("writing", None, "records")
    note_unseen_columns(files, config.map, progress.note)
    export = _Export(config, files)
    with Interrupts() as interrupts, storage_errors(out):
        advance = interrupts.after(progress.advance)

        def write(temporary: Path) -> None:
            with temporary.open("wb") as file:
                for line in export.lines():
                    file.write(line)
                    advance(1)
            export.check_some()

        out.parent.mkdir(parents=True, exist_ok=True)
        write_whole(out, write)
    return JobOutcome(export.summary(), export.num_read - export.num_exported)


class _Export:
    """Records on their way into a file, and what became of them."""

    def __init__(self, config: ExportConfig, files: tuple[DataFile, ...]) -> None:
        self._config = config
        self._files = files
        self._format = FORMATS[config.format]
        self._codes: Counter[str] = Counter()
        self._named: list[dict[str, Any]] = []
        self.num_read = 0
        self.num_exported = 0

    def lines(self) -> Iterator[bytes]:
        """Give a line of JSON a record; count and name those that cannot be exported."""
        records = iterate_records(self._files, self._config.map, self._config.limit)
        for index, row, record in records:
            self.num_read += 1
            try:
                if isinstance(record, RecordError):
                    raise record
                line = json_line(self._format.row(record))
            except RecordError as error:
                self._leave_out(self._files[index].name, row.line, error)
                continue
            self.num_exported += 1
            yield line

    def _leave_out(self, file: str, line: int, error: RecordError) -> None:
        self._codes[error.code] += 1
        if len(self._named) < _NAMED:
            place = {"file": file, "line": line}
            self._named.append({**place, "code": error.code, "reason": error.reason})

    def check_some(self) -> None:
        """Refuse to leave an empty file."""
        if self.num_exported:
            return
        if not self._named:
            names = ", ".join(file.name for file in self._files)
            message = "holds no records, expected at least one"
            raise InputError(message, code="E_INPUT_EMPTY", where=names)
        first = self._named[0]
        raise InputError(
            f"not one record can be exported; the first fault is {first['code']}: {first['reason']}",
            code="E_INPUT_UNUSABLE",
            where=f"{first['file']}:{first['line']}",
        )

    def summary(self) -> dict[str, Any]:
        """Say what became of the records, and what the tool must be told."""
        return {
            "command": "export",
            "records": {
                "read": self.num_read,
                "exported": self.num_exported,
                "left_out": self.num_read - self.num_exported,
                "left_out_by_code": dict(self._codes),
            },
            "first_left_out": self._named,
            "tool_settings": self._format.settings(self._config.out),
            "settings": self._config.model_dump(mode="json"),
        }
