"""Spoilt input through whole commands: each run ends in order, or with one line that says which file is wrong.

`BAD_INPUTS` (default 520) sets how many in all, `BAD_INPUT_SEED` which; a failing one is printed with its seed.
"""

from __future__ import annotations

import gzip
import json
import os
import random
import re
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from fam_engine import errors
from tests.faults import mutations
from tests.faults.forking import Ended, at_once, limit_resources, run

NUM_INPUTS = int(os.environ.get("BAD_INPUTS", "520"))
SEED = int(os.environ.get("BAD_INPUT_SEED", "8"))

pytestmark = pytest.mark.faults

# What bad input may end in: a finished job, or one of these refusals. Never our own bug.
DONE = (errors.EXIT_OK, errors.EXIT_QUARANTINED)
REFUSED = tuple(
    kind.exit_code for kind in (errors.UsageError, errors.InputError, errors.ModelRefusedError)
)
ONE_LINE = re.compile(r"error\[E_[A-Z0-9_]+\]( \S.*)?: .+\n")
EARLIER = "what was here before"

Spoil = Callable[[random.Random, bytes], bytes]


@dataclass(frozen=True)
class Kind:
    """A kind of file, and what reads it.

    Attributes:
        file: The file in the folder of good ones.
        spoil: Makes a bad one of it.
        commands: Command lines it is given to in turn; {} stands for the folder.
        is_named: Whether every refusal names this file; settings may name another one, scores may
            leave nothing to select.
    """

    file: str
    spoil: Spoil
    commands: tuple[str, ...]
    is_named: bool = True


MODEL = "--model {}/model --out out --quiet"
SCORE = "score --model {}/model --data {}/good.jsonl --out out --quiet"
READERS = tuple(
    f"{command} --data {{}}/FILE {MODEL}"
    for command in (
        "score",
        "score --ifd --tokens",
        "tokenize",
        "generate --max-new-tokens 2",
        "eval --max-new-tokens 2",
        "train --steps 1",
    )
)
TEMPLATE = """{%- for message in messages -%}
{%- if message.role == 'system' %}{{ raise_exception('no system') }}{% endif -%}
{{ '<s>' + message.role + '\\n' + message.content | trim + '</s>' }}
{%- endfor %}{% if add_generation_prompt %}{{ '<s>assistant\\n' }}{% endif %}"""
SELECT = "select --data {}/good.jsonl --scores {}/scored/scores.parquet --out out --quiet"


def readers(file: str) -> tuple[str, ...]:
    return tuple(reader.replace("FILE", file) for reader in READERS)


KINDS = {
    "lines": Kind("data.jsonl", mutations.bad_lines, readers("data.jsonl")),
    "array": Kind("array.json", mutations.bad_json, readers("array.json")),
    "compressed lines": Kind("data.jsonl.gz", mutations.damage, readers("data.jsonl.gz")),
    "compressed array": Kind("array.json.zst", mutations.damage, readers("array.json.zst")),
    "parquet": Kind("data.parquet", mutations.bad_parquet, readers("data.parquet")),
    "scores": Kind("scored/scores.parquet", mutations.bad_parquet, (SELECT,), is_named=False),
    "settings": Kind(
        "settings.yaml",
        mutations.bad_yaml,
        ("score --config {}/settings.yaml --quiet",),
        is_named=False,
    ),
    "study": Kind(
        "study.yaml",
        mutations.bad_yaml,
        ("experiment {}/study.yaml --out out --dry-run --quiet",),
        is_named=False,
    ),
    "tokenizer": Kind("model/tokenizer.json", mutations.bad_json, (SCORE,)),
    "library's tokenizer": Kind(
        "unigram/tokenizer.json", mutations.bad_json, (SCORE.replace("/model", "/unigram"),)
    ),
    "template": Kind(
        "template.jinja", mutations.bad_template, (f"{SCORE} --template {{}}/template.jinja",)
    ),
    "tokenizer's settings": Kind("model/tokenizer_config.json", mutations.bad_json, (SCORE,)),
    "configuration": Kind("model/config.json", mutations.bad_json, (SCORE,)),
    "weights": Kind("model/model.safetensors", mutations.bad_safetensors, (SCORE,)),
    "index": Kind(
        "sharded/model.safetensors.index.json",
        mutations.bad_json,
        (SCORE.replace("/model", "/sharded"),),
    ),
    "adapter's settings": Kind(
        "adapter/adapter_config.json", mutations.bad_json, (f"{SCORE} --adapter {{}}/adapter",)
    ),
    "adapter's weights": Kind(
        "adapter/adapter_model.safetensors",
        mutations.bad_safetensors,
        (f"{SCORE} --adapter {{}}/adapter",),
    ),
}


@pytest.fixture(scope="module")
def good(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a good file of every kind."""
    folder = tmp_path_factory.mktemp("good")
    write_data(folder)
    shutil.copytree(tiny_model, folder / "model")
    write_shards(folder / "model", folder / "sharded")
    write_unigram(folder / "model", folder / "unigram")
    (folder / "template.jinja").write_text(TEMPLATE)
    write_settings(folder)
    here = str(folder)
    for words in (
        f"score --model {here}/model --data {here}/good.jsonl --out scored --quiet",
        f"train --model {here}/model --data {here}/good.jsonl --out trained --steps 1 --quiet",
    ):
        ended = run(words.split(), folder)
        assert ended.code == 0, ended
    (folder / "trained" / "adapter").rename(folder / "adapter")
    shutil.rmtree(folder / "trained")
    return folder


def write_data(folder: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows: list[dict[str, object]] = [
        {
            "id": str(number),
            "prompt": f"question {number}\n",
            "response": "one two",
            "answer": "two",
            "correct": number % 2 == 0,
        }
        for number in range(6)
    ]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    for name in ("data.jsonl", "good.jsonl"):
        (folder / name).write_text(lines)
    array = json.dumps(rows, indent=1)
    (folder / "array.json").write_text(array)
    (folder / "data.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    with pa.output_stream(folder / "array.json.zst", compression="zstd") as file:
        file.write(array.encode())
    pq.write_table(pa.Table.from_pylist(rows), folder / "data.parquet", row_group_size=2)


def write_shards(model: Path, folder: Path) -> None:
    """Write the same model in two files and an index."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(model, folder)
    (folder / "model.safetensors").unlink()
    tensors = load_file(model / "model.safetensors")
    names, places = sorted(tensors), {}
    for number, part in enumerate((names[::2], names[1::2]), 1):
        file = f"model-{number}.safetensors"
        save_file({name: tensors[name] for name in part}, folder / file)
        places.update(dict.fromkeys(part, file))
    index = {"metadata": {"total_size": 1}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def write_unigram(model: Path, folder: Path) -> None:
    """Write the same model with a tokenizer that only the library knows."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

    shutil.copytree(model, folder)
    texts = ["<unk>", "<s>", "</s>", *map(chr, range(32, 127)), "tion", "\u2581one", "\u2581two"]
    tokenizer = Tokenizer(models.Unigram([(text, -float(n)) for n, text in enumerate(texts)], 0))
    replace = normalizers.Replace(Regex(" {2,}"), " ")
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), replace])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    special = [(text, texts.index(text)) for text in ("<s>", "</s>")]
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A", "$A $B", special)
    tokenizer.add_special_tokens([text for text, _ in special])
    tokenizer.save(str(folder / "tokenizer.json"))


def write_settings(folder: Path) -> None:
    import yaml

    settings = {
        "model": "model",
        "data": ["good.jsonl"],
        "out": "out",
        "precision": "nf4",
        "in_context": 1,
        "max_tokens_per_batch": 128,
        "map": {"response": "response"},
    }
    (folder / "settings.yaml").write_text(yaml.safe_dump(settings))
    study = Path(errors.__file__).parent / "jobs/experiment/studies/small.yaml"
    shutil.copy(study, folder / "study.yaml")


def prepare(good: Path, folder: Path) -> None:
    """Make all that a command reads, and what must stay."""
    shutil.copytree(good, folder, copy_function=os.link)
    (folder / "out").mkdir()
    (folder / "out" / "earlier").write_text(EARLIER)


def run_in(folder: Path, words: str) -> Ended:
    """Run a command with all it reads in a folder."""
    return run(words.replace("{}", ".").split(), folder, limit_resources)


def check(ended: Ended, folder: Path, kind: Kind) -> str:
    """Make sure that a command has ended as it should; give its outcome."""
    out = folder / "out"
    assert (out / "earlier").read_text() == EARLIER
    left = {path.name for path in out.iterdir()} - {".fam-engine", "earlier"}
    assert "Traceback" not in ended.printed + ended.errors
    assert "panicked" not in ended.printed + ended.errors
    if ended.code in DONE:
        assert ended.errors == ""
        check_outputs(out, left)
        return f"exit code {ended.code}"
    # Settings may name a folder that cannot be.
    assert ended.code in REFUSED or (
        not kind.is_named and ended.code == errors.StorageError.exit_code
    )
    assert ONE_LINE.fullmatch(ended.errors)
    if kind.is_named:
        file = Path(kind.file)
        assert file.name in ended.errors or file.parent.name in ended.errors.split(": ")[0]
    assert left <= {"log.jsonl"}
    return ended.errors.split("]")[0]


def check_outputs(out: Path, left: set[str]) -> None:
    import pyarrow.parquet as pq

    assert not any(name.endswith((".partial", ".old")) for name in left)
    for path in out.glob("*.parquet"):
        pq.read_table(path)
    if (out / "summary.json").exists():
        records = json.loads((out / "summary.json").read_text()).get("records", {})
        quarantine = (out / "quarantine.jsonl").read_text().splitlines()
        assert all({"file", "line", "code"} <= json.loads(line).keys() for line in quarantine)
        if "scored" in records:
            assert records["read"] == records["scored"] + records["quarantined"]


def test_good_files_are_taken(good: Path, tmp_path: Path) -> None:
    """Otherwise a refusal of a bad one would mean nothing."""

    def take(numbered: tuple[int, str]) -> None:
        number, words = numbered
        prepare(good, tmp_path / str(number))
        ended = run_in(tmp_path / str(number), words)
        assert (ended.code, ended.errors) == (0, ""), (words, ended)

    at_once(take, enumerate(words for kind in KINDS.values() for words in kind.commands))


@pytest.mark.parametrize("name", KINDS)
def test_spoilt_files_end_in_order(good: Path, tmp_path: Path, name: str) -> None:
    kind = KINDS[name]
    count = -(-NUM_INPUTS // len(KINDS))
    faults = []

    def outcome(number: int) -> str | None:
        rng, folder = random.Random(f"{SEED} {name} {number}"), tmp_path / str(number)
        prepare(good, folder)
        words = rng.choice(kind.commands)
        bad = kind.spoil(rng, (good / kind.file).read_bytes())
        (folder / kind.file).unlink()  # a link to the good one
        (folder / kind.file).write_bytes(bad)
        ended = run_in(folder, words)
        try:
            found = check(ended, folder, kind)
        except AssertionError as error:
            faults.append(f"{words}: {ended}\n{bad[:2000]!r}\n{error}")
            return None
        shutil.rmtree(folder)
        return found

    outcomes = Counter(at_once(outcome, range(count)))
    print(name, dict(outcomes))
    assert not faults, f"{len(faults)} of {count}, seed {SEED}:\n" + "\n\n".join(faults[:20])
    assert set(outcomes) - {"exit code 0"}, "nothing was really spoilt"
