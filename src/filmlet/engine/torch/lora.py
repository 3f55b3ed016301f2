"""LoRAs merged into a transformer's weights, and its own weights back to the bit afterwards."""

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import cast

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from filmlet.core.lora import Adapter, Pair
from filmlet.errors import InvalidRequest, LoraDamaged

Change = tuple[Adapter, Pair]


@dataclass(eq=False)
class Loras:
    """What a transformer's weights hold beside its own.

    dtype: that it computes in; weights that are kept in eight bits are merged into this one.
    worn: SHA-256 and strength of each; None until every layer is changed to the next ones.
    own: the weights that were loaded, of the changed layers only, in main memory: a GPU holds each
    layer once. turn: counts the changes that were begun.
    """

    transformer: nn.Module
    dtype: torch.dtype
    worn: tuple[tuple[str, float], ...] | None = ()
    own: dict[str, Tensor] = field(default_factory=dict)
    turn: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def change(self, wanted: Sequence[Adapter]) -> Iterator[None]:
        """Yield after each layer that is changed; none is if these are worn already.

        Raises InvalidRequest where one does not fit the model, LoraDamaged.
        """
        layers = self._change(wanted)
        while True:
            with self.lock:
                try:
                    next(layers)
                except StopIteration:
                    return
            yield

    @contextmanager
    def wearing(self, wanted: Sequence[Adapter]) -> Iterator[None]:
        """The transformer with these, which no other clip changes meanwhile. Raises the same."""
        with self.lock:
            for _ in self._change(wanted):
                pass
            yield

    def _change(self, wanted: Sequence[Adapter]) -> Iterator[None]:
        used = [adapter for adapter in wanted if adapter.strength]
        worn = tuple((adapter.sha256, adapter.strength) for adapter in used)
        if worn == self.worn:
            return
        changes: dict[str, list[Change]] = {name: [] for name in self.own}
        for adapter in used:
            for pair in adapter.pairs:
                self._check(adapter, pair)
                changes.setdefault(pair.layer, []).append((adapter, pair))
        self.worn, self.turn = None, self.turn + 1
        turn = self.turn
        with ExitStack() as opened:
            files = {adapter.sha256: _opened(adapter, opened) for adapter in used}
            for name, those in changes.items():
                self._put(name, those, files)
                yield
                if self.turn != turn:
                    return  # another clip wants others; before its next step this one asks again
        self.worn = worn

    def _check(self, adapter: Adapter, pair: Pair) -> None:
        other = f"loras: {adapter.label} was made for another model"
        try:
            shape = tuple(self._layer(pair.layer).weight.shape)
        except AttributeError:
            raise InvalidRequest(
                f"{other}; this one has no layer {pair.layer}.", param="loras"
            ) from None
        if shape != pair.shape:
            here, there = (f"{out}x{into}" for out, into in (shape, pair.shape))
            raise InvalidRequest(
                f"{other}; {pair.layer} is {here} here and {there} there.", param="loras"
            )

    def _layer(self, name: str) -> nn.Linear:
        return cast(nn.Linear, self.transformer.get_submodule(name))

    @torch.inference_mode(False)
    @torch.no_grad()
    def _put(self, name: str, changes: Sequence[Change], files: Mapping[str, safe_open]) -> None:
        """One layer's own weight with `changes` added; without any, the weight itself."""
        layer = self._layer(name)
        device = layer.weight.device
        if name not in self.own:
            self.own[name] = layer.weight.to("cpu")
        own = self.own[name]
        if not changes:
            layer.weight = nn.Parameter(own.to(device), requires_grad=False)
            del self.own[name]
            return
        weight = own.to(device, torch.float32)
        for adapter, pair in changes:
            scale, down, up = _read(files[adapter.sha256], adapter, pair)
            weight = weight + adapter.strength * scale * (up.to(device) @ down.to(device))
        weight = weight.to(self.dtype if own.itemsize == 1 else own.dtype)
        if not weight.isfinite().all():
            names = ", ".join(dict.fromkeys(adapter.label for adapter, _ in changes))
            raise LoraDamaged(
                f"{names}: merged into {name}, it gives values that are not numbers; use less "
                "strength or another file.",
                param="loras",
            )
        layer.weight = nn.Parameter(weight, requires_grad=False)


def _opened(adapter: Adapter, opened: ExitStack) -> safe_open:
    try:
        return opened.enter_context(safe_open(adapter.path, "pt"))
    except (SafetensorError, OSError) as error:
        raise LoraDamaged(f"{adapter.label} cannot be read: {error}.", param="loras") from error


def _read(file: safe_open, adapter: Adapter, pair: Pair) -> tuple[float, Tensor, Tensor]:
    """Scale, down (rank, in) and up (out, rank) in float32."""
    try:
        down, up = (file.get_tensor(name).float() for name in (pair.down, pair.up))
        if pair.alpha:
            return file.get_tensor(pair.alpha).item() / pair.rank, down, up
        return pair.scale, down, up
    except (SafetensorError, RuntimeError) as error:
        raise LoraDamaged(f"{adapter.label} cannot be read: {error}.", param="loras") from error
