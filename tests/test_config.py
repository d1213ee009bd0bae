from __future__ import annotations

from pathlib import Path

import pytest

from fam_engine.config import ScoreConfig, read_config
from fam_engine.errors import UsageError

FLAGS = {"model": "m", "data": ["a.jsonl"], "out": "o"}


def test_flags_win_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("model: other\nprecision: bf16\nmax-length: 99\ndata: [b.jsonl]\nout: o\n")
    config = read_config(ScoreConfig, {"model": "m", "seed": None}, file)
    assert (config.model, config.precision, config.max_length) == ("m", "bf16", 99)
    assert config.data == ("b.jsonl",)
    assert config.seed == 0


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("presicion: bf16", "did you mean `precision`"),
        ("precision: int8", "`precision`"),
        ("max_length: 1", "`max_length`"),
        ("- a\n- b", "holds no settings"),
        ("a: [", "is not YAML"),
        ("map: {respnse: x}", "did you mean `response`"),
    ],
)
def test_what_does_not_fit_is_named_with_the_remedy(tmp_path: Path, text: str, named: str) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(text)
    with pytest.raises(UsageError, match=r".") as caught:
        read_config(ScoreConfig, FLAGS, file)
    assert named in str(caught.value)
    assert caught.value.exit_code == 2


def test_a_missing_setting_is_named() -> None:
    with pytest.raises(UsageError, match="setting `model`"):
        read_config(ScoreConfig, {"data": ["a"], "out": "o"}, None)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        read_config(ScoreConfig, FLAGS, tmp_path / "no.yaml")
