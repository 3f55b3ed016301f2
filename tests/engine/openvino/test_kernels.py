"""Each faster form of a layer in OpenVINO against the plain form, and the setting that chooses."""

from dataclasses import fields, replace
from functools import cache as memoize
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from filmlet.core import cpu
from filmlet.core.events import Frames, drain
from filmlet.core.request import build_request
from filmlet.models import local_files
from filmlet.pipeline import stages
from filmlet.pipeline.plan import make_plan
from filmlet.pipeline.prepare import prepare
from filmlet.pipeline.run_context import RunContext
from filmlet.settings import Settings

pytest.importorskip("openvino")
from filmlet.engine.openvino import transformer as transformer_graphs
from filmlet.engine.openvino import vae_decoder as decoder_graphs
from filmlet.engine.openvino.compile import ComponentBuild
from filmlet.engine.openvino.components import Transformer, VaeDecoder, VaeDecoderGraphs
from filmlet.engine.openvino.noise import TorchNoise
from filmlet.engine.openvino.ops import (
    PLAIN_KERNELS,
    GraphOptions,
    Kernels,
    ModuleWeights,
    choose_kernels,
)
from tests.helpers.openvino_fixtures import POCKET, psnr

pytestmark = pytest.mark.compile

EVERY = replace(choose_kernels(), gelu_by_exp=True, narrow_channels=32)  # on any CPU
IN_TRANSFORMER = ("gelu_by_exp", "rope_by_halves", "text_multiple")
IN_DECODER = ("narrow_channels", "round_by_quantize", "double_buffer")
IN_CALLS = ("text_multiple", "double_buffer")  # not in graphs


def only(name: str) -> Kernels:
    return replace(PLAIN_KERNELS, **{name: getattr(EVERY, name)})


def build(name: str, kernels: Kernels, folder: Path, is_int8: bool = False) -> ComponentBuild:
    return ComponentBuild(name, POCKET, local_files(POCKET), "float32", folder, is_int8, kernels)


def velocity(kernels: Kernels, folder: Path) -> NDArray[np.float32]:
    """Of 48 tokens and 5 words."""
    model = drain(Transformer.load(build("transformer", kernels, folder)))
    axes = np.meshgrid(*(np.arange(n, dtype=np.float32) for n in (3, 4, 4)), indexing="ij")
    places = np.stack(axes).reshape(1, 3, -1) * np.array([[[0.3], [32], [32]]], np.float32)
    latents, text = TorchNoise(1).randn(1, 48, 64), TorchNoise(2).randn(1, 5, 192)
    return model(latents, text, np.array([0.7], np.float32), places)


def decoded(kernels: Kernels, folder: Path, is_int8: bool = False) -> NDArray[np.uint8]:
    model = drain(VaeDecoder.load(build("decoder", kernels, folder, is_int8)))
    return np.concatenate(list(model(TorchNoise(1).randn(1, 64, 3, 3, 4))))


@pytest.mark.parametrize("name", IN_TRANSFORMER)
def test_form_of_a_layer_gives_the_velocity_of_the_plain_one(name: str, cache: Path) -> None:
    expected, found = velocity(PLAIN_KERNELS, cache), velocity(only(name), cache)
    assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize("name", IN_DECODER)
def test_form_of_a_layer_gives_the_frames_of_the_plain_one(name: str, cache: Path) -> None:
    expected, found = decoded(PLAIN_KERNELS, cache), decoded(only(name), cache)
    assert np.abs(found.astype(int) - expected).max() <= 1


def test_frames_in_eight_bits_are_near_those_of_plain_graphs(cache: Path) -> None:
    expected, found = (
        decoded(PLAIN_KERNELS, cache, is_int8=True),
        decoded(EVERY, cache, is_int8=True),
    )
    assert np.mean((found.astype(float) - expected) ** 2) <= 0.65  # 50 dB


@memoize
def operations(kernels: Kernels) -> str:
    """The operations of the transformer's and the int8 decoder's graphs, in order."""
    decoder, transformer = (build(n, kernels, Path()).weights for n in ("decoder", "transformer"))
    graphs = VaeDecoderGraphs.from_weights(decoder, POCKET, kernels)
    config = transformer_graphs.TransformerConfig.from_config(transformer.config)
    weights = ModuleWeights(dict(transformer.arrays()))
    models = [transformer_graphs.build_graph(weights, config, kernels)]
    weights = ModuleWeights(dict(decoder.arrays())).submodule("decoder")
    ranges = dict.fromkeys(conv_names(graphs), (-1.0, 1.0))
    options = GraphOptions(is_int8=True, kernels=kernels)
    models += decoder_graphs.build_graphs(weights, graphs.config, options, ranges)
    nodes = (node for model in models for node in model.get_ordered_ops())
    return "\n".join(f"{n.get_type_name()} {values(n)}" for n in nodes)


def values(node: object) -> object:
    return node.get_vector()[:8].tolist() if node.get_type_name() == "Constant" else ""


def conv_names(graphs: VaeDecoderGraphs) -> list[str]:
    kinds = decoder_graphs.ModuleKind
    names = []
    for module in (module for level in graphs.levels for module in level):
        parts = [".conv1.conv", ".conv2.conv"] if module.kind is kinds.RESNET else [""]
        names += [f"decoder.{module.name}{part}." for part in parts]
    return names


@pytest.mark.parametrize("name", [f.name for f in fields(Kernels) if f.name not in IN_CALLS])
def test_switch_changes_the_graphs(name: str) -> None:
    assert operations(only(name)) != operations(PLAIN_KERNELS)


def test_kernels_have_graphs_of_their_own_in_the_cache(tmp_path: Path) -> None:
    kernels = [PLAIN_KERNELS, *(only(field.name) for field in fields(Kernels))]
    assert len({build("decoder", one, tmp_path).cache_key for one in kernels}) == len(kernels)


@pytest.mark.parametrize(
    ("flags", "form"), [({"avx2"}, True), ({"avx2", "avx512f"}, False), ({"asimd"}, False)]
)
def test_forms_are_chosen_by_the_cpu(
    flags: set[str], form: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu, "cpu_flags", lambda: frozenset(flags))
    assert choose_kernels().gelu_by_exp is form
    assert choose_kernels(is_plain=True) == PLAIN_KERNELS


def test_clip_of_plain_graphs_is_near_that_of_the_others(cache: Path) -> None:
    clips = []
    for plain in (0, 1):
        request = build_request("a red circle", seed=1, size="128x96", frames=25)
        settings = Settings(
            device="cpu", engine="openvino", cache=cache, int8=0, openvino_plain=plain
        )
        prepared = drain(prepare(make_plan(request), settings, "float32", "openvino"))
        assert prepared.placement.is_plain == (plain > 0)
        context = RunContext()
        events = stages.generate_frames(prepared, context)
        clips.append(np.concatenate([e.pixels for e in events if isinstance(e, Frames)]))
        (engine,) = context.engines.engines.values()
        assert engine.components["decoder"].graphs.kernels == choose_kernels(plain > 0)
    assert 50 <= psnr(*clips) < np.inf
