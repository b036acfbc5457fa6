"""Captions and class names of a data set as what a conditioner reads: token ids or labels."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..spectral.config import ConditioningConfig
from ..spectral.errors import SpectralError
from ..spectral.text import END, START
from .images import ImageSet


def tokenize(texts: Sequence[str], length: int = 77) -> Tensor:
    """CLIP token ids [N, length] int64: START, the text, END and END again to the end; longer texts are cut.

    The byte-pair encoding is open_clip's; it is told of a torchvision without compiled operators, which open_clip
    imports but does not need for this.
    """
    tokenizer = _tokenizer()
    rows = []
    for text in texts:
        ids = tokenizer.encode(text)[: length - 2]
        rows.append([START, *ids, END] + [END] * (length - 2 - len(ids)))
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

    Raises:
        SpectralError: a subgroup is not among the classes.
    """

    def __init__(self, config: ConditioningConfig, data: ImageSet) -> None:
        self.config = config
        self.ids: Tensor | None = None
        if config.kind == "text":
            self.ids = tokenize(data.captions, config.context_length)
            self.null = tokenize([""], config.context_length)
        elif config.kind == "class":
            names = {name: index for index, name in enumerate(config.class_names)}
            unknown = sorted(set(data.subgroups) - set(names))
            if unknown:
                raise SpectralError(f"The model has no class named {unknown[0]!r}; its classes are {', '.join(names)}.")
            self.ids = torch.tensor([names[name] for name in data.subgroups])
            self.null = torch.tensor([config.n_classes - 1])

    def context(self, conditioner: nn.Module | None, indices: Tensor, dropout: float = 0.0) -> Tensor | None:
        """Contexts [B, T, width] of the images at `indices`, each replaced by the null one with chance `dropout`."""
        if self.ids is None or conditioner is None:
            return None
        device = next(conditioner.parameters()).device
        ids = self.ids[indices.cpu()]
        if dropout > 0:
            dropped = torch.rand(len(ids)) < dropout
            ids = torch.where(dropped.view(-1, *[1] * (ids.dim() - 1)), self.null, ids)
        return conditioner(ids.to(device))  # type: ignore[no-any-return]

    def unconditional(self, conditioner: nn.Module | None) -> Tensor | None:
        """The null context, [1, T, width]."""
        if self.ids is None or conditioner is None:
            return None
        return conditioner(self.null.to(next(conditioner.parameters()).device))  # type: ignore[no-any-return]
