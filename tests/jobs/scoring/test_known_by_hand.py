"""A model whose every log-prob is known by hand: each token is counted once, in its place, and none is cut in silence.

Its attention and MLP give nothing, so what it says of a token follows from the token before alone: a table, made here
in float64 from the two matrices. Tokens are characters or bytes, so their ids are known by hand too.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from safetensors.torch import load_file, save_file

from fam_engine.config import TrainConfig
from fam_engine.jobs.training.job import run_train
from tests.jobs.scoring.test_job import score, table, write
from tests.jobs.training.small_job import Notes, read_lines

TEXTS = [
    ("one and two?\n", "three"),
    ("one and two?\n", "x"),
    ("a", " blanks  around "),
    ("caf\u00e9 \u4e2d?\n", "\u00e9\u4e2d \U0001f600"),
    ("", "no prompt"),
]
LONGEST = 256  # positions of the model


@dataclass(frozen=True)
class Hand:
    """A tokenizer by hand.

    Attributes:
        ids: Text and whether it begins the sequence -> ids.
        bos: Beginning-of-sequence id, or None.
        eos: End-of-sequence id, or None.
    """

    ids: Callable[[str, bool], list[int]]
    bos: int | None
    eos: int | None

    def context(self, prompt: str) -> list[int]:
        return [*([] if self.bos is None else [self.bos]), *self.ids(prompt, True)]


def write_bytes(folder: Path, *, bos: bool, eos: bool) -> Hand:
    """Take the tiny model's own tokenizer, whose tokens are bytes, with or without its special tokens."""
    vocab = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    # The alphabet of GPT-2: printable bytes are themselves, the rest is moved up.
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = {b: chr(b) for b in printable} | {b: chr(256 + i) for i, b in enumerate(others)}
    config = {"add_bos_token": bos} | ({"bos_token": "<s>"} if bos else {})
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    change_config(folder, eos_token_id=vocab["</s>"] if eos else None)
    return Hand(
        lambda text, _: [vocab[letters[byte]] for byte in text.encode()],
        vocab["<s>"] if bos else None,
        vocab["</s>"] if eos else None,
    )


def write_pieces(folder: Path) -> Hand:
    """Write a tokenizer in SentencePiece's manner: a blank before the text, bytes for what it has not."""
    from tokenizers import Tokenizer, decoders, models, normalizers

    names = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "\u2581"]
    vocab = {name: i for i, name in enumerate([*names, *"abcdefghijklmnopqrstuvwxyz?"])}
    model = models.BPE(vocab, [], unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens(["<s>", "</s>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": True}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    change_config(folder, vocab_size=len(vocab), bos_token_id=1, eos_token_id=2)

    def ids(text: str, is_first: bool) -> list[int]:
        marked = ("\u2581" if is_first and text else "") + text.replace(" ", "\u2581")
        found: list[int] = []
        for letter in marked:
            found += [vocab[letter]] if letter in vocab else [3 + b for b in letter.encode()]
        return found

    return Hand(ids, 1, 2)


def change_config(folder: Path, **values: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


KINDS: dict[str, Callable[[Path], Hand]] = {
    "bytes": lambda folder: write_bytes(folder, bos=True, eos=True),
    "bytes without BOS": lambda folder: write_bytes(folder, bos=False, eos=True),
    "bytes without EOS": lambda folder: write_bytes(folder, bos=True, eos=False),
    "pieces": write_pieces,
}


def write_model(folder: Path, tiny_model: Path, kind: str) -> tuple[Hand, npt.NDArray[np.float64]]:
    """Write the model; give its tokenizer by hand, and float64[V, V]: the log-prob of each token after each."""
    shutil.copytree(tiny_model, folder)
    hand = KINDS[kind](folder)
    tensors = load_file(folder / "model.safetensors")
    random = np.random.default_rng(0)
    size = json.loads((folder / "config.json").read_text())["vocab_size"]
    embed, head = (random.normal(size=(size, 64)).astype(np.float32) for _ in range(2))
    for name, tensor in tensors.items():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            tensor.zero_()
        elif name.endswith("norm.weight"):
            tensor.fill_(1)
    tensors["model.embed_tokens.weight"] = tensors["lm_head.weight"].new_tensor(embed)
    tensors["lm_head.weight"] = tensors["lm_head.weight"].new_tensor(head)
    save_file(tensors, folder / "model.safetensors")
    epsilon = json.loads((folder / "config.json").read_text())["rms_norm_eps"]
    rows = embed.astype(np.float64)
    normed = rows / np.sqrt((rows**2).mean(1, keepdims=True) + epsilon)
    logits = normed @ head.astype(np.float64).T
    return hand, logits - np.log(np.exp(logits).sum(1, keepdims=True))


def nll(known: npt.NDArray[np.float64], before: int, targets: Sequence[int]) -> float:
    return -float(sum(known[a, b] for a, b in zip([before, *targets[:-1]], targets, strict=True)))


def records(texts: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
    return [{"prompt": prompt, "response": response} for prompt, response in texts]


@pytest.mark.parametrize("kind", KINDS)
def test_each_token_counts_once(tiny_model: Path, tmp_path: Path, kind: str) -> None:
    hand, known = write_model(tmp_path / "model", tiny_model, kind)
    data = write(tmp_path / "data.jsonl", records(TEXTS))
    outcome = score(tmp_path / "model", data, tmp_path / "out")
    assert outcome.summary["records"]["scored"] == len(TEXTS)
    for row, (prompt, response) in zip(table(tmp_path / "out"), TEXTS, strict=True):
        context, targets = hand.context(prompt), hand.ids(response, False)
        flags = []
        if not context:  # nothing stands before the first token
            context, targets, flags = targets[:1], targets[1:], ["first_token_unscored"]
        assert (row["num_prompt_tokens"], row["num_response_tokens"]) == (
            len(context),
            len(targets),
        )
        assert row["num_bytes"] == len(response.encode())
        assert [flag for flag in row["flags"] if flag != "boundary_merged"] == flags
        assert row["nll_sum"] == pytest.approx(
            nll(known, context[-1], targets), abs=5e-5 * len(targets)
        )
        if hand.eos is None:
            assert row["eos_nll"] is None
        else:
            expected = nll(known, targets[-1], [hand.eos])
            assert row["eos_nll"] == pytest.approx(expected, abs=5e-5)


@pytest.mark.parametrize("kind", ["bytes", "bytes without BOS", "pieces"])
def test_training_supervises_what_scoring_scores(
    tiny_model: Path, tmp_path: Path, kind: str
) -> None:
    hand, known = write_model(tmp_path / "model", tiny_model, kind)
    texts = TEXTS[:4]  # without a prompt and a BOS nothing would stand before the answer
    data = write(tmp_path / "data.jsonl", records(texts))
    outcome = run_train(
        TrainConfig(
            model=str(tmp_path / "model"),
            data=(str(data),),
            out=tmp_path / "out",
            precision="fp32",
            device="cpu",
            rank=2,
            steps=1,
            batch_size=len(texts),
        ),
        Notes(),
    )
    assert hand.eos is not None
    total, count = 0.0, 0
    for prompt, response in texts:
        targets = [*hand.ids(response, False), hand.eos]
        total += nll(known, hand.context(prompt)[-1], targets)
        count += len(targets)
    assert outcome.summary["training"]["tokens"] == count
    (step,) = read_lines(tmp_path / "out" / "log.jsonl")
    # A new adapter changes nothing, so the first loss is the model's own.
    assert step["loss"] == pytest.approx(total / count, abs=5e-5)


@pytest.mark.parametrize("on_long", ["quarantine", "cut-prompt"])
def test_nothing_is_cut_in_silence(tiny_model: Path, tmp_path: Path, on_long: str) -> None:
    """Prompts and answers on both sides of the model's length."""
    hand, known = write_model(tmp_path / "model", tiny_model, "bytes")
    assert hand.bos is not None
    # The last token is predicted, not read: prompt, BOS and answer may fill the positions.
    shapes = [
        (1, 5),
        (LONGEST - 7, 6),
        (LONGEST - 6, 6),
        (4 * LONGEST, 6),
        (3, LONGEST - 1),
        (3, LONGEST),
    ]
    texts = [("p" * (a - 1) + "?", "r" * b) for a, b in shapes]
    data = write(tmp_path / "data.jsonl", records(texts))
    outcome = score(tmp_path / "model", data, tmp_path / "out", on_long=on_long)
    rows = {row["line"]: row for row in table(tmp_path / "out")}
    left_out = {line["line"] for line in read_lines(tmp_path / "out" / "quarantine.jsonl")}
    assert rows.keys() | left_out == {1, 2, 3, 4, 5, 6}
    assert not rows.keys() & left_out
    counts = outcome.summary["records"]
    assert counts["read"] == 6 == counts["scored"] + counts["quarantined"] + counts["skipped"]
    for line, (a, b) in enumerate(shapes, 1):
        whole = 1 + a + b <= LONGEST
        if line in left_out:
            assert not whole
            assert on_long == "quarantine" or b >= LONGEST
            continue
        row = rows[line]
        assert whole == (row["flags"] == [])
        assert whole or (on_long == "cut-prompt" and row["flags"] == ["prompt_cut"])
        # The end of the prompt stays, so what is predicted after it is the same.
        assert row["num_prompt_tokens"] == min(1 + a, LONGEST - b)
        assert row["num_response_tokens"] == b
        targets = hand.ids("r" * b, False)
        before = hand.ids("?", False)[0]
        assert row["nll_sum"] == pytest.approx(nll(known, before, targets), abs=5e-5 * b)
