"""Texts of users, encoded so that no text can end the process.

In: a loaded tokenizer and its file. Out: ids. What our own reader knows is encoded here. The library `tokenizers` may
abort, hang or fill the memory at a text even after its definition was tried out, so it encodes in a child with limits,
and a text that the child does not survive is one it cannot take. That costs these tokenizers (none of a current
language model is among them) the way through JSON, several times the time of encoding.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fam_engine._rust_tokenize import Tokenizer, TokenizerError
from fam_engine.data.children import JsonChild, how_it_ended

_WORKER = "fam_engine.data.encoding_worker"
# Of computing, for a request of some hundred texts; and of waiting, on a machine that others use too.
_SECONDS, _PATIENCE_SECONDS = 30, 240.0


class TextsEncoder:
    """Encodes texts with one tokenizer; safe to share between threads.

    Args:
        tokenizer: The tokenizer.
        file: The `tokenizer.json` it was loaded from.
    """

    def __init__(self, tokenizer: Tokenizer, file: Path) -> None:
        self._tokenizer = tokenizer
        self._file = file
        self._one_at_a_time = threading.Lock()
        self._child = None if tokenizer.engine.startswith("native") else self._start()

    @property
    def is_in_child(self) -> bool:
        """Whether a child encodes, so that Rust must not do it here."""
        return self._child is not None

    def encode_batch(
        self, texts: Sequence[str], **options: bool
    ) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
        """Encode texts, as `Tokenizer.encode_batch` does and with its options.

        Raises:
            TokenizerError: A text cannot be encoded.
        """
        if self._child is None:
            return self._tokenizer.encode_batch(texts, **options)
        with self._one_at_a_time:
            answer = self._answer({"texts": texts, **options})
        if "error" in answer:
            raise TokenizerError(answer["error"])
        return np.array(answer["ids"], np.int32), np.array(answer["offsets"], np.int64)

    def _answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Ask the child; one that did not survive is replaced."""
        assert self._child is not None
        answer: dict[str, Any] | None = self._child.ask(request, _PATIENCE_SECONDS)
        if answer is None:
            ended = how_it_ended(self._child.close())
            self._child = self._start()
            return {"error": f"its process did not survive: {ended}"}
        return answer

    def close(self) -> None:
        """Stop the child, if there is one; may be called again."""
        if self._child:
            self._child.close()

    def _start(self) -> JsonChild:
        return JsonChild(_WORKER, self._file.absolute(), _SECONDS)
