"""The engines that answer prompts, side by side: ours, transformers with bitsandbytes, Unsloth; one small interface.

In: a model folder, then prompts as token ids. Out: the token ids of every sample. All read the same NF4 bytes.
transformers decodes with its dynamic cache, or with a static one, which it then compiles; prompts are sorted by length
and padded on the left, samples of a prompt are sequences of their own, which is what `generate` does.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from engines import load_transformers, load_unsloth
from timing import forget_peak


@dataclass(frozen=True)
class Asked:
    """What is asked of an engine.

    Attributes:
        prompts: Token ids of each, int32.
        num_samples: Answers to each.
        num_tokens: Of each answer; a model of random weights ends almost none before.
        concurrency: Sequences on their way at a time.
        temperature: 0: greedy.
    """

    prompts: Sequence[np.ndarray]
    num_samples: int
    num_tokens: int
    concurrency: int
    temperature: float


class OursDecoding:
    """fam-engine's generator, the one that `generate` and `rewrite` run."""

    def __init__(self, folder: str, device: str) -> None:
        from pathlib import Path

        from fam_engine.data.tokenizer import TextEncoder
        from fam_engine.model.generation.generator import Generator

        self.generator = Generator(self.load(folder, device), TextEncoder(Path(folder)))
        self.device = device

    def load(self, folder: str, device: str) -> Any:  # noqa: ANN401 - fam-engine is imported late
        """Load the model."""
        from fam_engine.model.loading import load_model

        dtype = "bf16" if device == "cuda" else "fp32"
        return load_model(folder, precision="nf4", compute_dtype=dtype, device=device)

    def run(
        self, asked: Asked, on_step: Callable[[int], None] = lambda _: None
    ) -> list[np.ndarray]:
        """Answer all prompts; answers come back in the order asked."""
        from fam_engine.model.generation.requests import Request, Sampling

        forget_peak(self.device)
        self.generator.max_slots = asked.concurrency
        requests = [Request(ids, seed, asked.num_samples) for seed, ids in enumerate(asked.prompts)]
        sampling = Sampling(max_new_tokens=asked.num_tokens, temperature=asked.temperature)
        found = {
            (one.request, one.sample): one.token_ids
            for one in self.generator.generate(requests, sampling, on_step=on_step)
        }
        return [found[key] for key in sorted(found)]


class AdaptedDecoding(OursDecoding):
    """The same with the adapter that training's benchmark begins with, on all seven matrices."""

    def load(self, folder: str, device: str) -> Any:  # noqa: ANN401 - fam-engine is imported late
        """Load the model, and the adapter by its file."""
        import tempfile
        from pathlib import Path

        from train_engines import ALPHA, MODULES, RANK, set_adapter

        from fam_engine.model.adapter_files import save_adapter
        from fam_engine.model.loading import with_adapter
        from fam_engine.model.trainable import LoraSpec, TrainableModel

        decoder, spec = super().load(folder, device), LoraSpec(RANK, ALPHA, 0.0, MODULES, False)
        leaves = TrainableModel(decoder, spec, seed=0).parameters
        set_adapter(leaves)
        with tempfile.TemporaryDirectory() as adapter:
            save_adapter(
                Path(adapter), spec, leaves, base_model_name_or_path=folder, base_fingerprint=None
            )
            return with_adapter(decoder, adapter)


class TransformersDecoding:
    """transformers' `generate` over bitsandbytes' NF4."""

    def __init__(self, folder: str, device: str, cache: str) -> None:
        self.model = load_transformers(folder, "nf4", device).eval()
        self.device = device
        self.options = {"cache_implementation": "static"} if cache == "static" else {}

    def run(self, asked: Asked) -> list[np.ndarray]:
        """Answer all prompts in batches of similar length; answers come back in the order asked."""
        forget_peak(self.device)
        size = max(1, asked.concurrency // asked.num_samples)
        order = sorted(range(len(asked.prompts)), key=lambda index: len(asked.prompts[index]))
        found: dict[int, list[np.ndarray]] = {}
        for start in range(0, len(order), size):
            chosen = order[start : start + size]
            answers = self._batch([asked.prompts[index] for index in chosen], asked)
            for row, index in enumerate(chosen):
                found[index] = answers[row * asked.num_samples : (row + 1) * asked.num_samples]
        return [answer for index in sorted(found) for answer in found[index]]

    def _batch(self, prompts: list[np.ndarray], asked: Asked) -> list[np.ndarray]:
        import torch

        longest = max(map(len, prompts))
        input_ids = torch.zeros(len(prompts), longest, dtype=torch.int64)
        mask = torch.zeros_like(input_ids)
        for row, prompt in enumerate(prompts):
            input_ids[row, longest - len(prompt) :] = torch.from_numpy(prompt.astype(np.int64))
            mask[row, longest - len(prompt) :] = 1
        is_sampled = asked.temperature > 0
        with torch.inference_mode():
            ids = self.model.generate(
                input_ids.to(self.device),
                attention_mask=mask.to(self.device),
                num_return_sequences=asked.num_samples,
                max_new_tokens=asked.num_tokens,
                min_new_tokens=asked.num_tokens,
                do_sample=is_sampled,
                temperature=asked.temperature if is_sampled else None,
                top_k=0 if is_sampled else None,
                pad_token_id=0,
                **self.options,
            )
        return list(ids[:, longest:].cpu().numpy().astype(np.int32))


class UnslothDecoding(TransformersDecoding):
    """Unsloth's own `generate`, with CUDA graphs or, which is its default, without."""

    def __init__(self, folder: str, device: str, graphs: str) -> None:
        os.environ["UNSLOTH_DECODE_CUDA_GRAPHS"] = graphs
        import unsloth

        self.model = unsloth.FastLanguageModel.for_inference(load_unsloth(folder))
        self.device, self.options = device, {}
