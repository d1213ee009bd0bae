"""The engines side by side: ours and transformers at its best, behind one small interface.

In: a model folder, then questions. Out: log-probs of every answer token, so that agreement is checked before anything
is timed. Each engine lives in a process of its own (its memory is its own, too) and answers over a pipe, so that runs
can alternate without loading anything twice.
"""

from __future__ import annotations

import resource
import time
from pathlib import Path
from typing import Protocol

import numpy as np
from workloads import Question


class Engine(Protocol):
    """What is measured."""

    def logprobs(self, questions: list[Question]) -> np.ndarray:
        """Give the log-probs of all answer tokens, flat, in order."""


class OursEngine:
    """fam-engine: packed batches, shared prompts, the same code `fam-engine score` runs."""

    def __init__(self, folder: str, precision: str, device: str, tokens_per_batch: int) -> None:
        from fam_engine.model.loading import load_model

        self.decoder = load_model(folder, precision=precision, compute_dtype="bf16", device=device)
        self.tokens_per_batch = tokens_per_batch

    def logprobs(self, questions: list[Question]) -> np.ndarray:
        """Spool, plan, pack, run."""
        import tempfile

        from fam_engine._rust_tokenize import Spool, SpoolWriter, pack_batch, plan_batches
        from fam_engine.data.packing import PackedBatch
        from fam_engine.model.logprobs import token_facts

        with tempfile.TemporaryDirectory() as folder:
            spool = _spool(SpoolWriter, Spool, folder, questions)
            plan = plan_batches(
                spool, np.arange(len(spool), dtype=np.int64), max_tokens=self.tokens_per_batch
            )
            found: list[np.ndarray] = [np.empty(0)] * len(spool)
            for number in range(plan.num_batches):
                batch = PackedBatch(**pack_batch(spool, plan.batch_entries(number)))
                hidden_RD = self.decoder.hidden_rows(batch)
                facts = token_facts(
                    hidden_RD,
                    self.decoder.weights.head_VD,
                    batch.targets,
                    num_rows=batch.num_rows,
                )
                bounds = batch.entry_rows
                for entry, a, b in zip(batch.entries, bounds[:-1], bounds[1:], strict=True):
                    found[entry] = facts.logprobs[a:b]
        return np.concatenate(found)


def _spool(writer_type, spool_type, folder: str, questions: list[Question]):  # noqa: ANN001, ANN202
    contexts = [question.prompt for question in questions for _ in question.answers]
    targets = [answer for question in questions for answer in question.answers]
    writer = writer_type(folder)
    writer.append(
        *_flat(contexts),
        *_flat(targets),
        np.zeros(len(targets), np.uint8),
        np.zeros(len(targets), np.uint8),
        np.arange(len(targets), dtype=np.uint32),
    )
    writer.finish()
    return spool_type.open(folder)


def _flat(arrays: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    offsets = np.zeros(len(arrays) + 1, np.int64)
    np.cumsum([len(array) for array in arrays], out=offsets[1:])
    return np.concatenate(arrays), offsets


class TransformersEngine:
    """transformers: sorted by length, SDPA, the head only where answers are.

    Right padding needs no mask under causal attention, which keeps SDPA on its fast path; padding
    is never scored.
    """

    def __init__(self, folder: str, precision: str, device: str, batch_size: int) -> None:
        import torch
        import transformers

        options = {"dtype": torch.bfloat16, "attn_implementation": "sdpa"}
        if precision.startswith("nf4"):
            options["quantization_config"] = transformers.BitsAndBytesConfig(
                load_in_4bit=True,
                bnb_4bit_quant_type="nf4",
                bnb_4bit_use_double_quant=True,
                bnb_4bit_compute_dtype=torch.bfloat16,
            )
            options["device_map"] = device
        self.model = transformers.AutoModelForCausalLM.from_pretrained(folder, **options)
        if not precision.startswith("nf4"):
            self.model.to(device)
        self.model.eval()
        if precision == "nf4-dequantize":
            import bitsandbytes

            for module in self.model.modules():
                if isinstance(module, bitsandbytes.nn.Linear4bit):
                    module.support_avx512bf16_for_cpu = False
        self.device = device
        self.batch_size = batch_size

    def logprobs(self, questions: list[Question]) -> np.ndarray:
        """Score in batches of records of similar length."""
        import torch

        pairs = [(q.prompt, answer) for q in questions for answer in q.answers]
        order = sorted(range(len(pairs)), key=lambda i: len(pairs[i][0]) + len(pairs[i][1]))
        found: list[np.ndarray] = [np.empty(0)] * len(pairs)
        with torch.inference_mode():
            for start in range(0, len(order), self.batch_size):
                chosen = order[start : start + self.batch_size]
                for index, values in zip(
                    chosen, self._batch([pairs[i] for i in chosen]), strict=True
                ):
                    found[index] = values
        return np.concatenate(found)

    def _batch(self, pairs: list[tuple[np.ndarray, np.ndarray]]) -> list[np.ndarray]:
        import torch

        longest = max(len(prompt) + len(answer) for prompt, answer in pairs)
        # The last token of all is only predicted, never read.
        input_ids = torch.zeros(len(pairs), longest - 1, dtype=torch.int64)
        for row, (prompt, answer) in enumerate(pairs):
            ids = torch.from_numpy(np.concatenate([prompt, answer])[:-1].astype(np.int64))
            input_ids[row, : len(ids)] = ids
        first = min(len(prompt) for prompt, _ in pairs) - 1
        keep = torch.arange(first, longest - 1, device=self.device)
        logits = self.model(input_ids=input_ids.to(self.device), logits_to_keep=keep).logits
        found = []
        for row, (prompt, answer) in enumerate(pairs):
            start = len(prompt) - 1 - first
            rows = logits[row, start : start + len(answer)].float()
            targets = torch.from_numpy(answer.astype(np.int64)).to(self.device)
            chosen = rows.gather(1, targets[:, None])[:, 0]
            found.append((chosen - rows.logsumexp(1)).double().cpu().numpy())
        return found


def make_engine(name: str, folder: str, precision: str, device: str, size: int) -> Engine:
    """Make an engine by name; `size` is its tokens a batch (ours) or records a batch (theirs)."""
    kinds = {"fam-engine": OursEngine, "transformers": TransformersEngine}
    return kinds[name](folder, precision, device, size)


def serve(pipe, name: str, folder: str, precision: str, device: str, threads: int) -> None:  # noqa: ANN001
    """Load an engine in this process and answer until told to stop."""
    import torch

    torch.set_num_threads(threads)
    engine = make_engine(name, folder, precision, device, 1)
    loaded = _peak_bytes(device)
    pipe.send({"loaded_bytes": loaded})
    while (request := pipe.recv()) is not None:
        questions, size = request
        if isinstance(engine, OursEngine):
            engine.tokens_per_batch = size
        else:
            engine.batch_size = size
        start = time.perf_counter()
        logprobs = engine.logprobs(questions)
        seconds = time.perf_counter() - start
        pipe.send({"seconds": seconds, "logprobs": logprobs, "peak_bytes": _peak_bytes(device)})


def _peak_bytes(device: str) -> int:
    import torch

    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    # The high-water mark of this process; loading has its own peak, reported apart.
    status = Path("/proc/self/status").read_text()
    peak = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(peak.split()[1]) * 1024 or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def reset_peak() -> None:
    """Start the high-water mark anew, where the system can."""
    Path("/proc/self/clear_refs").write_text("5")
