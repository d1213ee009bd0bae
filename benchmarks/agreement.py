"""The same records through every tool that gives log-probs: how far are they apart?

    python benchmarks/agreement.py --models embedded DIR --peers .venv-peers/bin/python \
        --out benchmarks/results/agreement_cpu.json --markdown docs/agreement.md

In: model folders, and real answers that come with the package. Out: by model and tool the mean and largest difference
of a token's log-prob from the truth of its weights (`agreement_tools.py`), in nats, and whether it is within the
tolerance of what it computes in. llama.cpp takes part where the folder holds a `*-f32.gguf` of the same model and
`--peers` names a python with llama-cpp-python; a peer that is not there, or stops, passes nothing and fails nothing.
Exit code 1 where a tool is beyond its tolerance.

Tolerances were fixed by what the numbers can hold, before any tool was run. fp32: 1e-4 a token, a few hundred
roundings of 6e-8 at log-probs of ten, which is what lm-eval's users are promised too. bf16 has 8 bits: single tokens
may be far off where the model is unsure, so what counts is the mean of a record, from which its perplexity comes: 0.02.
A cache of keys and values in f16 has 11 bits: 0.0025.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from agreement_tools import Answer, Example, FamEngine, LlamaCpp, LmEval, Server, Transformers

from fam_engine.data.records import detect_form, read_record
from fam_engine.data.tokenizer import Encoded, TextEncoder
from fam_engine.embedded import DEMO_RECORDS, MODEL
from fam_engine.jobs.bench.machine import describe_machine
from fam_engine.jobs.bench.workers import Subject, Worker

# The longest record, tokens: what every model here can read.
LONGEST = 512
# Nats: of any token, and of the mean of any record.
TOLERANCES = {
    "fp32": {"token": 1e-4, "record": 1e-4},
    "fp32, cache f16": {"record": 0.0025},
    "bf16": {"record": 0.02},
}
BEGIN, END = "<!-- table: benchmarks/agreement.py -->", "<!-- end of table -->"


@dataclass(frozen=True)
class Tool:
    """A row of the table.

    Attributes:
        name: The tool.
        weights: How the weights are held: `fp32`, `bf16` or `nf4`.
        computed: What is computed in, a key of `TOLERANCES`.
        make: Its subject.
        arguments: After the model's folder, or the GGUF.
    """

    name: str
    weights: str
    computed: str
    make: Callable[..., Subject]
    arguments: tuple[str, ...]


TOOLS = (
    Tool("transformers", "fp32", "fp32", Transformers, ("fp32", "fp32")),
    Tool("lm-eval, `hf`", "fp32", "fp32", LmEval, ("hf",)),
    Tool("lm-eval, `fam-engine`", "fp32", "fp32", LmEval, ("fam-engine",)),
    Tool("llama.cpp", "fp32", "fp32", LlamaCpp, ("f32",)),
    Tool("llama.cpp", "fp32", "fp32, cache f16", LlamaCpp, ("f16",)),
    Tool("fam-engine", "fp32", "fp32", FamEngine, ("fp32", "fp32")),
    Tool("`serve`, `/v1/score`", "fp32", "fp32", Server, ("/v1/score",)),
    Tool("`serve`, `/v1/completions`", "fp32", "fp32", Server, ("/v1/completions",)),
    Tool("transformers", "bf16", "bf16", Transformers, ("bf16", "bf16")),
    Tool("fam-engine", "bf16", "bf16", FamEngine, ("bf16", "bf16")),
    Tool("transformers, bitsandbytes", "nf4", "fp32", Transformers, ("nf4", "fp32")),
    Tool("fam-engine", "nf4", "fp32", FamEngine, ("nf4", "fp32")),
    Tool("transformers, bitsandbytes", "nf4", "bf16", Transformers, ("nf4", "bf16")),
    Tool("fam-engine", "nf4", "bf16", FamEngine, ("nf4", "bf16")),
)


def main() -> None:
    """Compare, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=["embedded"])
    parser.add_argument("--records", type=int, default=64)
    parser.add_argument("--peers", default=sys.executable, help="a python with llama-cpp-python")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--markdown", type=Path, help="a page whose table is replaced")
    options = parser.parse_args()
    results: dict[str, Any] = {
        "environment": describe_machine("cpu", options.threads),
        "tolerances": TOLERANCES,
        "models": [],
    }
    for name in options.models:
        folder = MODEL if name == "embedded" else Path(name)
        examples = make_examples(folder, options.records)
        results["models"].append(
            {
                "model": folder.name if name != "embedded" else name,
                "records": len(examples),
                "tokens": sum(len(one.response) for one in examples),
                "rows": compare(folder, examples, options),
            }
        )
    if options.out:
        options.out.write_text(json.dumps(results, indent=1) + "\n")
    if options.markdown:
        replace_table(options.markdown, results)
    rows = [row for model in results["models"] for row in model["rows"]]
    sys.exit(any(row.get("agrees") is False for row in rows))


def make_examples(folder: Path, count: int) -> list[Example]:
    """Encode the first answers, each to another question, that every model can read."""
    rows = [json.loads(line) for line in DEMO_RECORDS.read_text(encoding="utf-8").splitlines()]
    rows = list({row["prompt"]: row for row in reversed(rows)}.values())[::-1]
    form = detect_form(rows[0])
    records = [read_record(row, form, file="demo", line=1, stem="demo") for row in rows]
    encoder = TextEncoder(folder, template="none")
    examples = []
    for record, encoded in zip(records, encoder.encode(records), strict=True):
        assert isinstance(encoded, Encoded)
        context, response = encoded.context_ids.tolist(), encoded.response_ids.tolist()
        if len(context) + len(response) <= LONGEST:
            examples.append(Example(record.verbatim + record.response, context, response))
    encoder.close()
    return examples[:count]


def compare(
    folder: Path, examples: list[Example], options: argparse.Namespace
) -> list[dict[str, Any]]:
    """Ask every tool, and say how far it is from the truth of its weights."""
    truths: dict[str, Answer] = {}
    rows = []
    for tool in TOOLS:
        row: dict[str, Any] = {"tool": tool.name, "weights": tool.weights}
        row |= {"computed": tool.computed}
        answer = ask(tool, folder, examples, options)
        if isinstance(answer, str):
            row["absent"] = answer
        else:
            if tool.weights not in truths:
                truth = Tool("truth", tool.weights, "fp64", Transformers, (tool.weights, "fp64"))
                truths[tool.weights] = _present(ask(truth, folder, examples, options))
            row |= distance(answer, truths[tool.weights], examples)
            row["agrees"] = within(row, TOLERANCES[tool.computed])
        rows.append(row)
        print(folder.name, json.dumps(row), flush=True)
    return rows


def ask(
    tool: Tool, folder: Path, examples: list[Example], options: argparse.Namespace
) -> Answer | str:
    """Run a tool in a process of its own; where a peer cannot, say why."""
    source, python, threads = str(folder), sys.executable, options.threads
    if tool.make is LlamaCpp:
        files = sorted(folder.glob("*-f32.gguf"))
        if len(files) != 1:
            return "no f32 GGUF of this model"
        source, python, threads = str(files[0]), options.peers, None
    try:
        with Worker(tool.make, source, *tool.arguments, threads=threads, python=python) as worker:
            answer: Answer = worker.run(examples).answer
            return answer
    except Exception as error:
        if tool.make in (FamEngine, Server):
            raise
        is_missing = isinstance(error, FileNotFoundError | ModuleNotFoundError)
        return "not installed" if is_missing else f"stops: {error}"


def _present(answer: Answer | str) -> Answer:
    assert isinstance(answer, Answer), answer
    return answer


def distance(answer: Answer, truth: Answer, examples: list[Example]) -> dict[str, Any]:
    """Compare with the truth: nats a token."""
    lengths = np.array([len(one.response) for one in examples])
    of_records = np.abs(np.array(answer.sums) - np.array(truth.sums)) / lengths
    found: dict[str, Any] = {"versions": answer.versions, "record_largest": of_records.max()}
    if answer.logprobs:
        pairs = zip(answer.logprobs, truth.logprobs, strict=True)
        of_tokens = np.concatenate([np.abs(one - other) for one, other in pairs])
        found |= {"token_mean": of_tokens.mean(), "token_largest": of_tokens.max()}
    same = [own == one.ids for own, one in zip(answer.own_ids, examples, strict=True)]
    return {**found, "records_with_same_ids": sum(same)}


def within(row: dict[str, Any], tolerance: dict[str, float]) -> bool:
    """Whether a row is within its tolerance, token by token where the tool gives tokens."""
    kinds = [kind for kind in tolerance if f"{kind}_largest" in row]
    return all(row[f"{kind}_largest"] <= tolerance[kind] for kind in kinds)


def replace_table(page: Path, results: dict[str, Any]) -> None:
    """Write the table into the page, in place of the one between the marks."""
    text = page.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    page.write_text(f"{before}{BEGIN}\n{markdown(results)}{END}{after}", encoding="utf-8")


def markdown(results: dict[str, Any]) -> str:
    """Give the tables as Markdown, one a model."""
    return "".join(f"\n{_heading(model)}\n{_table(model)}\n" for model in results["models"])


def _heading(model: dict[str, Any]) -> str:
    return f"**{model['model']}**, {model['records']} records, {model['tokens']:,} tokens:\n"


def _table(model: dict[str, Any]) -> str:
    lines = [
        "| tool | weights | computed in | mean of a token | largest of a token "
        "| largest of a record's mean | tolerance | agrees | its own ids are the same |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    return "\n".join(lines + [_line(row, model["records"]) for row in model["rows"]]) + "\n"


def _line(row: dict[str, Any], num_records: int) -> str:
    cells = [row["tool"], row["weights"], row["computed"]]
    if "absent" in row:
        cells += [row["absent"], "", "", "", "-", "-"]
    else:
        cells += [_nats(row.get(key)) for key in ("token_mean", "token_largest", "record_largest")]
        cells.append(_tolerance(TOLERANCES[row["computed"]]))
        cells.append("yes" if row["agrees"] else "**no**")
        cells.append(f"{row['records_with_same_ids']} of {num_records}")
    return f"| {' | '.join(cells)} |"


def _nats(value: float | None) -> str:
    return "sums only" if value is None else "0" if value == 0 else f"{value:.1e}"


def _tolerance(tolerance: dict[str, float]) -> str:
    kind = "token" if "token" in tolerance else "record"
    return f"{tolerance[kind]:g} a {kind}"


if __name__ == "__main__":
    main()
