"""Files and folders that appear whole or not at all, and folders that go so.

In: a path and a function that writes. Out: the finished file under its name, or nothing. Temporary file in the same
folder, fsync, rename, fsync of the folder: after a crash at any moment a reader finds the old file, the new one or
none.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path


def write_whole(path: Path, write: Callable[[Path], None]) -> None:
    """Write a file through a temporary one.

    Args:
        path: The name it is to have.
        write: Writes the content to the path it is given.

    Raises:
        OSError: The disk would not take it; nothing is left behind.
    """
    temporary = path.with_name(f".{path.name}.partial")
    try:
        temporary.unlink(missing_ok=True)  # it may be a link that leads elsewhere
        write(temporary)
        _sync(temporary)
        temporary.rename(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync(path.parent)


def write_folder_whole(path: Path, write: Callable[[Path], None]) -> None:
    """Write a folder of files through a temporary one; one of that name is replaced.

    Args:
        path: The name it is to have. Its parent must be there.
        write: Writes the files into the folder it is given.

    Raises:
        OSError: The disk would not take it, and what was there before is still there; or the new one is, and only
            what it replaced could not be removed, which the next one does.
    """
    temporary, old = (path.with_name(f".{path.name}.{end}") for end in ("partial", "old"))
    _remove(temporary)
    try:
        temporary.mkdir()
        write(temporary)
        for file in temporary.iterdir():
            _sync(file)
        _sync(temporary)
        # A folder cannot be renamed onto a full one; a crash between the two leaves no folder.
        _remove(old)
        if path.exists():
            path.rename(old)
        temporary.rename(path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        if old.exists() and not path.exists():
            old.rename(path)
        raise
    _sync(path.parent)
    _remove(old)


def write_text_whole(path: Path, text: str) -> None:
    """Write a text file through a temporary one."""
    write_whole(path, lambda temporary: _write_text(temporary, text))


def write_json_whole(path: Path, value: object) -> None:
    """Write a value without NaN as a file of indented JSON, in ASCII: names of files may hold what UTF-8 cannot."""
    write_text_whole(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def remove_at_once(folder: Path) -> None:
    """Remove a folder that others may look or write into: all of it goes in one moment.

    What a death in here has left of an earlier one goes, too.
    """
    gone = folder.with_name(f"{folder.name}.old")
    shutil.rmtree(gone, ignore_errors=True)
    if folder.is_dir():
        folder.rename(gone)
        shutil.rmtree(gone)


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", newline="\n")


def _remove(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
