"""The description of the API: complete, and such that generators make clients of it."""

import importlib
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient
from openapi_spec_validator import validate

from filmlet.api import create_app
from filmlet.api.anonymous_users import Visitors
from filmlet.api.schemas import RequestModel, VideoCreate, VideoExtend
from filmlet.settings import Settings
from tests.helpers.generated_clients import generate_python_client, generate_typescript
from tests.helpers.servers import SMALL, Running

Table = dict[str, Any]


@pytest.fixture
def description(client: TestClient) -> Table:
    return dict(client.get("/openapi.json").json())


def operations(description: Table) -> Iterator[tuple[str, str, Table]]:
    for path, methods in description["paths"].items():
        for method, operation in methods.items():
            yield path, method, operation


def references(part: object) -> Iterator[str]:
    """Every $ref in a part of the description."""
    children = part.values() if isinstance(part, dict) else part if isinstance(part, list) else ()
    if isinstance(part, dict) and isinstance(part.get("$ref"), str):
        yield part["$ref"]
    for child in children:
        yield from references(child)


def resolve(description: Table, reference: str) -> object:
    """What a reference within the description names. Raises LookupError."""
    start, *names = reference.split("/")
    assert start == "#", reference
    found: Any = description
    for name in names:
        found = found[name.replace("~1", "/").replace("~0", "~")]
    return found


def test_every_reference_leads_somewhere_and_every_schema_is_used(description: Table) -> None:
    validate(description)
    found = set(references(description))
    assert {"#/components/schemas/Priority", "#/components/schemas/VideoLora"} <= found
    for reference in found:
        assert resolve(description, reference), reference
    schemas = description["components"]["schemas"]
    assert found == {f"#/components/schemas/{name}" for name in schemas}


def test_no_operation_is_described_twice(description: Table) -> None:
    ids = [operation["operationId"] for _, _, operation in operations(description)]
    assert len(ids) == len(set(ids)) == 27


def test_what_needs_a_key_says_so_and_nothing_else(tmp_path: Path) -> None:
    """Of each described operation, by asking a server that has keys without one."""
    app = create_app(Settings(home=tmp_path), demands_keys=True)
    with TestClient(app) as client:
        description = client.get("/openapi.json").json()
        assert set(description["components"]["securitySchemes"]) == {"bearer", "browser"}
        for path, method, operation in operations(description):
            answer = client.request(method, path.format(id="x"), json={})
            is_refused = answer.status_code == 401 and path != "/session"
            assert is_refused == bool(operation.get("security")), (method, path)
            if is_refused:
                assert "401" in operation["responses"]
                assert operation["security"] == [{"bearer": []}, {"browser": []}]


def test_public_server_describes_its_cookie(tmp_path: Path) -> None:
    with TestClient(create_app(Settings(home=tmp_path), visitors=Visitors())) as client:
        answer = client.get("/openapi.json")
    description = answer.json()
    assert description["components"]["securitySchemes"]["browser"]["name"] in answer.cookies
    assert {} in description["paths"]["/v1/videos"]["get"]["security"]


@pytest.mark.parametrize("schema", [VideoCreate, VideoExtend])
def test_json_and_forms_have_every_field(description: Table, schema: type[RequestModel]) -> None:
    files = {"video"} if schema is VideoExtend else {"input_reference", "last_reference"}
    schemas = description["components"]["schemas"]
    for name in (schema.__name__, f"{schema.__name__}Form"):
        assert schemas[name]["properties"].keys() == schema.model_fields.keys() | files
        assert "prompt" in schemas[name]["required"]
        assert schemas[name]["additionalProperties"] is False
    assert not re.search(r'"null"', json.dumps(schemas[f"{schema.__name__}Form"]))


@pytest.mark.server
def test_generated_python_client_has_every_operation_and_works(
    description: Table, shared_server: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "openapi.json"
    path.write_text(json.dumps(description))
    printed = generate_python_client(path, tmp_path / "generated_filmlet")
    assert "warning" not in printed.lower(), printed
    modules = {file.stem for file in (tmp_path / "generated_filmlet" / "api").rglob("*.py")}
    names = {re.sub("_+", "_", o["operationId"]) for _, _, o in operations(description)}
    assert names <= modules

    monkeypatch.syspath_prepend(str(tmp_path))
    package = importlib.import_module("generated_filmlet")
    models = importlib.import_module("generated_filmlet.models")
    create = importlib.import_module("generated_filmlet.api.videos.create_v1_videos_post")
    with package.AuthenticatedClient(
        base_url=shared_server.url, token="none", timeout=httpx.Timeout(60)
    ) as client:
        for body in (
            models.VideoCreate.from_dict(SMALL | {"loras": None}),
            models.VideoCreateForm.from_dict(SMALL),
        ):
            video = create.sync(client=client, body=body)
            assert isinstance(video, models.Video), video
            assert video.status == "queued"
    for name in [name for name in sys.modules if name.startswith("generated_filmlet")]:
        del sys.modules[name]


@pytest.mark.server
def test_generated_types_have_every_path_and_schema(description: Table, tmp_path: Path) -> None:
    path = tmp_path / "openapi.json"
    path.write_text(json.dumps(description))
    printed = generate_typescript(path, tmp_path / "filmlet.d.ts")
    assert "warn" not in printed.lower(), printed
    types = (tmp_path / "filmlet.d.ts").read_text()
    for name in description["paths"]:
        assert f'    "{name}": {{' in types
    for _, _, operation in operations(description):
        assert f"    {operation['operationId']}: {{" in types
    for name in description["components"]["schemas"]:
        assert f"        {name}: " in types
