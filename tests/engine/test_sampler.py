"""Guidance, alone: what the transformer says of two prompts becomes one velocity."""

import numpy as np
import pytest
import torch
from diffusers.pipelines.ltx.pipeline_ltx import rescale_noise_cfg

from filmlet.engine.sampler import apply_guidance


@pytest.mark.parametrize("rescale", [0.0, 0.7, 1.0])
def test_guidance_equals_stock_diffusers(rescale: float) -> None:
    generator = torch.Generator().manual_seed(1)
    prompt, negative = (torch.randn(2, 5, 3, generator=generator) for _ in range(2))
    stock = negative + 4.0 * (prompt - negative)
    stock = rescale_noise_cfg(stock, prompt, guidance_rescale=rescale)
    guided = apply_guidance(prompt, negative, 4.0, rescale)
    # Stock divides by one value less, which cancels.
    assert torch.allclose(guided, stock, atol=1e-5)
    as_numpy = apply_guidance(prompt.numpy(), negative.numpy(), 4.0, rescale)
    assert np.allclose(as_numpy, guided.numpy(), atol=1e-6)


def test_scale_of_one_is_no_guidance() -> None:
    generator = np.random.default_rng(1)
    prompt, negative = (generator.normal(size=(1, 5, 3)).astype(np.float32) for _ in range(2))
    assert np.allclose(apply_guidance(prompt, negative, 1.0, 0.0), prompt, atol=1e-6)
