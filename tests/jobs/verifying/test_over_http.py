"""Servers that answer something else, and how each is told."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fam_engine.config import TOKEN_VARIABLE
from fam_engine.errors import InputError, UsageError
from fam_engine.jobs.scoring.spooling import MAIN, EntryWriter
from fam_engine.jobs.verifying.over_http import Server
from fam_engine.jobs.verifying.probe import Probe
from fam_engine.measure.agreement import TokenLogprobs

MODELS = {"data": [{"id": "m"}]}
GOOD = {
    "token_logprobs": [None, -1.0, -2.0, -3.0, -0.5],
    "top_logprobs": [None, {"a": -1.0}, {"b": -2.0}, {"c": -3.0, "d": -0.1}, {"e": -0.5}],
}


class Stub:
    """A server that gives what it is told to, and remembers what it was asked."""

    def __init__(self) -> None:
        self.models: Any = MODELS
        self.completion: Any = {"choices": [{"logprobs": GOOD}]}
        self.status = 200
        self.asked: list[Any] = []
        self.headers: list[dict[str, str]] = []
        self.url = ""


@pytest.fixture
def stub() -> Iterator[Stub]:
    told = Stub()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer(200, told.models)

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            told.asked.append((self.path, json.loads(body)))
            self._answer(told.status, told.completion)

        def _answer(self, status: int, body: object) -> None:
            told.headers.append(dict(self.headers))
            raw = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw)

        def log_message(self, *_: object) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        told.url = f"http://127.0.0.1:{server.server_port}"
        yield told
        server.shutdown()


@pytest.fixture
def probe(tmp_path: Path) -> Probe:
    """One answer of two tokens, 12 and 13, to the context 10 11; an end of turn, 14, after it."""
    from fam_engine._rust_tokenize import Spool

    writer = EntryWriter(tmp_path, durable=False)
    writer.add((0, MAIN), np.array([10, 11], np.int32), np.array([12, 13, 14], np.int32))
    writer.finish()
    spool = Spool.open(tmp_path)
    return Probe(["a"], ["q"], {}, spool, np.array([0]), np.array([2]))


def ask(stub: Stub, probe: Probe) -> TokenLogprobs:
    return Server(stub.url, None).answers(probe, lambda _: None)


def test_it_asks_in_ids_and_takes_the_answers_tokens(stub: Stub, probe: Probe) -> None:
    found = ask(stub, probe)
    assert found.logprobs.tolist() == [-2.0, -3.0]
    assert found.is_first.tolist() == [True, False]
    ((path, body),) = stub.asked
    assert path == "/v1/completions"
    assert body["prompt"] == [10, 11, 12, 13]
    assert (body["model"], body["echo"], body["logprobs"], body["max_tokens"]) == ("m", True, 1, 1)


@pytest.mark.parametrize("ending", ["", "/", "/v1", "/v1/"])
def test_the_address_may_end_in_v1(stub: Stub, probe: Probe, ending: str) -> None:
    Server(stub.url + ending, "m").answers(probe, lambda _: None)
    assert stub.asked[0][0] == "/v1/completions"


def test_the_token_is_shown_where_there_is_one(
    stub: Stub, probe: Probe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)
    ask(stub, probe)
    assert all("Authorization" not in one for one in stub.headers)
    monkeypatch.setenv(TOKEN_VARIABLE, "secret\n")
    ask(stub, probe)
    assert [one["Authorization"] for one in stub.headers[-2:]] == ["Bearer secret"] * 2


@pytest.mark.parametrize(
    "completion",
    [
        b"<html>",
        b"[" * 100_000,
        [],
        {"choices": []},
        {"choices": [{"logprobs": None}]},
        {"choices": [{"logprobs": {**GOOD, "token_logprobs": [None, -1.0, -2.0]}}]},
        {"choices": [{"logprobs": {**GOOD, "token_logprobs": [None, -1.0, None, -3.0]}}]},
        {"choices": [{"logprobs": {**GOOD, "token_logprobs": [0, 0, float("nan"), 0]}}]},
        {"choices": [{"logprobs": {**GOOD, "token_logprobs": [0, 0, "-2", True]}}]},
        {"choices": [{"logprobs": {**GOOD, "top_logprobs": [None] * 5}}]},
        {"choices": [{"logprobs": {**GOOD, "top_logprobs": [{}] * 5}}]},
    ],
)
def test_what_is_no_answer_is_refused(stub: Stub, probe: Probe, completion: object) -> None:
    stub.completion = completion
    with pytest.raises(InputError, match="E_SERVER") as refused:
        ask(stub, probe)
    assert len(str(refused.value)) < 500


def test_a_refusal_is_passed_on(stub: Stub, probe: Probe) -> None:
    stub.status, stub.completion = 302, {"error": {"message": "go\nelsewhere"}}
    with pytest.raises(InputError, match=r"answers 302 to /completions: .*elsewhere"):
        ask(stub, probe)


@pytest.mark.parametrize(
    ("models", "kind"),
    [
        ({"data": [{"id": "m"}, {"id": "n"}]}, UsageError),
        ({"data": []}, UsageError),
        ({"data": 5}, InputError),
        ([], InputError),
    ],
)
def test_it_has_to_have_one_model(stub: Stub, models: object, kind: type[Exception]) -> None:
    stub.models = models
    with pytest.raises(kind, match="E_SERVER"):
        Server(stub.url, None)


def test_one_of_several_can_be_named(stub: Stub) -> None:
    stub.models = {"data": [{"id": "base"}, {"id": "tuned"}]}
    assert Server(stub.url, "tuned").model == "tuned"


@pytest.mark.parametrize(
    ("tuned", "length"),
    [
        ({"max_model_len": 100}, 100),
        ({"max_model_len": None, "parent": "base"}, 200),  # an adapter in vLLM
        ({"parent": "elsewhere"}, None),
        ({"max_model_len": "100", "parent": None}, None),
    ],
)
def test_it_says_how_long_a_sequence_may_be(
    stub: Stub, tuned: dict[str, Any], length: int | None
) -> None:
    stub.models = {"data": [{"id": "base", "max_model_len": 200}, {"id": "tuned", **tuned}]}
    assert Server(stub.url, "tuned").max_length == length


@pytest.mark.parametrize(
    "url",
    ["", "127.0.0.1:8000", "ftp://x", "http://", "http://x:99999", "http://u:p@x", "http://["],
)
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(UsageError, match="is no address") as refused:
        Server(url, None)
    assert "u:p" not in str(refused.value)


def test_nobody_there_is_told() -> None:
    with pytest.raises(InputError, match="cannot be reached"):
        Server("http://127.0.0.1:1", None)
