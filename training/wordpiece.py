"""BERT's tokens, which LDM's own text encoder reads: uncased WordPiece, from a vocabulary on this machine."""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..spectral.config import ConditioningConfig
from ..spectral.errors import SpectralError

#: Names a vocab.txt, or the folder that holds it, where a command is given none.
VARIABLE = "SPECTRAL_DIFFUSION_BERT_VOCAB"
#: Under which a library that used BERT before may have kept its vocabulary.
CACHED = ("google-bert/bert-base-uncased", "bert-base-uncased")
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
ADVICE = (
    "download https://huggingface.co/google-bert/bert-base-uncased/resolve/main/vocab.txt and give its path as "
    f"`vocabulary`, or in the environment variable {VARIABLE}"
)


def tokenize(texts: Sequence[str], config: ConditioningConfig, vocabulary: Path | None = None) -> Tensor:
    """BERT token ids [N, context_length] int64: [CLS], the text, [SEP], then [PAD]; longer texts are cut.

    As the BERTTokenizer of CompVis/latent-diffusion makes them. Nothing is downloaded.

    Args:
        config: of a tower "ldm".
        vocabulary: vocab.txt of bert-base-uncased, or the folder that holds it; None: as `find_vocabulary`.

    Raises:
        SpectralError: there is no vocabulary, or it is not the one that the encoder was trained with.
    """
    path = find_vocabulary(vocabulary)
    tokenizer, size = _tokenizer(path, config.context_length, config.pad_token)
    if size != config.vocabulary:
        raise SpectralError(
            f"{path} holds {size} tokens, the model's text encoder {config.vocabulary}; expected the vocabulary that "
            f"it was trained with; for LDM's models, {ADVICE}."
        )
    return torch.tensor([encoding.ids for encoding in tokenizer.encode_batch(list(texts))])


def find_vocabulary(path: Path | None = None) -> Path:
    """Where vocab.txt lies: `path`, else the environment's, else that of the Hugging Face cache.

    Raises:
        SpectralError: it is in none of these places; the sentence says where to get it.
    """
    named = path or (Path(os.environ[VARIABLE]) if os.environ.get(VARIABLE) else None)
    if named is not None:
        found = named / "vocab.txt" if named.is_dir() else named
        if not found.is_file():
            raise SpectralError(f"No vocabulary at {found}; {ADVICE}.")
        return found
    for repository in CACHED:
        cached = _cached(repository)
        if cached is not None:
            return cached
    raise SpectralError(f"LDM's text encoder reads BERT's tokens, whose vocabulary is not on this machine; {ADVICE}.")


def _cached(repository: str) -> Path | None:
    """vocab.txt of a repository that was downloaded before; looks at the disk alone."""
    try:
        from huggingface_hub import try_to_load_from_cache
    except ImportError:
        return None
    found = try_to_load_from_cache(repository, "vocab.txt")
    return Path(found) if isinstance(found, str) else None


@functools.cache
def _tokenizer(path: Path, length: int, pad: int) -> tuple[Any, int]:
    """The tokenizer of a vocabulary file, and how many tokens it has."""
    try:
        from tokenizers import BertWordPieceTokenizer
    except ImportError as error:
        raise SpectralError(
            "LDM's text encoder reads BERT's tokens, for which the package tokenizers is missing; "
            "install it with: pip install tokenizers."
        ) from error
    try:
        words = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise SpectralError(f"{path} is no vocabulary that can be read ({error}); {ADVICE}.") from error
    missing = next((word for word in SPECIAL if word not in words), None)
    if missing is not None:
        raise SpectralError(f"{path} has no token {missing}, so it is no BERT vocabulary, one token a line; {ADVICE}.")
    if pad >= len(words) or words[pad] != "[PAD]":
        raise SpectralError(
            f"conditioning.pad_token is {pad}, but [PAD] is token {words.index('[PAD]')} of {path}; set it to that."
        )
    tokenizer = BertWordPieceTokenizer({word: index for index, word in enumerate(words)}, lowercase=True)
    tokenizer.enable_truncation(length)
    tokenizer.enable_padding(pad_id=pad, length=length)
    return tokenizer, len(words)
