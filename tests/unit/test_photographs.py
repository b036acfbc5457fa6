"""Photographs have spectra near 1/f²; the emoji of the kit are steeper. The pictures come from a Debian package."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from spectral_diffusion.spectral import spectrum
from spectral_diffusion.training.spectrum import spectrum_of

PACKAGE = "endless-sky-data"  # landscapes of 720×360, public domain and CC-BY-SA


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        pytest.skip("the photographs lie in a Debian package, and this is no Debian")
    folder = tmp_path_factory.mktemp("photographs")
    subprocess.run(["apt-get", "download", "-qq", PACKAGE], cwd=folder, check=True, timeout=300)
    (package,) = folder.glob("*.deb")
    subprocess.run(["dpkg-deb", "-x", package, folder], check=True, timeout=300)
    return sorted(folder.glob("**/images/land/*.jpg"))


def squares(files: list[Path], side: int) -> Iterator[Tensor]:
    """The middle 256×256 pixels of each, resized."""
    for file in files:
        image = Image.open(file).convert("RGB")
        left, top = (image.width - 256) // 2, (image.height - 256) // 2
        cut = image.crop((left, top, left + 256, top + 256)).resize((side, side), Image.Resampling.LANCZOS)
        yield torch.from_numpy(np.array(cut)).movedim(-1, 0)[None].float() / 255


@pytest.mark.long
def test_photographs_are_near_two_and_emoji_are_steeper(photographs: list[Path]) -> None:
    assert len(photographs) > 200
    law = spectrum.fit_power_law(spectrum.radial_spectrum(squares(photographs, 256)))
    assert law.alpha == pytest.approx(2.15, abs=0.15)
    assert law.alpha_error < 0.1
    small = spectrum.fit_power_law(spectrum.radial_spectrum(squares(photographs, 64)))
    emoji = spectrum.fit_power_law(spectrum_of(["emoji64"]))
    assert emoji.alpha > small.alpha + 0.3
