"""What a clip needs is checked before anything of its model is fetched."""

import shutil
from collections import namedtuple
from pathlib import Path

import pytest
from huggingface_hub import constants

from filmlet.core.events import drain
from filmlet.core.request import build_request
from filmlet.errors import DiskFull, FilmletError, MissingDependency, OutOfMemory
from filmlet.jobs import Queue
from filmlet.models import download
from filmlet.pipeline import requirements
from filmlet.pipeline.plan import make_plan
from filmlet.pipeline.prepare import prepare
from filmlet.settings import Settings

REQUEST = build_request("a ship", model="ltxv-2b-0.9.8-distilled", size="64x64", frames=9)
Usage = namedtuple("Usage", "total used free")


@pytest.fixture(autouse=True)
def no_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty cache, and no process that fetches."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(download, "CHILD", ("/no/such/program",))


def refusals(home: Path) -> list[FilmletError]:
    """What Python and the queue say of the same request."""
    settings = Settings(home=home)
    queue = Queue(settings)
    found = []
    try:
        for attempt in (
            lambda: drain(prepare(make_plan(REQUEST), settings)),
            lambda: queue.submit(REQUEST),
        ):
            with pytest.raises(FilmletError) as caught:
                attempt()
            found.append(caught.value)
        assert queue.list_jobs() == []
    finally:
        queue.close()
    return found


def test_missing_torch_is_said_before_the_download(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(requirements, "has_torch", lambda: False)
    for error in refusals(tmp_path):
        assert isinstance(error, MissingDependency)
        assert "upsampler needs torch" in str(error)


def test_pocket_needs_no_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requirements, "has_torch", lambda: False)
    plan = make_plan(build_request("a red circle"))
    requirements.check_requirements(plan, Settings(home=tmp_path, device="cpu"))
    with pytest.raises(MissingDependency, match="FILMLET_ENGINE"):
        requirements.check_requirements(plan, Settings(home=tmp_path, engine="torch"))


def test_too_little_memory_is_said_before_the_download(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(requirements, "total_memory", lambda: 10**9)
    for error in refusals(tmp_path):
        assert isinstance(error, OutOfMemory)
        assert "this machine has 1.0 GB" in str(error)
    settings = Settings(home=tmp_path, offload="sequential")
    requirements.check_requirements(make_plan(REQUEST), settings)


def test_full_disk_is_said_when_a_job_is_submitted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10**11, 10**11 - 10**9, 10**9))
    queue = Queue(Settings(home=tmp_path))
    try:
        with pytest.raises(DiskFull, match=r"25\.9 GB are to be fetched.* 1\.0 GB left"):
            queue.submit(REQUEST)
    finally:
        queue.close()
