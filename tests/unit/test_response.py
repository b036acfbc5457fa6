"""The probes of a denoiser: linear filters give their transfer function, and a pointwise function its derivative."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from spectral_diffusion.spectral.errors import SpectralError
from spectral_diffusion.spectral.spectrum import (
    Denoiser,
    Response,
    denoiser_response,
    kept_share,
    probe_count,
    radial_frequency,
    radial_spectrum,
    reconstruction_filter,
)

SIGNAL, NOISE = torch.tensor([0.95, 0.6, 0.1]), torch.tensor([0.3, 0.8, 0.99])


def latents(count: int = 40, channels: int = 3, height: int = 16, width: int = 16, alpha: float = 2.0) -> Tensor:
    """Gaussian fields of power 0.02 / f^α, each channel at twice the amplitude of the one before it."""
    white = torch.randn(count, channels, height, width, generator=torch.Generator().manual_seed(7))
    frequency = radial_frequency(height, width).clamp_min(0.3 / max(height, width))
    fields = torch.fft.ifft2(torch.fft.fft2(white) * (0.02 * frequency**-alpha).sqrt()).real
    return (fields * 2.0 ** torch.arange(channels)[:, None, None]).float()


def filtered(transfer: Tensor) -> Denoiser:
    """The linear filter that multiplies the DFT by `transfer`, [..., H, W] or with levels before it."""
    return lambda x, level: torch.fft.ifft2(torch.fft.fft2(x.double()) * transfer).real.float()


@pytest.mark.parametrize(("height", "width"), [(16, 16), (12, 16), (9, 15)])
def test_a_linear_filter_has_its_transfer_function(height: int, width: int) -> None:
    """Isotropic, so that every probe of a ring of one radius tells the same; rings of several lie in between."""
    frequency = radial_frequency(height, width)
    transfer = 1 / (1 + 10 * frequency)
    found = denoiser_response(filtered(transfer), latents(4, 2, height, width), SIGNAL, NOISE, probes=5, rings=99)
    rings = radial_spectrum(torch.zeros(1, 1, height, width))
    torch.testing.assert_close(found.frequency, rings.frequency)
    expected = 1 / (1 + 10 * found.frequency)
    half = 0.5 / math.sqrt(2) / round(math.sqrt(height * width / 2))  # of a ring's width, in cycles per pixel
    slack = 1.05 * (1 / (1 + 10 * (found.frequency - half)) - 1 / (1 + 10 * (found.frequency + half)))
    assert bool((abs(found.gain.real - expected) <= slack).all())
    assert float(found.gain.imag.abs().max()) < 1e-4


def test_gains_are_exact_where_a_ring_has_one_radius() -> None:
    """Rings 1 (the lowest along both axes) and the corner; a shift has an imaginary gain, from its own direction."""
    rows, columns = torch.meshgrid(torch.fft.fftfreq(8), torch.fft.fftfreq(8), indexing="ij")
    transfer = torch.polar(1 / (1 + radial_frequency(8, 8)), (-2 * math.pi * (rows + columns)).double())
    transfer[4], transfer[:, 4] = transfer[4].real + 0j, transfer[:, 4].real + 0j  # as a real filter has it
    found = denoiser_response(filtered(transfer), latents(3, 2, 8, 8), SIGNAL, NOISE, probes=6, rings=2)
    assert found.frequency[[0, -1]].tolist() == pytest.approx([1 / 8, math.sqrt(0.5)])
    expected = torch.stack([transfer[0, 1], transfer[4, 4]])  # both directions of ring 1 are shifted by one cell
    torch.testing.assert_close(found.gain, expected.expand(3, 2), rtol=0, atol=1e-4)
    assert float(found.error.max()) < 1e-4


def test_the_identity_has_gain_one_and_a_factor_itself() -> None:
    found = denoiser_response(lambda x, level: x * (1, -2, 0.5)[level], latents(), SIGNAL, NOISE, probes=4)
    expected = torch.tensor([1.0, -2.0, 0.5], dtype=torch.complex128)[:, None].expand(3, 12 - 1)
    torch.testing.assert_close(found.gain, expected, rtol=0, atol=1e-4)
    torch.testing.assert_close(found.kept, SIGNAL.double()[:, None] * expected.real, rtol=0, atol=1e-4)


def test_the_wiener_filter_reaches_the_optimum() -> None:
    """Each channel filtered by the optimum of its own power, ring by ring, worked out by numpy."""
    clean = latents()
    rings = np.floor(radial_frequency(16, 16).numpy() * math.sqrt(2) * 11 + 0.5).astype(int)
    power = (abs(np.fft.fft2(clean.double().numpy())) ** 2 / 256).mean(0)
    for c in range(3):
        by_ring = [power[c][(rings == r) & (radial_frequency(16, 16).numpy() > 0)].mean() for r in range(1, 12)]
        power[c] = np.array([0.0, *by_ring])[rings]

    def wiener(x: Tensor, level: int) -> Tensor:
        s, n = SIGNAL[level].double().numpy(), NOISE[level].double().numpy()
        return filtered(torch.from_numpy(s * power / (s**2 * power + n**2)))(x, level)

    found = denoiser_response(wiener, clean, SIGNAL, NOISE, probes=3)
    torch.testing.assert_close(found.gain.real, found.optimum, rtol=0, atol=1e-4)
    whole = [
        [kept_share(torch.tensor(p[rings == r].mean()), s, n) for r in (1, 6, 11)]
        for p, s, n in [(power[c], SIGNAL[1].double(), NOISE[1].double()) for c in range(3)]
    ]
    np.testing.assert_allclose(found.kept_optimum[1, [0, 5, 10]], np.mean(whole, axis=0), rtol=1e-5)


def test_a_pointwise_denoiser_has_its_mean_derivative() -> None:
    """tanh's derivative is 1 − tanh²; its mean over x_t is the gain at every frequency."""
    clean, s, n = latents(200, alpha=0.5), torch.tensor([0.5]), torch.tensor([0.8])
    found = denoiser_response(lambda x, level: x.tanh(), clean, s, n, probes=200, rings=4)
    noisy = 0.5 * clean + 0.8 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(1))
    expected = (1 - noisy.tanh() ** 2).mean().item()
    assert bool((abs(found.gain.real - expected) < 4 * found.error + 0.003).all())
    assert float(found.error.max()) < 0.01


def test_the_ideal_denoiser_of_data_that_are_not_gaussian_stays_below_the_optimum() -> None:
    """x_0 = ±1 in every cell: E[x_0 | x_t] = tanh(s x / n²), whose mean gain is s/n² times the error that it leaves."""
    signs = torch.randn(100, 1, 16, 16, generator=torch.Generator().manual_seed(2)).sign()
    s, n = torch.tensor([0.8]), torch.tensor([0.6])
    found = denoiser_response(lambda x, level: (x * 0.8 / 0.36).tanh(), signs, s, n, probes=100, rings=4)
    noisy = 0.8 * signs + 0.6 * torch.randn(signs.shape, generator=torch.Generator().manual_seed(3))
    left = (signs - (noisy * 0.8 / 0.36).tanh()).square().mean().item()
    assert bool((abs(found.gain.real - 0.8 / 0.36 * left) < 4 * found.error + 0.01).all())
    assert bool((found.gain.real < found.optimum - 0.1).all())
    assert found.optimum[0].mean().item() == pytest.approx(0.8 / (0.64 + 0.36), rel=0.02)


def test_what_leaks_between_channels_averages_out() -> None:
    """Each channel's answer is half of itself and all of the next one."""
    found = denoiser_response(lambda x, level: 0.5 * x + x.roll(1, 1), latents(), SIGNAL, NOISE, probes=256, rings=3)
    assert bool((abs(found.gain.real - 0.5) < 4 * found.error).all())
    assert float(found.error.min()) > 0.01 and float(found.error.max()) < 0.06


def test_one_seed_gives_one_answer_whatever_the_batch() -> None:
    def measured(batch: int, seed: int) -> Response:
        told: list[int] = []
        found = denoiser_response(
            lambda x, level: x.tanh(), latents(5), SIGNAL, NOISE, probes=7, batch=batch, seed=seed, progress=told.append
        )
        assert sum(told) == probe_count((16, 16), 3, probes=7) == 3 * 11 * 7
        assert max(told) == min(batch, 7)
        return found

    once = measured(7, 0)
    assert torch.equal(once.gain, measured(7, 0).gain)
    torch.testing.assert_close(once.gain, measured(3, 0).gain, rtol=0, atol=1e-6)
    assert not torch.allclose(once.gain, measured(7, 1).gain, atol=1e-5)


def test_rings_are_probed_along_every_direction() -> None:
    """A filter that passes waves along rows alone lets through half of a ring's probes."""
    rows, columns = torch.meshgrid(torch.fft.fftfreq(32), torch.fft.fftfreq(32), indexing="ij")
    transfer = (columns.abs() > rows.abs()).double() + 0.5 * (columns.abs() == rows.abs()).double()
    found = denoiser_response(filtered(transfer), latents(2, 1, 32, 32), SIGNAL[:1], NOISE[:1], probes=64, rings=12)
    assert found.gain.real[0, 2:9].tolist() == pytest.approx([0.5] * 7, abs=0.06)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"latents": torch.zeros(3, 16, 16)}, "clean latents"),
        ({"noise": torch.ones(2)}, "as many of noise"),
        ({"signal": torch.tensor([1.0, math.nan, 0])}, "finite"),
        ({"probes": 0}, "probes 0"),
        ({"amplitude": 0.0}, "amplitude"),
        ({"denoise": lambda x, level: x[:1]}, "answered"),
        ({"denoise": lambda x, level: x / 0}, "not finite"),
    ],
)
def test_what_cannot_be_probed_is_refused(change: dict[str, object], message: str) -> None:
    given = {"denoise": lambda x, level: x, "latents": latents(2), "signal": SIGNAL, "noise": NOISE}
    with pytest.raises(SpectralError, match=message):
        denoiser_response(**(given | change))  # type: ignore[arg-type]


def test_the_optimum_is_the_mean_of_the_channels_own() -> None:
    """Not the filter of their mean power, which is another number where channels differ."""
    clean = latents(channels=2)
    found = denoiser_response(lambda x, level: x, clean, SIGNAL, NOISE, probes=1, rings=99)
    apart = [radial_spectrum(clean[:, c : c + 1], window="none").power for c in range(2)]
    gains = [reconstruction_filter(power, SIGNAL[1], NOISE[1]) for power in apart]
    np.testing.assert_allclose(found.optimum[1], (gains[0] + gains[1]) / 2)
    assert found.probes == 1 and bool(found.error.isnan().all())
