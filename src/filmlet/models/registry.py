"""The models filmlet knows by name, and any folder, file or fetched repository of one's own."""

import re
from collections.abc import Mapping
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path, PurePosixPath

from filmlet.core.checkpoint_headers import read_json
from filmlet.core.lora import PICKLE_SUFFIXES
from filmlet.core.model_card import (
    POCKET_REVISION,
    Components,
    ComponentSource,
    ComponentSources,
    GuideSupport,
    ModelCard,
    ModelFamily,
)
from filmlet.core.schedules import FixedSigmas, LinearQuadraticSigmas, ShiftedSigmas
from filmlet.core.shape import ShapeConstraints
from filmlet.errors import CheckpointCorrupt, ModelNotFetched, UnknownModel
from filmlet.models import hub_cache
from filmlet.models.checkpoint_files import SingleFile, inspect_single_file
from filmlet.models.ltx2_cards import (
    LTX2_CARDS,
    LTX_2_3_DEV,
    LTX_2_3_DISTILLED,
    LTX_2_5_DEV,
    LTX_2_5_DISTILLED,
    LTX_2_DEV,
    LTX_2_DISTILLED,
)
from filmlet.models.ltx2_key_mapping import version_of_config

POCKET = Path(__file__).parent.parent / "pocket"
# In a window of 97 frames, the most pocket was trained on, what moves loses its shape; the more
# frames windows share, the more motions are wrong (bench/LONG.md).
POCKET_GRID = ShapeConstraints(
    width=256, height=256, frames=25, fps=24.0,
    max_side=512, max_frames=49, window_frames=49, overlap_frames=8,
)  # fmt: skip
BIG_GRID = ShapeConstraints(
    width=704, height=512, frames=121, fps=30.0, max_side=1280, overlap_frames=32
)
TWO_STAGES = replace(BIG_GRID, upscale_factor=2)
MAX_NAME_LENGTH = 200
DISTILLED_LORA = "distilled_lora.safetensors"  # of a full model of one's own
NAMES_OF_FULL_MODELS = re.compile(r"(^|[^a-z])dev([^a-z]|$)", re.IGNORECASE)
MAX_SHIFT = 1000.0  # published ones are between 1 and 20
LTX = ComponentSource(
    "", repo="Lightricks/LTX-Video", revision="8984fa25007f376c1a299016d0957a37a2f797bb"
)


def _lightricks_sources(file: str, bytes: float, *, is_two_stage: bool = True) -> ComponentSources:
    """Return one file for transformer and VAE, beside what all of them share."""
    both = replace(LTX, path=file, size_bytes=int(bytes))
    upsampler = replace(LTX, path="ltxv-spatial-upscaler-0.9.8.safetensors", size_bytes=505_000_000)
    return Components(
        transformer=both,
        vae=both,
        text_encoder=replace(LTX, path="text_encoder", size_bytes=19_049_290_411),
        tokenizer=replace(LTX, path="tokenizer", size_bytes=800_000),
        upsampler=upsampler if is_two_stage else None,
    )


def _folder_sources(folder: Path, revision: str) -> ComponentSources:
    """Return a folder in diffusers' layout."""

    def part(name: str) -> ComponentSource:
        return ComponentSource(name, revision=revision, root=folder)

    upsampler = "latent_upsampler"
    preview = "preview.safetensors"
    return Components(
        transformer=part("transformer"),
        vae=part("vae"),
        text_encoder=part("text_encoder"),
        tokenizer=part("tokenizer"),
        upsampler=part(upsampler) if (folder / upsampler / "config.json").is_file() else None,
        preview=part(preview) if (folder / preview).is_file() else None,
    )


def _ltx2_folder_sources(folder: Path, revision: str) -> ComponentSources:
    """A folder of LTX-2 in diffusers' layout."""
    names = ("connectors", "audio_vae", "vocoder")
    parts = {name: ComponentSource(name, revision=revision, root=folder) for name in names}
    return replace(_folder_sources(folder, revision), **parts)


# What the distilled models of 0.9.8 share; configs/ltxv-*-0.9.8-distilled.yaml of Lightricks'
# repository say 7 calls, then 3.
LTXV = ModelCard(
    name="ltxv-2b-0.9.8-distilled",
    summary="2 billion parameters, 7 + 3 steps",
    licence="LTX-Video Open Weights License",
    sources=_lightricks_sources("ltxv-2b-0.9.8-distilled.safetensors", 6.34e9),
    parameters=Components(1.92e9, 1.25e9, 4.76e9, 0.0, 0.25e9),
    schedule=FixedSigmas((1.0, 0.9937, 0.9875, 0.9812, 0.9750, 0.9094, 0.7250)),
    refine_schedule=FixedSigmas((0.9094, 0.7250, 0.4219)),
    grid=TWO_STAGES,
    decode_timestep=0.05,
    decode_noise_scale=0.025,
    guide_support=GuideSupport.ANY_FRAME,
    image_cond_noise_scale=0.15,  # image_cond_noise_scale of ltx_video/inference.py
    context_frames=25,
    is_condition_pipeline=True,
)
LTXV_13B = replace(
    LTXV,
    name="ltxv-13b-0.9.8-distilled",
    summary="13 billion parameters, 7 + 3 steps",
    sources=_lightricks_sources("ltxv-13b-0.9.8-distilled.safetensors", 28.6e9),
    parameters=Components(13.04e9, 1.25e9, 4.76e9, 0.0, 0.25e9),
    tone_map_compression_ratio=0.6,
)
LTXV_DEV = replace(
    LTXV,
    name="ltxv-2b-0.9.6-dev",
    summary="2 billion parameters, not distilled: 40 steps under guidance",
    sources=_lightricks_sources("ltxv-2b-0.9.6-dev-04-25.safetensors", 6.34e9, is_two_stage=False),
    schedule=LinearQuadraticSigmas(40),
    refine_schedule=None,
    grid=BIG_GRID,
    distilled=False,
    guidance_scale=3.0,
)

REGISTRY = {
    card.name: card
    for card in (
        ModelCard(
            name="pocket",
            summary="bundled; a small world of emoji, shapes, motions and scenes; two CPU cores",
            licence="Apache-2.0; the emoji it draws are Noto Color Emoji, OFL-1.1",
            sources=_folder_sources(POCKET, revision=POCKET_REVISION),
            schedule=ShiftedSigmas(steps=4, shift=8.0),
            grid=POCKET_GRID,
            max_prompt_tokens=128,
        ),
        replace(
            LTXV_DEV,
            name="ltxv-2b-0.9.6-distilled",
            summary="2 billion parameters, 8 steps, one stage",
            sources=_lightricks_sources(
                "ltxv-2b-0.9.6-distilled-04-25.safetensors", 6.34e9, is_two_stage=False
            ),
            schedule=LinearQuadraticSigmas(8),
            distilled=True,
            guidance_scale=1.0,
            stochastic_sampling=True,
        ),
        LTXV,
        replace(
            LTXV,
            name="ltxv-2b-0.9.8-distilled-fp8",
            summary="2 billion parameters in 8 bits, 7 + 3 steps",
            sources=_lightricks_sources("ltxv-2b-0.9.8-distilled-fp8.safetensors", 4.46e9),
            stored_bytes=1,
        ),
        replace(
            LTXV_13B,
            name="ltxv-13b-0.9.7-distilled",
            sources=_lightricks_sources("ltxv-13b-0.9.7-distilled.safetensors", 28.6e9),
        ),
        LTXV_13B,
        replace(
            LTXV_13B,
            name="ltxv-13b-0.9.8-distilled-fp8",
            summary="13 billion parameters in 8 bits, 7 + 3 steps",
            sources=_lightricks_sources("ltxv-13b-0.9.8-distilled-fp8.safetensors", 15.7e9),
            stored_bytes=1,
        ),
        LTXV_DEV,
        replace(
            LTXV_13B,
            name="ltxv-13b-0.9.8-dev",
            summary="13 billion parameters, not distilled: 30 steps under guidance, then 4",
            sources=_lightricks_sources("ltxv-13b-0.9.8-dev.safetensors", 28.6e9),
            schedule=LinearQuadraticSigmas(30),
            refine_schedule=LinearQuadraticSigmas(4, skip=6),
            distilled=False,
            guidance_scale=5.0,
            guidance_rescale=0.7,
        ),
        *LTX2_CARDS,
    )
}
LTX2_DISTILLED_BY_VERSION = {
    card.version: card for card in (LTX_2_3_DISTILLED, LTX_2_DISTILLED, LTX_2_5_DISTILLED)
}
LTX2_DEV_BY_VERSION = {card.version: card for card in (LTX_2_3_DEV, LTX_2_DEV, LTX_2_5_DEV)}


def get_card(name: str) -> ModelCard:
    """Return the card of a name in the registry, a folder, a file or a fetched repository.

    A folder or repository is in diffusers' layout; a file is one of Lightricks'. Raises
    UnknownModel with the nearest names, ModelNotFetched for a repository that is not here yet.
    """
    if name in REGISTRY:
        return REGISTRY[name]
    if not name.strip():
        raise UnknownModel(f"The name of the model is empty; there are {', '.join(REGISTRY)}.")
    try:
        if found := _read_local_card(name, Path(name)):
            return found
    except OSError as error:  # a name that is too long, or a folder that may not be looked into
        raise UnknownModel(
            f"There is no model {_quote_shortened(name)}: {error.strerror}."
        ) from error
    if reason := _why_not_place(Path(name)):
        raise UnknownModel(f"There is no model {_quote_shortened(name)}: {reason}.")
    near = get_close_matches(name[:MAX_NAME_LENGTH], REGISTRY, n=2, cutoff=0.3)
    hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(REGISTRY)}."
    raise UnknownModel(
        f"There is no model {_quote_shortened(name)}; {hint} A folder in diffusers' "
        "layout, a .safetensors file or OWNER/NAME at the Hub work as well."
    )


def _read_local_card(name: str, place: Path) -> ModelCard | None:
    if (place / "model_index.json").is_file():
        return _read_folder(place, place.name, "local")
    if place.suffix.lower() == ".safetensors" and place.is_file():
        return _read_file(place)
    if hub_cache.is_name(name) and not place.exists():
        return _read_repository(name)
    return None


def _why_not_place(place: Path) -> str | None:
    """Why what is called as a file or a folder is no model; None for what is called otherwise."""
    kind = place.suffix.lower().removeprefix(".")
    if place.is_dir():
        return "the folder holds no model_index.json, which diffusers writes"
    if kind not in (*PICKLE_SUFFIXES, "gguf", "safetensors"):
        return "it is no .safetensors file and no folder" if place.exists() else None
    if kind == "safetensors" or not place.exists():
        return "it is no file" if place.exists() else "there is no such file"
    if kind == "gguf":
        return "GGUF files are not read; take the model's .safetensors file"
    return f".{kind} files are pickles, which may run programs; take the .safetensors file"


def _quote_shortened(name: str) -> str:
    return repr(name if len(name) <= MAX_NAME_LENGTH else f"{name[:MAX_NAME_LENGTH]}...")


def _read_repository(name: str) -> ModelCard:
    snapshot = hub_cache.snapshot(name, "main")
    if snapshot is None or not (snapshot / "model_index.json").is_file():
        raise ModelNotFetched(f"{name} is not on this machine; fetch it first.", model=name)
    return _read_folder(snapshot, name, snapshot.name)


def _read_file(file: Path) -> ModelCard:
    """A file of one's own: run as the catalogue's that has its name, else as `_own_file_card`."""
    found = inspect_single_file(file)
    source = ComponentSource(file.name, revision="local", root=file.parent)
    own = dict.fromkeys(found.components, source)
    for card in REGISTRY.values():
        name = PurePosixPath(card.sources.transformer.path).name
        if name == file.name and card.version == found.version:
            return replace(card, sources=replace(card.sources, **own))
    if found.family is ModelFamily.LTX2:
        return _own_ltx2_card(file, found, own)
    sources = replace(LTXV_DEV.sources, **own)
    return replace(LTXV_DEV, name=file.stem, summary="a file of your own", sources=sources)


def _own_ltx2_card(file: Path, found: SingleFile, own: Mapping[str, ComponentSource]) -> ModelCard:
    """Full and distilled models of LTX-2 differ in their values alone: the name decides."""
    is_full = bool(NAMES_OF_FULL_MODELS.search(file.stem))
    card = (LTX2_DEV_BY_VERSION if is_full else LTX2_DISTILLED_BY_VERSION)[found.version]
    return replace(
        card,
        name=file.stem,
        summary=f"a file of your own, run as a {'full' if is_full else 'distilled'} model",
        sources=replace(card.sources, **own),
        stored_bytes=1 if found.has_8bit_weights else 2,
    )


def _read_folder(folder: Path, name: str, revision: str) -> ModelCard:
    """Return a card for somebody's own checkpoint: run as a full model, shifted as it says."""
    scheduler = read_json(folder / "scheduler" / "scheduler_config.json")
    index = read_json(folder / "model_index.json")
    if str(index.get("_class_name")).startswith("LTX2"):
        return _read_ltx2_folder(folder, name, revision, scheduler)
    vae = read_json(folder / "vae" / "config.json")
    if scheduler.get("use_dynamic_shifting"):
        raise CheckpointCorrupt(
            f"{folder} shifts its schedule by the clip's size; filmlet runs fixed schedules only."
        )
    timed = bool(vae.get("timestep_conditioning"))
    sources = _folder_sources(folder, revision)
    causal = index.get("_class_name") == "LTXConditionPipeline"
    shift = scheduler.get("shift", 1.0)
    if type(shift) not in (int, float) or not 0 < shift <= MAX_SHIFT:
        raise CheckpointCorrupt(
            f"{folder}/scheduler: shift must be above 0 and at most {MAX_SHIFT}, not {shift!r:.60}."
        )
    return ModelCard(
        name=name,
        summary="a checkpoint of your own",
        licence="as its maker says",
        schedule=ShiftedSigmas(steps=30, shift=float(shift)),
        grid=ShapeConstraints(
            upscale_factor=2 if sources.upsampler else 1,
            overlap_frames=BIG_GRID.overlap_frames if causal else 8,
        ),
        sources=sources,
        refine_schedule=LTXV.refine_schedule if sources.upsampler else None,
        distilled=False,
        guidance_scale=3.0,
        max_prompt_tokens=LTXV.max_prompt_tokens if causal else 128,
        stochastic_sampling=bool(scheduler.get("stochastic_sampling")),
        decode_timestep=0.05 if timed else 0.0,
        decode_noise_scale=0.025 if timed else 0.0,
        guide_support=GuideSupport.ANY_FRAME if causal else GuideSupport.FIRST_FRAME,
        image_cond_noise_scale=LTXV.image_cond_noise_scale if causal else 0.0,
        context_frames=LTXV.context_frames if causal else 1,
        is_condition_pipeline=causal,
    )


def _read_ltx2_folder(
    folder: Path, name: str, revision: str, scheduler: Mapping[str, object]
) -> ModelCard:
    """Return a card for somebody's own checkpoint of LTX-2.

    One that shifts its schedule by the clip's size is a full model, the others are distilled. A
    full model has a second stage where it has an upsampler and the distilled LoRA for it.
    """
    sources = _ltx2_folder_sources(folder, revision)
    version = version_of_config(read_json(folder / "transformer" / "config.json"))
    if scheduler.get("use_dynamic_shifting"):
        card, lora = LTX2_DEV_BY_VERSION[version], None
        if sources.upsampler and (folder / DISTILLED_LORA).is_file():
            lora = ComponentSource(DISTILLED_LORA, revision=revision, root=folder)
        upsampler = sources.upsampler if lora else None
        sources = replace(sources, upsampler=upsampler, distilled_lora=lora)
    else:
        card = LTX2_DISTILLED_BY_VERSION[version]
    return replace(
        card,
        name=name,
        summary="a checkpoint of your own",
        licence="as its maker says",
        licence_terms="",
        sources=sources,
        parameters=None,
        grid=replace(card.grid, upscale_factor=2 if sources.upsampler else 1),
        refine_schedule=card.refine_schedule if sources.upsampler else None,
    )
