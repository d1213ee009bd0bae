"""Where the time of a step goes: its kernels by name, on the GPU's own timeline.

    python benchmarks/gpu_steps.py --shape 8b --out steps.json

In: a shape (`random_models.SHAPES`). Out: for answering 1 and 64 prompts at a time, alone and with an adapter, and for
the gradients of training on 2,048 and 16,384 tokens: milliseconds a step from its first kernel to its last, in how many
of them a kernel ran, and the kernels that took longest, as JSON. A kernel that is launched early counts from when it is
on the GPU, waiting: so the times of kernels may add up to more than the step. Where far less than all of a step is
busy, the GPU waits for the host.
"""

from __future__ import annotations

import argparse
import gc
import json
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from decode_engines import AdaptedDecoding, Asked, OursDecoding
from random_models import SHAPES, nf4_model
from timing import synchronize
from train_engines import OursTraining
from workloads import make_documents, make_workload

# Steps of answering that are watched, after as many others: a round each, of which the host asks at once.
_ROUND = 8
_FIRST = 3 * _ROUND
_MOST_KERNELS = 20
# Kernels with long names differ in what comes first.
_NAME_LENGTH = 60


class Watch:
    """The device's timeline between `start` and `stop`."""

    def __init__(self, device: str) -> None:
        self.device = device
        of_gpu = torch.profiler.ProfilerActivity.CUDA
        kind = of_gpu if device == "cuda" else torch.profiler.ProfilerActivity.CPU
        self._profile = torch.profiler.profile(activities=[kind], acc_events=True)

    def start(self) -> None:
        """Begin with the device empty."""
        synchronize(self.device)
        self._profile.start()

    def stop(self) -> None:
        """End with the device empty."""
        synchronize(self.device)
        self._profile.stop()

    def summary(self, num_steps: int) -> dict[str, Any]:
        """Give times a step, in ms."""
        kind = torch.autograd.DeviceType.CUDA if self.device == "cuda" else None
        spans = sorted(
            (event.time_range.start, event.time_range.end, event.name)
            for event in self._profile.events()
            if kind in (None, event.device_type)
        )
        kernels: dict[str, list[float]] = defaultdict(list)
        busy, last = 0.0, spans[0][0]
        for start, end, name in spans:
            kernels[name[:_NAME_LENGTH]].append(end - start)
            busy += max(0.0, end - max(start, last))
            last = max(last, end)
        longest = sorted(kernels.items(), key=lambda item: -sum(item[1]))
        return {
            "ms": (last - spans[0][0]) / num_steps / 1e3,
            "busy_ms": busy / num_steps / 1e3,
            "kernels": [
                {"name": name, "calls": len(each) / num_steps, "ms": sum(each) / num_steps / 1e3}
                for name, each in longest[:_MOST_KERNELS]
            ],
        }


def decoding_steps(engine: OursDecoding, asked: Asked) -> dict[str, Any]:
    """Watch a round of steps in the middle of answers."""
    from fam_engine.model.generation.batching import STEPS_A_ROUND

    assert _ROUND % STEPS_A_ROUND[engine.device] == 0
    watch, num_steps = Watch(engine.device), 0

    def on_step(_: int) -> None:
        nonlocal num_steps
        num_steps += 1
        if num_steps == _FIRST:
            watch.start()
        if num_steps == _FIRST + _ROUND:
            watch.stop()

    engine.run(asked, on_step)
    return watch.summary(_ROUND)


def training_step(engine: OursTraining, vocab: int, num_tokens: int) -> dict[str, Any]:
    """Watch the gradients of one step, after another."""
    documents = make_documents("blocks", num_tokens, vocab)
    engine.gradients(documents)
    watch = Watch(engine.device)
    watch.start()
    engine.gradients(documents)
    watch.stop()
    return watch.summary(1)


def measure(model: Path, options: argparse.Namespace) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield a row each; engines one after the other, since each has the model."""
    vocab, is_tiny = SHAPES[options.shape]["vocab_size"], options.device == "cpu"
    prompts = [question.prompt for question in make_workload("G1", 64, vocab)]
    for what, kind in (("", OursDecoding), (" with an adapter", AdaptedDecoding)):
        decoding = kind(str(model), options.device)
        for count in (1,) if is_tiny else (1, 64):
            asked = Asked(prompts[:count], 1, _FIRST + 2 * _ROUND, count, 0.0)
            yield f"{count} at a time{what}", decoding_steps(decoding, asked)
        del decoding
        gc.collect()
    training = OursTraining(str(model), options.device)
    for num_tokens in (128,) if is_tiny else (2048, 16384):
        yield f"training, {num_tokens} tokens", training_step(training, vocab, num_tokens)


def main() -> None:
    """Measure and write the results after every row."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--shape", choices=[*SHAPES.keys() - {"qwen2.5-0.5b"}], default="8b")
    parser.add_argument(
        "--models", type=Path, help="folder where models are kept; default: none is"
    )
    options = parser.parse_args()
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        model = nf4_model(options.models or Path(folder), options.shape, options.device)
        for name, row in measure(model, options):
            results[name] = row
            options.out.write_text(json.dumps(results, indent=1) + "\n")
            print(f"{name}: {row['ms']:.2f} ms a step, busy in {row['busy_ms']:.2f}", flush=True)


if __name__ == "__main__":
    main()
