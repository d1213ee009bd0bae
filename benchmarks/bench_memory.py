"""Memory of a scoring job by the size of its input: 100 MB, 1 GB, and whatever is asked for.

    python benchmarks/bench_memory.py --megabytes 100 1000 10000 --out results.json

A job of the real command in a process of its own a size, all of it but the model's layers: those give zeros at once, so
that gigabytes pass in minutes. Prompts are longer than the embedded model and cut to fit, after all of them was read
and encoded. Reported is the largest resident memory of the process (Linux counts it) when all
records are read and spooled, when all are scored, and when all files are written. The last grows with the number of
records, by what `summary.json` and the report are made from.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

TEXT = "one two three four apples pears more less and then so is was left right buys sells each"
WORDS = TEXT.split()
PROMPT_WORDS = 1800


def write_records(path: Path, num_bytes: int) -> int:
    """Write records of about 9 KB, no two of one prompt, until the file is that long; give their number."""
    generator = random.Random(0)
    words = generator.choices(WORDS, k=100_000)
    count = written = 0
    with path.open("w") as file:
        while written < num_bytes:
            start = generator.randrange(len(words) - PROMPT_WORDS)
            prompt = f"{count} {' '.join(words[start : start + PROMPT_WORDS])}?\n"
            line = json.dumps({"prompt": prompt, "response": " ".join(words[start : start + 8])})
            written += file.write(line + "\n")
            count += 1
    return count


def peak_megabytes() -> float:
    """Give the most memory this process has held."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def run_job(data: Path, out: Path) -> dict[str, float]:
    """Score with a model whose layers give zeros; give the peak after each phase, MB."""
    import torch

    from fam_engine.config import ScoreConfig
    from fam_engine.jobs.progress import Nobody
    from fam_engine.jobs.scoring.job import run_score
    from fam_engine.model.decoder import Decoder

    torch.set_num_threads(1)
    peaks: dict[str, float] = {}

    class Phases(Nobody):
        """Takes down what is held when a phase begins."""

        def start(self, label: str, total: int | None, unit: str) -> None:
            peaks[label] = peak_megabytes()

    def zeros(decoder: Decoder, batch: Any) -> torch.Tensor:  # noqa: ANN401
        shape = (len(batch.rows), decoder.config.hidden_size)
        return torch.zeros(shape, dtype=decoder.compute_dtype)

    Decoder.hidden_rows = zeros  # type: ignore[method-assign, assignment]
    settings = {"model": "embedded", "data": (str(data),), "out": out, "device": "cpu"}
    outcome = run_score(
        ScoreConfig(**settings, max_tokens_per_batch=16384, on_long="cut-prompt"), Phases()
    )
    records = outcome.summary["records"]
    assert records["quarantined"] == 0, records
    return {
        "records": records["scored"],
        "read": peaks["loading the model"],
        "scored": peaks["writing"],
        "written": peak_megabytes(),
    }


def measure(megabytes: int) -> dict[str, float]:
    """Run a job on that much input in a process of its own."""
    with tempfile.TemporaryDirectory() as name:
        data = Path(name) / "data.jsonl"
        write_records(data, megabytes * 10**6)
        command = [sys.executable, __file__, "--job", str(data), "--out", str(Path(name) / "out")]
        run = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, float] = json.loads(run.stdout)
    return found


def main() -> None:
    """Measure and write the results; or be one job."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, nargs="+", default=[100, 1000])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--job", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.job:
        print(json.dumps(run_job(options.job, options.out)))
        return
    from fam_engine.jobs.bench.machine import describe_machine

    results = {str(megabytes): measure(megabytes) for megabytes in options.megabytes}
    environment = describe_machine("cpu", 1, ())
    peaks = {"environment": environment, "peak_megabytes_by_input_megabytes": results}
    text = json.dumps(peaks, indent=1)
    print(text)
    if options.out:
        options.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
