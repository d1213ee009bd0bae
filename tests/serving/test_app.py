"""HTTP around what is computed: who may ask, how many at a time, what is told of it."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import socket
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from tests.serving.conftest import NAME, asking, listening, make_service

if TYPE_CHECKING:
    from fam_engine.jobs.resident import ResidentModel
    from fam_engine.serving.app import Service

pytest.importorskip("starlette", reason="needs the extra `serve`")

ASKED = {"model": NAME, "prompt": "a", "max_tokens": 2, "temperature": 0}
TOKEN = "s3cret"
CONTEXT = np.array([0, 40], np.int32)


def place(address: str) -> tuple[str, int]:
    """Give host and port of a server."""
    host, port = address.removeprefix("http://").split(":")
    return host, int(port)


def head(host: str, length: int) -> bytes:
    return (
        f"POST /v1/completions HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {length}\r\n\r\n"
    ).encode()


def test_without_the_token_nobody_is_let_in(resident: ResidentModel) -> None:
    from starlette.testclient import TestClient

    from fam_engine.serving.app import Service, make_app

    plain = make_service(resident)
    service = Service(plain.served, TOKEN)
    service.start()
    client = TestClient(make_app(service))
    for header in ("", TOKEN, "Bearer", "Bearer wrong", f"Basic {TOKEN}", "Bearer s3cre", "\xff"):
        headers = {"authorization": header.encode("latin-1")}
        for method, path in (
            ("POST", "/v1/completions"),
            ("GET", "/v1/models"),
            ("GET", "/metrics"),
        ):
            response = client.request(method, path, headers=headers)
            assert response.status_code == 401, (header, path)
            assert response.json()["error"]["code"] == "invalid_api_key"
            assert response.headers["www-authenticate"] == "Bearer"
    assert client.get("/health").status_code == 200
    shown = {"authorization": f"bearer {TOKEN}"}
    assert client.post("/v1/completions", json=ASKED, headers=shown).status_code == 200
    service.stop()


def test_the_model_is_described(service: Service) -> None:
    from starlette.testclient import TestClient

    from fam_engine.serving.app import make_app

    client = TestClient(make_app(service))
    [model] = client.get("/v1/models").json()["data"]
    assert (model["id"], model["object"], model["max_model_len"]) == (NAME, "model", 256)
    assert client.get(f"/v1/models/{NAME}").json() == model
    # The worker of this service was never started.
    assert client.get("/health").status_code == 503


def test_metrics_count_what_was_done(resident: ResidentModel) -> None:
    from starlette.testclient import TestClient

    from fam_engine.serving.app import make_app

    service = make_service(resident)
    with asking(service) as post:
        post("/v1/completions", ASKED)
        post("/v1/score", prompt="a", responses=["bc", "d"])
        post("/v1/score", prompt="a", responses=[])
        text = TestClient(make_app(service)).get("/metrics").text
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if line[0] != "#")
    assert values["fam_engine_generated_tokens_total"] == "2"
    assert values["fam_engine_scored_tokens_total"] == "5"  # with two ends of turn
    assert values['fam_engine_requests_total{path="/v1/score",status="200"}'] == "1"
    assert values['fam_engine_requests_total{path="/v1/score",status="400"}'] == "1"
    assert values["fam_engine_requests_in_flight"] == "0"
    assert float(values["fam_engine_up_seconds"]) > 0


def test_more_requests_than_allowed_are_told_to_come_back(
    resident: ResidentModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = make_service(resident, max_requests=2)
    held = threading.Event()
    compute = resident.continuations

    def holding(pairs: Any, **rest: Any) -> Any:  # noqa: ANN401
        held.wait(60)
        return compute(pairs, **rest)

    monkeypatch.setattr(resident, "continuations", holding)
    with asking(service) as post, ThreadPoolExecutor(2) as pool:

        def score() -> tuple[int, Any]:
            return post("/v1/score", prompt="a", responses=["b"])

        waiting = [pool.submit(score) for _ in range(2)]
        while service.in_flight < 2:
            time.sleep(0.01)
        status, body = score()
        held.set()
        assert (status, body["error"]["code"]) == (429, "server_busy")
        assert [future.result()[0] for future in waiting] == [200, 200]
        assert score()[0] == 200
    assert service.in_flight == 0


def test_memory_that_runs_out_is_said_and_survived(
    resident: ResidentModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    compute = resident.continuations

    def short(pairs: Any, **rest: Any) -> Any:  # noqa: ANN401
        if len(pairs) > 1:
            raise torch.OutOfMemoryError
        return compute(pairs, **rest)

    monkeypatch.setattr(resident, "continuations", short)
    with asking(make_service(resident)) as post:
        status, body = post("/v1/score", prompt="a", responses=["b", "c"])
        assert (status, body["error"]["code"]) == (503, "out_of_memory")
        assert post("/v1/score", prompt="a", responses=["b"])[0] == 200


def test_a_bug_is_told_as_one_and_shown_where_the_server_runs(
    resident: ResidentModel, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from fam_engine.serving import app

    def broken(*_: object) -> None:
        raise ZeroDivisionError("secret detail")

    with asking(make_service(resident)) as post:
        with monkeypatch.context() as patch:
            patch.setattr(app, "plan_score", broken)
            status, body = post("/v1/score", prompt="a", responses=["b"])
        assert (status, body["error"]["code"]) == (500, "internal_error")
        assert "secret" not in body["error"]["message"]
        assert "secret detail" in capsys.readouterr().err
        assert post("/v1/score", prompt="a", responses=["b"])[0] == 200


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_worker_that_has_ended_is_told(
    resident: ResidentModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    from starlette.testclient import TestClient

    from fam_engine.serving.app import make_app

    def ending(*_: object, **__: object) -> None:
        raise SystemExit

    service = make_service(resident)
    monkeypatch.setattr(resident, "continuations", ending)
    with asking(service) as post:
        for _ in range(2):
            status, body = post("/v1/score", prompt="a", responses=["b"])
            assert (status, body["error"]["code"]) == (503, "worker_stopped")
        status, body = post("/v1/completions", ASKED)
        assert (status, body["error"]["code"]) == (503, "worker_stopped")
        service.worker._thread.join()
        assert TestClient(make_app(service)).get("/health").status_code == 503


def test_a_model_without_numbers_is_an_error_not_a_nan(
    resident: ResidentModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = resident.decoder.weights.final_norm_D
    kept = weights.clone()
    with asking(make_service(resident)) as post:
        try:
            weights.fill_(float("nan"))
            for path, fields in (
                ("/v1/score", {"prompt": "a", "responses": ["b"]}),
                ("/v1/completions", {"prompt": "ab", "max_tokens": 0, "echo": True, "logprobs": 1}),
                ("/v1/completions", {"prompt": "ab", "max_tokens": 4}),
            ):
                status, body = post(path, **fields)
                assert (status, body["error"]["code"]) == (500, "nonfinite"), path
        finally:
            weights.copy_(kept)
        assert post("/v1/score", prompt="a", responses=["b"])[0] == 200


@pytest.mark.parametrize(
    ("kind", "status"), [("application/json", 413), ("text/plain", 415)], ids=["large", "unknown"]
)
def test_a_client_that_still_sends_gets_its_refusal(address: str, kind: str, status: int) -> None:
    body = b"[" + b" " * 30_000_000
    headers = {"Content-Type": kind}
    connection = http.client.HTTPConnection(address.removeprefix("http://"), timeout=60)
    connection.request("POST", "/v1/score", body, headers)
    response = connection.getresponse()
    assert (response.status, set(json.load(response))) == (status, {"error"})
    connection.close()
    asked = urllib.request.Request(f"{address}/v1/score", body, headers)
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(asked, timeout=60)
    assert caught.value.code == status
    caught.value.close()


@pytest.mark.parametrize("sent", [70_000, 1])
def test_what_is_read_of_a_refused_body_is_bounded(
    address: str, sent: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fam_engine.serving import bodies

    monkeypatch.setattr(bodies, "_DISCARD_SECONDS", 0.1)
    host, port = place(address)
    with socket.create_connection((host, port), timeout=60) as client:
        client.sendall(head(host, 1_000_000) + b" " * sent)
        # The rest never comes; the connection is closed, so that reading ends.
        answer = client.makefile("rb").read()
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"body_too_large" in answer


def test_a_client_that_does_not_read_cannot_keep_the_server_from_its_end(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fam_engine.serving import app, connections

    # More than the system keeps for a connection.
    monkeypatch.setattr(app, "_json", lambda _: b" " * 50_000_000)
    monkeypatch.setattr(connections, "_LOOK_SECONDS", 0.2)
    body = json.dumps(ASKED).encode()
    with socket.socket() as client:
        rescue = threading.Timer(60, client.close)
        rescue.start()
        with listening(service) as address:
            host, port = place(address)
            client.connect((host, port))
            client.sendall(head(host, len(body)) + body)
            client.recv(1)  # the answer is on its way
        rescue.cancel()
        assert client.fileno() != -1  # not the client closed the connection


def test_a_head_that_does_not_end_is_not_waited_for(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fam_engine.serving import connections

    monkeypatch.setattr(connections, "_LOOK_SECONDS", 0.1)
    host, port = place(address)
    with socket.create_connection((host, port), timeout=60) as client:
        client.sendall(b"GET /health HTTP/1.1\r\n")
        assert client.recv(1) == b""


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> threading.Semaphore:
    """Give what is released at every look at a connection."""
    from fam_engine.serving import connections

    released = threading.Semaphore(0)
    look = connections.Protocol._look

    def counting(self: Any) -> None:  # noqa: ANN401
        look(self)
        released.release()

    monkeypatch.setattr(connections.Protocol, "_look", counting)
    return released


def test_a_connection_waits_for_its_next_request(
    address: str,
    service: Service,
    looks: threading.Semaphore,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Longer than clients keep one, whatever the looks at those that end no head."""
    from fam_engine.serving import connections, server

    assert server.uvicorn_settings(service).timeout_keep_alive == server.KEEP_ALIVE_SECONDS == 75
    monkeypatch.setattr(connections, "_LOOK_SECONDS", 0.05)
    host, port = place(address)
    connection = http.client.HTTPConnection(host, port, timeout=60)
    with contextlib.closing(connection):
        for _ in range(2):
            connection.request("GET", "/health")
            assert connection.getresponse().read()
            socket_before = connection.sock
            for _ in range(4):
                assert looks.acquire(timeout=60)
        assert connection.sock is socket_before
        # With a head that does not end it is as any other.
        connection.sock.sendall(b"GET /health HTTP/1.1\r\n")
        assert connection.sock.recv(1) == b""


def test_a_request_that_is_computed_for_long_is_not_given_up(
    service: Service, looks: threading.Semaphore, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fam_engine.serving import connections

    monkeypatch.setattr(connections, "_LOOK_SECONDS", 0.02)
    compute = service.served.model.continuations

    def holding(pairs: Any, **rest: Any) -> Any:  # noqa: ANN401
        for _ in range(4):
            assert looks.acquire(timeout=60)
        return compute(pairs, **rest)

    monkeypatch.setattr(service.served.model, "continuations", holding)
    body = json.dumps({"model": NAME, "prompt": "a", "responses": ["b"]}).encode()
    with listening(service) as address:
        asked = urllib.request.Request(
            f"{address}/v1/score", body, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(asked, timeout=60) as response:
            assert json.load(response)["usage"]["prompt_tokens"] == 2


def test_a_client_that_leaves_lets_go_of_its_text(address: str, service: Service) -> None:
    """Its text ends, and the place of its request is free again."""
    from fam_engine.model.generation.requests import Request, Sampling

    host, port = place(address)

    async def leave() -> None:
        body = json.dumps({**ASKED, "max_tokens": 200}).encode()
        _, writer = await asyncio.open_connection(host, port)
        writer.write(head(host, len(body)) + body)
        await writer.drain()
        while service.in_flight == 0:
            await asyncio.sleep(0.01)
        writer.close()

    hold = threading.Event()
    generate = service.served.model.generate

    def slow(requests: Any, how: Any, *, on_step: Any, **rest: Any) -> Any:  # noqa: ANN401
        def step(count: int) -> None:
            hold.wait(60)
            on_step(count)

        return generate(requests, how, on_step=step, **rest)

    service.served.model.generate = slow  # type: ignore[method-assign]
    try:
        asyncio.run(leave())
        limit = time.monotonic() + 30
        while service.in_flight and time.monotonic() < limit:
            time.sleep(0.05)
        hold.set()
        assert service.in_flight == 0
        [[text]] = service.worker.generate([Request(CONTEXT, seed=0)], Sampling(1)).result(60)
        assert len(text.token_ids) == 1
    finally:
        hold.set()
        del service.served.model.generate
    metrics = service.metrics.text(in_flight=0)
    assert 'status="499"' in metrics
