"""Weights on wavelet bands against PyWavelets' transforms of several levels, and what they do to waves."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import pywt
import torch
from numpy.typing import NDArray
from torch import Tensor

from spectral_diffusion.spectral import bands
from spectral_diffusion.spectral.bands import BandWeights
from spectral_diffusion.spectral.errors import SpectralError

SIZES = [(64, 64), (17, 33), (8, 5), (1, 7), (1, 1)]


def weights(levels: int) -> BandWeights:
    """All different."""
    each = tuple((1.5 + level, 0.25 * level, -0.5 - level) for level in range(levels))
    return BandWeights(each, 0.7)


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


def oracle(x: Tensor, given: BandWeights, wavelet: str, mode: str) -> NDArray[np.float64]:
    """pywt's transform of several levels with its coefficients multiplied, and back."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of more levels than the size deserves
        low, *details = pywt.wavedec2(x.numpy(), wavelet, mode, level=len(given.levels))
    scaled = [
        tuple(factor * band for factor, band in zip(factors, found, strict=True))
        for factors, found in zip(reversed(given.levels), details, strict=True)
    ]
    made: NDArray[np.float64] = pywt.waverec2([given.low * low, *scaled], wavelet, mode)
    return made[..., : x.shape[-2], : x.shape[-1]]


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
@pytest.mark.parametrize("mode", ["symmetric", "periodization", "zero"])
@pytest.mark.parametrize("wavelet", ["haar", "db2", "bior2.2", "sym4", "db10"])
@pytest.mark.parametrize("levels", [1, 3, 5])
def test_equals_pywt_with_weighted_coefficients(levels: int, wavelet: str, mode: str, size: tuple[int, int]) -> None:
    x, given = noise(2, 3, *size), weights(levels)
    expected = oracle(x, given, wavelet, mode)
    np.testing.assert_allclose(bands.weigh(x, given, wavelet, mode), expected, atol=1e-9)
    np.testing.assert_allclose(bands.change(x, given, wavelet, mode), expected - x.numpy(), atol=1e-9)


def test_every_discrete_wavelet_is_taken() -> None:
    x, given, plain = noise(1, 21, 16), weights(2), BandWeights(((1.0, 1.0, 1.0),) * 2)
    for wavelet in pywt.wavelist(kind="discrete"):
        found = bands.weigh(x, given, wavelet)
        # Not all of them reconstruct perfectly (dmey is cut off); neutral weights must leave x alone all the same.
        missed = float(np.abs(oracle(x, plain, wavelet, "symmetric") - x.numpy()).max())
        expected = oracle(x, given, wavelet, "symmetric")
        np.testing.assert_allclose(found, expected, atol=1e-9 + 10 * missed, err_msg=wavelet)


def test_frames_and_channels_are_independent() -> None:
    video, given = noise(2, 4, 3, 16, 12), weights(3)
    whole = bands.weigh(video, given, "db2")
    for frame in range(3):
        torch.testing.assert_close(whole[:, :, frame], bands.weigh(video[:, :, frame], given, "db2"))


def test_weights_of_one_change_nothing_at_all() -> None:
    x = noise(1, 4, 9, 9).float()
    neutral = BandWeights(((1.0, 1.0, 1.0),) * 5)
    assert neutral.neutral
    assert bands.weigh(x, neutral) is x
    assert not bands.change(x, neutral).any()


@pytest.mark.parametrize("side", [32, 48, 64, 65, 128])
@pytest.mark.parametrize("level", [1, 2, 3])
def test_a_level_is_an_octave_in_cycles_per_pixel_at_every_size(level: int, side: int) -> None:
    """A wave in the middle of a level's octave is kept by that level alone, and as much of it at every size."""
    frequency = 2.0 ** -(level + 0.5)
    wave = torch.cos(2 * math.pi * frequency * torch.arange(side, dtype=torch.float64) + 0.3).expand(side, side)
    share = [float(kept(wave, one).square().mean() / wave.square().mean()) for one in range(1, 6)]
    assert share[level - 1] / sum(share) > 0.85
    assert max(share[: level - 1] + share[level:]) < 0.1


def kept(x: Tensor, level: int) -> Tensor:
    """What x holds in one of five levels."""
    each = tuple((float(one == level),) * 3 for one in range(1, 6))
    return bands.weigh(x, BandWeights(each, 0.0), "sym8")  # type: ignore[arg-type]


@pytest.mark.parametrize(("axis", "orientation"), [(-2, 0), (-1, 1)])
def test_stripes_lie_in_the_orientation_of_their_lines(axis: int, orientation: int) -> None:
    """Horizontal lines change from row to row: axis −2."""
    line = torch.tensor([1.0, -1.0]).repeat(8)
    stripes = (line[:, None] if axis == -2 else line[None, :]).expand(16, 16).contiguous()
    without = [tuple(0.0 if index == one else 1.0 for index in range(3)) for one in range(3)]
    removed = [bands.weigh(stripes, BandWeights((factors,))) for factors in without]  # type: ignore[arg-type]
    for index, found in enumerate(removed):
        torch.testing.assert_close(found, torch.zeros_like(stripes) if index == orientation else stripes)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    x, given = noise(1, 4, 32, 32).to(dtype), weights(4)
    found = bands.change(x, given)
    assert found.dtype == dtype
    torch.testing.assert_close(found, bands.change(x.float(), given).to(dtype))


def test_what_cannot_be_is_refused_in_a_sentence() -> None:
    with pytest.raises(SpectralError, match="6 levels; expected 1 to 5"):
        weights(6)
    with pytest.raises(SpectralError, match="at least one row and column"):
        bands.change(torch.zeros(1, 4, 0, 3), weights(1))
    with pytest.raises(SpectralError, match="Unknown wavelet 'morlet'"):
        bands.change(torch.zeros(4, 4), weights(1), "morlet")
