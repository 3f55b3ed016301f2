"""The command line as a person runs it: real processes, exit statuses, files, signals."""

import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import av
import pytest

from filmlet.cli import main as cli
from filmlet.core.request import MAX_SEED
from tests.helpers.forked_processes import run_filmlet
from tests.helpers.servers import wait_until

FILMLET = [sys.executable, "-m", "filmlet"]
QUICK = ("--size", "64x64", "--frames", "9", "--steps", "2", "--seed", "5")


@pytest.mark.server
def test_help_and_version_answer_without_heavy_imports(tmp_path: Path) -> None:
    for option in ("--help", "--version"):
        code = (
            "import sys\nfrom filmlet.cli.main import main\n"
            f"try: main(['{option}'])\nexcept SystemExit: pass\n"
            "heavy = {'torch', 'diffusers', 'av', 'numpy', 'rich'} & set(sys.modules)\n"
            "sys.exit(f'imported {heavy}' if heavy else 0)"
        )
        run = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path
        )
        assert run.returncode == 0, run.stderr
        assert "filmlet" in run.stdout


@pytest.mark.server
def test_prompt_becomes_an_mp4_with_a_report_in_json(tiny: Path, tmp_path: Path) -> None:
    run = run_filmlet(
        "generate", "a red castle", "-o", "clip.mp4", "--model", tiny, "--size", "70x64",
        "--frames", 10, "--steps", 2, "--seed", 5, "--json", cwd=tmp_path,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    report = json.loads(run.stdout)
    assert run.stderr == ""
    assert report["path"] == "clip.mp4"
    assert report["seed"] == report["effective"]["seed"] == 5
    assert report["requested"]["frames"] == 10
    assert report["effective"]["unknown_words"] == ["castle"]
    assert {c["field"] for c in report["effective"]["changes"]} == {
        "generated_width", "prompt_words",
    }  # fmt: skip
    assert all(c["reason"] for c in report["effective"]["changes"])
    assert set(report["timings"]) == {"load", "encode", "denoise", "decode", "mux"}
    with av.open(str(tmp_path / "clip.mp4")) as file:
        assert file.metadata["seed"] == "5"
        assert "castle" in file.metadata["effective"]
        assert file.metadata["provenance"] == "AI-generated"
        frames = list(file.decode(video=0))
    assert (len(frames), frames[0].width, frames[0].height) == (10, 70, 64)
    assert [p.name for p in tmp_path.iterdir()] == ["clip.mp4"]


@pytest.mark.server
def test_variations_have_seeds_in_a_row_and_load_the_model_once(tiny: Path, tmp_path: Path) -> None:
    command = ("generate", "a castle", "--model", tiny, *QUICK[:-2])
    run = run_filmlet(
        *command, "--variations", 3, "--seed", MAX_SEED - 1, "-o", "new/a.mp4", "--json",
        cwd=tmp_path,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    reports = [json.loads(line) for line in run.stdout.splitlines()]
    seeds = [MAX_SEED - 1, MAX_SEED, 0]
    assert [report["seed"] for report in reports] == seeds
    assert [report["path"] for report in reports] == [f"new/a-{seed}.mp4" for seed in seeds]
    first, *others = [report["timings"]["load"] for report in reports]
    assert max(others) < first / 5
    alone = run_filmlet(*command, "--seed", 0, "-o", "alone.mp4", cwd=tmp_path)
    assert alone.returncode == 0, alone.stderr
    third = (tmp_path / "new" / "a-0.mp4").read_bytes()
    assert third == (tmp_path / "alone.mp4").read_bytes()
    assert third != (tmp_path / "new" / f"a-{MAX_SEED}.mp4").read_bytes()
    run = run_filmlet(*command, "--variations", 2, "-q", cwd=tmp_path)
    paths = run.stdout.splitlines()
    assert len(set(paths)) == 2
    assert all((tmp_path / path).is_file() for path in paths)


@pytest.fixture(scope="module")
def twice(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, str]:
    """One command, run two times: the folder, and what the first wrote to stdout and stderr."""
    folder = tmp_path_factory.mktemp("twice")
    command = ("generate", "a castle", "--model", tiny, *QUICK)
    first, second = (run_filmlet(*command, cwd=folder) for _ in range(2))
    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    return folder, first.stdout, first.stderr


@pytest.mark.server
def test_same_seed_and_settings_give_the_same_bytes(twice: tuple[Path, str, str]) -> None:
    clips = twice[0] / "clips"
    one, two = clips / "a-castle-5.mp4", clips / "a-castle-5-2.mp4"
    assert one.read_bytes() == two.read_bytes()


@pytest.mark.server
def test_pipe_gets_the_path_and_the_notes_and_no_bar(twice: tuple[Path, str, str]) -> None:
    _, stdout, stderr = twice
    assert stdout.splitlines()[0] == "clips/a-castle-5.mp4"
    assert "seed 5, 64x64, 9 frames" in stdout
    assert "does not know: 'castle'" in stdout
    assert stderr == ""


@pytest.mark.server
def test_terminal_gets_a_bar_with_the_names_of_the_stages(tiny: Path, tmp_path: Path) -> None:
    master, slave = pty.openpty()
    with subprocess.Popen(
        [*FILMLET, "generate", "a ball", "--model", str(tiny), *QUICK],
        cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=slave, env=os.environ | {"TERM": "xterm"},
    ) as process:  # fmt: skip
        os.close(slave)
        shown = b""
        while True:
            try:
                piece = os.read(master, 4096)
            except OSError:
                break
            if not piece:
                break
            shown += piece
    os.close(master)
    assert process.returncode == 0
    for stage in (b"load", b"encode", b"denoise", b"decode", b"mux"):
        assert stage in shown


@pytest.mark.server
def test_preview_keeps_a_picture_beside_the_clip(tmp_path: Path) -> None:
    run = run_filmlet(
        "generate", "a red circle", "-o", "clip.mp4", "--preview", *QUICK, cwd=tmp_path
    )
    assert run.returncode == 0, run.stderr
    assert {p.name for p in tmp_path.iterdir()} == {"clip.mp4", "clip.mp4.preview.png"}


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        ([""], "invalid_prompt", "empty"),
        (["a ball", "--size", "huge"], "invalid_size", "WIDTHxHEIGHT"),
        (["a ball", "--size", "4096x4096"], "invalid_size", "between"),
        (["a ball", "--frames", "many"], "invalid_frames", "whole number"),
        (["a ball", "--frames", "100000"], "invalid_frames", "between"),
        (["a ball", "--frames", "-8"], "invalid_frames", "above 0"),
        (["a ball", "--seconds", "nan"], "invalid_seconds", "above 0"),
        (["a ball", "--seconds", "1e9"], "invalid_seconds", "at most"),
        (["a ball", "--seconds", "1", "--frames", "9"], "invalid_frames", "not both"),
        (["a ball", "--fps", "0"], "invalid_fps", "above 0"),
        (["a ball", "--fps", "1000"], "invalid_fps", "between"),
        (["a ball", "--steps", "0"], "invalid_steps", "above 0"),
        (["a ball", "--steps", "5000"], "invalid_steps", "between"),
        (["a ball", "--seed", "-1"], "invalid_seed", "0 to"),
        (["a ball", "--variations", "0"], "invalid_variations", "1 to 1000"),
        (["a ball", "--guidance", "3"], "invalid_guidance", "--force-guidance"),
        (["a ball", "--model", "pockt"], "unknown_model", "did you mean pocket"),
        (["a ball", "--model", ""], "unknown_model", "model is empty; there are pocket, "),
        (["a ball", "--model", " "], "unknown_model", "model is empty; there are pocket, "),
        pytest.param(
            ["a ball", "--model", "ltxv-2b-0.9.8-distilled", "--yes"],
            "hub_unreachable",
            "HF_HUB_OFFLINE",
            marks=pytest.mark.server,
        ),
        (["a ball", "--format", "avi"], "invalid_format", "mp4"),
        (["a ball", "-o", "clip.avi"], "invalid_format", "avi"),
        (["a ball", "-o", "clip.gif", "--format", "mp4"], "invalid_format", ".mp4"),
        (["a ball", "-o", "/proc/clip.mp4"], "output_unwritable", "/proc"),
    ],
)
def test_bad_input_gets_one_sentence_a_code_and_a_status(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    arguments: list[str], code: str, says: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    is_failure = code in ("hub_unreachable", "output_unwritable")
    assert cli.main(["generate", *arguments, "--json"]) == (1 if is_failure else 2)
    stdout, stderr = capsys.readouterr()
    assert stderr.count("\n") == 1
    assert says in stderr
    assert f"[{code}]" in stderr
    assert json.loads(stdout)["error"]["code"] == code
    assert list(tmp_path.iterdir()) == []


@pytest.mark.server
def test_options_may_come_between_words(tmp_path: Path) -> None:
    home = {"FILMLET_HOME": str(tmp_path)}
    assert run_filmlet("keys", "add", "--admin", "ann", cwd=tmp_path, **home).returncode == 0
    (key,) = json.loads(run_filmlet("keys", "--json", "list", cwd=tmp_path, **home).stdout)
    assert (key["name"], key["admin"]) == ("ann", True)
    shown = run_filmlet("models", "show", "--json", "pocket", cwd=tmp_path)
    assert json.loads(shown.stdout)["name"] == "pocket"
    many = run_filmlet("keys", "add", "ann", "--admin", "bob", cwd=tmp_path, **home)
    assert (many.returncode, "bob" in many.stderr) == (2, True)


@pytest.mark.server
def test_reader_that_has_gone_ends_it_without_a_word(tmp_path: Path) -> None:
    unread, output = os.pipe()
    os.close(unread)
    words = [*FILMLET, "models", "show", "pocket"]
    done = subprocess.run(words, cwd=tmp_path, stdout=output, stderr=subprocess.PIPE, check=False)
    os.close(output)
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.server
def test_existing_file_is_kept_unless_forced(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "clip.mp4").write_text("mine")
    command = ("generate", "a ball", "-o", "clip.mp4", "--model", tiny, *QUICK)
    kept = run_filmlet(*command, cwd=tmp_path)
    assert (kept.returncode, (tmp_path / "clip.mp4").read_text()) == (1, "mine")
    assert "[output_exists]" in kept.stderr
    assert run_filmlet(*command, "--force", cwd=tmp_path).returncode == 0
    assert (tmp_path / "clip.mp4").stat().st_size > 1000


@pytest.mark.server
def test_prompt_over_the_limit_is_cut_and_the_end_is_told(tmp_path: Path) -> None:
    words = "a red circle moving left " * 40
    run = run_filmlet("generate", words, *QUICK, "--json", cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    effective = json.loads(run.stdout)["effective"]
    assert effective["prompt_tokens"] == 128
    (change,) = [c for c in effective["changes"] if c["field"] == "prompt"]
    assert words.rstrip().endswith(change["reason"].rsplit("'", 2)[-2].rstrip())


@pytest.mark.server
def test_ctrl_c_is_heard_where_python_drops_what_is_raised() -> None:
    code = """
import signal, sys, time, weakref
from filmlet.cli import main as cli, models

def deaf(_):
    thing = type("Thing", (), {})()
    kept = weakref.ref(thing, lambda _: signal.raise_signal(signal.SIGINT))
    del thing
    time.sleep(5)
    return 0

models.plan = deaf
sys.exit(cli.main(["plan", "a ball"]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (130, 1), done.stderr
    assert done.stderr.strip().endswith("[interrupted]")


def test_caller_has_its_handlers_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def ring(*_: object) -> None:
        raise AssertionError("the command was over")

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)
    monkeypatch.chdir(tmp_path)
    before = signal.signal(signal.SIGALRM, ring)
    try:
        handlers = [*map(signal.getsignal, numbers), sys.unraisablehook]
        assert cli.main(["plan", "a ball"]) == 0
        assert [*map(signal.getsignal, numbers), sys.unraisablehook] == handlers
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        assert cli.main(["generate", "a ball", "--frames", "49", "--steps", "100"]) == 130
        assert [*map(signal.getsignal, numbers), sys.unraisablehook] == handlers
        assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert capsys.readouterr().err.endswith("[interrupted]\n")
    assert list(tmp_path.iterdir()) == []


def test_plan_names_the_lora_of_a_full_model_and_counts_its_download(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["plan", "a ball", "--model", "ltx-2.3-22b-dev", "--guidance", "4"]) == 0
    out = capsys.readouterr().out
    assert "  lora     ltx-2.3-22b-distilled-lora-384-1.1.safetensors: refine at 1\n" in out
    assert "download 79.2 GB" in out
    assert "33 model calls" in out
    assert "note: ltx-2.3-22b-dev refines with its distilled LoRA, which needs no guidance" in out
    assert cli.main(["plan", "a ball"]) == 0
    assert "lora" not in capsys.readouterr().out


def imports(process: int, _: Path) -> bool:
    return "_pyopenvino" in Path(f"/proc/{process}/maps").read_text()


def denoises(_: int, folder: Path) -> bool:
    return any(folder.rglob("*.preview.png"))


def decodes(_: int, folder: Path) -> bool:
    return any(folder.rglob("*.mp4.*.part"))


@pytest.mark.server
@pytest.mark.parametrize(
    ("when", "number"),
    [(imports, signal.SIGINT), (denoises, signal.SIGTERM), (decodes, signal.SIGINT)],
)
def test_ctrl_c_at_any_stage_leaves_nothing_behind(
    tmp_path: Path, when: Callable[[int, Path], bool], number: int
) -> None:
    with subprocess.Popen(
        [*FILMLET, "generate", "a red circle", "--frames", "97", "--size",
         "256x256", "--steps", "20", "--preview"],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        wait_until(lambda: when(process.pid, tmp_path) or process.poll() is not None)
        process.send_signal(number)
        _, told = process.communicate(timeout=60)
    assert process.returncode == 128 + number, told
    assert told.strip().endswith("[interrupted]")
    assert "Traceback" not in told
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["generate", "plan", "submit"])
@pytest.mark.parametrize(
    ("words", "own"),
    [
        (["--num-frames", "9"], "--frames"),
        (["--num_inference_steps=4"], "--steps"),
        (["--guidance-scale", "3"], "--guidance"),
        (["--width", "64", "--height", "64"], "--size"),
    ],
)
def test_option_of_other_programs_is_refused_with_ours(
    capsys: pytest.CaptureFixture[str], command: str, words: list[str], own: str
) -> None:
    with pytest.raises(SystemExit):
        cli.main([command, "a ball", *words])
    assert f"is called {own} here" in capsys.readouterr().err
