"""What a handler of signals raises ends the calls that can last, whatever they are at."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from fam_engine import _rust_tokenize as rt


class Enough(BaseException):
    """What the handler raises."""


@contextlib.contextmanager
def alarms() -> Iterator[None]:
    """Raise `Enough` at the second of many signals: a call that answers none is followed by one at most."""
    num_answered = 0

    def answer(*_: object) -> None:
        nonlocal num_answered
        num_answered += 1
        if num_answered == 2:
            raise Enough

    before = signal.signal(signal.SIGALRM, answer)
    signal.setitimer(signal.ITIMER_REAL, 0.02, 0.02)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)


def test_a_check_ends(tiny_model: Path) -> None:
    tokenizer = rt.Tokenizer.from_file(tiny_model / "tokenizer.json")
    texts = ["some words that go on, and on " * 1000] * 20
    with pytest.raises(Enough), alarms():
        tokenizer.verify(texts, num_threads=1)


@pytest.mark.parametrize("lines", [b'{"a": 1}\n{"b": ', b'{"a": 1}\n' + b"\n" * 100])
def test_a_line_or_gap_without_end_ends(tmp_path: Path, lines: bytes) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(lines)
    os.truncate(path, 1 << 40)
    reader = rt.JsonLinesReader(path)
    with pytest.raises(Enough), alarms():
        reader.read_chunk(2)
    assert reader.bytes_read < 1 << 40
