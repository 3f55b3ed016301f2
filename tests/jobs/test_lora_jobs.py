"""LoRAs through the queue and the API: files travel with their job, clients name the Hub's."""

from dataclasses import replace
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from filmlet.errors import FilmletError, InvalidRequest
from filmlet.jobs import Queue, Status, SubmitOptions
from filmlet.jobs.worker import Worker
from filmlet.settings import Settings
from tests.engine.torch.test_lora import LAYERS, diffusers, matrices, save, style
from tests.helpers.queues import Start, ask, is_over, wait, without_queue
from tests.jobs.test_guided_jobs import folders, refusal
from tests.models.test_lora_files import hub

__all__ = ["hub", "style"]

sqlite = pytest.mark.parametrize("settings", ["sqlite"], indirect=True)


@sqlite
def test_job_needs_no_lora_file_but_its_own_and_equals_the_clip_made_at_once(
    tiny: Path, style: str, tmp_path: Path, queue: Queue, start: Start
) -> None:
    request = ask(tiny, loras=[f"{style}:0.5"])
    job, plain = queue.submit(request), queue.submit(ask(tiny))
    (lora,) = job.requested["loras"]
    content = Path(style).read_bytes()
    Path(style).unlink()
    assert (queue.storage.local / job.id / lora["source"]).read_bytes() == content
    varied = queue.remix(job.id, "the red ball", SubmitOptions())
    start()
    done = wait(queue, job.id, is_over)
    assert done.status == Status.COMPLETED, done.failure
    assert done.effective
    (used,) = done.effective["loras"]
    assert (used["file"], used["strength"]) == (lora["source"], 0.5)
    assert used["layers"] == len(LAYERS)
    Path(style).write_bytes(content)
    with queue.storage.open(job.id, "clip.mp4") as clip:
        assert clip.read() == without_queue(request, done, tmp_path / "once.mp4")
    unchanged = wait(queue, plain.id, is_over)
    with queue.storage.open(plain.id, "clip.mp4") as clip:
        assert clip.read() == without_queue(ask(tiny), unchanged, tmp_path / "plain.mp4")
    assert wait(queue, varied.id, is_over).status == Status.COMPLETED


@sqlite
def test_draft_with_a_lora_is_refined_from_its_latents_by_a_worker_elsewhere(
    tiny_two: Path, style: str, settings: Settings, tmp_path: Path, start: Start
) -> None:
    away = replace(settings, storage_url=str(tmp_path / "storage"))
    queue = Queue(away)
    size = {"size": "128x64"}
    draft = queue.submit(ask(tiny_two, draft=True, loras=[style], **size))
    plain = queue.submit(ask(tiny_two, draft=True, **size))
    Path(style).unlink()
    assert folders(queue) == []
    start(FILMLET_STORAGE_URL=str(tmp_path / "storage"))
    assert wait(queue, draft.id, is_over).status == Status.COMPLETED
    done = wait(queue, queue.refine(draft.id, SubmitOptions()).id, is_over)
    assert done.status == Status.COMPLETED, done.failure
    assert {record.stage.value: record.reused for record in done.stages}["denoise"]
    other = wait(queue, queue.refine(plain.id, SubmitOptions()).id, is_over)
    clips = [queue.storage.open(job.id, "clip.mp4") for job in (done, other)]
    assert clips[0].read() != clips[1].read()
    queue.close()


@sqlite
def test_hub_name_stays_a_name_and_what_is_refused_leaves_nothing(
    tiny: Path, style: str, hub: Path, queue: Queue
) -> None:
    save(hub / "a.safetensors", diffusers(matrices()))
    job = queue.submit(ask(tiny, loras=["owner/name:0.5", style]))
    assert job.requested["loras"][0] == {"source": "owner/name", "strength": 0.5}
    assert [p.name for p in (queue.storage.local / job.id).iterdir()] == [
        job.requested["loras"][1]["source"]
    ]
    with pytest.raises(InvalidRequest, match="no file"):
        queue.submit(ask(tiny, loras=[style, "none.safetensors"]))
    assert folders(queue) == [job.id]


def test_clients_name_loras_of_the_hub_in_json_and_in_forms(client: TestClient, hub: Path) -> None:
    save(hub / "a.safetensors", diffusers(matrices()))
    half = {"source": "owner/name", "strength": 0.5}
    whole = {"source": "owner/name/a.safetensors", "strength": 1.0}
    both = ["owner/name:0.5", "owner/name/a.safetensors"]
    for sent, expected in (
        ({"json": {"prompt": "a", "loras": [half, whole]}}, [half, whole]),
        ({"json": {"prompt": "a", "loras": both}}, [half, whole]),
        ({"data": {"prompt": "a", "loras": both}}, [half, whole]),
        ({"data": {"prompt": "a", "loras[]": both}}, [half, whole]),
        ({"data": {"prompt": "a", "loras": both[0]}}, [half]),
    ):
        answer = client.post("/v1/videos", **sent)  # type: ignore[arg-type]
        assert answer.status_code == 200, answer.text
        assert answer.json()["requested"]["loras"] == expected
    assert client.post("/v1/videos/plan", json={"prompt": "a", "loras": both}).status_code == 200
    plain = client.post("/v1/videos", json={"prompt": "a", "loras": []}).json()
    assert "loras" not in plain["requested"]


def test_no_file_of_the_server_is_a_lora_for_a_client(
    client: TestClient, style: str, hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    del hub
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "c.safetensors").write_bytes(Path(style).read_bytes())
    for source in (style, "style.safetensors", "./style.safetensors", "../x/a.safetensors"):
        for loras in ([source], [{"source": source}]):
            for path in ("/v1/videos", "/v1/videos/plan"):
                answer = client.post(path, json={"prompt": "a", "loras": loras})
                assert refusal(answer) == ("invalid_loras", "loras")
                assert "owner/name" in answer.text
    for wrong in ([7], "owner/name:x", ["owner/name"] * 9, [{"source": "owner/name", "more": 1}]):
        answer = client.post("/v1/videos", json={"prompt": "a", "loras": wrong})
        assert answer.status_code == 400
        assert answer.json()["error"]["param"].startswith("loras")
    assert client.get("/v1/videos").json()["data"] == []
    # Three words are a file of the Hub, for the worker to fetch, even where a path is the same.
    answer = client.post("/v1/videos", json={"prompt": "a", "loras": ["a/b/c.safetensors"]})
    assert answer.json()["requested"]["loras"][0]["source"] == "a/b/c.safetensors"


@sqlite
def test_queued_job_calls_files_as_they_were_sent(
    tiny: Path, style: str, tmp_path: Path, queue: Queue
) -> None:
    sent = tmp_path / "my style.safetensors"
    sent.write_bytes(Path(style).read_bytes())
    job = queue.submit(ask(tiny, loras=[str(sent)]))
    (stored,) = (file.name for file in (queue.storage.local / job.id).iterdir())
    varied = queue.remix(job.id, "the red ball", SubmitOptions())
    for id in (job.id, varied.id):
        (queue.storage.local / id / stored).write_bytes(b"{}")  # as a failing disk might
        Worker(queue.settings, queue=queue).run_job(id)
        failure = queue.get_job(id).failure
        assert failure
        assert failure.code in ("checkpoint_damaged", "invalid_loras")
        assert "my style.safetensors" in failure.message
        assert "lora-" not in failure.message
    with pytest.raises(FilmletError, match="my style") as refused:
        queue.remix(job.id, "a ball", SubmitOptions())
    assert "lora-" not in str(refused.value)


@sqlite
def test_queued_job_with_a_lora_of_another_model_calls_it_as_it_was_sent(
    tiny: Path, tmp_path: Path, queue: Queue
) -> None:
    wide = diffusers(matrices(layers={"transformer_blocks.0.attn1.to_q": (64, 64)}))
    sent = save(tmp_path / "wide.safetensors", wide)
    job = queue.submit(ask(tiny, loras=[sent])).id
    Worker(queue.settings, queue=queue).run_job(job)
    failure = queue.get_job(job).failure
    assert failure
    assert failure.message.startswith("loras: wide.safetensors was made for another model")
