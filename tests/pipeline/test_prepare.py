"""A prepared clip never changes; its engines belong to an owner, its results to a run."""

from dataclasses import FrozenInstanceError, replace
from pathlib import Path

import pytest

from filmlet.core.events import drain
from filmlet.core.memory import OffloadMode
from filmlet.core.request import build_request
from filmlet.engine.placement import Placement
from filmlet.errors import JobLost, NonFiniteValues, OutOfMemory
from filmlet.pipeline import placement_fallback, stages
from filmlet.pipeline.artifacts import ArtifactStore
from filmlet.pipeline.engine_cache import EngineCache
from filmlet.pipeline.plan import make_plan
from filmlet.pipeline.prepare import PreparedClip, prepare
from filmlet.settings import Settings


@pytest.fixture
def clip(tiny: Path) -> PreparedClip:
    request = build_request("a ball", model=str(tiny), size="64x64", frames=9, steps=2, seed=1)
    return drain(prepare(make_plan(request), Settings(device="cpu"), "float32"))


def placed(clip: PreparedClip, dtype: str, offload: OffloadMode = OffloadMode.NONE) -> PreparedClip:
    placement = Placement("cpu", dtype, "a test", offload)
    return replace(clip, placement=placement, effective=replace(clip.effective, dtype=dtype))


def test_prepared_clip_is_frozen(clip: PreparedClip) -> None:
    with pytest.raises(FrozenInstanceError):
        clip.placement = Placement("cpu", "float16", "a test")  # type: ignore[misc]


def test_retry_in_float32_is_another_clip(clip: PreparedClip) -> None:
    half = placed(clip, "float16")
    again = placement_fallback.fall_back_to_float32(half, NonFiniteValues("NaN"), emitted=0)
    assert (half.placement.dtype, half.effective.changes) == ("float16", clip.effective.changes)
    assert (again.placement.dtype, again.effective.dtype) == ("float32", "float32")
    (change,) = again.effective.changes[len(half.effective.changes) :]
    assert (change.field, change.requested, change.effective) == ("dtype", "float16", "float32")
    for hopeless, emitted in ((again, 0), (half, 1)):
        with pytest.raises(NonFiniteValues, match="no clip was written"):
            placement_fallback.fall_back_to_float32(hopeless, NonFiniteValues("NaN"), emitted)


def test_retry_with_more_offload_ends_where_there_is_none(clip: PreparedClip) -> None:
    for mode in ("model", "layerwise_casting", "sequential"):
        clip = placement_fallback.fall_back_to_more_offload(clip, MemoryError())
        assert (clip.placement.offload, clip.effective.offload) == (mode, mode)
    with pytest.raises(OutOfMemory):
        placement_fallback.fall_back_to_more_offload(clip, MemoryError())
    with pytest.raises(RuntimeError, match="another"):
        placement_fallback.fall_back_to_more_offload(clip, RuntimeError("another"))


def test_each_cache_has_its_own_engines(clip: PreparedClip) -> None:
    one, other = EngineCache(), EngineCache()
    engine = stages.load_engine(clip, one)
    assert stages.load_engine(clip, one) is engine
    assert not other.engines
    assert stages.load_engine(clip, other) is not engine
    one.clear()
    assert not one.engines
    assert len(other.engines) == 1


def test_one_engine_is_in_memory_on_a_device(clip: PreparedClip) -> None:
    engines = EngineCache()
    stages.load_engine(clip, engines)
    leaner = placed(clip, "float32", OffloadMode.MODEL)
    engine = stages.load_engine(leaner, engines)
    assert list(engines.engines.values()) == [engine]


def test_offload_mode_of_an_engine_in_memory_is_kept(clip: PreparedClip) -> None:
    engines, settings = EngineCache(), Settings(device="cpu")
    assert clip.placement.offload is OffloadMode.NONE
    leaner = replace(clip, placement=replace(clip.placement, offload=OffloadMode.MODEL))
    stages.load_engine(leaner, engines)
    for cache, mode in ((engines, OffloadMode.MODEL), (EngineCache(), OffloadMode.NONE)):
        again = drain(prepare(clip.plan, settings, "float32", engines=cache))
        assert again.placement.offload is mode


def test_results_are_in_memory_without_a_folder_and_cleared_with_one(
    clip: PreparedClip, tmp_path: Path
) -> None:
    engine = stages.load_engine(clip, EngineCache())
    lora = tmp_path / "lora.safetensors"
    lora.touch()
    for store in (ArtifactStore(), ArtifactStore(tmp_path)):
        store.save_result("latents", {"latents": engine.noise_source(1)(1, 2, 3)})
        assert store.load_result("latents", engine)
    assert ArtifactStore(tmp_path).load_result("latents", engine)
    store.clear(keep=[lora])
    assert store.load_result("latents", engine) is None
    assert [file.name for file in tmp_path.iterdir()] == ["lora.safetensors"]


def test_nothing_is_cleared_of_a_folder_that_is_anothers(tmp_path: Path) -> None:
    def confirm() -> None:
        raise JobLost("it is another attempt's now")

    (tmp_path / "latents.safetensors").touch()
    with pytest.raises(JobLost):
        ArtifactStore(tmp_path, confirm).clear()
    assert (tmp_path / "latents.safetensors").exists()
