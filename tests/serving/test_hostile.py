"""Requests meant to break the server: each is refused in OpenAI's words, and the next one is answered."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.serving.conftest import NAME, Post

GOOD = {"prompt": "a", "max_tokens": 1, "temperature": 0}


def still_answers(post: Post) -> None:
    status, body = post("/v1/completions", **GOOD)
    assert status == 200, body
    assert body["usage"]["completion_tokens"] == 1


def refused(post: Post, path: str, body: Any, status: int, param: str | None) -> str:  # noqa: ANN401
    found, answer = post(path, body)
    assert found == status, answer
    assert set(answer) == {"error"}
    assert set(answer["error"]) == {"message", "type", "param", "code"}
    assert answer["error"]["param"] == param
    still_answers(post)
    message: str = answer["error"]["message"]
    assert len(message) < 400
    return message


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"not json",
        b"[]",
        b"1",
        b"null",
        b'"text"',
        b"\xff\xfe\x00",
        b'{"model": "tiny", "prompt": "\xff"}',
        b'{"model": "tiny", "prompt": "\\ud800"}',
        b'{"model": "tiny", "prompt": "a", "max_tokens": ' + b"9" * 5000 + b"}",
        b'{"model": ' + b"[" * 20000,
        b'{"model": "tiny", "prompt": ' + b"[" * 20000 + b"]" * 20000 + b"}",
    ],
    ids=range(13),
)
@pytest.mark.parametrize("path", ["/v1/completions", "/v1/score"])
def test_a_body_that_is_no_json_object(post: Post, path: str, body: bytes) -> None:
    status, answer = post(path, body)
    assert status == 400
    assert answer["error"]["type"] == "invalid_request_error"
    still_answers(post)


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ('"temperature": NaN', "temperature"),
        ('"temperature": Infinity', "temperature"),
        ('"temperature": 1e999', "temperature"),
        ('"temperature": -1', "temperature"),
        ('"temperature": 1e-9', "temperature"),
        ('"temperature": "hot"', "temperature"),
        ('"temperature": [0]', "temperature"),
        ('"top_p": 0', "top_p"),
        ('"top_p": NaN', "top_p"),
        ('"top_k": -2', "top_k"),
        ('"max_tokens": -1', "max_tokens"),
        ('"max_tokens": 1.5', "max_tokens"),
        ('"max_tokens": true', "max_tokens"),
        ('"max_tokens": "4"', "max_tokens"),
        ('"max_tokens": 1000000000000', "max_tokens"),
        ('"n": 0', "n"),
        ('"n": 100000', "n"),
        ('"best_of": 2', "best_of"),
        ('"seed": 18446744073709551616', "seed"),
        ('"logprobs": 1000', "logprobs"),
        ('"logprobs": true', "logprobs"),
        ('"prompt_logprobs": -1', "prompt_logprobs"),
        ('"stop": [""]', "stop"),
        ('"stop": ""', "stop"),
        ('"stop": 5', "stop"),
        (f'"stop": {json.dumps(["a"] * 17)}', "stop"),
        ('"echo": 1', "echo"),
        ('"stream": true', "stream"),
        ('"suffix": "x"', "suffix"),
        ('"presence_penalty": 0.5', "presence_penalty"),
        ('"logit_bias": {"5": 1}', "logit_bias"),
        ('"temprature": 0', "temprature"),
        (f'"{"x" * 5000}": 0', "x" * 80),
        ('"prompt": ""', None),
        ('"prompt": 5', "prompt"),
        ('"prompt": null', "prompt"),
        ('"prompt": []', "prompt"),
        ('"prompt": [[]]', "prompt"),
        ('"prompt": [1, "a"]', "prompt"),
        ('"prompt": [1.5]', "prompt"),
        ('"prompt": [true]', "prompt"),
        ('"prompt": {"a": 1}', "prompt"),
        ('"prompt": [-1]', "prompt"),
        ('"prompt": [258]', "prompt"),
        ('"prompt": [2147483648]', "prompt"),
        ('"prompt": [99999999999999999999999]', "prompt"),
        (f'"prompt": {json.dumps(["a"] * 33)}', "prompt"),
        (f'"prompt": {json.dumps([5] * 257)}', "prompt"),
        (f'"prompt": {json.dumps([5] * 256)}', "max_tokens"),
        (f'"prompt": {json.dumps([[5] * 200] * 12)}', "prompt"),
        ('"model": "gpt-4"', "model"),
        ('"model": 5', "model"),
    ],
)
def test_a_parameter_that_does_not_fit(post: Post, change: str, param: str | None) -> None:
    rest = {name: value for name, value in GOOD.items() if f'"{name}"' not in change}
    model = "" if '"model"' in change else f'"model": "{NAME}", '
    body = f"{{{model}{change}, {json.dumps(rest)[1:]}"
    if param is None:  # with BOS before it, an empty text is a prompt
        status, answer = post("/v1/completions", body)
        assert status == 200, answer
        assert answer["usage"]["prompt_tokens"] == 1
        return
    message = refused(post, "/v1/completions", body, 404 if "gpt" in change else 400, param)
    assert f"`{param[:60]}" in message or "request asks" in message


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/v1/completions", {"prompt": [1.5] * 5000}),
        ("/v1/completions", {"prompt": [[1.5]] * 5000}),
        ("/v1/completions", {"prompt": "a", "stop": [1] * 5000}),
        ("/v1/completions", {"prompt": "a", "logit_bias": {str(i): "" for i in range(5000)}}),
        ("/v1/score", {"prompt": "a", "responses": [1] * 5000}),
        ("/v1/score", {"prompt": [1.5] * 5000, "responses": [[1]]}),
        ("/v1/score", {"messages": [1] * 5000, "responses": ["b"]}),
        ("/v1/score", {"messages": [{"role": "user", "content": [1] * 5000}], "responses": ["b"]}),
        ("/v1/score", {"prompt": "a", "responses": ["b"], "tools": [1] * 5000}),
    ],
)
def test_thousands_of_wrong_members_make_few_errors(
    post: Post, path: str, fields: dict[str, Any]
) -> None:
    from pydantic import ValidationError

    from fam_engine.serving.protocol import CompletionRequest, ScoreRequest

    kind = ScoreRequest if path == "/v1/score" else CompletionRequest
    with pytest.raises(ValidationError) as caught:
        kind.model_validate_json(json.dumps({"model": NAME, **fields}))
    assert caught.value.error_count() < 10
    assert post(path, fields)[0] == 400


def test_a_missing_parameter_is_named(post: Post) -> None:
    for body, param in (
        ({"model": NAME}, "prompt"),
        ({"prompt": "a"}, "model"),
    ):
        message = refused(post, "/v1/completions", json.dumps(body), 400, param)
        assert "missing" in message


@pytest.mark.parametrize("n", [None, 1, 2])
def test_more_texts_than_are_kept_are_refused(post: Post, n: int | None) -> None:
    message = refused(post, "/v1/completions", {**GOOD, "n": n, "best_of": 3}, 400, "best_of")
    assert message == "`best_of` is 3, expected the same as `n`, 1 by default"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("max_tokens", "a whole number of at least 0"),
        ("top_k", "a whole number of at least 1; 0 or -1: all"),
        ("n", "a whole number from 1 to 64"),
        ("logprobs", "a whole number from 0 to 20"),
    ],
)
def test_a_number_that_is_not_whole_is_told_so(post: Post, name: str, expected: str) -> None:
    message = refused(post, "/v1/completions", {**GOOD, name: 1.0}, 400, name)
    assert message == f"`{name}` is 1.0, expected {expected}"


def test_a_mistyped_name_gets_the_nearest_one(post: Post) -> None:
    message = refused(post, "/v1/completions", {**GOOD, "max_token": 5}, 400, "max_token")
    assert "did you mean `max_tokens`?" in message


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": "a", "responses": []}, "responses"),
        ({"prompt": "a", "responses": "b"}, "responses"),
        ({"prompt": "a", "responses": ["b", ""]}, "responses[1]"),
        ({"prompt": "a", "responses": ["b", 5]}, "responses"),
        ({"prompt": "a", "responses": [[5]]}, "responses"),
        ({"prompt": [5], "responses": ["a"]}, "responses"),
        ({"prompt": [5], "responses": [[5], [6], []]}, "responses[2]"),
        ({"prompt": [5], "responses": [[258]]}, "responses"),
        ({"prompt": [258], "responses": [[5]]}, "prompt"),
        ({"prompt": [], "responses": [[5]]}, "prompt"),
        ({"responses": ["b"]}, "messages"),
        ({"prompt": "a", "messages": [], "responses": ["b"]}, "messages"),
        ({"messages": [{"role": "user", "content": None}], "responses": ["b"]}, "messages"),
        ({"prompt": "a", "responses": ["b" * 300]}, "responses"),
        ({"prompt": "a", "responses": ["b"] * 33}, "responses"),
        ({"prompt": "a" * 200, "responses": ["b" * 50] * 32, "tokens": 1}, "tokens"),
        ({"prompt": "a", "responses": ["b"], "max_tokens": 5}, "max_tokens"),
    ],
)
def test_a_score_that_cannot_be_had(post: Post, fields: dict[str, Any], param: str) -> None:
    message = refused(post, "/v1/score", fields, 400, param)
    assert f"`{param}`" in message or "request asks" in message


ROLES = "system, developer, user, assistant or tool"


@pytest.mark.parametrize(
    ("turn", "param", "problem"),
    [
        ({"content": "q"}, "messages[1].role", f"is missing, expected {ROLES}"),
        ({"role": "User"}, "messages[1].role", f'is "User", expected {ROLES}'),
        ({"role": 5}, "messages[1].role", f"is 5, expected {ROLES}"),
        (
            {"role": "user", "content": 5},
            "messages[1].content",
            "is 5, expected a text or a list of parts",
        ),
        (
            {"role": "user", "tool_calls": [5]},
            "messages[1].tool_calls",
            "holds 5, expected a list of calls",
        ),
        (5, "messages", "holds 5, expected a list of {role, content}"),
        (
            {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]},
            "messages[1].tool_calls",
            "holds arguments that are not the JSON of an object",
        ),
        (
            {"role": "assistant", "tool_calls": [{"name": "f", "arguments": "3"}]},
            "messages[1].tool_calls",
            "holds arguments that are not the JSON of an object",
        ),
    ],
)
def test_a_turn_that_does_not_fit_is_named(
    post: Post,
    turn: Any,  # noqa: ANN401
    param: str,
    problem: str,
) -> None:
    asked = {"messages": [{"role": "user", "content": "a"}, turn], "responses": ["b"]}
    assert refused(post, "/v1/score", asked, 400, param) == f"`{param}` {problem}"


def test_a_mistyped_name_in_a_turn_gets_the_nearest_one(post: Post) -> None:
    asked = {"messages": [{"role": "user", "contents": "q"}], "responses": ["b"]}
    message = refused(post, "/v1/score", asked, 400, "messages[0].contents")
    assert message == "unknown parameter `messages[0].contents`; did you mean `content`?"


@pytest.mark.parametrize(
    ("kwargs", "problem"),
    [
        ({"messages": []}, "have `messages`, which comes from the request itself"),
        ({"zz": 1}, "the model has no chat template"),
    ],
)
def test_what_no_template_is_told_is_refused(
    post: Post, kwargs: dict[str, Any], problem: str
) -> None:
    asked = {"prompt": "a", "responses": ["b"], "chat_template_kwargs": kwargs}
    assert problem in refused(post, "/v1/score", asked, 400, "chat_template_kwargs")


def test_a_body_too_large_is_not_read_to_its_end(post: Post) -> None:
    status, answer = post("/v1/completions", b'{"prompt": "' + b"a" * 70000)
    assert (status, answer["error"]["code"]) == (413, "body_too_large")
    still_answers(post)


def test_nor_is_one_of_no_announced_length(service: Any) -> None:  # noqa: ANN401
    from starlette.testclient import TestClient

    from fam_engine.serving.app import make_app

    def chunks() -> Iterator[bytes]:
        yield b'{"prompt": "'
        yield b"a" * 70000

    headers = {"content-type": "application/json"}
    answer = TestClient(make_app(service)).post("/v1/score", content=chunks(), headers=headers)
    assert "content-length" not in answer.request.headers
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "body_too_large")


def test_unknown_paths_and_methods(service: Any) -> None:  # noqa: ANN401
    from starlette.testclient import TestClient

    from fam_engine.serving.app import make_app

    client = TestClient(make_app(service))
    for method, path, status in (
        ("GET", "/v1/chat", 404),
        ("GET", "/v1/completions", 405),
        ("POST", "/v1/chat/completions", 404),
        ("POST", "/v1/completions/", 404),
        ("GET", "/v1/models/other", 404),
    ):
        response = client.request(method, path)
        assert response.status_code == status, path
        assert response.json()["error"]["type"] == "invalid_request_error"
        assert response.headers.get("Allow") == ("POST" if status == 405 else None)
        if "models" not in path:
            assert f"no {method} {path}, expected" in response.json()["error"]["message"]
            assert "POST /v1/completions" in response.json()["error"]["message"]
            assert "GET /v1/models/NAME," in response.json()["error"]["message"]
    form = client.post("/v1/completions", data={"prompt": "a"})
    assert form.status_code == 415
    assert "application/json" in form.json()["error"]["message"]


def test_random_damage_kills_nothing(post: Post) -> None:
    import random

    rng = random.Random(0)
    whole = json.dumps({"model": NAME, **GOOD, "logprobs": 1, "echo": True, "stop": ["x"]}).encode()
    for _ in range(300):
        body = bytearray(whole)
        for _ in range(rng.randint(1, 6)):
            place = rng.randrange(len(body))
            body[place : place + rng.randint(0, 3)] = rng.randbytes(rng.randint(0, 3))
        status, answer = post("/v1/completions", bytes(body))
        assert status in (200, 400, 404), answer
    still_answers(post)
