from __future__ import annotations

import json
from pathlib import Path

import pytest

from fam_engine.data.templates import Template, find_template, with_kwargs
from fam_engine.errors import ModelRefusedError, UsageError

NAMED = [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}]


def write_config(folder: Path, template: object) -> Path:
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps({"chat_template": template}))
    return file


def test_which_template_is_used(tmp_path: Path) -> None:
    assert find_template(tmp_path, "auto", {}) is None
    config = write_config(tmp_path, "C")
    assert find_template(tmp_path, "auto", {}) == Template("C", {}, config)
    write_config(tmp_path, NAMED)
    assert find_template(tmp_path, "auto", {}) == Template("D", {}, config, "T")
    write_config(tmp_path, NAMED[1:])
    assert find_template(tmp_path, "auto", {}) == Template("D", {}, config)
    write_config(tmp_path, NAMED)
    own = tmp_path / "chat_template.jinja"
    own.write_text("J")
    assert find_template(tmp_path, "auto", {}) == Template("J", {}, own)
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "tool_use.jinja").write_text("A")
    assert find_template(tmp_path, "auto", {}) == Template("J", {}, own, "A")
    assert find_template(tmp_path, "none", {}) is None
    (tmp_path / "mine").write_text("M")
    mine = tmp_path / "mine"
    assert find_template(tmp_path, str(mine), {}) == Template("M", {}, mine)
    with pytest.raises(UsageError, match="cannot be read"):
        find_template(tmp_path, str(tmp_path / "no"), {})


def test_a_template_in_a_hub_cache_is_found(tmp_path: Path) -> None:
    (tmp_path / "blobs").mkdir()
    folder = tmp_path / "snapshots" / "0123abc"
    (folder / "additional_chat_templates").mkdir(parents=True)
    for blob, name in (
        ("J", "chat_template.jinja"),
        ("A", "additional_chat_templates/tool_use.jinja"),
    ):
        (tmp_path / "blobs" / blob).write_text(blob)
        (folder / name).symlink_to(tmp_path / "blobs" / blob)
    found = find_template(folder, "auto", {})
    assert found is not None
    assert (found.source, found.for_tools) == ("J", "A")


def test_what_a_template_is_told_needs_one_and_is_not_the_conversation() -> None:
    template = Template("T", {})
    assert with_kwargs(None, {}) is None
    assert with_kwargs(template, {"a": [1]}) == Template("T", {}, kwargs={"a": [1]})
    with pytest.raises(UsageError, match="no chat template to read them"):
        with_kwargs(None, {"a": 1})
    for name in ("messages", "tools", "documents", "add_generation_prompt"):
        with pytest.raises(UsageError, match=f"`{name}`, which comes from the records"):
            with_kwargs(template, {name: None})


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ([{"name": "tool_use", "template": "T"}], "no template named `default`"),
        ([], "no template named `default`"),
        ([{"name": "default", "template": 1}], "neither text nor a list of named texts"),
        ([{"name": ["default"], "template": "D"}], "neither text nor a list of named texts"),
        (7, "neither text nor a list of named texts"),
    ],
)
def test_templates_without_a_plain_one_are_refused(
    tmp_path: Path, template: object, said: str
) -> None:
    write_config(tmp_path, template)
    with pytest.raises(ModelRefusedError, match=said):
        find_template(tmp_path, "auto", {})
