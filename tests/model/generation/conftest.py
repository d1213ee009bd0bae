"""Tiny models of every architecture with a tokenizer, for the generator."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fam_engine.data.tokenizer import TextEncoder
from fam_engine.model.decoder import Decoder
from fam_engine.model.generation.requests import Completion, Request
from fam_engine.model.loading import load_model
from tests.model.conftest import TinyCheckpoint

Loaded = tuple[Decoder, TextEncoder]
Load = Callable[..., Loaded]


def write_tokenizer(folder: Path, vocab_size: int) -> None:
    """Write a byte-level tokenizer whose ids 1 and 2 begin and end a text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())[: vocab_size - 3]
    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2} | {char: 3 + i for i, char in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    names = '{"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": true}'
    (folder / "tokenizer_config.json").write_text(names)


@pytest.fixture
def load(tiny_checkpoint: TinyCheckpoint) -> Load:
    """Give a maker of loaded tiny models: architecture, numerics, overrides of config fields."""

    def make(
        model_type: str,
        *,
        precision: Any = "fp32",  # noqa: ANN401
        compute_dtype: Any = "fp32",  # noqa: ANN401
        **overrides: object,
    ) -> Loaded:
        folder = tiny_checkpoint(model_type, **overrides)
        write_tokenizer(folder, 160)
        decoder = load_model(folder, precision=precision, compute_dtype=compute_dtype)
        return decoder, TextEncoder(folder)

    return make


def random_requests(
    lengths: list[int], *, num_samples: int = 1, vocab_size: int = 160, seed: int = 0
) -> list[Request]:
    random = np.random.default_rng(seed)
    return [
        Request(random.integers(3, vocab_size, n).astype(np.int32), 1000 + i, num_samples)
        for i, n in enumerate(lengths)
    ]


def by_sample(completions: list[Completion]) -> dict[tuple[int, int], list[int]]:
    """Give the token ids by request and sample; each may come once only."""
    ids = {(one.request, one.sample): one.token_ids.tolist() for one in completions}
    assert len(ids) == len(completions)
    return ids


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)
