"""The stages of the recipe, and what each needs of those before it."""

import argparse
import copy
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from diffusers import AutoencoderKLLTXVideo
from torch import Tensor

from recipe import (
    decoder,
    distil,
    evaluate,
    export,
    fidelity,
    frames,
    teacher,
    transfer,
    vae,
    workers,
)
from recipe.evaluate import Scores
from recipe.prompts import Example
from recipe.renderer import render
from recipe.sampling import Sampler
from recipe.teacher import SHAPES, LatentDataset, Shape, TextToVideoModel
from recipe.trainer import TrainingRun, steps_done

GUIDANCE = 2.5  # of the teacher; more spoils what a subject looks like
STAGES = ("vae", "teacher", "student", "decoder", "export", "evaluate")


@dataclass(frozen=True)
class Steps:
    """How long each stage trains at --compute 1: about thirty hours of two CPU cores."""

    vae_images: int = 2000
    vae_videos: int = 9000
    clips: int = 2000  # of the default shape, encoded once for the transformer
    stills: int = 800
    whole: int = 5200
    student: int = 1200
    decoder: int = 600

    def scale(self, compute: float) -> "Steps":
        """Every length times `compute`, at least 1."""
        return Steps(**{name: max(1, round(n * compute)) for name, n in vars(self).items()})


@dataclass(frozen=True)
class TrainingPipeline:
    """Where the stages keep their work, and how long they train."""

    folder: Path
    target: Path
    steps: Steps
    device: torch.device
    prompts: int
    start: Path | None = None
    transformer: Path | None = None  # of a checkpoint with other latents
    method: str = distil.BEST

    def run(self, name: str) -> TrainingRun:
        return TrainingRun(self.folder, name, self.device, worker=workers.rank())

    @cached_property
    def vae(self) -> AutoencoderKLLTXVideo:
        """The trained VAE; trains what is missing."""
        torch.manual_seed(0)
        if self.start:  # its latents are those that a transformer learns
            return vae.load(self.start / "vae").to(self.device).eval()
        model = vae.build(vae.VaeSize()).to(self.device)
        vae.train_images(self.run("vae-images"), model, self.steps.vae_images)
        frames.repeat_frames(model)
        vae.train_videos(self.run("vae"), model, self.steps.vae_videos)
        return model.eval()

    @cached_property
    def data(self) -> LatentDataset:
        return LatentDataset(self.vae, self.steps.clips, self.folder / "latents")

    @cached_property
    def teacher(self) -> TextToVideoModel:
        """The trained teacher; trains what is missing."""
        torch.manual_seed(0)
        pair = TextToVideoModel.untrained(vae.VaeSize().latent_channels).to(self.device)
        is_new = not (self.start and (self.start / "transformer").exists())
        if self.start:
            pair.start_from(self.start)
        run, steps = self.run("teacher"), self.steps
        if self.transformer and not steps_done(run.path):
            pair.start_from(self.transformer)
            transfer.fit_projections(pair, self.transformer, self.data)
        teacher.train(run, pair, self.data, steps.stills, steps.whole, is_new=is_new)
        return pair.eval()

    @cached_property
    def student(self) -> TextToVideoModel:
        """The distilled student; trains what is missing."""
        pair = copy.deepcopy(self.teacher).requires_grad_(True)
        way = distil.DistillConfig(self.method, distil.STEPS, GUIDANCE)
        distil.train(self.run("student"), pair, self.teacher, self.data, way, self.steps.student)
        return pair.eval()

    @cached_property
    def decoder(self) -> AutoencoderKLLTXVideo:
        """The VAE with a decoder that knows the student; trains what is missing."""
        model = copy.deepcopy(self.vae)
        decoder.train(self.run("decoder"), model, self.student, self.data, self.steps.decoder)
        return model.eval()

    def export(self) -> None:
        size = export.export(
            self.target, copy.deepcopy(self.decoder), copy.deepcopy(self.student), self.data
        )
        print(f"{self.target}: {size / 1e6:.1f} MB")

    def evaluate(self) -> None:
        """The judge on truth, the VAE, the teacher and the student; written to results.json."""
        student = self._make_sampler(self.student, distil.STEPS, 1.0)
        table = {
            "ground truth": evaluate.score_ground_truth(self.prompts),
            "vae, dB around the subject": fidelity.measure_psnr(
                self.decoder, max(1, self.prompts // 4)
            ),
            f"teacher, 30 steps, guidance {GUIDANCE:g}": self._score(
                self._make_sampler(self.teacher, 30, GUIDANCE)
            ),
            f"student, {distil.STEPS} steps": self._score(student),
            "student, from a first picture": self._score_with_picture(student),
        }
        for name, shape in SHAPES.items():
            if shape.frames >= evaluate.SECOND and name != "clip":
                table[f"student, {shape}"] = self._score(student, shape)
        print(json.dumps(table, indent=2))
        export.write_scores(self.folder / "results.json", table)

    def _make_sampler(self, pair: TextToVideoModel, steps: int, guidance: float) -> Sampler:
        return Sampler(pair, self.decoder, self.data.mean, self.data.std, steps, guidance)

    def _score(self, maker: Sampler, shape: Shape | None = None) -> Scores:
        count = max(1, self.prompts // 4) if shape else self.prompts
        latent = (shape or SHAPES["clip"]).latent
        return evaluate.evaluate(lambda example: maker.make(example.prompt, latent), count)

    def _score_with_picture(self, maker: Sampler) -> Scores:
        """The student given the first picture; psnr: of that picture in the clip, dB."""
        kept: list[float] = []

        def make(example: Example) -> Tensor:
            picture = render(example.scenario, 1)
            clip = maker.make(example.prompt, picture=picture)
            kept.append(fidelity.psnr(clip[:, :1], picture))
            return clip

        scores = evaluate.evaluate(make, max(1, self.prompts // 2))
        return scores | {"psnr": round(sum(kept) / len(kept), 2)}


def run_stages(chosen: argparse.Namespace) -> None:
    """All stages, or the chosen one; only the first worker writes a checkpoint and judges it."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    recipe = TrainingPipeline(
        chosen.folder,
        chosen.target,
        Steps().scale(chosen.compute),
        device,
        chosen.prompts,
        chosen.start,
        chosen.transformer,
        chosen.method,
    )
    for stage in [chosen.only] if chosen.only else STAGES:
        if stage in ("export", "evaluate") and workers.rank():
            return
        value = getattr(recipe, stage)
        if callable(value) and not isinstance(value, torch.nn.Module):
            value()
