"""Text that Gemma goes on with, of the weights that LTX-2 encodes prompts with.

The language model's head is the matrix of its embeddings, which is there: nothing more is read.
"""

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from transformers import DynamicCache, PreTrainedModel

from filmlet.core.memory import RESERVED_FRACTION, memory_to_write
from filmlet.core.model_card import ModelFamily
from filmlet.engine.configs import blame_files
from filmlet.engine.placement import Placement, free_memory
from filmlet.engine.state_dict import CheckpointWeights
from filmlet.engine.torch.loader import load_weights
from filmlet.engine.torch.ltx2.modules import build_ltx2_module
from filmlet.errors import NotSupported, OutOfMemory

LANGUAGE_MODEL = "gemma3_text"


def load_language_model(place: Path, placement: Placement) -> PreTrainedModel:
    """Return the text encoder of a checkpoint, all of it in memory.

    Layer by layer, each word would read the whole file. Raises OutOfMemory where it does not fit,
    NotSupported where it is no language model that follows instructions, CheckpointCorrupt.
    """
    weights = CheckpointWeights("text_encoder", place, ModelFamily.LTX2)
    if weights.config["model_type"] != LANGUAGE_MODEL:
        raise NotSupported(f"{place} writes no prompts: only Gemma 3 does.", param="model")
    needed = memory_to_write(weights.values, placement.value_bytes)
    free = free_memory(placement.device)
    if needed > free * (1 - RESERVED_FRACTION):
        raise OutOfMemory(
            f"takes {needed / 1e9:.1f} GB of memory to write a prompt, and {placement.device} has "
            f"{free / 1e9:.1f} GB free."
        )
    with blame_files(place):
        module = build_ltx2_module("text_encoder", weights)
    for _ in load_weights(module, weights, placement):
        pass
    assert isinstance(module, PreTrainedModel)
    return module


def generate_tokens(
    model: PreTrainedModel, ids: Sequence[int], ends: Collection[int], max_tokens: int
) -> Iterator[int]:
    """Yield the likeliest tokens after `ids`, at most so many; close the iterator to stop.

    ends: tokens that end the text; the one that comes is not yielded.
    """
    embeddings = model.get_input_embeddings()
    cache = DynamicCache(config=model.config)
    new = torch.tensor([list(ids)], device=embeddings.weight.device)
    for _ in range(max_tokens):
        with torch.inference_mode():
            states = model(
                input_ids=new, past_key_values=cache, use_cache=True
            ).last_hidden_state[:, -1]  # fmt: skip
            new = F.linear(states, embeddings.weight).argmax(-1, keepdim=True)
        token = int(new)
        if token in ends:
            return
        yield token
