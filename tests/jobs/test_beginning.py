from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest

from fam_engine.data.tokenizer import TextEncoder
from fam_engine.jobs.beginning import note_about_model, opened_otherwise
from tests.data.template_families import FAMILIES, QWEN_3
from tests.jobs.training.small_job import Notes

# As of models that always think.
ALWAYS = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
ALWAYS += "{% if add_generation_prompt %}[assistant]<think>{% endif %}"


def remark(model: Path, tmp_path: Path, source: str, **told: Any) -> str | None:  # noqa: ANN401
    file = tmp_path / "template.jinja"
    file.write_text(source)
    encoder = TextEncoder(model, template=str(file), chat_template_kwargs=told)
    with contextlib.closing(encoder):
        return opened_otherwise(encoder)


def test_a_plain_answer_after_thoughts_is_remarked_upon(tiny_model: Path, tmp_path: Path) -> None:
    said = remark(tiny_model, tmp_path, QWEN_3) or ""
    assert r"asks for an answer with '', but writes a plain one after '<think>\n\n</think>" in said
    assert """give --chat-template-kwargs '{"enable_thinking": false}'""" in said
    said = remark(tiny_model, tmp_path, ALWAYS) or ""
    assert "asks for an answer with '<think>', but writes a plain one after ''" in said
    assert "--chat-template-kwargs" not in said  # it does not read that


# One writes no turns.
@pytest.mark.parametrize("name", sorted(FAMILIES.keys() - {"QWEN_3", "JOINED"}))
def test_other_templates_are_passed_by(tiny_model: Path, tmp_path: Path, name: str) -> None:
    assert remark(tiny_model, tmp_path, FAMILIES[name]) is None


def test_who_has_decided_on_thoughts_is_told_nothing(tiny_model: Path, tmp_path: Path) -> None:
    assert remark(tiny_model, tmp_path, QWEN_3, enable_thinking=False) is None
    with contextlib.closing(TextEncoder(tiny_model, template="none")) as encoder:
        assert opened_otherwise(encoder) is None


def test_a_job_notes_what_transformers_reads_otherwise(shared: Path) -> None:
    told = Notes()
    with contextlib.closing(TextEncoder(shared / "tokenizers" / "phi3_mini")) as encoder:
        note_about_model(encoder, told)
    (note,) = told.notes
    assert "transformers 5.24 leaves out" in note
