"""The perfect denoiser of Gaussian data, sampled through all stages of f-DM: the data's mean and covariance come back.

The sampler is affine in everything that it draws, so that its moments are known without an error of chance (`moments`).
What is left is the error of finite steps, which halves with every doubling of the steps, as it does in plain diffusion:
covariances are compared as they are, and after that part was taken away (Richardson's extrapolation, 2 e(2n) − e(n)).
The schedule has zero terminal SNR, so that runs begin with what the process ends with. The sampler ends at ᾱ_0, as
LDM's does, and is compared with the process there: α_0² Σ + σ_0² 1, where σ_0² = 0.0015.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from spectral_diffusion.spectral import fdm
from spectral_diffusion.spectral.config import BoundaryConfig, StagesConfig
from spectral_diffusion.spectral.diffusion import Schedule

from .fdm_dense import HALVING, Array, Dense, Gaussian, LinearPair, Shape, distance, moments, perfect, smooth

B = BoundaryConfig
SHAPE = (1, 6, 6)
PLAIN = StagesConfig()
#: All at which the noise's lift is exact: α²/σ² grows by s² with a downsampling and by 1 with a blur.
EXACT = {
    "plain": (PLAIN, SHAPE),
    "nearest": (StagesConfig((B(0.5),)), SHAPE),
    "nearest-3-stages": (StagesConfig((B(0.4), B(0.7))), (1, 8, 8)),
    "nearest-2-channels": (StagesConfig((B(0.5),)), (2, 4, 6)),
    "nearest-odd": (StagesConfig((B(0.3), B(0.6))), (1, 5, 7)),
    "factor-4": (StagesConfig((B(0.5, factor=4),)), (1, 8, 8)),
    "bilinear": (StagesConfig((B(0.5, back="bilinear"),)), SHAPE),
    "bilinear-4-odd": (StagesConfig((B(0.6, factor=4, back="bilinear"),)), (1, 5, 7)),
    "gaussian": (StagesConfig((B(0.5, "blur", width=0.8),)), SHAPE),
    "uniform": (StagesConfig((B(0.4, "blur", kernel="uniform", width=3),)), SHAPE),
    "mixture": (StagesConfig((B(0.3, "blur", width=0.7), B(0.5, back="bilinear"), B(0.8, "blur", width=0.5))), SHAPE),
    "early": (StagesConfig((B(0.1), B(0.2))), SHAPE),
    "late": (StagesConfig((B(0.9, factor=4),)), SHAPE),
}


class Errors:
    """Of a run in n and in 2 n steps, relative to the data: of the mean, of the covariance, and what of it stays."""

    def __init__(
        self, config: StagesConfig, data: Gaussian, steps: int, eta: float = 0.0, prediction: str = "v"
    ) -> None:
        schedule = Schedule(prediction=prediction, zero_terminal_snr=prediction == "v")
        pairs = {index: LinearPair() for index, one in enumerate(config.boundaries) if one.transform == "vae"}
        process, dense = fdm.Process(schedule, config, pairs), Dense(schedule, config, data.shape, pairs)
        mean, covariance = dense.marginal(data, 0, 0)
        denoise = perfect(dense, data)
        found = [moments(denoise, process, data.shape, count, eta) for count in (steps, 2 * steps)]
        self.mean = distance(found[1][0], mean)
        self.first, self.covariance = (distance(one[1], covariance) for one in found)
        self.limit = distance(2 * found[1][1] - found[0][1], covariance)


@pytest.mark.parametrize("name", EXACT)
def test_ddim_gives_back_the_data(name: str) -> None:
    """The mean to rounding; the covariance within 1.6 % in 250 steps, 0.04 % when their number goes to infinity.

    Through two boundaries in the first fifth of the schedule, where the signal changes fast, it takes more steps.
    """
    config, shape = EXACT[name]
    errors = Errors(config, smooth(shape), 500 if name == "early" else 125)
    assert errors.mean < 1e-9
    assert errors.covariance < 0.016
    assert 1.9 < errors.first / errors.covariance < 2.1
    assert errors.limit < 4e-4


@pytest.mark.parametrize("name", ["plain", "nearest", "factor-4", "bilinear", "gaussian", "mixture"])
def test_ancestral_sampling_gives_back_the_data(name: str) -> None:
    """All noise of all steps is a direction of its own. Plain diffusion is off by 4.3 % in 125 steps, 0.9 % after
    extrapolation (whose next term is larger here); stages add less than a fifth."""
    plain, errors = (Errors(one, smooth((1, 4, 4)), 62, eta=1.0) for one in (PLAIN, EXACT[name][0]))
    assert errors.mean < 1e-9
    assert errors.covariance < 1.2 * plain.covariance < 0.06
    assert errors.limit < 1.3 * plain.limit < 0.015


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_samples_have_the_moments(eta: float) -> None:
    """Monte Carlo with the library's own fresh noise: what the affine map says, within 5 standard errors."""
    config, shape, count = StagesConfig((B(0.3, "blur", width=0.7), B(0.6))), (1, 4, 4), 4000
    schedule, data = Schedule(prediction="v", zero_terminal_snr=True), smooth((1, 4, 4))
    process, denoise = fdm.Process(schedule, config), perfect(Dense(schedule, config, shape, {}), data)
    mean, covariance = moments(denoise, process, shape, 20, eta)
    noise = torch.randn(count, *shape, generator=torch.Generator().manual_seed(0))
    drawn = fdm.sample(denoise, noise, process, 20, eta=eta, generator=torch.Generator().manual_seed(1))
    found, spread = drawn.flatten(1).double().numpy(), np.diag(covariance)
    assert np.abs((found.mean(0) - mean) / np.sqrt(spread / count)).max() < 5
    error = np.sqrt((np.outer(spread, spread) + covariance**2) / count)
    assert np.abs((np.cov(found.T) - covariance) / error).max() < 5


def test_noise_that_is_not_quite_noise_at_the_end() -> None:
    """LDM's schedule ends at ᾱ = 0.0002, so that every run begins with a mean that is too small; its first steps are as
    wrong in one stage as in three, where α² is 16 times that."""
    plain = Errors(PLAIN, smooth(SHAPE), 250, prediction="eps")
    staged = Errors(StagesConfig((B(0.4), B(0.7))), smooth(SHAPE), 250, prediction="eps")
    assert staged.mean < 0.03 and plain.mean < 0.03
    assert staged.covariance < 0.012 and plain.covariance < 0.012


@pytest.mark.parametrize(
    ("boundary", "least"),
    [
        pytest.param(B(0.5), 0.05, id="nearest"),
        pytest.param(B(0.5, factor=4), 0.15, id="factor-4"),
        pytest.param(B(0.5, back="bilinear"), 0.08, id="bilinear"),
        pytest.param(B(0.5, "blur", width=0.8), 0.05, id="blur"),
    ],
)
def test_without_interpolation_the_details_of_the_boundary_are_missing(boundary: BoundaryConfig, least: float) -> None:
    """A network that knows x alone takes x̂, which stands there at the boundary, for it: no number of steps helps."""
    config = StagesConfig((boundary,), interpolate=False)
    errors, exact = Errors(config, smooth(SHAPE), 125), Errors(StagesConfig((boundary,)), smooth(SHAPE), 125)
    assert errors.limit > least > 100 * exact.limit
    assert errors.mean > 0.1 > 1e6 * exact.mean


@pytest.mark.parametrize(
    ("boundary", "least"),
    [
        pytest.param(B(0.5), 0.07, id="nearest"),
        pytest.param(B(0.5, factor=4), 0.15, id="factor-4"),
        pytest.param(B(0.5, back="bilinear"), 0.07, id="bilinear"),
    ],
)
def test_without_the_shift_means_of_what_may_be_lose_their_variance(boundary: BoundaryConfig, least: float) -> None:
    """α g(x_θ) + σ ζ(ε_θ) with the coarse stage's own α and σ is no multiple of g(z) any more, and x_θ and ε_θ, which
    are means given z, have less variance than x and ε."""
    config = StagesConfig((boundary,), shift=False)
    errors, exact = Errors(config, smooth(SHAPE), 125), Errors(StagesConfig((boundary,)), smooth(SHAPE), 125)
    assert errors.mean < 1e-9
    assert errors.limit > least > 100 * exact.limit


def test_a_blur_has_no_shift_to_leave_out() -> None:
    boundary = B(0.5, "blur", width=0.8)
    with_, without = (
        Errors(StagesConfig((boundary,), shift=shift), smooth(SHAPE), 125).covariance for shift in (True, False)
    )
    assert with_ == without


def test_other_powers_and_energies_are_less_exact() -> None:
    """A γ of 0.8, as it may be measured for bilinear, costs a quarter of a per cent; half the power of d, 2 %."""
    data = smooth(SHAPE)
    assert 1e-3 < Errors(StagesConfig((B(0.5, back="bilinear", gamma=0.8),)), data, 500).limit < 4e-3
    assert 0.01 < Errors(StagesConfig((B(0.5),), dimension_power=0.5), data, 125).limit < 0.04


#: Behind an orthonormal autoencoder at τ, data of a power: how much of the covariance is lost for good.
BEHIND = [(0.5, 1.0, 0.18, 0.28), (0.2, 1.0, 0.07, 0.13), (0.2, 16.0, 0.005, 0.015), (0.1, 64.0, 0.0, 0.003)]


@pytest.mark.parametrize(("at", "power", "least", "most"), BEHIND)
def test_an_autoencoder_is_exact_where_its_signal_is_known_at_the_boundary(
    at: float, power: float, least: float, most: float
) -> None:
    """Its lift is fresh noise: x_θ goes on without the variance that x has given z_τ, some σ²/α² of τ.

    With data of unit variance 23 % of the covariance are lost at a boundary in the middle, 10 % at τ = 0.2; with data
    of variance 16 it is 1 % there, and 0.3 % with data of variance 64 at τ = 0.1. The mean is right in any case.
    """
    config = StagesConfig((B(at, "vae", autoencoder=HALVING, gamma=0.25),))  # d γ = 1 for rows of length 1
    errors = Errors(config, smooth(SHAPE, power=power), 500)
    assert errors.mean < 1e-9
    assert least <= errors.limit < most


def test_the_variance_lost_behind_an_autoencoder_is_that_of_x_given_z() -> None:
    """Closed form at the boundary: the finer stage begins with α² g V gᵀ + σ² 1, V = α'² S (α'² S + σ'²)⁻¹ S being the
    covariance of x_θ and S that of x, where α² g S gᵀ + σ² 1 would be right."""
    config = StagesConfig((B(0.5, "vae", autoencoder=HALVING, gamma=0.25),))
    schedule, data = Schedule(prediction="v", zero_terminal_snr=True), smooth(SHAPE)
    dense = Dense(schedule, config, SHAPE, {0: LinearPair()})
    begun = _at_the_boundary(dense, data, SHAPE)
    (alpha, sigma), (small, blurred), back = dense.levels(0, 500), dense.levels(1, 500), dense.ways[0][1]
    known = dense.to_stage[1] @ data.covariance @ dense.to_stage[1].T
    kept = small**2 * known @ np.linalg.solve(small**2 * known + blurred**2 * np.eye(len(known)), known)
    expected = alpha**2 * back @ kept @ back.T + sigma**2 * np.eye(36)
    right = dense.marginal(data, 0, 500)[1]
    assert distance(begun, expected) < 0.01 < 0.03 < distance(begun, right)


def _at_the_boundary(dense: Dense, data: Gaussian, shape: Shape) -> Array:
    """The covariance of z with which the finer of two stages begins, in 1000 steps."""
    process, denoise = fdm.Process(dense.schedule, dense.config, {0: LinearPair()}), perfect(dense, data)
    caught: list[Array] = []

    def catch(x: Tensor, t: Tensor, context: Tensor | None = None, *, stage: int = 0) -> Tensor:
        if stage == 0 and int(t[0]) == process.boundaries[1]:
            caught.append(x.flatten(1).numpy())
        return denoise(x, t, context, stage=stage)

    moments(catch, process, shape, 1000)
    slopes = caught[-1][:-1] - caught[-1][-1]
    return slopes.T @ slopes
