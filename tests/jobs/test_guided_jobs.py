"""Guides through the queue and the API: files that travel with their job and with nothing else."""

import base64
import io
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote

import httpx2
import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from filmlet.api import create_app
from filmlet.api.schemas import VideoCreate
from filmlet.core.guide import Guide
from filmlet.errors import InvalidRequest, JobConflict
from filmlet.jobs import ApiKeyStore, Queue, Status, SubmitOptions
from filmlet.jobs.database import Database
from filmlet.jobs.job_reader import workload_size
from filmlet.media import probe
from filmlet.pipeline.plan import make_plan
from filmlet.settings import Settings
from tests.helpers.given_files import four_colors, heic_of_tiles, make_png, song_with_cover
from tests.helpers.queues import Start, ask, is_over, wait, without_queue
from tests.helpers.servers import SMALL, Running

sqlite = pytest.mark.parametrize("settings", ["sqlite"], indirect=True)
pytestmark = pytest.mark.usefixtures("forked_decoders")


def picture(colour: str = "red", form: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (64, 64), colour).save(file, form)
    return file.getvalue()


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "mine.png"
    path.write_bytes(picture())
    return path


def folders(queue: Queue) -> list[str]:
    return sorted(path.name for path in queue.storage.local.iterdir())


@sqlite
def test_guided_job_needs_no_file_but_its_own_and_equals_the_clip_made_at_once(
    tiny: Path, image: Path, tmp_path: Path, queue: Queue, start: Start
) -> None:
    request = ask(tiny, image=image)
    job = queue.submit(request)
    name = probe(image).name
    image.unlink()
    assert job.requested["guides"] == ({"file": name, "frame": 0, "strength": 1.0, "frames": None},)
    varied = queue.remix(job.id, "the red ball", SubmitOptions())
    assert (queue.storage.local / varied.id / name).exists()
    start()
    done = wait(queue, job.id, is_over)
    assert done.status == Status.COMPLETED, done.failure
    assert done.effective
    assert done.effective["guides"] == [{"file": name, "frame": 0, "strength": 1.0, "frames": None}]
    image.write_bytes(picture())
    with queue.storage.open(job.id, "clip.mp4") as clip:
        assert clip.read() == without_queue(request, done, tmp_path / "once.mp4")
    assert wait(queue, varied.id, is_over).status == Status.COMPLETED
    extended = queue.extend(job.id, ask(tiny, frames=8), SubmitOptions())
    queue.delete(job.id)
    assert job.id not in folders(queue)
    longer = wait(queue, extended.id, is_over)
    assert longer.status == Status.COMPLETED, longer.failure
    assert (longer.source, longer.shape and longer.shape.frames) == (job.id, 9 + 8)
    with queue.storage.open(longer.id, "clip.mp4") as clip:
        (tmp_path / "longer.mp4").write_bytes(clip.read())
    assert probe(tmp_path / "longer.mp4").frames == 17


@sqlite
def test_worker_elsewhere_finds_the_files_in_the_storage(
    tiny: Path, image: Path, tmp_path: Path, settings: Settings, start: Start
) -> None:
    store = str(tmp_path / "store")
    queue = Queue(replace(settings, home=settings.home, storage_url=store))
    job = queue.submit(ask(tiny, image=image))
    name = probe(image).name
    image.unlink()
    assert folders(queue) == []
    assert (tmp_path / "store" / job.id / name).exists()
    start(FILMLET_STORAGE_URL=store)
    assert wait(queue, job.id, is_over).status == Status.COMPLETED
    longer = queue.extend(job.id, ask(tiny), SubmitOptions())
    assert [p.suffix for p in (tmp_path / "store" / longer.id).iterdir()] == [".mp4"]
    assert (tmp_path / "store" / longer.id / "clip.mp4").exists() is False
    assert wait(queue, longer.id, is_over).status == Status.COMPLETED
    queue.delete(longer.id)
    assert not (tmp_path / "store" / longer.id).exists()
    queue.close()


@sqlite
def test_what_comes_to_no_job_leaves_no_files(tiny: Path, image: Path, queue: Queue) -> None:
    first = queue.submit(ask(tiny, image=image), SubmitOptions(idempotency_key="one"))
    assert queue.submit(ask(tiny, image=image), SubmitOptions(idempotency_key="one")).id == first.id
    with pytest.raises(InvalidRequest):
        queue.submit(ask(tiny, last_image=image))
    with pytest.raises(InvalidRequest):
        queue.submit(ask(tiny, image=image.parent / "none.png"))
    with pytest.raises(JobConflict, match="no clip to extend"):
        queue.extend(first.id, ask(tiny), SubmitOptions())
    assert folders(queue) == [first.id]


@sqlite
def test_pictures_that_stand_beside_the_clip_are_part_of_its_cost(
    tiny_guided: Path, image: Path, settings: Settings
) -> None:
    del settings
    plain = workload_size(make_plan(ask(tiny_guided)))
    first, last = (
        workload_size(make_plan(ask(tiny_guided, guides=[Guide(str(image), frame)])))
        for frame in (0, -1)
    )
    assert (first.tokens, last.tokens - plain.tokens) == (plain.tokens, 4)
    assert last.pixels == plain.pixels


# The API


@pytest.fixture
def home(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path / "home", worker="own", max_per_minute=10_000)


@pytest.fixture
def client(home: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[TestClient]:
    """The app without a worker, its temporary files in a folder of their own."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    with TestClient(create_app(home), raise_server_exceptions=False) as client:
        yield client
    assert list((tmp_path / "temporary").iterdir()) == []


def refusal(answer: httpx2.Response) -> tuple[str, str]:
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    return error["code"], error["param"]


def data_url(data: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(data).decode()


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
def test_uploaded_picture_becomes_the_first_frame_under_a_name_of_ours(
    client: TestClient, home: Settings, form: str
) -> None:
    files = {"input_reference": ("../../x.png", picture(form=form), "image/png")}
    video = client.post("/v1/videos", data={"prompt": "a"}, files=files).json()
    (guide,) = video["requested"]["guides"]
    assert guide["file"].endswith(form.lower())
    assert (guide["frame"], guide["strength"]) == (0, 1.0)
    assert (home.home / "jobs" / video["id"] / guide["file"]).exists()
    assert [p.name for p in home.home.glob("jobs/*/*")] == [guide["file"]]


def test_picture_comes_in_a_data_url_too_in_json_and_in_forms(client: TestClient) -> None:
    url = data_url(picture())
    big = io.BytesIO()
    Image.effect_noise((900, 900), 90).save(big, "PNG")
    for sent in (
        {"json": {"prompt": "a", "input_reference": {"image_url": url}}},
        {"json": {"prompt": "a", "input_reference": url}},
        {"json": {"prompt": "a", "input_reference": {"image_url": data_url(big.getvalue())}}},
        {"data": {"prompt": "a", "input_reference[image_url]": data_url(big.getvalue())}},
    ):
        answer = client.post("/v1/videos", **sent)
        assert answer.status_code == 200, answer.text
        assert len(answer.json()["requested"]["guides"]) == 1
    plain = client.post("/v1/videos", json={"prompt": "a", "input_reference": None}).json()
    assert "guides" not in plain["requested"]


def test_what_of_an_upload_is_not_done_is_in_its_plan(client: TestClient, tmp_path: Path) -> None:
    heic = heic_of_tiles(four_colors(400, 300))
    files = {"input_reference": ("a.heic", heic)}
    plan = client.post("/v1/videos/plan", data={"prompt": "a", "size": "256x192"}, files=files)
    assert plan.json()["changes"] == []
    deep = make_png(np.zeros((192, 256), np.uint16))
    files = {"input_reference": ("a.png", deep)}
    plan = client.post("/v1/videos/plan", data={"prompt": "a", "size": "256x192"}, files=files)
    assert [change["field"] for change in plan.json()["changes"]] == ["guide_1_bits"]
    files = {"input_reference": ("a.heic", heic[:-400])}
    answer = client.post("/v1/videos", data={"prompt": "a"}, files=files)
    assert refusal(answer) == ("invalid_input_reference", "input_reference")
    song = song_with_cover(tmp_path / "song.mp4")
    answer = client.post(
        "/v1/videos/extensions", data={"prompt": "a"}, files={"video": ("a", song.read_bytes())}
    )
    assert refusal(answer) == ("invalid_video", "video")
    assert answer.json()["error"]["message"].startswith("video: there are no moving pictures")


def test_base64_is_read_as_programs_write_it(client: TestClient) -> None:
    data = picture()
    plain = base64.b64encode(data).decode()
    for text in (
        base64.encodebytes(data).decode(), base64.encodebytes(data).decode().replace("\n", "\r\n"),
        plain.rstrip("="), base64.urlsafe_b64encode(data).decode(), quote(plain, safe=""),
    ):  # fmt: skip
        for head in ("data:image/png;base64,", "DATA:image/png;charset=utf-8;BASE64,"):
            sent = {"prompt": "a", "input_reference": {"image_url": head + text}}
            answer = client.post("/v1/videos", json=sent)
            assert answer.status_code == 200, answer.text


def test_null_is_a_field_that_is_not_given(client: TestClient) -> None:
    fields = client.post("/v1/videos", json={"prompt": "a", "seed": 1}).json()["requested"]
    names = set(VideoCreate.model_fields) - {"prompt"}
    answer = client.post("/v1/videos", json={"prompt": "a"} | dict.fromkeys(names) | {"seed": 1})
    assert answer.status_code == 200, answer.text
    assert answer.json()["requested"] == fields
    assert client.post("/v1/videos", json={"prompt": None}).status_code == 400
    answer = client.post("/v1/videos", json={"prompt": "a", "no_such_field": None})
    assert answer.status_code == 400


@pytest.mark.parametrize(
    ("reference", "says"),
    [
        ({"image_url": "http://127.0.0.1:1/a.png"}, "no connection"),
        ({"image_url": "https://example.com/a.png"}, "no connection"),
        ({"image_url": "file:///etc/passwd"}, "no connection"),
        ("/etc/passwd", "no connection"),
        ({"file_id": "file-1"}, "keeps no files"),
        ({"image_url": "data:image/png;base64,%%%"}, "base64"),
        ({"image_url": "data:image/png;base64," + "AAAA"}, "not a whole"),
        ({"image_url": "data:image/png;base64,"}, "0 bytes"),
        ({"image_url": 7}, "must be a file"),
        ([1], "must be a file"),
        ({}, "must be a file"),
    ],
)
def test_reference_that_is_no_picture_is_refused(
    client: TestClient, reference: object, says: str
) -> None:
    answer = client.post("/v1/videos", json={"prompt": "a", "input_reference": reference})
    assert refusal(answer) == ("invalid_input_reference", "input_reference")
    assert says in answer.text
    assert client.get("/v1/videos").json()["data"] == []


def test_what_pocket_cannot_be_guided_by_is_named_as_it_was_sent(client: TestClient) -> None:
    files = {name: ("a.png", picture()) for name in ("input_reference", "last_reference")}
    answer = client.post("/v1/videos", data={"prompt": "a"}, files=files)
    assert refusal(answer) == ("not_offered", "last_reference")
    answer = client.post("/v1/videos/extensions", data={"prompt": "a"})
    assert refusal(answer) == ("invalid_video", "video")
    files = {"video": ("a.mp4", picture())}
    answer = client.post("/v1/videos/extensions", data={"prompt": "a"}, files=files)
    assert refusal(answer) == ("invalid_video", "video")
    for field in ("guides", "extend"):
        answer = client.post("/v1/videos", json={"prompt": "a", field: "/etc/passwd"})
        assert refusal(answer) == ("unknown_parameter", field)
    assert client.get("/v1/models/pocket").json()["guides"] == "first_frame"
    described = client.get("/openapi.json").json()["components"]["schemas"]
    form = described["VideoCreateForm"]["properties"]
    assert {"prompt", "input_reference", "last_reference"} <= set(form)


def test_only_ones_own_finished_videos_can_be_extended(home: Settings) -> None:
    database = Database(home)
    keys = ApiKeyStore(database, home)
    ann, bob = keys.add("ann"), keys.add("bob")
    with TestClient(create_app(home)) as client:

        def extend(secret: str, video: object) -> httpx2.Response:
            return client.post(
                "/v1/videos/extensions", json={"prompt": "b", "video": video},
                headers={"authorization": f"Bearer {secret}"},
            )  # fmt: skip

        headers = {"authorization": f"Bearer {ann.secret}"}
        job = client.post("/v1/videos", json=SMALL, headers=headers).json()["id"]
        assert extend(bob.secret, {"id": job}).status_code == 404
        assert refusal(extend(ann.secret, {"id": job}))[0] == "job_conflict"
        for wrong in ("clip.mp4", {"id": 7}, {}, None):
            assert refusal(extend(ann.secret, wrong)) == ("invalid_video", "video")
        assert extend(ann.secret, {"id": "../../etc"}).status_code == 404
    database.close()


def test_server_makes_guided_clips_and_extends_its_own_and_others(
    shared_server: Running, tmp_path: Path
) -> None:
    client = shared_server.client
    fields = {name: str(value) for name, value in SMALL.items()}
    files = {"input_reference": ("a.png", picture())}
    first = client.post("/v1/videos", data=fields, files=files).json()["id"]
    assert shared_server.wait_over(first)["status"] == "completed"
    own = client.post(
        "/v1/videos/extensions",
        json={"prompt": "a red ball", "frames": 8, "steps": 2, "video": {"id": first}},
    ).json()
    assert own["remixed_from_video_id"] == first
    assert float(own["seconds"]) == pytest.approx(17 / 24, abs=1e-3)
    assert (own["size"], own["model"]) == ("64x64", "pocket")
    assert shared_server.wait_over(own["id"])["status"] == "completed"
    longer = tmp_path / "longer.mp4"
    longer.write_bytes(client.get(f"/v1/videos/{own['id']}/content").content)
    assert probe(longer).frames == 17
    sent = client.post(
        "/v1/videos/extensions", data={"prompt": "a red ball", "seconds": "0.5", "steps": "2"},
        files={"video": ("mine.mp4", longer.read_bytes())},
    ).json()  # fmt: skip
    assert float(sent["seconds"]) == pytest.approx(29 / 24, abs=1e-3)
    assert shared_server.wait_over(sent["id"])["status"] == "completed"
    remix = client.post(f"/v1/videos/{sent['id']}/remix", json={"prompt": "a blue ball"}).json()
    assert remix["seconds"] == sent["seconds"]
    assert shared_server.wait_over(remix["id"])["status"] == "completed"
