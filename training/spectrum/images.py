"""The `spectrum` command: the radial power spectrum and slope of images, or the band errors between two sets."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...spectral.errors import SpectralError
from ...spectral.spectrum import (
    RadialSpectrum,
    Window,
    band_errors,
    default_bins,
    fit_power_law,
    radial_spectrum,
    spectral_distance,
)
from .. import cli
from . import pictures

MOST = 8  # sets that can be compared: as many as there are colours


def measure(
    paths: Sequence[str] = (),
    compare: Sequence[str] | None = None,
    cutoff: float = 28.0,
    window: Window = "hann",
    gray: bool = False,
    low: float | None = None,
    high: float = 0.375,
    plot: Path | None = None,
    mask: Path | None = None,
) -> dict[str, Any]:
    """Measure the radial power spectrum of images, or how far two sets are apart below and above a cut-off.

    Images of different sizes are averaged on the same frequencies in cycles per pixel, in as many rings as the
    smallest has; every image counts the same. Transparent parts are put over white.

    Args:
        paths: images, folders of images (searched to the bottom) and .tar shards; emoji64 is the set of the kit.
        compare: two such places or more instead of `paths`: the reference (real images) and what is measured against
            it, each perhaps as NAME=PATH.
        cutoff: where the low band ends and the high one begins, in cycles per image.
        window: hann, or none for images that repeat without a seam.
        gray: measure the luma instead of the mean over red, green and blue.
        low: lower end of the slope's range in cycles per pixel; null means 4 cycles per image.
        high: upper end of the slope's range in cycles per pixel; 0.5 is the Nyquist frequency.
        plot: also draw the spectra into this file (.png, .svg or .pdf).
        mask: an image whose white parts alone are measured, of the images' size.

    Returns:
        {"alpha", "alpha_error", "radial": {"cycles_per_pixel", "power", "count", "std"}, "images", "size"}; comparing,
        {"low_error", "high_error", "distance_db", "cutoff", "reference": {…}, "other": {…}} with such an object for
        each set; of more than two sets also {"sets": {name: {…}}}, and "other" is the second.
        Numbers that do not exist (the std of one image, the slope of a flat one) are None.

    Raises:
        SpectralError: a path that is not there, holds no image or an unreadable one, or a range without frequencies.
    """
    places = _places(paths, compare)
    if plot is not None:
        from ..figures import check_figure_path

        check_figure_path(plot)
    measured = {
        name: spectrum_of(where, window=window, gray=gray, one_size=bool(compare), mask=mask)
        for name, where in places.items()
    }
    report = _comparison(measured, cutoff, low, high) if compare else _report(next(iter(measured.values())), low, high)
    if plot is not None:
        from ..figures import plot_radial_spectra

        plot_radial_spectra(measured, plot, cutoff=cutoff if compare else None, title=_title(report, bool(compare)))
    return report


def spectrum_of(
    paths: Sequence[str],
    *,
    window: Window = "hann",
    gray: bool = False,
    one_size: bool = False,
    mask: Path | None = None,
) -> RadialSpectrum:
    """The radial spectrum of every image under the given paths; one image is in memory at a time.

    With `one_size` or a mask, images of different sizes are refused: a cycle per image would be another frequency in
    each, and a mask would not fit.

    Raises:
        SpectralError: as `measure`.
    """
    with pictures.opened(paths) as found:
        if one_size or mask is not None:
            pictures.one_size(found)
        bins = min(default_bins(*picture.size()) for picture in found)
        said = Path(paths[0]).name if len(paths) == 1 else "images"
        weights = pictures.mask_of(mask)
        return radial_spectrum(pictures.batches(found, said), bins=bins, window=window, gray=gray, mask=weights)


def _title(report: dict[str, Any], compared: bool) -> str:
    """What a figure says above the curves."""
    if compared:
        return f"Radial power spectra: error {report['low_error']:.3f} below and {report['high_error']:.3f} above"
    if report["alpha"] is None:
        return "Radial power spectrum"
    error = "" if report["alpha_error"] is None else f" ± {report['alpha_error']:.2f}"
    return f"Radial power spectrum, 1/f^α with α = {report['alpha']:.2f}{error}"


def _places(paths: Sequence[str], compare: Sequence[str] | None) -> dict[str, list[str]]:
    """Which paths belong to which set, by the name that the set has in the figure."""
    if compare and paths:
        raise SpectralError("Give either images to measure, or --compare with two sets, not both.")
    if not compare:
        if not paths:
            raise SpectralError(
                "No images to measure: give images, folders or .tar shards, or --compare with two sets."
            )
        return {"images" if len(paths) > 1 else Path(paths[0]).stem: list(paths)}
    if not 2 <= len(compare) <= MOST:
        raise SpectralError(
            f"--compare takes two sets, the reference and the other, or up to {MOST}, not {len(compare)}."
        )
    named: dict[str, list[str]] = {}
    for given in compare:
        name, path = _named(given)
        again = 2
        while name in named:
            name, again = (str(path), again) if str(path) not in named else (f"{path} ({again})", again + 1)
        named[name] = [path]
    return named


def _named(given: str) -> tuple[str, str]:
    """What a set is called and where it lies: of NAME=PATH both, else the path's own name; a path may hold a =."""
    name, _, path = given.partition("=")
    return (name, path) if path and not Path(given).exists() else (Path(given).stem, given)


def _comparison(sets: dict[str, RadialSpectrum], cutoff: float, low: float | None, high: float) -> dict[str, Any]:
    """How far each set is from the first; the two-set keys are those of the second."""
    (first, reference), *others = sets.items()
    found = {}
    for name, other in others:
        errors = band_errors(reference, other, cutoff)
        distance = spectral_distance(reference, other)
        found[name] = {"low_error": errors.low, "high_error": errors.high, "distance_db": distance}
    second, other = others[0]
    made: dict[str, Any] = {**found[second], "cutoff": cutoff}
    made |= {"reference": _report(reference, low, high), "other": _report(other, low, high)}
    if len(others) > 1:
        more = {name: found[name] | _report(sets[name], low, high) for name, _ in others}
        made["sets"] = {first: _report(reference, low, high), **more}
        made |= {f"{name} {key}": value for name, errors in found.items() for key, value in errors.items()}
    return made


def _report(rings: RadialSpectrum, low: float | None, high: float) -> dict[str, Any]:
    law = fit_power_law(rings, low, high) if rings.power.any() else None
    return {
        "alpha": law and law.alpha,
        "alpha_error": law.alpha_error if law and math.isfinite(law.alpha_error) else None,
        "radial": {
            "cycles_per_pixel": rings.frequency.tolist(),
            "power": rings.power.tolist(),
            "count": rings.count.tolist(),
            "std": None if rings.std is None else rings.std.tolist(),
        },
        "images": rings.images,
        "size": list(rings.size),
    }


def main(argv: Sequence[str]) -> None:
    """The command `spectrum`."""
    parser = cli.Parser("spectrum", __doc__)
    parser.add_argument("paths", nargs="*", help="images, folders of images, .tar shards, or emoji64")
    parser.add_argument(
        "--compare", nargs="+", metavar="SET", help=f"2 to {MOST} such places, the reference first; NAME=PATH names one"
    )
    parser.add_argument("--cutoff", type=float, default=28.0, help="between low and high band, in cycles per image")
    parser.add_argument("--window", choices=["hann", "none"], default="hann", help="none: for images without a seam")
    parser.add_argument("--gray", action="store_true", help="measure the luma instead of the mean over the colours")
    parser.add_argument("--low", type=float, help="lower end of the slope's range, cycles per pixel (4 per image)")
    parser.add_argument("--high", type=float, default=0.375, help="upper end of it; 0.5 is the Nyquist frequency")
    parser.add_argument("--mask", type=Path, help="an image of their size: white is measured, black left out")
    parser.add_argument("--plot", type=Path, help="also draw the spectra into this .png, .svg or .pdf")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = vars(parser.parse_args(argv))
    as_json = arguments.pop("json")
    result = measure(**arguments)
    if not as_json:
        result = {key: value for key, value in result.items() if not isinstance(value, dict)}
    cli.report(result, as_json)
