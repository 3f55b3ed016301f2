"""When OpenVINO computes a clip, in which dtype, and what is told of it."""

import json
from pathlib import Path

import numpy as np
import pytest

from filmlet.core import cpu
from filmlet.core.events import Frames
from filmlet.core.request import build_request
from filmlet.engine import selection
from filmlet.engine.arrays import to_numpy
from filmlet.pipeline.plan import make_plan
from filmlet.settings import Settings
from tests.helpers.clips import prepare_run
from tests.helpers.tiny_checkpoint import make_checkpoint, make_vae

pytest.importorskip("openvino")
from filmlet.engine.openvino import components, runner
from tests.helpers.openvino_fixtures import POCKET, frames, load, needs_bfloat16

pytestmark = pytest.mark.compile


@needs_bfloat16
def test_it_is_used_by_itself_and_told(cache: Path, tmp_path: Path) -> None:
    request = build_request("a red ball", size="64x64", frames=9, seed=1)
    work = prepare_run(make_plan(request), Settings(engine="auto", cache=cache))
    assert (work.effective.engine, work.effective.dtype) == ("openvino", "bfloat16")
    list(work.write(tmp_path / "clip.mp4"))
    again = prepare_run(make_plan(request), Settings(cache=cache), "bfloat16", "openvino")
    list(again.write(tmp_path / "again.mp4"))
    assert (tmp_path / "clip.mp4").read_bytes() == (tmp_path / "again.mp4").read_bytes()
    begun = prepare_run(make_plan(request), Settings(cache=cache), "float32", "torch")
    assert (begun.effective.engine, begun.effective.dtype) == ("torch", "float32")
    exact = prepare_run(make_plan(request), Settings(cache=cache), "float32", "openvino")
    assert (exact.effective.engine, exact.effective.dtype) == ("openvino", "float32")


def test_what_it_cannot_do_is_left_to_torch_with_the_reason(
    tiny: Path, tiny_two: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def engine(model: Path, **settings: object) -> tuple[str, str]:
        chosen = Settings(cache=cache, **({"engine": "auto"} | settings))
        work = prepare_run(
            make_plan(build_request("a ball", model=str(model), size="64x64")), chosen
        )
        told = [change.reason for change in work.effective.changes if change.field == "engine"]
        return work.effective.engine, " ".join(told)

    assert engine(tiny) == ("torch", "")  # too small to be compiled, and nobody asked for it
    assert engine(tiny, engine="openvino") == ("openvino", "")
    assert engine(tiny, engine="torch") == ("torch", "")
    chosen, told = engine(tiny, engine="openvino", offload="sequential")
    assert chosen == "torch"
    assert "sequential" in told
    chosen, told = engine(tiny_two, engine="openvino")
    assert chosen == "torch"
    assert "upsampler" in told
    noisy = make_checkpoint(tmp_path / "noisy", timed=True)
    make_vae(timed=True, noisy=True).save_pretrained(noisy / "vae")
    chosen, told = engine(noisy, engine="openvino")
    assert chosen == "torch"
    assert "adds noise" in told
    patched = make_checkpoint(tmp_path / "patched", timed=True)
    config = json.loads((patched / "vae/config.json").read_text())
    (patched / "vae/config.json").write_text(json.dumps(config | {"patch_size_t": 2}))
    chosen, told = engine(patched, engine="openvino")
    assert chosen == "torch"
    assert "patches in time" in told
    monkeypatch.setattr(selection, "OPENVINO_MAX_BYTES", 10_000)
    monkeypatch.setattr(cpu, "cpu_flags", lambda: frozenset({"avx2"}))
    assert engine(tiny, engine="openvino") == ("openvino", "")  # block by block
    chosen, told = engine(tiny, engine="openvino", int8=0)
    assert chosen == "torch"
    assert "FILMLET_INT8 forbids" in told
    monkeypatch.setattr(selection, "BLOCKWISE_MAX_PARAMETERS", 10_000)
    chosen, told = engine(tiny, engine="openvino")
    assert chosen == "torch"
    assert "too much memory" in told


def test_where_memory_runs_out_torch_goes_on_from_what_openvino_has_made(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(components.VaeDecoder, "__call__", full)
    request = build_request("a red ball", size="64x64", frames=9, seed=1)
    settings = Settings(engine="openvino", cache=cache, offload="model")
    work = prepare_run(make_plan(request), settings, "float32", "openvino")
    pixels = [event.pixels for event in work.frames() if isinstance(event, Frames)]
    assert (work.effective.engine, work.effective.offload) == ("torch", "layerwise_casting")
    assert {"offload", "engine"} <= {change.field for change in work.effective.changes}
    latents = to_numpy(work.context.artifacts.results["latents"]["latents"])
    expected = frames(load(POCKET, dtype=work.effective.dtype), latents, work.clip.denoise_params)
    assert np.array_equal(np.concatenate(pixels), expected)


def test_eight_bits_are_used_where_the_cpu_has_them_unless_they_are_not_wanted(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = build_request("a red ball", size="64x64", frames=9, seed=1)
    avx = {"avx2"}
    for has, wanted, optimizations in ((avx, 1, ("int8",)), (avx, 0, ()), (set(), 1, ())):
        monkeypatch.setattr(cpu, "cpu_flags", lambda has=has: has)
        settings = Settings(engine="openvino", cache=cache, int8=wanted)
        assert prepare_run(make_plan(request), settings).effective.optimizations == optimizations


def test_eight_bits_are_left_to_cpus_whose_bfloat16_is_slower(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cpu, "cpu_flags", lambda: {"avx2", "amx_bf16"})
    assert runner.prefers_int8("float32")
    assert not runner.prefers_int8("bfloat16")


def test_eight_bits_that_are_off_are_given_up_once_and_for_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu, "cpu_flags", lambda: {"avx2", "avx512_vnni"})
    monkeypatch.setattr(components, "MIN_PSNR_DB", 99.0)
    settings = Settings(engine="openvino", cache=tmp_path / "cache")
    request = build_request("a ball", size="64x64", frames=9, seed=1)
    work = prepare_run(make_plan(request), settings)
    assert work.effective.optimizations == ("int8",)
    assert list(work.frames())
    assert (work.effective.dtype, work.effective.optimizations) == ("float32", ())
    (told,) = [change for change in work.effective.changes if change.field == "int8"]
    assert "dB in the decoder" in told.reason
    assert prepare_run(make_plan(request), settings).effective.optimizations == ()


@needs_bfloat16
def test_bfloat16_that_is_off_is_given_up_once_and_for_all(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(components, "MAX_BF16_ERROR", 1e-5)
    settings = Settings(engine="openvino", cache=tmp_path / "cache")
    request = build_request("a ball", model=str(tiny), size="64x64", frames=9)
    work = prepare_run(make_plan(request), settings)
    assert work.effective.dtype == "bfloat16"
    assert list(work.frames())
    assert (work.effective.engine, work.effective.dtype) == ("openvino", "float32")
    assert "dtype" in {change.field for change in work.effective.changes}
    following = prepare_run(make_plan(request), settings).effective
    assert (following.engine, following.dtype) == ("openvino", "float32")
