"""LoRAs merged into a transformer's weights, and its own weights back to the bit afterwards."""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import cast

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from filmlet.core.lora import LoraAdapter, LoraLayer
from filmlet.engine.torch.block_offload import widen
from filmlet.errors import InvalidRequest, LoraCorrupt

LayerChange = tuple[LoraAdapter, LoraLayer]


@dataclass(eq=False)
class FusedLoras:
    """The LoRAs that are fused into a transformer's weights.

    dtype: that it computes in; weights that are kept in eight bits are merged into this one.
    active: keys of the LoRAs that the weights hold; None while they are changed. original_weights:
    the weights that were loaded, of the changed layers only, in main memory: a GPU holds each layer
    once. cancel_checks: called between two layers; they may raise.
    """

    transformer: nn.Module
    dtype: torch.dtype
    active: tuple[tuple[str, float], ...] | None = ()
    original_weights: dict[str, Tensor] = field(default_factory=dict)
    cancel_checks: list[Callable[[], None]] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    @contextmanager
    def ensure_fused(self, adapters: Sequence[LoraAdapter]) -> Iterator[None]:
        """The transformer with these LoRAs, which no other clip changes meanwhile.

        Nothing is changed if it has them already. Raises InvalidRequest where one does not fit the
        model, LoraCorrupt.
        """
        with self.lock:
            used = [adapter for adapter in adapters if adapter.strength]
            keys = tuple(adapter.key for adapter in used)
            if keys != self.active:
                self._fuse(used)
                self.active = keys
            yield

    def _fuse(self, adapters: Sequence[LoraAdapter]) -> None:
        changes: dict[str, list[LayerChange]] = {name: [] for name in self.original_weights}
        for adapter in adapters:
            for pair in adapter.layers:
                self._check_shapes(adapter, pair)
                changes.setdefault(pair.layer, []).append((adapter, pair))
        self.active = None  # until the last layer: a change that was left half done is done again
        with ExitStack() as opened:
            files = {adapter.sha256: _open_file(adapter, opened) for adapter in adapters}
            for name, those in changes.items():
                for check in self.cancel_checks:
                    check()
                self._fuse_layer(name, those, files)

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
        scale = getattr(layer, "weight_scale", 1.0)
        weight = widen(original.to(device), torch.float32, scale)
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
