"""What a conditioned U-Net attends to: class embeddings, or a text tower's states."""

from __future__ import annotations

from torch import Tensor, nn

from .config import ConditioningConfig
from .text import TextTower


class ClassEmbedder(nn.Module):
    """LDM's ClassEmbedder: label [B] → context [B, 1, width]. By convention the last class is the null class."""

    def __init__(self, config: ConditioningConfig) -> None:
        super().__init__()
        self.embedding = nn.Embedding(config.n_classes, config.width)

    def forward(self, labels: Tensor) -> Tensor:
        return self.embedding(labels).unsqueeze(1)


def build(config: ConditioningConfig) -> nn.Module | None:
    """The module that makes the context; None for an unconditional model, or for an encoder that is not ours."""
    if config.kind == "class":
        return ClassEmbedder(config)
    return TextTower(config) if config.kind == "text" else None
