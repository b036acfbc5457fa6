"""What a conditioned U-Net attends to: class embeddings, or a text tower's states."""

from __future__ import annotations

from torch import Tensor, nn

from .config import ConditioningConfig
from .errors import SpectralError
from .ldm_text import LdmTextEncoder
from .text import TextTower

#: No encoder comes near these; a damaged description may.
LARGEST_WIDTH, LARGEST_TABLE, LONGEST_TEXT = 2**14, 2**20, 1024


class ClassEmbedder(nn.Module):
    """LDM's ClassEmbedder: label [B] → context [B, 1, width]. The last class is the null class, if there is one."""

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
    if config.kind == "text":
        return TextTower(config) if config.tower == "clip" else LdmTextEncoder(config)
    return None


def has_null(config: ConditioningConfig) -> bool:
    """Whether there is a condition that stands for none: the empty text, or the null class. Guidance needs it."""
    return config.kind == "text" or (config.kind == "class" and config.null_class)


def check(config: ConditioningConfig) -> None:
    """Refuse what cannot be built.

    Raises:
        SpectralError: names the setting and what was expected.
    """
    if config.kind in ("class", "text") and config.width < 1:
        raise SpectralError(f"conditioning.width is {config.width}; set it to the U-Net's context_dim.")
    if config.width > LARGEST_WIDTH:
        raise SpectralError(f"conditioning.width is {config.width}; expected at most {LARGEST_WIDTH}.")
    if config.kind == "class":
        _check_classes(config)
    if config.kind == "text":
        _check_text(config)
        (_check_clip if config.tower == "clip" else _check_ldm)(config)


def _check_classes(config: ConditioningConfig) -> None:
    if config.n_classes < 1:
        raise SpectralError(f"conditioning.n_classes is {config.n_classes}; a class embedder needs at least 1.")
    if config.n_classes > LARGEST_TABLE:
        raise SpectralError(f"conditioning.n_classes is {config.n_classes}; expected at most {LARGEST_TABLE}.")
    needed = len(config.class_names) + config.null_class
    if config.class_names and needed > config.n_classes:
        raise SpectralError(
            f"conditioning.n_classes is {config.n_classes} for {len(config.class_names)} class_names; "
            f"set it to {needed}{': the last class is the null class' if config.null_class else ''}."
        )


def _check_text(config: ConditioningConfig) -> None:
    """What holds of every tower."""
    if not (1 <= config.layers <= 128 and 1 <= config.heads <= 1024):
        raise SpectralError("A text tower needs conditioning.layers of 1 to 128 and heads of 1 to 1024.")
    if not 1 <= config.vocabulary <= LARGEST_TABLE:
        raise SpectralError(
            f"conditioning.vocabulary is {config.vocabulary}; expected the tokens of the tower, 1 to {LARGEST_TABLE}."
        )
    if not 0 <= config.pad_token < config.vocabulary:
        raise SpectralError(
            f"conditioning.pad_token is {config.pad_token}; expected one of the vocabulary's tokens, "
            f"0 to {config.vocabulary - 1}."
        )


def _check_clip(config: ConditioningConfig) -> None:
    if config.context_length != 77:
        raise SpectralError(f"conditioning.context_length is {config.context_length}; CLIP's 77 tokens are expected.")
    if config.width % config.heads:
        raise SpectralError(f"conditioning.width {config.width} does not split into {config.heads} heads; change one.")
    if not 0 <= config.skip_last < config.layers:
        raise SpectralError(
            f"conditioning.skip_last is {config.skip_last}; of {config.layers} layers, 0 to {config.layers - 1} can be "
            "left out."
        )


def _check_ldm(config: ConditioningConfig) -> None:
    if not 1 <= config.context_length <= LONGEST_TEXT:
        raise SpectralError(
            f"conditioning.context_length is {config.context_length}; expected 1 to {LONGEST_TEXT}, 77 in LDM's files."
        )
    if config.skip_last or config.projection:
        raise SpectralError("conditioning.skip_last and projection belong to a CLIP tower; leave them out for ldm.")
