"""BERT's tokens of captions and prompts, for LDM's own text encoder."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..spectral import wordpiece
from ..spectral.config import ConditioningConfig
from ..spectral.errors import SpectralError

ADVICE = (
    f"download {wordpiece.URL} and give its path as `vocabulary`, or in the environment variable {wordpiece.VARIABLE}"
)


def tokenize(texts: Sequence[str], config: ConditioningConfig, vocabulary: Path | None = None) -> Tensor:
    """BERT token ids [N, context_length] int64: [CLS], the text, [SEP], then [PAD]; longer texts are cut.

    As the BERTTokenizer of CompVis/latent-diffusion makes them. Nothing is downloaded.

    Args:
        config: of a tower "ldm".
        vocabulary: vocab.txt of bert-base-uncased, or the folder that holds it; None: where the environment says, or
            the cache of Hugging Face.

    Raises:
        SpectralError: there is no vocabulary, or it is not the one that the encoder was trained with.
    """
    path = wordpiece.find_vocabulary(ADVICE, vocabulary)
    tokenizer = _tokenizer(path, config.vocabulary, config.context_length, config.pad_token)
    return torch.tensor([encoding.ids for encoding in tokenizer.encode_batch(list(texts))])


@functools.cache
def _tokenizer(path: Path, size: int, length: int, pad: int) -> Any:
    """The tokenizer of a vocabulary file of so many tokens."""
    try:
        from tokenizers import BertWordPieceTokenizer
    except ImportError as error:
        raise SpectralError(
            "LDM's text encoder reads BERT's tokens, for which the package tokenizers is missing; "
            "install it with: pip install tokenizers."
        ) from error
    words = wordpiece.read_vocabulary(path, size, ADVICE)
    known = words[wordpiece.PAD]
    if known != pad:
        raise SpectralError(f"conditioning.pad_token is {pad}, but {path} has [PAD] at {known}; set it to that.")
    tokenizer = BertWordPieceTokenizer(words, lowercase=True)
    tokenizer.enable_truncation(length)
    tokenizer.enable_padding(pad_id=pad, length=length)
    return tokenizer
