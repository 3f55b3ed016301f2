"""LoRAs merged into a transformer's weights, and its own weights back to the bit afterwards."""

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import cast

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from filmlet.core.lora import LoraAdapter, LoraLayer
from filmlet.errors import InvalidRequest, LoraCorrupt

LayerChange = tuple[LoraAdapter, LoraLayer]


@dataclass(eq=False)
class FusedLoras:
    """What a transformer's weights hold beside its own.

    dtype: that it computes in; weights that are kept in eight bits are merged into this one.
    active: SHA-256 and strength of each; None until every layer is changed to the next ones.
    original_weights: the weights that were loaded, of the changed layers only, in main memory: a
    GPU holds each layer once. generation: counts the changes that were begun.
    """

    transformer: nn.Module
    dtype: torch.dtype
    active: tuple[tuple[str, float], ...] | None = ()
    original_weights: dict[str, Tensor] = field(default_factory=dict)
    generation: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def fuse(self, adapters: Sequence[LoraAdapter]) -> Iterator[None]:
        """Yield after each layer that is changed; none is if these are worn already.

        Raises InvalidRequest where one does not fit the model, LoraCorrupt.
        """
        layers = self._change(adapters)
        while True:
            with self.lock:
                try:
                    next(layers)
                except StopIteration:
                    return
            yield

    @contextmanager
    def ensure_fused(self, adapters: Sequence[LoraAdapter]) -> Iterator[None]:
        """The transformer with these, which no other clip changes meanwhile. Raises the same."""
        with self.lock:
            for _ in self._change(adapters):
                pass
            yield

    def _change(self, adapters: Sequence[LoraAdapter]) -> Iterator[None]:
        used = [adapter for adapter in adapters if adapter.strength]
        keys = tuple((adapter.sha256, adapter.strength) for adapter in used)
        if keys == self.active:
            return
        changes: dict[str, list[LayerChange]] = {name: [] for name in self.original_weights}
        for adapter in used:
            for pair in adapter.layers:
                self._check_shapes(adapter, pair)
                changes.setdefault(pair.layer, []).append((adapter, pair))
        self.active, self.generation = None, self.generation + 1
        turn = self.generation
        with ExitStack() as opened:
            files = {adapter.sha256: _open_file(adapter, opened) for adapter in used}
            for name, those in changes.items():
                self._fuse_layer(name, those, files)
                yield
                if self.generation != turn:
                    return  # another clip wants others; before its next step this one asks again
        self.active = keys

    def _check_shapes(self, adapter: LoraAdapter, pair: LoraLayer) -> None:
        other = f"loras: {adapter.label} was made for another model"
        try:
            shape = tuple(self._get_layer(pair.layer).weight.shape)
        except AttributeError:
            raise InvalidRequest(
                f"{other}; this one has no layer {pair.layer}.", param="loras"
            ) from None
        if shape != pair.shape:
            layer_size, lora_size = (f"{out}x{into}" for out, into in (shape, pair.shape))
            raise InvalidRequest(
                f"{other}; {pair.layer} is {layer_size} here and {lora_size} there.", param="loras"
            )

    def _get_layer(self, name: str) -> nn.Linear:
        return cast(nn.Linear, self.transformer.get_submodule(name))

    @torch.inference_mode(False)
    @torch.no_grad()
    def _fuse_layer(
        self, name: str, changes: Sequence[LayerChange], files: Mapping[str, safe_open]
    ) -> None:
        """One layer's own weight with `changes` added; without any, the weight itself."""
        layer = self._get_layer(name)
        device = layer.weight.device
        if name not in self.original_weights:
            self.original_weights[name] = layer.weight.to("cpu")
        original = self.original_weights[name]
        if not changes:
            layer.weight = nn.Parameter(original.to(device), requires_grad=False)
            del self.original_weights[name]
            return
        weight = original.to(device, torch.float32)
        for adapter, pair in changes:
            scale, down, up = _read_matrices(files[adapter.sha256], adapter, pair)
            weight = weight + adapter.strength * scale * (up.to(device) @ down.to(device))
        weight = weight.to(self.dtype if original.itemsize == 1 else original.dtype)
        if not weight.isfinite().all():
            names = ", ".join(dict.fromkeys(adapter.label for adapter, _ in changes))
            raise LoraCorrupt(
                f"{names}: merged into {name}, it gives values that are not numbers; use less "
                "strength or another file.",
                param="loras",
            )
        layer.weight = nn.Parameter(weight, requires_grad=False)


def _open_file(adapter: LoraAdapter, opened: ExitStack) -> safe_open:
    try:
        return opened.enter_context(safe_open(adapter.path, "pt"))
    except (SafetensorError, OSError) as error:
        raise LoraCorrupt(f"{adapter.label} cannot be read: {error}.", param="loras") from error


def _read_matrices(
    file: safe_open, adapter: LoraAdapter, pair: LoraLayer
) -> tuple[float, Tensor, Tensor]:
    """Scale, down (rank, in) and up (out, rank) in float32."""
    try:
        down, up = (file.get_tensor(name).float() for name in (pair.down, pair.up))
        if pair.alpha:
            return file.get_tensor(pair.alpha).item() / pair.rank, down, up
        return pair.scale, down, up
    except (SafetensorError, RuntimeError) as error:
        raise LoraCorrupt(f"{adapter.label} cannot be read: {error}.", param="loras") from error
