"""Spectra against numpy.fft, scipy.signal and closed forms: power laws of known slope, sinusoids, white noise."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import ndimage, signal
from torch import Tensor

from spectral_diffusion.spectral import spectrum
from spectral_diffusion.spectral.errors import SpectralError

SIZES = [(16, 16), (32, 20), (15, 17), (31, 8), (1, 12), (2, 1)]


def size_id(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def power_law_field(alpha: float, size: tuple[int, int], count: int = 1, seed: int = 0) -> Tensor:
    """[count, 1, H, W] Gaussian fields whose power falls exactly as 1/f^α in the mean."""
    rows, columns = np.fft.fftfreq(size[0])[:, None], np.fft.fftfreq(size[1])[None, :]
    amplitude = (rows**2 + columns**2).clip(min=1e-12) ** (-alpha / 4)
    amplitude[0, 0] = 0
    white = np.random.default_rng(seed).standard_normal((count, 1, *size))
    return torch.from_numpy(np.fft.ifft2(np.fft.fft2(white) * amplitude).real)


def sinusoid(cycles: tuple[float, float], size: tuple[int, int] = (64, 64)) -> Tensor:
    y, x = torch.arange(size[0], dtype=torch.float64), torch.arange(size[1], dtype=torch.float64)
    return torch.cos(2 * math.pi * (cycles[0] * y[:, None] + cycles[1] * x[None, :]))[None, None]


@pytest.mark.parametrize("window", ["hann", "none"])
@pytest.mark.parametrize("size", SIZES, ids=size_id)
def test_power_spectrum_equals_numpy_and_scipy(size: tuple[int, int], window: spectrum.Window) -> None:
    x = noise(2, 3, *size) + 5
    name = "boxcar" if window == "none" else window
    taper = np.outer(signal.get_window(name, size[0]), signal.get_window(name, size[1]))
    flat = x.numpy() - x.numpy().mean((-2, -1), keepdims=True)
    expected = np.abs(np.fft.fft2(flat * taper)) ** 2 / (taper**2).sum()
    torch.testing.assert_close(spectrum.power_spectrum(x, window=window), torch.from_numpy(expected))


def test_a_single_row_equals_scipys_periodogram() -> None:
    x = noise(1, 1, 1, 30) + 2
    _, expected = signal.periodogram(x[0, 0, 0].numpy(), window="hann", detrend="constant", return_onesided=False)
    torch.testing.assert_close(spectrum.power_spectrum(x)[0, 0, 0], torch.from_numpy(expected))


@pytest.mark.parametrize("size", SIZES, ids=size_id)
def test_parseval(size: tuple[int, int]) -> None:
    x = noise(2, 3, *size) + 1
    plain = spectrum.power_spectrum(x, window="none", remove_dc=False)
    torch.testing.assert_close(plain.sum(), x.square().sum())
    rings = spectrum.radial_spectrum(x, window="none")
    deviation = (x - x.mean((-2, -1), keepdim=True)).square().sum((-2, -1)).mean()
    torch.testing.assert_close((rings.power * rings.count).sum(), deviation)


def test_normalised_log_spectrum_peaks_at_zero_and_centres() -> None:
    drawn = spectrum.power_spectrum(sinusoid((0.125, 0.25)), window="none", normalize=True, log=True, center=True)[0, 0]
    assert drawn.max() == 0
    peaks = {tuple(place) for place in (drawn > -1e-6).nonzero().tolist()}
    assert peaks == {(32 + 8, 32 + 16), (32 - 8, 32 - 16)}


def test_a_flat_image_has_no_power_and_no_nan() -> None:
    drawn = spectrum.power_spectrum(torch.full((1, 3, 9, 9), 0.5), normalize=True, log=True)
    assert drawn.isfinite().all()
    assert spectrum.radial_spectrum(torch.full((1, 3, 9, 9), 0.5)).power.count_nonzero() == 0


@pytest.mark.parametrize("size", [(32, 32), (33, 33), (24, 40), (17, 31)], ids=size_id)
def test_rings_equal_an_azimuthal_mean_by_scipy(size: tuple[int, int]) -> None:
    x = noise(4, 2, *size)
    bins = 10
    y, z = np.meshgrid(np.fft.fftfreq(size[0]), np.fft.fftfreq(size[1]), indexing="ij")
    frequency = np.sqrt(y**2 + z**2)
    labels = np.rint(frequency * math.sqrt(2) * bins).astype(int)
    labels[0, 0] = -1
    power = spectrum.power_spectrum(x).mean((0, 1)).numpy()
    rings = spectrum.radial_spectrum(x, bins=bins)
    present = [i for i in range(bins + 1) if (labels == i).any()]
    np.testing.assert_allclose(rings.power, ndimage.mean(power, labels, present))
    np.testing.assert_allclose(rings.frequency, ndimage.mean(frequency, labels, present))
    np.testing.assert_array_equal(rings.count, [np.sum(labels == i) for i in present])
    assert int(rings.count.sum()) == size[0] * size[1] - 1


def test_std_is_the_spread_between_images() -> None:
    x = noise(5, 1, 16, 16)
    alone = torch.stack([spectrum.radial_spectrum(image[None]).power for image in x])
    together = spectrum.radial_spectrum(x)
    assert together.std is not None
    torch.testing.assert_close(together.power, alone.mean(0))
    torch.testing.assert_close(together.std, alone.std(0))
    assert spectrum.radial_spectrum(x[:1]).std is None


@pytest.mark.parametrize("cycles", [(0.0, 0.125), (0.25, 0.0), (0.1875, 0.25), (0.5, 0.5)], ids=str)
def test_a_sinusoid_lands_in_its_ring(cycles: tuple[float, float]) -> None:
    rings = spectrum.radial_spectrum(sinusoid(cycles))
    assert rings.frequency[rings.power.argmax()] == pytest.approx(math.hypot(*cycles), abs=0.6 / 64)


def test_axis_nyquist_and_corner_have_their_radius() -> None:
    rings = spectrum.radial_spectrum(noise(1, 1, 64, 64))
    assert rings.radius[-1] == pytest.approx(1, abs=0.02)
    axis = spectrum.radial_spectrum(sinusoid((0.0, 0.5)), window="none")
    assert axis.radius[axis.power.argmax()] == pytest.approx(1 / math.sqrt(2), abs=0.02)
    assert rings.count[-1] < rings.count[rings.frequency < 0.5].max() / 10


@pytest.mark.parametrize("size", [(256, 256), (255, 201)], ids=size_id)
@pytest.mark.parametrize("alpha", [0.0, 1.0, 2.0, 3.0])
def test_power_laws_are_recovered(alpha: float, size: tuple[int, int]) -> None:
    law = spectrum.fit_power_law(spectrum.radial_spectrum(power_law_field(alpha, size, 24)))
    assert law.alpha == pytest.approx(alpha, abs=0.02)
    assert 0 < law.alpha_error < 0.02
    assert law.log_amplitude == pytest.approx(0, abs=0.05)


@pytest.mark.parametrize("alpha", [0.0, 2.0, 3.0, 4.0])
def test_the_window_bends_no_slope_of_small_images_and_errors_cover(alpha: float) -> None:
    """Many sets of small fields: their slopes are right in the mean, and as far from it as their errors say."""
    fields = power_law_field(alpha, (64, 64), 16 * 40).split(16)
    laws = [spectrum.fit_power_law(spectrum.radial_spectrum(x)) for x in fields]
    slopes, errors = (np.array([getattr(law, name) for law in laws]) for name in ("alpha", "alpha_error"))
    assert slopes.mean() == pytest.approx(alpha, abs=0.025)
    assert errors.mean() == pytest.approx(slopes.std(), rel=0.3)
    assert (np.abs(slopes - alpha) < 2 * errors).mean() > 0.8


def test_images_that_are_none_are_a_sentence() -> None:
    broken = torch.rand(3, 3, 16, 16)
    broken[1, 0, 2, 3] = math.nan
    for measure in (spectrum.radial_spectrum, spectrum.mean_power_spectrum, spectrum.oriented_spectrum):
        with pytest.raises(SpectralError, match="not finite"):
            measure(broken)
    with pytest.raises(SpectralError, match="batch, channels"):
        spectrum.radial_spectrum(torch.zeros(1, 0, 8, 8))


def test_white_noise_is_flat_at_its_variance() -> None:
    rings = spectrum.radial_spectrum(0.1 * noise(16, 3, 128, 128) + 0.5)
    assert abs(spectrum.fit_power_law(rings).alpha) < 0.05
    well_filled = rings.power[rings.count > 40]
    torch.testing.assert_close(well_filled, torch.full_like(well_filled, 0.01), rtol=0.1, atol=0)


def test_slope_error_is_the_spread_of_slopes() -> None:
    laws = [spectrum.fit_power_law(spectrum.radial_spectrum(x[None])) for x in power_law_field(2, (128, 128), 60)]
    spread = np.std([law.alpha for law in laws])
    assert np.mean([law.alpha_error for law in laws]) == pytest.approx(spread, rel=0.4)


def test_slope_of_an_exact_line_over_a_chosen_range() -> None:
    frequency = torch.linspace(0.01, 0.7, 50, dtype=torch.float64)
    power = torch.where(frequency < 0.2, 3 * frequency**-2.5, torch.ones(()).double())
    line = spectrum.RadialSpectrum(frequency, power, None, torch.arange(1, 51), 1, (64.0, 64.0), "none")
    law = spectrum.fit_power_law(line, low=0.02, high=0.2)
    assert (law.alpha, law.log_amplitude) == (pytest.approx(2.5), pytest.approx(math.log(3)))
    assert law.alpha_error == pytest.approx(0, abs=1e-6)
    assert (law.low, law.high) == (0.02, 0.2)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_dtypes_agree(dtype: torch.dtype) -> None:
    x = power_law_field(2, (64, 64), 2).to(dtype)
    exact = spectrum.radial_spectrum(x.double()).power
    torch.testing.assert_close(spectrum.radial_spectrum(x).power, exact, rtol=1e-4, atol=0)


def test_batches_of_several_sizes_share_rings_and_weigh_images_alike() -> None:
    large, small = power_law_field(2, (96, 96), 6), power_law_field(2, (48, 64), 2)
    bins = spectrum.default_bins(48, 64)
    both = spectrum.radial_spectrum(iter([large, small]), bins=bins)
    apart = [spectrum.radial_spectrum(x, bins=bins) for x in (large, small)]
    assert (both.images, both.size) == (8, (84.0, 88.0))
    torch.testing.assert_close(both.power[1:-1], (0.75 * apart[0].power + 0.25 * apart[1].power)[1:-1])


def test_luma_of_grey_is_grey_and_matches_pillow() -> None:
    from PIL import Image

    pixels = torch.randint(0, 256, (20, 30, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)).numpy()
    mine = spectrum.luma(torch.from_numpy(pixels).movedim(-1, 0)[None] / 255)
    pillow = torch.from_numpy(np.array(Image.fromarray(pixels).convert("L"))) / 255
    torch.testing.assert_close(mine[0, 0], pillow, atol=1.01 / 255, rtol=0)
    grey = noise(2, 1, 16, 16).expand(-1, 3, -1, -1)
    torch.testing.assert_close(
        spectrum.radial_spectrum(grey, gray=True).power, spectrum.radial_spectrum(grey).power, rtol=1e-6, atol=0
    )


def test_equal_sets_have_no_band_error() -> None:
    rings = spectrum.radial_spectrum(noise(2, 3, 64, 64))
    assert spectrum.band_errors(rings, rings) == spectrum.BandErrors(0, 0, 28.0)


def test_band_errors_see_the_band_that_changed() -> None:
    """Frequencies of 20 cycles per image and more lose half of their amplitude: |ln(1/4)| above, nothing below."""
    x = noise(4, 1, 96, 96)
    cycles = 96 * spectrum.radial_frequency(96, 96)
    weaker = torch.fft.ifft2(torch.fft.fft2(x) * torch.where(cycles < 20, 1.0, 0.5)).real
    real, generated = (spectrum.radial_spectrum(y, window="none") for y in (x, weaker))
    errors = spectrum.band_errors(real, generated, cutoff=20)
    assert errors.low == pytest.approx(0, abs=0.05)
    assert errors.high == pytest.approx(math.log(4), abs=0.05)
    mirrored = spectrum.band_errors(generated, real, cutoff=20)
    assert (mirrored.low, mirrored.high) == (pytest.approx(errors.low), pytest.approx(errors.high))


@pytest.mark.parametrize("count", [1, 2, 48, 100])
def test_all_rings_of_one_size_are_compared_however_many_images(count: int) -> None:
    """Eleven rings lie below 12 cycles per image; one that is e¹¹ times as strong makes a mean |ln ratio| of 1."""
    picture = noise(1, 1, 64, 64)
    one, many = (spectrum.radial_spectrum(picture.expand(n, -1, -1, -1)) for n in (171, count))
    assert torch.equal(one.frequency, many.frequency)
    power = many.power.clone()
    power[0] *= math.e**11
    assert spectrum.band_errors(one, replace(many, power=power), 12).low == pytest.approx(1)


def test_band_errors_do_not_depend_on_resolution() -> None:
    """The same pictures at twice the size, by padding their DFT with zeros, differ in nothing that both can hold."""
    small = power_law_field(2, (64, 64), 8)
    transform = torch.fft.fftshift(torch.fft.fft2(small), dim=(-2, -1))
    padded = torch.nn.functional.pad(transform[..., 1:, 1:], (33, 32, 33, 32))
    large = 4 * torch.fft.ifft2(torch.fft.ifftshift(padded, dim=(-2, -1))).real
    a, b = (spectrum.radial_spectrum(x, window="none") for x in (small, large))
    inside = a.frequency < 0.45
    a = spectrum.RadialSpectrum(a.frequency[inside], a.power[inside], None, a.count[inside], a.images, a.size)
    for errors in (spectrum.band_errors(a, b, cutoff=12), spectrum.band_errors(b, a, cutoff=12)):
        assert errors.low < 0.1
        assert errors.high < 0.05


@pytest.mark.parametrize(
    ("x", "options", "says"),
    [
        (torch.zeros(8), {}, "height, width"),
        (torch.zeros(1, 3, 0, 4), {}, "at least one row"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), {}, "torch.uint8.*/ 255"),
        (torch.zeros(1, 3, 8, 8), {"window": "hamming"}, "'hamming'.*'hann' or 'none'"),
    ],
    ids=["one-axis", "empty", "bytes", "window"],
)
def test_power_spectrum_says_what_is_wrong(x: Tensor, options: dict[str, spectrum.Window], says: str) -> None:
    with pytest.raises(SpectralError, match=says):
        spectrum.power_spectrum(x, **options)


def test_radial_measures_say_what_is_wrong() -> None:
    with pytest.raises(SpectralError, match="batch, channels"):
        spectrum.radial_spectrum(torch.zeros(8, 8))
    with pytest.raises(SpectralError, match="one pixel"):
        spectrum.radial_spectrum(torch.zeros(1, 1, 1, 1))
    with pytest.raises(SpectralError, match="at least one image"):
        spectrum.radial_spectrum([])
    with pytest.raises(SpectralError, match="at least one image"):
        spectrum.radial_spectrum(torch.zeros(0, 3, 8, 8))
    with pytest.raises(SpectralError, match="rings is 0"):
        spectrum.radial_spectrum(torch.zeros(1, 1, 8, 8), bins=0)
    with pytest.raises(SpectralError, match="RGB"):
        spectrum.radial_spectrum(torch.zeros(1, 4, 8, 8), gray=True)
    flat = spectrum.radial_spectrum(torch.zeros(1, 1, 64, 64))
    with pytest.raises(SpectralError, match="No slope between"):
        spectrum.fit_power_law(flat)
    with pytest.raises(SpectralError, match="cut-off of 300.*choose one between 1.* and 4"):
        spectrum.band_errors(flat, flat, cutoff=300)
