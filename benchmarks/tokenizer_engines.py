"""Tokenizers side by side, each at the fastest way it has to give ids as numpy arrays.

In: a `tokenizer.json`, then texts. Out: how many ids, and on request the ids, so that engines are compared before they
are timed. Subjects of `fam_engine.jobs.bench.workers`; the peers run in an environment of their own
(`requirements-peers.txt`), because two versions of `tokenizers` exclude each other.

Left out are tokenizers whose ids are known to differ from Hugging Face's (tokie, kitoken). Special tokens in the texts
count for nobody: tiktoken has other rules for them, and the corpora hold none.
"""

from __future__ import annotations

import json
import os
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import numpy as np


class _Engine(ABC):
    """Tokenizes one list of texts, kept here so that sending it is not timed.

    Args:
        file: A `tokenizer.json`.
        texts: What to tokenize.
        num_threads: 1, or 2 for all cores.
    """

    def __init__(self, file: str, texts: list[str], num_threads: int) -> None:
        os.environ["TOKENIZERS_PARALLELISM"] = "true" if num_threads > 1 else "false"
        os.environ["RAYON_NUM_THREADS"] = str(num_threads)
        self.file, self.texts, self.num_threads = file, texts, num_threads
        self.load()

    @abstractmethod
    def load(self) -> None:
        """Load the tokenizer."""

    @abstractmethod
    def ids(self) -> np.ndarray:
        """Give the ids of all texts, flat."""

    def run(self, answer: str = "count", passes: int = 1) -> Any:  # noqa: ANN401
        """Tokenize (`count`, or `ids` to give them), or `load` the tokenizer once more.

        Several passes a run: after the turn of another engine the processor's caches hold that
        one's tables, and a single short pass would measure how fast ours come back.
        """
        if answer == "load":
            return self.load()
        for _ in range(passes):
            ids = self.ids()
        return np.asarray(ids, np.int32) if answer == "ids" else len(ids)


class FamEngine(_Engine):
    """Ours."""

    def load(self) -> None:
        """Load the tokenizer."""
        from fam_engine._rust_tokenize import Tokenizer

        self.tokenizer = Tokenizer.from_file(self.file)

    def ids(self) -> np.ndarray:
        """Give the ids of all texts, flat."""
        return self.tokenizer.encode_batch(self.texts, num_threads=self.num_threads)[0]


class Tokenizers0(_Engine):
    """Hugging Face tokenizers 0.23, `encode_batch_fast`, and its lists made an array."""

    def load(self) -> None:
        """Load the tokenizer."""
        from tokenizers import Tokenizer

        self.tokenizer = Tokenizer.from_file(self.file)

    def ids(self) -> np.ndarray:
        """Give the ids of all texts, flat."""
        found = self.tokenizer.encode_batch_fast(self.texts, add_special_tokens=False)
        return np.concatenate([np.array(encoding.ids, np.int32) for encoding in found])


class Tokenizers1(_Engine):
    """Hugging Face tokenizers 1.0 (release candidate), `ids_array`."""

    def load(self) -> None:
        """Load the tokenizer."""
        from tokenizers import Tokenizer

        self.tokenizer = Tokenizer.from_file(self.file)

    def ids(self) -> np.ndarray:
        """Give the ids of all texts, flat."""
        found = self.tokenizer.encode_batch(self.texts, add_special_tokens=False)
        return np.concatenate([encoding.ids_array for encoding in found])


class Gigatoken(_Engine):
    """gigatoken, arrays."""

    def load(self) -> None:
        """Load the tokenizer."""
        from gigatoken import Tokenizer

        self.tokenizer = Tokenizer.from_json(Path(self.file).read_text(encoding="utf-8"))

    def ids(self) -> np.ndarray:
        """Give the ids of all texts, flat."""
        found = self.tokenizer.encode_batch(self.texts, parallel=self.num_threads > 1)
        return found.layout.content.data


class Fastokens(_Engine):
    """fastokens, `encode_batch_flat`."""

    def load(self) -> None:
        """Load the tokenizer."""
        from fastokens import Tokenizer

        self.tokenizer = Tokenizer.from_file(self.file)

    def ids(self) -> np.ndarray:
        """Give the ids of all texts, flat."""
        ids, _ = self.tokenizer.encode_batch_flat(self.texts)
        return np.frombuffer(ids, np.uint32)


class Tiktoken(_Engine):
    """tiktoken with the same vocabulary; byte-level tokenizers whose text is split by one pattern."""

    def load(self) -> None:
        """Make the encoding from the vocabulary and the split pattern of the file."""
        import tiktoken

        definition = json.loads(Path(self.file).read_text(encoding="utf-8"))
        to_byte = {char: byte for byte, char in _byte_characters().items()}
        vocabulary = definition["model"]["vocab"]
        if not set("".join(vocabulary)) <= set(to_byte):
            raise ValueError("not a byte-level tokenizer")
        ranks = {bytes(to_byte[c] for c in text): rank for text, rank in vocabulary.items()}
        self.encoding = tiktoken.Encoding(
            "peer", pat_str=_pattern(definition), mergeable_ranks=ranks, special_tokens={}
        )

    def ids(self) -> np.ndarray:
        """Give the ids of all texts, flat."""
        found = self.encoding.encode_ordinary_batch(self.texts, num_threads=self.num_threads)
        return np.concatenate([np.array(ids, np.int32) for ids in found])


def _byte_characters() -> dict[int, str]:
    """Give the character that stands for each byte in byte-level vocabularies."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return {byte: chr(byte) for byte in shown} | {
        byte: chr(256 + n) for n, byte in enumerate(hidden)
    }


def _pattern(definition: dict[str, Any]) -> str:
    """Give the one pattern a text is split by.

    Raises:
        ValueError: It takes more than one.
    """
    step = definition["pre_tokenizer"]
    steps = step["pretokenizers"] if step["type"] == "Sequence" else [step]
    patterns = [s["pattern"]["Regex"] for s in steps if s["type"] == "Split"]
    if len(steps) == 1 and step["type"] == "ByteLevel" and step.get("use_regex", True):
        patterns = [
            r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
        ]
    if len(patterns) != 1 or len(steps) > 2:
        raise ValueError("splits by more than one pattern")
    return patterns[0]
