"""The Wiener filter against closed forms, the paper's own expressions, and least squares on Gaussian fields."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from spectral_diffusion.spectral.diffusion import Schedule
from spectral_diffusion.spectral.errors import SpectralError
from spectral_diffusion.spectral.spectrum import (
    RadialSpectrum,
    kept_share,
    measured_power,
    noise_filter,
    power_law,
    predicted_power,
    radial_frequency,
    reconstruction_filter,
    schedule_levels,
    wiener_table,
)

ZERO, ONE, INFINITE = (torch.tensor(value, dtype=torch.float64) for value in (0.0, 1.0, math.inf))


def test_the_filters_are_the_papers_expressions_in_alpha_bar() -> None:
    power = np.geomspace(1e-3, 1e5, 30)
    for alpha in (0.003, 0.4, 0.9985):
        level = torch.tensor([alpha, 1 - alpha], dtype=torch.float64).sqrt()
        given = torch.from_numpy(power), level[0], level[1]
        whole = alpha * power + 1 - alpha
        np.testing.assert_allclose(
            reconstruction_filter(*given), math.sqrt(alpha) / (alpha + (1 - alpha) / power), rtol=1e-12
        )
        np.testing.assert_allclose(noise_filter(*given), math.sqrt(1 - alpha) / whole, rtol=1e-12)
        np.testing.assert_allclose(predicted_power(*given), alpha * power**2 / whole**2 * whole, rtol=1e-12)


@pytest.mark.parametrize("level", [(0.3, 0.7), (0.8, 0.6), (1.0, 0.0), (0.0, 1.0)])
def test_what_both_filters_predict_adds_up_to_x_t(level: tuple[float, float]) -> None:
    s, n = (torch.tensor(value, dtype=torch.float64) for value in level)
    power = torch.tensor([1e-300, 1e-6, 1.0, 1e6, 1e300], dtype=torch.float64)
    whole = s * reconstruction_filter(power, s, n) + n * noise_filter(power, s, n)
    torch.testing.assert_close(whole, torch.ones_like(whole))
    share = kept_share(power, s, n)
    assert bool(((share >= 0) & (share <= 1)).all())
    torch.testing.assert_close(share, s * reconstruction_filter(power, s, n))


@pytest.mark.parametrize(
    ("power", "signal", "noise", "expected"),
    [  # G, noise-predicting filter, kept share, predicted power: the limits, by hand
        (INFINITE, 0.6, 0.8, (1 / 0.6, 0.0, 1.0, math.inf)),
        (ZERO, 0.6, 0.8, (0.0, 1 / 0.8, 0.0, 0.0)),
        (ONE, 1.0, 0.0, (1.0, 0.0, 1.0, 1.0)),
        (ONE, 0.0, 1.0, (0.0, 1.0, 0.0, 0.0)),
        (INFINITE, 0.0, 1.0, (0.0, 1.0, 0.0, 0.0)),
        (INFINITE, 1.0, 0.0, (1.0, 0.0, 1.0, math.inf)),
        (ZERO, 1.0, 0.0, (0.0, 0.0, 0.0, 0.0)),
    ],
)
def test_the_limits_are_numbers(power: Tensor, signal: float, noise: float, expected: tuple[float, ...]) -> None:
    given = power, torch.tensor(signal, dtype=torch.float64), torch.tensor(noise, dtype=torch.float64)
    found = [f(*given).item() for f in (reconstruction_filter, noise_filter, kept_share, predicted_power)]
    assert found == pytest.approx(list(expected))


@pytest.mark.parametrize(("s", "n"), [(math.sqrt(0.7), math.sqrt(0.3)), (0.35, 0.65)])
def test_least_squares_on_gaussian_fields_finds_the_filter(s: float, n: float) -> None:
    """Regress clean on noisy Fourier coefficients, frequency by frequency; also noise on noisy, and the powers."""
    rng = np.random.default_rng(3)
    frequency = radial_frequency(12, 12)
    frequency[0, 0] = 1 / 24
    power = power_law(frequency, 0.02, 2.0)
    fields = 12000
    clean = np.fft.fft2(rng.standard_normal((fields, 12, 12))) * power.numpy() ** 0.5
    noise = np.fft.fft2(rng.standard_normal((fields, 12, 12)))
    noisy = s * clean + n * noise
    total = (abs(noisy) ** 2).sum(0)
    levels = torch.tensor(s, dtype=torch.float64), torch.tensor(n, dtype=torch.float64)
    slope = (clean * noisy.conj()).sum(0) / total
    expected = reconstruction_filter(power, *levels).numpy()
    # A slope's standard error is √(residual power / (samples · power of the regressor)).
    residual = (abs(clean - slope * noisy) ** 2).mean(0)
    error = np.sqrt(residual / total)
    assert (abs(slope - expected) < 5 * error).all()
    assert (error < 0.05 * expected.max()).all()
    noise_slope = (noise * noisy.conj()).sum(0) / total
    np.testing.assert_allclose(noise_slope.real, noise_filter(power, *levels), atol=0.05)
    found = (abs(expected * noisy) ** 2).mean(0) / 144  # whose relative error is √(2/12000) at most
    np.testing.assert_allclose(found, predicted_power(power, *levels), rtol=0.065)


def test_a_power_law_has_its_bandwidth_in_closed_form() -> None:
    """s² A / f^α = n² at f = (s² A / n²)^(1/α), between any two frequencies of the table."""
    schedule = Schedule()
    steps = torch.arange(50, 1000, 100)
    signal, noise = schedule_levels(schedule, steps)
    frequency = torch.linspace(0.001, 30, 400, dtype=torch.float64)
    table = wiener_table(frequency, power_law(frequency, 0.01, 2.5), signal, noise, steps)
    expected = (signal.numpy() ** 2 * 0.01 / noise.numpy() ** 2) ** (1 / 2.5)
    np.testing.assert_allclose(table.bandwidth, expected, rtol=1e-9)
    assert bool((table.bandwidth.diff() < 0).all())  # grows on the way back from noise
    halves = kept_share(power_law(table.bandwidth, 0.01, 2.5), signal, noise)
    torch.testing.assert_close(halves, torch.full_like(halves, 0.5))


def test_a_bandwidth_beyond_the_table_is_its_end() -> None:
    frequency = torch.tensor([0.0, 0.1, 0.2, 0.4], dtype=torch.float64)
    table = wiener_table(frequency, torch.tensor([9.0, 4.0, 2.0, 0.5]), torch.ones(4), torch.tensor([0.0, 0.1, 3.0, 1]))
    assert table.bandwidth.tolist() == pytest.approx([0.4, 0.4, 0.0, 0.2 * 2**0.5])
    step = wiener_table(frequency, torch.tensor([9.0, 4.0, 0.0, 0.0]), torch.ones(1), torch.ones(1))
    assert step.bandwidth.tolist() == [0.1]
    assert step.step.tolist() == [0]


def test_the_table_is_the_filters_over_levels_and_frequencies() -> None:
    frequency = torch.tensor([0.0, 0.01, 0.5])
    table = wiener_table(frequency, power_law(frequency), torch.tensor([1.0, 0.5, 0.0]), torch.tensor([0.0, 0.5, 1.0]))
    np.testing.assert_allclose(table.kept, [[1, 1, 1], [1, 1e4 / 10001, 0.8], [0, 0, 0]])
    np.testing.assert_allclose(table.reconstruction, [[1, 1, 1], [2, 2e4 / 10001, 1.6], [0, 0, 0]])
    np.testing.assert_allclose(table.noise_prediction, [[0, 0, 0], [0, 2 / 10001, 0.4], [1, 1, 1]], atol=1e-15)
    np.testing.assert_allclose(table.predicted[1, 1:], [1e8 / 10001, 3.2])


def test_levels_of_a_schedule_are_those_of_its_forward_process() -> None:
    schedule = Schedule(0.00085, 0.012)
    steps = torch.tensor([0, 250, 999])
    signal, noise = schedule_levels(schedule, steps)
    white = torch.ones(3, 1, dtype=torch.float64)
    torch.testing.assert_close(signal[:, None], schedule.q_sample(white, steps, 0 * white))
    torch.testing.assert_close(noise[:, None], schedule.q_sample(0 * white, steps, white))
    with pytest.raises(SpectralError, match="0 to 999"):
        schedule_levels(schedule, torch.tensor([1000]))


def test_zero_terminal_snr_ends_with_nothing_kept() -> None:
    schedule = Schedule(prediction="v", zero_terminal_snr=True)
    signal, noise = schedule_levels(schedule, torch.tensor([999]))
    frequency = torch.tensor([0.0, 0.1])
    table = wiener_table(frequency, power_law(frequency), signal, noise)
    assert table.kept.tolist() == [[0.0, 0.0]] and table.bandwidth.tolist() == [0.0]


def test_a_measured_power_is_interpolated_in_logarithms() -> None:
    frequency = torch.tensor([0.1, 0.2, 0.4], dtype=torch.float64)
    rings = RadialSpectrum(frequency, 3 * frequency**-1.5, None, torch.ones(3).long(), 1, (16, 16))
    between = torch.tensor([0.1, 0.15, 0.3, 0.4])
    np.testing.assert_allclose(measured_power(rings, between), 3 * between.double() ** -1.5, rtol=1e-7)
    ends = measured_power(rings, torch.tensor([0.0, 0.01, 0.7]))
    np.testing.assert_allclose(ends, [rings.power[0], rings.power[0], rings.power[2]])
    single = RadialSpectrum(frequency[:1], torch.tensor([2.0]), None, torch.ones(1).long(), 1, (2, 2))
    assert measured_power(single, between).tolist() == [2.0] * 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"frequency": torch.tensor([0.2, 0.1])}, "each above the one before"),
        ({"power": torch.ones(3)}, "as many powers"),
        ({"power": torch.tensor([1.0, -1.0])}, "0 or more"),
        ({"noise": torch.tensor([math.nan])}, "no NaN"),
        ({"signal": torch.ones(2)}, "levels of signal"),
    ],
)
def test_what_cannot_be_is_refused(change: dict[str, Tensor], message: str) -> None:
    given = {
        "frequency": torch.tensor([0.1, 0.2]),
        "power": torch.ones(2),
        "signal": torch.ones(1),
        "noise": torch.ones(1),
    }
    with pytest.raises(SpectralError, match=message):
        wiener_table(**(given | change))
    with pytest.raises(SpectralError, match="amplitude"):
        power_law(torch.ones(1), 0.0)
