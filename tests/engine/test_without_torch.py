"""pocket without torch: nothing of it is imported, and its noise comes again."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from filmlet.engine.openvino.noise import TorchNoise
from filmlet.errors import MissingDependency
from filmlet.models import REGISTRY, local_files
from filmlet.models.tokenizer import load_tokenizer, tokenize

HEAVY = ("torch", "diffusers", "transformers")
BLOCKED = f"import sys; sys.modules |= dict.fromkeys({HEAVY})\n"  # as if they were not installed
SIZES = [(1,), (3,), (15,), (16,), (17,), (2, 5), (31,), (1, 64, 7, 8, 8), (5,), (1000,), (1, 1)]


def run(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", BLOCKED + code], cwd=folder, capture_output=True, text=True
    )


@pytest.mark.parametrize("seed", [0, 1, 7, 2**32 - 1, 2**32 + 5])
def test_noise_is_that_of_torch_however_it_is_drawn(seed: int) -> None:
    generator, noise = torch.Generator().manual_seed(seed), TorchNoise(seed)
    for size in SIZES * 2:
        expected = torch.randn(size, generator=generator).numpy()
        assert np.abs(noise.randn(*size) - expected).max() <= 1e-6


@pytest.mark.parametrize("most", [128, 6])
def test_prompts_are_read_as_transformers_reads_them(most: int) -> None:
    folder = local_files(REGISTRY["pocket"]).tokenizer
    stock, own = (
        AutoTokenizer.from_pretrained(folder, local_files_only=True),
        load_tokenizer(folder),
    )
    for prompt in ("A red Circle, moving LEFT...", "a zebra on the moon", "", "cat " * 9):
        expected = stock(prompt, padding="max_length", max_length=most, truncation=True)
        reading = tokenize(own, prompt, most)
        assert reading.ids.tolist() == [expected["input_ids"]]
        assert reading.token_count == sum(expected["attention_mask"])


@pytest.mark.server
def test_clips_are_made_without_torch(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    code = """
import filmlet
options = {"seed": 3, "size": "64x64", "frames": 9}
clip = filmlet.generate("a red ball", **options)
clip.save("first.mp4")
assert clip.effective.engine == "openvino" and clip.effective.changes == (), clip.effective
from pathlib import Path
from filmlet.media import save_image
save_image(Path("still.png"), clip.poster)
begun = filmlet.generate("a red ball", image="still.png", **options)
longer = filmlet.generate("a red ball", extend="first.mp4", **options)
parts = filmlet.generate("a ball", extra_prompts=["a star"], guidance=2, force_guidance=True,
                         negative_prompt="a car", seed=3, size="64x64", frames=49)
print(*(len(one.frames) for one in (clip, begun, longer, parts)))
"""
    made = run(code, tmp_path)
    assert made.stdout.split() == ["9", "9", "18", "49"], made.stderr


@pytest.mark.server
def test_what_needs_torch_says_so_in_one_sentence(tmp_path: Path) -> None:
    code = """
from filmlet.cli.main import main
raise SystemExit(main(["generate", "a red ball", "--output", "clip.mp4"]))
"""
    made = run("import os; os.environ['FILMLET_ENGINE'] = 'torch'\n" + code, tmp_path)
    assert made.returncode != 0
    assert "pip install 'filmlet[torch]'" in made.stderr
    assert "Traceback" not in made.stderr
    assert MissingDependency.code == "library_missing"


@pytest.mark.server
def test_server_that_is_not_installed_is_asked_for_in_one_sentence(tmp_path: Path) -> None:
    blocked = "sys.modules |= dict.fromkeys(('dbos', 'fastapi', 'gradio', 'sqlalchemy'))\n"
    start = "from filmlet.cli.main import main\nraise SystemExit(main([{!r}]))"
    for command in ("serve", "worker", "jobs"):
        made = run(blocked + start.format(command), tmp_path)
        assert made.returncode == 1
        assert f"filmlet {command} takes " in made.stderr
        assert "pip install 'filmlet[server]'" in made.stderr
    assert run(blocked + start.format("models"), tmp_path).returncode == 0


@pytest.mark.server
def test_story_of_a_clip_imports_no_torch() -> None:
    code = "import sys, filmlet.clip, filmlet.jobs.worker, filmlet.engine.openvino.engine\n"
    code += f"print([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.server
def test_plan_needs_no_server(tmp_path: Path) -> None:
    blocked = "sys.modules |= dict.fromkeys(('dbos', 'fastapi', 'gradio', 'sqlalchemy'))\n"
    start = "from filmlet.cli.main import main\n"
    code = f"{start}raise SystemExit(main(['plan', 'a', 'cat', '--json']))"
    made = run(blocked + code, tmp_path)
    assert made.returncode == 0, made.stderr
    eta = json.loads(made.stdout)["eta"]
    assert 0 < eta["low"] < eta["seconds"] < eta["high"]


@pytest.mark.server
def test_plan_of_a_large_model_needs_no_torch_and_asks_for_it(tmp_path: Path) -> None:
    words = ["plan", "--model", "ltxv-2b-0.9.8-distilled", "--size", "704x512", "--seconds", "4"]
    start = "from filmlet.cli.main import main\nraise SystemExit(main({!r}))"
    made = run(start.format(words), tmp_path)
    assert made.returncode == 0, made.stderr
    assert "download 25.9 GB" in made.stdout
    assert "  note: This clip takes torch: pip install 'filmlet[torch]'" in made.stdout
    made = run(start.format([*words, "--json"]), tmp_path)
    assert "filmlet[torch]" in json.loads(made.stdout)["trouble"]
