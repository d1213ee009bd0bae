"""Weights from strangers: pickles, malformed headers, indexes and links that lead elsewhere, values that are none."""

from __future__ import annotations

import io
import json
import os
import pickle
import zipfile
from collections.abc import Callable
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from tests.hostile.case import Artefact, Case, refused

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
NORM = "model.norm.weight"


class _Payload:
    """Unpickled, it runs the code it was given."""

    def __init__(self, code: str) -> None:
        self.code = code

    def __reduce__(self) -> tuple[Any, ...]:
        return exec, (self.code,)


def pickled(case: Case) -> bytes:
    return pickle.dumps(_Payload(case.payload))


def zipped(case: Case) -> bytes:
    """Give what `torch.save` writes, its pickle hostile."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", pickled(case))
        archive.writestr("archive/version", "3")
    return buffer.getvalue()


def header(entries: object) -> bytes:
    raw = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    return len(raw).to_bytes(8, "little") + raw


def entry(
    start: int, stop: int, dtype: str = "U8", shape: list[int] | None = None
) -> dict[str, Any]:
    shape = [stop - start] if shape is None else shape
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


def instead(
    content: bytes | Callable[[Case], bytes], name: str = WEIGHTS
) -> Callable[[Case], None]:
    """Put other bytes in place of the weights."""

    def make(case: Case) -> None:
        (case.model / WEIGHTS).unlink()
        found = content(case) if callable(content) else content
        (case.model / name).write_bytes(found)

    return make


def appended(extra: Callable[[Case], bytes]) -> Callable[[Case], None]:
    def make(case: Case) -> None:
        with (case.model / WEIGHTS).open("ab") as file:
            file.write(extra(case))

    return make


def changed(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Case], None]:
    def make(case: Case) -> None:
        tensors = load_file(case.model / WEIGHTS)
        change(tensors)
        save_file(tensors, case.model / WEIGHTS)

    return make


def indexed(places: Callable[[Case], object]) -> Callable[[Case], None]:
    """Move the weights outside and write an index."""

    def make(case: Case) -> None:
        (case.model / WEIGHTS).rename(case.outside / "secret.safetensors")
        (case.model / INDEX).write_text(json.dumps({"weight_map": places(case)}))

    return make


def linked_shard(case: Case) -> None:
    indexed(lambda _: {NORM: "shard.safetensors"})(case)
    case.link("shard.safetensors", case.outside / "secret.safetensors")


def linked_to(target: str) -> Callable[[Case], None]:
    return lambda case: case.link(WEIGHTS, target)


def looped(case: Case) -> None:
    case.link(WEIGHTS, "other.safetensors")
    case.link("other.safetensors", WEIGHTS)


def fifo(case: Case) -> None:
    (case.model / WEIGHTS).unlink()
    os.mkfifo(case.model / WEIGHTS)


def folder(case: Case) -> None:
    (case.model / WEIGHTS).unlink()
    (case.model / WEIGHTS).mkdir()


def cut(case: Case) -> None:
    path = case.model / WEIGHTS
    os.truncate(path, path.stat().st_size // 2)


FILES, TENSOR = "E_MODEL_FILES", "E_MODEL_TENSOR"
ARTEFACTS: list[Artefact] = [
    refused("pickle as pytorch_model.bin", instead(pickled, "pytorch_model.bin"), "E_MODEL_PICKLE"),
    refused(
        "pickle as consolidated.00.pth", instead(zipped, "consolidated.00.pth"), "E_MODEL_PICKLE"
    ),
    refused("pickle called safetensors", instead(pickled), FILES),
    refused("zip with a pickle called safetensors", instead(zipped), FILES),
    refused("7z called safetensors", instead(b"7z\xbc\xaf\x27\x1c" + bytes(100)), FILES),
    refused("safetensors and zip in one file", appended(zipped), FILES),
    refused("empty weights", instead(b""), FILES),
    refused("header of 2^64 - 1 bytes", instead(b"\xff" * 8 + b"{}"), FILES),
    refused("header of 100 MB that is not there", instead((10**8).to_bytes(8, "little")), FILES),
    refused("header that is no UTF-8", instead(header(b'{"\xff": 1}')), FILES),
    refused("header nested 100,000 deep", instead(header(b'{"a":' * 100_000)), FILES),
    refused("header that names a tensor twice", instead(header(b'{"a": 1, "a": 2}')), FILES),
    refused(
        "tensors that overlap",
        instead(header({"a": entry(0, 4), "b": entry(2, 6)}) + bytes(6)),
        FILES,
    ),
    refused(
        "tensors that share their bytes",
        instead(header({"a": entry(0, 4), "b": entry(0, 4)}) + bytes(4)),
        FILES,
    ),
    refused(
        "hole between tensors",
        instead(header({"a": entry(0, 2), "b": entry(4, 6)}) + bytes(6)),
        FILES,
    ),
    refused(
        "tensor before the file begins", instead(header({"a": entry(-4, 0)}) + bytes(4)), FILES
    ),
    refused("unknown dtype", instead(header({"a": entry(0, 4, "F8_E9")}) + bytes(4)), FILES),
    refused(
        "shape beyond 64 bits",
        instead(header({"a": entry(0, 4, shape=[2**62, 2**62])}) + bytes(4)),
        FILES,
    ),
    refused(
        "negative shape", instead(header({"a": entry(0, 4, shape=[-2, -2])}) + bytes(4)), FILES
    ),
    refused("weights cut in half", cut, FILES),
    refused(
        "index that leaves the folder",
        indexed(lambda _: {NORM: "../../outside/secret.safetensors"}),
        FILES,
    ),
    refused(
        "index with an absolute path",
        indexed(lambda c: {NORM: str(c.outside / "secret.safetensors")}),
        FILES,
    ),
    refused("index with a NUL", indexed(lambda _: {NORM: "shard.safetensors\0"}), FILES),
    refused("index that names itself", indexed(lambda _: {NORM: INDEX}), FILES),
    refused(
        "index of 100,000 shards",
        indexed(lambda _: {f"t{i}": f"{i}.safetensors" for i in range(100_000)}),
        FILES,
    ),
    refused("index of no object", indexed(lambda _: ["shard.safetensors"]), FILES),
    refused("shard that links outside", linked_shard, FILES),
    refused("weights that link to a device", linked_to("/dev/zero"), FILES),
    refused("weights that link to /proc", linked_to("/proc/self/environ"), FILES),
    refused("weights that link to each other", looped, FILES),
    refused("weights that are a pipe", fifo, FILES),
    refused("weights that are a folder", folder, FILES),
    refused("NaN among the weights", changed(lambda t: t[NORM][3].fill_(torch.nan)), TENSOR),
    refused(
        "infinity among the weights",
        changed(lambda t: t["lm_head.weight"][1, 1].fill_(torch.inf)),
        TENSOR,
    ),
    refused("missing tensor", changed(lambda t: t.pop(NORM)), TENSOR),
    refused("tensor nobody asked for", changed(lambda t: t.update(extra=torch.zeros(2))), TENSOR),
]
