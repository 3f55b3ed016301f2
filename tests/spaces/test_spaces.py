"""Spaces: their files, how they come to the Hub, and what runs there on hardware of its own."""

import asyncio
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
import yaml
from gradio_client import Client, handle_file
from mcp import ClientSession
from mcp.client.streamable_http import streamablehttp_client
from mcp.types import TextContent
from packaging.requirements import Requirement
from PIL import Image

import filmlet
from filmlet.errors import FolderNotEmpty, InvalidRequest, UnknownModel
from filmlet.jobs.backup import run_with_backups
from filmlet.models import REGISTRY
from filmlet.models.registry import POCKET
from filmlet.settings import Settings
from filmlet.spaces.entrypoint import space_settings
from filmlet.spaces.preload import preload
from filmlet.spaces.space_files import PINS, SpaceConfig, build_files, requirements, write_files
from tests.engine.test_checkpoints import cached
from tests.helpers import fake_hub_spaces as stand_in
from tests.helpers import space_requirements
from tests.helpers.fake_hub import COMMIT
from tests.helpers.fake_hub_spaces import TOKEN, Hub
from tests.helpers.fake_zerogpu import free_port, serve_app
from tests.helpers.servers import wait_until

__all__ = ["cached"]

pytestmark = pytest.mark.filterwarnings("ignore")  # of gradio_client's own
SMALL: dict[str, Any] = {
    "prompt": "a red ball moving left on white", "height_ui": 64, "width_ui": 96,
    "duration_ui": 0.3, "seed_ui": 5, "randomize_seed": False,
}  # fmt: skip
ANN, BEN = "a" * 32, "b" * 32


def front_matter(making: SpaceConfig) -> dict[str, Any]:
    text = build_files(making)["README.md"].decode()
    return dict(yaml.safe_load(text.split("---\n")[1]))


# Files


@pytest.mark.server
def test_installed_package_takes_itself_along(tmp_path: Path) -> None:
    """No index has a release of it."""
    site, space = tmp_path / "site", tmp_path / "space"
    package = Path(filmlet.__file__).parent
    shutil.copytree(package, site / "filmlet", ignore=shutil.ignore_patterns("__pycache__"))
    words = [sys.executable, "-m", "filmlet", "space", "files", str(space)]
    environment = os.environ | {"PYTHONPATH": str(site)}
    subprocess.run(words, check=True, capture_output=True, cwd=tmp_path, env=environment)
    files = {str(file.relative_to(package)) for file in package.rglob("*") if file.is_file()}
    taken = {str(f.relative_to(space / "filmlet")) for f in (space / "filmlet").rglob("*.*")}
    assert taken == {name for name in files if "__pycache__" not in name}
    assert "filmlet" not in (space / "requirements.txt").read_text()


def test_space_is_a_few_lines_the_pinned_set_and_the_package() -> None:
    made = build_files(SpaceConfig())
    assert len(made["app.py"].splitlines()) < 8
    assert {"app.py", "requirements.txt", "README.md", "filmlet/cli/main.py"} <= set(made)
    assert not any("__pycache__" in path for path in made)
    listed = requirements(SpaceConfig()).splitlines()
    assert all(re.fullmatch(r"\S+==\S+|--extra-index-url \S+", line) for line in listed)


@pytest.mark.usefixtures("cached")
def test_its_front_matter_says_how_it_is_built_and_started() -> None:
    matter = front_matter(SpaceConfig("ltxv-2b-0.9.8-distilled", "zero-a10g", "films"))
    assert (matter["sdk"], matter["sdk_version"]) == ("gradio", "6.31.0")
    (wanted,) = matter["preload_from_hub"]
    assert wanted.startswith("Lightricks/LTX-Video ltxv-2b-0.9.8-distilled.safetensors,")
    assert wanted.endswith(COMMIT)
    assert matter["python_version"] == "3.12.12"
    assert matter["suggested_hardware"] == "zero-a10g"
    assert matter["startup_duration_timeout"] == "30m"
    assert (matter["title"], matter["app_file"]) == ("films", "app.py")
    assert len(matter["short_description"]) <= 60
    large = front_matter(SpaceConfig("ltxv-13b-0.9.8-distilled"))
    assert int(large["startup_duration_timeout"].removesuffix("m")) >= 30


def test_torch_comes_in_the_build_that_the_hardware_can_use() -> None:
    assert requirements(SpaceConfig(hardware="cpu-basic")).startswith("--extra-index-url")
    assert "torch==2.11.0\n" in requirements(SpaceConfig(hardware="zero-a10g"))
    on_gpu = requirements(SpaceConfig(hardware="l4x1"))
    assert "torch==2.13.0\n" in on_gpu
    assert "index-url" not in on_gpu


def test_another_source_of_the_package_is_named_and_not_taken_along() -> None:
    made = build_files(SpaceConfig(source="filmlet @ https://example.org/filmlet.whl"))
    assert not any(path.startswith("filmlet/") for path in made)
    assert made["requirements.txt"].decode().endswith("filmlet @ https://example.org/filmlet.whl\n")


def test_bundled_model_needs_no_preload() -> None:
    assert preload(REGISTRY["pocket"]) == []


def test_pins_are_the_tested_set_but_for_what_gradio_holds_back() -> None:
    own = space_requirements.parse_pins(PINS.read_text())
    tested = space_requirements.parse_pins(
        (space_requirements.ROOT / "constraints.txt").read_text()
    )
    differ = {k for k, version in own.items() if tested.get(k, version) != version}
    assert differ <= set(space_requirements.HELD_BACK), (
        "run `python -m tests.helpers.space_requirements`"
    )
    by_name = {name.lower().replace("_", "-"): version for name, version in own.items()}
    for line in space_requirements.list_direct_requirements():
        asked = Requirement(line)
        if asked.name != "torch":
            version = by_name[asked.name.lower().replace("_", "-")]
            assert asked.specifier.contains(version), (
                "run `python -m tests.helpers.space_requirements`"
            )


def test_folder_with_other_things_is_not_written_into(tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(FolderNotEmpty, match="is not empty"):
        write_files(SpaceConfig(), tmp_path)
    with pytest.raises(UnknownModel, match="did you mean pocket"):
        SpaceConfig("pockets")
    with pytest.raises(InvalidRequest, match="A Space has no folder"):
        SpaceConfig(str(POCKET))


# The Hub


@pytest.fixture
def hub() -> Iterator[Hub]:
    made = Hub()
    with serve_app(stand_in.app(made)) as made.url:
        yield made


def create(hub: Hub, *arguments: str, **extra: str) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1"}
    env |= {"HF_HUB_OFFLINE": "0"}
    return subprocess.run(
        [sys.executable, "-m", "filmlet", "space", "create", "ann/films", *arguments],
        env=env | extra, capture_output=True, text=True, check=False,
    )  # fmt: skip


ALL = ("--hardware", "zero-a10g", "--private", "--bucket", "ann/clips", "--variable", "A=1")


@pytest.mark.server
def test_space_is_created_brought_up_to_date_and_then_left_alone(hub: Hub) -> None:
    looked = create(hub, *ALL, "--dry-run")
    assert "would create the private Space ann/films" in looked.stdout
    assert hub.writes == []
    made = create(hub, *ALL, "--secret", "MY_WORD", MY_WORD="plum")
    assert made.returncode == 0, made.stderr
    space = hub.spaces["ann/films"]
    assert (space.private, space.hardware, len(space.commits)) == (True, "zero-a10g", 1)
    assert space.secrets == {"MY_WORD": "plum"}
    assert space.variables == {"FILMLET_MODEL": "pocket", "A": "1"}
    bucket = {"type": "bucket", "source": "ann/clips", "mountPath": "/data"}
    assert (space.volumes, hub.buckets) == ([bucket], {"ann/clips"})
    wanted = build_files(SpaceConfig("pocket", "zero-a10g", "films"))
    assert space.files == wanted
    assert "plum" not in made.stdout
    hub.writes.clear()
    assert "nothing to change" in create(hub, *ALL).stdout
    assert hub.writes == []
    space.files["filmlet/old.py"], space.files["app.py"] = b"", b"pass"
    space.files["mine.txt"] = b"kept"
    again = create(hub)  # what is not said stays: hardware, privacy, bucket
    assert again.stdout.splitlines()[0] == "commit 0 new, 1 changed, 1 deleted files"
    assert space.files == wanted | {"mine.txt": b"kept"}
    assert len(hub.writes) == 1


@pytest.mark.server
@pytest.mark.parametrize(
    ("end", "status", "sentence"),
    [
        ("/create", 403, "Your token may not change ann/films"),
        ("/create", 409, "its name is taken"),
        ("/hardware", 403, "PRO accounts"),
        ("/hardware", 402, "wants to be paid for zero-a10g"),
    ],
)
def test_refusal_of_the_hub_is_one_sentence(hub: Hub, end: str, status: int, sentence: str) -> None:
    hub.refuses[end] = status
    refused = create(hub, "--hardware", "zero-a10g")
    assert refused.returncode == 1
    assert sentence in refused.stderr
    assert "Traceback" not in refused.stderr


@pytest.mark.server
def test_who_is_not_known_to_the_hub_is_told_how_to_be(hub: Hub) -> None:
    assert "run `hf auth login`" in create(hub, HF_TOKEN="hf_wrong").stderr
    away = create(hub, HF_ENDPOINT="http://127.0.0.1:9")
    assert "The Hub cannot be reached" in away.stderr
    assert "There is no variable NOPE" in create(hub, "--secret", "NOPE").stderr
    odd = create(hub, "--variable", "FILMLET_MAX_ACTIVE=many")
    assert "FILMLET_MAX_ACTIVE must be a whole number" in odd.stderr


# What runs there


@contextmanager
def started(
    folder: Path, home: Path, python: str = sys.executable, **extra: str
) -> Iterator[httpx2.Client]:
    """`python app.py`, as the platform starts it; a client with Ann's cookie."""
    port = free_port()
    own = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    process = subprocess.Popen(
        [python, "app.py"], cwd=folder, stderr=subprocess.DEVNULL,
        env=own | {"SPACE_ID": "ann/films", "SYSTEM": "spaces", "GRADIO_SERVER_PORT": port,
                   "GRADIO_SERVER_NAME": "127.0.0.1", "FILMLET_HOME": str(home)} | extra,
    )  # fmt: skip
    cookies = {"filmlet_visitor": ANN}
    with httpx2.Client(base_url=f"http://127.0.0.1:{port}", cookies=cookies, timeout=60) as client:
        try:
            wait_until(lambda: _answers(client))
            yield client
        finally:
            process.terminate()
            process.wait(30)


def _answers(client: httpx2.Client) -> bool:
    try:
        return client.get("/ready").status_code == 200
    except httpx2.TransportError:
        return False


@pytest.mark.server
def test_it_makes_clips_and_keeps_them_where_a_bucket_is(tmp_path: Path) -> None:
    folder, bucket = tmp_path / "space", tmp_path / "bucket"
    write_files(SpaceConfig(), folder)
    stored = {"FILMLET_STORAGE_URL": str(bucket)}
    with started(folder, tmp_path / "one", **stored) as ann:
        address = str(ann.base_url).rstrip("/")
        visitor = {"cookie": f"filmlet_visitor={ANN}"}
        program = Client(
            str(ann.base_url), verbose=False, headers=visitor, download_files=str(tmp_path)
        )
        path, seed = program.predict(**SMALL, api_name="/text_to_video")
        assert (Path(path).suffix, seed) == (".mp4", 5)
        begin_from_a_picture_without_a_cookie(address, tmp_path)
        (mine,) = ann.get("/v1/videos").json()["data"]
        assert ann.get("/session").json()["keeps"] is True
        page = ann.get("/")
        assert "https://huggingface.co" in page.headers["content-security-policy"]
        other = {"cookie": f"filmlet_visitor={BEN}"}
        assert httpx2.get(f"{address}/v1/videos", headers=other).json()["data"] == []
        there = f"{address}/v1/videos/{mine['id']}"
        assert httpx2.get(there, headers=other).status_code == 404
    shutil.rmtree(tmp_path / "one")  # a Space's own disk is new at each start
    with started(folder, tmp_path / "two", **stored) as ann:
        (still,) = ann.get("/v1/videos").json()["data"]
        assert still["id"] == mine["id"]
        clip = ann.get(f"/v1/videos/{mine['id']}/content")
        assert clip.content == Path(path).read_bytes()


def begin_from_a_picture_without_a_cookie(address: str, folder: Path) -> None:
    """Programs keep no cookies: what they upload and what they get is known by random names."""
    picture = folder / "blue.png"
    Image.new("RGB", (96, 64), "blue").save(picture)
    program = Client(address, verbose=False, download_files=str(folder))
    path, _ = program.predict(
        **SMALL, input_image_filepath=handle_file(picture), api_name="/image_to_video"
    )
    assert Path(path).stat().st_size > 1000
    stranger = httpx2.Client(base_url=address, timeout=60)
    with picture.open("rb") as file:
        (id,) = stranger.post("/gradio_api/upload", files={"files": file}).json()

    async def talk() -> str:
        tools = f"{address}/gradio_api/mcp/"
        async with (
            streamablehttp_client(tools) as (read, write, _),
            ClientSession(read, write) as session,
        ):
            await session.initialize()
            asked = SMALL | {"input_image_filepath": f"{address}/gradio_api/file={id}"}
            answer = await session.call_tool("films_image_to_video", asked)
            assert isinstance(answer.content[0], TextContent)
            return answer.content[0].text

    stranger.cookies.clear()
    assert stranger.get(asyncio.run(talk())).headers["content-type"] == "video/mp4"
    stranger.close()


@pytest.mark.server
def test_without_a_bucket_the_page_says_so(tmp_path: Path) -> None:
    plain = space_settings(Settings(home=tmp_path), "pocket", tmp_path / "none")
    assert plain.storage_url is None
    (tmp_path / "data").mkdir()
    attached = space_settings(Settings(home=tmp_path), "pocket", tmp_path / "data")
    assert attached.storage_url == str(tmp_path / "data" / "filmlet")
    named = space_settings(Settings(storage_url="s3://b", worker="w"), "pocket", tmp_path / "data")
    assert (named.storage_url, named.worker, named.max_active) == ("s3://b", "w", 4)


def test_copy_is_made_only_when_something_changed(tmp_path: Path) -> None:
    from filmlet.core.request import build_request
    from filmlet.jobs import Queue
    from filmlet.jobs.backup import DatabaseBackup

    settings = Settings(home=tmp_path / "home", storage_url=str(tmp_path / "bucket"))
    queue = Queue(settings)
    copy = tmp_path / "bucket" / "queue.sqlite"
    snapshot = DatabaseBackup(settings)
    seen = snapshot.save()
    before = copy.stat().st_mtime_ns
    assert snapshot.save(seen) == seen
    assert copy.stat().st_mtime_ns == before
    queue.submit(build_request("a red ball"))
    assert snapshot.save(seen) != seen
    queue.close()
    with run_with_backups(Settings(home=tmp_path / "new", storage_url=str(tmp_path / "bucket"))):
        again = Queue(Settings(home=tmp_path / "new", storage_url=str(tmp_path / "bucket")))
        assert len(again.list_jobs()) == 1
        again.close()


@pytest.mark.slow
def test_it_installs_into_a_clean_environment_as_the_platform_does_and_makes_a_clip(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "space"
    write_files(SpaceConfig(), folder)
    clean = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", str(clean)], check=True)
    subprocess.run(
        [str(clean / "bin" / "pip"), "install", "--quiet", "--retries", "0",
         "-r", "requirements.txt",
         f"gradio[oauth,mcp]=={front_matter(SpaceConfig())['sdk_version']}",
         "uvicorn>=0.14.0", "websockets>=10.4", "spaces"],
        cwd=folder, check=True,
    )  # fmt: skip
    script = (
        "from gradio_client import Client; import sys;"
        f"print(Client(sys.argv[1], verbose=False).predict(**{SMALL!r}, api_name='/text_to_video'))"
    )
    here = str(clean / "bin" / "python")
    with started(folder, tmp_path / "home", here) as client:
        run = subprocess.run(
            [here, "-c", script, str(client.base_url)], capture_output=True, text=True, check=False
        )
        assert ".mp4" in run.stdout, run.stderr
