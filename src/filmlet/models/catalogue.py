"""The models filmlet knows by name, and any folder in diffusers' layout."""

from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path

from filmlet.card import FixedSigmas, GuideKind, ModelCard, ShiftedSigmas
from filmlet.errors import CheckpointDamaged, UnknownModel
from filmlet.models.folder import read_json
from filmlet.request import Grid

POCKET = Path(__file__).parent.parent / "pocket"
BIG_GRID = Grid(width=704, height=512, frames=121, fps=30.0, max_side=1280, scale=2, overlap=32)
LTXV = ModelCard(
    name="ltxv",
    summary="",
    licence="LTX-Video Open Weights License",
    repo="Lightricks/LTX-Video",
    # configs/ltxv-*-0.9.8-distilled.yaml of that repository: 7 calls, then 3.
    schedule=FixedSigmas((1.0, 0.9937, 0.9875, 0.9812, 0.9750, 0.9094, 0.7250)),
    refine=FixedSigmas((0.9094, 0.7250, 0.4219)),
    grid=BIG_GRID,
    decode_timestep=0.05,
    decode_noise=0.025,
    guides=GuideKind.ANY_FRAME,
    guide_noise=0.15,  # image_cond_noise_scale of ltx_video/inference.py
    context=25,
    causal=True,
)

CARDS = {
    card.name: card
    for card in (
        ModelCard(
            name="pocket",
            summary="bundled; a small world of emoji, shapes, motions and scenes; two CPU cores",
            licence="Apache-2.0; the emoji it draws are Noto Color Emoji, OFL-1.1",
            schedule=ShiftedSigmas(steps=8, shift=8.0),
            # In windows of other lengths than it was trained with, what it shows stands still.
            grid=Grid(max_side=512, window=25, overlap=16),
            folder=POCKET,
            revision="3",
            max_tokens=128,
        ),
        replace(
            LTXV,
            name="ltxv-2b-0.9.8-distilled",
            summary="2 billion parameters, 10 calls",
            bytes=6_340_000_000,
        ),
        replace(
            LTXV,
            name="ltxv-13b-0.9.7-distilled",
            summary="13 billion parameters, 10 calls",
            bytes=28_600_000_000,
            tone_map=0.6,
        ),
        replace(
            LTXV,
            name="ltxv-13b-0.9.8-distilled",
            summary="13 billion parameters, 10 calls",
            bytes=28_600_000_000,
            tone_map=0.6,
        ),
    )
}


def find(name: str) -> ModelCard:
    """The card of a name in the catalogue, or of a folder in diffusers' layout.

    Raises UnknownModel with the nearest names.
    """
    if name in CARDS:
        return CARDS[name]
    folder = Path(name)
    if (folder / "model_index.json").is_file():
        return _read_folder(folder)
    near = get_close_matches(name, CARDS, n=2, cutoff=0.3)
    hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(CARDS)}."
    raise UnknownModel(
        f"There is no model {name!r}; {hint} A folder in diffusers' layout works as well."
    )


def _read_folder(folder: Path) -> ModelCard:
    """A card for somebody's own checkpoint: run as a full model, shifted as it says."""
    scheduler = read_json(folder / "scheduler" / "scheduler_config.json")
    vae = read_json(folder / "vae" / "config.json")
    if scheduler.get("use_dynamic_shifting"):
        raise CheckpointDamaged(
            f"{folder} shifts its schedule by the clip's size; filmlet runs fixed schedules only."
        )
    timed = bool(vae.get("timestep_conditioning"))
    two_stages = (folder / "latent_upsampler" / "config.json").is_file()
    causal = read_json(folder / "model_index.json").get("_class_name") == "LTXConditionPipeline"
    shift = scheduler.get("shift", 1.0)
    return ModelCard(
        name=folder.name,
        summary="a folder of your own",
        licence="as its maker says",
        schedule=ShiftedSigmas(steps=30, shift=float(str(shift))),
        grid=Grid(scale=2 if two_stages else 1, overlap=BIG_GRID.overlap if causal else 8),
        folder=folder,
        refine=LTXV.refine if two_stages else None,
        revision="local",
        distilled=False,
        guidance=3.0,
        max_tokens=LTXV.max_tokens if causal else 128,
        stochastic=bool(scheduler.get("stochastic_sampling")),
        decode_timestep=0.05 if timed else 0.0,
        decode_noise=0.025 if timed else 0.0,
        guides=GuideKind.ANY_FRAME if causal else GuideKind.FIRST_FRAME,
        guide_noise=LTXV.guide_noise if causal else 0.0,
        context=LTXV.context if causal else 1,
        causal=causal,
    )
