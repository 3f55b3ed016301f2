"""Compiled components in the place of diffusers' own: from blobs, or from weights and checked."""

from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import torch
from diffusers.models import AutoencoderKLLTXVideo, LTXVideoTransformer3DModel
from diffusers.models.autoencoders.autoencoder_kl_ltx import LTXVideoDecoder3d
from torch import Tensor

from filmlet.card import Files, ModelCard
from filmlet.engine.compiled import decoder as decoding
from filmlet.engine.compiled import transformer as denoising
from filmlet.engine.compiled.running import Ask, Running, core, has_bfloat16, machine, options
from filmlet.engine.compiled.store import Blob, Store, fingerprint
from filmlet.engine.loading import Weights, fill, on_meta
from filmlet.engine.placement import Compiled, Placement
from filmlet.engine.streaming import Stream, flow
from filmlet.errors import NotFinite

FORMAT = 1  # of the graphs; another number makes them anew
BOUND = 3e-2  # relative error that a component may have beside torch in float32
EXACT = Placement("cpu", torch.float32, "what a compiled component is compared with")


@dataclass(eq=False)
class Transformer:
    """Called as diffusers' module is; text has no padding. module: without weights."""

    module: LTXVideoTransformer3DModel
    run: Running

    @property
    def config(self) -> object:
        return self.module.config

    @contextmanager
    def asking(self, ask: Ask) -> Iterator[None]:
        """Ask every 50 ms of a call; it may raise."""
        self.run.asks = (*self.run.asks, ask)
        try:
            yield
        finally:
            self.run.asks = tuple(one for one in self.run.asks if one is not ask)

    def __call__(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        timestep: Tensor,
        video_coords: Tensor,
        **_: None,
    ) -> tuple[Tensor]:
        heads = self.module.config.num_attention_heads
        turns = denoising.rotation(self.module.rope, video_coords, heads)
        time = self.module.time_embed.emb.time_proj(timestep.flatten())[None]
        (flow,) = self.run(hidden_states.float(), encoder_hidden_states.float(), time, *turns)
        return (flow,)


@dataclass(eq=False)
class Decoder:
    """Its graphs, each for frames of one resolution. module: without weights."""

    module: LTXVideoDecoder3d
    runs: Sequence[Running]
    dtype: torch.dtype

    def streams(self) -> list[Stream]:
        """For one clip."""
        levels = [
            decoding.level_of(together, run, self.dtype)
            for together, run in zip(decoding.levels(self.module, None), self.runs, strict=True)
        ]
        return [*levels, decoding.PatchStream(self.module.patch_size_t, self.module.patch_size)]


@dataclass(frozen=True)
class Build:
    """One component: what it is made of, and under which name it is kept."""

    card: ModelCard
    weights: Weights
    compiled: Compiled

    @property
    def store(self) -> Store:
        return Store(self.compiled.folder)

    @property
    def name(self) -> str:
        what = self.weights.component, self.compiled.dtype, self.card.decode_timestep
        return fingerprint(self.weights.files, FORMAT, *what, *machine())

    def verdict(self) -> str | None:
        """Why it was found to be no good, if it was."""
        verdict = self.store.load(f"{self.name}-off")
        return None if verdict is None else verdict.tobytes().decode()

    def transformer(self) -> Generator[int, None, Transformer]:
        """Yields bytes that were read. Raises NotFinite where it is not like torch's."""
        module: Any = on_meta(LTXVideoTransformer3DModel, self.weights.config)
        runs = self._kept(1)
        if runs:
            return Transformer(module, *runs)
        exact: Any = on_meta(LTXVideoTransformer3DModel, self.weights.config)
        yield from fill(exact, self.weights, EXACT)
        (blob,) = self._blobs([denoising.graph(exact)])
        made = Transformer(module, self._import(blob))
        inputs = _example(module)
        self._check(made(*inputs)[0], exact(*inputs[:3], None, video_coords=inputs[3])[0])
        self._keep([blob])
        return made

    def decoder(self) -> Generator[int, None, Decoder]:
        """Yields and raises the same."""
        whole: Any = on_meta(AutoencoderKLLTXVideo, self.weights.config)
        module = whole.decoder
        runs = self._kept(len(list(decoding.levels(module, None))))
        if runs:
            return Decoder(module, runs, self.compiled.dtype)
        exact: Any = on_meta(AutoencoderKLLTXVideo, self.weights.config)
        yield from fill(exact, self.weights, EXACT)
        timestep = None
        if exact.config.timestep_conditioning:
            timestep = torch.full((1,), self.card.decode_timestep)
        blobs = self._blobs(decoding.graphs(exact.decoder, timestep, self.compiled.dtype))
        runs = [self._import(blob) for blob in blobs]
        made = Decoder(module, runs, self.compiled.dtype)
        latents = _noise(1, exact.config.latent_channels, 3, 4, 4)
        pieces = flow(made.streams(), latents.split(1, 2))
        self._check(torch.cat(list(pieces), 2), exact.decoder(latents, timestep))
        self._keep(blobs)
        return made

    def _kept(self, count: int) -> list[Running]:
        """All its graphs, or none."""
        blobs = [self.store.load(f"{self.name}-{i}") for i in range(count)]
        there = [blob for blob in blobs if blob is not None]
        try:
            return [self._import(blob) for blob in there] if len(there) == count else []
        except RuntimeError:  # of another build of OpenVINO
            return []

    def _blobs(self, graphs: Sequence[ov.Model] | Iterator[ov.Model]) -> list[Blob]:
        models = (core().compile_model(g, "CPU", options(self.compiled.dtype)) for g in graphs)
        blobs = (model.export_model() for model in models)
        return [
            np.frombuffer(bytearray(b if isinstance(b, bytes) else b.getvalue()), np.uint8)
            for b in blobs
        ]

    def _import(self, blob: Blob) -> Running:
        """Also what was just compiled, so that every process runs the very same."""
        tensor = ov.Tensor(blob, shared_memory=True)
        model = core().import_model(tensor, "CPU", options(self.compiled.dtype))
        return Running(model, tensor)

    def _keep(self, blobs: Sequence[Blob]) -> None:
        for i, blob in enumerate(blobs):
            self.store.save(f"{self.name}-{i}", blob.tobytes())

    def _check(self, rough: Tensor, exact: Tensor) -> None:
        error = ((rough.float() - exact).norm() / exact.norm()).item()
        if error <= BOUND:
            return
        what = "transformer" if self.weights.component == "transformer" else "decoder"
        verdict = f"{str(self.compiled.dtype)[6:]} is off by {error:.1%} in OpenVINO's {what} here."
        self.store.save(f"{self.name}-off", verdict.encode())
        raise NotFinite(verdict)


def choose(card: ModelCard, files: Files, folder: Path, forced: bool) -> Compiled | str:
    """How OpenVINO computes a checkpoint here, or why torch does.

    In float32 it gains too little to be chosen by itself.
    """
    if not has_bfloat16() and not forced:
        return "this CPU has no bfloat16, without which OpenVINO is hardly faster"
    vae = Weights("vae", files.vae)
    noisy = vae.config.get("decoder_inject_noise")
    if isinstance(noisy, list | tuple) and any(noisy):
        return "the decoder adds noise, which is not compiled"
    chosen = Compiled(torch.bfloat16 if has_bfloat16() else torch.float32, folder)
    for weights in (Weights("transformer", files.transformer), vae):
        verdict = Build(card, weights, chosen).verdict()
        if verdict and not forced:
            return verdict
        if verdict:
            chosen = replace(chosen, dtype=torch.float32)
    return chosen


def _example(module: LTXVideoTransformer3DModel) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A small call: latents, text, timestep, places."""
    places = torch.stack(torch.meshgrid(*(torch.arange(4.0),) * 3, indexing="ij")).flatten(1)[None]
    latents = _noise(1, 64, module.config.in_channels)
    text = _noise(1, 8, module.config.caption_channels)
    return latents, text, torch.full((1,), 500.0), places * torch.tensor([[[0.3], [32], [32]]])


def _noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))
