"""The rows of LTX-2 in the catalogue, distilled and full: models that make picture and sound."""

from dataclasses import replace

from filmlet.core.model_card import (
    Components,
    ComponentSource,
    ComponentSources,
    GuidanceScales,
    GuideSupport,
    ModelCard,
    ModelFamily,
    MultimodalGuidance,
)
from filmlet.core.schedules import FixedSigmas, StretchedSigmas
from filmlet.core.shape import ShapeConstraints

LTX_2 = ComponentSource(
    "", repo="Lightricks/LTX-2", revision="47da56e2ad66ce4125a9922b4a8826bf407f9d0a"
)
LTX_2_3 = ComponentSource(
    "", repo="Lightricks/LTX-2.3", revision="5948be4ced3a4493d1f836df64378ff136ddb770"
)
LTX_2_3_FP8 = ComponentSource(
    "", repo="Lightricks/LTX-2.3-fp8", revision="1d756cd27fa11c0896c4dfee093cd1bf36c7f7a1"
)
LTX_2_5 = ComponentSource(
    "", repo="Lightricks/LTX-2.5", revision="5e6e71018ee1756ed329b697a7b4aedc934dfce9"
)
# An open copy: Google's own repository is gated.
GEMMA_3 = ComponentSource(
    "split_files/text_encoders/gemma_3_12B_it.safetensors",
    repo="Comfy-Org/ltx-2",
    revision="ccde4ba417d7900669fd56dd292a883cee11ff37",
    size_bytes=24_379_468_890,
)
TOKENIZER = replace(LTX_2, path="tokenizer", size_bytes=38_000_000)
LICENCE = "LTX-2 Community License; its text encoder: Gemma Terms of Use"
LICENCE_TERMS = (
    "Free below USD 10 million of yearly revenue. Who passes the model on, or serves others with "
    "it, passes on its licence, notice and limits of use, and nobody removes what marks its clips "
    "as generated."
)
# ltx_pipelines/utils/constants.py of Lightricks' repository: 8 calls, then 3.
SIGMAS = FixedSigmas((1.0, 0.99375, 0.9875, 0.98125, 0.975, 0.909375, 0.725, 0.421875))
REFINE_SIGMAS = FixedSigmas((0.909375, 0.725, 0.421875))
GRID = ShapeConstraints(
    width=768,
    height=512,
    frames=121,
    max_side=1920,
    upscale_factor=2,
    max_frames=481,
    window_frames=481,
    max_seconds=20.0,  # that its places in time go up to
)
GEMMA_PARAMETERS = 11.77e9  # of the language model alone
# Of rank 384, of 2.5 of rank 450.
LTX_2_LORA = replace(
    LTX_2, path="ltx-2-19b-distilled-lora-384.safetensors", size_bytes=7_670_000_000
)
LTX_2_3_LORA = replace(
    LTX_2_3, path="ltx-2.3-22b-distilled-lora-384-1.1.safetensors", size_bytes=7_605_507_256
)
LTX_2_5_LORA = replace(
    LTX_2_5,
    path="loras/ltx-2.5-22b-distilled-lora-450-bf16.safetensors",
    size_bytes=8_899_889_568,
)


def _one_file(source: ComponentSource, file: str, size: int, upscaler: str) -> ComponentSources:
    """All but the text encoder in one file; the upscaler of the same version lies beside it."""
    one = replace(source, path=file, size_bytes=size)
    where = LTX_2 if source is LTX_2 else LTX_2_3
    return Components(
        transformer=one,
        vae=one,
        text_encoder=GEMMA_3,
        tokenizer=TOKENIZER,
        upsampler=replace(where, path=upscaler, size_bytes=995_743_560),
        connectors=one,
        audio_vae=one,
        vocoder=one,
    )


def _split_files(kind: str) -> ComponentSources:
    """Return a file for each component of LTX-2.5. kind: "distilled" or "dev"."""

    def part(path: str, size: int) -> ComponentSource:
        return replace(LTX_2_5, path=path, size_bytes=size)

    diffusion = part(
        f"diffusion_models/ltx-2.5-22b-{kind}-transformer-bf16.safetensors", 42_018_190_584
    )
    text = part("text_encoders/gemma4-12b-with-proj-ltx-2.5-bf16.safetensors", 26_263_858_182)
    sound = part("vae/ltx-2.5-audio-vae-bf16.safetensors", 364_866_540)
    return Components(
        transformer=diffusion,
        vae=part("vae/ltx-2.5-video-vae-conv-bf16.safetensors", 1_452_269_922),
        text_encoder=text,
        tokenizer=text,
        upsampler=part(
            "latent_upscale_models/ltx-2.5-latent-spatial-upscaler-x2-bf16-1.0.safetensors",
            995_778_752,
        ),
        connectors=diffusion,
        audio_vae=sound,
        vocoder=sound,
    )


LTX_2_3_DISTILLED = ModelCard(
    name="ltx-2.3-22b-distilled",
    summary="22 billion parameters, picture and sound, 8 + 3 steps",
    licence=LICENCE,
    licence_terms=LICENCE_TERMS,
    sources=_one_file(
        LTX_2_3, "ltx-2.3-22b-distilled-1.1.safetensors", 46_149_345_334,
        "ltx-2.3-spatial-upscaler-x2-1.1.safetensors",
    ),
    parameters=Components(
        transformer=18.99e9, vae=0.726e9, text_encoder=GEMMA_PARAMETERS, tokenizer=0.0,
        upsampler=0.498e9, connectors=3.172e9, audio_vae=0.053e9, vocoder=0.129e9,
    ),
    schedule=SIGMAS,
    refine_schedule=REFINE_SIGMAS,
    grid=GRID,
    max_prompt_tokens=1024,
    guide_support=GuideSupport.ANY_FRAME,
    context_frames=25,
    image_crf=33,
    family=ModelFamily.LTX2,
    has_language_model=True,  # Gemma 3 12B it
    version="2.3",
)  # fmt: skip
LTX_2_DISTILLED = replace(
    LTX_2_3_DISTILLED,
    name="ltx-2-19b-distilled",
    summary="19 billion parameters, picture and sound, 8 + 3 steps",
    sources=_one_file(
        LTX_2, "ltx-2-19b-distilled.safetensors", 43_300_000_000,
        "ltx-2-spatial-upscaler-x2-1.0.safetensors",
    ),
    parameters=Components(
        transformer=18.88e9, vae=1.222e9, text_encoder=GEMMA_PARAMETERS, tokenizer=0.0,
        upsampler=0.498e9, connectors=1.431e9, audio_vae=0.053e9, vocoder=0.056e9,
    ),
    version="2.0",
)  # fmt: skip
LTX_2_5_DISTILLED = replace(
    LTX_2_3_DISTILLED,
    name="ltx-2.5-22b-distilled",
    summary="22 billion parameters, picture and sound, 8 + 3 steps; its files are gated",
    licence="LTX-2.x Community License of 11 August 2026",
    sources=_split_files("distilled"),
    ancestral_sampling=True,
    has_language_model=False,  # trained further for LTX; Lightricks has another one write
    image_crf=18,
    version="2.5",
)
# The full models: `LTX_2_3_PARAMS` and `LTX_2_PARAMS` of ltx_pipelines/utils/constants.py, in two
# stages as ti2vid_two_stages.py: the second with the distilled LoRA, its levels and no guidance.
LTX_2_3_DEV = replace(
    LTX_2_3_DISTILLED,
    name="ltx-2.3-22b-dev",
    summary="22 billion parameters, picture and sound, not distilled: 30 steps of 4 calls, then 3",
    sources=replace(
        _one_file(
            LTX_2_3, "ltx-2.3-22b-dev.safetensors", 46_149_344_974,
            "ltx-2.3-spatial-upscaler-x2-1.1.safetensors",
        ),
        distilled_lora=LTX_2_3_LORA,
    ),
    schedule=StretchedSigmas(30),
    is_refine_guided=False,
    distilled=False,
    guidance_scale=3.0,
    multimodal_guidance=MultimodalGuidance(
        video=GuidanceScales(prompt=3.0, perturbation=1.0, modality=3.0, rescale=0.7),
        audio=GuidanceScales(prompt=7.0, perturbation=1.0, modality=3.0, rescale=0.7),
        perturbed_blocks=(28,),
    ),
)  # fmt: skip
LTX_2_DEV = replace(
    LTX_2_3_DEV,
    name="ltx-2-19b-dev",
    summary="19 billion parameters, picture and sound, not distilled: 40 steps of 4 calls, then 3",
    sources=replace(
        _one_file(
            LTX_2, "ltx-2-19b-dev.safetensors", 43_300_000_000,
            "ltx-2-spatial-upscaler-x2-1.0.safetensors",
        ),
        distilled_lora=LTX_2_LORA,
    ),
    parameters=LTX_2_DISTILLED.parameters,
    schedule=StretchedSigmas(40),
    multimodal_guidance=MultimodalGuidance(
        video=GuidanceScales(prompt=3.0, perturbation=1.0, modality=3.0, rescale=0.7),
        audio=GuidanceScales(prompt=7.0, perturbation=1.0, modality=3.0, rescale=0.7),
        perturbed_blocks=(29,),
    ),
    version="2.0",
)  # fmt: skip
# 2.5's recipe is 2.3's, but for pictures.
LTX_2_5_DEV = replace(
    LTX_2_3_DEV,
    name="ltx-2.5-22b-dev",
    summary="22 billion parameters, picture and sound, not distilled: 30 steps of 4 calls, then 3; "
    "gated",
    licence=LTX_2_5_DISTILLED.licence,
    sources=replace(_split_files("dev"), distilled_lora=LTX_2_5_LORA),
    has_language_model=False,
    image_crf=18,
    version="2.5",
)


def _run_distilled(full: ModelCard, distilled: ModelCard) -> ModelCard:
    """Return the full model run as the distilled one, with the distilled LoRA in both stages."""
    gated = "; gated" if distilled is LTX_2_5_DISTILLED else ""
    return replace(
        distilled,
        name=f"{full.name}-distilled-lora",
        summary=f"{full.name} with its distilled LoRA in both stages: 8 + 3 steps{gated}",
        sources=full.sources,
        distilled_lora_strengths=(1.0, 1.0),
    )


LTX2_CARDS = (
    LTX_2_3_DISTILLED,
    replace(
        LTX_2_3_DISTILLED,
        name="ltx-2.3-22b-distilled-fp8",
        summary="22 billion parameters in 8 bits, picture and sound, 8 + 3 steps",
        sources=_one_file(
            LTX_2_3_FP8, "ltx-2.3-22b-distilled-fp8.safetensors", 29_531_884_062,
            "ltx-2.3-spatial-upscaler-x2-1.1.safetensors",
        ),
        stored_bytes=1,
    ),
    LTX_2_5_DISTILLED,
    LTX_2_DISTILLED,
    replace(
        LTX_2_DISTILLED,
        name="ltx-2-19b-distilled-fp8",
        summary="19 billion parameters in 8 bits, picture and sound, 8 + 3 steps",
        sources=_one_file(
            LTX_2, "ltx-2-19b-distilled-fp8.safetensors", 27_100_000_000,
            "ltx-2-spatial-upscaler-x2-1.0.safetensors",
        ),
        stored_bytes=1,
    ),
    LTX_2_3_DEV,
    LTX_2_5_DEV,
    LTX_2_DEV,
    _run_distilled(LTX_2_3_DEV, LTX_2_3_DISTILLED),
    _run_distilled(LTX_2_5_DEV, LTX_2_5_DISTILLED),
    _run_distilled(LTX_2_DEV, LTX_2_DISTILLED),
)  # fmt: skip
