"""Tools, calls and parts, as transformers renders them: by the templates of models, and by small ones written here."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fam_engine._rust_tokenize import LineChunk
from fam_engine.data.fast_records import FastRecords
from fam_engine.data.records import detect_form, read_record
from fam_engine.data.rendering import Renderer
from fam_engine.data.templates import Template
from fam_engine.data.tokenizer import Encoded, TextEncoder
from fam_engine.data.turns import REASONING, Message
from fam_engine.errors import RecordError

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "What it is like outside, e.g. <dry> & warm.",
        "parameters": {"type": "object", "properties": {"town": {"type": "string"}}},
    },
}
CALL = {
    "id": "call00001",
    "type": "function",
    "function": {"name": "weather", "arguments": {"town": "Zürich", "days": 1.5}},
}
ASKED = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "How is Zürich?"},
    {"role": "assistant", "content": None, "tool_calls": [CALL, CALL]},
    {"role": "tool", "tool_call_id": "call00001", "name": "weather", "content": "rain"},
    {"role": "tool", "tool_call_id": "call00002", "name": "weather", "content": "sun"},
]
TEXT_ANSWER = {"role": "assistant", "content": "Rain, then sun."}
CALLING_ANSWER = {"role": "assistant", "content": None, "tool_calls": [CALL]}
# Qwen3's template writes the reasoning of what comes after the last question, and leaves out that of earlier turns.
REASONED = [
    {"role": "user", "content": "2 + 2?"},
    {"role": "assistant", "reasoning_content": "Two and two.", "content": "4"},
    {"role": "user", "content": "And Zürich?"},
    {"role": "assistant", "reasoning_content": "Ask.", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "content": "rain"},
]
REASONED_ANSWER = {"role": "assistant", "reasoning_content": "It rains <b>.", "content": "Wet."}
TALKING_ANSWER = {"role": "assistant", "content": "Let me look.", "tool_calls": [CALL]}

# Knows tools, calls, results, names, and contents as lists.
KNOWING = (
    "{% if tools %}<tools>{% for t in tools %}{{ t | tojson }}{% endfor %}</tools>{% endif %}"
    "{% for m in messages %}<s>{{ m.role }}{% if m.name %} {{ m.name }}{% endif %}: "
    "{% if m.content is string %}{{ m.content }}{% elif m.content %}{% for p in m.content %}[{{ p.text }}]"
    "{% endfor %}{% endif %}{% for c in m.tool_calls %}<call>{{ c.function | tojson }}{% endfor %}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant: {% endif %}"
)


def record_of(row: Mapping[str, Any]) -> Any:  # noqa: ANN401 - a Record
    return read_record(row, detect_form(row), file="f", line=1, stem="f")


def encode(encoder: TextEncoder, row: Mapping[str, Any]) -> Encoded | RecordError:
    (result,) = encoder.encode([record_of(row)])
    return result


def encoded(encoder: TextEncoder, row: Mapping[str, Any]) -> Encoded:
    result = encode(encoder, row)
    assert isinstance(result, Encoded), result
    return result


def refused(encoder: TextEncoder, row: Mapping[str, Any], code: str) -> str:
    result = encode(encoder, row)
    assert isinstance(result, RecordError)
    assert result.code == code
    return result.reason


@pytest.fixture(params=["qwen2.5", "qwen3"])
def model(request: pytest.FixtureRequest, shared: Path) -> Iterator[tuple[TextEncoder, Any]]:
    """Give our encoder and transformers' tokenizer of a model whose template knows tools."""
    from transformers import AutoTokenizer

    folder = shared / "tokenizers" / request.param
    if not folder.is_dir():
        pytest.skip(f"needs the tokenizer {folder}")
    encoder = TextEncoder(folder)
    yield encoder, AutoTokenizer.from_pretrained(folder)
    encoder.close()


@pytest.fixture
def bytes_folder(tmp_path: Path) -> Path:
    """Give a folder with a tokenizer of single characters and three special tokens."""
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({char: i for i, char in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.add_special_tokens(
        [AddedToken(name, special=True) for name in ("<s>", "</s>", "<call>")]
    )
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>"}))
    return tmp_path


@pytest.fixture
def make(bytes_folder: Path) -> Iterator[Any]:
    """Give what makes an encoder with a template."""
    made = []

    def with_template(source: str | None, **options: Any) -> TextEncoder:  # noqa: ANN401
        file = bytes_folder / "template.jinja"
        file.write_text(source or "")
        made.append(TextEncoder(bytes_folder, template=str(file) if source else "none", **options))
        return made[-1]

    yield with_template
    for one in made:
        one.close()


def their_text(
    messages: list[dict[str, Any]], tools: list[Any] | None, source: str, *, opened: bool
) -> str:
    """Give what transformers renders."""
    from transformers.utils.chat_template_utils import render_jinja_template

    # As `apply_chat_template` does before it renders.
    turns = [{key: v for key, v in turn.items() if v is not None} for turn in messages]
    (text,), _ = render_jinja_template(
        conversations=[turns], tools=tools, chat_template=source, add_generation_prompt=opened
    )
    return str(text)


# -- as transformers -------------------------------------------------------------------------------


@pytest.mark.parametrize("tools", [[WEATHER], [WEATHER, WEATHER["function"]], None])
def test_a_text_after_calls_has_the_ids_of_transformers(
    model: tuple[TextEncoder, Any], tools: list[Any] | None
) -> None:
    ours, theirs = model
    row = {"messages": [*ASKED, TEXT_ANSWER], "tools": tools}
    one = encoded(ours, row)
    options = {"tools": tools, "add_generation_prompt": True}
    assert one.context_text == theirs.apply_chat_template(ASKED, tokenize=False, **options)
    ids = theirs.apply_chat_template(ASKED, return_dict=False, **options)
    assert one.context_ids.tolist() == ids
    assert one.response_text == "Rain, then sun."
    # TRL's way to write a list in a column of Parquet.
    as_text = encoded(ours, {**row, "tools": json.dumps(tools)})
    assert as_text.context_text == one.context_text


@pytest.mark.parametrize(
    ("given", "known"),
    [
        ({"enable_thinking": False}, {"enable_thinking": False}),
        ('{"enable_thinking": false}', {"enable_thinking": False}),
        ({"enable_thinking": True, "of": ["other rows", None]}, {"enable_thinking": True}),
        ({"enable_thinking": None}, {}),
        ({}, {}),
        (None, {}),
    ],
)
@pytest.mark.parametrize("tools", [[WEATHER], None])
def test_a_record_tells_the_template_what_it_says(
    model: tuple[TextEncoder, Any], given: object, known: dict[str, Any], tools: list[Any] | None
) -> None:
    ours, theirs = model
    row = {"messages": [*ASKED, TEXT_ANSWER], "tools": tools, "chat_template_kwargs": given}
    one = encoded(ours, row)
    options = {"tools": tools, "add_generation_prompt": True, "return_dict": False, **known}
    assert one.context_text == theirs.apply_chat_template(ASKED, tokenize=False, **options)
    assert one.context_ids.tolist() == theirs.apply_chat_template(ASKED, **options)
    assert one.response_text == "Rain, then sun."


@pytest.mark.parametrize("speaker", ["tool", "observation"])
def test_sharegpt_turns_with_tools_are_what_transformers_makes_of_the_same_calls(
    model: tuple[TextEncoder, Any], speaker: str
) -> None:
    ours, theirs = model
    call = CALL["function"]
    asked = [
        {"from": "system", "value": "Be brief."},
        {"from": "human", "value": "How is Zürich?"},
        {"from": "function_call", "value": json.dumps([call, call])},
        {"from": speaker, "value": "rain"},
        {"from": speaker, "value": "sun"},
    ]
    row = {"conversations": [*asked, {"from": "gpt", "value": "Wet."}], "tools": json.dumps([call])}
    one = encoded(ours, row)
    options = {"tools": [call], "add_generation_prompt": True}
    assert one.context_text == theirs.apply_chat_template(ASKED, tokenize=False, **options)
    assert one.response_text == "Wet."
    calling = encoded(
        ours,
        {"conversations": [*asked[:2], {"from": "function_call", "value": json.dumps(call)}]},
    )
    whole = theirs.apply_chat_template([*ASKED[:2], CALLING_ANSWER], tokenize=False)
    assert whole == f"{calling.context_text}{calling.response_text}<|im_end|>\n"


@pytest.mark.parametrize("answer", [CALLING_ANSWER, TALKING_ANSWER])
def test_a_calling_answer_is_what_transformers_writes_for_the_turn(
    model: tuple[TextEncoder, Any], answer: dict[str, Any]
) -> None:
    ours, theirs = model
    turns = [*ASKED[:2], answer]
    one = encoded(ours, {"messages": turns, "tools": [WEATHER]})
    whole = theirs.apply_chat_template(turns, tools=[WEATHER], tokenize=False)
    assert whole == f"{one.context_text}{one.response_text}<|im_end|>\n"
    assert '"weather"' in one.response_text
    # The answer is encoded alone, as every answer is.
    alone = theirs(one.response_text, add_special_tokens=False)["input_ids"]
    assert one.response_ids.tolist() == alone
    assert one.flags == ()


@pytest.mark.parametrize(
    "answer", [REASONED_ANSWER, {**CALLING_ANSWER, "content": "", "reasoning_content": "Ask on."}]
)
def test_reasoning_is_what_transformers_writes_of_it(shared: Path, answer: dict[str, Any]) -> None:
    from transformers import AutoTokenizer

    folder = shared / "tokenizers" / "qwen3"
    theirs = AutoTokenizer.from_pretrained(folder)
    with contextlib.closing(TextEncoder(folder)) as ours:
        one = encoded(ours, {"messages": [*REASONED, answer], "tools": [WEATHER]})
        options = {"tools": [WEATHER], "tokenize": False}
        context = theirs.apply_chat_template(REASONED, add_generation_prompt=True, **options)
        assert one.context_text == context
        assert "<think>\nAsk.\n</think>" in context
        assert "Two and two." not in context
        whole = theirs.apply_chat_template([*REASONED, answer], **options)
        assert whole == f"{one.context_text}{one.response_text}<|im_end|>\n"
        assert one.response_text.startswith(f"<think>\n{answer['reasoning_content']}\n</think>\n\n")
        alone = theirs(one.response_text, add_special_tokens=False)["input_ids"]
        assert one.response_ids.tolist() == alone
        # Without reasoning it is a text like any other.
        for nothing in (None, ""):
            plain = encoded(ours, {"messages": [*REASONED, {**TEXT_ANSWER, "thinking": nothing}]})
            assert plain.response_text == "Rain, then sun."


def test_a_template_without_reasoning_leaves_it_out_of_earlier_turns_only(shared: Path) -> None:
    from transformers import AutoTokenizer

    folder = shared / "tokenizers" / "qwen2.5"
    theirs = AutoTokenizer.from_pretrained(folder)
    with contextlib.closing(TextEncoder(folder)) as ours:
        one = encoded(ours, {"messages": [*REASONED, TEXT_ANSWER]})
        assert one.context_text == theirs.apply_chat_template(
            REASONED, tokenize=False, add_generation_prompt=True
        )
        row = {"messages": [*REASONED, REASONED_ANSWER]}
        assert "leaves out the reasoning of the answer" in refused(
            ours, row, "E_TEMPLATE_REASONING"
        )


@pytest.mark.parametrize("name", ["reasoning_content", "thinking", "reasoning"])
def test_reasoning_has_one_meaning_under_each_of_its_names(make: Any, name: str) -> None:  # noqa: ANN401
    answer = {"role": "assistant", name: "Hm.", "content": "4"}
    for read in ("reasoning_content", "thinking"):
        source = KNOWING.replace("{% if m.content is", f"{{{{ m.{read} }}}}|{{% if m.content is", 1)
        assert encoded(make(source), {"messages": [ASKED[1], answer]}).response_text == "Hm.|4"


def test_parts_are_joined_for_a_template_of_texts(model: tuple[TextEncoder, Any]) -> None:
    ours, theirs = model
    parts = [{"type": "text", "text": "One?"}, {"type": "text", "text": "Two?"}]
    question, joined = ([{"role": "user", "content": content}] for content in (parts, "One?\nTwo?"))
    answer = {"role": "assistant", "content": [{"type": "text", "text": "Yes."}]}
    one = encoded(ours, {"messages": [*question, answer]})
    assert one.context_ids.tolist() == theirs.apply_chat_template(
        joined, return_dict=False, add_generation_prompt=True
    )
    plain = encoded(ours, {"messages": [*joined, {"role": "assistant", "content": "Yes."}]})
    assert np.array_equal(one.response_ids, plain.response_ids)
    assert one.flags == plain.flags


@pytest.mark.parametrize("answer", [TEXT_ANSWER, CALLING_ANSWER, TALKING_ANSWER])
def test_a_template_of_ones_own_renders_as_in_transformers(
    make: Any,  # noqa: ANN401 - a function
    answer: dict[str, Any],
) -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b", "cache": True}]
    turns = [*ASKED, {"role": "user", "content": parts, "name": "Ann"}, answer]
    one = encoded(make(KNOWING), {"messages": turns, "tools": [WEATHER]})
    assert one.context_text == their_text(turns[:-1], [WEATHER], KNOWING, opened=True)
    assert "<s>user Ann: [a][b]</s>" in one.context_text
    whole = their_text(turns, [WEATHER], KNOWING, opened=False)
    assert f"{one.context_text}{one.response_text}</s>\n" == whole


def test_an_answer_of_parts_is_joined_as_the_template_joins_them(make: Any) -> None:  # noqa: ANN401
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    row = {"messages": [ASKED[1], {"role": "assistant", "content": parts}]}
    assert (
        encoded(make(KNOWING.replace("[{{ p.text }}]", "{{ p.text }}")), row).response_text == "ab"
    )
    assert (
        encoded(make(KNOWING.replace("m.content is string", "true")), row).response_text == "a\nb"
    )
    assert encoded(make(None), row).response_text == "a\nb"


def test_filters_take_their_arguments_in_the_order_of_transformers() -> None:
    source = "{{ {'b': 'é', 'a': 1} | tojson(true, 1, sort_keys=true) }}"
    with Renderer(Template(source, {})) as renderer:
        text = renderer.render([Message("user", "")], add_generation_prompt=False)
    assert text == their_text([], None, source, opened=False)


@pytest.fixture
def named(bytes_folder: Path) -> Iterator[Any]:
    """Give what makes our encoder and transformers' tokenizer of a model with two templates."""
    from transformers import PreTrainedTokenizerFast

    made = []

    def with_templates(default: str, tool_use: str) -> tuple[TextEncoder, Any]:
        sources = {"tool_use": tool_use, "default": default, "rag": "{{ documents }}"}
        listed = [{"name": name, "template": source} for name, source in sources.items()]
        config = {"eos_token": "</s>", "chat_template": listed}
        (bytes_folder / "tokenizer_config.json").write_text(json.dumps(config))
        made.append(TextEncoder(bytes_folder))
        return made[-1], PreTrainedTokenizerFast.from_pretrained(bytes_folder)

    yield with_templates
    for one in made:
        one.close()


def test_records_with_tools_take_the_template_that_is_for_tools(named: Any) -> None:  # noqa: ANN401
    ours, theirs = named(PLAIN, KNOWING)
    parts = {
        "role": "user",
        "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}],
    }
    for tools, answer, asked in (
        ([WEATHER], TEXT_ANSWER, [*ASKED, parts]),
        ([WEATHER], CALLING_ANSWER, ASKED[:2]),
        ([], TEXT_ANSWER, ASKED[:2]),
        (None, TEXT_ANSWER, ASKED[:2]),
    ):
        one = encoded(ours, {"messages": [*asked, answer], "tools": tools})
        options = {"tools": tools, "tokenize": False}
        context = theirs.apply_chat_template(asked, add_generation_prompt=True, **options)
        assert one.context_text == context
        whole = theirs.apply_chat_template([*asked, answer], **options)
        assert whole == f"{one.context_text}{one.response_text}</s>\n"
    assert "leaves out call 1" in refused(
        ours, {"messages": [*ASKED, TEXT_ANSWER]}, "E_TEMPLATE_TOOLS"
    )


def test_a_template_for_tools_that_ends_answers_otherwise_is_not_taken(named: Any) -> None:  # noqa: ANN401
    ours, _ = named(PLAIN, KNOWING.replace("</s>", "<call>"))
    row = {"messages": [ASKED[1], TEXT_ANSWER]}
    assert encoded(ours, row).response_text == "Rain, then sun."
    reason = refused(ours, {**row, "tools": [WEATHER]}, "E_TEMPLATE_TOOLS")
    assert "ends an answer otherwise than its plain one" in reason


# -- left out or refused ---------------------------------------------------------------------------

PLAIN = (
    "{% for m in messages %}<s>{{ m.role }}\n{{ m.content }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant\n{% endif %}"
)
FIRST_CALL_ONLY = KNOWING.replace("for c in m.tool_calls", "for c in (m.tool_calls or [])[:1]")


@pytest.mark.parametrize(
    ("source", "messages", "tools", "named"),
    [
        (PLAIN, [ASKED[1], TEXT_ANSWER], [WEATHER], "tools[0]"),
        (PLAIN, [*ASKED, TEXT_ANSWER], None, "call 1 in turn 3"),
        (PLAIN, [ASKED[1], CALLING_ANSWER], None, "call 1 in turn 2"),
        (PLAIN, [ASKED[1], TALKING_ANSWER], None, "call 1 in turn 2"),
        (FIRST_CALL_ONLY, [*ASKED, TEXT_ANSWER], None, "call 2 in turn 3"),
        (
            KNOWING.replace("c.function | tojson", "c.function.name"),
            [*ASKED, TEXT_ANSWER],
            None,
            "the arguments of call 1 in turn 3",
        ),
        (
            # A whole turn is left out because it calls: without its calls it would be there.
            PLAIN.replace("in messages", "in messages if not m.tool_calls"),
            [*ASKED, TEXT_ANSWER],
            None,
            "call 1 in turn 3",
        ),
        (
            PLAIN.replace("in messages", "in messages if m.role != 'tool'"),
            [ASKED[1], {"role": "tool", "content": "rain"}, TEXT_ANSWER],
            None,
            "the tool's result in turn 2",
        ),
    ],
)
def test_what_a_template_leaves_out_is_named(
    make: Any,  # noqa: ANN401
    source: str,
    messages: list[Any],
    tools: list[Any] | None,
    named: str,
) -> None:
    reason = refused(make(source), {"messages": messages, "tools": tools}, "E_TEMPLATE_TOOLS")
    assert f"leaves out {named}," in reason or f"leaves out `{named}`," in reason


def test_empty_lists_and_ids_nobody_writes_are_no_reason(make: Any) -> None:  # noqa: ANN401
    turns = [{**ASKED[1], "name": "Ann"}, {**TEXT_ANSWER, "tool_calls": []}]
    one = encoded(make(PLAIN), {"messages": turns, "tools": []})
    assert (one.response_text, one.flags) == ("Rain, then sun.", ())


def test_a_template_that_refuses_says_why(make: Any) -> None:  # noqa: ANN401
    source = "{% if tools %}{{ raise_exception('no tools here') }}{% endif %}" + PLAIN
    row = {"messages": [ASKED[1], TEXT_ANSWER], "tools": [WEATHER]}
    assert "no tools here" in refused(make(source), row, "E_TEMPLATE")


def test_without_a_template_nothing_says_how_calls_are_written(make: Any) -> None:  # noqa: ANN401
    encoder = make(None)
    for row in (
        {"messages": [ASKED[1], TEXT_ANSWER], "tools": [WEATHER]},
        {"messages": [*ASKED, TEXT_ANSWER]},
        {"messages": [ASKED[1], CALLING_ANSWER]},
    ):
        assert "only a chat template" in refused(encoder, row, "E_TEMPLATE_TOOLS")


def test_reasoning_that_has_no_text_of_its_own_is_put_aside(make: Any) -> None:  # noqa: ANN401
    row = {"messages": [ASKED[1], REASONED_ANSWER]}
    assert "only a chat template" in refused(make(None), row, "E_TEMPLATE_REASONING")
    before = {"messages": [ASKED[1], REASONED_ANSWER, ASKED[1], TEXT_ANSWER]}
    assert "only a chat template" in refused(make(None), before, "E_TEMPLATE_REASONING")
    writing = PLAIN.replace("{{ m.content }}", "{{ m.thinking }}{{ m.content }}")
    assert encoded(make(writing), row).response_text == "It rains <b>.Wet."
    opening = writing.removesuffix("{% endif %}") + "<think>{% endif %}"
    assert "opens or ends" in refused(make(opening), row, "E_TEMPLATE_REASONING")
    # As templates of models that always think do it.
    thinking = PLAIN.replace(
        "{{ m.content }}",
        "{% if m.thinking %}<think>{{ m.thinking }}</think>{% endif %}{{ m.content }}",
    )
    opening = thinking.removesuffix("{% endif %}") + "<think>{% endif %}"
    assert encoded(make(opening), row).response_text == "It rains <b>.</think>Wet."


def test_a_turn_opened_or_ended_otherwise_has_no_text_of_its_own(make: Any) -> None:  # noqa: ANN401
    row = {"messages": [ASKED[1], CALLING_ANSWER], "tools": [WEATHER]}
    opening = KNOWING.removesuffix("{% endif %}") + "<think>{% endif %}"
    assert "opens or ends" in refused(make(opening), row, "E_TEMPLATE_TOOLS")
    ending = KNOWING.replace("</s>", "</s>{% if not m.tool_calls %}--{% endif %}")
    assert "opens or ends" in refused(make(ending), row, "E_TEMPLATE_TOOLS")
    within = KNOWING.replace("</s>", "{% if m.tool_calls %}!{% endif %}</s>")
    assert encoded(make(within), row).response_text.endswith("!")


def test_what_a_record_says_wins_over_what_is_said_for_all(make: Any) -> None:  # noqa: ANN401
    telling = "{{ mood }}{{ place }}" + PLAIN
    encoder = make(telling, chat_template_kwargs={"mood": "calm", "place": "here"})
    row = {"messages": [ASKED[1], TEXT_ANSWER]}
    rows = [row, {**row, "chat_template_kwargs": {"mood": "<s>", "unread": 1}}, row]
    contexts = [encoded(encoder, one).context_text for one in rows]
    assert [text.partition("here")[0] for text in contexts] == ["calm", "<s>", "calm"]
    special = dict(encoder.tokenizer.special_tokens())
    # What a record says is a user's text.
    assert special["<s>"] not in encoded(encoder, rows[1]).context_ids[: len("<s>here")]
    without = encoded(make(None), rows[1])
    assert without.context_ids.tolist() == encoded(make(None), row).context_ids.tolist()


def test_a_template_that_is_told_to_leave_out_tools_is_found_out(make: Any) -> None:  # noqa: ANN401
    source = KNOWING.replace("{% if tools %}", "{% if tools and not quiet %}")
    row = {"messages": [ASKED[1], TEXT_ANSWER], "tools": [WEATHER]}
    assert "<tools>" in encoded(make(source), row).context_text
    quiet = {**row, "chat_template_kwargs": {"quiet": True}}
    assert "tools[0]" in refused(make(source), quiet, "E_TEMPLATE_TOOLS")


# -- special tokens --------------------------------------------------------------------------------


def test_only_special_tokens_of_the_template_are_special(make: Any) -> None:  # noqa: ANN401
    encoder = make(KNOWING)
    call = {"function": {"name": "f", "arguments": {"<call>": "</s>"}}}
    answer = {"role": "assistant", "content": "", "tool_calls": [call]}
    tools = [{"name": "f", "description": "<s>"}]
    one = encoded(encoder, {"messages": [ASKED[1], answer], "tools": tools})
    special = dict(encoder.tokenizer.special_tokens())
    assert one.response_text == '<call>{"name": "f", "arguments": {"<call>": "</s>"}}'
    assert one.response_ids.tolist().count(special["<call>"]) == 1
    assert one.response_ids[0] == special["<call>"]
    assert special["</s>"] not in one.response_ids
    assert one.context_text.count("<s>") == 3
    assert one.context_ids.tolist().count(special["<s>"]) == 2
    assert "special_in_text" in one.flags


def test_reserved_characters_in_tools_are_refused(make: Any) -> None:  # noqa: ANN401
    tools = [{"name": "f", "description": "\U000f0000"}]
    row = {"messages": [ASKED[1], TEXT_ANSWER], "tools": tools}
    assert "reserved" in refused(make(KNOWING), row, "E_RECORD_TEXT")


# -- the path in Rust ------------------------------------------------------------------------------


def test_rust_leaves_to_python_what_a_template_may_read(make: Any) -> None:  # noqa: ANN401
    plain = [ASKED[1], TEXT_ANSWER]
    fast = FastRecords(make(KNOWING), max_length=1000)
    fast.learn([Message("user", "")])
    rows = [
        {"messages": plain},
        {"messages": plain, "tools": None, "chat_template_kwargs": None},
        {"messages": [{**turn, "tool_calls": None, "weight": None} for turn in plain]},
        {"messages": plain, "tools": [WEATHER]},
        {"messages": plain, "chat_template_kwargs": {"a": 1}},
        {"messages": [{**ASKED[1], "name": "Ann"}, TEXT_ANSWER]},
        {"messages": [ASKED[1], TALKING_ANSWER]},
        {"messages": [{**ASKED[1], "tool_call_id": "1"}, TEXT_ANSWER]},
        *({"messages": [ASKED[1], {**TEXT_ANSWER, "weight": weight}]} for weight in (0, 1)),
        *({"messages": [ASKED[1], {**TEXT_ANSWER, name: "Hm."}]} for name in REASONING),
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}, TEXT_ANSWER]},
    ]
    lines = LineChunk.from_bytes("\n".join(map(json.dumps, rows)).encode())
    batch = fast.encode(lines, detect_form(rows[0]), {})
    assert (len(batch), batch.others()) == (3, [*range(3, len(rows))])


def test_rust_never_learns_turns_a_template_leaves_out(make: Any) -> None:  # noqa: ANN401
    row = {"messages": [ASKED[1], {"role": "tool", "content": "rain"}, TEXT_ANSWER]}
    lines = json.dumps(row).encode()
    for source, others in (
        (PLAIN, []),
        (PLAIN.replace("in messages", "in messages if m.role != 'tool'"), [0]),
    ):
        fast = FastRecords(make(source), max_length=1000)
        fast.learn([Message("user", ""), Message("tool", "")])
        batch = fast.encode(LineChunk.from_bytes(lines), detect_form(row), {})
        assert batch.others() == others


# -- what is no record -----------------------------------------------------------------------------

PICTURE = {"type": "image_url", "image_url": {"url": "x"}}


@pytest.mark.parametrize(
    ("turn", "tools", "code", "named"),
    [
        ({"role": "user", "content": [PICTURE]}, None, "E_RECORD_PART", "`messages[0].content[0]`"),
        ({"role": "user", "content": ["a"]}, None, "E_RECORD_PART", "a text"),
        ({"role": "user", "content": None}, None, "E_RECORD_FIELD", "`content`"),
        ({"role": "user", "content": None, "tool_calls": []}, None, "E_RECORD_FIELD", "`content`"),
        ({"role": "user", "content": "", "tool_calls": "f()"}, None, "E_RECORD_TYPE", "tool_calls"),
        ({"role": "user", "content": "", "tool_calls": [{"id": 1}]}, None, "E_RECORD_TYPE", "[0]`"),
        (
            {"role": "user", "content": "", "reasoning": ["a"]},
            None,
            "E_RECORD_TYPE",
            "reasoning` is",
        ),
        (ASKED[1], "hammer", "E_RECORD_TYPE", "no JSON"),
        (ASKED[1], {"name": "f"}, "E_RECORD_TYPE", "an object"),
        (ASKED[1], [{"type": "function"}], "E_RECORD_TYPE", "`tools[0]` names no function"),
        (ASKED[1], [{"name": "f", "x": b"1"}], "E_RECORD_TYPE", "bytes"),
        (ASKED[1], [{"name": "f", "x": "\ud800"}], "E_RECORD_TEXT", "surrogate"),
    ],
)
def test_what_cannot_be_read_is_named(turn: object, tools: object, code: str, named: str) -> None:
    with pytest.raises(RecordError) as caught:
        record_of({"messages": [turn, TEXT_ANSWER], "tools": tools})
    assert caught.value.code == code
    assert named in caught.value.reason


@pytest.mark.parametrize(
    ("kwargs", "named"),
    [
        ("quiet", "a text that is no JSON"),
        (["quiet"], "a list"),
        ({"messages": []}, "`messages`, which comes from the record itself"),
        ({"quiet": b"1"}, "bytes"),
    ],
)
def test_what_tells_a_template_nothing_is_named(kwargs: object, named: str) -> None:
    with pytest.raises(RecordError) as caught:
        record_of({"messages": [ASKED[1], TEXT_ANSWER], "chat_template_kwargs": kwargs})
    assert caught.value.code == "E_RECORD_TYPE"
    assert named in caught.value.reason


@pytest.mark.parametrize("value", ["f(1)", '"f"', "{}", "[]", '[{"name": "f"}, 1]', "[" * 100_000])
def test_a_sharegpt_call_that_is_none_is_named(value: str) -> None:
    turns = [{"from": "human", "value": "a"}, {"from": "function_call", "value": value}]
    with pytest.raises(RecordError, match=r"`conversations\[1\]` is from function_call") as caught:
        record_of({"conversations": turns})
    assert caught.value.code == "E_RECORD_TYPE"


def nested(levels: int) -> str:
    """JSON that nests so deep, with brackets in a text that do not count."""
    return "[" * (levels - 1) + '"[[\\"[["' + "]" * (levels - 1)


def test_a_text_without_end_takes_linear_time() -> None:
    # A million quotation marks, none of which ends a text.
    with pytest.raises(RecordError, match="no JSON"):
        record_of({"messages": [ASKED[1], TEXT_ANSWER], "tools": "[]" * 65 + '"' + '\\"' * 10**6})


@pytest.mark.parametrize("levels", [64, 65, 850, 960, 999, 100_000])
def test_a_text_of_json_nests_no_deeper_than_a_file(make: Any, levels: int) -> None:  # noqa: ANN401
    in_tools = f'[{{"name": "f", "x": {nested(levels - 1)}}}]'
    in_kwargs = f'{{"x": {nested(levels)}}}'
    in_calls = f'{{"name": "f", "arguments": {nested(levels)}}}'
    said = [{"from": "human", "value": "a"}, {"from": "function_call", "value": in_calls}]
    rows: list[dict[str, Any]] = [
        {"messages": [ASKED[1], TEXT_ANSWER], "tools": in_tools},
        {"messages": [ASKED[1], TEXT_ANSWER], "chat_template_kwargs": in_kwargs},
        {"conversations": said},
    ]
    encoder = make("{% for m in messages %}{{ m.content }}{% endfor %}{{ tools }}{{ x }}")
    for row in rows:
        if levels > 64:
            with pytest.raises(RecordError, match=r"(than|nested) 64") as caught:
                record_of(row)
            assert caught.value.code == "E_RECORD_TYPE"
        else:
            encoder.encode([record_of(row)])


def test_an_answer_of_nothing_is_still_refused() -> None:
    for content in ("", [], [{"type": "text", "text": ""}]):
        with pytest.raises(RecordError, match="response is empty"):
            record_of({"messages": [ASKED[1], {"role": "assistant", "content": content}]})


def test_a_turn_that_the_template_leaves_out_puts_the_record_aside(shared: Path) -> None:
    """Qwen2.5's template has no place for a developer."""
    told = [{"role": "developer", "content": "Answer in French."}, ASKED[1], TEXT_ANSWER]
    with contextlib.closing(TextEncoder(shared / "tokenizers" / "qwen2.5")) as ours:
        reason = refused(ours, {"messages": told}, "E_TEMPLATE_TURN")
        assert "leaves out turn 1, of role `developer`" in reason
        encoded(ours, {"messages": told[1:]})


@pytest.mark.parametrize(
    "content", ["{{ m.content }}", "{{ m.content | upper }}", "{{ m.content | tojson }}"]
)
def test_a_turn_is_looked_for_whatever_the_template_makes_of_its_text(
    make: Any,  # noqa: ANN401
    content: str,
) -> None:
    source = (
        "{% for m in messages %}{% if m.role != 'system' or SEEN %}<s>"
        + content
        + "</s>\n{% endif %}"
        "{% endfor %}{% if add_generation_prompt %}<s>{% endif %}"
    )
    turns = [{"role": "system", "content": 'Be "brief".'}, ASKED[1], TEXT_ANSWER]
    reason = refused(make(source.replace("SEEN", "false")), {"messages": turns}, "E_TEMPLATE_TURN")
    assert "turn 1, of role `system`" in reason
    encoded(make(source.replace("SEEN", "true")), {"messages": turns})


@pytest.mark.parametrize("name", ["phi3_mini", "qwen2.5"])
def test_a_turn_left_out_is_missed_even_where_its_text_stands_elsewhere(
    shared: Path, name: str
) -> None:
    """Neither template has a place for a developer; both write the word `user`."""
    with contextlib.closing(TextEncoder(shared / "tokenizers" / name)) as ours:
        for text in ("Answer in French.", "user", "How", "user"):
            told = [{"role": "developer", "content": text}, ASKED[1], TEXT_ANSWER]
            assert "turn 1, of role `developer`" in refused(
                ours, {"messages": told}, "E_TEMPLATE_TURN"
            )
        encoded(ours, {"messages": [ASKED[1], TEXT_ANSWER]})


@pytest.mark.parametrize("is_compiled", [True, False])
def test_each_conversation_of_a_kind_is_judged_by_itself(make: Any, *, is_compiled: bool) -> None:  # noqa: ANN401
    content = "{{ m.content }}" if is_compiled else "{{ m.content | upper }}"
    source = (
        "{% for m in messages %}{% if m.role != 'system' %}user<s>"
        + content
        + "</s>{% endif %}{% endfor %}{% if add_generation_prompt %}<s>{% endif %}"
    )
    encoder = make(source)
    for text, is_refused in (("user", True), ("user", True), (" ", False), ("s", True)):
        row = {"messages": [{"role": "system", "content": text}, ASKED[1], TEXT_ANSWER]}
        (result,) = encoder.encode([record_of(row)])
        assert isinstance(result, RecordError) == is_refused
    encoded(encoder, {"messages": [{"role": "user", "content": "user"}, TEXT_ANSWER]})


def test_an_empty_turn_may_be_left_out(make: Any) -> None:  # noqa: ANN401
    source = (
        "{% for m in messages %}{% if m.content %}<s>{{ m.content }}</s>\n{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<s>{% endif %}"
    )
    turns = [{"role": "system", "content": " "}, ASKED[1], TEXT_ANSWER]
    assert encoded(make(source), {"messages": turns}).context_text.startswith("<s> </s>")
