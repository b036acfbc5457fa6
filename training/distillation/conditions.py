"""Random conditioning: other conditions in the place of samples' own, the more often the more noise there is.

Kim et al., "Random Conditioning for Diffusion Model Compression with Distillation", CVPR 2025; the probability of a
step as in the code that they published.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...spectral.errors import SpectralError
from ..data.batches import Batch
from ..data.contexts import Contexts
from ..loop.randomness import SampleRandom
from .config import RandomConditionsConfig


class RandomConditions:
    """Draws from all conditions alike; what a sample gets depends on the seed and its ordinal alone.

    Args:
        config: how often.
        contexts: whose `others` are drawn from.
        steps: T, those of the schedule.

    Raises:
        SpectralError: the model takes no conditions, or nobody knows others.
    """

    def __init__(self, config: RandomConditionsConfig, contexts: Contexts, steps: int) -> None:
        self.config, self.steps = config, steps
        self.others: Sequence[str] = others_of(contexts)
        self.kind = "caption" if contexts.config.kind == "text" else "label"

    def odds(self, t: Tensor) -> Tensor:
        """The probabilities at the steps t [B] int64, [B] float64."""
        return self.config.share * torch.exp(-self.config.decay * (1.0 - t.double() / self.steps))

    def __call__(self, batch: Batch, t: Tensor, random: SampleRandom) -> tuple[Batch, Tensor]:
        """The batch with other conditions in some places; and where they are not what they were, [B] bool."""
        chosen = random.uniform() < self.odds(t)
        places = (random.uniform() * len(self.others)).long()
        own: list[str] = batch[self.kind]
        asked = [
            self.others[place] if swap else name
            for name, swap, place in zip(own, chosen.tolist(), places.tolist(), strict=True)
        ]
        changed = torch.tensor([one != other for one, other in zip(own, asked, strict=True)])
        return batch | {self.kind: asked}, changed


def others_of(contexts: Contexts) -> Sequence[str]:
    """The conditions that may be drawn; raises as `RandomConditions`."""
    if contexts.config.kind not in ("text", "class"):
        raise SpectralError("The teacher takes no conditions that could be replaced; set random_conditions.share to 0.")
    if not contexts.others:
        raise SpectralError(
            "The data is a stream, whose captions nobody knows beforehand; give random_conditions.path a text file "
            "with a caption on every line, or set random_conditions.share to 0."
        )
    return contexts.others
