"""What a model folder says about its tokenizer beside `tokenizer.json`.

In: `tokenizer_config.json`, `config.json` and, of older folders, `added_tokens.json` and `special_tokens_map.json`.
Out: names and ids of the special tokens that texts begin and end with, the tokens that these files name, and how many
tokens the model has rows for.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from fam_engine.data.plain_files import plain_file, read_json_object

CODE: Final = "E_TOKENIZER_CONFIG"
TOKENIZER_CONFIG: Final = "tokenizer_config.json"
# Its tokens by their ids; a folder that has it needs none of the older files, and transformers reads none then.
_DECODER: Final = "added_tokens_decoder"
_ADDED_TOKENS: Final = "added_tokens.json"
_SPECIAL_TOKENS: Final = "special_tokens_map.json"
# Lists of further special tokens: of transformers 5, and of those before it.
_LISTS: Final = ("extra_special_tokens", "additional_special_tokens")


@dataclass(frozen=True)
class NamedToken:
    """A token that a file beside `tokenizer.json` names.

    Attributes:
        file: Which file.
        text: The token.
        id: Its id as the file writes it; None: the file gives none.
    """

    file: str
    text: str
    id: str | None


def read_config(folder: Path, name: str = TOKENIZER_CONFIG) -> dict[str, Any]:
    """Read a configuration in a model's folder; empty if there is none.

    Raises:
        ModelRefusedError: It is no JSON object, or a link that leaves the folder.
    """
    if not (folder / name).exists():
        return {}
    return read_json_object(plain_file(folder, name, code=CODE), code=CODE)


def read_tokenizer_config(folder: Path) -> dict[str, Any]:
    """Read `tokenizer_config.json` with its named tokens, `bos_token` and its like, as transformers knows them.

    Where the file has no tokens by their ids, the older `special_tokens_map.json` names them too, and what it says
    wins: so do transformers 4 and 5 (`_from_pretrained` in `tokenization_utils_base.py`).

    Raises:
        ModelRefusedError: A file is no JSON object, or a link that leaves the folder.
    """
    config = read_config(folder)
    if config.get(_DECODER) is not None:
        return config
    older = read_config(folder, _SPECIAL_TOKENS)
    return config | {name: value for name, value in older.items() if name.endswith("_token")}


def template_constants(config: dict[str, Any]) -> dict[str, str]:
    """Give the special tokens templates may name, `bos_token` and its like."""
    texts = {name: token_text(value) for name, value in config.items() if name.endswith("_token")}
    return {name: text for name, text in texts.items() if text}


def token_text(value: object) -> str | None:
    """Read a token written as text or as an added-token object."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else None


def named_tokens(folder: Path) -> Iterator[NamedToken]:
    """Give the tokens that transformers adds to a tokenizer whose `tokenizer.json` lacks them.

    What is no token is passed by. So are those with a name of their own, such as `pad_token`: texts have none of them
    but BOS and EOS, which are looked for where they are needed.

    Raises:
        ModelRefusedError: A file is no JSON object, or a link that leaves the folder.
    """
    config = read_config(folder)
    yield from _listed(TOKENIZER_CONFIG, config)
    if config.get(_DECODER) is not None:
        yield from _decoded(config[_DECODER])
        return
    yield from _listed(_SPECIAL_TOKENS, read_config(folder, _SPECIAL_TOKENS))
    for text, value in read_config(folder, _ADDED_TOKENS).items():
        yield NamedToken(_ADDED_TOKENS, text, str(value))


def _decoded(decoder: object) -> Iterator[NamedToken]:
    for key, value in decoder.items() if isinstance(decoder, dict) else ():
        if text := token_text(value):
            yield NamedToken(TOKENIZER_CONFIG, text, key)


def _listed(file: str, config: dict[str, Any]) -> Iterator[NamedToken]:
    for name in _LISTS:
        found = config.get(name)
        tokens = list(found.values()) if isinstance(found, dict) else found
        for value in tokens if isinstance(tokens, list) else ():
            if text := token_text(value):
                yield NamedToken(file, text, None)


def config_eos(folder: Path) -> int | None:
    """Give the id of what ends a text by the model's own `config.json`."""
    value = read_config(folder, "config.json").get("eos_token_id")
    first = value[0] if isinstance(value, list) and value else value
    return first if isinstance(first, int) else None


def num_rows(folder: Path) -> int | None:
    """Give how many tokens the model has rows for by its own `config.json`."""
    value = read_config(folder, "config.json").get("vocab_size")
    return value if isinstance(value, int) else None
