"""Compare Spectra and DFT Difference: sets of images against each other, frequency by frequency."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..spectral import spectrum
from ..spectral.colours import of_names
from ..spectral.errors import SpectralError
from ..spectral.spectrum import BandErrors, DFTDifference, RadialSpectrum
from . import measured, show
from . import spectrum_views as views
from .charts import Axis, Chart, Unit, View
from .measured import CATEGORY, COLOUR, MASK, SET, WINDOW, Set
from .plot import Series
from .plot_axes import Mark
from .show import PLOT_TOOLTIP, TABLE_TOOLTIP

#: How many sets can be compared, and the inputs of those after the first two.
MOST = 8
MORE = tuple(f"images_{index}" for index in range(3, MOST + 1))
ERRORS_HEADER = ("set", "low_error", "high_error", "distance_db", "alpha", "alpha_error")


class CompareSpectra:
    """Two to eight sets of images against the first of them, frequency by frequency."""

    CATEGORY = CATEGORY
    DESCRIPTION = (
        "Compares the radial spectra of two to eight sets of images, such as data, teacher, student and Lite, and says "
        "how far each is from the reference below and above a cut-off. Small diffusion models miss the high "
        "frequencies first."
    )
    SEARCH_ALIASES = ("spectrum difference", "frequency error", "low high frequency error", "spectral bias")
    RETURN_TYPES = ("IMAGE", "FLOAT", "FLOAT", "STRING", "FLOAT", "STRING")
    RETURN_NAMES = ("plot", "low_error", "high_error", "table", "distance", "errors")
    OUTPUT_TOOLTIPS = (
        PLOT_TOOLTIP,
        "How far the power of images is from the reference's below the cut-off: the mean size of ln(power / reference "
        "power). 0 is equal, 0.69 is a factor of two.",
        "The same above the cut-off, where details are.",
        TABLE_TOOLTIP,
        "The log-spectral distance of images from the reference up to the Nyquist frequency, in decibels: 0 is equal, "
        "3 is a factor of two.",
        "Errors, distance and slope of every set as CSV text.",
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
        names = (
            "What the sets are called, in their order, with commas between: reference, images, … A set whose name "
            "speaks of data, a teacher, a student or lite has that model's colour in every chart. Empty: by the inputs."
        )
        more = {"tooltip": "Another set to measure against the reference; its size may differ."}
        return {
            "required": {
                "reference": (SET, {"tooltip": "The set to compare with: real images, or a teacher's samples."}),
                "images": (SET, {"tooltip": "The set to measure, such as samples; its size may differ."}),
                "cutoff": ("FLOAT", cutoff),
                "window": WINDOW,
            },
            "optional": {
                **{name: (SET, more) for name in MORE},
                "names": ("STRING", {"default": "", "tooltip": names}),
                "colour": COLOUR,
                "mask": MASK,
            },
        }

    def compare(
        self,
        reference: Any,
        images: Any,
        cutoff: float,
        window: spectrum.Window,
        names: str = "",
        colour: str = "all channels",
        mask: Tensor | None = None,
        **more: Any,
    ) -> dict[str, Any]:
        """Plot, both errors and the distance of `images`, and tables of all.

        Raises:
            SpectralError: the cut-off leaves one of the bands empty, or there are other names than sets.
        """
        connected = {"reference": reference, "images": images}
        connected |= {key: more[key] for key in MORE if more.get(key) is not None}
        sets = {key: measured.as_set(one, f"{key} of Compare Spectra") for key, one in connected.items()}
        measured.check_alike(sets)
        done = measured.progress(sum(len(one.planes) for one in sets.values()))
        found = {
            name: spectrum.radial_spectrum(
                one.planes,
                window=window,
                gray=measured.is_luma(colour, one),
                mask=one.mask(mask),
                progress=done,
            )
            for name, one in zip(_names(names, list(sets)), sets.values(), strict=True)
        }
        (first, expected), *others = found.items()
        errors = {name: spectrum.band_errors(expected, one, cutoff) for name, one in others}
        distances = {name: spectrum.spectral_distance(expected, one) for name, one in others}
        chart = Chart(
            "Spectra compared",
            _cycles(found, next(iter(sets.values())).unit),
            Axis("squared Fourier amplitude", log=True, toggle=True),
            [
                View(("spectra",), _lines(found), marks=[Mark(cutoff, "cut-off")]),
                View(
                    ("ratio",),
                    _ratios(found),
                    y=Axis(f"power / power of {first}", log=True, toggle=True),
                    marks=[Mark(cutoff, "cut-off")],
                ),
            ],
            notes=[
                f"mean |ln ratio| below and above {cutoff:g} cycles per image, and distance:",
                *(f"{name}: {e.low:.3f}, {e.high:.3f}, {distances[name]:.2f} dB" for name, e in errors.items()),
            ],
            drawn=(0, 1),
        )
        rows = [(name, *row) for name, one in found.items() for row in measured.radial_rows(one)]
        one = next(iter(errors))
        return show.chart(
            chart,
            show.csv(("set", *measured.RADIAL_HEADER), rows),
            {"low_error": errors[one].low, "high_error": errors[one].high},
            distances[one],
            show.csv(ERRORS_HEADER, _error_rows(found, errors, distances)),
        )


class DFTDifferenceNode:
    """Where the transforms of two sets of images differ (Figure 10)."""

    CATEGORY = CATEGORY
    DESCRIPTION = (
        "Shows in two dimensions at which frequencies two sets of images differ: which has more power where, and, for "
        "pictures made in pairs from the same noise, how much of each frequency changed (Figure 10 of the paper)."
    )
    SEARCH_ALIASES = ("fourier difference", "spectrum difference map", "figure 10", "fft compare")
    RETURN_TYPES = ("IMAGE", "FLOAT", "STRING")
    RETURN_NAMES = ("plot", "high_share", "table")
    OUTPUT_TOOLTIPS = (
        PLOT_TOOLTIP,
        "The part of the difference between pairs that lies above the frequency in above, 0 to 1; without pairs the "
        "part of the difference between the mean powers.",
        TABLE_TOOLTIP,
    )
    OUTPUT_NODE = True
    FUNCTION = "compare"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        above = {
            "default": 0.25,
            "min": 0.0,
            "max": 0.7,
            "step": 0.01,
            "tooltip": "high_share counts the difference above this frequency, in cycles per pixel.",
        }
        return {
            "required": {
                "reference": (SET, {"tooltip": "The set to compare with, such as samples without the frequency loss."}),
                "images": (
                    SET,
                    {"tooltip": "The set to measure, of the same size; as many of them are compared in pairs."},
                ),
                "window": WINDOW,
                "above": ("FLOAT", above),
            },
            "optional": {"colour": COLOUR, "mask": MASK},
        }

    def compare(
        self,
        reference: Any,
        images: Any,
        window: spectrum.Window,
        above: float,
        colour: str = "all channels",
        mask: Tensor | None = None,
    ) -> dict[str, Any]:
        """Maps, share and table.

        Raises:
            SpectralError: the sets have different sizes.
        """
        sets = [
            measured.as_set(one, f"{name} of DFT Difference")
            for name, one in (("reference", reference), ("images", images))
        ]
        measured.check_alike(dict(zip(("reference", "images"), sets, strict=True)))
        _check_one_size(*sets)
        gray = measured.is_luma(colour, sets[0])
        paired = len(sets[0].planes) == len(sets[1].planes)
        done = measured.progress(sum(len(one.planes) for one in sets) + paired * len(sets[0].planes))
        found = spectrum.dft_difference(
            sets[0].planes, sets[1].planes, window=window, gray=gray, mask=sets[0].mask(mask), progress=done
        )
        share = found.high_share(above)
        unit = sets[0].unit
        said = f"{share:.2%} of the difference lies above {above:g} cycles per {unit}"
        chart = Chart(
            "DFT difference",
            measured.frequency_axis(1 / max(sets[0].planes.shape[-2:]), 0.5, unit),
            measured.power_axis(),
            _difference_views(found, unit),
            notes=[f"reference: {sets[0].about}; images: {sets[1].about}", said],
            drawn=(0, 1) if found.difference is not None else (0,),
        )
        return show.chart(chart, show.csv(DIFFERENCE_HEADER, _difference_rows(found)), {"high_share": share})


def _names(given: str, inputs: list[str]) -> list[str]:
    """What the sets are called.

    Raises:
        SpectralError: there are more or fewer names than sets, or one twice.
    """
    names = [name.strip() for name in given.split(",")] if given.strip() else inputs
    if len(names) != len(inputs) or len(set(names)) != len(names) or not all(names):
        raise SpectralError(
            f"names of Compare Spectra holds {len(names)} ({', '.join(names)}), and {len(inputs)} sets are connected; "
            "expected a name for each, all different, with commas between, or nothing at all."
        )
    return names


def _cycles(found: dict[str, RadialSpectrum], unit: str) -> Axis:
    """Cycles per image, which mean the same at every size; per pixel of the reference in other units."""
    reference = next(iter(found.values()))
    low = min(float(one.frequency[0]) * one.side for one in found.values())
    high = max(float(one.frequency[-1]) * one.side for one in found.values())
    units = (
        Unit("per image", "spatial frequency (cycles per image)", 1.0),
        Unit(f"per {unit}", f"spatial frequency (cycles per {unit} of the reference)", 1 / reference.side),
        Unit("of Nyquist", "spatial frequency (fraction of the reference's Nyquist frequency)", 2 / reference.side),
    )
    return Axis(units[0].label, log=True, toggle=True, low=0.9 * low, high=1.05 * high, units=units)


def _lines(found: dict[str, RadialSpectrum]) -> list[Series]:
    """Against cycles per image, as the squared amplitude that does not depend on the resolution."""
    made = []
    for name, colour in of_names(found).items():
        radial = found[name]
        line = measured.radial_line(f"{name} ({radial.images})", radial, colour, 1 / (radial.size[0] * radial.size[1]))
        made.append(Series(line.label, line.x * radial.side, line.y, line.low, line.high, colour=colour))
    return made


def _ratios(found: dict[str, RadialSpectrum]) -> list[Series]:
    (first, reference), *others = found.items()
    colours = of_names(found)
    cycles = (reference.frequency * reference.side).numpy()
    made = [Series(f"{first} ({reference.images})", cycles, np.ones_like(cycles), dashed=True, colour=colours[first])]
    for name, one in others:
        x, ratio = spectrum.log_ratio(reference, one)
        made.append(Series(f"{name} ({one.images})", x.numpy(), ratio.exp().numpy(), colour=colours[name]))
    return made


def _error_rows(
    found: dict[str, RadialSpectrum], errors: dict[str, BandErrors], distances: dict[str, float]
) -> Iterator[tuple[float | str, ...]]:
    for name, radial in found.items():
        try:
            law = spectrum.fit_power_law(radial)
            slope: tuple[float | str, float | str] = (law.alpha, law.alpha_error)
        except SpectralError:  # too small or too flat for a slope
            slope = ("", "")
        if name in errors:
            yield name, errors[name].low, errors[name].high, distances[name], *slope
        else:
            yield name, 0.0, 0.0, 0.0, *slope


def _check_one_size(reference: Set, images: Set) -> None:
    """Raise SpectralError unless both sets have one size and channels."""
    if reference.planes.shape[1:] != images.planes.shape[1:]:
        said = [f"{one.about} and {one.planes.shape[1]} channels" for one in (reference, images)]
        raise SpectralError(
            f"DFT Difference compares sets of one size: reference has {said[0]}, images have {said[1]}; resize one of "
            "them, or use Compare Spectra."
        )


def _difference_views(found: DFTDifference, unit: str) -> list[View]:
    """The ratio of the powers around its middle, and the difference of pairs from its largest."""
    size = (found.ratio.shape[0], found.ratio.shape[1])
    decades = views.reduced(found.ratio) / np.log(10)
    most = max(float(np.percentile(decades.abs().numpy(), 99)), 0.05)
    ratio = views.frequency_map(decades, size, "log10(power / power of reference)", -most, most, unit, diverging=True)
    made = [View(("more or less power",), map=ratio)]
    if found.difference is not None:
        difference = views.reduced(found.difference)
        logs = difference.clamp_min(float(difference.max()) * views.FLOOR + 1e-30).log10()
        low = float(np.percentile(logs.numpy(), 1))
        shown = views.frequency_map(logs, size, "power of the difference of pairs, log10", low, float(logs.max()), unit)
        made.append(View(("difference of pairs",), map=shown))
    return made


DIFFERENCE_HEADER = ("horizontal_cycles_per_pixel", "vertical_cycles_per_pixel", "ln_power_ratio", "pair_difference")


def _difference_rows(found: DFTDifference) -> Iterator[tuple[float | str, ...]]:
    """The half of the plane that the other mirrors, upper rows first; −½ stands for ½ where there is one."""
    height, width = found.ratio.shape
    vertical = torch.fft.fftshift(torch.fft.fftfreq(height, dtype=torch.float64)).tolist()
    horizontal = torch.fft.fftshift(torch.fft.fftfreq(width, dtype=torch.float64)).tolist()
    pairs = [[""] * width] * height if found.difference is None else found.difference.tolist()
    ratio = found.ratio.tolist()
    columns = [*([0] if width % 2 == 0 else []), *range(width // 2, width)]
    for row, column in itertools.product(range(height), columns):
        yield horizontal[column], vertical[row], ratio[row][column], pairs[row][column]
