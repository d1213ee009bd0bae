"""The engines side by side: ours and transformers at its best, behind one small interface.

In: a model folder, then questions. Out: log-probs of every answer token, so that agreement is checked before anything
is timed. Engines are subjects of `fam_engine.jobs.bench.workers`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from workloads import Question


class OursEngine:
    """fam-engine: packed batches, shared prompts, the same code `fam-engine score` runs."""

    def __init__(self, folder: str, precision: str, device: str) -> None:
        from fam_engine.model.loading import load_model

        self.decoder = load_model(folder, precision=precision, compute_dtype="bf16", device=device)

    def run(self, questions: list[Question], tokens_per_batch: int) -> np.ndarray:
        """Spool, plan, pack, run."""
        import tempfile

        from fam_engine._rust_tokenize import plan_batches
        from fam_engine.jobs.scoring.entries import launch_entries, runs_ahead

        with tempfile.TemporaryDirectory() as folder:
            spool = spooled(folder, questions)
            everything = np.arange(len(spool), dtype=np.int64)
            plan = plan_batches(spool, everything, max_tokens=tokens_per_batch)
            found: list[np.ndarray] = [np.empty(0)] * len(spool)
            flying: list[tuple[np.ndarray, Any]] = []
            for number in range(plan.num_batches):
                entries = plan.batch_entries(number)
                flying.append((entries, launch_entries(self.decoder, spool, entries)))
                if len(flying) > runs_ahead(self.decoder):
                    _land(flying, found)
            while flying:
                _land(flying, found)
        return np.concatenate(found)


def _land(flying: list[tuple[np.ndarray, Any]], found: list[np.ndarray]) -> None:
    entries, read = flying.pop(0)
    for entry, facts in zip(entries, read(), strict=True):
        found[entry] = facts.logprobs


def spooled(folder: str, questions: list[Question]) -> Any:  # noqa: ANN401 - fam-engine is imported late
    """Put every answer with its prompt into a spool, in order, and open it."""
    from fam_engine._rust_tokenize import Spool, SpoolWriter

    contexts = [question.prompt for question in questions for _ in question.answers]
    targets = [answer for question in questions for answer in question.answers]
    writer = SpoolWriter(folder)
    writer.append(
        *_flat(contexts),
        *_flat(targets),
        np.zeros(len(targets), np.uint8),
        np.zeros(len(targets), np.uint8),
        np.arange(len(targets), dtype=np.uint32),
    )
    writer.finish()
    return Spool.open(folder)


def _flat(arrays: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    offsets = np.zeros(len(arrays) + 1, np.int64)
    np.cumsum([len(array) for array in arrays], out=offsets[1:])
    return np.concatenate(arrays), offsets


def load_transformers(folder: str, precision: str, device: str) -> Any:  # noqa: ANN401 - imported late
    """Load transformers' model: bf16, or NF4 by bitsandbytes, quantized now unless the folder is."""
    import json
    from pathlib import Path

    import torch
    import transformers

    options: dict[str, Any] = {"dtype": torch.bfloat16, "attn_implementation": "sdpa"}
    if precision.startswith("nf4"):
        options["device_map"] = {"": device}
        if "quantization_config" not in json.loads((Path(folder) / "config.json").read_text()):
            options["quantization_config"] = transformers.BitsAndBytesConfig(
                load_in_4bit=True,
                bnb_4bit_quant_type="nf4",
                bnb_4bit_use_double_quant=True,
                bnb_4bit_compute_dtype=torch.bfloat16,
            )
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, **options)
    return model if precision.startswith("nf4") else model.to(device)


def load_unsloth(folder: str) -> Any:  # noqa: ANN401 - imported late, and before transformers
    """Load Unsloth's model of an NF4 folder."""
    import unsloth

    model, _ = unsloth.FastLanguageModel.from_pretrained(
        folder,
        load_in_4bit=True,
        max_seq_length=16384,
        local_files_only=True,
        use_exact_model_name=True,
    )
    return model


class TransformersEngine:
    """transformers: sorted by length, SDPA, the head only where answers are, no cache.

    Right padding needs no mask under causal attention, which keeps SDPA on its fast path; padding
    is never scored.
    """

    def __init__(self, folder: str, precision: str, device: str) -> None:
        import torch

        self.model = load_transformers(folder, precision, device).eval()
        if precision == "nf4-bf16":
            self.model = self.model.dequantize(dtype=torch.bfloat16)
        elif precision == "nf4-dequantize":
            import bitsandbytes

            for module in self.model.modules():
                if isinstance(module, bitsandbytes.nn.Linear4bit):
                    module.support_avx512bf16_for_cpu = False
        self.device = device

    def run(self, questions: list[Question], batch_size: int) -> np.ndarray:
        """Score in batches of records of similar length."""
        import torch

        pairs = [(q.prompt, answer) for q in questions for answer in q.answers]
        order = sorted(range(len(pairs)), key=lambda i: len(pairs[i][0]) + len(pairs[i][1]))
        found: list[np.ndarray] = [np.empty(0)] * len(pairs)
        with torch.inference_mode():
            for start in range(0, len(order), batch_size):
                chosen = order[start : start + batch_size]
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
        logits = self.model(
            input_ids=input_ids.to(self.device),
            logits_to_keep=longest - 1 - first,
            use_cache=False,
        ).logits
        found = []
        for row, (prompt, answer) in enumerate(pairs):
            start = len(prompt) - 1 - first
            rows = logits[row, start : start + len(answer)].float()
            targets = torch.from_numpy(answer.astype(np.int64)).to(self.device)
            chosen = rows.gather(1, targets[:, None])[:, 0]
            found.append((chosen - rows.logsumexp(1)).double().cpu().numpy())
        return found


class UnslothEngine(TransformersEngine):
    """Unsloth's layers, asked as transformers is."""

    def __init__(self, folder: str, precision: str, device: str) -> None:
        assert (precision, device) == ("nf4", "cuda")
        model = load_unsloth(folder)  # before transformers is imported
        import unsloth

        self.model = unsloth.FastLanguageModel.for_inference(model)
        self.device = device
