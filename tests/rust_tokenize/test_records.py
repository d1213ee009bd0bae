"""The records path as Python sees it: chunks, batches, packs of sequences, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fam_engine import _rust_tokenize as rt
from fam_engine.data.packing import pack_sequences
from tests.rust_tokenize.test_spool import PAIRS, write_spool


@pytest.fixture(scope="module")
def letters(tmp_path_factory: pytest.TempPathFactory) -> rt.Tokenizer:
    """A tokenizer with an id a character, and one special token, `<s>`."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    alphabet = "ab<s>é😀 "
    model = models.BPE({char: number for number, char in enumerate(alphabet)}, [])
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "isolated")
    tokenizer.add_special_tokens(["<s>"])
    path = tmp_path_factory.mktemp("letters") / "tokenizer.json"
    tokenizer.save(str(path))
    return rt.Tokenizer.from_file(path)


def encoder(tokenizer: rt.Tokenizer) -> rt.RecordEncoder:
    return rt.RecordEncoder(
        tokenizer,
        bos_id=None,
        end_of_turn_ids=np.array([8], np.int32),
        has_template=False,
        joint=False,
        parse_special=False,
        max_length=100,
    )


def encode(tokenizer: rt.Tokenizer, *rows: object) -> rt.RecordBatch:
    lines = rt.LineChunk.from_bytes("\n".join(json.dumps(row) for row in rows).encode())
    columns = [("p", "prompt"), ("r", "response"), ("id", "id")]
    return encoder(tokenizer).encode(lines, form="prompt", columns=columns)


def test_a_batch_holds_what_was_taken_and_names_the_rest(letters: rt.Tokenizer) -> None:
    batch = encode(letters, {"p": "a", "r": "b<s>"}, {"p": "a"}, {"p": "é", "r": "é", "id": 7})
    assert (len(batch), batch.others()) == (2, [1])
    context, targets = batch.ids(0)
    assert (context.tolist(), targets.tolist()) == ([0], [1, 2, 3, 4, 8])
    columns = batch.columns()
    assert columns["line"] == [1, 3]
    assert columns["id"] == [None, "7"]
    assert columns["flags"] == [1, 0]
    assert columns["num_bytes"] == [4, 2]
    assert columns["num_response_tokens"] == [4, 1]
    assert columns["group"] == [rt.context_name(batch.ids(i)[0]) for i in (0, 1)]
    with pytest.raises(ValueError, match="expected below 2"):
        batch.ids(2)


def test_a_chunk_gives_the_lines_of_a_batch(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}\r\n\n  \n{"a": \n\xff\n{"b": 2}')
    rows = rt.JsonLinesReader(path).read_batch(10)
    reader = rt.JsonLinesReader(path)
    chunk = reader.read_chunk(10)
    assert [chunk.row(i) for i in range(len(chunk))] == rows
    assert len(reader.read_chunk(10)) == 0
    assert reader.bytes_read == path.stat().st_size
    with pytest.raises(ValueError, match="expected below 4"):
        chunk.row(4)


def test_records_go_to_a_spool_as_their_columns_would(
    letters: rt.Tokenizer, tmp_path: Path
) -> None:
    batch = encode(letters, *({"p": "a" * n, "r": "b"} for n in range(1, 6)))
    writer = rt.SpoolWriter(tmp_path / "spool")
    writer.append_records(batch, 1, 4, variant=3, record=70)
    with pytest.raises(ValueError, match="outside 0 to 5"):
        writer.append_records(batch, 4, 6, variant=0, record=0)
    writer.append_records(batch, 4, 4, variant=0, record=0)
    writer.finish()
    spool = rt.Spool.open(tmp_path / "spool")
    index = spool.index()
    assert index["record"].tolist() == [70, 71, 72]
    assert index["variant"].tolist() == [3, 3, 3]
    assert index["num_eot"].tolist() == [1, 1, 1]
    for entry in range(3):
        for spooled, own in zip(spool.read(entry), batch.ids(entry + 1), strict=True):
            assert spooled.tolist() == own.tolist()


def test_orders_nobody_can_follow_are_refused(letters: rt.Tokenizer) -> None:
    one, lines = encoder(letters), rt.LineChunk.from_bytes(b"{}")
    with pytest.raises(ValueError, match="form `x`"):
        one.encode(lines, form="x", columns=[])
    with pytest.raises(ValueError, match="field `x`"):
        one.encode(lines, form="prompt", columns=[("a", "x")])
    with pytest.raises(ValueError, match="role `x`"):
        one.add_shape(["x"], ([], []), ([], []))
    with pytest.raises(ValueError, match="test `x`"):
        one.add_shape(["user"], ([], [(0, False, "x", "")]), ([], []))
    with pytest.raises(ValueError, match="turn"):
        one.add_shape(["user"], ([(1, False)], []), ([], []))
    with pytest.raises(ValueError, match="turn"):
        one.add_shape(["user"], ([], []), ([(2, False)], []))


# -- packs -----------------------------------------------------------------------------------------


def test_sequences_are_packed_whole(tmp_path: Path) -> None:
    packs = pack_sequences(write_spool(tmp_path, PAIRS), capacity=6)
    # Lengths 4, 2, 5, 1: the longest alone with the shortest, the others together.
    assert packs.pack_starts.tolist() == [0, 2, 4]
    assert packs.entries.tolist() == [2, 3, 0, 1]
    assert packs.cu_seqlens.tolist() == [0, 5, 6, 10, 12]
    assert packs.input_ids.tolist() == [5, 6, 4, 3, 2, 9, 5, 6, 7, 8, 9, 1]
    assert packs.position_ids.tolist() == [0, 1, 2, 3, 4, 0, 0, 1, 2, 3, 0, 1]
    assert packs.response_mask.tolist() == [0, 0, 1, 1, 1, 0, 0, 0, 1, 1, 0, 1]
    no = -100
    assert packs.labels().tolist() == [no, no, 4, 3, 2, no, no, no, 7, 8, no, 1]


ids = st.lists(st.integers(0, 9), max_size=9)


@given(st.lists(st.tuples(ids.filter(bool), ids), max_size=30), st.integers(1, 20))
def test_packs_hold_every_sequence_once_and_no_more_than_they_can(
    tmp_path_factory: pytest.TempPathFactory,
    pairs: list[tuple[list[int], list[int]]],
    capacity: int,
) -> None:
    packs = pack_sequences(write_spool(tmp_path_factory.mktemp("spool"), pairs), capacity=capacity)
    assert sorted(packs.entries.tolist()) == list(range(len(pairs)))
    for place, entry in enumerate(packs.entries.tolist()):
        tokens = slice(packs.cu_seqlens[place], packs.cu_seqlens[place + 1])
        context, targets = pairs[entry]
        assert packs.input_ids[tokens].tolist() == context + targets
        assert packs.position_ids[tokens].tolist() == list(range(len(context + targets)))
        assert packs.response_mask[tokens].tolist() == [0] * len(context) + [1] * len(targets)
    lengths = np.diff(packs.cu_seqlens[packs.pack_starts])
    alone = np.diff(packs.pack_starts) == 1
    assert ((lengths <= capacity) | alone).all()
    assert packs.cu_seqlens[-1] == len(packs.input_ids) == len(packs.response_mask)
