"""Names of files: one writer each, and never a file that is not whole."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from filmlet.core.shape import VideoShape
from filmlet.errors import OutputExists, OutputUnwritable
from filmlet.media import check_output_path, partial_path, reserve_path, write_video

SHAPE = VideoShape(64, 64, 9, 24.0, 64, 64, 9)
PIXELS = np.zeros((9, 64, 64, 3), np.uint8)
HOLD = """
import sys, time
from pathlib import Path
from filmlet.media import reserve_path

with reserve_path([Path("clip.mp4")], force=False):
    print("held", flush=True)
    time.sleep(60)
"""


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_reserved_name_goes_to_one_and_is_free_afterwards(tmp_path: Path) -> None:
    paths = [tmp_path / "new" / name for name in ("clip.mp4", "clip-2.mp4")]
    with reserve_path(paths, force=False) as first, reserve_path(paths, force=False) as second:
        assert [first, second] == paths
        assert not first.exists(), "a name stands for a whole file"
        with pytest.raises(OutputExists, match=r"clip-2\.mp4"), reserve_path(paths, force=False):
            pass
    assert names(tmp_path / "new") == []
    paths[0].touch()
    with reserve_path(paths, force=False) as found:
        assert found == paths[1]
    with reserve_path(paths, force=True) as found:
        assert found == paths[0]


def test_name_is_free_once_its_process_is_killed(tmp_path: Path) -> None:
    words = [sys.executable, "-c", HOLD]
    with subprocess.Popen(words, cwd=tmp_path, stdout=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stdout.readline() == b"held\n"
        with pytest.raises(OutputExists), reserve_path([tmp_path / "clip.mp4"], force=False):
            pass
        process.send_signal(signal.SIGKILL)
    with reserve_path([tmp_path / "clip.mp4"], force=False) as path:
        assert path == tmp_path / "clip.mp4"
    assert names(tmp_path) == []


@pytest.mark.parametrize("suffix", [".mp4", ".webm", ".gif", ".webp"])
@pytest.mark.parametrize("kind", ["file", "link"])
def test_file_that_comes_meanwhile_is_kept(tmp_path: Path, suffix: str, kind: str) -> None:
    path = tmp_path / f"clip{suffix}"

    def write_beside_another() -> None:
        with write_video(path, SHAPE, {}) as movie:
            movie.add(PIXELS)
            path.write_text("mine") if kind == "file" else path.symlink_to("nowhere")

    with pytest.raises(OutputExists):
        write_beside_another()
    assert names(tmp_path) == [path.name]
    assert path.is_symlink() == (kind == "link")
    assert path.is_symlink() or path.read_text() == "mine"
    with write_video(path, SHAPE, {}, force=True) as movie:
        movie.add(PIXELS)
    assert path.stat().st_size > 100


def test_where_there_are_no_links_a_file_is_renamed_and_kept_as_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    path = tmp_path / "clip.mp4"
    with write_video(path, SHAPE, {}) as movie:
        movie.add(PIXELS)
    assert names(tmp_path) == ["clip.mp4"]
    with pytest.raises(OutputExists):
        check_output_path(path, force=False)


@pytest.mark.parametrize("name", ["a" * 251 + ".mp4", "ü" * 125 + ".webm", "\udcff.gif", " .mp4"])
def test_name_may_be_as_long_and_odd_as_the_system_takes_it(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    with reserve_path([path], force=False), write_video(path, SHAPE, {}) as movie:
        movie.add(PIXELS)
    assert names(tmp_path) == [name]


def test_names_that_no_system_takes_are_refused_with_a_sentence(tmp_path: Path) -> None:
    for name in ("a" * 300 + ".mp4", "a\0b.mp4"):
        with pytest.raises(OutputUnwritable):
            check_output_path(tmp_path / name, force=False)
    assert partial_path(tmp_path / "a.mp4") != partial_path(tmp_path / "a.mp4")
