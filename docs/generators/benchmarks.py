"""Tables of the benchmarks and of the matrix of versions, from the raw data.

In: `benchmarks/results/*.json` and `docs/compatibility.json`. Out: Markdown tables, each with where, when and with what
it was measured, and a link to its file. No figure in them is written by hand.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks import gpu_table

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"
NAMES = {
    "gpt2": "GPT-2",
    "llama3": "Llama 3",
    "qwen2.5": "Qwen2.5",
    "deepseek": "DeepSeek",
    "mistral_v03": "Mistral v0.3",
    "gemma_shaped_mistral_vocab": "Gemma's form, Mistral's tokens",
    "gsm8k": "GSM8K",
    "english": "English",
    "cjk": "Chinese, Japanese",
}


def score() -> str:
    """Give the tables of scoring, one a precision."""
    return "\n".join(_score(f"score_cpu_{precision}") for precision in ("bf16", "nf4"))


def _score(name: str) -> str:
    result = _read(name)
    rows = []
    for row in result["results"]:
        ours, peer = row["fam-engine"], row[row["best_peer"]]
        rows.append(
            [
                row["workload"],
                row["precision"],
                _rate(ours["effective_tokens_per_second"]),
                _rate(peer["effective_tokens_per_second"]),
                f"{row['ratio']:.2f}",
                f"{ours['peak_bytes'] / 2**30:.1f} against {peer['peak_bytes'] / 2**30:.1f} GiB",
                f"{row['logprob_difference']['mean']:.3f}",
            ]
        )
    heads = ["workload", "weights", "fam-engine, tokens/s", "transformers", "ratio", "peak memory"]
    return _table([*heads, "mean difference of a log-prob"], rows) + _about(result, name)


def gpu() -> str:
    """Give the tables of every GPU that was measured, or say that none was."""
    files = sorted(RESULTS.glob("gpu_*.json"))
    if not files:
        return "Not yet measured on a GPU.\n"
    return "\n".join(
        f"{gpu_table.markdown(_read(file.stem))}\n[{file.name}](../benchmarks/results/{file.name})\n"
        for file in files
    )


def tokenize(name: str = "tokenize_cpu") -> str:
    """Give the table of tokenizing, all rows."""
    result = _read(name)
    engines = list(dict.fromkeys(e for row in result["results"] for e in row["engines"]))
    rows = [
        [
            NAMES.get(row["tokenizer"], row["tokenizer"]),
            NAMES.get(row["corpus"], row["corpus"]),
            *(_speed(row["engines"].get(engine)) for engine in engines),
        ]
        for row in result["results"]
    ]
    return _table(["tokenizer", "text", *engines], rows) + _about(result, name)


def _speed(engine: dict[str, Any] | None) -> str:
    if not engine or engine.get("warm") is None:
        return "-"
    differ = engine["differing_ids"]
    note = f", {differ:,} ids differ" if differ else ""
    return f"{_rate(engine['warm'])} ({_rate(engine['cold'])}{note})"


def records() -> str:
    """Give the table of records to packs."""
    result = _read("records_cpu")
    rows = [
        [
            engine,
            f"{row['microseconds_a_record']:,.1f}",
            f"{row['ratio']:,.0f}",
            f"{row['peak_bytes'] / 2**20:,.0f}",
        ]
        for engine, row in result["results"].items()
    ]
    heads = ["engine", "microseconds a record", "times fam-engine's", "peak memory, MiB"]
    return _table(heads, rows) + _about(result, "records_cpu")


def packing() -> str:
    """Give the table of packing."""
    result = _read("packing_cpu")
    rows = [
        [
            NAMES.get(row["lengths"], row["lengths"]),
            row["packer"],
            f"{row['records']:,}",
            f"{row['cpu_seconds_a_million']:.3f}",
            f"{row['fill']:.2%}",
        ]
        for row in result["results"]
    ]
    heads = ["lengths", "packer", "records", "CPU seconds a million", "full"]
    return _table(heads, rows) + _about(result, "packing_cpu")


def lm_eval() -> str:
    """Give the table of lm-evaluation-harness, a row a task."""
    result = _read("lm_eval_cpu")
    rows = [
        [
            name,
            f"{row['requests']:,}",
            f"{row['seconds']['fam-engine']:.2f}",
            f"{row['seconds']['hf']:.2f}, batch size {row['hf_batch_size']}",
            f"{row['ratio']:.2f}",
            f"{row['largest_logprob_difference']:.1e}",
        ]
        for name, row in result.items()
        if isinstance(row, dict) and "requests" in row
    ]
    heads = ["task", "continuations", "fam-engine, s", "hf, s", "ratio", "largest difference"]
    return _table(heads, rows) + _about(result, "lm_eval_cpu")


def compatibility() -> str:
    """Give the matrix of versions, a column a run."""
    columns = json.loads((ROOT / "docs" / "compatibility.json").read_text(encoding="utf-8"))
    names = list(dict.fromkeys(n for column in columns.values() for n in column["versions"]))
    rows = [[n, *(column["versions"].get(n, "-") for column in columns.values())] for n in names]
    for what in ("passed", "skipped"):
        rows.append([what, *(f"{column[what]:,}" for column in columns.values())])
    rows.append(["failed", *(_failed(column["failed"]) for column in columns.values())])
    rows += [[what, *(column[what] for column in columns.values())] for what in ("date", "commit")]
    by_tests: dict[str, list[str]] = {}
    for name, column in columns.items():
        by_tests.setdefault(column["tests"], []).append(name)
    ran = [f"\nTests of {', '.join(names)}: `{tests}`\n" for tests, names in by_tests.items()]
    return _table(["", *columns], rows) + "".join(ran)


def _failed(names: list[str]) -> str:
    return "0" if not names else f"{len(names)}: " + ", ".join(f"`{name}`" for name in names)


def _read(name: str) -> dict[str, Any]:
    result: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return result


def _about(result: dict[str, Any], name: str) -> str:
    about = result["environment"]
    shown = (
        "fam-engine",
        "torch",
        "transformers",
        "tokenizers",
        "bitsandbytes",
        "lm_eval",
        "trl",
        "axolotl",
    )
    versions = ", ".join(f"{n} {about['versions'][n]}" for n in shown if n in about["versions"])
    where = f"{about['device'].strip()}, {about['date']}, commit {about['commit']}, {versions}"
    return f"\n{where}. [{name}.json](../benchmarks/results/{name}.json)\n"


def _rate(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.1f}"


def _table(heads: list[str], rows: Iterable[list[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"
