"""LoRAs merged into a transformer's weights, and its own weights back to the bit afterwards.

No second copy of the weights is held. What is a page of the checkpoint's file stays one, and what
is not is read from the file again. A layer that is offloaded gets its LoRAs whenever it is lent.
"""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import cast

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from filmlet.core.lora import LoraAdapter, LoraLayer
from filmlet.engine.torch.block_offload import widen
from filmlet.errors import InvalidRequest, LoraCorrupt

LayerChange = tuple[LoraAdapter, LoraLayer]
ReadWeight = Callable[[str], tuple[Tensor, float]]  # by its name: as it is stored, and its scale


@dataclass(frozen=True, eq=False)
class LoraMerge:
    """What LoRAs add to the weight of one layer. files: by their content."""

    layer: str
    changes: tuple[LayerChange, ...]
    files: Mapping[str, safe_open]

    @torch.no_grad()
    def __call__(self, weight: Tensor, dtype: torch.dtype) -> Tensor:
        """Return the merged weight in `dtype`; `weight`, in float32, stays. Raises LoraCorrupt."""
        for adapter, pair in self.changes:
            scale, down, up = _read_matrices(self.files[adapter.sha256], adapter, pair)
            change = up.to(weight.device) @ down.to(weight.device)
            weight = change.mul_(adapter.strength * scale).add_(weight)
        merged = weight.to(dtype)
        if not merged.isfinite().all():
            names = ", ".join(dict.fromkeys(adapter.label for adapter, _ in self.changes))
            raise LoraCorrupt(
                f"{names}: merged into {self.layer}, it gives values that are not numbers; use "
                "less strength or another file.",
                param="loras",
            )
        return merged


@dataclass(eq=False)
class FusedLoras:
    """The LoRAs that are fused into a transformer's weights.

    dtype: that it computes in, and merged weights have. read_weight: of the checkpoint; without it
    the weights of changed layers are copied to main memory. offloaded: layers that are lent to the
    device while they run (`offload_blocks`). active: keys of the LoRAs that the weights hold; None
    while they are changed. original_weights: of the changed layers; None where they are read again.
    cancel_checks: called between two layers; they may raise.
    """

    transformer: nn.Module
    dtype: torch.dtype
    read_weight: ReadWeight | None = None
    offloaded: frozenset[nn.Module] = frozenset()
    active: tuple[tuple[str, float], ...] | None = ()
    original_weights: dict[str, Tensor | None] = field(default_factory=dict)
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
        files = {adapter.sha256: _open_file(adapter) for adapter in adapters}
        for name, those in changes.items():
            for check in self.cancel_checks:
                check()
            self._fuse_layer(name, LoraMerge(name, tuple(those), files) if those else None)

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
    def _fuse_layer(self, name: str, merge: LoraMerge | None) -> None:
        """Give a layer its own weight, merged with LoRAs, or as it is."""
        layer = self._get_layer(name)
        if layer in self.offloaded:
            layer.weight_merge = merge  # type: ignore[assignment]  # for whoever lends it
            self.original_weights[name] = None
        else:
            self._set_weight(name, layer, merge)
        if merge is None:
            del self.original_weights[name]

    def _set_weight(self, name: str, layer: nn.Linear, merge: LoraMerge | None) -> None:
        device = layer.weight.device
        if name not in self.original_weights:
            self.original_weights[name] = self._keep_weight(name, layer.weight)
        original, scale = self.original_weights[name], getattr(layer, "weight_scale", 1.0)
        if original is None:
            assert self.read_weight
            original, scale = self.read_weight(f"{name}.weight")
            original = original if merge else widen(original, self.dtype, scale)
        weight = original.to(device)
        if merge:
            weight = merge(widen(weight, torch.float32, scale), self.dtype)
        layer.weight = nn.Parameter(weight, requires_grad=False)

    def _keep_weight(self, name: str, weight: Tensor) -> Tensor | None:
        """Return the weight of a layer that is to be changed; None where its file has it as well.

        On a CPU, what was not converted is a page of the file: to keep it takes no memory.
        """
        if self.read_weight is None:
            return weight.to("cpu")
        stored, _ = self.read_weight(f"{name}.weight")
        is_page = weight.device.type == "cpu" and stored.dtype == weight.dtype
        return weight if is_page else None


def _open_file(adapter: LoraAdapter) -> safe_open:
    """Open a LoRA's file; its mapping goes with the last layer that is merged with it."""
    try:
        return safe_open(adapter.path, "pt")
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
