from __future__ import annotations

from pathlib import Path

import pytest

from fam_engine.data.files import write_text_whole, write_whole


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
