"""`config`, `completion`, `jobs save`, `generate --show` and the help of actions."""

import json
import os
import subprocess
from pathlib import Path

import pytest
from PIL import Image

from filmlet.cli import main as cli
from filmlet.cli.completion import SHELLS
from filmlet.core.request import build_request
from filmlet.jobs import Queue
from filmlet.jobs.claimed_job import ClaimedJob
from filmlet.settings import Settings
from tests.helpers.sounding_worker import finish_job
from tests.helpers.sounds import look_at_audio


def test_config_lists_every_setting_with_its_source_and_no_secret(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("FILMLET_HOME", str(tmp_path))
    monkeypatch.setenv("FILMLET_DATABASE_URL", "postgresql://ann:hidden@db/filmlet")
    monkeypatch.setenv("FORWARDED_ALLOW_IPS", "192.0.2.1")
    assert cli.main(["config"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(vars(Settings()))
    assert f"{tmp_path}  (from FILMLET_HOME)" in "\n".join(lines)
    assert "192.0.2.1  (from FORWARDED_ALLOW_IPS)" in "\n".join(lines)
    assert "hidden" not in "\n".join(lines)
    assert cli.main(["config", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["database_url"]["value"] == "***"
    assert (rows["keep_days"]["value"], rows["keep_days"]["source"]) == (30.0, "default")


@pytest.mark.server
@pytest.mark.parametrize(
    ("typed", "completed"),
    [
        (["ge"], {"generate"}), (["jobs", "sa"], {"save"}), (["jobs", "save", "--f"], {"--force"}),
        (["models", "pull", "--q"], {"--quiet"}), (["generate", "a", "--see"], {"--seed"}),
        (["serve", "--no-"], {"--no-keys", "--no-worker"}), (["completion", "b"], {"bash"}),
    ],
)  # fmt: skip
def test_bash_completes_commands_actions_and_options(
    typed: list[str], completed: set[str], tmp_path: Path
) -> None:
    script = tmp_path / "completion.bash"
    script.write_text(SHELLS["bash"](cli.build_parser()))
    words = " ".join(["filmlet", *typed])
    code = f"source {script}; COMP_WORDS=({words}); COMP_CWORD={len(typed)}; _filmlet"
    done = subprocess.run(
        ["bash", "-c", f'{code}; echo "${{COMPREPLY[@]}}"'],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert set(done.stdout.split()) == completed
    assert done.stderr == ""


@pytest.mark.parametrize("shell", list(SHELLS))
def test_each_shell_gets_a_script(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert "--no-keys" in script
    assert "refine" in script


@pytest.mark.parametrize(
    ("words", "has", "lacks"),
    [
        (["jobs", "cancel", "--help"], "filmlet jobs cancel", "--limit"),
        (["models", "pull", "--help"], "--quiet", "vocabulary"),
        (["keys", "add", "--help"], "--max-active", "remove"),
    ],
)
def test_action_has_help_of_its_own(
    words: list[str], has: str, lacks: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(words)
    said = capsys.readouterr().out
    assert end.value.code == 0
    assert has in said
    assert lacks not in said


def test_save_copies_the_clip_of_a_finished_job(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("FILMLET_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    settings = Settings(home=tmp_path / "home")
    queue = Queue(settings)
    job = queue.submit(build_request("a red circle")).id
    assert cli.main(["jobs", "save", job]) == 1
    assert "it has no clip. [job_conflict]" in capsys.readouterr().err
    claimed = ClaimedJob.claim(queue.database, settings, job, "one")
    assert claimed
    folder = queue.storage.folder(job)
    (folder / "clip.mp4").write_bytes(b"a whole clip")
    queue.storage.store(job, "clip.mp4")
    assert claimed.complete(12)
    queue.close()
    assert cli.main(["jobs", "save", job, "-o", "films/one.mp4"]) == 0
    assert (tmp_path / "films" / "one.mp4").read_bytes() == b"a whole clip"
    assert cli.main(["jobs", "save", job, "-o", "films/one.mp4"]) == 1
    assert "[output_exists]" in capsys.readouterr().err
    assert cli.main(["jobs", "save", job, "-o", "films/one.mp4", "--force"]) == 0
    assert cli.main(["jobs", "save", job, "-o", "films/one.gif"]) == 2
    assert [file.name for file in (tmp_path / "films").iterdir()] == ["one.mp4"]


@pytest.mark.usefixtures("forked_decoders")
def test_save_converts_the_clip_by_the_suffix_of_the_file(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("FILMLET_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    job = finish_job(Settings(home=tmp_path / "home", worker="one"), tiny)
    assert cli.main(["jobs", "save", job.id, "-o", "films/one.gif"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "films/one.gif", "  note: GIF holds no sound; MP4 and WebM do"
    ]  # fmt: skip
    with Image.open("films/one.gif") as image:
        assert (image.n_frames, image.size) == (9, (64, 64))
        assert json.loads(image.info["comment"])["seed"] == "3"
    assert cli.main(["jobs", "save", job.id, "-o", "films/one.gif"]) == 1
    assert "[output_exists]" in capsys.readouterr().err
    assert cli.main(["jobs", "save", job.id, "-o", "films/one.webm", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"path": "films/one.webm", "changes": []}
    assert look_at_audio(Path("films/one.webm")).codec == "opus"
    assert cli.main(["jobs", "save", job.id, "-o", "films/one.avi"]) == 2
    assert "'one.avi' does not end in one of .mp4, .webm, .gif, .webp." in capsys.readouterr().err
    assert sorted(file.name for file in Path("films").iterdir()) == ["one.gif", "one.webm"]


@pytest.mark.server
def test_show_opens_the_finished_clip(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shown, opener = tmp_path / "shown", tmp_path / "xdg-open"
    opener.write_text(f'#!/bin/sh\necho "$1" > {shown}\n')
    opener.chmod(0o700)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.chdir(tmp_path)
    words = ["generate", "a", "--model", str(tiny), "--size", "64x64", "--frames", "9"]
    assert cli.main([*words, "--steps", "1", "-o", "a.mp4", "--show"]) == 0
    assert shown.read_text() == "a.mp4\n"
