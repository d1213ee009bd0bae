from __future__ import annotations

import dataclasses
import json

import jinja2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fam_engine.data import template_compiling
from fam_engine.data.compiled_templates import CompiledTemplate, Shape
from fam_engine.data.template_compiling import MAX_TURNS, ShapeCompiler
from fam_engine.data.template_sandbox import TemplateSource, compile_template
from fam_engine.data.template_tracing import Tracer
from fam_engine.data.traced_text import UntraceableError
from tests.conftest import SHARED
from tests.data.template_families import CHATML, DATE, FAMILIES, compiled, rendered, source


def shared_templates() -> dict[str, TemplateSource]:
    found = {}
    for file in sorted(SHARED.glob("tokenizers/*/tokenizer_config.json")):
        config = json.loads(file.read_text())
        names = {n: v for n, v in config.items() if n.endswith("_token") and v is not None}
        texts = {n: v["content"] if isinstance(v, dict) else v for n, v in names.items()}
        constants = {n: text for n, text in texts.items() if isinstance(text, str)}
        if config.get("chat_template"):
            found[file.parent.name] = TemplateSource(config["chat_template"], constants, DATE)
    return found


TEMPLATES = {name: source(text) for name, text in FAMILIES.items()} | shared_templates()
SPECIAL = ("<s>", "</s>", "<|im_end|>", "<|eot_id|>", "[INST]", "<|end|>", "<start_of_turn>")
GUARDED = ("</think>", "<think>", "<tool>", "</tool>", "<tool_response>", "\n")
BLANKS = (" ", "\n", "\t", "\x1c", "\x85", "\u00a0", "\u2003", "\u3000", "\u200b", "\ufeff")
contents = st.one_of(
    st.sampled_from(["", *SPECIAL, *GUARDED, *BLANKS]),
    st.text(max_size=20),
    st.lists(st.sampled_from([*SPECIAL, *GUARDED, *BLANKS, "a", "word", "é"]), max_size=6).map(
        "".join
    ),
)


@st.composite
def conversations(draw: st.DrawFn) -> list[tuple[str, str]]:
    """One to six turns that alternate, with or without a system turn before them."""
    system = [("system", draw(contents))] if draw(st.booleans()) else []
    roles = ["user", "assistant"] * 3
    return system + [(role, draw(contents)) for role in roles[: draw(st.integers(1, 6))]]


COMPILED: dict[tuple[str, Shape], CompiledTemplate | None] = {}


def compile_once(name: str, shape: Shape) -> CompiledTemplate | None:
    if (name, shape) not in COMPILED:
        try:
            found = compiled(
                TEMPLATES[name], *shape.roles, add_generation_prompt=shape.add_generation_prompt
            )
        except jinja2.TemplateError:
            found = None  # the template itself refuses it, as Gemma's refuses system turns
        COMPILED[name, shape] = found
    return COMPILED[name, shape]


@pytest.mark.parametrize("name", TEMPLATES)
@settings(max_examples=60, deadline=None)
@given(conversation=conversations(), add_generation_prompt=st.booleans())
def test_compiled_shapes_render_as_jinja_does(
    name: str, conversation: list[tuple[str, str]], add_generation_prompt: bool
) -> None:
    roles, texts = zip(*conversation, strict=True)
    shape = Shape(roles, add_generation_prompt)
    found = compile_once(name, shape)
    if found is not None and found.fits(texts):
        assert found.render(texts) == rendered(TEMPLATES[name], shape, texts)


@pytest.mark.parametrize("name", TEMPLATES)
def test_plain_contents_fit_in_every_family(name: str) -> None:
    for add_generation_prompt in (True, False):
        shape = Shape(("user", "assistant", "user"), add_generation_prompt)
        found = compile_once(name, shape)
        assert found is not None
        assert found.fits(["What is 2 + 2?", "It is 4.", " Thanks!\n"])


def test_a_refusal_of_the_template_is_no_compiled_shape() -> None:
    with pytest.raises(Exception, match="no system turns"):
        compiled(TEMPLATES["GEMMA"], "system", "user")


def test_what_tracing_overlooks_the_check_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    trace = Tracer.trace

    def careless(self: Tracer, shape: Shape) -> CompiledTemplate:
        return dataclasses.replace(trace(self, shape), guards=())

    monkeypatch.setattr(Tracer, "trace", careless)
    for test in ("== 'yes'", ".startswith('y')", "in ['no', 'none']"):
        with pytest.raises(UntraceableError, match="an effect that tracing did not see"):
            compiled(source("{% if messages[0].content " + test + " %}x{% endif %}"), "user")


def test_a_shape_nothing_fits_is_not_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_compiling, "_PLAIN", "%d")
    monkeypatch.setattr(template_compiling, "_STRANGE", ("0",))
    text = "{% if '0' in messages[0].content %}x{% endif %}"
    with pytest.raises(UntraceableError, match="no content satisfies"):
        compiled(source(text, {}), "user")


def test_very_long_conversations_are_not_compiled() -> None:
    template = source(CHATML)
    compiler = ShapeCompiler(template, compile_template(template))
    assert compiler.compile(Shape(("user",) * MAX_TURNS, True)).pieces
    with pytest.raises(UntraceableError, match="too many turns"):
        compiler.compile(Shape(("user",) * (MAX_TURNS + 1), True))


def test_templates_that_hang_stop() -> None:
    loop = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    with pytest.raises(TimeoutError):
        compiled(source(loop), "user")
