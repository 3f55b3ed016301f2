"""pocket's reader: one token a word, a small T5 encoder trained with the transformer."""

import random
from collections.abc import Sequence

import torch
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor
from transformers import (
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
)

from recipe.prompts import vocabulary

MAX_TOKENS = 128  # what stock LTXPipeline pads a prompt to
SPECIAL = ("<pad>", "</s>", "<unk>")
FORGET = 0.03  # share of words read as unknown in training, so that an unknown word does no harm


def build_tokenizer(words: Sequence[str] | None = None) -> PreTrainedTokenizerFast:
    """Lower case, split at anything but letters and digits, one id a word, </s> at the end."""
    table = {word: i for i, word in enumerate((*SPECIAL, *(words or vocabulary())))}
    reader = Tokenizer(models.WordLevel(table, unk_token="<unk>"))
    reader.normalizer = normalizers.Lowercase()
    reader.pre_tokenizer = pre_tokenizers.Split(Regex(r"[^\p{L}\p{N}]+"), "removed")
    reader.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", table["</s>"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=reader,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=MAX_TOKENS,
    )


def build_encoder(tokens: int, width: int = 192, layers: int = 2) -> T5EncoderModel:
    """An untrained T5 v1.1 encoder."""
    config = T5Config(
        vocab_size=tokens,
        d_model=width,
        d_kv=width // 4,
        d_ff=2 * width,
        num_layers=layers,
        num_heads=4,
        feed_forward_proj="gated-gelu",
        dropout_rate=0.0,
        pad_token_id=0,
        eos_token_id=1,
        is_encoder_decoder=False,
        use_cache=False,
    )
    return T5EncoderModel(config)


def tokenize(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], choice: random.Random | None = None
) -> tuple[Tensor, Tensor]:
    """Ids (batch, MAX_TOKENS) and mask (batch, longest text); `choice` forgets some words."""
    encoded = tokenizer(
        list(prompts), padding="max_length", max_length=MAX_TOKENS, truncation=True,
        return_tensors="pt",
    )  # fmt: skip
    ids, mask = encoded.input_ids, encoded.attention_mask
    if choice is not None:
        forgotten = torch.tensor(
            [[choice.random() < FORGET for _ in range(MAX_TOKENS)] for _ in prompts]
        )
        ids = torch.where(forgotten & (ids >= len(SPECIAL)), 2, ids)
    return ids, mask[:, : int(mask.sum(1).max())]
