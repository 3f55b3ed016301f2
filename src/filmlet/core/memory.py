"""How much memory a clip takes, and how a model is held so that it has that much."""

from dataclasses import dataclass
from enum import StrEnum

from filmlet.core.model_card import Components
from filmlet.core.shape import Grid, Shape

SPARE = 0.1  # of a device's memory, for what nobody counts
RUNTIME = 600_000_000  # bytes of the libraries themselves
# Values in memory at once, per latent token and channel of the transformer, and per pixel of a
# frame while it is decoded; of the large models' shapes, fitted to what diffusers' modules take.
TOKEN_VALUES = 24
PIXEL_VALUES = 1_000
LENT = 12  # of a component's blocks two may be lent at once, and there are at least 24
WIDTH = {True: 4096, False: 2048}  # channels of a transformer of over 6 billion parameters, or less


class Hold(StrEnum):
    """How much of a model is in memory at once, from the quickest to the leanest."""

    ALL = "all"  # every component, from clip to clip
    TURNS = "turns"  # one component after the other
    STORED = "stored"  # so, and on the device as in the file, cast one layer after the other
    LAYERS = "layers"  # so, and brought to the device one layer after the other

    @property
    def leaner(self) -> "Hold | None":
        """The next rung down, if there is one."""
        rungs = list(Hold)
        return rungs[rungs.index(self) + 1] if self != rungs[-1] else None


@dataclass(frozen=True)
class Machine:
    """Where clips are made. memory: bytes of the device that are free for a model.

    dtype: that it computes in; value_bytes: of one number in it.
    """

    device: str
    name: str
    memory: int
    dtype: str
    value_bytes: int


@dataclass(frozen=True)
class Need:
    """Bytes of memory that a clip takes, with the model held in one of the ways."""

    hold: Hold
    bytes: int


def needs(
    parameters: Components[float], shape: Shape, grid: Grid, value_bytes: int, stored_bytes: int
) -> tuple[Need, ...]:
    """What each way of holding the model takes, from the quickest to the leanest.

    parameters: how many values each component has. value_bytes, stored_bytes: of one value in the
    dtype that is computed in, and in the transformer's file.
    """
    weights = {name: count * value_bytes for name, count in parameters.there()}
    tokens = (shape.made_width // grid.side) * (shape.made_height // grid.side)
    tokens *= (shape.made_frames - 1) // grid.time + 1
    width = WIDTH[parameters.transformer > 6e9] if parameters.transformer > 1e9 else 256
    thinking = tokens * width * TOKEN_VALUES * value_bytes
    pixels = shape.made_width * shape.made_height
    decoding = int(pixels * PIXEL_VALUES * value_bytes * min(1.0, weights["vae"] / 1e9 + 0.1))
    busy = max(thinking, decoding)
    decoder = weights["vae"] + weights.get("upsampler", 0)
    text, transformer = weights["text_encoder"], weights["transformer"]
    layer = thinking + transformer / LENT
    stored = parameters.transformer * stored_bytes
    return tuple(
        Need(hold, int(RUNTIME + amount))
        for hold, amount in (
            (Hold.ALL, sum(weights.values()) + busy),
            (Hold.TURNS, max(text, transformer + thinking, decoder + decoding)),
            (Hold.STORED, max(text, stored + layer, decoder + decoding)),
            (Hold.LAYERS, max(text / LENT, layer, decoder + decoding)),
        )
    )


def choose(found: tuple[Need, ...], memory: int) -> Need | None:
    """The quickest way that there is memory for; None where even the leanest takes more."""
    room = memory * (1 - SPARE)
    return next((need for need in found if need.bytes <= room), None)
