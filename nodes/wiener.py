"""Wiener Filter: what the best linear denoiser of a MODEL's own schedule lets through, over frequency and time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..spectral import spectrum
from ..spectral.colours import sequence
from ..spectral.errors import SpectralError
from ..spectral.spectrum import WienerTable
from . import measured, show
from .charts import Axis, Chart, Map, View
from .levels import Levels, levels_of
from .measured import CATEGORY, NYQUIST, SET, WINDOW, Set
from .plot import Series
from .show import PLOT_TOOLTIP, TABLE_TOOLTIP

#: Frequencies of the curves, evenly in their logarithm, and rows and columns of the map.
POINTS, ROWS, COLUMNS = 40, 40, 48
LOWEST = 1 / 128


class WienerFilter:
    """The optimal linear denoiser at every noise level."""

    CATEGORY = CATEGORY
    DESCRIPTION = (
        "Draws the frequency response of the best linear denoiser, the Wiener filter, along the noise schedule of a "
        "MODEL (Figure 3 of the paper): early steps can only bring back low frequencies, later ones more and more. The "
        "power spectrum of clean pictures is measured from images or a LATENT, or is A / frequency^alpha."
    )
    SEARCH_ALIASES = ("optimal denoiser", "linear filter", "figure 3", "frequency response", "noise schedule")
    RETURN_TYPES = ("IMAGE", "STRING")
    RETURN_NAMES = ("plot", "table")
    OUTPUT_TOOLTIPS = (PLOT_TOOLTIP, TABLE_TOOLTIP)
    OUTPUT_NODE = True
    FUNCTION = "draw"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        amplitude = (
            "A of the power A / frequency^alpha that clean latents are taken to have, where nothing is connected to "
            "images. White noise of variance 1, which is what is added, has the power 1."
        )
        alpha = "alpha of that power: 2 for photographs, 0 for what is equally strong at every frequency."
        images = (
            "Clean pictures as the model sees them, whose power is used instead of A / frequency^alpha: a LATENT from "
            "VAE Encode, or images for a model that works on pixels."
        )
        return {
            "required": {
                "model": ("MODEL", {"tooltip": "A model of any kind; only its noise schedule is looked at."}),
                "amplitude": (
                    "FLOAT",
                    {"default": 1.0, "min": 1e-6, "max": 1e6, "step": 0.1, "round": 1e-6, "tooltip": amplitude},
                ),
                "alpha": ("FLOAT", {"default": 2.0, "min": 0.0, "max": 6.0, "step": 0.05, "tooltip": alpha}),
                "levels": ("INT", {"default": 6, "min": 1, "max": 12, "tooltip": "How many noise levels get a curve."}),
                "window": WINDOW,
            },
            "optional": {"images": (SET, {"tooltip": images})},
        }

    def draw(
        self, model: Any, amplitude: float, alpha: float, levels: int, window: spectrum.Window, images: Any = None
    ) -> dict[str, Any]:
        """Curves, maps and table.

        Raises:
            SpectralError: images that cannot be measured.
        """
        power_at, lowest, about = _power(model, amplitude, alpha, window, images)
        frequency = torch.logspace(np.log10(lowest), np.log10(0.5), POINTS, dtype=torch.float64)
        across = (torch.arange(COLUMNS, dtype=torch.float64) + 0.5) * (0.5 / COLUMNS)
        curves, rows = levels_of(model, levels), levels_of(model, ROWS)
        table, map_table = _table(frequency, power_at, curves), _table(across, power_at, rows)
        chart = Chart(
            "Wiener filter",
            measured.frequency_axis(lowest, 0.5, "cell"),
            Axis("gain"),
            _views(table, map_table, curves, rows),
            notes=[about],
            drawn=(2, 3),
        )
        return show.chart(chart, show.csv(HEADER, _rows(table, curves)), {})


Power = Callable[[Tensor], Tensor]


def _power(
    model: Any, amplitude: float, alpha: float, window: spectrum.Window, images: Any
) -> tuple[Power, float, str]:
    """The power of clean latents as a function of frequency, the lowest frequency to show, and where it comes from."""
    if images is None:
        about = f"|X0|^2 = {amplitude:g} / frequency^{alpha:g}"
        return lambda frequency: spectrum.power_law(frequency, amplitude, alpha), LOWEST, about
    given = clean(model, images, "images of Wiener Filter")
    radial = spectrum.radial_spectrum(given.planes, window=window, progress=measured.progress(len(given.planes)))
    lowest = min(float(radial.frequency[0]), 0.25)
    return lambda frequency: spectrum.measured_power(radial, frequency), lowest, f"|X0|^2 of {given.about}"


def clean(model: Any, given: Any, where: str) -> Set:
    """Clean pictures as a MODEL sees them: latents of its channels in its scale, or images where it works on pixels.

    Args:
        where: the input, as a sentence begins with it.

    Raises:
        SpectralError: they belong to another model, are empty, or the model's latents have more than two sides.
    """
    found = measured.as_set(scaled(model, given), where)
    channels = getattr(model.model.latent_format, "latent_channels", 4)  # which ComfyUI of 2024 does not say
    if found.planes.shape[1] != channels:
        raise SpectralError(
            f"{where} has {found.planes.shape[1]} channels and this MODEL works on {channels}; connect VAE Encode with "
            "the VAE that belongs to it."
        )
    if not bool(found.planes.any()):
        raise SpectralError(f"{where} is an empty latent, which holds no picture; connect VAE Encode of some images.")
    return found


def scaled(model: Any, given: Any) -> Any:
    """A LATENT in the scale in which the model sees it; anything else as it is."""
    if isinstance(given, dict) and isinstance(given.get("samples"), Tensor):
        return {"samples": model.model.process_latent_in(given["samples"])}
    return given


def _table(frequency: Tensor, power: Power, levels: Levels) -> WienerTable:
    return spectrum.wiener_table(frequency, power(frequency), levels.signal, levels.noise, levels.timestep)


def _views(table: WienerTable, mapped: WienerTable, curves: Levels, rows: Levels) -> list[View]:
    bandwidth = Series("half of the power is signal", rows.timestep.numpy(), mapped.bandwidth.numpy(), colour="#009E73")
    time = Axis("time step, from noise to picture", reversed=True)
    return [
        View(("reconstruction",), _curves(table, table.reconstruction, curves), marks=[NYQUIST], y=_gain("x_t to x_0")),
        View(("noise",), _curves(table, table.noise_prediction, curves), marks=[NYQUIST], y=_gain("x_t to the noise")),
        View(
            ("signal kept",),
            _curves(table, table.kept, curves),
            marks=[NYQUIST],
            y=Axis("share of the clean picture that comes through", within=(0.0, 1.0), low=0.0, high=1.0),
        ),
        View(("map",), map=_map(mapped, rows)),
        View(("bandwidth",), [bandwidth], x=time, y=Axis("frequency (cycles per cell)", low=0.0, high=0.5)),
    ]


def _gain(what: str) -> Axis:
    return Axis(f"gain of the filter from {what}", toggle=True, low=0.0)


def _curves(table: WienerTable, values: Tensor, levels: Levels) -> list[Series]:
    return [
        Series(name, table.frequency.numpy(), row.numpy(), colour=colour)
        for name, row, colour in zip(levels.names(), values, sequence(len(values)), strict=True)
    ]


def _map(table: WienerTable, levels: Levels) -> Map:
    """Signal kept over frequency and the sampling, whose end, the picture, is on top."""
    x = Axis("spatial frequency (cycles per cell)", low=0.0, high=0.5)
    y = Axis("sampling (percent; 0: noise)", low=0.0, high=100.0)
    return Map(table.kept.flip(0).numpy(), "share kept", x, y, 0.0, 1.0, square=False)


HEADER = ("timestep", "sigma", "cycles_per_cell", "power", "reconstruction", "noise_filter", "kept", "bandwidth")


def _rows(table: WienerTable, levels: Levels) -> Iterator[tuple[float, ...]]:
    for index, (step, sigma) in enumerate(zip(levels.timestep.tolist(), levels.sigma.tolist(), strict=True)):
        columns = (
            table.frequency,
            table.power,
            *(values[index] for values in (table.reconstruction, table.noise_prediction, table.kept)),
        )
        for row in zip(*(column.tolist() for column in columns), strict=True):
            yield step, sigma, *row, float(table.bandwidth[index])
