"""Small tokenizers, one for each pipeline the native engine knows, built here so that no file is needed.

Out: `tokenizer.json` as a dict. Each vocabulary is hostile on purpose: merges learned from a few lines in many scripts,
then merges of random neighbours in random ranks, second pairs for tokens that have one already, and entries no merge
makes. Real vocabularies have all of this (280,147 merges for 127,744 tokens in Llama 3; 201 unreachable entries in
Qwen3.5), but so rarely that few strings meet it.
"""

from __future__ import annotations

import functools
import random
from collections import Counter
from itertools import pairwise
from typing import Any

Definition = dict[str, Any]

CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
TAIL = r"|\s*[\r\n]+|\s+(?!\S)|\s+"
CL100K = CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*" + TAIL
QWEN2 = CL100K.replace("{1,3}", "")
QWEN35 = QWEN2.replace(r"?\p{L}+", r"?[\p{L}\p{M}]+").replace(r"\s\p{L}\p{N}", r"\s\p{L}\p{M}\p{N}")
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
LEAD = r"[^\r\n\p{L}\p{N}]?"
O200K = (
    f"{LEAD}{UPPER}*{LOWER}+{CONTRACTIONS}?|{LEAD}{UPPER}+{LOWER}*{CONTRACTIONS}?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*" + TAIL
)
TEKKEN = f"{LEAD}{UPPER}*{LOWER}+|{LEAD}{UPPER}+{LOWER}*" + (
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*" + TAIL
)
DEEPSEEK = [
    r"\p{N}{1,3}",
    "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+"""
    "|[^\r\n"
    + r"\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+"
    + "[\r\n]*|"
    + "\\s*[\r\n]+|\\s+(?!\\S)|\\s+",
]

# Written for this file.
LESSON = (
    "\n"
    "The quick brown fox didn't jump; it's they'll we've I'm he'd you're DON'T SHE'LL x'\u017f "
    "and the other thing in the end.\n"
    "Words of one kind, words of another: running, runner, ran. ThisIsCamelCase HTTPServer "
    "getURLOf iPhone XMLHttpRequest.\n"
    "def read(path: str) -> int:\n"
    "    for i in range(10):\n"
    "        total += i ** 2\n"
    "\n"
    '    return {"a": [1, 2.5, -3e-7]}\r\n'
    "\n"
    "\t\tif (x == 0) { y = z->next; }  // 1234567890 3.14159 $80,000.00 50% ###\n"
    "\n"
    "\n"
    "   \n"
    "  spaces    here\n"
    "caf\xe9 na\xefve \xfcber stra\xdfe \xc5ngstr\xf6m e\u0301a\u0308 "
    "\u0416\u0438\u0437\u043d\u044c \u0447\u0435\u043b\u043e\u0432\u0435\u043a\u0430\n"
    "\u4eca\u65e5\u306f\u4e16\u754c \u6211\u4eec\u5728\u5b66\u4e60\u65b0\u7684\u4e1c\u897f "
    "\u30ab\u30bf\u30ab\u30ca\u3072\u3089\u304c\u306a \ud55c\uad6d\uc5b4 \uac00\ub098\ub2e4\n"
    "\u0627\u0644\u0633\u0644\u0627\u0645 \u05e9\u05dc\u05d5\u05dd "
    "\u0e20\u0e32\u0e29\u0e32\u0e44\u0e17\u0e22 \u0939\u093f\u0928\u094d\u0926\u0940 "
    "\U0001f642\U0001f468\u200d\U0001f469\u200d\U0001f467 \u2764\ufe0f\n"
)


def byte_letters() -> dict[int, str]:
    """Give the character that stands for each byte in a byte-level vocabulary (GPT-2)."""
    kept = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in kept]
    letters = {byte: chr(byte) for byte in kept}
    return letters | {byte: chr(256 + number) for number, byte in enumerate(others)}


LETTERS = byte_letters()
BYTES = {letter: byte for byte, letter in LETTERS.items()}
Merge = tuple[str, str]


def learned_merges(words: list[list[str]], count: int) -> list[Merge]:
    """Learn merges as byte-pair encoding does, ties by text."""
    merges: list[Merge] = []
    for _ in range(count):
        pairs = Counter(pair for word in words for pair in pairwise(word))
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        merges.append(best)
        words = [merged(word, best) for word in words]
    return merges


def merged(word: list[str], pair: Merge) -> list[str]:
    """Replace each occurrence of `pair`, from the left."""
    out: list[str] = []
    at = 0
    while at < len(word):
        if tuple(word[at : at + 2]) == pair:
            out.append(word[at] + word[at + 1])
            at += 2
        else:
            out.append(word[at])
            at += 1
    return out


def hostile_merges(rng: random.Random, alphabet: list[str], learned: list[Merge]) -> list[Merge]:
    """Add random merges and second pairs at random ranks to `learned`."""
    merges = list(learned)
    tokens = alphabet + [left + right for left, right in learned]
    for _ in range(len(learned)):
        pair = (rng.choice(tokens), rng.choice(tokens))
        if len("".join(pair)) <= 12 and pair not in merges:
            merges.insert(rng.randint(0, len(merges)), pair)
            tokens.append("".join(pair))
    known = set(tokens)
    for token in [token for token in tokens if len(token) > 2]:
        cut = rng.randint(1, len(token) - 1)
        pair = (token[:cut], token[cut:])
        if known.issuperset(pair) and pair not in merges:
            merges.insert(rng.randint(0, len(merges)), pair)
    return merges


# What pretokens begin and end with: some ASCII, and the first and last bytes of other characters.
ASCII = [*b"\t\n\x0b\r !'-./:_01459AELSTVXadelmnrstvxyz"]
FIRST_BYTES, LAST_BYTES = [*range(0xC2, 0xF5)], [*range(0x80, 0xC0)]


def border_merges(rng: random.Random, merges: list[Merge]) -> list[Merge]:
    """Mix in merges of the last byte of one character with the first of the next.

    With them a text that is cut in another place has other ids, whatever the characters. Without them, as in any real
    vocabulary, most wrong cuts between rare characters change nothing.
    """
    ends, begins = ASCII + LAST_BYTES, ASCII + FIRST_BYTES
    pairs = [(LETTERS[end], LETTERS[begin]) for end in ends for begin in begins]
    fresh = sorted({*pairs} - {*merges})
    rng.shuffle(fresh)
    learned = {*rng.sample(range(len(merges) + len(fresh)), len(merges))}
    first, second = iter(merges), iter(fresh)
    return [next(first if n in learned else second) for n in range(len(merges) + len(fresh))]


def model(
    alphabet: list[str], merges: list[Merge], extra: list[str], flags: Definition
) -> Definition:
    """Make a BPE model; `extra` are entries no merge makes."""
    tokens = alphabet + [left + right for left, right in merges] + extra
    vocab = {token: number for number, token in enumerate(dict.fromkeys(tokens))}
    return {"type": "BPE", "vocab": vocab, "merges": [list(pair) for pair in merges]} | flags


def byte_level(**fields: bool) -> Definition:
    """Make a `ByteLevel` section."""
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True} | fields


def split(pattern: str) -> Definition:
    """Make a `Split` section that keeps what it finds."""
    return {
        "type": "Split",
        "pattern": {"Regex": pattern},
        "behavior": "Isolated",
        "invert": False,
    }


def sequence(*steps: Definition) -> Definition:
    """Make a `Sequence` of pretokenizers."""
    return {"type": "Sequence", "pretokenizers": list(steps)}


def added(number: int, content: str, **flags: bool) -> Definition:
    """Make an added token, special and not normalized unless told otherwise."""
    defaults = {"single_word": False, "lstrip": False, "rstrip": False}
    return {"id": number, "content": content, "special": True, "normalized": False} | (
        defaults | flags
    )


def whole(definition: Definition, contents: list[tuple[str, dict[str, bool]]]) -> Definition:
    """Complete a definition: added tokens get the ids after the vocabulary, or their own."""
    vocab = definition["model"]["vocab"]
    fresh = iter(range(len(vocab), len(vocab) + len(contents)))
    tokens = []
    for content, flags in contents:
        number = vocab[content] if content in vocab else next(fresh)
        tokens.append(added(number, content, **flags))
    empty = dict.fromkeys(["truncation", "padding", "normalizer", "pre_tokenizer"])
    return {"version": "1.0", "post_processor": None, "added_tokens": tokens} | empty | definition


# What real files have: bare specials, one that is no special, blanks as tokens, rstrip (Phi-3), lstrip (RoBERTa).
ADDED: list[tuple[str, dict[str, bool]]] = [
    ("<s>", {}),
    ("<|end|>", {}),
    ("<|endoftext|>", {}),
    ("<tool>", {"special": False}),
    ("    ", {"special": False, "normalized": True}),
    ("<|user|>", {"rstrip": True}),
    ("<mask>", {"lstrip": True}),
    ("Caf\u00e9", {"special": False, "normalized": True}),
]
WORD: list[tuple[str, dict[str, bool]]] = [("word", {"special": False, "single_word": True})]


def begins_with(token: str, definition: Definition) -> Definition:
    """Make the post-processor that puts `token` in front."""
    number = next(t["id"] for t in definition["added_tokens"] if t["content"] == token)
    text = {"Sequence": {"id": "A", "type_id": 0}}
    special = {token: {"id": token, "ids": [number], "tokens": [token]}}
    single = [{"SpecialToken": {"id": token, "type_id": 0}}, text]
    pair = [*single, {"Sequence": {"id": "B", "type_id": 1}}]
    return {
        "type": "TemplateProcessing",
        "single": single,
        "pair": pair,
        "special_tokens": special,
    }


def byte_level_tokenizer(
    seed: int,
    pre_tokenizer: Definition,
    *,
    ignore_merges: bool = False,
    normalizer: Definition | None = None,
    more: list[tuple[str, dict[str, bool]]] | None = None,
    borders: bool = True,
) -> Definition:
    """Make a byte-level BPE of about 11,000 entries, 600 without `borders`."""
    rng = random.Random(seed)
    alphabet = list(LETTERS.values())
    spaced = ["".join(LETTERS[byte] for byte in (" " + w).encode()) for w in LESSON.split()]
    indents = ["".join(LETTERS[byte] for byte in text) for text in (b"\n\n", b"    ", b" \n")]
    learned = learned_merges([list(word) for word in spaced + indents * 3], 200)
    merges = hostile_merges(rng, alphabet, learned)
    if borders:
        merges = border_merges(rng, merges)
    extra = [rng.choice(spaced) + rng.choice(spaced)[1:] for _ in range(40)]
    flags = {"unk_token": None, "fuse_unk": False, "byte_fallback": False, "dropout": None}
    flags |= {"ignore_merges": True} if ignore_merges else {}
    made = model(alphabet, merges, extra, flags)
    definition = {
        "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer,
        "model": made,
        "decoder": byte_level(add_prefix_space=True, use_regex=True),
    }
    done = whole(definition, [*ADDED, *(more or [])])
    return done | {"post_processor": begins_with("<s>", done)}


PREPEND = {"type": "Prepend", "prepend": "\u2581"}
REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}


def sentencepiece_tokenizer(
    seed: int,
    *,
    crossing: bool = False,
    num_bytes: int = 256,
    flags: Definition | None = None,
    **sections: Definition,
) -> Definition:
    """Make a BPE over characters with byte fallback, about 900 entries.

    `crossing`: some merges join a word's end with the blank after it, so no cut before a blank is safe.
    `num_bytes`: bytes that have a token; a character with another byte is unknown.
    """
    rng = random.Random(seed)
    words = ["\u2581" + word for word in LESSON.split()] + ["\u2581" * n for n in (2, 4, 8)] * 3
    characters = sorted({character for word in words for character in word} - set("Zq\u0416"))
    kept = [[c for c in word if c in characters] for word in words]
    merges = hostile_merges(rng, characters, learned_merges(kept, 200))
    if crossing:
        merges[60:60] = [("e", "\u2581"), ("s", "\u2581t"), ("\n", "\u2581\u2581")]
        characters += ["\n"]
    else:
        merges = [m for m in merges if not ("\u2581" in m[1] and m[0].strip("\u2581"))]
        merges = closed(characters, merges)
    fallback = [f"<0x{byte:02X}>" for byte in range(num_bytes)]
    flags = {"unk_token": "<unk>", "fuse_unk": True, "byte_fallback": True} | (flags or {})
    alphabet = ["<unk>", "<s>", "</s>", *fallback, *characters]
    definition = {"model": model(alphabet, merges, ["\u2581never\u2581made"], flags)} | sections
    replace_back = {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "}
    definition["decoder"] = {
        "type": "Sequence",
        "decoders": [
            replace_back,
            {"type": "ByteFallback"},
            {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0},
        ],
    }
    done = whole(definition, [("<unk>", {}), *ADDED])
    return done | {"post_processor": begins_with("<s>", done)}


def closed(alphabet: list[str], merges: list[Merge]) -> list[Merge]:
    """Drop merges whose parts no other merge makes any more."""
    while True:
        known = set(alphabet) | {left + right for left, right in merges}
        kept = [pair for pair in merges if known.issuperset(pair)]
        if len(kept) == len(merges):
            return merges
        merges = kept


def small_tokenizers(seed: int = 0, *, borders: bool = True) -> dict[str, Definition]:
    """Give a small tokenizer for every pipeline, by a name that starts with `small_`."""
    plain = byte_level(use_regex=False)
    nfc = {"type": "NFC"}
    digits = {"type": "Digits", "individual_digits": True}
    metaspace = {
        "type": "Metaspace",
        "replacement": "\u2581",
        "prepend_scheme": "first",
        "split": False,
    }
    gemma_split = split(" ") | {"pattern": {"String": " "}, "behavior": "MergedWithPrevious"}
    llama2 = {"type": "Sequence", "normalizers": [PREPEND, REPLACE]}
    byte = functools.partial(byte_level_tokenizer, borders=borders)
    piece = sentencepiece_tokenizer
    return {
        "small_gpt2": byte(seed + 1, byte_level(use_regex=True)),
        "small_gpt2_prefix": byte(seed + 2, byte_level(use_regex=True, add_prefix_space=True)),
        "small_single_word": byte(seed + 15, byte_level(use_regex=True), more=WORD),
        "small_neox": byte(seed + 3, byte_level(use_regex=True), normalizer=nfc),
        "small_cl100k": byte(seed + 4, sequence(split(CL100K), plain), ignore_merges=True),
        "small_qwen2": byte(seed + 5, sequence(split(QWEN2), plain), normalizer=nfc),
        "small_qwen35": byte(seed + 14, sequence(split(QWEN35), plain), normalizer=nfc),
        "small_o200k": byte(seed + 6, sequence(split(O200K), plain), ignore_merges=True),
        "small_tekken": byte(seed + 7, sequence(split(TEKKEN), plain), ignore_merges=True),
        "small_deepseek": byte(seed + 8, sequence(*map(split, DEEPSEEK), plain)),
        "small_digits": byte(seed + 9, sequence(digits, byte_level(use_regex=True))),
        "small_llama2": piece(seed + 10, normalizer=llama2),
        "small_mistral": piece(seed + 11, pre_tokenizer=metaspace),
        "small_gemma": piece(seed + 12, normalizer=REPLACE, pre_tokenizer=gemma_split),
        "small_crossing": piece(seed + 13, crossing=True, normalizer=llama2),
        "small_unknown": piece(seed + 16, num_bytes=0xC4, normalizer=llama2),
        "small_unknown_apart": piece(
            seed + 17, num_bytes=0xC4, flags={"fuse_unk": False}, pre_tokenizer=metaspace
        ),
        "small_vanishing": piece(
            seed + 18, num_bytes=0x60, flags={"unk_token": None}, normalizer=REPLACE
        ),
        "small_no_bytes": piece(seed + 19, flags={"byte_fallback": False}, normalizer=llama2),
    }
