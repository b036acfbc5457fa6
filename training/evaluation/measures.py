"""What is measured of a set of images, and of two sets against each other: features, spectra, captions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from ...spectral.spectrum import RadialSpectrum, Window, band_errors, fit_power_law, radial_spectrum
from ..processes import device
from .config import CUTOFF
from .distances import Moments, frechet, kid
from .features import Clip, EfficientNetLite0, Inception


@dataclass(frozen=True)
class Measured:
    """What the scores need of a set of images.

    spectrum: radial.
    middle: moments of EfficientNet's middle features.
    last: its last features [N, 1280], on the CPU.
    inception: moments of Inception's features, where its weights were given.
    clip: mean CLIP score of the images with their captions, where both were given.
    """

    spectrum: RadialSpectrum
    middle: Moments
    last: Tensor
    inception: Moments | None
    clip: float | None


@dataclass(frozen=True)
class Networks:
    """The networks that look at images. Inception and CLIP are there when their files were given."""

    efficient_net: EfficientNetLite0
    inception: Inception | None = None
    clip: Clip | None = None

    @classmethod
    def load(cls, inception: Path | None = None, clip: Path | None = None, clip_model: str | None = None) -> Networks:
        """Open them on this process's device.

        Raises:
            SpectralError: a file does not hold what it should.
        """
        return cls(
            EfficientNetLite0().to(device()),
            Inception(inception).to(device()) if inception is not None else None,
            Clip(clip, clip_model).to(device()) if clip is not None else None,
        )

    def about(self) -> dict[str, Any]:
        """Which weights were used, by the name of the network."""
        given = {"efficientnet_lite0": self.efficient_net, "inception": self.inception, "clip": self.clip}
        return {name: network.about() for name, network in given.items() if network is not None}

    def look(
        self, batches: Iterable[tuple[Tensor, list[str]]], total: int, window: Window, *, captioned: bool
    ) -> Measured:
        """Everything about some images, in one pass over them.

        Args:
            batches: images [B, 3, S, S] in [0, 1] and what is said of each.
            total: images in all, at most.
            window: of the spectra.
            captioned: whether what is said describes them in words, for CLIP.

        Raises:
            SpectralError: there are no images.
        """
        middle = Moments(EfficientNetLite0.MIDDLE)
        inception = Moments(Inception.WIDTH) if self.inception is not None else None
        last = torch.empty(total, EfficientNetLite0.LAST)
        matches: list[Tensor] = []

        def watched() -> Iterator[Tensor]:
            seen = 0
            with tqdm(total=total, desc="looking", unit="image", dynamic_ncols=True, disable=None) as bar:
                for batch, captions in batches:
                    here = batch.to(device())
                    shallow, deep = self.efficient_net(here)
                    middle.add(shallow)
                    last[seen : seen + len(batch)] = deep.cpu()
                    seen += len(batch)
                    if self.inception is not None and inception is not None:
                        inception.add(self.inception(here))
                    if self.clip is not None and captioned:
                        matches.append(self.clip(here, captions).cpu())
                    bar.update(len(batch))
                    yield batch

        spectrum = radial_spectrum(watched(), window=window)
        clip = torch.cat(matches).double().mean().item() if matches else None
        return Measured(spectrum, middle, last[: spectrum.images], inception, clip)


def compare(reference: Measured, found: Measured, cutoff: float, seed: int = 0) -> dict[str, Any]:
    """The scores of a set of images against the reference.

    Args:
        cutoff: between the low and the high band, in cycles per image.
        seed: of KID's subsets.

    Returns:
        fd_effnet, kid_effnet (with its std, and of which subsets), low_error, high_error: 0 for equal sets. alpha,
        alpha_data: slopes 1/f^α, None for flat images. fid, clip_score, clip_score_data: where they were measured.

    Raises:
        SpectralError: fewer than four images in a set, or a cut-off that leaves a band empty.
    """
    kernel = kid(reference.last.to(device()), found.last.to(device()), seed=seed)
    errors = band_errors(reference.spectrum, found.spectrum, cutoff)
    scores: dict[str, Any] = {
        "fd_effnet": round(frechet(reference.middle, found.middle), 4),
        "kid_effnet": round(kernel.mean, 6),
        "kid_effnet_std": round(kernel.std, 6),
        "kid_subsets": kernel.subsets,
        "kid_subset_size": kernel.subset_size,
        "low_error": round(errors.low, 4),
        "high_error": round(errors.high, 4),
        "cutoff": cutoff,
        "alpha": _alpha(found.spectrum),
        "alpha_data": _alpha(reference.spectrum),
    }
    if reference.inception is not None and found.inception is not None:
        scores["fid"] = round(frechet(reference.inception, found.inception), 4)
    if found.clip is not None:
        scores["clip_score"] = round(found.clip, 3)
    if reference.clip is not None:
        scores["clip_score_data"] = round(reference.clip, 3)
    return scores


def _alpha(spectrum: RadialSpectrum) -> float | None:
    return round(fit_power_law(spectrum).alpha, 4) if spectrum.power.any() else None


def cautions(counts: dict[str, int], with_inception: bool, cutoff: float) -> list[str]:
    """What to know before the scores are believed, a sentence each.

    Args:
        counts: images of each set, by its name.
        with_inception: whether there is a FID.
        cutoff: that was used.
    """
    name, fewest = min(counts.items(), key=lambda item: item[1])
    notes = []
    widths = {"FD-EffNet": EfficientNetLite0.MIDDLE} | ({"FID": Inception.WIDTH} if with_inception else {})
    for metric, width in widths.items():
        if fewest < 10 * width:
            worth = "says little" if fewest <= width else "comes out too high"
            notes.append(
                f"{metric} {worth}: it compares {width} features on {fewest} images ({name}) where {10 * width:,} or "
                "more are wanted; compare it between equal counts only."
            )
    if fewest < 200:
        notes.append(f"KID-EffNet is noisy with {fewest} images ({name}); see its deviation.")
    if cutoff != CUTOFF:
        notes.append(f"The bands part at {cutoff:g} cycles per image; in Table 1 (256 pixels) at {CUTOFF:g}.")
    return notes
