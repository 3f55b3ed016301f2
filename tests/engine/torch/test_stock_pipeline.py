"""pocket is a checkpoint for stock diffusers as well."""

import torch
from diffusers import LTXPipeline

from filmlet.models.registry import POCKET


def test_stock_diffusers_runs_pocket_without_being_told_a_dtype() -> None:
    pipe = LTXPipeline.from_pretrained(POCKET)
    assert pipe.text_encoder.dtype == pipe.transformer.dtype == torch.float32
    pipe.set_progress_bar_config(disable=True)
    done = pipe("a cat", num_frames=9, width=64, height=64, num_inference_steps=1, output_type="np")
    assert done.frames.shape == (1, 9, 64, 64, 3)
