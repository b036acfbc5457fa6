"""Masks, confidence, directions, wavelet bands and two sets compared: against scipy, pywt and closed forms."""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import pywt
import torch
from scipy import stats
from torch import Tensor

from spectral_diffusion.spectral import spectrum
from spectral_diffusion.spectral.errors import SpectralError
from spectral_diffusion.spectral.spectrum import confidence, planes

from .test_spectrum import noise, power_law_field, sinusoid, size_id

ODD_SIZES = [(16, 16), (31, 17), (24, 40), (13, 13)]


# --- masks ---


@pytest.mark.parametrize("shape", [(20, 30), (4, 20, 30), (4, 1, 20, 30), (1, 1, 20, 30)], ids=str)
@pytest.mark.parametrize("window", ["hann", "none"])
def test_a_mask_of_ones_changes_nothing(shape: tuple[int, ...], window: spectrum.Window) -> None:
    x, mask = noise(4, 3, 20, 30).float(), torch.ones(shape)
    assert torch.equal(spectrum.power_spectrum(x, window=window, mask=mask), spectrum.power_spectrum(x, window=window))
    plain, masked = (spectrum.radial_spectrum(x, window=window, mask=one) for one in (None, mask))
    assert torch.equal(plain.power, masked.power)
    assert torch.equal(
        spectrum.mean_power_spectrum(x, window=window, mask=mask), spectrum.mean_power_spectrum(x, window=window)
    )


def disc(height: int, width: int, softness: float = 6.0) -> Tensor:
    """A soft-edged disc in [0, 1] that leaves the border out."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
    return (softness * (0.8 - torch.hypot(y, x))).clamp(0, 1).double()


@pytest.mark.parametrize("window", ["hann", "none"])
def test_the_power_lost_to_a_mask_is_made_up_for(window: spectrum.Window) -> None:
    """White noise of variance 0.04 has that mean power through any window and mask."""
    x = 0.2 * noise(200, 1, 32, 48) + 3
    rings = spectrum.radial_spectrum(x, window=window, mask=disc(32, 48))
    filled = rings.power[rings.frequency > 3 / 32]
    torch.testing.assert_close(filled, torch.full_like(filled, 0.04), rtol=0.06, atol=0)


def test_what_a_mask_leaves_out_is_not_measured() -> None:
    x = noise(2, 3, 24, 24)
    other = torch.where(disc(24, 24) > 0, x, 7.0)
    for given in ({}, {"window": "none"}):
        found = [spectrum.radial_spectrum(one, mask=disc(24, 24), **given).power for one in (x, other)]  # type: ignore[arg-type]
        torch.testing.assert_close(found[0], found[1])


def test_each_image_has_its_own_mask() -> None:
    x, masks = noise(3, 2, 16, 20), torch.stack([disc(16, 20), torch.ones(16, 20).double(), disc(16, 20, 2.0)])
    together = spectrum.radial_profiles(x, mask=masks)
    for index in range(3):
        alone = spectrum.radial_profiles(x[index : index + 1], mask=masks[index])
        torch.testing.assert_close(together[index : index + 1], alone, equal_nan=True)


@pytest.mark.parametrize(
    ("mask", "says"),
    [
        (torch.ones(8, 9), "height and width"),
        (torch.ones(2, 8, 8), "one for each of them"),
        (torch.full((8, 8), 1.5), "beyond 0 and 1"),
        (torch.full((8, 8), float("nan")), "beyond 0 and 1"),
        (torch.zeros(8, 8), "leaves nothing"),
    ],
    ids=["size", "count", "range", "nan", "empty"],
)
def test_a_mask_that_does_not_fit_is_a_sentence(mask: Tensor, says: str) -> None:
    with pytest.raises(SpectralError, match=says):
        spectrum.radial_spectrum(torch.rand(3, 3, 8, 8), mask=mask)


# --- averages, progress ---


@pytest.mark.parametrize("size", ODD_SIZES, ids=size_id)
def test_the_mean_spectrum_is_the_mean_of_the_spectra(size: tuple[int, int]) -> None:
    x = noise(5, 3, *size)
    expected = spectrum.power_spectrum(x).mean((0, 1))
    expected[0, 0] = spectrum.mean_power_spectrum(x)[0, 0]  # rounding noise in both: DC was taken away
    torch.testing.assert_close(spectrum.mean_power_spectrum(x), expected)
    grey = spectrum.power_spectrum(spectrum.luma(x)).mean((0, 1))
    torch.testing.assert_close(spectrum.mean_power_spectrum(x, gray=True)[1:], grey[1:])


def test_progress_counts_every_image_and_can_interrupt() -> None:
    x, done = torch.rand(7, 3, 600, 700), list[int]()
    spectrum.radial_spectrum(iter([x[:4], x[4:]]), progress=done.append)
    assert sum(done) == 7
    assert len(done) > 2, "told of chunks, not of the whole"

    def stop(_count: int) -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        spectrum.radial_spectrum(x, progress=stop)


@pytest.mark.parametrize("measure", [spectrum.radial_spectrum, spectrum.oriented_spectrum, spectrum.band_energies])
def test_batches_are_forgotten_once_they_are_measured(measure: Any) -> None:
    alive: list[weakref.ref[Tensor]] = []

    def batches() -> Iterator[Tensor]:
        for _ in range(12):
            batch = torch.rand(2, 3, 32, 32)
            alive.append(weakref.ref(batch))
            yield batch
            del batch
            assert sum(one() is not None for one in alive) <= 1

    assert measure(batches()).images == 24


@pytest.mark.parametrize("size", ODD_SIZES, ids=size_id)
def test_how_images_lie_in_memory_changes_nothing(size: tuple[int, int]) -> None:
    x = noise(3, 3, *size)
    last = x.movedim(1, -1).contiguous().movedim(-1, 1)
    assert torch.equal(spectrum.radial_spectrum(x).power, spectrum.radial_spectrum(last).power)


# --- confidence ---


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 7, 30, 299, 5000])
@pytest.mark.parametrize("probability", [0.9, 0.975, 0.995])
def test_students_t_equals_scipys(freedom: int, probability: float) -> None:
    assert confidence.student_t(probability, freedom) == pytest.approx(stats.t.ppf(probability, freedom), rel=3e-3)


@pytest.mark.parametrize("probability", [0.025, 0.5, 0.975])
def test_chi_squared_equals_scipys(probability: float) -> None:
    freedom = torch.tensor([1.0, 2.0, 3.7, 12.0, 500.0], dtype=torch.float64)
    found = confidence.chi_squared(torch.full_like(freedom, probability), freedom)
    torch.testing.assert_close(found, torch.from_numpy(stats.chi2.ppf(probability, freedom.numpy())), rtol=1e-6, atol=0)


@pytest.mark.parametrize("window", ["hann", "none"])
@pytest.mark.parametrize("images", [1, 8])
def test_intervals_hold_the_expected_power_as_often_as_they_say(images: int, window: spectrum.Window) -> None:
    """Of white noise every ring's expected power is 1."""
    x = noise(240 * images, 1, 32, 32)
    hits, rings = 0, 0
    for start in range(0, len(x), images):
        low, high = spectrum.radial_spectrum(x[start : start + images], window=window).interval(0.9)
        hits += int(((low <= 1) & (high >= 1)).sum())
        rings += len(low)
    assert hits / rings == pytest.approx(0.9, abs=0.035)


# --- directions ---


@pytest.mark.parametrize("angle", [0.0, 30.0, 45.0, 90.0, 150.0])
def test_a_wave_lands_in_its_sector(angle: float) -> None:
    size, cycles = 96, 20
    columns, rows = round(cycles * math.cos(math.radians(angle))), round(cycles * math.sin(math.radians(angle)))
    found = spectrum.oriented_spectrum(sinusoid((rows / size, columns / size), (size, size)), sectors=12)
    sector, ring = divmod(int(found.power.nan_to_num().argmax()), found.power.shape[1])
    assert found.angle[sector] == pytest.approx(angle, abs=7.5)
    assert found.frequency[sector, ring] == pytest.approx(math.hypot(rows, columns) / size, abs=0.7 / size)


@pytest.mark.parametrize("size", [(64, 64), (33, 48)], ids=size_id)
def test_sectors_together_are_the_radial_spectrum(size: tuple[int, int]) -> None:
    x = noise(3, 2, *size)
    rings, sectors = spectrum.radial_spectrum(x), spectrum.oriented_spectrum(x, sectors=8)
    count = sectors.count.sum(0)
    assert torch.equal(count[count > 0], rings.count)
    whole = (sectors.power.nan_to_num() * sectors.count).sum(0)[count > 0] / rings.count
    torch.testing.assert_close(whole, rings.power)
    halves = spectrum.oriented_spectrum(iter([x[:1], x[1:]]), sectors=8)
    torch.testing.assert_close(halves.power, sectors.power, equal_nan=True)


def anisotropic_field(size: int, count: int) -> Tensor:
    """Gaussian fields of power A(θ) / f^α(θ): 4 / f³ within 45° of the rows' direction, 1 / f elsewhere."""
    rows, columns = np.fft.fftfreq(size)[:, None], np.fft.fftfreq(size)[None, :]
    frequency = np.hypot(rows, columns)
    frequency[0, 0] = np.inf
    along = np.abs(columns) > np.abs(rows)
    amplitude = np.sqrt(np.where(along, 4 / frequency**3, 1 / frequency))
    white = np.random.default_rng(3).standard_normal((count, 1, size, size))
    return torch.from_numpy(np.fft.ifft2(np.fft.fft2(white) * amplitude).real)


def test_the_power_law_of_each_direction_is_recovered() -> None:
    found = spectrum.oriented_spectrum(anisotropic_field(128, 60), sectors=12, window="none")
    for angle, law in zip(found.angle.tolist(), found.fits(), strict=True):
        if angle in (45.0, 135.0):
            continue  # half of either
        along = min(angle, 180 - angle) < 45
        assert law.alpha == pytest.approx(3 if along else 1, abs=max(0.05, 4 * law.alpha_error))
        expected = math.log(4 if along else 1)
        assert law.log_amplitude == pytest.approx(expected, abs=max(0.1, 4 * law.log_amplitude_error))


def test_too_many_directions_for_a_small_image_are_a_sentence() -> None:
    with pytest.raises(SpectralError, match="in the direction of .* degrees"):
        spectrum.oriented_spectrum(noise(1, 1, 16, 16), sectors=60).fits()
    with pytest.raises(SpectralError, match="number of directions is 1"):
        spectrum.oriented_spectrum(noise(1, 1, 16, 16), sectors=1)
    with pytest.raises(SpectralError, match="one pixel"):
        spectrum.oriented_spectrum(torch.zeros(1, 1, 1, 1))


# --- wavelet bands ---


@pytest.mark.filterwarnings("ignore:Level value of")  # PyWavelets' own, about small images
@pytest.mark.parametrize(("wavelet", "mode"), [("haar", "symmetric"), ("db3", "periodization"), ("bior2.2", "zero")])
@pytest.mark.parametrize("size", ODD_SIZES, ids=size_id)
def test_band_energies_equal_pywt(size: tuple[int, int], wavelet: str, mode: str) -> None:
    x = noise(3, 2, *size) + 1
    found = spectrum.band_energies(x, wavelet=wavelet, mode=mode, levels=2)
    low, *levels = pywt.wavedec2(x.numpy(), wavelet, mode, level=2)
    pixels = x.numel()
    assert found.low == pytest.approx((low**2).sum() / pixels)
    for level, detail in zip((2, 1), levels, strict=True):
        expected = [(band**2).sum() / pixels for band in detail]
        assert found.detail[level - 1].tolist() == pytest.approx(expected)


def test_orthonormal_bands_add_up_to_the_mean_square() -> None:
    x = noise(2, 3, 64, 32)
    found = spectrum.band_energies(iter([x[:1], x[1:]]), wavelet="db2", mode="periodization")
    assert found.levels == 4
    assert found.images == 2
    assert float(found.detail.sum()) + found.low == pytest.approx(x.square().mean().item())
    assert found.octave(1) == (0.25, 0.5)


@pytest.mark.parametrize(("cycles", "place"), [((0.4, 0.0), (0, 0)), ((0.0, 0.4), (0, 1)), ((0.08, 0.0), (2, 0))])
def test_a_wave_lands_in_its_band(cycles: tuple[float, float], place: tuple[int, int]) -> None:
    found = spectrum.band_energies(sinusoid(cycles), wavelet="db8", mode="periodization")
    assert divmod(int(found.detail.argmax()), 3) == place


# --- two sets ---


def test_the_distance_is_that_of_a_constant_factor() -> None:
    x = noise(4, 1, 48, 40)
    one, other = spectrum.radial_spectrum(x), spectrum.radial_spectrum(2 * x)
    assert spectrum.spectral_distance(one, other) == pytest.approx(10 * math.log10(4))
    assert spectrum.spectral_distance(one, one) == 0
    with pytest.raises(SpectralError, match=r"between 0\.9 and 1 "):
        spectrum.spectral_distance(one, other, 0.9, 1.0)


@pytest.mark.parametrize("swapped", [False, True])
def test_the_ratio_has_the_sign_of_the_other_set_at_any_size(swapped: bool) -> None:
    """The larger set is stronger by e² in amplitude squared."""
    small, large = power_law_field(2, (32, 32), 30), power_law_field(2, (64, 64), 30)
    a, b = spectrum.radial_spectrum(small), spectrum.radial_spectrum(large)
    unit = spectrum.log_ratio(b, a)[1].mean() if swapped else -spectrum.log_ratio(a, b)[1].mean()
    stronger = spectrum.radial_spectrum(math.e * large)
    given = (stronger, a) if swapped else (a, stronger)
    found = spectrum.log_ratio(*given)[1].mean() * (1 if swapped else -1)
    assert found - unit == pytest.approx(-2, abs=1e-3)


def test_the_dft_difference_equals_numpys() -> None:
    a, b = noise(4, 3, 20, 27, seed=1), noise(4, 3, 20, 27, seed=2)
    found = spectrum.dft_difference(a, b, window="none")

    def transform(x: Tensor) -> Any:
        return np.fft.fft2((x - x.mean((-2, -1), keepdim=True)).numpy())

    paired = (np.abs(transform(b) - transform(a)) ** 2).mean((0, 1)) / (20 * 27)
    assert found.difference is not None
    np.testing.assert_allclose(found.difference, np.fft.fftshift(paired), rtol=1e-9, atol=1e-20)
    with np.errstate(invalid="ignore"):
        ratio = np.log((np.abs(transform(b)) ** 2).mean((0, 1)) / (np.abs(transform(a)) ** 2).mean((0, 1)))
    ratio[0, 0] = 0
    np.testing.assert_allclose(found.ratio, np.fft.fftshift(ratio), rtol=1e-9, atol=1e-9)


def test_parseval_for_the_difference_and_its_share() -> None:
    a = noise(2, 1, 32, 32)
    b = a + sinusoid((0.25, 0.25), (32, 32)) + 0.5 * sinusoid((0.0, 0.125), (32, 32))
    found = spectrum.dft_difference(a, b, window="none")
    assert found.difference is not None
    assert float(found.difference.sum()) == pytest.approx((b - a).square().sum((-2, -1)).mean().item())
    assert found.high_share(0.3) == pytest.approx(0.5 / (0.5 + 0.125))
    assert spectrum.dft_difference(a, b[:1]).difference is None
    with pytest.raises(SpectralError, match="of one size"):
        spectrum.dft_difference(a, b[..., :16])


@pytest.mark.parametrize(("height", "width"), [(4, 6), (5, 5), (3, 8)])
def test_orientation_is_the_angle_of_the_frequency_vector(height: int, width: int) -> None:
    found = planes.orientation(height, width)
    y, x = np.meshgrid(np.fft.fftfreq(height), np.fft.fftfreq(width), indexing="ij")
    expected = np.degrees(np.angle(x + 1j * y)) % 180
    difference = np.abs(found.numpy() - expected)
    assert np.minimum(difference, 180 - difference).max() < 1e-9
    assert float(found.min()) >= 0
    assert float(found.max()) < 180


@pytest.mark.parametrize("size", [1, 2, 5, 8])
def test_cells_of_a_centred_axis_lie_around_their_frequencies(size: int) -> None:
    low, high = planes.centred_ends(size)
    middles = low + (np.arange(size) + 0.5) * (high - low) / size
    np.testing.assert_allclose(middles, np.fft.fftshift(np.fft.fftfreq(size)), atol=1e-12)
