"""`filmlet enhance`, and `--enhance` of the commands that take a clip."""

import json
from pathlib import Path

import av
import pytest

from filmlet.cli.main import main
from tests.helpers.chat_endpoints import (
    KEY,
    PARAGRAPH,
    ChatEndpoint,
    chat,
    chat_environment,
)
from tests.helpers.forked_processes import run_filmlet

__all__ = ["chat"]
MODEL = "ltxv-2b-0.9.8-distilled"
USED = "asked: a kitty jumps\nused:  a kitty bouncing\n"
QUICK = ("--size", "64x64", "--frames", "9", "--steps", "2", "--seed", "5")


@pytest.fixture
def home(tmp_path: Path, chat: ChatEndpoint, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, value in chat_environment(chat, tmp_path / "home").items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.usefixtures("home")
def test_text_alone_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["enhance", "a kitty jumps"]) == 0
    assert capsys.readouterr() == ("a kitty bouncing\n", "")
    assert main(["enhance", "a ship", "--model", MODEL]) == 0
    assert capsys.readouterr() == (f"{PARAGRAPH}\n", "")
    assert main(["enhance", "a ship", "--model", MODEL, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "prompt": "a ship", "enhanced_prompt": PARAGRAPH, "source": "scribe",
    }  # fmt: skip


@pytest.mark.usefixtures("home")
@pytest.mark.parametrize(
    "command", [["enhance"], ["plan", "--enhance"], ["submit", "--enhance"]], ids=" ".join
)
def test_failure_is_one_sentence(
    chat: ChatEndpoint, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    chat.status = 500
    assert main([*command, "a ship", "--model", MODEL]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err == (
        "filmlet: The prompt enhancer answered 500. The prompt can be used as it is. "
        "[enhancement_failed]\n"
    )
    assert main(["jobs"]) == 0
    assert capsys.readouterr().out == ""


@pytest.mark.usefixtures("home")
def test_without_an_endpoint_the_settings_are_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("FILMLET_ENHANCE_URL")
    assert main(["enhance", "a ship", "--model", MODEL]) == 1
    err = capsys.readouterr().err
    assert f"Nothing enhances prompts for {MODEL} here." in err
    assert "FILMLET_ENHANCE_URL" in err
    assert KEY not in err


@pytest.mark.usefixtures("home")
def test_plan_and_a_job_tell_what_is_used(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "a kitty jumps", "--enhance"]) == 0
    out, err = capsys.readouterr()
    assert err.startswith(USED)
    assert "note: enhanced by the vocabulary of pocket" in out
    assert main(["submit", "a kitty jumps", "--enhance", "--then", "a puppy hops"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("clip_")
    assert len(out.split()) == 1  # scripts read the id
    assert err.count("used:") == 2
    assert main(["jobs", "show", out.strip(), "--json"]) == 0
    requested = json.loads(capsys.readouterr().out)["requested"]
    assert requested["prompt"] == "a kitty jumps"
    assert requested["enhanced_prompts"][1]["text"] == "a puppy bouncing"


@pytest.mark.server
def test_clip_is_made_from_the_enhanced_prompt(tmp_path: Path) -> None:
    words = ("generate", "a kitty jumps", "-o", "clip.mp4", "--enhance", *QUICK)
    run = run_filmlet(*words, cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    assert run.stderr.startswith(USED)
    assert run.stdout.startswith("clip.mp4\n")
    run = run_filmlet(*words, "--force", "--json", cwd=tmp_path)
    assert run.stderr == ""
    report = json.loads(run.stdout)
    assert report["requested"]["prompt"] == "a kitty jumps"
    assert report["effective"]["prompt"] == "a kitty bouncing"
    with av.open(str(tmp_path / "clip.mp4")) as file:
        assert file.metadata["prompt"] == "a kitty bouncing"
        changes = json.loads(file.metadata["effective"])["changes"]
    assert {c["field"]: (c["requested"], c["effective"]) for c in changes}["prompt"] == (
        "a kitty jumps", "a kitty bouncing",
    )  # fmt: skip
