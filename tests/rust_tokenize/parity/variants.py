"""Other tokenizers made from a small one: plausible ones, and files only an enemy would write.

In: a seeded `random.Random` and a definition. Out: a file; `vary` gives one that is well formed and perhaps supported
(one section exchanged, a flag flipped, an added token with odd flags); `damage` gives bytes that may be anything. Our
loader must end in the ids of the reference or in a refusal.
"""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable
from typing import Any

from tests.rust_tokenize.parity.definitions import (
    CL100K,
    DEEPSEEK,
    O200K,
    PREPEND,
    QWEN2,
    REPLACE,
    Definition,
    added,
    begins_with,
    byte_level,
    sequence,
    split,
)

NFC = {"type": "NFC"}


def normalizers(*steps: Definition) -> Definition:
    """Make a `Sequence` of normalizers."""
    return {"type": "Sequence", "normalizers": list(steps)}


NORMALIZERS: list[Definition | None] = [
    None,
    NFC,
    {"type": "NFD"},
    {"type": "NFKC"},
    {"type": "Lowercase"},
    {"type": "Strip", "strip_left": True, "strip_right": False},
    {"type": "ByteLevel"},
    PREPEND,
    REPLACE,
    PREPEND | {"prepend": ""},
    PREPEND | {"prepend": "x"},
    PREPEND | {"prepend": " "},
    REPLACE | {"content": ""},
    REPLACE | {"content": "_"},
    REPLACE | {"pattern": {"String": "\u2581"}},
    REPLACE | {"pattern": {"String": "e"}, "content": "\u0301"},
    REPLACE | {"pattern": {"Regex": " +"}},
    normalizers(),
    normalizers(NFC),
    normalizers(NFC, NFC),
    normalizers(PREPEND, REPLACE),
    normalizers(REPLACE, PREPEND),
    normalizers(NFC, PREPEND, REPLACE),
    normalizers(PREPEND, REPLACE, NFC),
    normalizers(normalizers(PREPEND), REPLACE),
]
METASPACE = {"type": "Metaspace", "replacement": "\u2581"}
GPT2, PLAIN = byte_level(use_regex=True), byte_level(use_regex=False)
DIGITS = {"type": "Digits", "individual_digits": True}
PRE_TOKENIZERS: list[Definition | None] = [
    None,
    GPT2,
    PLAIN,
    byte_level(),
    GPT2 | {"add_prefix_space": True},
    GPT2 | {"trim_offsets": False},
    PLAIN | {"add_prefix_space": True},
    sequence(),
    sequence(GPT2),
    sequence(GPT2, GPT2),
    sequence(DIGITS, GPT2),
    sequence(DIGITS, GPT2 | {"add_prefix_space": True}),
    sequence(DIGITS | {"individual_digits": False}, GPT2),
    sequence(GPT2, DIGITS),
    sequence(split(CL100K), PLAIN),
    sequence(split(CL100K), GPT2),
    sequence(split(CL100K)),
    sequence(split(CL100K) | {"behavior": "Removed"}, PLAIN),
    sequence(split(CL100K) | {"behavior": "Removed", "invert": True}, PLAIN),
    sequence(split(CL100K) | {"behavior": "MergedWithNext"}, PLAIN),
    sequence(split(CL100K) | {"behavior": "Contiguous"}, PLAIN),
    sequence(split(CL100K) | {"invert": True}, PLAIN),
    sequence(split(CL100K) | {"pattern": {"String": CL100K}}, PLAIN),
    sequence(split(CL100K + "|x"), PLAIN),
    sequence(split(CL100K.replace("{1,3}", "{1,2}")), PLAIN),
    sequence(split(CL100K.replace("(?i:", "(?:")), PLAIN),
    sequence(split(CL100K), PLAIN | {"add_prefix_space": True}),
    sequence(split(QWEN2), PLAIN),
    sequence(split(O200K), PLAIN),
    sequence(PLAIN, split(CL100K)),
    sequence(split(CL100K), split(CL100K), PLAIN),
    sequence(*map(split, DEEPSEEK), PLAIN),
    sequence(*map(split, reversed(DEEPSEEK)), PLAIN),
    sequence(*map(split, DEEPSEEK[:2]), PLAIN),
    METASPACE | {"prepend_scheme": "first", "split": False},
    METASPACE | {"prepend_scheme": "first", "split": True},
    METASPACE | {"prepend_scheme": "always", "split": False},
    METASPACE | {"prepend_scheme": "never", "split": False},
    METASPACE | {"add_prefix_space": True, "split": False},
    METASPACE | {"prepend_scheme": "first"},
    METASPACE | {"replacement": "_", "prepend_scheme": "first", "split": False},
    sequence(METASPACE | {"prepend_scheme": "first", "split": False}),
    split(" ") | {"pattern": {"String": " "}, "behavior": "MergedWithPrevious"},
    split(" ") | {"pattern": {"String": " "}, "behavior": "MergedWithNext"},
    split(" ") | {"pattern": {"String": "\u2581"}, "behavior": "MergedWithPrevious"},
    {"type": "WhitespaceSplit"},
    {"type": "Whitespace"},
    {"type": "Punctuation", "behavior": "Contiguous"},
]
FLAGS: list[tuple[str, Any]] = [
    ("dropout", 0.0),
    ("dropout", 0.5),
    ("unk_token", None),
    ("unk_token", "<unk>"),
    ("unk_token", "a"),
    ("unk_token", "no such token"),
    ("fuse_unk", True),
    ("fuse_unk", False),
    ("byte_fallback", True),
    ("byte_fallback", False),
    ("ignore_merges", True),
    ("ignore_merges", False),
    ("continuing_subword_prefix", ""),
    ("continuing_subword_prefix", "##"),
    ("end_of_word_suffix", ""),
    ("end_of_word_suffix", "</w>"),
    ("type", "Unigram"),
]
DECODERS: list[Definition | None] = [
    None,
    byte_level(),
    {"type": "ByteFallback"},
    {"type": "Fuse"},
    METASPACE | {"prepend_scheme": "always", "split": True},
    {"type": "Strip", "content": " ", "start": 2, "stop": 1},
    {"type": "BPEDecoder", "suffix": "</w>"},
    {"type": "WordPiece", "prefix": "##", "cleanup": True},
]
CONTENTS = [
    "  ",
    " ",
    "\n",
    "e\u0301",
    "\u00e9",
    "ab",
    "abc",
    "abcd",
    "<s",
    "<s>x",
    " <s>",
    "\u2581",
    "'s",
    "1",
]
CONTENTS += [
    "\u2581the",
    "the",
    "A",
    "x" * 40,
    "\u1100\u1161",
    "",
    "\u0301",
    "\u00a0",
    "<0x41>",
    "\x00",
    "\u0120",
]


def exchange_normalizer(rng: random.Random, d: Definition) -> None:
    """Another normalizer."""
    d["normalizer"] = copy.deepcopy(rng.choice(NORMALIZERS))


def exchange_pre_tokenizer(rng: random.Random, d: Definition) -> None:
    """Another pretokenizer."""
    d["pre_tokenizer"] = copy.deepcopy(rng.choice(PRE_TOKENIZERS))


def flip_flag(rng: random.Random, d: Definition) -> None:
    """Another model flag, or one missing."""
    name, value = rng.choice(FLAGS)
    d["model"][name] = value
    if rng.random() < 0.2:
        d["model"].pop(rng.choice(FLAGS)[0], None)


def exchange_decoder(rng: random.Random, d: Definition) -> None:
    """Another decoder."""
    d["decoder"] = copy.deepcopy(rng.choice(DECODERS))


def exchange_post_processor(rng: random.Random, d: Definition) -> None:
    """Another post-processor: none, ByteLevel, RoBERTa's, or the template twice, or one that ends."""
    template = d["post_processor"] if isinstance(d["post_processor"], dict) else None
    number = d["model"]["vocab"].get("a", 0)
    choices: list[Definition | None] = [None, GPT2]
    roberta = {"type": "RobertaProcessing", "sep": ["a", number], "cls": ["b", 5]}
    choices.append(roberta | {"trim_offsets": True, "add_prefix_space": False})
    choices.append({"type": "BertProcessing", "sep": ["a", number], "cls": ["b", 5]})
    choices.append({"type": "Sequence", "processors": [GPT2, template] if template else []})
    if template and "single" in template:
        ending = template | {"single": [*template["single"], template["single"][0]]}
        twice = {"type": "Sequence", "processors": [ending, template]}
        choices += [ending, twice, template | {"special_tokens": {}}, template | {"single": []}]
    d["post_processor"] = copy.deepcopy(rng.choice(choices))


def add_tokens(rng: random.Random, d: Definition) -> None:
    """More added tokens, with every combination of flags, some of them vocabulary entries."""
    vocab = d["model"]["vocab"]
    next_id = max([len(vocab) - 1, *(token["id"] for token in d["added_tokens"])]) + 1
    for content in rng.sample([*CONTENTS, *rng.choices([*vocab], k=6)], rng.randint(1, 5)):
        if any(token["content"] == content for token in d["added_tokens"]):
            continue
        number = vocab.get(content, next_id)
        next_id += number == next_id
        names = ["special", "normalized", "lstrip", "rstrip", "single_word"]
        d["added_tokens"].append(
            added(number, content, **{name: rng.random() < 0.4 for name in names})
        )


def change_added_flags(rng: random.Random, d: Definition) -> None:
    """Flip flags of added tokens that are there."""
    for token in d["added_tokens"]:
        name = rng.choice(["special", "normalized", "lstrip", "rstrip", "single_word"])
        token[name] = rng.random() < 0.5


def drop_entries(rng: random.Random, d: Definition) -> None:
    """Holes in the vocabulary: bytes or characters without a token, merges without their result."""
    vocab = d["model"]["vocab"]
    used = {part for pair in d["model"]["merges"] for part in (*pair, "".join(pair))}
    free = [token for token in vocab if token not in used or rng.random() < 0.01]
    for token in rng.sample(free, min(len(free), rng.randint(1, 4))):
        del vocab[token]


def renumber(rng: random.Random, d: Definition) -> None:
    """Ids permuted, so that no order of ids can stand for the order of merges."""
    vocab = d["model"]["vocab"]
    numbers = [*vocab.values()]
    rng.shuffle(numbers)
    d["model"]["vocab"] = dict(zip(vocab, numbers, strict=True))
    for token in d["added_tokens"]:
        token["id"] = d["model"]["vocab"].get(token["content"], token["id"])
    if isinstance(d["post_processor"], dict) and "special_tokens" in d["post_processor"]:
        d["post_processor"] = begins_with("<s>", d)


def shuffle_merges(rng: random.Random, d: Definition) -> None:
    """Merges in any order: parts after wholes, so that more entries are out of reach."""
    rng.shuffle(d["model"]["merges"])


def old_merges(rng: random.Random, d: Definition) -> None:
    """Merges as strings, as files had them before 0.20."""
    d["model"]["merges"] = [" ".join(pair) for pair in d["model"]["merges"]]


def repeat_merges(rng: random.Random, d: Definition) -> None:
    """A merge listed twice."""
    d["model"]["merges"] += rng.sample(d["model"]["merges"], 3)


def odd_ids(rng: random.Random, d: Definition) -> None:
    """An id far away, shared or at the border of 32 bits."""
    vocab = d["model"]["vocab"]
    for token in rng.sample([*vocab], 2):
        vocab[token] = rng.choice([0, 5, 70_000, 2**31 - 1, 2**31, 2**32 - 1])


def stored_limits(rng: random.Random, d: Definition) -> None:
    """Truncation and padding in the file, which must not apply."""
    limits = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
    padding = {"strategy": {"Fixed": 9}, "direction": "Left", "pad_to_multiple_of": None}
    pad = {"pad_id": 0, "pad_type_id": 0, "pad_token": "<s>"}
    d |= {"truncation": limits, "padding": padding | pad}


EDITS: list[Callable[[random.Random, Definition], None]] = [
    *[exchange_normalizer, exchange_pre_tokenizer, flip_flag, exchange_decoder],
    *[exchange_post_processor, add_tokens, add_tokens, change_added_flags, drop_entries, renumber],
    *[shuffle_merges, old_merges, repeat_merges, odd_ids, stored_limits],
]


def vary(rng: random.Random, definition: Definition) -> bytes:
    """Give the file with one to three edits."""
    varied = copy.deepcopy(definition)
    for edit in sorted(rng.sample(EDITS, rng.randint(1, 3)), key=lambda edit: edit is old_merges):
        edit(rng, varied)
    return json.dumps(varied).encode()


HOSTILE: list[Any] = [None, True, -1, 0, 1.5, 2**31, 2**32, 2**63, 1e308, "", "\x00", "a" * 5000]
HOSTILE += [[], {}, [[]], [{}], {"type": "BPE"}, {"type": "Sequence"}, {"": None}, "\ud7ff", [None]]
PATTERNS = [
    "(a+)+$",
    "[",
    "\\p{Nonsense}",
    "",
    "(?:)*",
    "(?<=a)b",
    "(?:a|a)*b",
    "\\",
    "(?#",
    "\\K",
    "^",
]
PATTERNS += ["(" * 300 + ")" * 300, "a{1000}{1000}", "x*", "$", "\\b", ".*?", "(?i:'s)|\\X"]


def damage(rng: random.Random, definition: Definition) -> bytes:
    """Give a file that is wrong somewhere: a value, a key, the text, or the bytes."""
    broken = copy.deepcopy(definition)
    for _ in range(rng.randint(1, 3)):
        break_value(rng, broken)
    text = json.dumps(broken)
    kind = rng.randint(0, 7)
    if kind == 0:
        text = text[: rng.randint(0, len(text))]
    elif kind == 1:
        depth = rng.choice([100, 5000, 200_000])
        text = text.replace("null", "[" * depth + "]" * depth, 1)
    elif kind == 2:
        at = rng.randint(0, len(text))
        text = text[:at] + rng.choice([*'{}[],:"\\0-e\x00', "null", "1e999", '"a":1,']) + text[at:]
    data = bytearray(text.encode())
    if kind == 3:
        for _ in range(rng.randint(1, 4)):
            data[rng.randrange(len(data))] = rng.randrange(256)
    return bytes(data)


def break_value(rng: random.Random, value: Definition) -> None:
    """Replace, remove or rename something somewhere inside `value`."""
    while True:
        keys = [*value] if isinstance(value, dict) else [*range(len(value))]
        if not keys:
            return
        key = rng.choice(keys)
        inner = value[key]
        if not isinstance(inner, dict | list) or not inner or rng.random() < 0.25:
            break
        value = inner
    if key == "Regex":
        value[key] = rng.choice(PATTERNS)
    elif rng.random() < 0.25:
        del value[key]
    elif isinstance(value, dict) and rng.random() < 0.2:
        value[str(rng.choice(HOSTILE))] = value.pop(key)
    else:
        value[key] = copy.deepcopy(rng.choice(HOSTILE))
