"""What a model folder says about its tokenizer beside `tokenizer.json`.

In: `tokenizer_config.json` and `config.json`. Out: names and ids of the special tokens that texts begin and end with.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fam_engine.errors import ModelRefusedError


def read_config(file: Path) -> dict[str, Any]:
    """Read a configuration in JSON; empty if there is none.

    Raises:
        ModelRefusedError: It is no JSON object.
    """
    if not file.is_file():
        return {}
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
        json.dumps(config, ensure_ascii=False).encode()  # refuses half of a surrogate pair
    except (OSError, ValueError, RecursionError):
        config = None
    if not isinstance(config, dict):
        raise ModelRefusedError("is not a JSON object", code="E_TOKENIZER_CONFIG", where=str(file))
    return config


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
    value = read_config(folder / "config.json").get("eos_token_id")
    first = value[0] if isinstance(value, list) and value else value
    return first if isinstance(first, int) else None
