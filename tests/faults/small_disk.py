"""A program that runs a job on a disk too small for it, again and again, until it has grown enough.

In: a folder, and a command line whose output folder is `out` in it. Out: a line a run, its exit code and what it said;
the results in the folder `kept`. It mounts the disk, so it belongs into a name space of its own (`unshare -rm`), with
which disk and contents go: that is why all runs are made here.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.faults.small_jobs import OUT

_FIRST_KIB, _GROWTH_KIB = 4, 60


def main(folder: Path, line: list[str]) -> None:
    out = folder / OUT
    out.mkdir()
    size = _FIRST_KIB
    _mount(out, f"size={size}k")
    while _run(line, folder):
        size += _GROWTH_KIB
        _mount(out, f"remount,size={size}k")
    shutil.copytree(out, folder / "kept")


def _mount(out: Path, options: str) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", str(out)], check=True)


def _run(line: list[str], folder: Path) -> int:
    """Run the command in a process of its own, and tell of it; give its exit code."""
    errors = folder / "stderr.txt"
    child = os.fork()
    if child == 0:
        os.chdir(folder)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
        sys.argv = ["fam-engine", *line]
        cli.main()
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    print(code, errors.read_text().replace("\n", " ").strip(), flush=True)
    return code


if __name__ == "__main__":
    import tests.faults.preloaded  # noqa: F401 - before the first fork
    from fam_engine.cli import main as cli

    main(Path(sys.argv[1]), sys.argv[2:])
