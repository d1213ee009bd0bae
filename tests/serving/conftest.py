"""What the tests of the server share: a service over the tiny model, asked without a socket and over one."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from fam_engine.jobs.resident import ResidentModel
    from fam_engine.serving.app import Service

NAME = "tiny"
# What a request is answered with: status and body.
Answer = tuple[int, Any]
Post = Callable[..., Answer]


@pytest.fixture(scope="session")
def resident(bos_model: Path) -> Iterator[ResidentModel]:
    from fam_engine.jobs.resident import ResidentModel

    with ResidentModel(bos_model, precision="fp32", device="cpu") as model:
        yield model


def make_service(model: ResidentModel, **limits: int) -> Service:
    pytest.importorskip("starlette", reason="needs the extra `serve`")
    from fam_engine.serving.app import Service
    from fam_engine.serving.served import Limits, Served

    small = {"max_requests": 4, "max_prompts": 32, "max_request_tokens": 2048}
    chosen = Limits(**{**small, "max_body_bytes": 65536, **limits})
    return Service(Served.under(NAME, model, chosen), token=None)


@contextlib.contextmanager
def asking(service: Service) -> Iterator[Post]:
    """Start a service and post to it without a socket."""
    from starlette.testclient import TestClient

    from fam_engine.serving.app import make_app

    service.start()
    with TestClient(make_app(service)) as client:

        def call(path: str, body: Any = None, **fields: Any) -> Answer:  # noqa: ANN401
            if isinstance(body, str | bytes):
                headers = {"content-type": "application/json"}
                response = client.post(path, content=body, headers=headers)
            else:
                response = client.post(path, json={"model": NAME, **(body or {}), **fields})
            return response.status_code, response.json()

        yield call
    service.stop()


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[Post]:
    """Serve a model of a folder."""
    from fam_engine.jobs.resident import ResidentModel

    with (
        ResidentModel(folder, precision="fp32", device="cpu") as model,
        asking(make_service(model)) as post,
    ):
        yield post


@pytest.fixture
def service(resident: ResidentModel) -> Service:
    return make_service(resident)


@pytest.fixture
def post(service: Service) -> Iterator[Post]:
    """Post a body to a path; give status and body."""
    with asking(service) as call:
        yield call


@contextlib.contextmanager
def listening(service: Service) -> Iterator[str]:
    """Have a service listen on a socket of this machine; give its address."""
    uvicorn = pytest.importorskip("uvicorn", reason="needs the extra `serve`")
    from fam_engine.serving.server import _listening, uvicorn_settings

    server = uvicorn.Server(uvicorn_settings(service))
    service.start()
    with _listening("127.0.0.1", 0) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()
            service.stop()


@pytest.fixture
def address(service: Service) -> Iterator[str]:
    """Where the service listens."""
    with listening(service) as found:
        yield found
