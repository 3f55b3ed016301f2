"""The whole way from nothing to pocket: `python -m recipe`; stopped, it goes on where it was.

`--workers 2` computes in two processes of one thread each, which share every step: where others
use the cores as well, less time is lost in waiting than with two threads.
`--compute 2` trains twice as long everywhere; `--only evaluate` runs one stage on what is there;
`--start src/filmlet/pocket` goes on from a checkpoint; what it knows is not learned again.
`--start recipe/milestone` goes on from a teacher in the middle of its training, see its README;
`--transformer src/filmlet/pocket` lets the bundled transformer learn the latents of another VAE.
"""

import argparse
from pathlib import Path

from recipe import distil, workers
from recipe.stages import STAGES, run_stages


def main() -> None:
    options = argparse.ArgumentParser(prog="recipe", description=__doc__)
    options.add_argument("--compute", type=float, default=1.0, help="training length, 1 = 30 h")
    options.add_argument("--folder", type=Path, default=Path("build/recipe"))
    options.add_argument("--target", type=Path, default=Path("src/filmlet/pocket"))
    options.add_argument("--prompts", type=int, default=120, help="held-out prompts to judge")
    options.add_argument("--only", choices=STAGES, help="one stage, with what it needs")
    options.add_argument("--start", type=Path, help="a checkpoint to go on from")
    options.add_argument(
        "--transformer",
        type=Path,
        help="a checkpoint whose transformer is to learn other latents",
    )
    options.add_argument("--method", choices=distil.METHODS, default=distil.BEST, help="to distil")
    options.add_argument("--workers", type=int, default=1, help="processes of one thread each")
    chosen = options.parse_args()
    chosen.folder.mkdir(parents=True, exist_ok=True)
    if chosen.workers > 1:
        workers.start(run_stages, chosen, chosen.workers)
    else:
        run_stages(chosen)


if __name__ == "__main__":
    main()
