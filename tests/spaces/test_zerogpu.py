"""A Space on ZeroGPU: the real `spaces` package asks, forks, pickles and gives back."""

import os
import subprocess
import sys
import time
from base64 import b64encode
from collections.abc import Iterator
from dataclasses import dataclass, replace
from multiprocessing import Pipe
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import httpx2
import pytest
from gradio_client import Client

from filmlet.core.events import Frames, Progress, Stage
from filmlet.pipeline.plan import make_plan
from filmlet.settings import Settings
from filmlet.spaces.space_files import SpaceConfig, write_files
from tests.helpers import fake_zerogpu as stand_in
from tests.helpers.browsers import Windows, browser, needs_chromium
from tests.helpers.clips import prepare_run
from tests.helpers.fake_zerogpu import Lender, free_port, serve_app
from tests.helpers.queues import ask
from tests.helpers.servers import wait_until
from tests.spaces.test_spaces import ANN, SMALL

__all__ = ["browser"]

pytest.importorskip("spaces")
pytestmark = pytest.mark.filterwarnings("ignore")  # of `spaces` and the clients
LARGE = SMALL | {"height_ui": 512, "width_ui": 512, "duration_ui": 4}
QUOTA = b64encode(b'{"user": "ann"}').decode().rstrip("=")


@dataclass
class Zero:
    """A Space that borrows, and its lender."""

    lender: Lender
    client: httpx2.Client
    folder: Path

    def program(self, **headers: str) -> Client:
        cookie = {"cookie": f"filmlet_visitor={ANN}"}
        return Client(
            str(self.client.base_url), verbose=False, headers=cookie | headers,
            download_files=str(self.folder / "down"),
        )  # fmt: skip

    def videos(self) -> list[dict[str, Any]]:
        return list(self.client.get("/v1/videos").json()["data"])


@pytest.fixture(scope="module")
def zero(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zero]:
    folder, lender = tmp_path_factory.mktemp("zero"), Lender()
    write_files(SpaceConfig(hardware="zero-a10g", source="filmlet"), folder)
    port = free_port()
    root = Path(__file__).parents[2]
    env = {
        "SPACE_ID": "ann/films", "SYSTEM": "spaces", "SPACES_ZERO_GPU": "true",
        "GRADIO_SERVER_NAME": "127.0.0.1", "GRADIO_SERVER_PORT": port, "FILMLET_DEVICE": "cpu",
        "FILMLET_HOME": str(folder / "home"), "PYTHONPATH": f"{root / 'src'}:{root}",
    }  # fmt: skip
    with serve_app(stand_in.app(lender)) as lender.url:
        env["SPACES_ZERO_DEVICE_API_URL"] = lender.url
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.helpers.fake_zerogpu"], cwd=folder, env=os.environ | env,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        url, cookies = f"http://127.0.0.1:{port}", {"filmlet_visitor": ANN}
        with httpx2.Client(base_url=url, cookies=cookies, timeout=60) as client:
            wait_until(lambda: _answers(client) or process.poll() is not None)
            assert process.poll() is None
            yield Zero(lender, client, folder)
        process.terminate()
        assert process.wait(60) == 0


def _answers(client: httpx2.Client) -> bool:
    try:
        return client.get("/ready").status_code == 200
    except httpx2.TransportError:
        return False


@pytest.fixture(autouse=True)
def willing(request: pytest.FixtureRequest) -> None:
    """A lender that lends, whatever the last test made it do."""
    if "zero" in request.fixturenames:
        request.getfixturevalue("zero").lender.refusal = None


def test_its_start_is_reported_so_that_the_platform_knows_the_calls(zero: Zero) -> None:
    assert len(zero.lender.asked("startup-report")) == 1


def test_clip_borrows_one_gpu_for_as_long_as_the_cost_model_says(zero: Zero) -> None:
    before = len(zero.lender.asked("schedule"))
    program = zero.program(**{"x-ip-token": f"a.{QUOTA}.c"})
    path, seed = program.predict(**SMALL, api_name="/text_to_video")
    assert seed == 5
    (call,) = zero.lender.asked("schedule")[before:]
    assert call["token"] == f"a.{QUOTA}.c", "it is not this visitor's time"
    assert 20 <= int(call["durationSeconds"]) <= 300
    assert zero.lender.asked("release")[-1]["fail"] == "false"
    assert zero.lender.lent == 0
    made = zero.videos()[0]
    assert [s["stage"] for s in made["stages"]] == ["encode", "load", "denoise", "decode", "mux"]
    assert Path(path).read_bytes() == plain(zero.folder, made)


def plain(folder: Path, made: dict[str, Any]) -> bytes:
    """The same clip, made at once and in one process."""

    settings = {"size": made["size"], "seconds": 0.3, "frames": None, "steps": None}
    request = ask(Path("pocket"), str(made["prompt"]), seed=5, **settings)
    work = prepare_run(make_plan(request), Settings(device="cpu"), made["effective"]["dtype"])
    for _ in work.write(folder / "plain.mp4", force=True):
        pass
    return (folder / "plain.mp4").read_bytes()


@pytest.mark.parametrize(
    ("refusal", "signed_in", "code", "sentence"),
    [
        ("quota", True, "gpu_quota_used", "you have 20 s left. More comes in 1:00:00."),
        ("quota", False, "gpu_quota_used", "sign in"),
        ("duration", True, "gpu_too_long", "Make it shorter or smaller"),
        ("busy", True, "gpu_busy", "No GPU became free"),
        ("none", True, "gpu_busy", "No GPU became free"),
    ],
)
def test_refusal_of_zerogpu_is_a_plain_sentence(
    zero: Zero, refusal: str, signed_in: bool, code: str, sentence: str
) -> None:
    zero.lender.refusal = refusal
    program = zero.program(**({"x-ip-token": f"a.{QUOTA}.c"} if signed_in else {}))
    with pytest.raises(Exception, match=sentence):
        program.predict(**SMALL, api_name="/text_to_video")
    failed = zero.videos()[0]
    assert (failed["status"], failed["error"]["code"]) == ("failed", code)


def test_program_that_cancels_gives_the_gpu_back(zero: Zero) -> None:
    call = zero.program().submit(**LARGE, api_name="/text_to_video")
    wait_until(lambda: zero.lender.lent == 1)
    call.cancel()
    wait_until(lambda: zero.lender.lent == 0, 20)
    wait_until(lambda: zero.videos()[0]["error"] is not None)
    assert zero.videos()[0]["error"]["code"] == "cancelled"


def test_plain_request_is_told_where_clips_are_made(zero: Zero) -> None:
    answer = zero.client.post("/v1/videos", json={"prompt": "a red ball"})
    assert answer.status_code == 400
    assert "gradio_client" in answer.json()["error"]["message"]


def test_gradios_own_routes_are_closed_and_its_events_open_no_path(zero: Zero) -> None:
    for path in ("deep_link?session_hash=a", "queue/status", "user", "proxy=https://a.hf.space/"):
        assert zero.client.get(f"/gradio_api/{path}").status_code == 404, path
    assert zero.client.post("/gradio_api/process_recording").status_code == 404
    assert zero.client.get("/gradio_api/file=/etc/passwd").status_code == 404
    sent = {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}
    call = {"data": ["a red ball", "", sent, "", 64, 96, "", 0.3, 9, 5, False, 1, True]}
    event = zero.client.post("/gradio_api/call/image_to_video", json=call).json()["event_id"]
    answer = zero.client.get(f"/gradio_api/call/image_to_video/{event}")
    assert "must be uploaded to this server first" in answer.text
    tools = {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}
    accept = {"accept": "application/json, text/event-stream"}
    assert "text_to_video" in zero.client.post("/gradio_api/mcp/", json=tools, headers=accept).text


@needs_chromium
def test_page_makes_stops_and_goes_on_with_a_clip(zero: Zero, browser: Any) -> None:
    window = Windows(browser, str(zero.client.base_url).rstrip("/")).window().open()
    window.write("a red star bouncing at sunset", seconds="0.4")
    before = len(zero.lender.asked("schedule"))
    window.make()
    window.wait_done()
    assert len(zero.lender.asked("schedule")) == before + 1
    assert "until it restarts" in window.page.inner_text("film-gallery .storage-warning")
    window.write("a panda spinning on green grass", seconds="4")
    window.make()
    wait_until(lambda: zero.lender.lent == 1)
    window.act("stop")
    wait_until(lambda: zero.lender.lent == 0, 30)
    window.page.wait_for_selector("film-viewer [data-action=retry]")
    window.act("retry")
    window.wait_done()
    assert len(zero.lender.asked("schedule")) == before + 3
    assert window.errors == []
    assert window.outside == []


def test_what_passes_between_the_processes_holds_no_tensor(tiny: Path, tmp_path: Path) -> None:
    from filmlet.spaces import zerogpu

    order = zerogpu.GpuTask(ask(tiny), tmp_path, "cpu", "float32", 20)
    work = prepare_run(make_plan(order.request), Settings(device="cpu"), "float32")
    work.keep_in(tmp_path)
    list(zerogpu._encode_locally(work.clip, work.context))
    assert (tmp_path / "embeddings.safetensors").exists()
    here, there = Pipe()
    with here, there:
        here.send(order)
        said = list(zerogpu.generate_on_gpu(there.recv()))
    assert any(isinstance(one, Frames) for one in said)
    for one in (order, *said):
        assert b"torch" not in bytes(ForkingPickler.dumps(one))


def test_closed_clip_stops_the_other_process_at_its_next_word(tiny: Path, tmp_path: Path) -> None:
    from filmlet.spaces import zerogpu

    work = prepare_run(make_plan(ask(tiny)), Settings(device="cpu"))
    work.keep_in(tmp_path)
    events = zerogpu.generate_remotely(work.clip, work.context, 1.0)
    wait_until(lambda: isinstance(one := next(events), Progress) and one.stage == Stage.DENOISE)
    began = time.monotonic()
    events.close()
    assert time.monotonic() - began < 5
    assert not (tmp_path / "latents.safetensors").exists()


def test_error_over_there_keeps_its_code(tiny: Path, tmp_path: Path) -> None:
    from filmlet.errors import RemoteError
    from filmlet.spaces import zerogpu

    work = prepare_run(make_plan(ask(tiny)), Settings(device="cpu"))
    work.keep_in(tmp_path)
    plan = replace(work.plan, request=replace(work.plan.request, steps=100_000))
    work.clip = replace(work.clip, plan=plan)
    with pytest.raises(RemoteError, match="steps must be") as refused:
        list(zerogpu.generate_remotely(work.clip, work.context, 1.0))
    assert refused.value.code == "invalid_steps"


@pytest.mark.server
def test_model_is_put_where_cuda_will_be_before_there_is_any(tmp_path: Path) -> None:
    code = (
        "from tests.helpers.fake_zerogpu import without_cuda; import torch\n"
        "torch._C._cuda_init, torch.version.cuda = (lambda: None), '13.0'\n"
        "torch.cuda._is_in_bad_fork = torch.cuda.is_available\n"
        "import spaces\nfrom filmlet.spaces import zerogpu\n"
        "from filmlet.settings import Settings\n"
        "zerogpu.preload_model(Settings(device='cuda'))\n"
        "from spaces.zero.torch import patching\n"
        "print(patching.size())\n"
    )
    root = Path(__file__).parents[2]
    env = {
        "SPACES_ZERO_GPU": "true", "SPACES_ZERO_DEVICE_API_URL": "http://127.0.0.1:9",
        "HOME": str(tmp_path), "PYTHONPATH": f"{root / 'src'}:{root}",
    }  # fmt: skip
    run = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | env, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert int(run.stdout.split()[-1]) > 15e6
