"""The same answers asked of a server: OpenAI's completions with `echo` and `logprobs`, as vLLM and our own have them.

In: a URL and the answers as token ids, so that the server's tokenizer and template have no part in it. Out: what it
says about each token. Requests are those of lm-evaluation-harness (one greedy token, then dropped), which such servers
are tried with most. Python's own `http.client` asks: no redirect is followed, so the token goes nowhere else, and no
proxy is used.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final
from urllib.parse import urlsplit

import numpy as np

from fam_engine.config import TOKEN_VARIABLE
from fam_engine.errors import InputError, UsageError
from fam_engine.jobs.verifying.probe import AnswerRow, Probe
from fam_engine.measure.agreement import TokenLogprobs

_SECONDS: Final = 600
_MAX_BYTES: Final = 64 << 20


class Server:
    """A server of completions.

    Args:
        url: Its address, with or without `/v1`.
        model: What it calls the model; None: the one model it has.

    Attributes:
        model: What it calls the model.
        max_length: Longest sequence it takes, tokens, with the one it writes; None: it does not say.

    Raises:
        UsageError: No such address or model.
        InputError: It does not answer as it should.
    """

    def __init__(self, url: str, model: str | None) -> None:
        self.url = url
        parts = _checked_url(url)
        self._is_https, self._place = parts.scheme == "https", parts.netloc
        self._path = parts.path.rstrip("/").removesuffix("/v1") + "/v1"
        self.model, self.max_length = self._find_model(model)

    def answers(self, probe: Probe, advance: Callable[[int], None]) -> TokenLogprobs:
        """Ask about every answer.

        Args:
            probe: The answers.
            advance: Called with the number of answers done since the last call.

        Raises:
            InputError: It does not answer as it should.
        """
        rows = []
        for context, targets in probe.texts():
            ids = [*context.tolist(), *targets.tolist()]
            rows.append(self._asked(ids, len(targets)))
            advance(1)
        return probe.gathered(rows)

    def _asked(self, ids: list[int], count: int) -> AnswerRow:
        """Give the log-probs of the last tokens, and whether each comes first."""
        body = {
            "model": self.model,
            "prompt": ids,
            "max_tokens": 1,
            "temperature": 0,
            "echo": True,
            "logprobs": 1,
        }
        answer = self._send("POST", "/completions", body)
        with self._understood():
            found = answer["choices"][0]["logprobs"]
            logprobs = _numbers(found["token_logprobs"][len(ids) - count : len(ids)])
            tops = found["top_logprobs"][len(ids) - count : len(ids)]
            best = [max(_numbers(list(top.values()))) for top in tops]
            if not len(logprobs) == len(best) == count:
                raise ValueError(f"{len(logprobs)} log-probs for {count} tokens")
        return np.array(logprobs), np.array(logprobs) >= np.array(best)

    def _find_model(self, wanted: str | None) -> tuple[str, int | None]:
        """Give the name of the model to ask, and the longest sequence it takes."""
        answer = self._send("GET", "/models", None)
        with self._understood():
            cards = {str(model["id"]): model for model in answer["data"]}
            names = list(cards)
            name = names[0] if wanted is None and len(names) == 1 else wanted
            if name in cards:
                return name, _max_length(cards, name)
        found = f"has no model `{wanted}`" if wanted else f"has {len(names)} models"
        raise UsageError(
            f"{found}, expected one of {', '.join(names)}",
            code="E_SERVER",
            where=self.url,
            hint="say which with --served-model-name",
        )

    @contextlib.contextmanager
    def _understood(self) -> Iterator[None]:
        try:
            yield
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise self._refusal(
                f"does not answer as OpenAI's completions do with `echo` and `logprobs`: {error!r}"
            ) from None

    def _send(self, method: str, path: str, body: dict[str, Any] | None) -> Any:  # noqa: ANN401 - JSON
        headers = {"Content-Type": "application/json"}
        if token := os.environ.get(TOKEN_VARIABLE, "").strip():
            headers["Authorization"] = f"Bearer {token}"
        kind = http.client.HTTPSConnection if self._is_https else http.client.HTTPConnection
        content = None if body is None else json.dumps(body)
        try:
            with contextlib.closing(kind(self._place, timeout=_SECONDS)) as connection:
                connection.request(method, self._path + path, content, headers)
                response = connection.getresponse()
                raw = response.read(_MAX_BYTES)
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise self._refusal(f"cannot be reached: {error}") from None
        if response.status != 200:
            said = " ".join(raw[:300].decode(errors="replace").split())
            raise self._refusal(f"answers {response.status} to {path}: {said}")
        try:
            return json.loads(raw)
        except (ValueError, RecursionError):
            raise self._refusal(f"answers {path} with something else than JSON") from None

    def _refusal(self, message: str) -> InputError:
        hint = "start it with `fam-engine serve` or `vllm serve`, and check the address and token"
        return InputError(message, code="E_SERVER", where=self.url, hint=hint)


def _checked_url(url: str) -> Any:  # noqa: ANN401 - the parts have no public type
    try:
        parts = urlsplit(url)
        _ = parts.port  # refuses what is none
        is_good = parts.scheme in ("http", "https") and parts.hostname and not parts.username
    except ValueError:
        is_good = False
    if not is_good:
        message = "--url is no address of a server, expected one such as http://127.0.0.1:8000"
        raise UsageError(message, code="E_USAGE")
    return parts


def _max_length(cards: Mapping[str, Any], name: str) -> int | None:
    """Give the longest sequence of a model; vLLM says it of an adapter's base (`parent`) alone."""
    for card in (cards[name], cards.get(cards[name].get("parent"), {})):
        length = card.get("max_model_len")
        if type(length) is int and length > 0:
            return length
    return None


def _numbers(values: list[Any]) -> list[float]:
    """Check numbers of a stranger's JSON."""
    for value in values:
        if type(value) not in (int, float) or not math.isfinite(value):
            raise ValueError(f"{value!r} where a log-prob belongs")
    return [float(value) for value in values]
