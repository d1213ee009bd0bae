from __future__ import annotations

import json
from pathlib import Path

import pytest

from fam_engine.data.templates import Template, find_template
from fam_engine.errors import UsageError


def test_which_template_is_used(tmp_path: Path) -> None:
    assert find_template(tmp_path, "auto", {}) is None
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"chat_template": [{"name": "default", "template": "D"}]})
    )
    assert find_template(tmp_path, "auto", {}) == Template(
        "D", {}, tmp_path / "tokenizer_config.json"
    )
    (tmp_path / "chat_template.jinja").write_text("J")
    assert find_template(tmp_path, "auto", {}) == Template(
        "J", {}, tmp_path / "chat_template.jinja"
    )
    assert find_template(tmp_path, "none", {}) is None
    (tmp_path / "mine").write_text("M")
    assert find_template(tmp_path, str(tmp_path / "mine"), {}) == Template(
        "M", {}, tmp_path / "mine"
    )
    with pytest.raises(UsageError, match="cannot be read"):
        find_template(tmp_path, str(tmp_path / "no"), {})
