"""Texts as what a text encoder reads: token ids."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..spectral.config import ConditioningConfig
from ..spectral.errors import SpectralError
from ..spectral.text import END, START, VOCABULARY
from . import wordpiece


def tokens_of(config: ConditioningConfig, texts: Sequence[str], vocabulary: Path | None = None) -> Tensor:
    """The token ids [N, context_length] int64 that the tower of `config` reads.

    Args:
        vocabulary: for LDM's own encoder, where BERT's vocab.txt lies; see `wordpiece.tokenize`.

    Raises:
        SpectralError: the tower's vocabulary is another one, or that of BERT is not on this machine.
    """
    if config.tower == "ldm":
        return wordpiece.tokenize(texts, config, vocabulary)
    if config.vocabulary < VOCABULARY:
        raise SpectralError(
            f"conditioning.vocabulary is {config.vocabulary}; texts become CLIP's tokens, which need {VOCABULARY}."
        )
    return tokenize(texts, config.context_length, config.pad_token)


def tokenize(texts: Sequence[str], length: int = 77, pad: int = END) -> Tensor:
    """CLIP token ids [N, length] int64: START, the text, END, then `pad` to the end; longer texts are cut.

    The byte-pair encoding is open_clip's; it is told of a torchvision without compiled operators, which open_clip
    imports but does not need for this.
    """
    tokenizer = _tokenizer()
    rows = []
    for text in texts:
        ids = tokenizer.encode(text)[: length - 2]
        rows.append([START, *ids, END] + [pad] * (length - 2 - len(ids)))
    return torch.tensor(rows)


@functools.cache
def _tokenizer() -> Any:
    declare_torchvision_operators()
    from open_clip.tokenizer import SimpleTokenizer

    return SimpleTokenizer()


#: What is declared stays so only as long as its library lives.
_libraries: list[torch.library.Library] = []


def declare_torchvision_operators() -> None:
    """Let a torchvision that was built for another torch be imported: declare the operators it expects to exist."""
    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _libraries.append(library)
