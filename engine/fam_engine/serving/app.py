"""The HTTP side: routes, the bearer token, limits, errors as OpenAI's objects.

In: ASGI requests. Out: responses. Two threads work behind the event loop: one for texts (JSON, templates, token ids, in
the order they come) and the worker, which computes. A handler only waits for them, and lets go of both when its client
has gone.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Final, ParamSpec, TypeVar

import torch
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from fam_engine.serving.bodies import Receive, Scope, Send, read_body, reading_on
from fam_engine.serving.completions import Computed, completion_response, plan_completion
from fam_engine.serving.metrics import Metrics
from fam_engine.serving.protocol import RequestError
from fam_engine.serving.scores import plan_score, score_response
from fam_engine.serving.served import Served
from fam_engine.serving.showing import show
from fam_engine.serving.worker import Worker, WorkerStoppedError

# Once the body is there, it is looked every second whether its client is.
_LOOK_SECONDS: Final = 1.0
# Nobody reads this: the client closed its connection.
_CLIENT_GONE: Final = 499
_OPEN_PATHS: Final = ("/health",)

P = ParamSpec("P")
T = TypeVar("T")


class Service:
    """What the handlers share.

    Args:
        served: The model, its name, its limits.
        token: What clients have to show; None: nothing.
    """

    def __init__(self, served: Served, token: str | None = None) -> None:
        self.served = served
        self.metrics = Metrics()
        self.worker = Worker(served.model, self.metrics)
        self.in_flight = 0
        self._token = token
        self._texts = ThreadPoolExecutor(1, thread_name_prefix="fam-engine-texts")

    def start(self) -> None:
        """Start to compute."""
        self.worker.start()

    def stop(self) -> None:
        """Finish what is asked for and stop."""
        self.worker.stop()
        self._texts.shutdown()

    def is_allowed(self, authorization: str) -> bool:
        """Whether a request shows the token; the time this takes tells nothing about it."""
        if self._token is None:
            return True
        scheme, _, shown = authorization.partition(" ")
        is_same = hmac.compare_digest(shown.strip().encode(), self._token.encode())
        return is_same and scheme.lower() == "bearer"

    async def texts(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a function in the thread of texts."""
        future = self._texts.submit(function, *args, **kwargs)
        return await asyncio.wrap_future(future)

    async def computed(self, future: Future[T], request: Request) -> T:
        """Wait for the worker, or until the client has gone.

        Raises:
            ClientDisconnect: It has.
        """
        waiting = asyncio.ensure_future(asyncio.wrap_future(future))
        while not (await asyncio.wait({waiting}, timeout=_LOOK_SECONDS))[0]:
            if await request.is_disconnected():
                waiting.cancel()
                raise ClientDisconnect
        return await waiting


def make_app(service: Service) -> Callable[[Scope, Receive, Send], Awaitable[None]]:
    """Make the application of a service."""
    routes = [
        Route("/v1/completions", _answering(service, _complete), methods=["POST"]),
        Route("/v1/score", _answering(service, _score), methods=["POST"]),
        Route("/v1/models", _plain(service, _models), methods=["GET"]),
        Route("/v1/models/{name:path}", _plain(service, _model), methods=["GET"]),
        Route("/health", _plain(service, _health), methods=["GET"]),
        Route("/metrics", _plain(service, _metrics), methods=["GET"]),
    ]
    handlers = {HTTPException: _not_found}
    inner = Starlette(routes=routes, exception_handlers=handlers)
    # A path with a slash too many is told so: clients do not send a body on to where they are sent.
    inner.router.redirect_slashes = False

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        """Let those in who show the token."""
        receive, send = reading_on(receive, send)
        if scope["type"] == "http" and scope["path"] not in _OPEN_PATHS:
            headers = dict(scope["headers"])
            shown = headers.get(b"authorization", b"").decode("latin-1")
            if not service.is_allowed(shown):
                error = RequestError(
                    "the bearer token is missing or wrong", status=401, code="invalid_api_key"
                )
                await _refusal(error)(scope, receive, send)
                return
        await inner(scope, receive, send)

    return app


# -- requests that compute -----------------------------------------------------------------------


async def _complete(service: Service, request: Request, body: bytes) -> bytes:
    served = service.served
    plan = await service.texts(plan_completion, body, served)
    texts = []
    if plan.sampling is not None:
        written = service.worker.generate(plan.requests(), plan.sampling)
        texts = await service.computed(written, request)
        if any(text.finish_reason == "nonfinite" for samples in texts for text in samples):
            message = "the model gives no finite logits to choose from"
            raise RequestError(message, status=500, code="nonfinite", kind="server_error")
    scores = []
    if pairs := plan.pairs(texts):
        scored = service.worker.score(pairs, num_top=plan.num_top)
        scores = await service.computed(scored, request)

    def respond() -> bytes:
        return _json(completion_response(plan, Computed(texts, scores), served))

    return await service.texts(respond)


async def _score(service: Service, request: Request, body: bytes) -> bytes:
    served = service.served
    plan = await service.texts(plan_score, body, served)
    scores = await service.computed(service.worker.score(plan.pairs()), request)
    return await service.texts(lambda: _json(score_response(plan, scores, served)))


def _json(value: object) -> bytes:
    return json.dumps(value, allow_nan=False, separators=(",", ":")).encode()


_Compute = Callable[[Service, Request, bytes], Awaitable[bytes]]


def _answering(service: Service, compute: _Compute) -> Callable[[Request], Awaitable[Response]]:
    """Make the handler of requests that compute: bounded in number, in size, in their errors."""

    async def handle(request: Request) -> Response:
        start = time.monotonic()
        try:
            response = await _bounded(service, request, compute)
        except ClientDisconnect:
            response = Response(status_code=_CLIENT_GONE)
        except Exception as error:
            response = _refusal(_as_request_error(error))
        path = request.url.path
        service.metrics.finished(path, response.status_code, time.monotonic() - start)
        return response

    return handle


async def _bounded(service: Service, request: Request, compute: _Compute) -> Response:
    if service.in_flight >= service.served.limits.max_requests:
        service.metrics.add("rejected_requests")
        message = f"{service.in_flight} requests are waiting already; come back later"
        raise RequestError(message, status=429, code="server_busy", kind="rate_limit_error")
    service.in_flight += 1
    try:
        body = await read_body(request, service.served.limits.max_body_bytes)
        return Response(await compute(service, request, body), media_type="application/json")
    finally:
        service.in_flight -= 1


def _as_request_error(error: Exception) -> RequestError:
    if isinstance(error, RequestError):
        return error
    if isinstance(error, torch.OutOfMemoryError):
        return RequestError(
            "the request does not fit in memory, even alone",
            status=503,
            code="out_of_memory",
            kind="server_error",
        )
    if isinstance(error, WorkerStoppedError):
        return RequestError(
            "the server computes no more, and has to be started again",
            status=503,
            code="worker_stopped",
            kind="server_error",
        )
    show(error)
    return RequestError(
        "internal error; the server's own output says more",
        status=500,
        code="internal_error",
        kind="server_error",
    )


def _refusal(error: RequestError) -> JSONResponse:
    headers = {"Retry-After": "1"} if error.status in (429, 503) else {}
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    if error.status in (408, 413):  # what is left of the body is not read
        headers["Connection"] = "close"
    return JSONResponse(error.body(), status_code=error.status, headers=headers)


def _not_found(request: Request, error: HTTPException) -> JSONResponse:
    code = "not_found" if error.status_code == 404 else "method_not_allowed"
    known = ", ".join(
        f"{'/'.join(sorted(route.methods - {'HEAD'}))} {route.path}" for route in request.app.routes
    ).replace("{name:path}", "NAME")
    asked = f"{request.method} {request.url.path[:80]}"
    message = f"there is no {asked}, expected one of {known}"
    refusal = _refusal(RequestError(message, status=error.status_code, code=code))
    refusal.headers.update(error.headers or {})  # `Allow` with 405
    return refusal


# -- requests that only ask ----------------------------------------------------------------------


def _plain(
    service: Service, respond: Callable[[Service, Request], Response]
) -> Callable[[Request], Awaitable[Response]]:
    async def handle(request: Request) -> Response:
        try:
            return respond(service, request)
        except RequestError as error:
            return _refusal(error)

    return handle


def _models(service: Service, _: Request) -> Response:
    return JSONResponse({"object": "list", "data": [_described(service.served)]})


def _model(service: Service, request: Request) -> Response:
    service.served.check_name(request.path_params["name"])
    return JSONResponse(_described(service.served))


def _described(served: Served) -> dict[str, Any]:
    return {
        "id": served.name,
        "object": "model",
        "created": served.created,
        "owned_by": "fam-engine",
        "max_model_len": served.model.max_length,
    }


def _health(service: Service, _: Request) -> Response:
    is_well = service.worker.is_alive
    status = "ok" if is_well else "the worker has stopped"
    return JSONResponse({"status": status}, status_code=200 if is_well else 503)


def _metrics(service: Service, _: Request) -> Response:
    text = service.metrics.text(in_flight=service.in_flight)
    return Response(text, media_type="text/plain; version=0.0.4")
