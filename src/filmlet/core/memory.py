"""Memory that a clip takes, and the offload mode that leaves it so much."""

from dataclasses import dataclass
from enum import StrEnum

from filmlet.core.model_card import Components
from filmlet.core.shape import ShapeConstraints, VideoShape

RESERVED_FRACTION = 0.1  # of a device's memory, for what nobody counts
WRITING = 1_000_000_000  # bytes of keys and values of 2,000 tokens, and of their first pass
RUNTIME = 600_000_000  # bytes of the libraries themselves
# Values in memory at once, per latent token and channel of the transformer, and per pixel of a
# frame while it is decoded; of the large models' shapes, fitted to what diffusers' modules take.
TOKEN_VALUES = 24
PIXEL_VALUES = 1_000
OFFLOADED_BLOCK_SHARE = (
    12  # of a component's blocks two may be lent at once, and there are at least 24
)
# Of LTX-2, by the values of its parts: two blocks of its transformer's 48; the text encoder's
# embeddings and two of its 48 layers; the connectors' first layers, which read all of the layers.
LTX2_BLOCKS_SHARE = 2 * 386.7 / 18_990
LTX2_TEXT_SHARE = (1_007 + 2 * 224) / 11_770
LTX2_CONNECTORS_SHARE = 1_156 / 3_172
LTX2_REST_SHARE = 1 - 48 * 386.7 / 18_990  # of the transformer, beside its blocks
# Of LTX-2, measured (bench/MEMORY.md): of a token and channel, as TOKEN_VALUES, and where pictures
# are given, for each token has modulation of its own then; of a pixel of a frame that is decoded;
# of a second of sound, in float32, of the published vocoder.
LTX2_TOKEN_VALUES = 32
LTX2_GIVEN_TOKEN_VALUES = 64
LTX2_PIXEL_VALUES = 2_700
LTX2_AUDIO_VALUES = 52_000_000
LTX2_PROMPT_COPIES = 5  # of what the text encoder's layers say of each token
LTX2_PROMPT_VALUES = LTX2_PROMPT_COPIES * 1024 * 49 * 3840
INT8_BYTES = 1  # of a value of a transformer that OpenVINO compiles block by block
# Of such a transformer (bench/RESULTS-2B.md): bytes of a value with its block's plans; the share
# of its values that are in float32 at once while a block is compiled.
BLOCKWISE_BYTES, BLOCKWISE_SHARE = 1.4, 4 / 28
DECODER_SHARE = 0.45  # of the VAE's values
DECODER_COPIES = 2.2  # in float32 at once while a large decoder is compiled
BLOCKWISE_PIXEL_VALUES = 2_800  # as PIXEL_VALUES, in a large decoder of OpenVINO
FLOAT32_BYTES = 4  # of a value of the vocoder, which is never less; and of a LoRA that is merged
LARGEST_LAYER_SHARE = 4 * 4096**2 / 18.99e9  # of the transformer's values: its feed-forward's
TRANSFORMER_WIDTH = {
    True: 4096,
    False: 2048,
}  # channels of a transformer of over 6 billion parameters, or less


class OffloadMode(StrEnum):
    """The part of a model that is in memory at once, from the quickest mode to the leanest."""

    NONE = "none"  # every component, from clip to clip
    MODEL = "model"  # one component after the other
    LAYERWISE_CASTING = (
        "layerwise_casting"  # so, and on the device as in the file, cast one layer after the other
    )
    SEQUENTIAL = "sequential"  # so, and brought to the device one layer after the other

    @property
    def next_lower(self) -> "OffloadMode | None":
        """The mode that needs less memory, None after the last."""
        modes = list(OffloadMode)
        return modes[modes.index(self) + 1] if self != modes[-1] else None


@dataclass(frozen=True)
class DeviceInfo:
    """A device that computes clips. memory: its bytes that are free for a model.

    dtype: that it computes in; bytes_per_value: of one number in it.
    """

    device: str
    name: str
    memory: int
    dtype: str
    bytes_per_value: int


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes of memory that a clip takes, with the model held in one of the ways."""

    offload: OffloadMode
    bytes: int


def estimate_memory(
    parameters: Components[float],
    shape: VideoShape,
    grid: ShapeConstraints,
    value_bytes: int,
    stored_bytes: int,
    has_guides: bool = False,
) -> tuple[MemoryEstimate, ...]:
    """Return the bytes that each offload mode takes, from the quickest to the leanest.

    parameters: how many values each component has. value_bytes, stored_bytes: of one value in the
    dtype that is computed in, and in the transformer's file. has_guides: pictures or a clip.
    """
    if value_bytes == INT8_BYTES:
        lean = estimate_memory(parameters, shape, grid, FLOAT32_BYTES, stored_bytes)
        return _estimate_blockwise(parameters, shape, grid, lean)
    weights = {name: count * value_bytes for name, count in parameters.present()}
    tokens = _count_tokens(shape, grid)
    width = TRANSFORMER_WIDTH[parameters.transformer > 6e9] if parameters.transformer > 1e9 else 256
    thinking = tokens * width * _token_values(parameters, has_guides) * value_bytes
    pixels = shape.generated_width * shape.generated_height
    pixel_values = PIXEL_VALUES if parameters.connectors is None else LTX2_PIXEL_VALUES
    decoding = int(pixels * pixel_values * value_bytes * min(1.0, weights["vae"] / 1e9 + 0.1))
    busy = max(thinking, decoding)
    decoder = weights["vae"] + weights.get("upsampler", 0)
    if parameters.connectors is not None:
        stored = parameters.transformer * stored_bytes
        seconds = shape.generated_frames / shape.fps
        activations = Ltx2Activations(
            prompt=LTX2_PROMPT_VALUES * value_bytes if parameters.transformer > 1e9 else 0,
            denoise=thinking,
            decode=decoding,
            audio=seconds * LTX2_AUDIO_VALUES * FLOAT32_BYTES,
        )
        return _estimate_ltx2(parameters, value_bytes, stored, activations)
    text, transformer = weights["text_encoder"], weights["transformer"]
    layer = thinking + transformer / OFFLOADED_BLOCK_SHARE
    stored = parameters.transformer * stored_bytes
    return tuple(
        MemoryEstimate(hold, int(RUNTIME + amount))
        for hold, amount in (
            (OffloadMode.NONE, sum(weights.values()) + busy),
            (OffloadMode.MODEL, max(text, transformer + thinking, decoder + decoding)),
            (OffloadMode.LAYERWISE_CASTING, max(text, stored + layer, decoder + decoding)),
            (OffloadMode.SEQUENTIAL, max(text / OFFLOADED_BLOCK_SHARE, layer, decoder + decoding)),
        )
    )


def _count_tokens(shape: VideoShape, grid: ShapeConstraints) -> int:
    """Return the tokens of one call of the transformer."""
    columns = shape.generated_width // grid.spatial_compression
    rows = shape.generated_height // grid.spatial_compression
    return columns * rows * ((shape.generated_frames - 1) // grid.temporal_compression + 1)


def _estimate_blockwise(
    parameters: Components[float],
    shape: VideoShape,
    grid: ShapeConstraints,
    others: tuple[MemoryEstimate, ...],
) -> tuple[MemoryEstimate, ...]:
    """As `estimate_memory`, of a model that OpenVINO computes block by block.

    others: of torch in float32, which has the leaner modes.
    """
    width = TRANSFORMER_WIDTH[parameters.transformer > 6e9] if parameters.transformer > 1e9 else 256
    thinking = _count_tokens(shape, grid) * width * TOKEN_VALUES * FLOAT32_BYTES
    pixels = shape.generated_width * shape.generated_height
    decoding = pixels * BLOCKWISE_PIXEL_VALUES * FLOAT32_BYTES
    compiling = BLOCKWISE_SHARE * parameters.transformer * FLOAT32_BYTES
    text = parameters.text_encoder * FLOAT32_BYTES / OFFLOADED_BLOCK_SHARE
    transformer = parameters.transformer * BLOCKWISE_BYTES
    decoder = DECODER_SHARE * parameters.vae * FLOAT32_BYTES
    making = DECODER_COPIES * decoder
    last = max(making, decoder + decoding)
    amounts = {
        OffloadMode.NONE: transformer + max(text, thinking, last),
        OffloadMode.MODEL: max(text, compiling, transformer + thinking, last),
    }
    ours = [MemoryEstimate(mode, int(RUNTIME + amount)) for mode, amount in amounts.items()]
    return (*ours, *(need for need in others if need.offload not in amounts))


def _token_values(parameters: Components[float], has_guides: bool) -> int:
    if parameters.connectors is None:
        return TOKEN_VALUES
    return LTX2_GIVEN_TOKEN_VALUES if has_guides else LTX2_TOKEN_VALUES


@dataclass(frozen=True)
class Ltx2Activations:
    """Bytes that LTX-2's stages take beside the weights."""

    prompt: float = 0.0
    denoise: float = 0.0
    decode: float = 0.0
    audio: float = 0.0


def _estimate_ltx2(
    parameters: Components[float], value_bytes: int, stored: float, busy: Ltx2Activations
) -> tuple[MemoryEstimate, ...]:
    """As `estimate_memory`. The text encoder is freed before the connectors are read, and so on.

    stored: bytes of the transformer in its file.
    """
    weights = _ltx2_weights(parameters, value_bytes)
    transformer, text, connectors = (
        weights[name] for name in ("transformer", "text_encoder", "connectors")
    )
    stages = ltx2_stage_memory(parameters, value_bytes, busy)
    last = max(stages[name] for name in ("upsample", "decode", "audio"))
    blocks = (LTX2_BLOCKS_SHARE + LTX2_REST_SHARE) * transformer + busy.denoise
    text_part = max(LTX2_TEXT_SHARE * text, LTX2_CONNECTORS_SHARE * connectors) + busy.prompt
    first = stages["prompt"]
    amounts = {
        OffloadMode.NONE: sum(weights.values()) + max(vars(busy).values()),
        OffloadMode.MODEL: max(stages.values()),
        OffloadMode.LAYERWISE_CASTING: max(first, stored + blocks, last),
        OffloadMode.SEQUENTIAL: max(text_part, blocks, last),
    }
    return tuple(MemoryEstimate(mode, int(RUNTIME + amount)) for mode, amount in amounts.items())


def ltx2_stage_memory(
    parameters: Components[float], value_bytes: int, busy: Ltx2Activations
) -> dict[str, float]:
    """Return the bytes of each stage with its components alone in memory."""
    weights = _ltx2_weights(parameters, value_bytes)
    return {
        "prompt": max(weights["text_encoder"], weights["connectors"]) + busy.prompt,
        "denoise": weights["transformer"] + busy.denoise,
        "upsample": weights.get("upsampler", 0) + busy.denoise,
        "decode": weights["vae"] + busy.decode,
        "audio": weights.get("audio_vae", 0) + weights["vocoder"] + busy.audio,
    }


def _ltx2_weights(parameters: Components[float], value_bytes: int) -> dict[str, float]:
    """Return the bytes of each component; the vocoder's are float32 always."""
    weights = {name: count * value_bytes for name, count in parameters.present()}
    return weights | {"vocoder": (parameters.vocoder or 0) * FLOAT32_BYTES}


def memory_to_write(parameters: float, value_bytes: int) -> int:
    """Return the bytes that writing a prompt takes: the whole language model and what it has read.

    parameters: of the text encoder. value_bytes: of one of its values.
    """
    return int(RUNTIME + WRITING + parameters * value_bytes)


def memory_to_merge(parameters: Components[float]) -> int:
    """Return the bytes that merging LoRAs takes: the largest layer and its change in float32.

    The merged weights take the place of the others, of which no second copy is held.
    """
    return int(2 * FLOAT32_BYTES * LARGEST_LAYER_SHARE * parameters.transformer)


def choose_offload_mode(
    estimates: tuple[MemoryEstimate, ...], memory: int
) -> MemoryEstimate | None:
    """Return the quickest way that there is memory for; None where even the leanest takes more."""
    room = memory * (1 - RESERVED_FRACTION)
    return next((need for need in estimates if need.bytes <= room), None)
