"""Tables of what `gpu_check.py` found, as Markdown.

    python benchmarks/gpu_table.py DIR/gpu_check.json

In: its JSON. Out: a section a part that was run, every row kept, lost ones too; a job that failed or had no time is
named. It needs the standard library alone: the documentation is made with it too.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

Row = list[str]
# Of a step that are named.
MOST_KERNELS = 8
VERSIONS = (
    "fam-engine",
    "torch",
    "triton",
    "transformers",
    "bitsandbytes",
    "peft",
    "trl",
    "liger-kernel",
    "unsloth",
)


def markdown(answer: dict[str, Any]) -> str:
    """Give all tables."""
    parts = answer["parts"]
    texts = [about(answer["environment"])]
    if "note" in answer:
        texts.append(f"{answer['note']}\n")
    for name, (title, make) in SECTIONS.items():
        if name in parts:
            results = {
                job: found["result"] for job, found in parts[name].items() if found["result"]
            }
            body = make(results) if results else ""
            texts += [f"### {title}\n", body, *_unfinished(parts[name])]
    return "\n".join(text for text in texts if text)


def about(environment: dict[str, Any]) -> str:
    """Say what it was measured on."""
    versions = environment["versions"]
    known = ", ".join(f"{name} {versions[name]}" for name in VERSIONS if versions.get(name))
    driver = environment["gpu"].get("driver_version")
    where = [environment["device"], f"driver {driver}" if driver else "", environment["date"]]
    commit = f"commit {environment['commit'] or 'unknown'}"
    return ", ".join(word for word in (*where, commit, known) if word) + ".\n"


def _unfinished(jobs: dict[str, Any]) -> Iterator[str]:
    for name, found in jobs.items():
        if found["timed_out"]:
            how = "did not end in time" if found["seconds"] else "was not run: no time was left"
        elif found["exit_code"]:
            how = f"ended with exit code {found['exit_code']}"
        else:
            continue
        yield f"`{name}` {how}{'; what it had found is above' if found['result'] else ''}.\n"


def _tests(results: dict[str, Any]) -> str:
    found = results["tests"]
    rows = [
        [
            f"`{name}`",
            *(str(file.get(what, 0)) for what in ("passed", "failed", "skipped")),
            "" if file["is_whole"] else "did not run to its end",
        ]
        for name, file in sorted(found["files"].items())
    ]
    failures = [f"- `{line}`" for file in found["files"].values() for line in file["failures"]]
    sanitizer = found["sanitizer"]
    said = f"compute-sanitizer over every kernel once: {sanitizer['found']}."
    text = table(["tests", "passed", "failed", "skipped", ""], rows)
    return "\n".join([text, *failures, "", said, ""])


def _kernels(results: dict[str, Any]) -> str:
    found = results["kernels"]
    rows = [
        [name, "-", "-", row["error"]]
        if "error" in row
        else [
            name,
            f"{row['ms']:.3f}",
            f"{row['share_of_copy_rate']:.0%}",
            f"{row['share_of_matrix_rate']:.0%}",
        ]
        for name, row in found["kernels"].items()
    ]
    rates = (
        f"A copy moves {found['copy_bytes_per_s'] / 1e12:.2f} TB/s, read and written; "
        f"a product in bf16 runs at {found['matrix_flops_per_s'] / 1e12:.0f} TFLOP/s.\n"
    )
    heads = ["kernel", "ms", "of the copy rate", "of the product rate"]
    return rates + "\n" + table(heads, rows)


def _scoring(results: dict[str, Any]) -> str:
    rows = []
    for row in _rows(results):
        ours = row["fam-engine"]["effective_tokens_per_second"]
        measured = {name: found for name, found in row.items() if "effective" in str(found)}
        for name, found in measured.items():
            theirs, is_ours = found["effective_tokens_per_second"], name == "fam-engine"
            is_best = name == row.get("best_peer")
            rows.append(
                [
                    row["shape"],
                    row["workload"],
                    name if is_ours else f"{name}, batches of {found['size']}",
                    _number(theirs),
                    _gib(found["peak_bytes"]),
                    "" if is_ours else f"{ours / theirs:.2f}",
                    f"{row['logprob_difference']['mean']:.4f}" if is_best else "",
                ]
            )
    heads = [
        "shape",
        "workload",
        "engine",
        "tokens/s",
        "peak, GiB",
        "fam-engine's tokens/s over it",
    ]
    return table([*heads, "mean difference of a log-prob"], rows)


def _decoding(results: dict[str, Any]) -> str:
    rows = [
        [row["shape"], row["workload"], name, *_decoded(engine)]
        for row in _rows(results)
        for name, engine in row.items()
        if isinstance(engine, dict)
    ]
    heads = ["shape", "workload", "engine", "tokens/s", "share of the limit", "of steps"]
    return table([*heads, "peak, GiB", "fam-engine's tokens/s over it"], rows)


def _decoded(engine: dict[str, Any]) -> Row:
    if "error" in engine:
        return [engine["error"], *["-"] * 4]
    of_steps = engine.get("share_of_limit_of_steps")
    return [
        _number(engine["tokens_per_second"]),
        f"{engine['share_of_limit']:.0%}",
        f"{of_steps:.0%}" if of_steps else "",
        _gib(engine["peak_bytes"]),
        f"{engine['ratio']:.2f}" if "ratio" in engine else "",
    ]


def _training(results: dict[str, Any]) -> str:
    rows = [
        [
            row["shape"],
            row["workload"],
            f"{row['tokens']:,}",
            f"{row['cap_gib']:.0f} GiB" if row["cap_gib"] else "none",
            name,
            *_trained(engine),
        ]
        for row in _rows(results)
        for name, engine in row.get("engines", {}).items()
    ]
    heads = [
        "shape",
        "documents",
        "tokens a step",
        "cap",
        "engine",
        "step, s",
        "how",
    ]
    heads += [
        "tokens/s",
        "supervised/s",
        "of the product rate",
        "peak, GiB",
        "fam-engine's tokens/s over it",
    ]
    return "\n".join([*_parities(results), table(heads, rows), *_failed(results)])


def _trained(engine: dict[str, Any]) -> Row:
    if "error" in engine:
        return [engine["error"], *["-"] * 6]
    seconds = sorted(engine["seconds"])
    return [
        f"{seconds[len(seconds) // 2]:.3f}",
        engine["plan"] or _micro_batches(engine),
        _number(engine["tokens_per_second"]),
        _number(engine["supervised_per_second"]),
        f"{engine['share_of_matrix_rate']:.0%}",
        _gib(engine["peak_bytes"]),
        f"{engine['ratio']:.2f}" if "ratio" in engine else "",
    ]


def _micro_batches(engine: dict[str, Any]) -> str:
    """Say what a peer was fastest with."""
    said = f"{engine['docs']} documents at a time" if engine["docs"] else "all documents at once"
    return said + ", layers computed twice" * engine["is_checkpointing"]


def _parities(results: dict[str, Any]) -> Iterator[str]:
    for row in _rows(results):
        for name, found in row.get("parity", {}).items():
            if "error" in found:
                yield f"{row['shape']}, first step of {name}: {found['error']}.\n"
            elif "loss_difference" in found:
                low, high = found["gradient_norm_ratios"]
                # Results of before these were noted have neither.
                worst = f" (`{found['worst_gradient']}`)" if "worst_gradient" in found else ""
                unshown = "" if found.get("is_parity_shown", True) else " Parity is not shown."
                yield (
                    f"{row['shape']}, first step beside {name}: losses differ by {found['loss_difference']:.1e} of "
                    f"themselves, least cosine of a gradient {found['least_gradient_cosine']:.5f}{worst}, norms over "
                    f"its {low:.3f} to {high:.3f}.{unshown}\n"
                )
            else:
                yield f"{row['shape']}: least norm of a gradient {found['least_gradient_norm']:.1e}.\n"


def _failed(results: dict[str, Any]) -> Iterator[str]:
    for shape, found in results.items():
        for name, reason in found["failed"].items():
            yield f"{name} did not run at {shape}: {reason}.\n"


def _longest(results: dict[str, Any]) -> str:
    rows = [
        [row["shape"], f"{row['cap_gib']:.0f} GiB", f"{row['longest_tokens']:,}"]
        for row in _rows(results)
    ]
    return table(["shape", "cap", "longest document that trains, tokens"], rows)


def _curves(results: dict[str, Any]) -> str:
    rows = [
        [row["shape"], name, "-", found["error"], "-"]
        if "error" in found
        else [
            row["shape"],
            name,
            f"{found['last_quarter']:.4f}",
            f"{found['mean_difference']:+.5f}" if "mean_difference" in found else "",
            f"{found['largest_difference']:.5f}" if "largest_difference" in found else "",
        ]
        for row in _rows(results)
        for name, found in row["curves"].items()
    ]
    heads = ["shape", "engine", "loss, last quarter", "mean difference", "largest difference"]
    beside = "Beside fam-engine's; `again`: beside the same engine's, documents in other micro-batches.\n"
    return "\n".join([table(heads, rows), beside])


def _steps(results: dict[str, Any]) -> str:
    rows = [
        [
            shape,
            name,
            f"{row['ms']:.2f}",
            f"{row['busy_ms'] / row['ms']:.0%}",
            ", ".join(
                f"`{kernel['name']}` {kernel['ms']:.2f} ({kernel['calls']:.0f} times)"
                for kernel in row["kernels"][:MOST_KERNELS]
            ),
        ]
        for shape, found in results.items()
        for name, row in found.items()
    ]
    return table(["shape", "step", "ms", "of it busy", "kernels, ms"], rows)


def _probe(results: dict[str, Any]) -> str:
    return f"```json\n{json.dumps(results['probe'], indent=1)}\n```\n"


SECTIONS: dict[str, tuple[str, Callable[[dict[str, Any]], str]]] = {
    "tests": ("Tests", _tests),
    "kernels": ("Kernels", _kernels),
    "scoring": ("Scoring", _scoring),
    "decoding": ("Answering", _decoding),
    "training": ("Training", _training),
    "longest": ("Longest document", _longest),
    "curves": ("Losses", _curves),
    "steps": ("Where the time of a step goes", _steps),
    "probe": ("Questions to the card", _probe),
}


def _rows(results: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for found in results.values():
        yield from found["results"]


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.1f}"


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.2f}"


def table(heads: Row, rows: list[Row]) -> str:
    """Give a table of Markdown."""
    lines = [heads, ["---"] * len(heads), *rows]
    return (
        "\n".join(
            "| " + " | ".join(cell.replace("|", "/") for cell in line) + " |" for line in lines
        )
        + "\n"
    )


if __name__ == "__main__":
    print(markdown(json.loads(Path(sys.argv[1]).read_text())))
