"""What the samples of a batch are conditioned on: captions or classes as contexts, some of them left out."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from ...spectral.conditioning import has_null
from ...spectral.config import ConditioningConfig
from ...spectral.errors import SpectralError
from ..tokens import tokens_of
from .batches import Batch, Data

#: Captions whose tokens are kept; more than that are tokenised again when they come again.
KEPT_TOKENS = 200_000
#: Bytes of text states that are kept in memory without being asked to, and of those that stay on the device.
KEPT_STATES, ON_DEVICE = 2 << 30, 1 << 28


class Contexts:
    """The contexts of a data set's samples, and of "nothing in particular".

    Args:
        config: of the conditioner; for classes, `class_names` must hold every subgroup of the data.
        data: whose captions or subgroups are meant.
        dropout: how often the null context takes the place of a sample's own.
        vocabulary: for LDM's own text encoder, where BERT's vocab.txt lies.
        others: captions, or names of classes, that may take the place of samples' own; None: the captions of the data,
            or all classes of the model.

    Attributes:
        others: as above; None where nobody knows them.

    Raises:
        SpectralError: a subgroup, or one of `others`, is not among the classes; there is no null condition to drop to;
            the encoder is not in the checkpoint; or as `tokens.tokens_of`.
    """

    def __init__(
        self,
        config: ConditioningConfig,
        data: Data,
        dropout: float = 0.0,
        vocabulary: Path | None = None,
        others: Sequence[str] | None = None,
    ) -> None:
        self.config, self.dropout, self.vocabulary = config, dropout, vocabulary
        self.null: Tensor | None = None
        several = itertools.chain.from_iterable(data.also.values())
        self._captions = None if data.captions is None else list(dict.fromkeys([*data.captions, *several]))
        self.others = others
        self._tokens: dict[str, Tensor] = {}
        self._states: Tensor | None = None
        self._rows: dict[str, int] = {}
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
            self.null = tokens_of(config, [""], vocabulary)
            self.others = self._captions if others is None else others
        elif config.kind == "class":
            self._numbers = class_numbers(config, data.subgroups)
            self.null = torch.tensor([config.n_classes - 1]) if has_null(config) else None
            names = {number: name for name, number in self._numbers.items()}
            self.others = list(names.values()) if others is None else others
            for name in self.others:
                number_of(self._numbers, name)

    @torch.no_grad()
    def freeze(self, conditioner: nn.Module | None, limit: int = KEPT_STATES, batch: int = 64) -> bool:
        """Compute the states of captions once, if they are known and fit; the text encoder is not to change then.

        They are those of the data's captions and of `others`, or, where these are too many, of the data's alone.

        Args:
            conditioner: the text encoder; where there is none, or it embeds classes, nothing happens.
            limit: bytes that the states may take.
            batch: captions at a time.

        Returns:
            Whether any were computed.
        """
        if self.config.kind != "text" or conditioner is None:
            return False
        weight = next(conditioner.parameters())
        each = self.config.context_length * self.config.width * weight.element_size()
        captions = self._fitting(limit // each)
        if not captions:
            return False
        place = weight.device if len(captions) * each <= ON_DEVICE else torch.device("cpu")
        parts = [
            conditioner(self.tokens(captions[start : start + batch]).to(weight.device)).to(place)
            for start in range(0, len(captions), batch)
        ]
        self._states, self._rows = torch.cat(parts), {caption: row for row, caption in enumerate(captions)}
        self._tokens.clear()
        return True

    def _fitting(self, most: int) -> list[str]:
        """The captions whose states are kept, at most so many; "" is always one of them."""
        own = self._captions or []
        for kept in ([*own, *(self.others or [])], own):
            captions = list(dict.fromkeys(["", *kept]))
            if kept and len(captions) <= most:
                return captions
        return []

    def dropped(self, drawn: Tensor) -> Tensor:
        """Where the null context takes the place of a sample's own, [B] bool.

        Args:
            drawn: [B], uniform in [0, 1).
        """
        return drawn < (self.dropout if self.null is not None else 0.0)

    def context(self, conditioner: nn.Module | None, batch: Batch, drawn: Tensor) -> Tensor | None:
        """Contexts [B, T, width] of a batch, each the null one where `dropped` says so.

        Args:
            drawn: [B], uniform in [0, 1).

        Raises:
            SpectralError: a class that the model does not know, in a stream.
        """
        if (self.null is None and self.config.kind != "class") or conditioner is None:
            return None
        device, dropped = next(conditioner.parameters()).device, self.dropped(drawn)
        if self.config.kind == "text":
            captions = ["" if gone else own for gone, own in zip(dropped.tolist(), batch["caption"], strict=True)]
            return self._states_of(conditioner, captions, device)
        ids = torch.tensor([number_of(self._numbers, label) for label in batch["label"]])
        ids = ids if self.null is None else torch.where(dropped, self.null, ids)
        return conditioner(ids.to(device))  # type: ignore[no-any-return]

    def _states_of(self, conditioner: nn.Module, captions: Sequence[str], device: torch.device) -> Tensor:
        """The states [B, T, width] of captions: those that are kept, and the others computed now."""
        if self._states is None:
            return conditioner(self.tokens(captions).to(device))  # type: ignore[no-any-return]
        rows = torch.tensor([self._rows.get(caption, 0) for caption in captions])
        states = self._states[rows.to(self._states.device)].to(device)
        new = [place for place, caption in enumerate(captions) if caption not in self._rows]
        if new:
            with torch.no_grad():
                computed = conditioner(self.tokens([captions[place] for place in new]).to(device))
            states[new] = computed.to(states.dtype)
        return states

    def unconditional(self, conditioner: nn.Module | None) -> Tensor | None:
        """The null context, [1, T, width]; None where the model has none."""
        if self.null is None or conditioner is None:
            return None
        return conditioner(self.null.to(next(conditioner.parameters()).device))  # type: ignore[no-any-return]

    def prompts(self, batch: Batch) -> list[str]:
        """What to ask for, in words, to get what a batch shows; "" without conditioning."""
        if self.config.kind == "text":
            return list(batch["caption"])
        if self.config.kind == "class":
            numbers = [number_of(self._numbers, label) for label in batch["label"]]
            return [self.config.class_names[number] if self.config.class_names else str(number) for number in numbers]
        return [""] * len(batch["label"])

    def tokens(self, captions: Sequence[str]) -> Tensor:
        """Token ids [N, context_length] int64 of captions."""
        new = [caption for caption in dict.fromkeys(captions) if caption not in self._tokens]
        if len(self._tokens) + len(new) > KEPT_TOKENS:
            self._tokens.clear()
            new = list(dict.fromkeys(captions))
        if new:
            self._tokens |= zip(new, tokens_of(self.config, new, self.vocabulary), strict=True)
        return torch.stack([self._tokens[caption] for caption in captions])


def class_numbers(config: ConditioningConfig, subgroups: Sequence[str] | None) -> dict[str, int]:
    """The number of every class by name: as the model names it, or by its place where its classes have no names.

    Without names, subgroups are numbers, or as many as there are classes and in their order (ImageNet's synsets are).

    Args:
        subgroups: of the data; None where they are not known beforehand.

    Raises:
        SpectralError: a subgroup is not among the classes.
    """
    groups, count = sorted(set(subgroups or ())), config.n_classes - has_null(config)
    names = {name: index for index, name in enumerate(config.class_names)}
    if not names and all(group.isdecimal() and int(group) < count for group in groups):
        names = {str(index): index for index in range(count)} | {group: int(group) for group in groups}
    elif not names and len(groups) == count:
        names = {group: index for index, group in enumerate(groups)}
    elif not names:
        raise SpectralError(
            f"The model's {count} classes have no names, and the data has {len(groups)} subgroups; name the folders by "
            f"their class's number, 0 to {count - 1}."
        )
    for group in groups:
        number_of(names, group)
    return names


def number_of(names: dict[str, int], group: str) -> int:
    """The number of a class; raises SpectralError where the model has none of that name."""
    if group not in names:
        raise SpectralError(f"The model has no class named {group!r}; its classes are {', '.join(names)}.")
    return names[group]
