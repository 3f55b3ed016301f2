"""How near OpenVINO's clips are to those of torch in float32: `python -m bench.accuracy`."""

import argparse
from collections.abc import Callable
from dataclasses import replace
from statistics import median

import numpy as np

from bench.worker import SIDE
from filmlet.core.events import Frames, Pixels
from filmlet.pipeline.engine_cache import EngineCache

ENGINES = EngineCache()
PROMPTS = 300  # one of them is a third of a point
JUDGED = 25  # frames of a clip that is judged


def pixels(prompt: str, engine: str, dtype: str | None) -> Pixels:
    """The frames of a clip long enough to be judged."""
    from filmlet.core.events import drain
    from filmlet.core.request import build_request
    from filmlet.pipeline import stages
    from filmlet.pipeline.plan import make_plan
    from filmlet.pipeline.prepare import prepare
    from filmlet.pipeline.run_context import RunContext
    from filmlet.settings import Settings

    request = build_request(prompt, seed=1, frames=JUDGED, size=f"{SIDE}x{SIDE}")
    settings = replace(Settings.from_environment(), engine=engine)
    clip = drain(prepare(make_plan(request), settings, dtype, engines=ENGINES))
    events = stages.generate_frames(clip, RunContext(ENGINES))
    return np.concatenate([e.pixels for e in events if isinstance(e, Frames)])


def report(prompts: int) -> str:
    """The recipe's scores for held-out prompts on both engines, and how far the frames differ."""
    import torch
    from torch import Tensor

    from recipe.evaluate import evaluate
    from recipe.prompts import Example

    made: dict[str, list[Pixels]] = {"openvino": [], "torch": []}

    def maker(engine: str, dtype: str | None) -> Callable[[Example], Tensor]:
        def make(example: Example) -> Tensor:
            made[engine].append(pixels(example.prompt, engine, dtype))
            return torch.tensor(made[engine][-1]).permute(3, 0, 1, 2) / 127.5 - 1

        return make

    fast = evaluate(maker("openvino", None), prompts)
    plain = evaluate(maker("torch", "float32"), prompts)
    pairs = zip(made["openvino"], made["torch"], strict=True)
    psnr = [10 * np.log10(255**2 / np.mean((a.astype(float) - b) ** 2)) for a, b in pairs]
    rows = {"OpenVINO": fast, "torch, float32": plain}
    cells = [
        f"| {side} | {' | '.join(f'{value:.1f}' for value in scores.values())} |"
        for side, scores in rows.items()
    ]
    return f"""How near clips are to those of torch in float32 (`python -m bench.accuracy`), by the
PSNR of their frames, {JUDGED} each: {min(psnr):.1f} dB at least, {median(psnr):.1f} dB in the
middle. What the recipe's judge sees:

| {prompts} held-out prompts, right in % | {" | ".join(fast)} |
|---|{"---|" * len(fast)}
{chr(10).join(cells)}
"""


def main() -> None:
    options = argparse.ArgumentParser(prog="bench.accuracy", description=__doc__)
    options.add_argument("--prompts", type=int, default=PROMPTS, help="held-out, to judge")
    chosen = options.parse_args()
    print(report(chosen.prompts))


if __name__ == "__main__":
    main()
