"""Power Spectrum, Radial Spectrum, Compare Spectra: what frequencies images hold, as a plot, numbers and a table."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..spectral import spectrum
from ..spectral.errors import SpectralError
from ..spectral.spectrum import PowerLaw, RadialSpectrum
from . import plot, plot_axes, show
from .show import PLOT_TOOLTIP, TABLE_TOOLTIP

CATEGORY = "spectral diffusion/spectrum"
WINDOW = (
    ["hann", "none"],
    {
        "tooltip": "hann fades the borders out, so that the jump from one border to the opposite one is not measured "
        "as fine detail; none leaves the pixels alone."
    },
)


class PowerSpectrum:
    """The two-dimensional power spectrum, averaged over the batch."""

    CATEGORY = CATEGORY
    DESCRIPTION = (
        "Draws how much power the images hold at every horizontal and vertical frequency, averaged over the batch and "
        "its channels. Frequency zero is in the middle."
    )
    SEARCH_ALIASES = ("fft", "fourier transform", "frequency", "2d spectrum")
    RETURN_TYPES = ("IMAGE", "FLOAT", "STRING")
    RETURN_NAMES = ("plot", "high_share", "table")
    OUTPUT_TOOLTIPS = (
        PLOT_TOOLTIP,
        "Share of all power that lies above the frequency in above, 0 to 1.",
        TABLE_TOOLTIP,
    )
    OUTPUT_NODE = True
    FUNCTION = "measure"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        above = {
            "default": 0.25,
            "min": 0.0,
            "max": 0.7,
            "step": 0.01,
            "tooltip": "high_share counts the power above this frequency, in cycles per pixel; 0.5 is the finest "
            "pattern that pixels can hold along an axis.",
        }
        images = {"tooltip": "One image, or a batch to average over."}
        return {"required": {"images": ("IMAGE", images), "window": WINDOW, "above": ("FLOAT", above)}}

    def measure(self, images: Tensor, window: spectrum.Window, above: float) -> dict[str, Any]:
        planes = _planes(images)
        power = torch.stack([spectrum.power_spectrum(one, window=window).mean(0) for one in planes]).mean(0).double()
        frequency = spectrum.radial_frequency(*power.shape)
        share = float(power[frequency > above].sum() / power.sum().clamp_min(torch.finfo(torch.float64).tiny))
        log_power = torch.fft.fftshift(power.clamp_min(power.max() * 1e-12 + 1e-30).log10()).numpy()
        chart = plot.heat_map(
            log_power,
            title="Power spectrum",
            label="power, log10",
            notes=[_about(images), f"{share:.2%} of the power lies above {above:g} cycles per pixel"],
        )
        return show.picture(
            chart, {"high_share": share}, show.csv(("axis", "cycles_per_pixel", "power"), _axis_rows(power))
        )


class RadialSpectrumNode:
    """The spectrum averaged over directions, with its power law."""

    CATEGORY = CATEGORY
    DESCRIPTION = (
        "Draws how much power the images hold at each frequency, averaged over all directions, and fits the power law "
        "A / frequency^alpha to it. Photographs have an alpha near 2; smoother pictures have more."
    )
    SEARCH_ALIASES = ("reduced spectrum", "azimuthal average", "power law", "spectral slope")
    RETURN_TYPES = ("IMAGE", "FLOAT", "FLOAT", "STRING")
    RETURN_NAMES = ("plot", "alpha", "alpha_error", "table")
    OUTPUT_TOOLTIPS = (
        PLOT_TOOLTIP,
        "The exponent of the power law: larger is smoother; photographs have about 2.",
        "The standard error of alpha.",
        TABLE_TOOLTIP,
    )
    OUTPUT_NODE = True
    FUNCTION = "measure"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        edge = {"min": 0.0, "max": 0.71, "step": 0.005, "round": 0.0001}
        low = {
            **edge,
            "default": 0.0,
            "tooltip": "Where the fit begins, in cycles per pixel. 0: at 4 cycles per image.",
        }
        high = {**edge, "default": 0.375, "tooltip": "Where the fit ends, in cycles per pixel."}
        return {
            "required": {
                "images": ("IMAGE", {"tooltip": "A batch of images; the more, the smoother the curve."}),
                "window": WINDOW,
                "fit_low": ("FLOAT", low),
                "fit_high": ("FLOAT", high),
            }
        }

    def measure(self, images: Tensor, window: spectrum.Window, fit_low: float, fit_high: float) -> dict[str, Any]:
        """Plot, slope and table.

        Raises:
            SpectralError: too few frequencies in the fit's range, or images without any contrast.
        """
        radial = spectrum.radial_spectrum(_planes(images), window=window)
        law = spectrum.fit_power_law(radial, fit_low or None, fit_high)
        frequency, power = radial.frequency.numpy(), radial.power.numpy()
        fitted = radial.frequency[(radial.frequency >= law.low) & (radial.frequency <= law.high)].numpy()
        line = plot.Series("power law", fitted, np.exp(law.log_amplitude) * fitted**-law.alpha, dashed=True, colour=1)
        chart = plot.line_chart(
            [_series("mean over images and directions (shaded: spread between images)", frequency, radial, 1.0), line],
            plot_axes.frequency_axis(frequency[0] * 0.9, 0.75),
            plot_axes.power_axis("power", [power]),
            title="Radial power spectrum",
            notes=[_about(images), f"power = A / frequency^alpha with alpha = {_with_error(law)}"],
            marks=[plot_axes.Mark(0.5, "Nyquist")],
        )
        numbers = {"alpha": law.alpha, "alpha_error": law.alpha_error}
        return show.picture(chart, numbers, show.csv(RADIAL_HEADER, _radial_rows(radial)))


class CompareSpectra:
    """Two sets of images against each other, frequency by frequency."""

    CATEGORY = CATEGORY
    DESCRIPTION = (
        "Compares the radial spectra of two sets of images, such as data and samples, and says how far apart they are "
        "below and above a cut-off. Small diffusion models miss the high frequencies first."
    )
    SEARCH_ALIASES = ("spectrum difference", "frequency error", "low high frequency error", "spectral bias")
    RETURN_TYPES = ("IMAGE", "FLOAT", "FLOAT", "STRING")
    RETURN_NAMES = ("plot", "low_error", "high_error", "table")
    OUTPUT_TOOLTIPS = (
        PLOT_TOOLTIP,
        "How far the power is from the reference's below the cut-off: the mean size of ln(power / reference power). 0 "
        "is equal, 0.69 is a factor of two.",
        "The same above the cut-off, where details are.",
        TABLE_TOOLTIP,
    )
    OUTPUT_NODE = True
    FUNCTION = "compare"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        cutoff = {
            "default": 28.0,
            "min": 0.5,
            "max": 8192.0,
            "step": 0.5,
            "tooltip": "The frequency where low_error ends and high_error begins, in cycles per image along the "
            "shorter side. The paper's 28 belongs to 256 pixels; take 12 for 64.",
        }
        return {
            "required": {
                "reference": ("IMAGE", {"tooltip": "The set to compare with: real images, or a teacher's samples."}),
                "images": ("IMAGE", {"tooltip": "The set to measure, such as samples; its size may differ."}),
                "cutoff": ("FLOAT", cutoff),
                "window": WINDOW,
            }
        }

    def compare(self, reference: Tensor, images: Tensor, cutoff: float, window: spectrum.Window) -> dict[str, Any]:
        """Plot, both errors and table.

        Raises:
            SpectralError: the cut-off leaves one of the bands empty.
        """
        expected = spectrum.radial_spectrum(_planes(reference), window=window)
        found = spectrum.radial_spectrum(_planes(images), window=window)
        errors = spectrum.band_errors(expected, found, cutoff)
        curves = [
            _per_image(f"reference: {_about(reference)}", expected),
            _per_image(f"images: {_about(images)}", found),
        ]
        chart = plot.line_chart(
            curves,
            plot_axes.cycles_axis(0.9 * min(one.x[0] for one in curves), 1.05 * max(one.x[-1] for one in curves)),
            plot_axes.power_axis("squared Fourier amplitude", [one.y for one in curves]),
            title="Spectra compared",
            notes=[f"mean |ln ratio|: {errors.low:.3f} below {cutoff:g} cycles per image, {errors.high:.3f} above"],
            marks=[plot_axes.Mark(cutoff, "cut-off")],
        )
        rows = [("reference", *row) for row in _radial_rows(expected)]
        rows += [("images", *row) for row in _radial_rows(found)]
        numbers = {"low_error": errors.low, "high_error": errors.high}
        return show.picture(chart, numbers, show.csv(("set", *RADIAL_HEADER), rows))


RADIAL_HEADER = ("cycles_per_pixel", "cycles_per_image", "power", "std", "count")


#: Beyond it the power of single precision ends; pixels lie between 0 and 1.
BRIGHTEST = 1e6


def _planes(images: Tensor) -> Tensor:
    """ComfyUI's IMAGE [B, H, W, C] as planes [B, 3, H, W] on the CPU; an alpha channel is left out.

    Raises:
        SpectralError: the images have one pixel each, or hold numbers that are no pixels.
    """
    if images.shape[1] * images.shape[2] < 2:
        raise SpectralError("Images of one pixel have no spectrum; expected at least two pixels along an axis.")
    planes = images[..., :3].movedim(-1, 1).float().cpu()
    if not planes.abs().max() <= BRIGHTEST:
        raise SpectralError(
            f"These images hold numbers beyond {BRIGHTEST:g}; expected pixels from 0 to 1, so look at the node that "
            "makes them."
        )
    return planes


def _series(label: str, x: plot_axes.Array, radial: RadialSpectrum, scale: float) -> plot.Series:
    """A radial spectrum's line; the band is one standard deviation between images, as a factor either way."""
    power = radial.power.numpy() * scale
    if radial.std is None:
        return plot.Series(label, x, power)
    factor = 1 + radial.std.numpy() / np.maximum(radial.power.numpy(), 1e-300)
    return plot.Series(label, x, power, power / factor, power * factor)


def _per_image(label: str, radial: RadialSpectrum) -> plot.Series:
    """Against cycles per image, as the squared amplitude that does not depend on the resolution."""
    area = radial.size[0] * radial.size[1]
    return _series(label, (radial.frequency * radial.side).numpy(), radial, 1 / area)


def _about(images: Tensor) -> str:
    count, height, width = images.shape[:3]
    return f"{count} image{'s' if count > 1 else ''}, {width} x {height} pixels"


def _with_error(law: PowerLaw) -> str:
    return f"{law.alpha:.2f}" if np.isnan(law.alpha_error) else f"{law.alpha:.2f} ± {law.alpha_error:.2f}"


def _radial_rows(radial: RadialSpectrum) -> list[tuple[float | str, ...]]:
    std: Sequence[float | str] = [""] * len(radial.power) if radial.std is None else radial.std.tolist()
    columns = (radial.frequency.tolist(), (radial.frequency * radial.side).tolist(), radial.power.tolist())
    return list(zip(*columns, std, radial.count.tolist(), strict=True))


def _axis_rows(power: Tensor) -> Iterable[tuple[float | str, ...]]:
    """The spectrum along its two axes, from the lowest frequency up."""
    for name, line in (("horizontal", power[0]), ("vertical", power[:, 0])):
        for index in range(1, len(line) // 2 + 1):
            yield name, index / len(line), float(line[index])
