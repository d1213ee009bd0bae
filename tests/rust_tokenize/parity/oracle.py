"""Our tokenizer beside the reference: the same file in both, the same texts, every way to read them.

The reference is the installed `tokenizers` package, not the crate we link: the two are built and versioned apart. A
difference is reduced to a text none of whose characters can go, and shown as a line for `cases.py`.
"""

from __future__ import annotations

import copy
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from itertools import chain, pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from fam_engine import _rust_tokenize as rt
from tests.rust_tokenize.parity.definitions import BYTES, Definition
from tests.rust_tokenize.parity.generators import Material

if TYPE_CHECKING:
    import tokenizers


@dataclass(frozen=True)
class Reading:
    """How texts are read; the fields are the arguments of `Tokenizer.encode_batch`."""

    add_special_tokens: bool = False
    parse_special: bool = True
    continuation: bool = False


READINGS = [
    Reading(add, parse, follows)
    for follows in (False, True)
    for parse in (True, False)
    for add in (False, True)
]


_IS_OLD = tuple(map(int, metadata.version("tokenizers").split(".")[:2])) < (0, 23)

# Texts compared so far, by tokenizer and engine; printed when the tests are over.
COMPARED: Counter[tuple[str, str]] = Counter()


SECTIONS = {"version", "added_tokens", "model"}
SECTIONS |= {"normalizer", "pre_tokenizer", "post_processor", "decoder"}


def as_read(text: str) -> Definition:
    """Give the sections of a `tokenizer.json` that we read: stored truncation and padding never apply."""
    definition = json.loads(text)
    sections = {name: section for name, section in definition.items() if name in SECTIONS}
    if sections.get("version") is None:
        sections.pop("version", None)  # the reference wants a text or nothing there
    return sections


class Mismatch(AssertionError):
    """Ids or a text that differ from the reference's."""


class Pair:
    """One definition loaded by us and by the reference."""

    def __init__(self, name: str, path: Path) -> None:
        import tokenizers

        self.name = name
        self.definition = as_read(path.read_text())
        self.ours = rt.Tokenizer.from_file(path)
        self._theirs = {False: tokenizers.Tokenizer.from_str(json.dumps(self.definition))}
        follows = as_continuation(self.definition)
        self.readings = [r for r in READINGS if follows is not None or not r.continuation]
        if follows is not None:
            text = json.dumps(follows)
            self._theirs[True] = tokenizers.Tokenizer.from_str(text)

    def theirs(self, reading: Reading) -> tokenizers.Tokenizer:
        """Give the reference set to a reading."""
        tokenizer = self._theirs[reading.continuation]
        tokenizer.encode_special_tokens = not reading.parse_special
        return tokenizer

    def their_ids(self, texts: list[str], reading: Reading) -> list[list[int]]:
        """Encode with the reference."""
        add = reading.add_special_tokens
        encoded = self.theirs(reading).encode_batch_fast(texts, add_special_tokens=add)
        return [encoding.ids for encoding in encoded]

    def our_ids(
        self, texts: list[str], reading: Reading, num_threads: int | None = 1
    ) -> list[list[int]]:
        """Encode with our tokenizer."""
        ids, offsets = self.ours.encode_batch(texts, num_threads=num_threads, **vars(reading))
        flat = ids.tolist()
        return [flat[start:stop] for start, stop in pairwise(offsets.tolist())]

    def compare(self, texts: list[str], reading: Reading) -> int:
        """Compare the ids of `texts` and give how many there were; `Mismatch` where they differ."""
        theirs = self.their_ids(texts, reading)
        ids, offsets = self.ours.encode_batch(texts, num_threads=1, **vars(reading))
        if ids.tolist() == list(chain.from_iterable(theirs)):
            lengths = (offsets[1:] - offsets[:-1]).tolist()
            if lengths == list(map(len, theirs)):
                COMPARED[self.name, self.ours.engine] += len(texts)
                return len(texts)
        ours = self.our_ids(texts, reading)
        for text, our, their in zip(texts, ours, theirs, strict=True):
            if our != their:
                raise Mismatch(self.explain(text, reading))
        raise Mismatch(f"{self.name} {reading}: the batch differs, encoded again it does not")

    def differs(self, text: str, reading: Reading) -> bool:
        """Whether one text alone is read differently."""
        return self.our_ids([text], reading) != self.their_ids([text], reading)

    def explain(self, text: str, reading: Reading) -> str:
        """Show a difference as a case, reduced if the text alone still shows it."""
        if not self.differs(text, reading):
            return f"{self.name} {reading}: {text!a} differs in its batch, alone it does not"
        text = shrink(text, lambda candidate: self.differs(candidate, reading))
        [ours], [theirs] = self.our_ids([text], reading), self.their_ids([text], reading)
        return (
            f"\nCase({self.name!r}, {text!a}, {reading}),\n"
            f"  engine {self.ours.engine}\n  ours   {self.shown(ours)}\n  theirs {self.shown(theirs)}"
        )

    def shown(self, ids: list[int]) -> str:
        """Ids beside their tokens."""
        return " ".join(f"{number}:{self.ours.id_to_token(number)!a}" for number in ids[:60])

    def compare_decoding(self, texts: list[str], reading: Reading) -> int:
        """Compare the decoded ids of `texts`; ids are the reference's.

        Before 0.23 the reference gave added tokens that are normalized as they were written: there these are left out.
        """
        normalized = {t["id"] for t in self.definition["added_tokens"] if t["normalized"]}
        for ids in self.their_ids(texts, reading):
            if _IS_OLD and normalized.intersection(ids):
                continue
            for skip in (False, True):
                ours = self.ours.decode(ids, skip_special_tokens=skip)
                theirs = self._theirs[False].decode(ids, skip_special_tokens=skip)
                if ours != theirs:
                    what = f"{self.name}: decoding {ids}, skip_special_tokens={skip}"
                    raise Mismatch(f"{what}: {ours!a} and not {theirs!a}")
        return len(texts)

    def material(self) -> Material:
        """Give what the generators make texts of."""
        specials = [token["content"] for token in self.definition["added_tokens"]]
        return Material(entries=self.entries(), specials=specials or ["<s>"])

    def entries(self) -> list[str]:
        """Give the text of each vocabulary entry; one that is no UTF-8 by itself is left out."""
        vocab = self.definition["model"]["vocab"]
        tokens = [t if isinstance(t, str) else t[0] for t in vocab]
        if '"ByteLevel"' not in json.dumps(self.definition.get("pre_tokenizer")):
            return [token.replace("\u2581", " ") for token in tokens if token]
        texts = [entry_text(token) for token in tokens]
        return [text for text in texts if text]


def entry_text(token: str) -> str | None:
    """Give the text of a byte-level token, None if its bytes are none."""
    try:
        return bytes(BYTES[letter] for letter in token).decode()
    except (KeyError, UnicodeDecodeError):
        return None


def as_continuation(definition: Definition) -> Definition | None:
    """Take out the step that puts a blank in front of a text; None if it puts one before every word."""
    edited = copy.deepcopy(definition)
    edited["normalizer"] = without_prepend(edited.get("normalizer"))
    for number, step in enumerate(leaves(edited.get("pre_tokenizer"))):
        if step.get("type") == "ByteLevel" and step.get("add_prefix_space", True):
            if number > 0:
                return None
            step["add_prefix_space"] = False
        if step.get("type") == "Metaspace" and step.get("add_prefix_space", True):
            if number > 0 and step.get("prepend_scheme", "always") == "always":
                return None
            step.pop("add_prefix_space", None)
            step["prepend_scheme"] = "never"
    return edited


def without_prepend(step: object) -> object:
    """Drop `Prepend` from a normalizer, however deep; null if nothing else was there."""
    if not isinstance(step, dict):
        return step
    if step.get("type") == "Sequence" and isinstance(step.get("normalizers"), list):
        kept = [without_prepend(each) for each in step["normalizers"]]
        return step | {"normalizers": [each for each in kept if each is not None]}
    return None if step.get("type") == "Prepend" else step


def leaves(step: object) -> list[Definition]:
    """List the pretokenizers inside sequences, in the order they run."""
    if not isinstance(step, dict):
        return []
    if step.get("type") == "Sequence" and isinstance(step.get("pretokenizers"), list):
        return [leaf for each in step["pretokenizers"] for leaf in leaves(each)]
    return [step]


def shrink(text: str, fails: Callable[[str], bool]) -> str:
    """Take characters away, then make them plain, as long as `fails` holds (delta debugging)."""
    size = max(len(text) // 2, 1)
    while True:
        shorter = next(
            (
                text[:at] + text[at + size :]
                for at in range(0, len(text), size)
                if fails(text[:at] + text[at + size :])
            ),
            None,
        )
        if shorter is not None:
            text = shorter
            size = max(min(size, len(text) // 2), 1)
        elif size > 1:
            size //= 2
        else:
            return plainer(text, fails)


def plainer(text: str, fails: Callable[[str], bool]) -> str:
    """Replace characters by common ones of their kind as long as `fails` holds."""
    for at in range(len(text)):
        for common in "a 1.":
            if text[at] != common and fails(text[:at] + common + text[at + 1 :]):
                text = text[:at] + common + text[at + 1 :]
                break
    return text
