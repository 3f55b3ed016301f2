"""Every route with whatever its own description allows, and does not: no 5xx."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from starlette.testclient import TestClient

from filmlet.api import create_app
from filmlet.settings import Settings

HOLD = settings(
    max_examples=30,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture
def client(tmp_path: Path) -> Iterator[TestClient]:
    app = create_app(
        Settings(home=tmp_path, max_active=10**6, max_per_minute=10**6, max_queued=10**6)
    )
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client


@pytest.mark.server
def test_no_request_breaks_the_server(client: TestClient) -> None:
    described = schemathesis.openapi.from_asgi("/openapi.json", client.app)
    there = client.post("/v1/videos", json={"prompt": "a ball"}).json()["id"]
    asked = 0
    for found in described.get_all_operations():
        operation = found.ok()
        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):

            @HOLD
            @given(case=operation.as_strategy(generation_mode=mode))
            def ask(case: schemathesis.Case) -> None:
                nonlocal asked
                if "id" in case.path_parameters and asked % 2 and case.method != "DELETE":
                    case.path_parameters["id"] = there  # one that exists, every other time
                    # Whoever follows it comes to an end, also after a retry.
                    client.app.state.filmlet.queue.cancel(there)
                answer = case.call()
                asked += 1
                mistakes = answer.status_code >= 500 and case.path != "/ready"
                assert not mistakes, (case.as_curl_command(), answer.text)

            if mode == GenerationMode.POSITIVE:
                ask()
            else:
                with suppress(Unsatisfiable):  # a route that takes nothing cannot be asked wrongly
                    ask()
    assert asked > 200
