"""Errors of the command line name what was typed; words of a prompt need no quotes."""

from pathlib import Path

import pytest

from filmlet.cli import main as cli
from filmlet.cli.options import build_clip_request
from filmlet.settings import unknown_variables


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.png").write_text("no picture")
    return tmp_path


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--image", "circle.png"), "--image circle.png: no such file."),
        (("--last-image", "a/b.png"), "--last-image a/b.png: no such file."),
        (("--keyframe", "c.png@8:0.5"), "--keyframe c.png: no such file."),
        (("--extend", "clip.mp4"), "--extend clip.mp4: no such file."),
        (("--image", "text.png"), "--image text.png: this is not a whole PNG"),
    ],
)
def test_error_of_a_file_names_option_and_file(
    words: tuple[str, str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["generate", "a red circle", *words]) == 2
    assert f"filmlet: {says}" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["generate", "submit", "plan"])
def test_words_without_quotes_are_one_prompt(command: str) -> None:
    words = [command, "a", "red", "--seed", "7", "circle", "moving  left"]
    options = cli.build_parser().parse_args(words)
    request = build_clip_request(options)
    assert (request.prompt, request.seed) == ("a red circle moving  left", 7)


def test_mistyped_variable_is_named_with_the_nearest_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FILMLET_DEVISE", "cpu")
    assert cli.main(["models"]) == 0
    said = capsys.readouterr().err
    assert said == "filmlet: FILMLET_DEVISE is no setting; did you mean FILMLET_DEVICE?\n"
    assert unknown_variables({"FILMLET_HOME": "/a", "HOME": "/b"}) == {}
    assert unknown_variables({"FILMLET_QZX": ""}) == {"FILMLET_QZX": ""}


def test_version_says_what_computes_here(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(["--version"])
    assert end.value.code == 0
    said = capsys.readouterr().out
    for name in ("filmlet 0", "python 3", "openvino ", "torch ", "pocket revision "):
        assert name in said
