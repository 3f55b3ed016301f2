"""Several commands side by side: no clip is lost, none is written by two."""

import os
from pathlib import Path

import av
import pytest

from tests.helpers.forked_processes import ForkedProcess

pytestmark = pytest.mark.server

SETTINGS = ("--size", "64x64", "--steps", "1", "--seed", "9")


def run_together(folder: Path, *commands: tuple[str, ...]) -> list[tuple[int, str]]:
    """Exit status and output of commands that run at the same time."""
    logs = [folder.parent / f"{folder.name}-{number}.log" for number in range(len(commands))]
    processes = [
        ForkedProcess(["generate", *words, *SETTINGS], dict(os.environ), log, cwd=folder)
        for words, log in zip(commands, logs, strict=True)
    ]
    return [(p.wait(120), log.read_text()) for p, log in zip(processes, logs, strict=True)]


def frames(path: Path) -> int:
    with av.open(str(path)) as file:
        return sum(1 for _ in file.decode(video=0))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "work"
    folder.mkdir()
    return folder


@pytest.mark.parametrize("more", [(), ("--preview",), ("--force",)])
def test_clips_of_one_prompt_and_seed_get_names_of_their_own(
    folder: Path, more: tuple[str, ...]
) -> None:
    lengths = [9, 17, 25]
    done = run_together(folder, *(("a star", "--frames", str(n), *more) for n in lengths))
    assert [status for status, _ in done] == [0, 0, 0], done
    told = {said.splitlines()[0] for _, said in done}
    assert told == {f"clips/a-star-9{number}.mp4" for number in ("", "-2", "-3")}
    assert sorted(frames(folder / name) for name in told) == lengths
    pictures = {f"{name}.preview.png" for name in told} if "--preview" in more else set()
    files = {str(file.relative_to(folder)) for file in (folder / "clips").iterdir()}
    assert files == told | pictures


def test_one_name_said_twice_is_written_once(folder: Path) -> None:
    words = [("a star", "--frames", str(n), "-o", "new/a.mp4") for n in (9, 17)]
    done = run_together(folder, *words)
    assert sorted(status for status, _ in done) == [0, 1], done
    lost = next(number for number, (status, _) in enumerate(done) if status)
    assert done[lost][1].strip().endswith("[output_exists]")
    assert frames(folder / "new" / "a.mp4") == (17, 9)[lost]
    assert [file.name for file in (folder / "new").iterdir()] == ["a.mp4"]


def test_one_name_said_twice_with_force_is_whole(folder: Path) -> None:
    words = [("a star", "--frames", str(n), "-o", "a.mp4", "--force") for n in (9, 17, 17, 9)]
    done = run_together(folder, *words)
    assert [status for status, _ in done] == [0] * 4, done
    assert frames(folder / "a.mp4") in (9, 17)
    assert [file.name for file in folder.iterdir()] == ["a.mp4"]
