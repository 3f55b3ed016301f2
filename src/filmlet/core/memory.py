"""How much memory a clip takes, and how a model is held so that it has that much."""

from dataclasses import dataclass
from enum import StrEnum

from filmlet.core.model_card import Components
from filmlet.core.shape import ShapeConstraints, VideoShape

RESERVED_FRACTION = 0.1  # of a device's memory, for what nobody counts
RUNTIME = 600_000_000  # bytes of the libraries themselves
# Values in memory at once, per latent token and channel of the transformer, and per pixel of a
# frame while it is decoded; of the large models' shapes, fitted to what diffusers' modules take.
TOKEN_VALUES = 24
PIXEL_VALUES = 1_000
OFFLOADED_BLOCK_SHARE = (
    12  # of a component's blocks two may be lent at once, and there are at least 24
)
TRANSFORMER_WIDTH = {
    True: 4096,
    False: 2048,
}  # channels of a transformer of over 6 billion parameters, or less


class OffloadMode(StrEnum):
    """How much of a model is in memory at once, from the quickest to the leanest."""

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
    """Where clips are made. memory: bytes of the device that are free for a model.

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
) -> tuple[MemoryEstimate, ...]:
    """What each way of holding the model takes, from the quickest to the leanest.

    parameters: how many values each component has. value_bytes, stored_bytes: of one value in the
    dtype that is computed in, and in the transformer's file.
    """
    weights = {name: count * value_bytes for name, count in parameters.present()}
    tokens = (shape.generated_width // grid.spatial_compression) * (
        shape.generated_height // grid.spatial_compression
    )
    tokens *= (shape.generated_frames - 1) // grid.temporal_compression + 1
    width = TRANSFORMER_WIDTH[parameters.transformer > 6e9] if parameters.transformer > 1e9 else 256
    thinking = tokens * width * TOKEN_VALUES * value_bytes
    pixels = shape.generated_width * shape.generated_height
    decoding = int(pixels * PIXEL_VALUES * value_bytes * min(1.0, weights["vae"] / 1e9 + 0.1))
    busy = max(thinking, decoding)
    decoder = weights["vae"] + weights.get("upsampler", 0)
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


def choose_offload_mode(
    estimates: tuple[MemoryEstimate, ...], memory: int
) -> MemoryEstimate | None:
    """The quickest way that there is memory for; None where even the leanest takes more."""
    room = memory * (1 - RESERVED_FRACTION)
    return next((need for need in estimates if need.bytes <= room), None)
