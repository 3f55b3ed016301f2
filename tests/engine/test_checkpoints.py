"""Every model of the catalogue runs from Lightricks' own files, here on tiny twins of them."""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKLLTXVideo,
    FlowMatchEulerDiscreteScheduler,
    LTXConditionPipeline,
    LTXVideoTransformer3DModel,
)
from diffusers.loaders.single_file_utils import (
    convert_ltx_transformer_checkpoint_to_diffusers,
    convert_ltx_vae_checkpoint_to_diffusers,
)
from huggingface_hub import constants
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

import filmlet
from filmlet.clip import ENGINES
from filmlet.core.events import Frames, drain
from filmlet.core.model_card import ModelCard
from filmlet.core.request import build_request
from filmlet.core.shape import resolve_shape
from filmlet.engine import selection
from filmlet.engine.arrays import pack_latents, unpack_latents
from filmlet.engine.base import DenoiseParams, PromptEmbeds
from filmlet.engine.latents import Modalities
from filmlet.engine.placement import Placement
from filmlet.engine.sampler import ResumeState
from filmlet.engine.torch.engine import TorchEngine
from filmlet.errors import CheckpointCorrupt, CheckpointNotFound, UnknownModel
from filmlet.models import REGISTRY, download_model, get_card, local_files
from filmlet.models.ltx_key_mapping import to_diffusers_keys
from filmlet.models.tokenizer import load_tokenizer, tokenize
from filmlet.pipeline.plan import make_plan
from filmlet.settings import Settings
from tests.helpers.clips import prepare_run
from tests.helpers.fake_hub import COMMIT, serve_repositories
from tests.helpers.tiny_checkpoint import make_vae
from tests.helpers.tiny_ltx_files import as_one, of_vae

pytestmark = pytest.mark.compile

FLOAT32 = Placement("cpu", "float32", "a test")
ROWS = [n for n, card in REGISTRY.items() if card.version == "" and n != "pocket"]
SMALL = {"size": "96x64", "frames": 17, "fps": 12.0, "seed": 3}
PROMPT = "a red ball moving left"


@pytest.fixture(scope="module")
def cached(twin: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Every model of the catalogue in the Hub's cache; the Hub itself is gone."""
    home = tmp_path_factory.mktemp("hf")
    with (
        pytest.MonkeyPatch.context() as patch,
        serve_repositories({"Lightricks/LTX-Video": twin}) as hub,
    ):
        patch.setenv("HF_ENDPOINT", hub.url)
        patch.setenv("HF_HOME", str(home))
        patch.setenv("HF_HUB_OFFLINE", "0")
        patch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
        for name in ROWS:
            list(download_model(REGISTRY[name]))
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield home / "hub" / "models--Lightricks--LTX-Video" / "snapshots" / COMMIT


def engine_of(card: ModelCard) -> TorchEngine:
    files = local_files(card)
    assert files
    return drain(selection.load_engine(card, files, FLOAT32))


def test_their_names_become_what_diffusers_own_converter_makes_of_them() -> None:
    with torch.device("meta"):
        vae = AutoencoderKLLTXVideo(
            block_out_channels=(128, 256, 512, 1024, 2048),
            down_block_types=("LTXVideo095DownBlock3D",) * 4,
            decoder_block_out_channels=(256, 512, 1024),
            layers_per_block=(4, 6, 6, 2, 2),
            decoder_layers_per_block=(5, 5, 5, 5),
            spatio_temporal_scaling=(True,) * 4,
            decoder_spatio_temporal_scaling=(True,) * 3,
            decoder_inject_noise=(False,) * 4,
            downsample_type=("spatial", "temporal", "spatiotemporal", "spatiotemporal"),
            upsample_residual=(True,) * 3,
            upsample_factor=(2,) * 3,
            timestep_conditioning=True,
        )
        transformer = LTXVideoTransformer3DModel()
    theirs = as_one(transformer, vae)
    for component, module, convert in (
        ("transformer", transformer, convert_ltx_transformer_checkpoint_to_diffusers),
        ("vae", vae, convert_ltx_vae_checkpoint_to_diffusers),
    ):
        ours = set(to_diffusers_keys(component, theirs).values())
        assert ours == set(convert(dict(theirs))) == set(module.state_dict())


def test_shapes_of_a_file_tell_the_module_it_is_of(tmp_path: Path) -> None:
    from filmlet.engine.state_dict import CheckpointWeights

    vae = make_vae(timed=True)
    blocks = len(vae.encoder.down_blocks)
    table = {f"vae.{of_vae(n, blocks)}": t.contiguous() for n, t in vae.state_dict().items()}
    save_file(table, tmp_path / "vae.safetensors")
    config = CheckpointWeights("vae", tmp_path / "vae.safetensors").config
    again = AutoencoderKLLTXVideo.from_config(config)
    for name, value in config.items():
        assert list(np.ravel(vae.config[name])) == list(np.ravel(value)), name
    assert {n: t.shape for n, t in again.state_dict().items()} == {
        n: t.shape for n, t in vae.state_dict().items()
    }


def test_every_weight_arrives_in_its_place(cached: Path) -> None:
    engine = engine_of(REGISTRY["ltxv-2b-0.9.8-distilled"])
    file = load_file(cached / "ltxv-2b-0.9.8-distilled.safetensors")
    again = as_one(engine.transformer, engine.vae)
    assert again.keys() == file.keys()
    assert all(torch.equal(again[n], t) for n, t in file.items() if "channel" not in n)


def stock_pipeline(engine: TorchEngine) -> LTXConditionPipeline:
    files = local_files(engine.card)
    assert files
    pipe = LTXConditionPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=1.0),
        vae=engine.vae,
        text_encoder=engine.text_encoder,
        tokenizer=AutoTokenizer.from_pretrained(files.tokenizer, local_files_only=True),
        transformer=engine.transformer,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def latents_of(
    engine: TorchEngine, recipe: DenoiseParams, start: ResumeState | None = None
) -> torch.Tensor:
    files = local_files(engine.card)
    assert files
    tokenizer, most = load_tokenizer(files.tokenizer), engine.card.max_prompt_tokens
    away = (
        engine.encode_prompt(tokenize(tokenizer, "the moon", most)) if recipe.guidance > 1 else None
    )
    told = PromptEmbeds(engine.encode_prompt(tokenize(tokenizer, PROMPT, most)), away)
    *_, last = engine.denoise(told, recipe, start)
    return unpack_latents(last.latents.video, *engine.latent_shape(recipe.shape))


@pytest.mark.filterwarnings("ignore")  # stock's own
@pytest.mark.usefixtures("cached")
@pytest.mark.parametrize("name", [n for n in ROWS if not REGISTRY[n].stochastic_sampling])
def test_each_stage_of_each_model_equals_stock_diffusers(name: str) -> None:
    card = REGISTRY[name]
    engine = engine_of(card)
    pipe = stock_pipeline(engine)
    shape, _ = resolve_shape(build_request("a ball", size="64x64", frames=9, fps=12), card.grid)
    settings = {
        "prompt": PROMPT, "negative_prompt": "the moon", "width": 64, "height": 64,
        "num_frames": 9, "frame_rate": 12, "guidance_scale": card.guidance_scale,
        "guidance_rescale": card.guidance_rescale, "output_type": "latent",
        "max_sequence_length": card.max_prompt_tokens,
    }  # fmt: skip

    def stock(sigmas: tuple[float, ...], **more: object) -> torch.Tensor:
        generator = torch.Generator().manual_seed(7)
        timesteps = [1000 * sigma for sigma in sigmas]
        return pipe(**settings, timesteps=timesteps, generator=generator, **more).frames

    steps = min(card.schedule.steps, 8)
    sigmas = card.schedule.sigmas_for(steps)
    first = DenoiseParams(shape, sigmas, card.guidance_scale, seed=7)
    mine = latents_of(engine, first)
    assert (mine - stock(sigmas)).abs().max() <= 1e-4
    if not card.refine_schedule:
        return
    levels = card.refine_schedule.sigmas
    noise = torch.randn(mine.shape, generator=torch.Generator().manual_seed(7))
    start = ResumeState(0, Modalities(pack_latents(torch.lerp(mine, noise, levels[0]))))
    again = latents_of(engine, DenoiseParams(shape, levels, card.guidance_scale, seed=7), start)
    expected = stock((1.0, *levels), latents=mine, denoise_strength=0.999)
    assert (again - expected).abs().max() <= 1e-4


@pytest.mark.usefixtures("cached")
@pytest.mark.parametrize("name", ROWS)
def test_every_model_makes_clips_from_text_pictures_and_clips(name: str, tmp_path: Path) -> None:
    card = REGISTRY[name]
    first, last = tmp_path / "first.png", tmp_path / "last.png"
    for path, colour in ((first, "red"), (last, "blue")):
        Image.new("RGB", (96, 64), colour).save(path)
    steps = min(card.schedule.steps, 7)
    settings = SMALL | {"model": name, "steps": steps}
    plain = filmlet.generate(PROMPT, **settings)
    assert plain.frames.shape == (17, 64, 96, 3)
    assert plain.effective.revision == COMMIT[:12]
    assert plain.effective.sigmas == card.schedule.sigmas_for(steps)
    assert plain.effective.refine_sigmas == (
        card.refine_schedule.sigmas if card.refine_schedule else ()
    )
    guided = filmlet.generate(PROMPT, image=first, last_image=last, **settings)
    assert not np.array_equal(guided.frames, plain.frames)
    clip = plain.save(tmp_path / "clip.mp4")
    longer = filmlet.generate(PROMPT, extend=clip, **(settings | {"frames": 8}))
    assert longer.frames.shape == (25, 64, 96, 3)
    if card.refine_schedule:
        draft = filmlet.generate(PROMPT, draft=True, **settings)
        assert draft.frames.shape == (17, 32, 48, 3)


@pytest.mark.usefixtures("cached")
@pytest.mark.parametrize("hold", ["model", "layerwise_casting", "sequential"])
def test_however_a_model_is_held_the_clip_is_the_same(
    hold: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = SMALL | {"model": "ltxv-2b-0.9.8-distilled-fp8", "steps": 3}
    monkeypatch.setenv("FILMLET_OFFLOAD", "none")
    expected = filmlet.generate(PROMPT, **settings)
    assert expected.effective.offload == "none"
    monkeypatch.setenv("FILMLET_OFFLOAD", hold)
    ENGINES.clear()
    for _ in range(2):  # the second finds what the first has left in memory
        clip = filmlet.generate(PROMPT, **settings)
        assert clip.effective.offload == hold
        assert np.array_equal(clip.frames, expected.frames)
    (engine,) = ENGINES.engines.values()
    assert set(engine.components.modules) == {"vae"}, "one at a time"


LITTLE_MEMORY = """
import resource, sys
from pathlib import Path
from filmlet.pipeline import stages
from filmlet.core.events import Frames
from filmlet.pipeline.plan import make_plan
from filmlet.core.request import build_request
from filmlet.settings import Settings
from filmlet.core.events import Frames, drain
from tests.helpers.clips import prepare_run
settings = {"model": sys.argv[1], "size": "64x64", "frames": 9, "steps": 2, "seed": 1}
plan = make_plan(build_request("a red ball", **settings))
work = prepare_run(plan, Settings(offload="none"), "float32")
data = next(l for l in Path("/proc/self/status").read_text().splitlines() if "VmData" in l)
used = int(data.split()[1]) * 1024
limit = used + int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
pixels = sum(int(e.pixels.sum()) for e in work.frames() if isinstance(e, Frames))
holds = [c.effective for c in work.effective.changes if c.field == "offload"]
print(work.effective.offload, ",".join(holds), pixels)
"""


@pytest.mark.server
def test_where_memory_runs_out_the_model_is_held_in_a_leaner_way(
    tiny: Path, tmp_path: Path
) -> None:
    from transformers import T5Config, T5EncoderModel

    folder = Path(shutil.copytree(tiny, tmp_path / "wide"))
    shutil.rmtree(folder / "text_encoder")
    torch.manual_seed(0)
    wide = T5EncoderModel(
        T5Config(
            vocab_size=11, d_model=32, d_kv=8, d_ff=40_000, num_layers=40, num_heads=4,
            feed_forward_proj="gated-gelu",
        )
    )  # fmt: skip
    wide.to(torch.bfloat16).save_pretrained(folder / "text_encoder")

    settings = {"model": str(folder), "size": "64x64", "frames": 9, "steps": 2, "seed": 1}
    plan = make_plan(build_request("a red ball", **settings))
    run = prepare_run(plan, Settings(offload="none"), "float32")
    pixels = sum(int(e.pixels.sum()) for e in run.frames() if isinstance(e, Frames))
    assert run.effective.offload == "none"
    # Libraries take some 250 MB, the text encoder 307 as its file has it and 614 in float32 beside
    # that: this is in the middle between what layers need and what the text encoder does.
    words = [sys.executable, "-c", LITTLE_MEMORY, str(folder), "950000000"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split() == ["sequential", "model,layerwise_casting,sequential", str(pixels)]


def test_file_of_ones_own_runs_as_the_catalogues_of_that_name(cached: Path, tmp_path: Path) -> None:
    file = tmp_path / "ltxv-2b-0.9.8-distilled.safetensors"
    shutil.copy(cached / file.name, file)
    card = get_card(str(file))
    assert (card.schedule, card.refine_schedule) == (
        REGISTRY[file.stem].schedule,
        REGISTRY[file.stem].refine_schedule,
    )
    clip = filmlet.generate(PROMPT, model=str(file), **SMALL)
    assert np.array_equal(clip.frames, filmlet.generate(PROMPT, model=file.stem, **SMALL).frames)
    other = file.rename(tmp_path / "mine.safetensors")
    assert get_card(str(other)).guidance_scale == 3.0
    assert get_card(str(other)).name == "mine"


def test_file_of_another_model_or_a_pickle_is_refused(cached: Path, tmp_path: Path) -> None:
    assert cached
    strange = tmp_path / "strange.safetensors"
    save_file({"unet.conv.weight": torch.zeros(3)}, strange)
    with pytest.raises(CheckpointCorrupt, match=r"proj_in.weight.*0\.9\.5 or later"):
        filmlet.generate(PROMPT, model=str(strange))
    (tmp_path / "model.ckpt").write_bytes(b"a pickle")
    with pytest.raises(UnknownModel, match=r"\.safetensors"):
        filmlet.generate(PROMPT, model=str(tmp_path / "model.ckpt"))


def test_missing_or_misshapen_weight_of_a_file_is_named(cached: Path, tmp_path: Path) -> None:
    whole = load_file(cached / "ltxv-2b-0.9.8-distilled.safetensors")
    name = "model.diffusion_model.transformer_blocks.1.ff.net.2.weight"
    file = tmp_path / "mine.safetensors"
    save_file({n: t for n, t in whole.items() if n != name}, file)
    with pytest.raises(CheckpointCorrupt, match=r"no weights for transformer_blocks.1.ff.net.2"):
        filmlet.generate(PROMPT, model=str(file))
    save_file(whole | {name: torch.zeros(3, 3)}, file)
    with pytest.raises(CheckpointCorrupt, match=r"wrong shape of transformer_blocks.1.ff.net.2"):
        filmlet.generate(PROMPT, model=str(file))


def test_server_may_be_told_to_fetch_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("FILMLET_ALLOW_DOWNLOAD", "0")
    with pytest.raises(CheckpointNotFound, match="fetches none by itself"):
        filmlet.generate(PROMPT, model="ltxv-13b-0.9.8-dev")
