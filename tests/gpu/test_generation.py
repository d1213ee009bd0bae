"""Generating on an NVIDIA GPU. Skipped where there is no GPU."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from fam_engine.config import Precision
from fam_engine.data.records import Message
from fam_engine.data.tokenizer import TextEncoder
from fam_engine.embedded import DEMO_RECORDS, MODEL
from fam_engine.kernels import launching
from fam_engine.kernels.cached_attention import cached_attention
from fam_engine.kernels.cached_attention_triton import cached_attention as cached_attention_triton
from fam_engine.model.decoder import Decoder
from fam_engine.model.devices import ComputeDtype
from fam_engine.model.generation import batching, stepping
from fam_engine.model.generation.generator import Generator
from fam_engine.model.generation.requests import Request, Sampling
from fam_engine.model.generation.stepping import Stepper
from fam_engine.model.loading import load_model
from tests.kernels.newest import take_newest
from tests.model.generation.test_logprobs import BF16_AND_FP32, check_distances
from tests.simulated.gpu import is_simulated

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]

REAL = pytest.mark.real_gpu


@pytest.fixture(scope="module")
def encoder() -> TextEncoder:
    return TextEncoder(MODEL)


@pytest.fixture(scope="module")
def sampling() -> Sampling:
    return Sampling(max_new_tokens=5 if is_simulated() else 64, temperature=1.0, top_p=0.95)


@pytest.fixture(scope="module")
def requests(encoder: TextEncoder) -> list[Request]:
    lines = DEMO_RECORDS.read_text(encoding="utf-8").splitlines()[
        : 6 if is_simulated() else 120 : 2
    ]
    prompts = [json.loads(line)["prompt"] for line in lines]
    contexts = [encoder.encode_context([Message("user", text)], text) for text in prompts]
    return [Request(context, seed, num_samples=2) for seed, context in enumerate(contexts)]


def texts(
    decoder: Decoder,
    encoder: TextEncoder,
    requests: list[Request],
    sampling: Sampling,
    max_slots: int = 64,
) -> dict[tuple[int, int], list[int]]:
    """Give token ids by the request's seed and the sample's number."""
    generator = Generator(decoder, encoder, max_slots=max_slots)
    return {
        (requests[one.request].seed, one.sample): one.token_ids.tolist()
        for one in generator.generate(requests, sampling)
    }


def test_texts_equal_the_cpu_s(
    checkpoint: str, encoder: TextEncoder, requests: list[Request], sampling: Sampling
) -> None:
    # In fp64 no two tokens are near enough for the order of a sum to choose between them.
    found = [
        texts(
            load_model(checkpoint, compute_dtype="fp64", device=device),
            encoder,
            requests[:20],
            sampling,
        )
        for device in ("cpu", "cuda")
    ]
    assert found[0] == found[1]


@REAL
@pytest.mark.parametrize("compute_dtype", ["bf16", "fp32"])
def test_a_text_depends_on_its_request_alone(
    checkpoint: str,
    encoder: TextEncoder,
    requests: list[Request],
    sampling: Sampling,
    compute_dtype: ComputeDtype,
) -> None:
    decoder = load_model(checkpoint, compute_dtype=compute_dtype, device="cuda")
    together = texts(decoder, encoder, requests, sampling)
    order = np.random.default_rng(0).permutation(len(requests)).tolist()
    assert texts(decoder, encoder, [requests[i] for i in order], sampling) == together
    assert texts(decoder, encoder, requests, sampling, max_slots=16) == together
    for request in requests[::20]:
        alone = texts(decoder, encoder, [request], sampling)
        assert alone == {(request.seed, k): together[request.seed, k] for k in range(2)}


class PlainStep:
    """A step that is launched kernel by kernel instead of replayed."""

    def __init__(self, stepper: Stepper, num_rows: int, *_: object) -> None:
        self._stepper = stepper
        self._num_rows = num_rows

    def replay(self) -> None:
        self._stepper.advance(self._num_rows)


@pytest.mark.parametrize("precision", ["nf4", pytest.param("bf16", marks=REAL)])
@pytest.mark.parametrize(
    "max_slots", [pytest.param(1, marks=REAL), 5, pytest.param(64, marks=REAL)]
)
def test_captured_steps_give_the_tokens_of_plain_ones(
    checkpoint: str,
    encoder: TextEncoder,
    requests: list[Request],
    sampling: Sampling,
    monkeypatch: pytest.MonkeyPatch,
    precision: Precision,
    max_slots: int,
) -> None:
    decoder = load_model(checkpoint, precision=precision, compute_dtype="bf16", device="cuda")
    some = requests[:2] if max_slots == 1 else requests[:12]
    captured = texts(decoder, encoder, some, sampling, max_slots)
    monkeypatch.setattr(stepping, "CapturedStep", PlainStep)
    assert texts(decoder, encoder, some, sampling, max_slots) == captured


def test_a_run_that_ends_leaves_another_s_graphs_alone(
    tiny_model: Path,
) -> None:
    """Not the memory that cuBLAS works in either: graphs that go give that of their stream back."""
    decoder = load_model(tiny_model, precision="nf4", compute_dtype="bf16", device="cuda")
    generator = Generator(decoder, TextEncoder(tiny_model), max_slots=1)
    request = Request(np.arange(3, 12, dtype=np.int32), 0, num_samples=2)
    sampling = Sampling(max_new_tokens=3, temperature=1.0)
    alone = [text.token_ids.tolist() for text in generator.generate([request], sampling)]
    run = generator.generate([request], sampling)
    found = [next(run)]
    list(generator.generate([request], sampling))
    found += run
    assert [text.token_ids.tolist() for text in found] == alone


@REAL
@pytest.mark.parametrize("precision", ["bf16", "nf4"])
def test_log_probs_are_as_near_to_a_scoring_pass_as_that_is_to_fp32(
    checkpoint: str,
    encoder: TextEncoder,
    requests: list[Request],
    sampling: Sampling,
    precision: Precision,
) -> None:
    decoders = [
        load_model(checkpoint, precision=precision, compute_dtype=dtype, device="cuda")
        for dtype in BF16_AND_FP32
    ]
    found = list(Generator(decoders[0], encoder).generate(requests, sampling))
    check_distances(decoders, requests, found)


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(max_new_tokens=9),
        pytest.param(
            Sampling(max_new_tokens=30, temperature=1.0, top_k=40, top_p=0.95), marks=REAL
        ),
    ],
)
def test_steps_do_not_wait_for_the_host(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, sampling: Sampling
) -> None:
    decoder = load_model(tiny_model, precision="nf4", compute_dtype="bf16", device="cuda")
    step, captured = Stepper.step, []

    def watched(self: Stepper, num_slots: int) -> torch.Tensor:
        captured.append(bool(self._captured))
        # Captures wait for all streams.
        torch.cuda.set_sync_debug_mode("error" if captured[-1] else "default")
        try:
            return step(self, num_slots)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(Stepper, "step", watched)
    request = Request(np.arange(3, 12, dtype=np.int32), 0, num_samples=2)
    list(Generator(decoder, TextEncoder(tiny_model), max_slots=2).generate([request], sampling))
    assert sum(captured) > 3


@REAL
@pytest.mark.parametrize("steps", [1, 3])
def test_looking_rarely_changes_no_text(
    checkpoint: str,
    encoder: TextEncoder,
    requests: list[Request],
    sampling: Sampling,
    monkeypatch: pytest.MonkeyPatch,
    steps: int,
) -> None:
    decoder = load_model(checkpoint, compute_dtype="bf16", device="cuda")
    rarely = texts(decoder, encoder, requests[:20], sampling)
    monkeypatch.setattr(batching, "STEPS_A_ROUND", {"cuda": steps})
    assert texts(decoder, encoder, requests[:20], sampling) == rarely


@REAL
def test_early_launches_change_no_text(
    checkpoint: str,
    encoder: TextEncoder,
    requests: list[Request],
    sampling: Sampling,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if not launching._can_be_early():
        pytest.skip(
            "kernels are launched early on capabilities 9.0 and 10.0, with torch for CUDA 13"
        )
    decoder = load_model(checkpoint, compute_dtype="bf16", device="cuda")
    early = texts(decoder, encoder, requests, sampling)
    monkeypatch.setattr(launching, "_can_be_early", lambda: False)
    assert texts(decoder, encoder, requests, sampling) == early


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("window", [None, 20])
def test_attention_to_what_is_kept_equals_a_call_a_slot(
    dtype: torch.dtype, window: int | None
) -> None:
    torch.manual_seed(0)
    lengths = torch.tensor([1, 5, 0, 64, 37, 20, 130], dtype=torch.int32)
    query = torch.randn(len(lengths), 8, 64).to(dtype)
    kv = torch.randn(len(lengths), 192, 4, 64).to(dtype)
    found, exact = torch.zeros_like(query).cuda(), torch.zeros_like(query).double()
    kept, new = take_newest(kv, lengths)
    given = query.double(), kept.double(), new.double(), lengths
    cached_attention(*given, window=window, out_SHd=exact)
    on_gpu = [tensor.cuda() for tensor in (query, kept, new, lengths)]
    cached_attention_triton(*on_gpu, window=window, out_SHd=found)
    assert found.isfinite().all()
    active = lengths > 0
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    assert (found.cpu().double() - exact)[active].abs().max() <= tolerance
