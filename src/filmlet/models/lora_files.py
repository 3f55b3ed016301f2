"""LoRA files: where they lie, and which layers of a transformer of LTX they change."""

import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import huggingface_hub  # imports its parts when they are used: few clips have LoRAs

from filmlet.core.checkpoint_headers import TensorEntry, parse_object, read_header, read_json
from filmlet.core.files import open_regular_file
from filmlet.core.lora import SUFFIX, Lora, LoraAdapter, LoraLayer
from filmlet.core.model_card import ComponentSource
from filmlet.errors import (
    CheckpointCorrupt,
    InvalidRequest,
    LoraCorrupt,
    LoraNotFound,
    NotSupported,
)
from filmlet.models.checkpoint_files import Stamp, file_stamp
from filmlet.models.hashing import EXPONENTS as FLOATS
from filmlet.models.hashing import hash_finite
from filmlet.models.ltx2_key_mapping import rename_transformer_key

Table = dict[str, Any]
Tensors = Mapping[str, TensorEntry]
LARGEST_ALPHA = 1e6  # usual ones are between 1 and 256
PREFIXES = (
    "base_model.model.", "model.diffusion_model.", "diffusion_model.", "transformer.", "lora_unet_",
)  # fmt: skip
# Both families' words; whether a model has a layer is asked when it is known (`check_loras`).
TIME_EMBEDDINGS = (
    "time_embed",
    "audio_time_embed",
    "prompt_adaln",
    "audio_prompt_adaln",
    "av_cross_attn_video_scale_shift",
    "av_cross_attn_audio_scale_shift",
    "av_cross_attn_video_a2v_gate",
    "av_cross_attn_audio_v2a_gate",
)
TOP_LEVEL_LAYERS = (
    "proj_in",
    "proj_out",
    "audio_proj_in",
    "audio_proj_out",
    *(f"{name}.linear" for name in TIME_EMBEDDINGS),
    *(f"{n}.emb.timestep_embedder.linear_{i}" for n in TIME_EMBEDDINGS for i in (1, 2)),
    *(f"{n}caption_projection.linear_{i}" for n in ("", "audio_") for i in (1, 2)),
)
ATTENTIONS = (
    "attn1",
    "attn2",
    "audio_attn1",
    "audio_attn2",
    "audio_to_video_attn",
    "video_to_audio_attn",
)
IN_A_BLOCK = (
    *(f"{a}.{of}" for a in ATTENTIONS for of in (
        "to_q", "to_k", "to_v", "to_out.0", "to_gate_logits",
    )),
    *(f"{prefix}ff.net.{of}" for prefix in ("", "audio_") for of in ("0.proj", "2")),
)  # fmt: skip
LAYERS = {
    name.replace(".", "_"): name for name in (*TOP_LEVEL_LAYERS, *IN_A_BLOCK)
}  # kohya writes no dots
BLOCK = re.compile(r"transformer_blocks_(\d+)_(.+)")
MATRIX = re.compile(r"(.+)\.lora[_.](A|B|down|up)(?:\.[^.]+)?\.weight")
MATRIX_NAMES = {"A": "down", "B": "up", "down": "down", "up": "up"}
CONNECTORS = re.compile(
    r"(\w+\.)*(text_embedding_projection|(video|audio)_embeddings_connector|connectors)\."
)
# What a LoRA was made for, in its metadata and its name: no shape tells versions 2.3 and 2.5 apart.
BASE_METADATA = (
    "ss_base_model_version",
    "ss_sd_model_name",
    "modelspec.architecture",
    "base_model",
)
LTX2_BASE = re.compile(r"ltx[-_. ]?(?:video[-_. ]?)?v?[-_. ]?(2[._-][035])(?![0-9])", re.IGNORECASE)
LTX2_FIRST = re.compile(r"ltx[-_. ]?2[-_. ]19b", re.IGNORECASE)
LTX_VIDEO_BASE = re.compile(r"ltxv|ltx.?video.?(2b|13b|0[._]9)|ltx.?0[._]9", re.IGNORECASE)
SHA256 = re.compile(r"[0-9a-f]{64}")  # the name of a large file's content in the Hub's cache
REFERENCE = "reference_downscale_factor"  # in the metadata of IC-LoRAs
TEXT = re.compile(r"(base_model\.model\.)?(text_encoder|lora_te|te\d?[._]|t5)")
UNSUPPORTED_ADAPTERS = {  # what else can change a model, by the names of its tensors
    r"dora_scale|lora_magnitude_vector": "DoRA", r"\.hada_": "LoHa", r"\.lokr_": "LoKr",
    r"\.oft_": "OFT", r"\.ia3_": "IA3", r"\.lora_mid": "LoCon", r"\.lora_[AB].*\.bias": "biases",
    r"\.diff(_b)?$": "differences of whole weights", r"\.lora_embedding_": "embeddings",
}  # fmt: skip
CONFIG = "lora_adapter_metadata"  # where diffusers writes PEFT's configuration


def inspect_loras(
    loras: Sequence[Lora], folder: Path | None = None
) -> tuple[LoraAdapter | None, ...]:
    """The files of LoRAs, looked at; None for those of the Hub that are not on this machine yet.

    Files that are not of the Hub lie in `folder`, if given. Raises what `inspect_lora` raises.
    """
    return tuple(_inspect_if_cached(lora, folder) for lora in loras)


def _inspect_if_cached(lora: Lora, folder: Path | None) -> LoraAdapter | None:
    try:
        return inspect_lora(lora, folder)
    except LoraNotFound:
        return None


def inspect_lora(lora: Lora, folder: Path | None = None) -> LoraAdapter:
    """Raises InvalidRequest, NotSupported, LoraNotFound, LoraCorrupt."""
    path = locate_lora(lora.source, folder)
    sha256, pairs, base = _inspect_file(path, file_stamp(path))
    _check_beside(path, pairs)
    base = base or _declared_base(lora.source if lora.is_on_hub else path.name)
    name = f"lora-{sha256[:16]}{SUFFIX}"
    if lora.is_on_hub:
        is_file = lora.source.lower().endswith(SUFFIX)
        name = lora.source if is_file else f"{lora.source}/{path.name}"
    return LoraAdapter(path, name, sha256, lora.strength, pairs, base)


def inspect_model_lora(path: Path, source: ComponentSource) -> LoraAdapter:
    """Return the LoRA of a model itself, at strength 1. path: where `source` lies.

    What it says to the connectors is left out, as Lightricks' pipelines do, which give them none.
    Its content is the one that the Hub's cache names; only a file that lies elsewhere is hashed.
    Raises CheckpointCorrupt.
    """
    try:
        sha256, layers, base = _inspect_file(path, file_stamp(path), is_models_own=True)
    except (InvalidRequest, NotSupported) as error:
        raise CheckpointCorrupt(f"{path} is not the LoRA of this model: {error}") from error
    name = f"{source.repo}/{source.path}" if source.repo else path.name
    return LoraAdapter(path, name, sha256, 1.0, layers, base or _declared_base(path.name))


def locate_lora(source: str, folder: Path | None = None) -> Path:
    """Return the file of a LoRA: a path, or a Hub name's file in the Hub's cache on this machine.

    Opens no connection. Raises InvalidRequest, LoraNotFound.
    """
    if Lora(source).is_on_hub:
        return _cached_path(source)
    path = folder / source if folder else Path(source)
    try:
        open_regular_file(path).close()
    except FileNotFoundError as error:
        raise InvalidRequest(f"loras: there is no file {source}.", param="loras") from error
    except OSError as error:
        raise InvalidRequest(
            f"loras: {source[:300]} cannot be read: {error.strerror}.", param="loras"
        ) from error
    return path


def _cached_path(source: str) -> Path:
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    owner, name, *inside = source.split("/")
    repo = f"{owner}/{name}"
    try:
        if inside:
            file = huggingface_hub.try_to_load_from_cache(repo, "/".join(inside))
            paths = [Path(file)] if isinstance(file, str) else []
        else:
            snapshot = Path(huggingface_hub.snapshot_download(repo, local_files_only=True))
            paths = sorted(snapshot.rglob(f"*{SUFFIX}"))
    except LocalEntryNotFoundError:
        paths = []
    except HFValidationError as error:
        raise InvalidRequest(f"loras: {source} is no name on the Hub.", param="loras") from error
    if len(paths) > 1:
        names = ", ".join(f"{repo}/{file.relative_to(snapshot)}" for file in paths[:3])
        raise InvalidRequest(f"loras: {repo} has several files; name one: {names}.", param="loras")
    if not paths:
        raise LoraNotFound(_next_step(source, repo, inside), param="loras")
    return paths[0]


def _next_step(source: str, repo: str, inside: list[str]) -> str:
    fetch = " ".join(["hf download", repo, "/".join(inside)]).strip()
    message = f"The LoRA {source} of the Hub is not on this machine; fetch it: {fetch}."
    return f"{message} If a file is meant, say ./{source}." if inside else message


@lru_cache(maxsize=64)
def _inspect_file(
    path: Path, stamp: Stamp, is_models_own: bool = False
) -> tuple[str, tuple[LoraLayer, ...], str]:
    """Return the SHA-256 of a file, what it changes, and of which model it says so.

    is_models_own: as `inspect_model_lora` says.
    """
    del stamp
    try:
        header = read_header(path)
        if REFERENCE in header.metadata:
            raise NotSupported(
                f"{path.name} is an IC-LoRA, which needs a reference video that is not offered.",
                param="loras",
            )
        base = _declared_base(" ".join(header.metadata.get(key, "") for key in BASE_METADATA))
        scaling = _scaling(path, _peft_config(path, header.metadata))
        keys = [k for k in header.tensors if not (is_models_own and CONNECTORS.match(k))]
        named = _by_layer(path, keys)
        pairs = [_build_layer(path, layer, named[layer], header.tensors) for layer in sorted(named)]
        cached = path.resolve().name if is_models_own else ""
        sha256 = cached if SHA256.fullmatch(cached) else hash_finite(path, header)
    except LoraCorrupt:
        raise
    except CheckpointCorrupt as error:
        raise LoraCorrupt(str(error), param="loras") from error
    scaled = tuple(replace(p, scale=scaling.from_files(p.layer, p.rank)) for p in pairs)
    return sha256, scaled, base


def _declared_base(text: str) -> str:
    """The model that a LoRA says to be for: "2.0", "2.3", "2.5", "LTX-Video", or "" for none."""
    if match := LTX2_BASE.search(text):
        return match[1].replace("_", ".").replace("-", ".")
    if LTX2_FIRST.search(text):
        return "2.0"
    return "LTX-Video" if LTX_VIDEO_BASE.search(text) else ""


def _by_layer(path: Path, keys: Collection[str]) -> dict[str, dict[str, str]]:
    """For each layer the names of its tensors: down, up, perhaps alpha."""
    for key in keys:
        for pattern, kind in UNSUPPORTED_ADAPTERS.items():
            if re.search(pattern, key):
                raise NotSupported(
                    f"{path.name} holds {kind}, not a plain LoRA: {key}.", param="loras"
                )
        if TEXT.match(key):
            raise NotSupported(
                f"{path.name} changes a text encoder, which is not offered: {key}.", param="loras"
            )
        if CONNECTORS.match(key):
            raise NotSupported(
                f"{path.name} changes the connectors between text encoder and transformer, which "
                f"is not offered: {key}.",
                param="loras",
            )
    named: dict[str, dict[str, str]] = {}
    for key in keys:
        layer, part = _parse_key(path, key)
        if named.setdefault(layer, {}).setdefault(part, key) != key:
            raise CheckpointCorrupt(f"{path.name} changes {layer} twice: {key}.")
    return named


def _parse_key(path: Path, key: str) -> tuple[str, str]:
    """`diffusion_model.adaln_single.linear.lora_A.weight` -> (time_embed.linear, down)."""
    if matrix := MATRIX.fullmatch(key):
        name, part = matrix[1], MATRIX_NAMES[matrix[2]]
    else:
        name, part = key.removesuffix(".alpha"), "alpha"
    while prefix := next((p for p in PREFIXES if name.startswith(p)), None):
        name = name.removeprefix(prefix)
    flat = rename_transformer_key(name).replace(".", "_")
    block = BLOCK.fullmatch(flat)
    layer = LAYERS.get(block[2] if block else flat)
    is_known = layer is not None and (layer in IN_A_BLOCK) == bool(block)
    if not is_known or (part == "alpha" and not key.endswith(".alpha")):
        raise InvalidRequest(
            f"loras: {path.name} is no LoRA for LTX; it holds {key!r}.", param="loras"
        )
    return (f"transformer_blocks.{block[1]}.{layer}" if block else str(layer)), part


def _build_layer(path: Path, layer: str, named: dict[str, str], header: Tensors) -> LoraLayer:
    missing = {"down", "up"} - named.keys()
    if missing:
        raise CheckpointCorrupt(f"{path.name} lacks the matrix {min(missing)} of {layer}.")
    down, up = (header[named[part]].shape for part in ("down", "up"))
    if len(down) != 2 or len(up) != 2 or down[0] != up[1] or 0 in (*down, *up):
        raise CheckpointCorrupt(
            f"{path.name}: the matrices of {layer} do not fit each other, "
            f"{list(up)} and {list(down)}."
        )
    if any(header[name].dtype not in FLOATS for name in named.values()):
        raise CheckpointCorrupt(f"{path.name}: the matrices of {layer} are not floating point.")
    alpha = named.get("alpha")
    if alpha and math.prod(header[alpha].shape) != 1:
        raise CheckpointCorrupt(f"{path.name}: {alpha} is not one number.")
    shape = up[0], down[1]
    return LoraLayer(layer, named["down"], named["up"], shape, rank=down[0], alpha=alpha)


@dataclass(frozen=True)
class Scaling:
    """PEFT's scaling of its matrices: alpha over the rank; without alpha the two count as alike."""

    alpha: float | None
    own: dict[str, float]  # of single layers
    by_root: bool

    def from_files(self, layer: str, rank: int) -> float:
        """Return the scale of one layer, by its name in diffusers."""
        alphas = (a for name, a in self.own.items() if f".{layer}".endswith(f".{name}"))
        alpha = next(alphas, self.alpha)
        if alpha is None:
            return 1.0
        return alpha / (math.sqrt(rank) if self.by_root else rank)


def _peft_config(path: Path, about: Mapping[str, str]) -> Table:
    """PEFT's configuration, where diffusers wrote it into the file."""
    try:
        return parse_object(about.get(CONFIG) or "{}")
    except ValueError as error:
        raise CheckpointCorrupt(f"{path.name}: {CONFIG} cannot be read ({error}).") from error


def _scaling(path: Path, table: Table) -> Scaling:
    """Return the scaling of a configuration. Raises LoraCorrupt, NotSupported."""
    config = {name.removeprefix("transformer."): value for name, value in table.items()}
    if config.get("use_dora"):
        raise NotSupported(f"{path.name} is a DoRA, not a plain LoRA.", param="loras")
    alpha, pattern = config.get("lora_alpha"), config.get("alpha_pattern") or {}
    numbers = pattern.values() if isinstance(pattern, dict) else [None]
    for number in (*numbers, *([] if alpha is None else [alpha])):
        if type(number) not in (int, float) or not abs(number) <= LARGEST_ALPHA:
            raise LoraCorrupt(
                f"{path.name} has an unusable configuration: an alpha of {str(number)[:40]!r}.",
                param="loras",
            )
    return Scaling(alpha, pattern, bool(config.get("use_rslora")))


def _check_beside(path: Path, pairs: Sequence[LoraLayer]) -> None:
    """A scale that PEFT wrote into another file is not ignored: only the LoRA's own travels."""
    config_path = path.with_name("adapter_config.json")
    if path.name != "adapter_model.safetensors" or not config_path.is_file():
        return
    try:
        table = read_json(config_path)
    except CheckpointCorrupt as error:
        raise LoraCorrupt(str(error), param="loras") from error
    scaling = _scaling(config_path, table)
    scales = {scaling.from_files(pair.layer, pair.rank) for pair in pairs if not pair.alpha}
    if scales - {1.0}:
        raise NotSupported(
            f"{config_path} scales {path.name} by {max(scales):g}, and it is not read: rename the "
            "LoRA and multiply its strength by that.",
            param="loras",
        )
