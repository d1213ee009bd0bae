from __future__ import annotations

import json
from pathlib import Path

import pytest

from fam_engine.data.records import Message
from fam_engine.data.rendering import Renderer
from fam_engine.data.templates import Template, find_template
from fam_engine.errors import ModelRefusedError, RecordError, UsageError

ASK = [Message("user", "Hi")]
PLAIN = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"


def render(source: str, *, turns: list[Message] | None = None, **constants: str) -> str:
    with Renderer(Template(source, constants)) as renderer:
        return renderer.render(turns or ASK, add_generation_prompt=True)


def test_real_templates_render_as_transformers_renders_them(shared: Path) -> None:
    from transformers import AutoTokenizer

    turns = [Message("system", "Be kind."), Message("user", "Hi"), Message("assistant", "Hello")]
    turns.append(Message("user", "Bye"))
    for name in ("llama3", "qwen2.5", "qwen3", "phi3_mini"):
        folder = shared / "tokenizers" / name
        config = json.loads((folder / "tokenizer_config.json").read_text())
        constants = {
            key: value if isinstance(value, str) else value["content"]
            for key, value in config.items()
            if key.endswith("_token") and value is not None and not isinstance(value, bool)
        }
        template = find_template(folder, "auto", constants)
        assert template is not None
        theirs = AutoTokenizer.from_pretrained(folder).apply_chat_template(
            [vars(turn) for turn in turns], tokenize=False, add_generation_prompt=True
        )
        with Renderer(template) as renderer:
            assert renderer.render(turns, add_generation_prompt=True) == theirs


def test_helpers_of_transformers_are_there() -> None:
    assert render("{{ {'a': '<é>'} | tojson }}") == '{"a": "<é>"}'
    assert render("{{ strftime_now('%d %b %Y') }}") == "26 Jul 2024"
    assert render("{% generation %}x{% endgeneration %}{{ bos_token }}", bos_token="<s>") == "x<s>"


def test_a_refusing_template_costs_one_record_and_says_why() -> None:
    source = "{% if messages[0].content == 'no' %}{{ raise_exception('not that') }}{% endif %}ok"
    with Renderer(Template(source, {})) as renderer:
        with pytest.raises(RecordError, match="not that"):
            renderer.render([Message("user", "no")], add_generation_prompt=True)
        assert renderer.render(ASK, add_generation_prompt=True) == "ok"


@pytest.mark.parametrize(
    "bomb",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{{ '%999999999d' % 1 }}",
        "{{ ('x' * 100000) * 100 }}",
        "{% for a in range(99999) %}{{ 'x' * 1000 }}{% endfor %}",
    ],
)
def test_templates_cannot_take_time_or_memory(bomb: str) -> None:
    source = "{% if messages[0].content == 'bomb' %}" + bomb + "{% endif %}ok"
    with Renderer(Template(source, {})) as renderer:
        with pytest.raises(RecordError) as caught:
            renderer.render([Message("user", "bomb")], add_generation_prompt=True)
        assert caught.value.code in ("E_TEMPLATE", "E_TEMPLATE_LIMIT")
        assert renderer.render(ASK, add_generation_prompt=True) == "ok"


def test_templates_cannot_reach_python() -> None:
    with pytest.raises(RecordError, match="unsafe"):
        render("{{ messages.__class__.__mro__ }}")


def test_a_template_that_does_not_compile_is_refused() -> None:
    with pytest.raises(ModelRefusedError, match="does not compile"):
        Renderer(Template("{% for %}", {}))


def test_which_template_is_used(tmp_path: Path) -> None:
    assert find_template(tmp_path, "auto", {}) is None
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"chat_template": [{"name": "default", "template": "D"}]})
    )
    assert find_template(tmp_path, "auto", {}) == Template("D", {})
    (tmp_path / "chat_template.jinja").write_text("J")
    assert find_template(tmp_path, "auto", {}) == Template("J", {})
    assert find_template(tmp_path, "none", {}) is None
    (tmp_path / "mine").write_text("M")
    assert find_template(tmp_path, str(tmp_path / "mine"), {}) == Template("M", {})
    with pytest.raises(UsageError, match="cannot be read"):
        find_template(tmp_path, str(tmp_path / "no"), {})
