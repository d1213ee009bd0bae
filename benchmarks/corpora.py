"""Real text to tokenize: English, GSM8K, code, Chinese and Japanese, emoji.

In: a name. Out: texts. All of it is on the machine or in the package; nothing is downloaded and nothing is shipped:
the Python reference and English manual pages, GSM8K's training file if the environment variable `GSM8K` names it (else
the embedded answers), Python's standard library, the manual pages of Debian's `manpages-zh` and `manpages-ja`. Emoji
are scattered over GSM8K by a seed, because no free collection is at hand.
"""

from __future__ import annotations

import gzip
import json
import os
import random
import re
import sysconfig
from collections.abc import Callable, Iterator
from itertools import chain, pairwise
from pathlib import Path

_MANUALS = Path("/usr/share/man")
_MAX_BYTES = 4_000_000
# Plain, with a variation selector, with skin tones, flags, families joined by U+200D.
_EMOJI = [
    "\U0001f600",
    "\U0001f680",
    "\u2764\ufe0f",
    "\U0001f469\u200d\U0001f4bb",
    "\U0001f44d\U0001f3fd",
    "\U0001f1eb\U0001f1f7",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467",
    "\u2705",
    "\U0001f409",
]


def english() -> Iterator[str]:
    """Give Python's own reference and the English manual pages, five kilobytes at a time."""
    from pydoc_data.topics import topics

    pages = sorted(_MANUALS.glob("man1/*.gz"))
    random.Random(0).shuffle(pages)
    for text in chain(topics.values(), map(_page, pages)):
        bounds = [*range(0, len(text), 5000), len(text)]
        yield from (text[a:b] for a, b in pairwise(bounds))


def gsm8k() -> Iterator[str]:
    """Give questions and answers."""
    from fam_engine.jobs.bench.workloads import demo_records

    if file := os.environ.get("GSM8K"):
        with Path(file).open(encoding="utf-8") as lines:
            for record in map(json.loads, lines):
                yield from (record["question"], record["answer"])
    else:
        for record in demo_records():
            yield from (record["prompt"], record["response"])


def code() -> Iterator[str]:
    """Give the modules of the standard library."""
    for file in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        yield file.read_text(encoding="utf-8")


def cjk() -> Iterator[str]:
    """Give Chinese and Japanese manual pages."""
    files = [sorted(_MANUALS.glob(f"{language}/man1/*.gz")) for language in ("zh_CN", "ja")]
    yield from map(_page, chain.from_iterable(zip(*files, strict=False)))


def _page(file: Path) -> str:
    """Give a manual page, its formatting commands removed."""
    with gzip.open(file, "rt", encoding="utf-8", errors="ignore") as page:
        text = "".join(line for line in page if not line.startswith((".", "'")))
    return re.sub(r"\\f[A-Z]|\\-", "", text)


def emoji() -> Iterator[str]:
    """Give GSM8K with an emoji after every third word."""
    rng = random.Random(0)
    for text in gsm8k():
        words = text.split(" ")
        yield " ".join(
            word + (rng.choice(_EMOJI) if n % 3 == 2 else "") for n, word in enumerate(words)
        )


CORPORA: dict[str, Callable[[], Iterator[str]]] = {
    "english": english,
    "gsm8k": gsm8k,
    "code": code,
    "cjk": cjk,
    "emoji": emoji,
}


def texts_of(name: str) -> list[str]:
    """Give a corpus, at most four megabytes of it.

    Raises:
        FileNotFoundError: The manual pages are not installed.
    """
    texts, num_bytes = [], 0
    for text in CORPORA[name]():
        num_bytes += len(text.encode())
        if num_bytes > _MAX_BYTES:
            break
        texts.append(text)
    if not texts:
        raise FileNotFoundError("the corpus `cjk` needs Debian's manpages-zh and manpages-ja")
    return texts
