"""Sound over HTTP: what is asked, what is told, and the sound of a clip alone."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from filmlet.api import create_app
from filmlet.settings import Settings
from tests.helpers.servers import SMALL, refusal
from tests.helpers.sounding_worker import finish_job
from tests.helpers.sounds import audio_packets, look_at_audio


@pytest.fixture(params=["local", "folder", "s3"])
def settings(request: pytest.FixtureRequest, tmp_path: Path) -> Settings:
    """Of a server over each kind of storage."""
    url = None if request.param == "local" else request.getfixturevalue(f"{request.param}_url")
    database = f"sqlite:///{tmp_path}/queue.sqlite"
    return Settings(
        home=tmp_path / "home", database_url=database, storage_url=url, worker="one",
        max_per_minute=1000,
    )  # fmt: skip


@pytest.fixture
def web(settings: Settings) -> Iterator[TestClient]:
    with TestClient(create_app(settings), raise_server_exceptions=False) as client:
        yield client


def test_sound_alone_is_that_of_the_clip(
    settings: Settings, web: TestClient, tiny: Path, tmp_path: Path
) -> None:
    job = finish_job(settings, tiny)
    content = f"/v1/videos/{job.id}/content"
    clip, alone = tmp_path / "clip.mp4", tmp_path / "alone.m4a"
    clip.write_bytes(web.get(content).content)
    answer = web.get(content, params={"variant": "audio"})
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "audio/mp4"
    assert answer.headers["content-disposition"] == f'inline; filename="a-red-ball-{job.seed}.m4a"'
    assert answer.headers["accept-ranges"] == "bytes"
    alone.write_bytes(answer.content)
    assert audio_packets(alone) == audio_packets(clip)
    assert look_at_audio(alone).click_s == pytest.approx(4 / 24, abs=2 / 48_000)
    assert web.get(f"/v1/videos/{job.id}").json()["effective"]["audio"] is True


@pytest.mark.parametrize("settings", ["local"], indirect=True)
def test_ranges_of_the_sound_alone(settings: Settings, web: TestClient, tiny: Path) -> None:
    content = f"/v1/videos/{finish_job(settings, tiny).id}/content?variant=audio"
    whole = web.get(content).content
    part = web.get(content, headers={"range": "bytes=100-199"})
    assert part.status_code == 206
    assert part.headers["content-range"] == f"bytes 100-199/{len(whole)}"
    assert part.content == whole[100:200]
    assert web.get(content, headers={"range": "bytes=-50"}).content == whole[-50:]
    beyond = web.get(content, headers={"range": f"bytes={len(whole)}-"})
    assert beyond.status_code == 416


@pytest.mark.parametrize("settings", ["local"], indirect=True)
def test_clip_without_sound_has_no_such_variant(
    settings: Settings, web: TestClient, tiny: Path
) -> None:
    job = finish_job(settings, tiny, with_sound=False)
    answer = web.get(f"/v1/videos/{job.id}/content", params={"variant": "audio"})
    assert answer.status_code == 404
    assert refusal(answer)["message"] == f"{job.id} has no sound."
    assert "audio" not in web.get(f"/v1/videos/{job.id}").json()["effective"]
    queued = web.post("/v1/videos", json=SMALL).json()["id"]
    early = web.get(f"/v1/videos/{queued}/content", params={"variant": "audio"})
    assert early.status_code == 404


def test_audio_is_a_boolean_in_json_and_in_forms(client: TestClient) -> None:
    asked = client.post("/v1/videos", json=SMALL | {"audio": False}).json()
    assert asked["requested"]["audio"] is False
    form = {name: str(value) for name, value in SMALL.items()} | {"audio": "false"}
    assert client.post("/v1/videos", data=form).json()["requested"]["audio"] is False
    default = client.post("/v1/videos", json=SMALL).json()
    assert "audio" not in default["requested"]
    refused = client.post("/v1/videos", json=SMALL | {"audio": "loud"})
    assert refused.status_code == 400
    assert refusal(refused)["param"] == "audio"


def test_remix_and_extension_take_audio_along(client: TestClient) -> None:
    asked = client.post("/v1/videos", json=SMALL | {"audio": False}).json()["id"]
    remixed = client.post(f"/v1/videos/{asked}/remix", json={"prompt": "a blue ball"}).json()
    assert remixed["requested"]["audio"] is False
    plain = {"prompt": "a red ball", "video": {"id": asked}, "audio": 3}
    refused = client.post("/v1/videos/extensions", json=plain)
    assert refusal(refused)["param"] == "audio"


def test_plans_tell_audio_and_models_tell_modalities(client: TestClient) -> None:
    """pocket makes none: asking it for none changes nothing."""
    for audio in (True, False):
        plan = client.post("/v1/videos/plan", json=SMALL | {"audio": audio}).json()
        assert plan["audio"] is False
        assert [change["field"] for change in plan["changes"]] == ["sigmas"]
    assert client.get("/v1/models/pocket").json()["modalities"] == ["video"]
    described = client.get("/openapi.json").json()["paths"]["/v1/videos/{id}/content"]["get"]
    assert "audio/mp4" in described["responses"]["200"]["content"]
    (variant,) = [p for p in described["parameters"] if p["name"] == "variant"]
    assert "audio" in variant["schema"]["enum"]
