"""Filter Correlation: how far the convolutions of a MODEL tie neighbouring frequencies together, layer by layer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import comfy.model_management
import numpy as np

from ..spectral import spectrum
from ..spectral.errors import SpectralError
from ..spectral.spectrum import FilterCorrelation
from . import measured, show
from .charts import Axis, Chart, View
from .measured import CATEGORY
from .model import Companions
from .plot import Series
from .show import PLOT_TOOLTIP, TABLE_TOOLTIP

#: The side of Stable Diffusion's latents, where a model does not say its own.
USUAL = 64


class FilterCorrelationNode:
    """The spectral correlation of every convolution, against that of independent taps."""

    CATEGORY = CATEGORY
    DESCRIPTION = (
        "Measures for every convolution of a MODEL how strongly its filters tie neighbouring frequencies together, "
        "against the closed form for filters of independent taps, sin^2(pi k/d) / (k^2 sin^2(pi/d)): small filters on "
        "large feature maps cannot set frequencies apart, and the high ones suffer."
    )
    SEARCH_ALIASES = ("spectral correlation", "convolution filters", "kernel spectrum", "spectral bias")
    RETURN_TYPES = ("IMAGE", "FLOAT", "STRING")
    RETURN_NAMES = ("plot", "mean_difference", "table")
    OUTPUT_TOOLTIPS = (
        PLOT_TOOLTIP,
        "The mean of measured less closed form over all layers: below 0, training has set frequencies further apart "
        "than chance would.",
        TABLE_TOOLTIP,
    )
    OUTPUT_NODE = True
    FUNCTION = "measure"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        size = (
            "The side of the latent in cells, from which follows the size of every layer's feature map. 0: what the "
            "model was trained at, or 64 where it does not say."
        )
        return {
            "required": {
                "model": ("MODEL", {"tooltip": "A model with convolutions: a student, a teacher, Stable Diffusion."}),
                "latent_size": ("INT", {"default": 0, "min": 0, "max": 1024, "tooltip": size}),
            }
        }

    def measure(self, model: Any, latent_size: int) -> dict[str, Any]:
        """Plot, mean and table.

        Raises:
            SpectralError: the model has no convolution with more than one tap.
        """
        size = latent_size or _own_size(model)
        comfy.model_management.load_models_gpu([model])  # LoRAs and other patches are in the weights then
        convolutions = spectrum.convolutions(model.model.diffusion_model, size)
        if not convolutions:
            raise SpectralError(
                "This model has no convolutions of more than one tap, so there is nothing to measure; connect one with "
                "a U-Net, such as a student or Stable Diffusion."
            )
        done = measured.progress(len(convolutions))
        found = []
        for one in convolutions:
            found.append(spectrum.filter_correlation(one))
            done(1)
        difference = np.array([one.measured - one.independent for one in found])
        known = difference[np.isfinite(difference)]
        mean = float(known.mean()) if known.size else float("nan")
        chart = Chart(
            "Spectral correlation of filters",
            Axis("convolution, in the order in which they run", low=0.5, high=len(found) + 0.5),
            Axis("correlation of diagonal neighbours", within=(0.0, 1.0)),
            [View(("by layer",), _by_layer(found)), _by_grid(found)],
            notes=[
                f"{len(found)} convolutions, latent of {size} x {size} cells",
                f"measured less closed form: {mean:+.3f} in the mean",
            ],
            drawn=(0, 1),
        )
        return show.chart(chart, show.csv(HEADER, _rows(found)), {"mean_difference": mean})


def _own_size(model: Any) -> int:
    """The latent side that a model was trained at, as far as it says so."""
    companions = getattr(model.model, "spectral", None)
    if isinstance(companions, Companions) and companions.config.unet is not None:
        return companions.config.unet.image_size
    return USUAL


def _by_layer(found: list[FilterCorrelation]) -> list[Series]:
    place = np.arange(1, len(found) + 1, dtype=float)
    return [
        Series("measured", place, np.array([one.measured for one in found]), colour="#0072B2"),
        Series("independent taps", place, np.array([one.independent for one in found]), dashed=True, colour="#000000"),
    ]


def _by_grid(found: list[FilterCorrelation]) -> View:
    """Mean, and as a band lowest and highest, of the layers of each grid; the closed form of their kernels."""
    grids = sorted({one.grid for one in found})
    values = {grid: np.array([one.measured for one in found if one.grid == grid]) for grid in grids}
    known = {grid: one[np.isfinite(one)] for grid, one in values.items()}
    mean, low, high = (
        np.array([float(get(known[grid])) if known[grid].size else np.nan for grid in grids])
        for get in (np.mean, np.min, np.max)
    )
    x = np.array(grids, dtype=float)
    lines = [Series("measured (mean, lowest to highest)", x, mean, low, high, colour="#0072B2")]
    for kernel in sorted({one.kernel for one in found}):
        closed = np.array([spectrum.independent_correlation(kernel, grid) for grid in grids])
        lines.append(Series(f"independent taps, {kernel} x {kernel}", x, closed, dashed=True, colour="#000000"))
    return View(("by feature map",), lines, x=Axis("side of the feature map (cells)", log=True, toggle=True))


HEADER = ("layer", "kernel", "feature_map", "filters", "measured", "independent")


def _rows(found: list[FilterCorrelation]) -> Iterator[tuple[float | str, ...]]:
    for one in found:
        yield one.name, one.kernel, one.grid, one.filters, one.measured, one.independent
