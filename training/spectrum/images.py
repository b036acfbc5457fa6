"""The `spectrum` command: the radial power spectrum and slope of images, or the band errors between two sets."""

from __future__ import annotations

import math
import tarfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

import torch
from PIL import Image
from torch import Tensor

from ...spectral.errors import SpectralError
from ...spectral.spectrum import RadialSpectrum, Window, band_errors, default_bins, fit_power_law, radial_spectrum
from .. import cli
from ..data.dataset import EMOJI64
from ..decoding import SUFFIXES, T, decode, files_in, floats

SMALLEST_SIDE = 16  # pixels; below that nothing is left between 4 cycles per image and 3/8 cycles per pixel


def measure(
    paths: Sequence[str] = (),
    compare: Sequence[str] | None = None,
    cutoff: float = 28.0,
    window: Window = "hann",
    gray: bool = False,
    low: float | None = None,
    high: float = 0.375,
    plot: Path | None = None,
) -> dict[str, Any]:
    """Measure the radial power spectrum of images, or how far two sets are apart below and above a cut-off.

    Images of different sizes are averaged on the same frequencies in cycles per pixel, in as many rings as the
    smallest has; every image counts the same. Transparent parts are put over white.

    Args:
        paths: images, folders of images (searched to the bottom) and .tar shards; emoji64 is the set of the kit.
        compare: two such places instead of `paths`: the reference (real images) and what is measured against it.
        cutoff: where the low band ends and the high one begins, in cycles per image.
        window: hann, or none for images that repeat without a seam.
        gray: measure the luma instead of the mean over red, green and blue.
        low: lower end of the slope's range in cycles per pixel; null means 4 cycles per image.
        high: upper end of the slope's range in cycles per pixel; 0.5 is the Nyquist frequency.
        plot: also draw the spectra into this file (.png, .svg or .pdf).

    Returns:
        {"alpha", "alpha_error", "radial": {"cycles_per_pixel", "power", "count", "std"}, "images", "size"}; comparing,
        {"low_error", "high_error", "cutoff", "reference": {…}, "other": {…}} with such an object for each set.
        Numbers that do not exist (the std of one image, the slope of a flat one) are None.

    Raises:
        SpectralError: a path that is not there, holds no image or an unreadable one, or a range without frequencies.
    """
    places = _places(paths, compare)
    if plot is not None:
        from ..figures import check_figure_path

        check_figure_path(plot)
    measured = {
        name: spectrum_of(where, window=window, gray=gray, one_size=bool(compare)) for name, where in places.items()
    }
    sets = list(measured.values())
    report = _comparison(sets[0], sets[1], cutoff, low, high) if compare else _report(sets[0], low, high)
    if plot is not None:
        from ..figures import plot_radial_spectra

        plot_radial_spectra(measured, plot, cutoff=cutoff if compare else None)
    return report


def spectrum_of(
    paths: Sequence[str], *, window: Window = "hann", gray: bool = False, one_size: bool = False
) -> RadialSpectrum:
    """The radial spectrum of every image under the given paths; one image is in memory at a time.

    With `one_size`, images of different sizes are refused: a cycle per image would be another frequency in each.

    Raises:
        SpectralError: as `measure`.
    """
    with ExitStack() as archives:
        pictures = [picture for path in paths for picture in _find(path, archives)]
        sizes = [picture.size() for picture in pictures]
        if one_size and (other := next((own for own in sizes if own != sizes[0]), None)):
            (height, width), picture = other, pictures[sizes.index(other)]
            raise SpectralError(
                f"{picture.name} is {width}×{height} pixels, others of its set {sizes[0][1]}×{sizes[0][0]}; to compare "
                "in cycles per image, bring the images of a set to one size."
            )
        bins = min(default_bins(*size) for size in sizes)
        return radial_spectrum((picture.load() for picture in pictures), bins=bins, window=window, gray=gray)


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
    if len(compare) != 2:
        raise SpectralError(f"--compare takes two sets, the reference and the other, not {len(compare)}.")
    names = [Path(path).stem for path in compare]
    if names[0] == names[1]:
        names = [str(path) for path in compare] if compare[0] != compare[1] else [names[0], f"{names[0]} (again)"]
    return {name: [path] for name, path in zip(names, compare, strict=True)}


def _comparison(
    reference: RadialSpectrum, other: RadialSpectrum, cutoff: float, low: float | None, high: float
) -> dict[str, Any]:
    errors = band_errors(reference, other, cutoff)
    return {
        "low_error": errors.low,
        "high_error": errors.high,
        "cutoff": cutoff,
        "reference": _report(reference, low, high),
        "other": _report(other, low, high),
    }


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


@dataclass(frozen=True)
class _Picture:
    """An image that is on disk: where it is, and how to open it."""

    name: str
    open: Callable[[], IO[bytes]]

    def size(self) -> tuple[int, int]:
        """(height, width) from the header."""
        width, height = self._decoded(lambda image: image.size)
        if min(width, height) < SMALLEST_SIDE:
            raise SpectralError(
                f"{self.name} is {width}×{height} pixels: a spectrum needs {SMALLEST_SIDE} or more on each side; "
                "leave it out."
            )
        return height, width

    def load(self) -> Tensor:
        """[1, 3, H, W] in [0, 1]."""
        return torch.from_numpy(self._decoded(floats)).movedim(-1, 0)[None]

    def _decoded(self, read: Callable[[Image.Image], T]) -> T:
        return decode(self.open, self.name, read)


def _find(path: str, archives: ExitStack) -> list[_Picture]:
    place = EMOJI64 if path == "emoji64" else Path(path)
    if not place.exists():
        raise SpectralError(f"No images at {place}: expected an image, a folder of images or a .tar shard.")
    if place.is_dir():
        found = [_on_disk(file) for file in files_in(place)]
    elif place.suffix.lower() == ".tar":
        found = list(_members(place, archives))
    else:
        return [_on_disk(place)]
    if not found:
        raise SpectralError(f"{place} holds no images: expected {', '.join(sorted(SUFFIXES))} files.")
    return found


def _on_disk(file: Path) -> _Picture:
    return _Picture(str(file), lambda: file.open("rb"))


def _members(shard: Path, archives: ExitStack) -> Iterator[_Picture]:
    try:
        archive = archives.enter_context(tarfile.open(shard, "r:"))  # noqa: SIM115
        members = sorted((m for m in archive if m.isfile()), key=lambda member: member.name)
    except (tarfile.TarError, OSError) as error:
        raise SpectralError(
            f"{shard} cannot be read as a tar shard ({error}); replace it by a complete one."
        ) from error
    for member in members:
        if Path(member.name).suffix.lower() in SUFFIXES:
            yield _Picture(f"{shard}:{member.name}", partial(archive.extractfile, member))  # type: ignore[arg-type]


def main(argv: Sequence[str]) -> None:
    """The command `spectrum`."""
    parser = cli.Parser("spectrum", __doc__)
    parser.add_argument("paths", nargs="*", help="images, folders of images, .tar shards, or emoji64")
    parser.add_argument("--compare", nargs=2, metavar=("REFERENCE", "OTHER"), help="two such places, to compare them")
    parser.add_argument("--cutoff", type=float, default=28.0, help="between low and high band, in cycles per image")
    parser.add_argument("--window", choices=["hann", "none"], default="hann", help="none: for images without a seam")
    parser.add_argument("--gray", action="store_true", help="measure the luma instead of the mean over the colours")
    parser.add_argument("--low", type=float, help="lower end of the slope's range, cycles per pixel (4 per image)")
    parser.add_argument("--high", type=float, default=0.375, help="upper end of it; 0.5 is the Nyquist frequency")
    parser.add_argument("--plot", type=Path, help="also draw the spectra into this .png, .svg or .pdf")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = vars(parser.parse_args(argv))
    as_json = arguments.pop("json")
    result = measure(**arguments)
    if not as_json:
        result = {key: value for key, value in result.items() if not isinstance(value, dict)}
    cli.report(result, as_json)
