"""The whole way from nothing to pocket: `python -m recipe`; stopped, it goes on where it was.

`--compute 2` trains twice as long everywhere; `--only evaluate` runs one stage on what is there;
`--start src/filmlet/pocket` goes on from a checkpoint; what it knows is not learned again.
"""

import argparse
import copy
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from diffusers import AutoencoderKLLTXVideo
from torch import Tensor

from recipe import distil, evaluate, export, teacher, vae
from recipe.evaluate import Scores
from recipe.prompts import Example
from recipe.renderer import render
from recipe.sampling import Sampler
from recipe.teacher import SHAPES, LatentDataset, Shape, TextToVideoModel
from recipe.trainer import TrainingRun

GUIDANCE = 2.5  # of the teacher; more spoils what a subject looks like
STAGES = ("vae", "teacher", "student", "export", "evaluate")


@dataclass(frozen=True)
class Steps:
    """How long each stage trains at --compute 1: about ten hours of two CPU cores."""

    vae_images: int = 1000
    vae_videos: int = 6000
    clips: int = 8000  # of the default shape, encoded once for the transformer
    stills: int = 3000
    whole: int = 11000
    student: int = 1200

    def scale_steps(self, compute: float) -> "Steps":
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
    method: str = distil.BEST

    def run(self, name: str) -> TrainingRun:
        return TrainingRun(self.folder, name, self.device)

    @cached_property
    def vae(self) -> AutoencoderKLLTXVideo:
        """The trained VAE; trains what is missing."""
        torch.manual_seed(0)
        images = self.steps.vae_images
        if self.start:
            model, images = vae.load(self.start / "vae"), 0  # a checkpoint has seen its images
        else:
            model = vae.build(vae.VaeSize())
        model = model.to(self.device)
        vae.train(self.run("vae"), model, images, self.steps.vae_videos)
        return model.eval()

    @cached_property
    def data(self) -> LatentDataset:
        return teacher.encode(self.vae, self.steps.clips, self.folder / "latents")

    @cached_property
    def teacher(self) -> TextToVideoModel:
        """The trained teacher; trains what is missing."""
        torch.manual_seed(0)
        pair = TextToVideoModel.untrained(vae.VaeSize().latent_channels).to(self.device)
        if self.start:
            pair.start_from(self.start)
        run, steps = self.run("teacher"), self.steps
        teacher.train(run, pair, self.data, steps.stills, steps.whole, is_new=not self.start)
        return pair.eval()

    @cached_property
    def student(self) -> TextToVideoModel:
        """The distilled student; trains what is missing."""
        pair = copy.deepcopy(self.teacher).requires_grad_(True)
        way = distil.DistillConfig(self.method, distil.STEPS, GUIDANCE)
        distil.train(self.run("student"), pair, self.teacher, self.data, way, self.steps.student)
        return pair.eval()

    def export(self) -> None:
        size = export.export(
            self.target, copy.deepcopy(self.vae), copy.deepcopy(self.student), self.data
        )
        print(f"{self.target}: {size / 1e6:.1f} MB")

    def evaluate(self) -> None:
        """The judge on truth, the VAE, the teacher and the student; written to results.json."""
        figures = vae.psnr(self.vae, max(1, self.prompts // 4))
        student = self._maker(self.student, distil.STEPS, 1.0)
        table = {
            "ground truth": evaluate.score_ground_truth(self.prompts),
            "vae": {"psnr": round(sum(figures) / len(figures), 2), "worst": round(min(figures), 2)},
            f"teacher, 30 steps, guidance {GUIDANCE:g}": self._scores(
                self._maker(self.teacher, 30, GUIDANCE)
            ),
            f"student, {distil.STEPS} steps": self._scores(student),
            "student, from a first picture": self._render_prompts(student),
        }
        for name, shape in SHAPES.items():
            if shape.frames >= evaluate.SECOND and name != "clip":
                table[f"student, {shape}"] = self._scores(student, shape)
        print(json.dumps(table, indent=2))
        export.write_scores(self.folder / "results.json", table)

    def _maker(self, pair: TextToVideoModel, steps: int, guidance: float) -> Sampler:
        return Sampler(pair, self.vae, self.data.mean, self.data.std, steps, guidance)

    def _scores(self, maker: Sampler, shape: Shape | None = None) -> Scores:
        count = max(1, self.prompts // 4) if shape else self.prompts
        latent = (shape or SHAPES["clip"]).latent
        return evaluate.evaluate(lambda example: maker.make(example.prompt, latent), count)

    def _render_prompts(self, maker: Sampler) -> Scores:
        """The student given the first picture; psnr: of that picture in the clip, dB."""
        kept: list[float] = []

        def make(example: Example) -> Tensor:
            picture = render(example.scenario, 1)
            clip = maker.make(example.prompt, picture=picture)
            kept.append(vae.psnr_db(clip[:, :1], picture))
            return clip

        scores = evaluate.evaluate(make, max(1, self.prompts // 2))
        return scores | {"psnr": round(sum(kept) / len(kept), 2)}


def main() -> None:
    options = argparse.ArgumentParser(prog="recipe", description=__doc__)
    options.add_argument("--compute", type=float, default=1.0, help="training length, 1 = 10 h")
    options.add_argument("--folder", type=Path, default=Path("build/recipe"))
    options.add_argument("--target", type=Path, default=Path("src/filmlet/pocket"))
    options.add_argument("--prompts", type=int, default=120, help="held-out prompts to judge")
    options.add_argument("--only", choices=STAGES, help="one stage, with what it needs")
    options.add_argument("--start", type=Path, help="a checkpoint to go on from")
    options.add_argument("--method", choices=distil.METHODS, default=distil.BEST, help="to distil")
    chosen = options.parse_args()
    chosen.folder.mkdir(parents=True, exist_ok=True)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    recipe = TrainingPipeline(
        chosen.folder,
        chosen.target,
        Steps().scale_steps(chosen.compute),
        device,
        chosen.prompts,
        chosen.start,
        chosen.method,
    )
    for stage in [chosen.only] if chosen.only else STAGES:
        value = getattr(recipe, stage)
        if callable(value) and not isinstance(value, torch.nn.Module):
            value()


if __name__ == "__main__":
    main()
