"""Tokenizers from strangers: definitions that abort or stall what reads them, ids the model does not have, files that
are none."""

from __future__ import annotations

import base64
import os
from collections.abc import Callable
from typing import Any

from tests.hostile.case import Artefact, Case, harmless, refused
from tests.hostile.inputs import record

FILE, CONFIG = "tokenizer.json", "tokenizer_config.json"


def given(**values: object) -> Callable[[Case], None]:
    """Set fields of the definition."""
    return lambda case: case.edit(FILE, lambda definition: definition.update(values))


def in_model(**values: object) -> Callable[[Case], None]:
    """Set fields of its model."""
    return lambda case: case.edit(FILE, lambda definition: definition["model"].update(values))


def configured(**values: object) -> Callable[[Case], None]:
    return lambda case: case.edit(CONFIG, lambda config: config.update(values))


def more_words(case: Case) -> None:
    """Take the tokenizer of a larger model."""

    def change(definition: dict[str, Any]) -> None:
        vocab = definition["model"]["vocab"]
        vocab |= {f"word{number}": len(vocab) + number for number in range(100)}

    case.edit(FILE, change)


def beyond(case: Case) -> None:
    """Give a letter an id that the model has no row for."""
    case.edit(FILE, lambda definition: definition["model"]["vocab"].update(t=10**6))


def ids_twice(case: Case) -> None:
    def change(definition: dict[str, Any]) -> None:
        for token in definition["added_tokens"]:
            token["id"] = 0

    case.edit(FILE, change)


def replaced(name: str, content: bytes) -> Callable[[Case], object]:
    return lambda case: (case.model / name).write_bytes(content)


def linked(name: str) -> Callable[[Case], None]:
    def make(case: Case) -> None:
        (case.model / name).rename(case.outside / name)
        case.link(name, case.outside / name)

    return make


def fifo(case: Case) -> None:
    (case.model / FILE).unlink()
    os.mkfifo(case.model / FILE)


def own_class(case: Case) -> None:
    (case.model / "tokenization_evil.py").write_text(case.payload)
    configured(auto_map={"AutoTokenizer": ["tokenization_evil.T", None]}, tokenizer_class="T")(case)


def slow_pattern(case: Case) -> None:
    split = {
        "type": "Split",
        "pattern": {"Regex": "(a+)+$"},
        "behavior": "Isolated",
        "invert": False,
    }
    given(pre_tokenizer=split)(case)
    record(response="a" * 64 + "b")(case)


def unusual(case: Case) -> None:
    """Have a definition that only the library reads, which a child process tries out first."""
    pattern = {"Regex": r"\\s+"}
    given(
        pre_tokenizer={"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False}
    )(case)


STRIDE = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 5}
PADDING = {
    "strategy": "BatchLongest",
    "direction": "Right",
    "pad_to_multiple_of": 2**31,
    "pad_id": 0,
    "pad_type_id": 0,
    "pad_token": "<s>",
}
ABSENT = {
    "type": "TemplateProcessing",
    "single": [
        {"SpecialToken": {"id": "<nope>", "type_id": 0}},
        {"Sequence": {"id": "A", "type_id": 0}},
    ],
    "pair": [],
    "special_tokens": {},
}
CHARSMAP = {
    "type": "Precompiled",
    "precompiled_charsmap": base64.b64encode(b"\xff\xff\xff\x7f" * 4).decode(),
}

CODE = "E_TOKENIZER"
ARTEFACTS: list[Artefact] = [
    harmless("tokenizer that cuts with a stride above its length", given(truncation=STRIDE)),
    harmless("tokenizer that cuts texts to two tokens", given(truncation=STRIDE | {"stride": 0})),
    harmless("tokenizer that pads to 2^31", given(padding=PADDING)),
    harmless("tokenizer whose template names no token", given(post_processor=ABSENT)),
    refused("merge whose result has no id", in_model(merges=[["o", "n"]]), CODE),
    refused("charsmap beyond its own end", given(normalizer=CHARSMAP), CODE),
    refused("pieces of length 0", given(pre_tokenizer={"type": "FixedLength", "length": 0}), CODE),
    harmless("pattern that takes for ever", slow_pattern, code=3),
    refused("tokenizer of a larger model", more_words, CODE),
    refused("token beyond the model's rows", beyond, CODE),
    refused("special tokens with one id", ids_twice, CODE),
    refused("tokenizer of no object", replaced(FILE, b"[]"), CODE),
    refused("tokenizer nested 100,000 deep", replaced(FILE, b'{"model":' * 100_000), CODE),
    refused("tokenizer that links outside", linked(FILE), CODE),
    refused("tokenizer that is a pipe", fifo, CODE),
    harmless("tokenizer with code of its own", own_class),
    refused("tokenizer config of no object", replaced(CONFIG, b"[]"), CODE),
    refused("tokenizer config nested 100,000 deep", replaced(CONFIG, b'{"a":' * 100_000), CODE),
    refused("tokenizer config that links outside", linked(CONFIG), CODE),
    refused("templates that are numbers", configured(chat_template=[1, 2]), CODE),
    refused("template that is a number", configured(chat_template=7), CODE),
]
