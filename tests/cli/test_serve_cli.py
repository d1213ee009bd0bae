from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cli.conftest import Run

Start = Callable[..., tuple[subprocess.Popen[str], int]]


@pytest.fixture
def start(tiny_model: Path) -> Iterator[Start]:
    """Start the server in a process of its own; give it and its port."""
    pytest.importorskip("uvicorn", reason="needs the extra `serve`")
    started: list[subprocess.Popen[str]] = []

    def call(
        *arguments: str, before: str = "", **environment: str
    ) -> tuple[subprocess.Popen[str], int]:
        server = subprocess.Popen(
            [
                *(sys.executable, "-c", f"{before}from fam_engine.cli.main import main; main()"),
                *("serve", "--model", str(tiny_model), "--served-model-name", "tiny"),
                *("--precision", "fp32", "--device", "cpu", "--port", "0", *arguments),
            ],
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **environment},
        )
        started.append(server)
        assert server.stderr is not None
        for line in server.stderr:
            if found := re.fullmatch(r"serving tiny at http://127\.0\.0\.1:(\d+)\n", line):
                return server, int(found[1])
        raise AssertionError("the server ended")

    yield call
    for server in started:
        with server:  # closes its pipe
            server.kill()


def ask(port: int, answers: list[tuple[int, dict[str, object]]], **fields: object) -> None:
    body = json.dumps({"model": "tiny", "prompt": "a", "temperature": 0, **fields})
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=60)) as client:
        client.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
        response = client.getresponse()
        answers.append((response.status, json.loads(response.read())))


def metrics(port: int) -> str:
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=60)) as client:
        client.request("GET", "/metrics")
        return client.getresponse().read().decode()


def in_flight(port: int) -> bool:
    return "fam_engine_requests_in_flight 1\n" in metrics(port)


def writes(port: int) -> bool:
    return re.search(r"^fam_engine_generated_tokens_total [1-9]", metrics(port), re.M) is not None


def test_sigterm_lets_what_is_in_flight_finish(start: Start) -> None:
    server, port = start()
    answers: list[tuple[int, dict[str, object]]] = []
    # 200 steps take long enough to be met on their way.
    asking = threading.Thread(target=ask, args=(port, answers), kwargs={"max_tokens": 200})
    asking.start()
    while not in_flight(port):
        pass
    server.send_signal(signal.SIGTERM)
    assert server.wait(60) == 0
    asking.join()
    [(status, body)] = answers
    assert status == 200
    assert body["usage"]["completion_tokens"] == 200  # type: ignore[index]
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_taken_as_soon_as_it_serves(start: Start, sent: signal.Signals) -> None:
    server, _ = start()
    server.send_signal(sent)
    assert server.wait(60) == 0
    assert server.stderr is not None
    assert server.stderr.read() == ""


def test_a_second_signal_does_not_wait(start: Start) -> None:
    server, port = start()
    # A body that never comes: its request would be in flight for half a minute.
    with socket.create_connection(("127.0.0.1", port)) as connection:
        head = "POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
        connection.sendall(f"{head}Content-Length: 100\r\n\r\n".encode())
        while not in_flight(port):
            pass
        server.send_signal(signal.SIGTERM)
        with pytest.raises(subprocess.TimeoutExpired):
            server.wait(1)
        server.send_signal(signal.SIGTERM)
        assert server.wait(20) == -signal.SIGTERM


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_does_not_wait_for_what_is_computed(
    start: Start, sent: signal.Signals
) -> None:
    server, port = start()
    with socket.create_connection(("127.0.0.1", port)) as connection:
        # As much as one request may ask for: far more than is computed in a second.
        asked = {"model": "tiny", "prompt": ["a"] * 16, "n": 64, "max_tokens": 250}
        body = json.dumps(asked)
        head = "POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
        connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
        while not writes(port):
            pass
        server.send_signal(sent)
        with pytest.raises(subprocess.TimeoutExpired):
            server.wait(0.5)
        server.send_signal(sent)
        assert server.wait(20) == -sent
    assert server.stderr is not None
    assert server.stderr.read() == ""


def test_many_open_connections_leave_it_quiet_and_it_answers_again(start: Start) -> None:
    limit = "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256)); "
    server, port = start(before=limit)
    with contextlib.ExitStack() as opened:
        for _ in range(300):
            connection = opened.enter_context(socket.create_connection(("127.0.0.1", port)))
            with contextlib.suppress(ConnectionError):  # one too many
                connection.sendall(b"GET /health HTTP/1.1\r\n")
    for _ in range(600):  # it has to notice that they are gone
        with contextlib.suppress(ConnectionError):
            if "fam_engine_up_seconds" in metrics(port):
                break
        time.sleep(0.1)
    assert "fam_engine_up_seconds" in metrics(port)
    server.send_signal(signal.SIGTERM)
    assert server.wait(60) == 0
    assert server.stderr is not None
    assert "Traceback" not in server.stderr.read()


def test_the_token_comes_from_the_environment(start: Start) -> None:
    server, port = start(FAM_ENGINE_TOKEN="s3cret")
    answers: list[tuple[int, dict[str, object]]] = []
    ask(port, answers, max_tokens=1)
    assert answers[0][0] == 401
    server.send_signal(signal.SIGINT)
    assert server.wait(20) == 0


@pytest.mark.parametrize(
    ("arguments", "token", "code", "starts"),
    [
        (("--model", "nowhere"), None, 10, "error[E_MODEL_NOT_FOUND]"),
        (("--port", "99999"), None, 2, "error[E_CONFIG_VALUE]"),
        (("--host", "192.0.2.1"), None, 2, "error[E_ADDRESS]: 192.0.2.1:0 cannot be listened on"),
        (("--token-file", "nowhere"), None, 2, "error[E_TOKEN] nowhere: cannot be read"),
        (("--token-file", "{empty}"), None, 2, "error[E_TOKEN]"),
        (("--token-file", "{good}"), "also", 2, "error[E_TOKEN]: a token is given both by"),
        ((), "two words", 2, "error[E_TOKEN] FAM_ENGINE_TOKEN: holds no token"),
        (("--max-length", "999"), None, 2, "error[E_MAX_LENGTH]"),
    ],
)
def test_what_does_not_fit_is_one_line(
    run: Run,
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    token: str | None,
    code: int,
    starts: str,
) -> None:
    pytest.importorskip("uvicorn", reason="needs the extra `serve`")
    files = {"empty": tmp_path / "empty", "good": tmp_path / "good"}
    files["empty"].write_text("\n")
    files["good"].write_text("s3cret\n")
    if token is not None:
        monkeypatch.setenv("FAM_ENGINE_TOKEN", token)
    given = {"--model": str(tiny_model), "--port": "0", "--device": "cpu"}
    given |= {
        name: value.format(**files)
        for name, value in zip(arguments[::2], arguments[1::2], strict=True)
    }
    found, _, err = run("serve", *(word for pair in given.items() for word in pair), "--quiet")
    assert found == code
    assert err.startswith(starts)
    assert err.count("\n") == 1


def test_without_the_package_its_extra_is_named(
    run: Run, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [*sys.modules]:
        if name.startswith(("fam_engine.serving", "uvicorn")):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    code, _, err = run("serve", "--model", tiny_model)
    assert code == 2
    assert err == "error[E_EXTRA]: `uvicorn` is not installed (pip install 'fam-engine[serve]')\n"


def test_the_flags_are_the_settings_and_no_others() -> None:
    import inspect

    from fam_engine.cli.serve import run as command
    from fam_engine.config import ServeConfig

    flags = set(inspect.signature(command).parameters)
    assert flags - set(ServeConfig.model_fields) == {"config", "quiet"}
    assert set(ServeConfig.model_fields) <= flags
