"""Pass 1 through Rust against pass 1 in Python: the same bytes, the same rows, the same quarantine."""

from __future__ import annotations

import json
import random
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fam_engine.data import fast_records
from fam_engine.data.tokenizer import TextEncoder
from fam_engine.errors import InputError
from fam_engine.jobs.data_files import DataFile
from fam_engine.jobs.journal import Journal
from fam_engine.jobs.scoring import ingest
from fam_engine.jobs.scoring.entries import SCHEMA
from fam_engine.jobs.scoring.ingest import Ingest, IngestPlan

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEMPLATES = {
    "chatml": CHATML,
    "trimming": CHATML.replace("m.content", "m.content | trim"),
    "doubled": f"<s><s>{CHATML}",
    # White space of its own where it takes away the answer's.
    "spacing": CHATML.replace("\n{{ m.content }}", "\n\n{{ m.content | trim }}\n").replace(
        "assistant\n", "assistant"
    ),
}
Encoders = Callable[..., TextEncoder]


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Encoders]:
    """Encoders of a byte-level tokenizer with a few merges, by template, boundary and parsing."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    folder = tmp_path_factory.mktemp("bytes")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("a", "b"), ("Ċ", "a"), ("Ċ", "Ċ"), ("Ġ", "a")]
    pieces = [*alphabet, *(left + right for left, right in merges)]
    model = models.BPE({piece: number for number, piece in enumerate(pieces)}, merges)
    made = Tokenizer(model)
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.add_special_tokens(["<s>", "</s>", "<|im_start|>", "<|im_end|>"])
    made.save(str(folder / "tokenizer.json"))
    config = {"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": True}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    for name, source in TEMPLATES.items():
        (folder / f"{name}.jinja").write_text(source)
    cache: dict[tuple[str, str, bool], TextEncoder] = {}

    def get(template: str, boundary: str, parse_special: bool) -> TextEncoder:
        key = template, boundary, parse_special
        if key not in cache:
            file = "none" if template == "none" else str(folder / f"{template}.jinja")
            cache[key] = TextEncoder(
                folder,
                template=file,
                boundary=boundary,
                parse_special=parse_special,  # type: ignore[arg-type]
            )
        return cache[key]

    yield get
    for encoder in cache.values():
        encoder.close()


def outcome(
    folder: Path,
    encoder: TextEncoder,
    plan: IngestPlan,
    files: list[DataFile],
    *,
    fast: bool = True,
    num_threads: int | None = None,
) -> dict[str, Any]:
    """Run pass 1 and give all it leaves."""
    with Journal(folder, {}, SCHEMA) as journal:
        run = Ingest(journal, encoder, plan, num_threads=num_threads)
        if not fast:
            run._fast = None
        counts: list[int] = []
        try:
            run.run(files, counts.append)
        except InputError as error:
            return {"error": str(error)}
        tables = {
            name: journal.db.execute(f"SELECT * FROM {name} ORDER BY 1").fetchall()
            for name in ("records", "texts", "quarantine")
        }
        spool = {name: (run.folder / name).read_bytes() for name in ("data.bin", "index.bin")}
        return {**tables, **spool, "forms": journal.get("forms"), "read": sum(counts)}


# -- files ---------------------------------------------------------------------------------------

FRAGMENTS = (
    *("a", "b", "ab", "q", "p", "A", " ", "\n", "\n\n", "\t", "\r\n", "\u2003", "\x1c", "\x85"),
    *("é", "😀", "\u200b", "\u2028", '"', "\\", "/", "\x00", "{{ 1 }}", "abab " * 9),
    *("<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|im_", "end|>", "<|"),
)
texts = st.lists(st.sampled_from(FRAGMENTS), min_size=1, max_size=6).map("".join)
odd = st.sampled_from(
    [None, "", 0, 1, -7, 1.5, 1e30, -0.0, 10**30, True, False, [], {}, ["a"], {"a": 1}, [[]]]
)
odd_labels = st.fixed_dictionaries(
    {},
    optional={
        "id": st.one_of(st.sampled_from(["x", "y", 3]), odd),
        "source": st.one_of(texts, odd),
        "group": st.one_of(texts, odd),
        "correct": st.one_of(st.booleans(), odd),
        "task": st.one_of(texts, odd),
        "answer": st.one_of(texts, odd),
        "tools": st.one_of(st.none(), st.just([]), odd),
        "chat_template_kwargs": odd,
        "system": st.one_of(texts, odd),
        "history": st.one_of(st.just([["a", "b"]]), odd),
        "other": odd,
    },
)
good_labels = st.fixed_dictionaries(
    {},
    optional={
        "id": st.one_of(texts, st.integers(), st.none()),
        "source": texts,
        "group": st.one_of(texts, st.integers()),
        "correct": st.one_of(st.booleans(), st.none()),
        "task": st.one_of(texts, st.floats(allow_nan=False, allow_infinity=False)),
    },
)
labels = st.one_of(good_labels, good_labels, good_labels, odd_labels)
roles = st.sampled_from(["system", "user", "assistant", "tool", "human", "gpt", "developer"])
calls = st.one_of(st.none(), st.just([]), st.just([{"name": "ab"}]), odd)
turn = st.one_of(
    st.fixed_dictionaries({"role": roles, "content": texts}),
    st.fixed_dictionaries({"role": roles, "content": texts, "tool_calls": calls, "name": odd}),
    st.fixed_dictionaries({"from": roles, "value": texts}),
    st.fixed_dictionaries({"role": st.one_of(roles, odd), "content": st.one_of(texts, odd)}),
    st.fixed_dictionaries({"from": st.one_of(roles, odd), "value": texts, "role": roles}),
)
asked = texts.map(lambda text: [{"role": "user", "content": text}])
turns = st.one_of(asked, asked, asked, st.just([]), st.lists(turn, max_size=3))
answered = st.tuples(turns, texts.map(lambda text: [{"role": "assistant", "content": text}])).map(
    lambda pair: pair[0] + pair[1]
)
FORMS: dict[str, dict[str, Any]] = {
    "messages and a response": {"messages": turns, "response": texts},
    "messages": {"messages": st.one_of(answered, answered, turns)},
    "ShareGPT": {"conversations": st.one_of(answered, answered, turns)},
    "prompt and response": {
        "prompt": st.one_of(texts, turns),
        "response": st.one_of(texts, texts, answered),
    },
    "prompt and completion": {"prompt": texts, "completion": texts},
    "question and answer": {"question": texts, "answer": texts},
    "instruction": {"instruction": texts, "input": st.one_of(texts, odd), "output": texts},
}


SAID = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
FIRST: dict[str, dict[str, Any]] = {
    "messages and a response": {"messages": SAID[:1], "response": "b"},
    "messages": {"messages": SAID},
    "ShareGPT": {"conversations": SAID},
    "prompt and response": {"prompt": "a", "response": "b"},
    "prompt and completion": {"prompt": "a", "completion": "b"},
    "question and answer": {"question": "a", "answer": "b"},
    "instruction": {"instruction": "a", "output": "b"},
}


@st.composite
def lines(draw: st.DrawFn, form: str) -> bytes:
    """One line, most of the time one that holds a record."""
    row = draw(labels) | draw(st.fixed_dictionaries(FORMS[form]))
    if draw(st.integers(0, 19)) == 0:
        row[draw(st.sampled_from(sorted(row)))] = draw(odd)
    text = json.dumps(
        row, ensure_ascii=draw(st.booleans()), separators=draw(st.sampled_from([None, (",", ":")]))
    )
    if draw(st.booleans()):
        # Escapes that need not be, in texts and keys alike; no word of JSON has these letters.
        text = text.replace("p", "\\u0070").replace("q", "\\u0071")
    damage = draw(st.integers(0, 59))
    if damage == 0:
        text = text[: draw(st.integers(0, len(text)))]
    elif damage == 1:
        text = text.replace("{", '{"id": "once", ', 1)
    elif damage == 2:
        text = text.replace("{", '{"lone": "\\ud800", ', 1)
    elif damage == 3:
        text = ""
    elif damage == 4:
        text = text.replace("a", "\U000f0000")
    blank = st.sampled_from(["", " ", "\t"])
    end = draw(st.sampled_from(["\n", "\n", "\r\n", "\n\n"]))
    return (draw(blank) + text + draw(blank) + end).encode("utf-8", "surrogatepass")


@st.composite
def data_files(draw: st.DrawFn) -> bytes:
    """A file, most of the time of one form."""
    form = draw(st.sampled_from(sorted(FORMS)))
    forms = st.sampled_from([form] * 20 + sorted(FORMS))
    body = b"".join(draw(st.lists(forms.flatmap(lines), min_size=2, max_size=12)))
    if draw(st.integers(0, 4)):
        # Most files begin with a record that tells their form; what follows is for Rust.
        body = json.dumps(FIRST[form]).encode() + b"\n" + body
    start = draw(st.sampled_from([b"", b"", b"", b"\xef\xbb\xbf", b"\n"]))
    return start + body + draw(st.sampled_from([b"", b"", b"{", b"\xff\n"]))


plans = st.builds(
    IngestPlan,
    max_length=st.sampled_from([10_000, 10_000, 10_000, 90]),
    on_long=st.sampled_from(["quarantine", "cut-prompt"]),
    columns=st.sampled_from(
        [
            *[None] * 9,
            {"response": "answer"},
            {"prompt": "question", "id": "prompt"},
            {"id": "task"},
        ]
    ),
    limit=st.sampled_from([None, None, None, 1, 5]),
    ifd=st.sampled_from([False] * 9 + [True]),
)


@settings(
    deadline=None,
    max_examples=200,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(
    contents=st.lists(data_files(), min_size=1, max_size=2),
    plan=plans,
    template=st.sampled_from(["none", *TEMPLATES]),
    boundary=st.sampled_from(["separate", "joint"]),
    parse_special=st.booleans(),
    chunk=st.sampled_from([1, 3, 4096]),
    num_threads=st.sampled_from([1, 3]),
)
def test_both_ways_leave_the_same(
    encoders: Encoders,
    contents: list[bytes],
    plan: IngestPlan,
    template: str,
    boundary: str,
    parse_special: bool,
    chunk: int,
    num_threads: int,
) -> None:
    encoder = encoders(template, boundary, parse_special)
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        folder = Path(name)
        files = []
        for number, content in enumerate(contents):
            path = folder / f"data{number}.jsonl"
            path.write_bytes(content)
            files.append(DataFile(f"data{number}", path))
        slow = outcome(folder / "slow", encoder, plan, files, fast=False)
        patch.setattr(ingest, "_FAST_CHUNK", chunk)
        fast = outcome(folder / "fast", encoder, plan, files, num_threads=num_threads)
    assert fast == slow


ODD_ROWS: tuple[dict[str, Any], ...] = (
    {"id": True},
    {"id": 1.0},
    {"group": []},
    {"correct": 1},
    {"task": {}},
    {"source": False},
    {"question": ""},
    {"answer": ""},
    {"answer": None},
    {"question": 3},
    {"question": "\U000f0000"},
    {"answer": "ab " * 200},
)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("template", ["none", "chatml", "trimming"])
def test_odd_rows_keep_their_place_among_usual_ones(
    encoders: Encoders, tmp_path: Path, seed: int, template: str
) -> None:
    chance = random.Random(seed)
    rows = []
    for number in range(400):
        said = ["".join(chance.choices(FRAGMENTS, k=3)) for _ in range(2)]
        row = {"question": said[0], "answer": said[1], "id": chance.choice([number, "twice", None])}
        row |= chance.choice(ODD_ROWS) if number and chance.random() < 0.2 else {}
        text = json.dumps(row)
        rows.append(text[:-3] if number and chance.random() < 0.05 else text)
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join(rows))
    encoder = encoders(template, "separate", False)
    plan = IngestPlan(300, "quarantine")
    slow = outcome(tmp_path / "slow", encoder, plan, [DataFile("d", path)], fast=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ingest, "_FAST_CHUNK", 150)
        fast = outcome(tmp_path / "fast", encoder, plan, [DataFile("d", path)])
    assert len(slow["quarantine"]) > 40
    assert len(slow["records"]) > 250
    assert fast == slow


# -- what the comparison cannot show ---------------------------------------------------------------


def count_fast(
    encoders: Encoders,
    tmp_path: Path,
    rows: list[bytes],
    template: str,
    **plan: Any,  # noqa: ANN401
) -> tuple[int, int]:
    """Run pass 1; give the numbers of records and of those that went through Rust."""
    path = tmp_path / "data.jsonl"
    path.write_bytes(b"\n".join(rows))
    taken = 0
    add_batch = ingest.EntryWriter.add_batch

    def counting(self: Any, batch: Any, start: int, stop: int, position: int) -> int:  # noqa: ANN401
        nonlocal taken
        taken += stop - start
        return add_batch(self, batch, start, stop, position)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ingest.EntryWriter, "add_batch", counting)
        orders = IngestPlan(10_000, "quarantine", **plan)
        encoder = encoders(template, "separate", False)
        left = outcome(tmp_path / "out", encoder, orders, [DataFile("data", path)])
    return len(left["records"]), taken


@pytest.mark.parametrize("template", ["none", "chatml", "trimming"])
def test_usual_records_go_through_rust(encoders: Encoders, tmp_path: Path, template: str) -> None:
    row = {"question": "a b", "answer": "b <s>", "id": "x", "correct": True, "task": 1.5}
    rows = [json.dumps(row).encode()] * 700
    assert count_fast(encoders, tmp_path, rows, template) == (700, 699)


def test_jobs_that_make_more_of_a_record_stay_in_python(encoders: Encoders, tmp_path: Path) -> None:
    rows = [b'{"question": "a", "answer": "b b"}'] * 5
    assert count_fast(encoders, tmp_path, rows, "none", ifd=True) == (5, 0)


def test_a_line_of_megabytes_goes_through_rust(encoders: Encoders, tmp_path: Path) -> None:
    small = b'{"question": "a", "answer": "b"}'
    large = json.dumps({"question": "a", "answer": "b", "notes": "n\n" * 2_000_000}).encode()
    assert count_fast(encoders, tmp_path, [small, large, small], "chatml") == (3, 2)


def test_a_shape_whose_ids_would_differ_stays_in_python(
    encoders: Encoders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fast_records, "_as_data", lambda _: (["wrong", (0, False)], []))
    rows = [b'{"question": "a", "answer": "b b"}'] * 5
    assert count_fast(encoders, tmp_path, rows, "chatml") == (5, 0)


REAL = ("qwen2.5", "llama3", "mistral_v03", "phi3_mini", "gpt2")


@pytest.mark.parametrize("name", REAL)
@pytest.mark.parametrize("template", ["auto", "none"])
@pytest.mark.parametrize("parse_special", [False, True])
def test_both_ways_leave_the_same_with_real_tokenizers(
    shared: Path, tmp_path: Path, name: str, template: str, *, parse_special: bool
) -> None:
    encoder = TextEncoder(
        shared / "tokenizers" / name,
        template=template,
        parse_special=parse_special,
        boundary="joint" if parse_special else "separate",
    )
    specials = [name for name, _ in encoder.tokenizer.special_tokens()]
    chance = random.Random(name)
    thrown = [*specials[:9], "<|im_end|>", " ", "\n", "\u0338", "\u0301", "\x1f", "ab", "1"]
    with (shared / "data" / "gsm8k" / "test.jsonl").open() as lines, closing(encoder):
        path = tmp_path / "data.jsonl"
        with path.open("w") as file:
            for line in islice(lines, 150):
                row = json.loads(line)
                field = chance.choice(["question", "answer"])
                at = chance.choice([0, 20, len(row[field])])
                row[field] = row[field][:at] + chance.choice(thrown) + row[field][at:]
                file.write(json.dumps(row) + "\n")
        plan = IngestPlan(4096, "quarantine")
        files = [DataFile("data", path)]
        slow = outcome(tmp_path / "slow", encoder, plan, files, fast=False)
        fast = outcome(tmp_path / "fast", encoder, plan, files)
    assert len(slow["records"]) == 150
    assert fast == slow


def test_what_has_no_token_to_predict_is_put_aside_both_ways(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models

    Tokenizer(models.BPE({"a": 0, "b": 1}, [])).save(str(tmp_path / "tokenizer.json"))
    texts = [("a", "b"), ("", "x"), ("a", "x"), ("", "a"), ("x", "b"), ("", "ab"), ("a", "ab")]
    rows = [{"prompt": prompt, "response": response} for prompt, response in texts]
    path = tmp_path / "data.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    files, plan = [DataFile("data", path)], IngestPlan(90, "quarantine")
    for boundary in ("separate", "joint"):
        with closing(TextEncoder(tmp_path, boundary=boundary)) as encoder:  # type: ignore[arg-type]
            slow = outcome(tmp_path / f"slow-{boundary}", encoder, plan, files, fast=False)
            assert outcome(tmp_path / f"fast-{boundary}", encoder, plan, files) == slow
        assert len(slow["records"]) == 3
        codes = [(line, code) for _, _, line, _, code, _ in slow["quarantine"]]
        assert codes == [(line, "E_EMPTY_TOKENS") for line in (2, 3, 4, 5)]


def test_a_second_answer_is_refused_both_ways(encoders: Encoders, tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    row = {"question": "a", "answer": "b"}
    rows = [row, row, row | {"response": "q"}, row | {"response": ""}, row]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    plan, files = IngestPlan(4096, "quarantine"), [DataFile("data", path)]
    encoder = encoders("none", "separate", False)
    slow = outcome(tmp_path / "slow", encoder, plan, files, fast=False)
    fast = outcome(tmp_path / "fast", encoder, plan, files)
    assert fast == slow
    assert len(slow["records"]) == 4
    assert "E_RECORD_FORM" in slow["quarantine"][0]
