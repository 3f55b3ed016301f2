"""Compiled graphs from one process to the next."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from filmlet.cli import main
from filmlet.core import cpu
from filmlet.core.events import Pixels
from filmlet.engine.placement import Optimization
from filmlet.models import local_files

pytest.importorskip("openvino")
from filmlet.engine.openvino import compile as building
from filmlet.engine.openvino.blob_cache import BlobCache, fingerprint
from tests.helpers.openvino_fixtures import POCKET, frames, last, load, recipe_for, text_for

pytestmark = pytest.mark.compile


def test_kept_graph_gives_the_same_bytes_and_a_damaged_one_is_made_anew(tmp_path: Path) -> None:
    recipe = recipe_for(POCKET, size="64x64", frames=9)

    def make() -> tuple[NDArray, Pixels]:
        engine = load(POCKET, tmp_path)
        latents = last(engine.denoise(text_for(engine, 7), recipe))
        return latents, frames(engine, latents, recipe)

    first = make()
    blobs = list(tmp_path.glob("*.blob"))
    assert len(blobs) == 6
    second = make()
    for file in blobs:
        file.write_bytes(file.read_bytes()[:1000])
    third = make()
    for latents, pixels in (second, third):
        assert np.array_equal(latents, first[0])
        assert np.array_equal(pixels, first[1])
    assert all(BlobCache(tmp_path).load(file.stem) for file in blobs)


def test_cache_forgets_what_was_not_used_for_longest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("filmlet.engine.openvino.blob_cache.MAX_CACHE_BYTES", 250)
    store = BlobCache(tmp_path / "cache")
    for name in ("a", "b"):
        store.save(name, bytes(60))
        time.sleep(0.01)
    assert store.load("a") is not None
    time.sleep(0.01)
    store.save("c", bytes(60))
    kept = store.load("a")
    assert kept is not None
    assert kept.blob.tobytes() == bytes(60)
    kept.release_pages()
    assert kept.blob.tobytes() == bytes(60)
    assert store.load("b") is None
    assert not list((tmp_path / "cache").glob("*.part"))


def test_other_weights_have_another_fingerprint(tmp_path: Path) -> None:
    file = tmp_path / "weights"
    file.write_bytes(b"one")
    before = fingerprint([file], 1)
    assert fingerprint([file], 1) == before != fingerprint([file], 2)
    file.write_bytes(b"two")
    assert fingerprint([file], 1) != before


def test_graphs_of_another_cpu_of_the_same_name_are_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A home folder may be shared, and virtual machines call quite different CPUs "AMD EPYC"."""
    keys = set()
    for has in ({"avx2"}, {"avx2", "avx512_vnni"}, {"avx2", "sse"}):
        monkeypatch.setattr(cpu, "cpu_flags", lambda has=has: has)
        keys.add(
            building.ComponentBuild(
                "decoder", POCKET, local_files(POCKET), "float32", tmp_path
            ).cache_key
        )
    assert len(keys) == 2


def test_exported_model_is_compiled_once_and_for_every_clip(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FILMLET_CACHE", str(tmp_path))
    assert main.main(["models", "export", "pocket", "--json"]) == 0
    told, kept = json.loads(capsys.readouterr().out), sorted(tmp_path.iterdir())
    assert told["bytes_in_cache"] == sum(file.stat().st_size for file in kept) > 10_000_000

    def refuse(*_: object) -> None:
        raise AssertionError("compiled again")

    monkeypatch.setattr(building, "compile_all", refuse)
    engine = load(POCKET, tmp_path, told["dtype"], *map(Optimization, told["optimizations"]))
    engine.encode_frames(np.zeros((1, 64, 64, 3), np.uint8))
    assert main.main(["models", "export", "pocket"]) == 0
    assert sorted(tmp_path.iterdir()) == kept


def test_what_is_torchs_is_not_exported_and_says_why(
    tiny_two: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.main(["models", "export", str(tiny_two)]) == 2
    assert "upsampler needs torch" in capsys.readouterr().err
    assert main.main(["models", "export", "ltxv-13b-0.9.8-distilled"]) == 1
    assert "filmlet models pull" in capsys.readouterr().err


def test_blob_that_somebody_else_may_have_written_is_not_read(tmp_path: Path) -> None:
    store = BlobCache(tmp_path / "cache")
    store.save("a", b"graph")
    file = store.folder / "a.blob"
    assert file.stat().st_mode & 0o777 == 0o600
    assert store.folder.stat().st_mode & 0o777 == 0o700
    assert store.load("a") is not None
    for mode in (0o622, 0o662, 0o606):
        file.chmod(mode)
        assert store.load("a") is None
        assert file.exists()
    store.save("a", b"graph")
    if os.geteuid() == 0:
        os.chown(file, 12345, -1)
        assert store.load("a") is None
    store.save("a", b"graph")
    assert store.load("a") is not None


def test_no_cache_is_no_reason_to_stop(tmp_path: Path) -> None:
    """A file, a pipe, a folder that is not there or not ours: graphs are made anew."""
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "pipes").mkdir()
    os.mkfifo(tmp_path / "pipes" / "a.blob")
    (tmp_path / "folders").mkdir()
    (tmp_path / "folders" / "a.blob").mkdir()
    for folder in ("file", "pipes", "folders"):
        store = BlobCache(tmp_path / folder)
        assert store.load("a") is None
        store.save("a", b"graph")
    store = BlobCache(Path("/proc/filmlet"))
    store.save("a", b"graph")
    assert store.load("a") is None


WRITES = """
import sys
from pathlib import Path
from filmlet.engine.openvino import blob_cache as store
store.MAX_CACHE_BYTES = 3_000
kept = store.BlobCache(Path(sys.argv[1]))
for i in range(300):
    name, content = f"{i % 5}", bytes([i % 5]) * 1000
    kept.save(name, content)
    found = kept.load(name)
    assert found is None or found.blob.tobytes() == content
"""


def test_processes_that_write_at_once_read_whole_blobs(tmp_path: Path) -> None:
    words = [sys.executable, "-c", WRITES, str(tmp_path)]
    running = [subprocess.Popen(words, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    for process in running:
        _, told = process.communicate(timeout=120)
        assert process.returncode == 0, told
    assert not list(tmp_path.glob("*.part"))
