"""What a conditioned U-Net attends to: class embeddings, or a text tower's states."""

from __future__ import annotations

from torch import Tensor, nn

from .config import ConditioningConfig
from .errors import SpectralError
from .text import TextTower


class ClassEmbedder(nn.Module):
    """LDM's ClassEmbedder: label [B] → context [B, 1, width]. By convention the last class is the null class."""

    def __init__(self, config: ConditioningConfig) -> None:
        super().__init__()
        self.embedding = nn.Embedding(config.n_classes, config.width)

    def forward(self, labels: Tensor) -> Tensor:
        return self.embedding(labels).unsqueeze(1)


def build(config: ConditioningConfig) -> nn.Module | None:
    """The module that makes the context; None for an unconditional model, or for an encoder that is not ours.

    Raises:
        SpectralError: the configuration cannot be built; the setting at fault is named.
    """
    check(config)
    if config.kind == "class":
        return ClassEmbedder(config)
    return TextTower(config) if config.kind == "text" else None


def check(config: ConditioningConfig) -> None:
    """Refuse what cannot be built.

    Raises:
        SpectralError: names the setting and what was expected.
    """
    if config.kind in ("class", "text") and config.width < 1:
        raise SpectralError(f"conditioning.width is {config.width}; set it to the U-Net's context_dim.")
    if config.kind == "class" and config.n_classes < 1:
        raise SpectralError(f"conditioning.n_classes is {config.n_classes}; a class embedder needs at least 1.")
    if config.kind == "class" and config.class_names and len(config.class_names) >= config.n_classes:
        raise SpectralError(
            f"conditioning.n_classes is {config.n_classes} for {len(config.class_names)} class_names; "
            f"set it to {len(config.class_names) + 1}: the last class is the null class."
        )
    if config.kind == "text" and not (1 <= config.layers <= 128 and 1 <= config.heads <= 1024):
        raise SpectralError("A text tower needs conditioning.layers of 1 to 128 and heads of 1 to 1024.")
    if config.kind == "text" and config.context_length != 77:
        raise SpectralError(f"conditioning.context_length is {config.context_length}; CLIP's 77 tokens are expected.")
    if config.kind == "text" and config.width % config.heads:
        raise SpectralError(f"conditioning.width {config.width} does not split into {config.heads} heads; change one.")
