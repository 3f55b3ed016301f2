"""Every route with whatever its own description allows, and does not: each answer is described."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import positive_data_acceptance
from starlette.testclient import TestClient

from filmlet.api import create_app
from filmlet.settings import Settings

pytestmark = pytest.mark.server

HOLD = settings(
    max_examples=15,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
# What no schema says: the form of a size, which settings exclude each other, what a picture is,
# which status a job must have, which keys were used, which words a model knows.
BEYOND_SCHEMAS = {
    "POST /v1/prompts/enhance",
    "POST /v1/videos",
    "POST /v1/videos/plan",
    "POST /v1/videos/extensions",
    "POST /v1/videos/edits",
    "POST /v1/videos/characters",
    "POST /v1/videos/{id}/priority",
    "POST /v1/videos/{id}/refine",
    "POST /v1/videos/{id}/remix",
}
MEANT_503 = "GET /ready"  # without a worker


@pytest.fixture
def client(tmp_path: Path) -> Iterator[TestClient]:
    """An app with a key, which its client sends."""
    app = create_app(
        Settings(home=tmp_path, max_active=10**6, max_per_minute=10**6, max_queued=10**6)
    )
    with TestClient(app, raise_server_exceptions=False) as client:
        key = app.state.filmlet.keys.add("ann", admin=True)
        client.headers["authorization"] = f"Bearer {key.secret}"
        yield client


def check_operation(client: TestClient, operation: Any, mode: GenerationMode, there: str) -> int:
    """Ask an operation and check each answer; return how often. there: a video that exists."""
    headers = {"Authorization": client.headers["authorization"]}
    excluded = [positive_data_acceptance] if operation.label in BEYOND_SCHEMAS else []
    excluded += [not_a_server_error] if operation.label == MEANT_503 else []
    asked = 0

    @HOLD
    @given(case=operation.as_strategy(generation_mode=mode))
    def ask(case: schemathesis.Case) -> None:
        nonlocal asked
        if "id" in case.path_parameters and asked % 2 and case.method != "DELETE":
            case.path_parameters["id"] = there  # every other time
            # Whoever follows it comes to an end, also after a retry.
            client.app.state.filmlet.queue.cancel(there)
        asked += 1
        case.call_and_validate(headers=headers, excluded_checks=excluded)

    if mode == GenerationMode.POSITIVE:
        ask()
    else:
        with suppress(Unsatisfiable):  # a route that takes nothing cannot be asked wrongly
            ask()
    return asked


def test_every_answer_is_as_it_is_described(client: TestClient) -> None:
    described = schemathesis.openapi.from_asgi("/openapi.json", client.app)
    there = client.post("/v1/videos", json={"prompt": "a ball"}).json()["id"]
    asked = 0
    for found in described.get_all_operations():
        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
            asked += check_operation(client, found.ok(), mode, there)
    assert asked > 200
