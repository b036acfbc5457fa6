"""How a model is sampled from, and how its samples are measured."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

from ...spectral.errors import SpectralError
from ...spectral.spectrum import Window
from ..loop.config import check_seed
from ..running import Running

CUTOFF = 28.0  # cycles per image: where Table 1 parts low from high, on images of 256 pixels
#: Of a small image's side, where that is less than CUTOFF: 12 cycles of 64 pixels.
CUTOFF_SHARE = 3 / 16
FEWEST = 4  # images in a set that KID can halve


@dataclass(frozen=True)
class EvaluationConfig:
    """How a model is sampled from, and how its samples are measured.

    Args:
        count: samples; null: as many as the data has, at most 50,000.
        steps: DDIM steps; null: 50, or those that a student of few steps knows.
        guidance: weight of classifier-free guidance, 1 is none; null: 2, or 1 for a model without a null condition and
            for a student of few steps.
        seed: of the noise, of the order of the prompts, and of KID's subsets.
        size: side of the images in pixels; null: the model's training size.
        batch: images at a time.
        cutoff: between the low and the high band, in cycles per image; null: 28 as in Table 1, or 3/16 of the side
            where that is less.
        window: of the spectra: "hann", or "none" for images that repeat without a seam.
        inception: a file with the weights of FID's Inception, for the standard FID.
        clip: a file with the weights of a CLIP model, for the CLIP score.
        clip_model: its architecture by open_clip's name; null: what the shapes of its weights say.
        vocabulary: BERT's vocab.txt, for models with LDM's own text encoder.
        running: how the U-Net is run.
    """

    count: int | None = None
    steps: int | None = None
    guidance: float | None = None
    seed: int = 0
    size: int | None = None
    batch: int = 16
    cutoff: float | None = None
    window: Window = "hann"
    inception: Path | None = None
    clip: Path | None = None
    clip_model: str | None = None
    vocabulary: Path | None = None
    running: Running = field(default_factory=Running)

    def __post_init__(self) -> None:
        if self.count is not None:
            enough(self.count, "count")
        if self.steps is not None and self.steps < 1:
            raise SpectralError(f"steps is {self.steps}; expected at least 1 step of DDIM.")
        if self.guidance is not None and not math.isfinite(self.guidance):
            raise SpectralError(f"guidance is {self.guidance}; expected a number, 1 for none.")
        if self.batch < 1:
            raise SpectralError(f"batch is {self.batch}; expected at least 1 image at a time.")
        check_seed(self.seed)

    def cutoff_of(self, side: int) -> float:
        """The cut-off for images of a side, in cycles per image.

        Raises:
            SpectralError: it would leave a band empty.
        """
        cutoff = default_cutoff(side) if self.cutoff is None else self.cutoff
        if not 2 <= cutoff <= side / 2:
            raise SpectralError(f"cutoff is {cutoff:g}; for images of {side} pixels choose one from 2 to {side / 2:g}.")
        return cutoff


def default_cutoff(side: int) -> float:
    """Where the low band ends for images of a side, in cycles per image: Table 1's, or less for small images."""
    return min(CUTOFF, CUTOFF_SHARE * side)


def enough(count: int, name: str) -> None:
    """Raise SpectralError where there are too few images for a distance between sets."""
    if count < FEWEST:
        raise SpectralError(f"{name} has {count} images; distances between sets need at least {FEWEST}.")
