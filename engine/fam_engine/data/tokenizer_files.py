"""What a model folder says about its tokenizer beside `tokenizer.json`.

In: `tokenizer_config.json` and `config.json`. Out: names and ids of the special tokens that texts begin and end with,
and how many tokens the model has rows for.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from fam_engine.data.plain_files import plain_file, read_json_object

CODE: Final = "E_TOKENIZER_CONFIG"
TOKENIZER_CONFIG: Final = "tokenizer_config.json"


def read_config(folder: Path, name: str = TOKENIZER_CONFIG) -> dict[str, Any]:
    """Read a configuration in a model's folder; empty if there is none.

    Raises:
        ModelRefusedError: It is no JSON object, or a link that leaves the folder.
    """
    if not (folder / name).exists():
        return {}
    return read_json_object(plain_file(folder, name, code=CODE), code=CODE)


def template_constants(config: dict[str, Any]) -> dict[str, str]:
    """Give the special tokens templates may name, `bos_token` and its like."""
    texts = {name: token_text(value) for name, value in config.items() if name.endswith("_token")}
    return {name: text for name, text in texts.items() if text}


def token_text(value: object) -> str | None:
    """Read a token written as text or as an added-token object."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else None


def config_eos(folder: Path) -> int | None:
    """Give the id of what ends a text by the model's own `config.json`."""
    value = read_config(folder, "config.json").get("eos_token_id")
    first = value[0] if isinstance(value, list) and value else value
    return first if isinstance(first, int) else None


def num_rows(folder: Path) -> int | None:
    """Give how many tokens the model has rows for by its own `config.json`."""
    value = read_config(folder, "config.json").get("vocab_size")
    return value if isinstance(value, int) else None
