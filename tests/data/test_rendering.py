from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fam_engine.data import rendering
from fam_engine.data.compiled_templates import Shape
from fam_engine.data.rendering import Renderer
from fam_engine.data.templates import Template, find_template, with_kwargs
from fam_engine.data.turns import Message, Told
from fam_engine.errors import ModelRefusedError, RecordError, UsageError
from tests.data.template_families import SMOLLM_3

ASK = [Message("user", "Hi")]
PLAIN = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"


def render(
    source: str,
    *,
    turns: list[Message] | None = None,
    told: dict[str, Any] | None = None,
    **constants: str,
) -> str:
    with Renderer(Template(source, constants, kwargs=told or {})) as renderer:
        return renderer.render(turns or ASK, add_generation_prompt=True)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        *((name, {}) for name in ("llama3", "qwen2.5", "qwen3", "phi3_mini")),
        ("qwen3", {"enable_thinking": False}),
        ("qwen3", {"enable_thinking": True}),
        ("llama3", {"bos_token": "<s>"}),
    ],
)
def test_real_templates_render_as_transformers_renders_them(
    shared: Path, name: str, told: dict[str, Any]
) -> None:
    from transformers import AutoTokenizer

    turns = [Message("system", "Be kind."), Message("user", "Hi"), Message("assistant", "Hello")]
    turns.append(Message("user", "Bye"))
    folder = shared / "tokenizers" / name
    config = json.loads((folder / "tokenizer_config.json").read_text())
    constants = {
        key: value if isinstance(value, str) else value["content"]
        for key, value in config.items()
        if key.endswith("_token") and value is not None and not isinstance(value, bool)
    }
    template = with_kwargs(find_template(folder, "auto", constants), told)
    assert template is not None
    theirs = AutoTokenizer.from_pretrained(folder).apply_chat_template(
        [vars(turn) for turn in turns], tokenize=False, add_generation_prompt=True, **told
    )
    with Renderer(template) as renderer:
        assert renderer.render(turns, add_generation_prompt=True) == theirs


def test_thoughts_are_as_the_template_has_them_or_is_told() -> None:
    """Where the template looks for a word in the system turn, that decides."""
    assert render(SMOLLM_3) == (
        "<|im_start|>system\nToday: 26 July 2024\nMode: /think\n\nBe good.\n\n<|im_end|>\n"
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )
    without = render(SMOLLM_3, turns=[Message("system", "Be brief. /no_think"), *ASK])
    assert "Mode: /no_think\n\nBe brief.\n\n" in without
    assert without.endswith("assistant\n<think>\n\n</think>\n")
    told = {"enable_thinking": False}
    assert render(SMOLLM_3, told=told).endswith("assistant\n<think>\n\n</think>\n")
    asked = [Message("system", "Be brief. /think"), *ASK]
    assert render(SMOLLM_3, turns=asked, told=told).endswith("assistant\n")


def test_what_the_template_is_told_compiles(asked: list[dict[str, Any]]) -> None:
    told = {"names": ["Ann", None, 2.5], "mode": {"loud": True}, "bos_token": "<b>"}
    source = "{{ bos_token }}{{ names | join(',') }}{{ mode.loud }}" + PLAIN
    assert render(source, told=told, bos_token="<s>") == "<b>Ann,None,2.5Trueuser: Hi\n"
    assert [next(iter(request)) for request in asked] == ["template", "compile"]


def test_what_the_template_does_not_read_is_refused() -> None:
    with pytest.raises(UsageError, match="does not read; did you mean `enable_thinking`"):
        render(SMOLLM_3, told={"enable_thinkin": False})
    with pytest.raises(UsageError, match="has `own`"):  # a name the template sets itself
        render("{% set own = 1 %}{{ own }}", told={"own": 2})
    template = Template(PLAIN, {}, None, "{{ loud }}", {"loud": 1})  # only that for tools reads it
    with Renderer(template) as renderer:
        assert renderer.render(ASK, add_generation_prompt=True, told=Told([{}])) == "1"


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


LOOP = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
BOMB = "{{ ('x' * 9999999) * 999999999 }}"
# Depends on contents in a way no guard says, so the child renders it.
SHOUT = "{% if messages[0].content == 'bomb' %}BOMB{% endif %}{{ messages[0].content | upper }}"


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What is asked of the child."""
    requests: list[dict[str, Any]] = []
    ask = Renderer._ask

    def noting(self: Renderer, request: dict[str, Any]) -> Any:  # noqa: ANN401
        requests.append(request)
        return ask(self, request)

    monkeypatch.setattr(Renderer, "_ask", noting)
    return requests


def ask(*contents: str) -> list[list[Message]]:
    return [[Message("user", content)] for content in contents]


def test_what_fits_a_compiled_shape_never_reaches_the_child(asked: list[dict[str, Any]]) -> None:
    with Renderer(Template(PLAIN, {})) as renderer:
        for _ in range(2):
            texts = renderer.render_batch(ask("a", "b"), add_generation_prompt=True)
            assert texts == ["user: a\n", "user: b\n"]
    assert [next(iter(request)) for request in asked] == ["template", "compile"]


def test_what_does_not_fit_is_rendered_in_one_round_trip(asked: list[dict[str, Any]]) -> None:
    source = "{{ 'empty' if not messages[0].content else messages[0].content }}"
    with Renderer(Template(source, {})) as renderer:
        texts = renderer.render_batch(ask("a", "", "b", ""), add_generation_prompt=True)
    assert texts == ["a", "empty", "b", "empty"]
    assert [len(request["render"]) for request in asked if "render" in request] == [2]


def test_batches_are_bounded(monkeypatch: pytest.MonkeyPatch, asked: list[dict[str, Any]]) -> None:
    monkeypatch.setattr(rendering, "_BATCH_CONVERSATIONS", 3)
    monkeypatch.setattr(rendering, "_BATCH_CHARACTERS", 10)
    contents = ["a", "b", "c", "d", "e" * 9, "f" * 99, "g"]
    with Renderer(Template(SHOUT, {})) as renderer:
        texts = renderer.render_batch(ask(*contents), add_generation_prompt=True)
    assert texts == [content.upper() for content in contents]
    sizes = [len(request["render"]) for request in asked if "render" in request]
    assert sizes == [3, 2, 1, 1]


@pytest.mark.parametrize("bomb", [LOOP, BOMB])
def test_a_bad_conversation_costs_only_itself(bomb: str) -> None:
    with Renderer(Template(SHOUT.replace("BOMB", bomb), {})) as renderer:
        first, bad, last = renderer.render_batch(ask("a", "bomb", "b"), add_generation_prompt=True)
    assert (first, last) == ("A", "B")
    assert isinstance(bad, RecordError)
    assert bad.code in ("E_TEMPLATE", "E_TEMPLATE_LIMIT")


def test_a_batch_that_kills_the_child_is_rendered_one_by_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ask_child = Renderer._ask

    def dying(self: Renderer, request: dict[str, Any]) -> Any:  # noqa: ANN401
        contents = [one["messages"][0]["content"] for one in request.get("render", ())]
        if "bomb" in contents:
            self._child._process.kill()
        return ask_child(self, request)

    monkeypatch.setattr(Renderer, "_ask", dying)
    with Renderer(Template(SHOUT.replace("BOMB", ""), {})) as renderer:
        first, bad, last = renderer.render_batch(ask("a", "bomb", "b"), add_generation_prompt=True)
        assert (first, last) == ("A", "B")
        assert isinstance(bad, RecordError)
        assert bad.code == "E_TEMPLATE_LIMIT"


@pytest.mark.parametrize("hostile", [LOOP, BOMB, "{{ messages[0].content.__class__.__mro__ }}"])
def test_a_hostile_template_only_fails_to_compile(hostile: str) -> None:
    # Harmless for one turn, so that the same child is seen to be alive after it.
    source = "{% if messages | length == 2 %}" + hostile + "{% endif %}ok"
    with Renderer(Template(source, {})) as renderer:
        assert renderer.compile(Shape(("user", "user"), True)) is None
        with pytest.raises(RecordError):
            renderer.render([*ASK, *ASK], add_generation_prompt=True)
        assert renderer.compile(Shape(("user",), True)) is not None
        assert renderer.render(ASK, add_generation_prompt=True) == "ok"


def test_what_conversations_tell_is_compiled_unless_each_tells_its_own(
    monkeypatch: pytest.MonkeyPatch, asked: list[dict[str, Any]]
) -> None:
    monkeypatch.setattr(rendering, "_MAX_KWARGS", 3)
    moods = ["calm", "calm", "loud", "sad", "calm"]
    told = [Told(kwargs={"mood": mood}) for mood in moods]
    with Renderer(Template("{{ mood }} " + PLAIN, {})) as renderer:
        texts = renderer.render_batch([ASK] * 5, add_generation_prompt=True, told=told)
        assert texts == [f"{mood} user: Hi\n" for mood in moods]
        assert renderer.render(ASK, add_generation_prompt=True) == " user: Hi\n"
        assert renderer.surely_keeps(ASK, "yes", told[0])
        assert not renderer.surely_keeps(ASK, "yes", told[3])
    kinds = [next(iter(request)) for request in asked]
    assert kinds == ["template", "compile", "compile", "render", "compile", "compile"]
    assert [request["render"][0]["kwargs"] for request in asked if "render" in request] == [
        {"mood": "sad"}
    ]


def test_no_more_shapes_are_kept_than_allowed(
    monkeypatch: pytest.MonkeyPatch, asked: list[dict[str, Any]]
) -> None:
    monkeypatch.setattr(rendering, "_MAX_SHAPES", 1)
    with Renderer(Template(PLAIN, {})) as renderer:
        for roles in (("user",), ("system",), ("user",)):
            turns = [Message(role, "a") for role in roles]
            text = f"{roles[0]}: a\n"
            assert renderer.render(turns, add_generation_prompt=True) == text
    assert [next(iter(request)) for request in asked] == ["template", "compile", "render"]


def test_responses_are_surely_kept_only_where_they_are() -> None:
    keeping = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
    keeping += "{{ '[assistant]' if add_generation_prompt }}"
    sources = {
        keeping: (True, True),
        keeping.replace("m.content", "m.content | trim"): (False, False),
        keeping.replace("{% for", "{{ 'x' if messages[-1].content == 'no' }}{% for"): (True, False),
        keeping.replace("m.content", "m.content | upper"): (False, False),
        # The response comes before what the generation prompt says.
        keeping.replace("[assistant]", "[assistant]:"): (False, False),
        keeping.replace("messages %}", "messages[::-1] %}"): (False, False),
        "{{ messages[-1].content if messages[-1].role == 'assistant' }}": (True, True),
    }
    for source, answers in sources.items():
        with Renderer(Template(source, {})) as renderer:
            assert answers == tuple(renderer.surely_keeps(ASK, text) for text in ("yes", "no"))
