"""Records with tools, or with more to tell a template, through every job: used, or put aside, and never half of one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from fam_engine.config import (
    ExportConfig,
    GenerateConfig,
    RewriteConfig,
    ScoreConfig,
    SelectConfig,
)
from fam_engine.data.records import detect_form, read_record
from fam_engine.data.tokenizer import TextEncoder
from fam_engine.errors import InputError, UsageError
from fam_engine.jobs.data_files import DataFile
from fam_engine.jobs.evaluation.few_shot import read_examples
from fam_engine.jobs.exporting.job import run_export
from fam_engine.jobs.generation.job import run_generate
from fam_engine.jobs.generation.rows import as_question
from fam_engine.jobs.rewriting.job import run_rewrite
from fam_engine.jobs.scoring.job import run_score
from fam_engine.jobs.selection.job import run_select
from fam_engine.report.progress import JobProgress

TEMPLATE = (
    "{% for t in tools or [] %}{{ t | tojson }}{% endfor %}"
    "{% for m in messages %}{{ m.role }}:{{ m.content or '' }}"
    "{% for c in m.tool_calls or [] %}<{{ c | tojson }}>{% endfor %}</s>{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
TOOLS = [{"name": "f"}]
QUESTION = {"role": "user", "content": "a pear?"}
CALLING = {
    "role": "assistant",
    "content": None,
    "tool_calls": [{"name": "f", "arguments": {"x": 1}}],
}
RESULT = {"role": "tool", "content": "3"}
ANSWER = {"role": "assistant", "content": "three"}
PARTS = {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}
PICTURE = {"role": "user", "content": [{"type": "image", "url": "x"}]}
ROWS: list[dict[str, Any]] = [
    {"messages": [QUESTION, ANSWER], "correct": True},
    {"messages": [QUESTION, CALLING, RESULT, ANSWER], "tools": TOOLS, "correct": True},
    {"messages": [QUESTION, CALLING], "tools": TOOLS, "correct": True},
    {"messages": [PARTS, ANSWER], "correct": True},
    {"messages": [PICTURE, ANSWER], "correct": True},
]


@pytest.fixture
def model(tiny_model: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


def aside(out: Path) -> dict[int, str]:
    rows = map(json.loads, (out / "quarantine.jsonl").read_text().splitlines())
    return {row["line"]: row["code"] for row in rows}


def score(model: Path, data: Path, out: Path, **settings: Any) -> list[dict[str, Any]]:  # noqa: ANN401
    config = ScoreConfig(
        model=str(model), data=(str(data),), out=out, precision="fp32", device="cpu", **settings
    )
    with JobProgress(quiet=True) as progress:
        run_score(config, progress)
    rows: list[dict[str, Any]] = pq.read_table(out / "scores.parquet").to_pylist()
    return rows


def test_scores_are_those_of_the_text_the_template_writes(
    model: Path, data: Path, tmp_path: Path
) -> None:
    rows = score(model, data, tmp_path / "out", in_context=1)
    assert aside(tmp_path / "out") == {5: "E_RECORD_PART"}
    plain, after_call, calling, parts = rows
    written = '<{"name": "f", "arguments": {"x": 1}}>'
    assert [row["num_bytes"] for row in rows] == [5, 5, len(written), 5]
    assert calling["num_response_tokens"] == len(written)
    context = json.dumps(TOOLS[0]) + f"user:a pear?\0assistant:{written}\0tool:3\0assistant:"
    assert after_call["num_prompt_tokens"] == len(context)
    # The same text from a template that knows no tools is the same record to the model.
    same = tmp_path / "same.jsonl"
    same.write_text(json.dumps({"messages": [QUESTION], "response": written}))
    prefixed = tmp_path / "prefixed.jinja"
    prefixed.write_text(json.dumps(TOOLS[0]) + TEMPLATE)
    (alone,) = score(model, same, tmp_path / "same", template=str(prefixed))
    assert alone["nll_sum"] == calling["nll_sum"]
    assert alone["eos_nll"] == calling["eos_nll"]
    # Examples and question would need one list of tools.
    has_examples = [row["in_context_nll_mean"] is not None for row in rows]
    assert has_examples == [True, False, False, True]
    assert plain["num_prompt_tokens"] != parts["num_prompt_tokens"]


def test_what_the_template_wrote_can_be_selected(model: Path, data: Path, tmp_path: Path) -> None:
    # Of a template that joins parts otherwise than they are joined here.
    joining = "{% if m.content is string %}{{ m.content }}{% else %}{% for p in m.content %}{{ p.text }}{% endfor %}"
    template = TEMPLATE.replace("{{ m.content or '' }}", f"{joining}{{% endif %}}")
    (model / "chat_template.jinja").write_text(template)
    rows = [*ROWS[:4], {"messages": [QUESTION, {**PARTS, "role": "assistant"}], "correct": True}]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    scored = score(model, data, tmp_path / "scored")
    assert len(scored) == len(rows)
    config = SelectConfig(
        data=(str(data),),
        scores=tmp_path / "scored" / "scores.parquet",
        out=tmp_path / "out",
        per="all",
        budget=len(scored),
    )
    with JobProgress(quiet=True) as progress:
        run_select(config, progress)
    lines = (tmp_path / "out" / "selected.jsonl").read_text().splitlines()
    assert [json.loads(line)["messages"] for line in lines] == [row["messages"] for row in rows]


def test_reasoning_is_scored_with_its_text_or_the_record_is_put_aside(
    model: Path, data: Path, tmp_path: Path
) -> None:
    answer = {**ANSWER, "reasoning_content": "hm."}
    rows = [
        ROWS[0],
        {"messages": [QUESTION, answer], "correct": True},
        {"messages": [QUESTION, answer, QUESTION, ANSWER], "correct": True},
    ]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert len(score(model, data, tmp_path / "left-out")) == 2
    assert aside(tmp_path / "left-out") == {2: "E_TEMPLATE_REASONING"}
    template = TEMPLATE.replace("{{ m.content", "{{ m.reasoning_content }}{{ m.content")
    (model / "chat_template.jinja").write_text(template)
    plain, reasoned, after = score(model, data, tmp_path / "out", in_context=1)
    lengths = [row["num_response_tokens"] for row in (plain, reasoned, after)]
    assert lengths == [len("three"), len("hm.three"), len("three")]
    assert plain["num_prompt_tokens"] == reasoned["num_prompt_tokens"]
    earlier = after["num_prompt_tokens"] - plain["num_prompt_tokens"]
    assert earlier == len("user:a pear?\0assistant:hm.three\0")
    assert [row["in_context_nll_mean"] for row in (reasoned, after)] == [None, None]
    with JobProgress(quiet=True) as progress:
        config = ExportConfig(data=(str(data),), out=tmp_path / "out.jsonl", format="trl")
        outcome = run_export(config, progress)
    assert outcome.summary["records"]["left_out_by_code"] == {"E_EXPORT_TOOLS": 2}


def test_another_template_for_tools_is_another_job(model: Path, data: Path, tmp_path: Path) -> None:
    more = model / "additional_chat_templates"
    more.mkdir()
    (more / "tool_use.jinja").write_text(f"A{TEMPLATE}")
    rows = score(model, data, tmp_path / "out")
    plain = score(model, data, tmp_path / "plain", template=str(model / "chat_template.jinja"))
    longer = [
        one["num_prompt_tokens"] - other["num_prompt_tokens"]
        for one, other in zip(rows, plain, strict=True)
    ]
    assert longer == [0, 1, 1, 0]
    (more / "tool_use.jinja").write_text(f"B{TEMPLATE}")
    with pytest.raises(UsageError, match="template_sha256"):
        score(model, data, tmp_path / "out")


def test_without_a_template_tools_are_put_aside(
    tiny_model: Path, data: Path, tmp_path: Path
) -> None:
    assert len(score(tiny_model, data, tmp_path / "out")) == 2
    left = {2: "E_TEMPLATE_TOOLS", 3: "E_TEMPLATE_TOOLS", 5: "E_RECORD_PART"}
    assert aside(tmp_path / "out") == left


def test_generate_asks_with_the_tools_and_keeps_them(
    model: Path, data: Path, tmp_path: Path
) -> None:
    config = GenerateConfig(
        model=str(model),
        data=(str(data),),
        out=tmp_path / "out",
        precision="fp32",
        max_new_tokens=2,
        # The model is a random one: some of its answers are empty, and no answers.
        samples=16,
        temperature=1.0,
    )
    with JobProgress(quiet=True) as progress:
        run_generate(config, progress)
    asked: dict[int, tuple[Any, Any]] = {}
    for line in (tmp_path / "out" / "generated.jsonl").read_text().splitlines():
        row = json.loads(line)
        number = int(row["provenance"]["parent"].rpartition(":")[2])
        asked[number] = row["messages"], row.get("tools")
    expected = [(row["messages"][:-1], row.get("tools")) for row in ROWS[:4]]
    assert asked == dict(enumerate(expected, start=1))


def test_what_a_record_tells_its_template_stays_with_it(model: Path, tmp_path: Path) -> None:
    (model / "chat_template.jinja").write_text(TEMPLATE.replace("assistant:{%", "{{ mood }}:{%"))
    told = [{"chat_template_kwargs": {"mood": mood}} for mood in ("calm", "very loud")]
    rows = [{"messages": [QUESTION, ANSWER], "correct": True, "group": str(i)} for i in range(3)]
    rows[1:] = [row | own for row, own in zip(rows[1:], told, strict=True)]
    data = tmp_path / "told.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    lengths = [len("user:a pear?\0:") + len(mood) for mood in ("", "calm", "very loud")]

    scored = score(model, data, tmp_path / "scored")
    assert [row["num_prompt_tokens"] for row in scored] == lengths
    generated = tmp_path / "generated"
    sampling = {"max_new_tokens": 2, "samples": 16, "temperature": 1.0}
    common = {"model": str(model), "data": (str(data),), "precision": "fp32"}
    with JobProgress(quiet=True) as progress:
        run_generate(GenerateConfig(**common, out=generated, **sampling), progress)
    texts = (generated / "generated.jsonl").read_text().splitlines()
    kept = {row["group"]: row.get("chat_template_kwargs") for row in map(json.loads, texts)}
    assert kept == {row["group"]: row.get("chat_template_kwargs") for row in rows}
    again = score(model, generated / "generated.jsonl", tmp_path / "again")
    assert {row["num_prompt_tokens"] for row in again} == set(lengths)

    config = ExportConfig(data=(str(data),), out=tmp_path / "out.jsonl", format="trl")
    with JobProgress(quiet=True) as progress:
        outcome = run_export(config, progress)
    assert outcome.summary["records"]["left_out_by_code"] == {"E_EXPORT_TOOLS": 2}


def test_a_record_is_rewritten_with_what_it_tells_its_template(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (model / "chat_template.jinja").write_text("{{ mood }}" + TEMPLATE)
    data = tmp_path / "told.jsonl"
    row = {"prompt": "a pear?", "response": "4", "answer": "4"}
    data.write_text(json.dumps({**row, "chat_template_kwargs": {"mood": "calm"}}) + "\n")
    asked: list[str] = []
    encode = TextEncoder.encode_context

    def noting(*given: Any) -> Any:  # noqa: ANN401
        ids = encode(*given)
        asked.append(given[0].tokenizer.decode(ids[:8].tolist()))
        return ids

    monkeypatch.setattr(TextEncoder, "encode_context", noting)
    for method in ("answer", "rewrite"):
        config = RewriteConfig(
            model=str(model),
            data=(str(data),),
            out=tmp_path / method,
            method=method,
            precision="fp32",
            samples=1,
            max_new_tokens=2,
        )
        with JobProgress(quiet=True) as progress:
            run_rewrite(config, progress)
    assert asked == ["calmuser", "calmuser"]


def test_a_call_at_the_end_of_a_sharegpt_conversation_is_the_answer_to_be_made() -> None:
    asked = {"from": "human", "value": "a pear?"}
    call = {"from": "function_call", "value": '{"name": "f"}'}
    question = as_question({"conversations": [asked, call]}, "conversations")
    assert question["messages"] == [asked]


def test_rewrite_puts_aside_what_it_would_show_as_text(
    model: Path, data: Path, tmp_path: Path
) -> None:
    config = RewriteConfig(
        model=str(model), data=(str(data),), out=tmp_path / "out", precision="fp32", samples=1
    )
    with JobProgress(quiet=True) as progress:
        run_rewrite(config, progress)
    left = {2: "E_REWRITE_TOOLS", 3: "E_REWRITE_TOOLS", 5: "E_RECORD_PART"}
    assert aside(tmp_path / "out") == left


def test_export_puts_aside_what_each_tool_has_under_other_names(data: Path, tmp_path: Path) -> None:
    config = ExportConfig(data=(str(data),), out=tmp_path / "out.jsonl", format="trl")
    with JobProgress(quiet=True) as progress:
        outcome = run_export(config, progress)
    # Parts too: each template joins them in its own way, so no one text is what was scored.
    left = {"E_EXPORT_TOOLS": 2, "E_EXPORT_PARTS": 1, "E_RECORD_PART": 1}
    assert outcome.summary["records"]["left_out_by_code"] == left
    (line,) = (tmp_path / "out.jsonl").read_text().splitlines()
    assert [turn["content"] for turn in json.loads(line)["prompt"]] == [QUESTION["content"]]


def test_examples_with_tools_stand_before_no_question(data: Path) -> None:
    with pytest.raises(InputError, match="no other question would have") as caught:
        read_examples(DataFile("data.jsonl", data), {}, 1)
    assert caught.value.code == "E_FEW_SHOT"


def test_a_record_is_another_one_with_another_tool_call_or_part() -> None:
    def name(row: dict[str, Any]) -> int:
        return read_record(row, detect_form(row), file="f", line=1, stem="f").text_digest()

    rows = [
        *ROWS[:4],
        {"messages": [QUESTION, ANSWER], "tools": TOOLS},
        {"messages": [QUESTION, ANSWER], "tools": [{"name": "g"}]},
        {"messages": [QUESTION, ANSWER], "chat_template_kwargs": {"mood": "calm"}},
        {"messages": [QUESTION, {**CALLING, "tool_calls": TOOLS}]},
        {"messages": [QUESTION, {**CALLING, "tool_calls": [{"name": "g"}]}]},
        {"messages": [{"role": "user", "content": "a\nb"}, ANSWER]},
    ]
    assert len(set(map(name, rows))) == len(rows)
