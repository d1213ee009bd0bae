from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from fam_engine.data.files import write_folder_whole, write_text_whole, write_whole


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    write_text_whole(file, "old\n")

    def fail(temporary: Path) -> None:
        temporary.write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        write_whole(file, fail)
    assert file.read_text() == "old\n"
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_a_folder_that_cannot_be_removed_is_said_and_removed_with_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(text: str) -> None:
        write_folder_whole(tmp_path / "a", lambda temporary: _write(temporary / "b.txt", text))

    def fail(folder: Path) -> None:
        raise OSError(5, "Input/output error", str(folder))

    write("first")
    with monkeypatch.context() as broken:
        broken.setattr(shutil, "rmtree", fail)
        with pytest.raises(OSError, match="Input/output"):
            write("second")
    assert (tmp_path / "a" / "b.txt").read_text() == "second"
    write("third")
    assert (tmp_path / "a" / "b.txt").read_text() == "third"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def _write(path: Path, text: str) -> None:
    path.write_text(text)
