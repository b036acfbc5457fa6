"""Captions and class names of a data set as what a conditioner reads: token ids or labels."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..spectral.conditioning import has_null
from ..spectral.config import ConditioningConfig
from ..spectral.errors import SpectralError
from ..spectral.text import END, START, VOCABULARY
from . import wordpiece
from .images import ImageSet


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


class Conditions:
    """The conditioning of every image of a data set, and of "nothing in particular".

    Args:
        config: of the conditioner; for classes, `class_names` must hold every subgroup of the data.
        data: whose captions (text) or subgroups (class) are meant.
        dropout: how often `context` gives the null condition in place of an image's own.
        vocabulary: for LDM's own text encoder, where BERT's vocab.txt lies.

    Raises:
        SpectralError: a subgroup is not among the classes; there is no null condition to drop to; the encoder is not in
            the checkpoint; or as `tokens_of`.
    """

    def __init__(
        self, config: ConditioningConfig, data: ImageSet, dropout: float = 0.0, vocabulary: Path | None = None
    ) -> None:
        self.config, self.dropout = config, dropout
        self.ids: Tensor | None = None
        self.null: Tensor | None = None
        if config.kind == "external":
            raise SpectralError(
                f"The model attends to a context of width {config.width}, but its encoder is not in the checkpoint; "
                "give its file as text_encoder."
            )
        if config.kind == "class" and dropout > 0 and not has_null(config):
            raise SpectralError(
                f"dropout is {dropout:g}, but none of the model's {config.n_classes} classes stands for no class; "
                "set dropout to 0."
            )
        if config.kind == "text":
            self.ids = tokens_of(config, data.captions, vocabulary)
            self.null = tokens_of(config, [""], vocabulary)
        elif config.kind == "class":
            self.ids = _labels(config, data)
            self.null = torch.tensor([config.n_classes - 1]) if has_null(config) else None

    def context(self, conditioner: nn.Module | None, indices: Tensor, drawn: Tensor) -> Tensor | None:
        """Contexts [B, T, width] of the images at `indices`, each the null one where `drawn` is below `dropout`.

        Args:
            drawn: [B], uniform in [0, 1).
        """
        if self.ids is None or conditioner is None:
            return None
        device = next(conditioner.parameters()).device
        ids = self.ids[indices.cpu()]
        if self.dropout > 0 and self.null is not None:
            dropped = drawn < self.dropout
            ids = torch.where(dropped.view(-1, *[1] * (ids.dim() - 1)), self.null, ids)
        return conditioner(ids.to(device))  # type: ignore[no-any-return]

    def unconditional(self, conditioner: nn.Module | None) -> Tensor | None:
        """The null context, [1, T, width]; None where the model has none."""
        if self.null is None or conditioner is None:
            return None
        return conditioner(self.null.to(next(conditioner.parameters()).device))  # type: ignore[no-any-return]


def _labels(config: ConditioningConfig, data: ImageSet) -> Tensor:
    """The class of every image, [N] int64: by the name of its subgroup, or by its place where classes have no names.

    Without names, subgroups are numbers, or as many as there are classes and in their order (ImageNet's synsets are).
    """
    groups, count = sorted(set(data.subgroups)), config.n_classes - has_null(config)
    names = {name: index for index, name in enumerate(config.class_names)}
    if not names and all(group.isdecimal() and int(group) < count for group in groups):
        names = {group: int(group) for group in groups}
    elif not names and len(groups) == count:
        names = {group: index for index, group in enumerate(groups)}
    elif not names:
        raise SpectralError(
            f"The model's {count} classes have no names, and the data has {len(groups)} subgroups; name the folders by "
            f"their class's number, 0 to {count - 1}."
        )
    unknown = [group for group in groups if group not in names]
    if unknown:
        raise SpectralError(f"The model has no class named {unknown[0]!r}; its classes are {', '.join(names)}.")
    return torch.tensor([names[name] for name in data.subgroups])
