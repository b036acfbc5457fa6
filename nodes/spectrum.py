"""Power Spectrum and Radial Spectrum: what frequencies a set of images or latents holds."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..spectral import spectrum
from ..spectral.errors import SpectralError
from ..spectral.spectrum import PowerLaw, RadialSpectrum
from . import measured, show
from . import spectrum_views as views
from .charts import Axis, Chart, View
from .measured import CATEGORY, COLOUR, MASK, NYQUIST, SET, WINDOW
from .plot import Series
from .show import PLOT_TOOLTIP, TABLE_TOOLTIP

SECTORS = 12
NUMBERS = ("alpha", "alpha_error")
SETS = {"tooltip": "One image, or a batch to average over; a LATENT is measured as it is, in cells instead of pixels."}


class PowerSpectrum:
    """The two-dimensional power spectrum, averaged over the batch, and what it says about directions and octaves."""

    CATEGORY = CATEGORY
    DESCRIPTION = (
        "Draws how much power images or latents hold at every horizontal and vertical frequency, averaged over the "
        "batch and its channels; frequency zero is in the middle. Further views show the power along both axes, the "
        "power law A / frequency^alpha in every direction, and the energy of each wavelet band."
    )
    SEARCH_ALIASES = ("fft", "fourier transform", "frequency", "2d spectrum", "orientation", "wavelet energy")
    RETURN_TYPES = ("IMAGE", "FLOAT", "STRING", "STRING", "STRING")
    RETURN_NAMES = ("plot", "high_share", "table", "directions", "bands")
    OUTPUT_TOOLTIPS = (
        PLOT_TOOLTIP,
        "Share of all power that lies above the frequency in above, 0 to 1.",
        TABLE_TOOLTIP,
        "alpha and A of the power law in each direction, with their standard errors, as CSV text.",
        "The energy of each wavelet band (Haar), level by level, as CSV text; of whole images, without window or mask.",
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
        remove_dc = "Take the mean brightness away first; it would outshine everything else in the middle of the map."
        normalize = "Show powers as parts of the largest one, which is then 0 on the logarithmic scale."
        return {
            "required": {"images": (SET, SETS), "window": WINDOW, "above": ("FLOAT", above)},
            "optional": {
                "mask": MASK,
                "colour": COLOUR,
                "remove_dc": ("BOOLEAN", {"default": True, "tooltip": remove_dc}),
                "normalize": ("BOOLEAN", {"default": True, "tooltip": normalize}),
                "log": ("BOOLEAN", {"default": True, "tooltip": "Colour the map by the logarithm of the power."}),
            },
        }

    def measure(
        self,
        images: Any,
        window: spectrum.Window,
        above: float,
        mask: Tensor | None = None,
        colour: str = "all channels",
        remove_dc: bool = True,
        normalize: bool = True,
        log: bool = True,
    ) -> dict[str, Any]:
        """Map, share and tables.

        Raises:
            SpectralError: images or a mask that cannot be measured.
        """
        given = measured.as_set(images, "images of Power Spectrum")
        gray = measured.is_luma(colour, given)
        done = measured.progress(2 * len(given.planes))
        power = spectrum.mean_power_spectrum(
            given.planes, window=window, remove_dc=remove_dc, gray=gray, mask=given.mask(mask), progress=done
        )
        bands = spectrum.band_energies(given.planes, gray=gray, progress=done)
        frequency = spectrum.radial_frequency(*power.shape)
        share = float(power[frequency > above].sum() / power.sum().clamp_min(torch.finfo(torch.float64).tiny))
        shown = power / power.max() if normalize and power.any() else power
        directions = spectrum.by_direction(power, len(given.planes), sectors=SECTORS, window=window)
        laws = views.laws_of(directions)
        chart = Chart(
            "Power spectrum",
            measured.frequency_axis(1 / max(power.shape), 0.5, given.unit),
            measured.power_axis("power / largest power" if normalize else "power"),
            [
                View(("map",), map=views.power_map(shown, normalize, log, given.unit)),
                View(("along the axes",), views.axis_lines(shown), marks=[NYQUIST]),
                *views.direction_views(directions, laws),
                views.band_view(bands),
            ],
            notes=[given.about, f"{share:.2%} of the power lies above {above:g} cycles per {given.unit}"],
        )
        return show.chart(
            chart,
            show.csv(("axis", "cycles_per_pixel", "power"), views.axis_rows(power)),
            {"high_share": share},
            show.csv(views.DIRECTIONS_HEADER, views.direction_rows(directions, laws)),
            show.csv(views.BANDS_HEADER, views.band_rows(bands)),
        )


class RadialSpectrumNode:
    """The spectrum averaged over directions, with its power law."""

    CATEGORY = CATEGORY
    DESCRIPTION = (
        "Draws how much power images or latents hold at each frequency, averaged over all directions, and fits the "
        "power law A / frequency^alpha to it. Photographs have an alpha near 2; smoother pictures have more."
    )
    SEARCH_ALIASES = ("reduced spectrum", "azimuthal average", "power law", "spectral slope")
    RETURN_TYPES = ("IMAGE", "FLOAT", "FLOAT", "STRING")
    RETURN_NAMES = ("plot", "alpha", "alpha_error", "table")
    OUTPUT_TOOLTIPS = (
        PLOT_TOOLTIP,
        "The exponent of the power law: larger is smoother; photographs have about 2. NaN where there is none.",
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
                "images": (SET, {"tooltip": "A batch of images, the more, the smoother the curve; or a LATENT."}),
                "window": WINDOW,
                "fit_low": ("FLOAT", low),
                "fit_high": ("FLOAT", high),
            },
            "optional": {"mask": MASK, "colour": COLOUR},
        }

    def measure(
        self,
        images: Any,
        window: spectrum.Window,
        fit_low: float,
        fit_high: float,
        mask: Tensor | None = None,
        colour: str = "all channels",
    ) -> dict[str, Any]:
        """Plot, slope and table; both numbers are NaN where there is no slope, and the chart says why.

        Raises:
            SpectralError: images or a mask that cannot be measured.
        """
        given = measured.as_set(images, "images of Radial Spectrum")
        radial = spectrum.radial_spectrum(
            given.planes,
            window=window,
            gray=measured.is_luma(colour, given),
            mask=given.mask(mask),
            progress=measured.progress(len(given.planes)),
        )
        law, said = _law(radial, fit_low, fit_high)
        chart = Chart(
            "Radial power spectrum",
            measured.frequency_axis(0.9 * float(radial.frequency[0]), 0.75, given.unit, radial.side),
            measured.power_axis(),
            [
                View(
                    ("power",),
                    [
                        measured.radial_line("mean (shaded: 95 % confidence)", radial, "#0072B2"),
                        *([views.law_line(radial, law)] if law else []),
                    ],
                    marks=[NYQUIST],
                ),
                View(
                    ("frequencies in a ring",),
                    [Series("frequencies", radial.frequency.numpy(), radial.count.numpy())],
                    y=Axis("DFT frequencies that a ring holds", low=0),
                    marks=[NYQUIST],
                ),
            ],
            notes=[given.about, said],
        )
        numbers = {"alpha": law.alpha, "alpha_error": law.alpha_error} if law else dict.fromkeys(NUMBERS, math.nan)
        return show.chart(chart, show.csv(measured.RADIAL_HEADER, measured.radial_rows(radial)), numbers)


def _law(radial: RadialSpectrum, low: float, high: float) -> tuple[PowerLaw | None, str]:
    """The power law and what is said of it; of images that are too small or too flat for one, why there is none."""
    try:
        law = spectrum.fit_power_law(radial, low or None, high)
    except SpectralError as error:
        return None, str(error)
    return law, f"power = A / frequency^alpha with alpha = {measured.with_error(law)}"
