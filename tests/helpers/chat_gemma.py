"""A tiny Gemma 3 that answers whatever it is asked with one sentence: no training, exact."""

import json
import shutil
from pathlib import Path

import torch
from transformers import Gemma3ForConditionalGeneration, PreTrainedTokenizerFast

from filmlet.models.chat_prompt import TURN_END, TURN_START
from tests.helpers.tiny_ltx2 import make_text_encoder, make_tokenizer

SENTENCE = "a red ball is moving left"


def make_chat_tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = make_tokenizer("2.3")
    tokenizer.add_special_tokens({"additional_special_tokens": [TURN_START, TURN_END]})
    return tokenizer


def make_random_gemma(tokenizer: PreTrainedTokenizerFast) -> Gemma3ForConditionalGeneration:
    torch.manual_seed(5)
    model = make_text_encoder("2.3", len(tokenizer))
    assert isinstance(model, Gemma3ForConditionalGeneration)
    return model


def make_chat_model(twin: Path, out: Path, sentence: str = SENTENCE) -> Path:
    """Copy a twin of 2.3 with a text encoder that writes this sentence, and ends its turn."""
    shutil.copytree(twin, out)
    tokenizer = make_chat_tokenizer()
    model = make_random_gemma(tokenizer)
    words = tokenizer(sentence, add_special_tokens=False).input_ids
    chain = [tokenizer("\n", add_special_tokens=False).input_ids[0], *words]
    write_chain(model, [*chain, tokenizer.convert_tokens_to_ids(TURN_END)])
    for name in ("text_encoder", "tokenizer"):
        shutil.rmtree(out / name)
    model.save_pretrained(out / "text_encoder")
    tokenizer.save_pretrained(out / "tokenizer")
    return out


@torch.no_grad()
def write_chain(model: Gemma3ForConditionalGeneration, chain: list[int]) -> None:
    """Have each token of a chain followed by the next one.

    Nothing of the layers is added, so logits are products of embeddings, normed and scaled: a
    symmetric matrix of tokens by tokens. In each row of it the next token is above the one before.
    """
    assert len(set(chain)) == len(chain)
    language = model.model.language_model
    for layer in language.layers:
        layer.self_attn.o_proj.weight.zero_()
        layer.mlp.down_proj.weight.zero_()
    wanted = torch.zeros(len(chain), len(chain), dtype=torch.float64)
    for place in range(len(chain) - 1):
        wanted[place, place + 1] = wanted[place + 1, place] = 1.0 + place
    values, vectors = torch.linalg.eigh(wanted)
    embeddings = language.embed_tokens.weight
    embeddings.zero_()
    embeddings[chain, : len(chain)] = (vectors * values.abs().sqrt()).float()
    language.norm.weight.zero_()  # which multiplies by one more than it says
    language.norm.weight[: len(chain)] = values.sign().float() - 1
    model.tie_weights()


def edit_config(folder: Path, **values: object) -> None:
    """Change the configuration of a folder's text encoder."""
    file = folder / "text_encoder" / "config.json"
    table = json.loads(file.read_text())
    table["text_config"] |= values
    file.write_text(json.dumps(table))
