"""Aliasing: what a grid of pixels makes of frequencies above half a cycle per pixel (Nyquist).

A wave of f cycles per pixel, sampled once a pixel, is found at |f − round(f)|. A picture of which every fourth pixel of
every fourth row is picked lacks what lay above the new Nyquist frequency, and has its power at lower frequencies; a
filter before the picking takes it away.
"""

from __future__ import annotations

import math
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ...spectral.errors import SpectralError
from ...spectral.spectrum import RadialSpectrum, radial_spectrum
from .. import cli
from ..data.dataset import EMOJI64
from ..decoding import decode, rgb
from ..figures import check_figure_path
from .process import in_short

POINTS = 1000  # pixels that a wave is sampled at: a bin of its DFT is 0.001 cycles per pixel wide
HIGHEST, FREQUENCIES = 2.0, 601  # cycles per pixel; how many waves from 0 to there, most of them between two bins
FACTOR = 4  # two halvings
SMALLEST_SIDE = 16 * FACTOR  # pixels
SHEET = 8  # the picture of the kit is this many emoji high and wide


def folded(frequency: Tensor) -> Tensor:
    """Where a wave of this frequency (cycles per pixel) is found once it is sampled: |f − round(f)|, 0 … 0.5."""
    return (frequency - frequency.round()).abs()


def found_frequency(frequency: Tensor) -> Tensor:
    """The frequency [N] of the largest DFT magnitude of cos(2πfn), n = 0 … 999, for each f of [N] float64."""
    waves = torch.cos(2 * math.pi * frequency[:, None] * torch.arange(POINTS, dtype=torch.float64))
    return torch.fft.rfft(waves).abs().argmax(1).double() / POINTS


def emoji_sheet() -> Image.Image:
    """8×8 emoji of the kit's data set, 512×512 pixels."""
    sheet = Image.new("RGB", (64 * SHEET, 64 * SHEET))
    with tarfile.open(EMOJI64) as archive:
        names = sorted(name for name in archive.getnames() if name.endswith(".webp"))
        for place, name in enumerate(names[:: len(names) // SHEET**2][: SHEET**2]):
            emoji = Image.open(archive.extractfile(name))  # type: ignore[arg-type]
            sheet.paste(emoji, (64 * (place % SHEET), 64 * (place // SHEET)))
    return sheet


def halved_twice(picture: Image.Image) -> dict[str, Tensor]:
    """A picture in grey, [1, 1, H, W] in [0, 1]: the scene, every fourth pixel picked, and resized by Lanczos' filter.

    Rows and columns beyond a multiple of four are cut off.
    """
    scene = picture.crop((0, 0, picture.width // FACTOR * FACTOR, picture.height // FACTOR * FACTOR)).convert("F")
    small = scene.resize((scene.width // FACTOR, scene.height // FACTOR), Image.Resampling.LANCZOS)
    pixels = {"scene": np.asarray(scene), "filtered": np.asarray(small)}
    pixels["picked"] = pixels["scene"][::FACTOR, ::FACTOR]
    return {name: torch.from_numpy(values / 255.0).float()[None, None] for name, values in pixels.items()}


def amplitudes(rings: RadialSpectrum, scene_side: float) -> tuple[Tensor, Tensor]:
    """Frequency in cycles per pixel of the scene, and squared Fourier amplitude |DFT/(HW)|², which no size changes."""
    return rings.frequency * rings.side / scene_side, rings.power / math.prod(rings.size)


def run(image: Path | None = None, out: Path | None = None) -> dict[str, Any]:
    """Fold waves, halve a picture twice in two ways, and draw both.

    Args:
        image: a picture of 64 pixels or more on each side; None takes a sheet of emoji.
        out: the figure; None draws none.

    Returns:
        `largest_deviation` of a found frequency from |f − round(f)| in cycles per pixel, half a bin (0.0005) at most;
        `power_above`, the share of the scene's power above the new Nyquist frequency of an eighth of a cycle per pixel;
        `low_power_picked`, `low_power_filtered`, `high_power_picked`, `high_power_filtered`, the power below and above
        half that Nyquist frequency over that of the scene there.

    Raises:
        SpectralError: a picture that cannot be read, or is too small or of one colour.
    """
    frequency = torch.linspace(0, HIGHEST, FREQUENCIES, dtype=torch.float64)
    found = found_frequency(frequency)
    pictures = halved_twice(emoji_sheet() if image is None else _opened(image))
    spectra = {name: radial_spectrum(x) for name, x in pictures.items()}
    if not spectra["scene"].power.any():
        raise SpectralError(f"{image} is of one colour; choose a picture with details.")
    result: dict[str, Any] = {"largest_deviation": (found - folded(frequency)).abs().max().item()} | bands(spectra)
    if out is not None:
        from .figures import draw_aliasing

        draw_aliasing(frequency, found, pictures, spectra, result, out)
    return result


def bands(spectra: dict[str, RadialSpectrum]) -> dict[str, float]:
    """The powers that `run` returns, sums over all frequencies of a band, of the three spectra of `halved_twice`."""
    nyquist = 0.5 / FACTOR
    sums: dict[str, dict[str, float]] = {}
    for name, rings in spectra.items():
        frequency, amplitude = amplitudes(rings, spectra["scene"].side)
        total = amplitude * rings.count
        low, high = frequency < nyquist / 2, (frequency >= nyquist / 2) & (frequency < nyquist)
        sums[name] = {"low": total[low].sum().item(), "high": total[high].sum().item(), "all": total.sum().item()}
    scene = sums["scene"]
    result = {"power_above": 1 - (scene["low"] + scene["high"]) / scene["all"]}
    for band in ("low", "high"):
        result |= {f"{band}_power_{name}": sums[name][band] / scene[band] for name in ("picked", "filtered")}
    return result


def _opened(path: Path) -> Image.Image:
    picture = decode(lambda: path.open("rb"), str(path), rgb)
    if min(picture.size) < SMALLEST_SIDE:
        raise SpectralError(
            f"{path} is {picture.width}×{picture.height} pixels; expected {SMALLEST_SIDE} or more on each side."
        )
    return picture


def main(argv: Sequence[str]) -> None:
    """The command `spectrum aliasing`."""
    parser = cli.Parser("spectrum aliasing", __doc__)
    parser.add_argument("--image", type=Path, help="a picture to halve twice (a sheet of emoji)")
    parser.add_argument("--out", type=Path, default=Path("aliasing.png"), help="the figure: .png, .svg or .pdf")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args(argv)
    check_figure_path(arguments.out)
    result = run(arguments.image, arguments.out) | {"figure": str(arguments.out)}
    cli.report(result if arguments.json else in_short(result), arguments.json)


if __name__ == "__main__":
    sys.exit(cli.run(main))
