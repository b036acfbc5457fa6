"""What the nodes that measure spectra share: sets of images or latents, masks, options, progress, axes and lines."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import comfy.model_management
import comfy.utils
import numpy as np
import torch
from torch import Tensor

from ..spectral.errors import SpectralError
from ..spectral.spectrum import PowerLaw, RadialSpectrum
from . import inputs
from .charts import Axis, Unit
from .plot import Series
from .plot_axes import Mark

CATEGORY = "spectral diffusion/spectrum"


class Types(str):
    """Several types that one input takes, with commas between, as newer versions of ComfyUI write them.

    Versions before the end of 2024 compare an output's type with the whole of it, and so do these for what they cannot
    split: equal is what is one of them.
    """

    def __eq__(self, other: object) -> bool:
        return isinstance(other, str) and (str(self) == str(other) or str(other) in self.split(","))

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = str.__hash__


#: What sets of images may come as.
SET = Types("IMAGE,LATENT")
WINDOW = (
    ["hann", "none"],
    {
        "default": "hann",
        "tooltip": "hann fades the borders out, so that the jump from one border to the opposite one is not measured "
        "as fine detail; none leaves the pixels alone.",
    },
)
COLOUR = (
    ["all channels", "luma"],
    {
        "default": "all channels",
        "tooltip": "all channels: the mean of the spectra of red, green and blue, or of a latent's channels; luma: the "
        "spectrum of the brightness, for images alone.",
    },
)
MASK = (
    "MASK",
    {
        "tooltip": "Where to measure: 1 counts, 0 is left out. One mask for all images, or one for each; another size "
        "is fitted. The power that a mask takes away is made up for. Soft edges blur the spectrum less."
    },
)
#: Beyond it the power of single precision ends; pixels lie between 0 and 1, latents seldom beyond 100.
LARGEST = 1e6
NYQUIST = Mark(0.5, "Nyquist")


@dataclass(frozen=True)
class Set:
    """Images or latents to be measured.

    Args:
        planes: [B, C, H, W] on the CPU.
        unit: "pixel", or "cell" of a latent.
    """

    planes: Tensor
    unit: str

    @property
    def about(self) -> str:
        """In words: how many, of what size."""
        count, _, height, width = self.planes.shape
        kind = "image" if self.unit == "pixel" else "latent"
        return f"{count} {kind}{'s' * (count != 1)}, {width} x {height} {self.unit}s"

    def mask(self, mask: Tensor | None) -> Tensor | None:
        """ComfyUI's MASK [B, h, w] at the size of these planes.

        Raises:
            SpectralError: it is no mask, or there are as many as neither one nor these images.
        """
        if mask is None:
            return None
        if not isinstance(mask, Tensor) or mask.ndim not in (2, 3) or not mask.numel():
            raise SpectralError("The connected mask is empty or none; expected a MASK [batch, height, width].")
        mask = mask[None] if mask.ndim == 2 else mask
        if len(mask) not in (1, len(self.planes)):
            raise SpectralError(
                f"There are {len(mask)} masks for {len(self.planes)} images; expected one for all, or one for each."
            )
        mask = mask[:, None].float().cpu()
        if mask.shape[-2:] != self.planes.shape[-2:]:
            mask = torch.nn.functional.interpolate(mask, self.planes.shape[-2:], mode="bilinear", antialias=True)
        return mask.clamp(0, 1)


def as_set(given: Any, where: str) -> Set:
    """ComfyUI's IMAGE [B, H, W, C] or LATENT as planes; an alpha channel is left out, frames are images.

    Args:
        where: the input, as a sentence begins with it.

    Raises:
        SpectralError: it is neither, is empty, has one pixel, or holds numbers that are none of images or latents.
    """
    if isinstance(given, dict) and isinstance(given.get("samples"), Tensor):
        planes, unit = given["samples"], "cell"
        if planes.ndim == 5:
            planes = planes.movedim(2, 1).flatten(0, 1)
        if planes.ndim != 4:
            raise SpectralError(f"{where} is a latent of {planes.ndim} axes; expected one of images or of video.")
    elif isinstance(given, Tensor) and given.ndim == 4:
        planes, unit = given[..., :3].movedim(-1, 1), "pixel"
    else:
        raise SpectralError(f"{where} is {inputs.shown(given)}; connect an IMAGE or a LATENT of images or of video.")
    if not planes.numel():
        raise SpectralError(f"{where} holds no pixels; expected one image or more.")
    if planes.shape[-2] * planes.shape[-1] < 2:
        raise SpectralError("Images of one pixel have no spectrum; expected at least two pixels along an axis.")
    planes = planes.float().cpu()
    if not max(-float(planes.min()), float(planes.max())) <= LARGEST:  # without a copy of a large batch
        raise SpectralError(
            f"{where} holds numbers that are not finite or beyond {LARGEST:g}; expected pixels from 0 to 1 or a "
            "latent, so look at the node that makes them."
        )
    return Set(planes, unit)


def is_luma(colour: str, given: Set) -> bool:
    """Whether the brightness is to be measured; of grey images it is what they hold.

    Raises:
        SpectralError: of latents.
    """
    if colour == "luma" and given.unit != "pixel":
        raise SpectralError("Latents have no brightness; set colour to all channels, or decode them first.")
    return colour == "luma" and given.planes.shape[1] == 3


def check_alike(sets: dict[str, Set]) -> None:
    """Raise SpectralError where images would be compared with latents."""
    (first, reference), *others = sets.items()
    for name, one in others:
        if one.unit != reference.unit:
            kinds = {"pixel": "an IMAGE", "cell": "a LATENT"}
            raise SpectralError(
                f"{first} is {kinds[reference.unit]} and {name} {kinds[one.unit]}, whose frequencies mean different "
                "things; decode the latents, or encode the images."
            )


def progress(total: int) -> Callable[[int], None]:
    """A progress bar of the page, to be told what was done; it lets ComfyUI interrupt.

    Args:
        total: how much there is to do.
    """
    bar = comfy.utils.ProgressBar(total)

    def done(count: int) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()
        bar.update(count)

    return done


def frequency_axis(low: float, high: float, unit: str = "pixel", side: float | None = None) -> Axis:
    """Spatial frequency in cycles per pixel, in other units too.

    Args:
        low, high: its ends.
        unit: "pixel" or "cell".
        side: of the images, where cycles per image mean something.
    """
    units = [
        Unit(f"per {unit}", f"spatial frequency (cycles per {unit})", 1.0),
        Unit("of Nyquist", "spatial frequency (fraction of the Nyquist frequency)", 2.0),
    ]
    if side is not None:
        units.append(Unit("per image", "spatial frequency (cycles per image)", side))
    return Axis(units[0].label, log=True, toggle=True, low=low, high=high, units=tuple(units))


def power_axis(label: str = "power") -> Axis:
    """Logarithmic at first."""
    return Axis(label, log=True, toggle=True)


def radial_line(label: str, radial: RadialSpectrum, colour: str | None, scale: float = 1.0) -> Series:
    """A radial spectrum, with the 95 % confidence interval of its mean as a band.

    Args:
        scale: that the power is multiplied with.
    """
    power = radial.power.numpy() * scale
    low, high = (edge.numpy() * scale for edge in radial.interval())
    return Series(label, radial.frequency.numpy(), power, low, high, colour=colour)


def with_error(law: PowerLaw) -> str:
    """The exponent in words."""
    return f"{law.alpha:.2f}" if np.isnan(law.alpha_error) else f"{law.alpha:.2f} ± {law.alpha_error:.2f}"


RADIAL_HEADER = ("cycles_per_pixel", "cycles_per_image", "power", "std", "count", "low", "high")


def radial_rows(radial: RadialSpectrum) -> list[tuple[float | str, ...]]:
    """A row for each ring, by RADIAL_HEADER: low and high are the ends of the confidence interval."""
    std: Sequence[float | str] = [""] * len(radial.power) if radial.std is None else radial.std.tolist()
    columns = (radial.frequency.tolist(), (radial.frequency * radial.side).tolist(), radial.power.tolist())
    ends = (edge.tolist() for edge in radial.interval())
    return list(zip(*columns, std, radial.count.tolist(), *ends, strict=True))
