"""Where transformers reads a folder's tokenizer otherwise than its `tokenizer.json` says.

In: a tokenizer and its folder. Out: a sentence for the user, or nothing. Ids here are those of `tokenizer.json`, which
are also those of transformers 4. Of some classes transformers 5 takes the vocabulary only and makes the rest anew
(`models/llama/tokenization_llama.py`, `models/auto/tokenization_auto.py`): of Llama 2 and its like it then leaves out
the blank that `tokenizer.json` puts in front of a text after a special token, so that nearly every prompt of a chat
template gets other ids. Which models it does so with changes between its releases: 5.0.0 with folders that have no
`config.json`, 5.24.0 also with Llamas; neither with Phi-3 or Mistral, nor with a `tokenizer.json` of bytes, as Llama
3's. Reading as it does was rejected for that, and because all other programs read the file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np

from fam_engine._rust_tokenize import Tokenizer
from fam_engine.data.tokenizer_files import read_config

_LLAMA, _CODE_LLAMA = "LlamaTokenizer", "CodeLlamaTokenizer"
REMEDY: Final = (
    "for the same ids write PreTrainedTokenizerFast as tokenizer_class into tokenizer_config.json"
)
# Of a folder without `config.json`, and of Llamas; others that we compute keep their `tokenizer.json`.
_MADE_ANEW: Final = (None, "llama")


def starts_anew_after_special(tokenizer: Tokenizer) -> bool:
    """Whether a text after a special token is encoded as one that begins, with a blank in front if that gets one."""
    special = tokenizer.special_tokens()
    if not special:
        return False
    name, _ = special[0]
    (both, _), (alone, _) = (
        tokenizer.encode_batch([text], parse_special=True) for text in (f"{name}a", "a")
    )
    return np.array_equal(both[1:], alone)


def read_otherwise(tokenizer: Tokenizer, folder: Path) -> str | None:
    """Say it where transformers 5 gives the prompts of chat templates other ids than `tokenizer.json`.

    Raises:
        ModelRefusedError: A configuration is no JSON object, or a link that leaves the folder.
    """
    config, model = read_config(folder), read_config(folder, "config.json")
    name = config.get("tokenizer_class") or model.get("tokenizer_class")
    if model.get("model_type") not in _MADE_ANEW or _puts_blank_anew(name, config):
        return None
    if not (starts_anew_after_special(tokenizer) and _begins_with_blank(tokenizer)):
        return None
    return (
        "after a special token tokenizer.json puts a blank in front of the text, which transformers 5.24 leaves out "
        f"where tokenizer_class is {name}: prompts get other ids there than by tokenizer.json, which fam-engine and "
        "transformers 4 read as it is"
    )


def _begins_with_blank(tokenizer: Tokenizer) -> bool:
    (alone, _), (continued, _) = (
        tokenizer.encode_batch(["a"], continuation=continuation) for continuation in (False, True)
    )
    return not np.array_equal(alone, continued)


def _puts_blank_anew(name: object, config: dict[str, Any]) -> bool:
    """Whether transformers 5 puts the blank, or reads `tokenizer.json` as a whole."""
    short = str(name).removesuffix("Fast")
    if short not in (_LLAMA, _CODE_LLAMA):
        return True
    return (
        short == _LLAMA
        and bool(config.get("legacy"))
        and config.get("add_prefix_space") is not False
    )
