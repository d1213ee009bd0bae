from __future__ import annotations

import signal
from pathlib import Path

import pytest

from fam_engine.data.children import how_it_ended, start_child


def test_modules_of_the_folder_one_is_in_are_not_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mark = tmp_path / "mark"
    (tmp_path / "json.py").write_text(f"open({str(mark)!r}, 'w')")
    monkeypatch.chdir(tmp_path)
    with start_child("fam_engine.data.template_worker", 10) as child:
        child.communicate(b'{"template": "", "constants": {}, "date": "2024-07-26"}\n')
    assert child.returncode == 0
    assert not mark.exists()


def test_an_end_has_words() -> None:
    assert how_it_ended(7) == "it ended with code 7"
    assert how_it_ended(-signal.SIGSEGV) == "it died of SIGSEGV"
    assert how_it_ended(-signal.SIGXCPU) == "it took too long"
