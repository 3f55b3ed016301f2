"""The files of results: the names of tensors in them never change, for old jobs are resumed."""

from pathlib import Path

import numpy as np
import pytest

from filmlet.engine import tensor_files
from filmlet.engine.arrays import Array
from filmlet.engine.latents import Modalities
from filmlet.engine.placement import Backend, Placement
from filmlet.pipeline.artifacts import EncodedInputs, UpsampledInputs

PLACEMENT = Placement("cpu", "float32", "a test", backend=Backend.OPENVINO)


def array(value: int) -> Array:
    return np.full((1, 2, 3), value, np.float32)


@pytest.mark.parametrize("prompts", [1, 3])
@pytest.mark.parametrize("is_guided", [False, True])
@pytest.mark.parametrize("guides", [0, 2])
def test_encoded_inputs_come_back_from_their_file(
    prompts: int, is_guided: bool, guides: int, tmp_path: Path
) -> None:
    encoded = EncodedInputs(
        tuple(map(array, range(prompts))),
        array(7) if is_guided else None,
        tuple(map(array, range(10, 10 + guides))),
    )
    tensor_files.save(tmp_path / "embeddings.safetensors", encoded.to_tensors())
    tensors = tensor_files.load(tmp_path / "embeddings.safetensors", PLACEMENT)
    assert tensors is not None
    back = EncodedInputs.from_tensors(tensors)
    assert [p.flat[0] for p in back.prompts] == list(range(prompts))
    assert [g.flat[0] for g in back.guides] == list(range(10, 10 + guides))
    assert (back.negative is not None) == is_guided


def test_encoded_inputs_have_the_names_of_old_files() -> None:
    encoded = EncodedInputs((array(0), array(1), array(2)), array(3), (array(4), array(5)))
    assert set(encoded.to_tensors()) == {
        "prompt", "then_1", "then_2", "negative", "guide_0", "guide_1",
    }  # fmt: skip
    upsampled = UpsampledInputs(Modalities(array(0)), (array(1),))
    assert set(upsampled.to_tensors()) == {"latents", "guide_0"}
    back = UpsampledInputs.from_tensors(upsampled.to_tensors())
    assert (back.latents.video.flat[0], [g.flat[0] for g in back.guides]) == (0, [1])
