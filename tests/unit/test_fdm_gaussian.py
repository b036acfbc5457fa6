"""The perfect denoiser of Gaussian data, sampled through all stages of f-DM: the data's mean and covariance come back.

The sampler is affine in everything that it draws, so that its moments are known without an error of chance (`moments`).
What is left is the error of finite steps, which halves with every doubling of the steps, as it does in plain diffusion:
covariances are compared as they are, and after that part was taken away (Richardson's extrapolation, 2 e(2n) − e(n)).
The schedule has zero terminal SNR, so that runs begin with what the process ends with. The sampler ends at ᾱ_0, as
LDM's does, and is compared with the process there: α_0² Σ + σ_0² 1, where σ_0² = 0.0015.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from spectral_diffusion.spectral import fdm
from spectral_diffusion.spectral.config import BoundaryConfig, StagesConfig
from spectral_diffusion.spectral.diffusion import Schedule
from spectral_diffusion.spectral.fdm import jacobian

from .fdm_dense import (
    HALVING,
    Array,
    Dense,
    Gaussian,
    LinearPair,
    Shape,
    autoencoder,
    distance,
    moments,
    perfect,
    smooth,
    ways,
)

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
        self,
        config: StagesConfig,
        data: Gaussian,
        steps: int,
        eta: float = 0.0,
        prediction: str = "v",
        pairs: dict[int, LinearPair] | None = None,
    ) -> None:
        schedule = Schedule(prediction=prediction, zero_terminal_snr=prediction == "v")
        pairs = pairs or {index: LinearPair() for index, one in enumerate(config.boundaries) if one.transform == "vae"}
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


def test_other_powers_and_energies() -> None:
    """Where α²/σ² grows by more than s², or by more than 1 at a blur, the lift is exact as well.

    Where it grows by less, a γ of 0.8, as it may be measured for bilinear, costs a fifth of a per cent; half the power
    of d, 2 %.
    """
    data = smooth(SHAPE)
    for boundary in (B(0.5, gamma=1.3), B(0.5, back="bilinear", gamma=1.3), B(0.5, "blur", gamma=1.4)):
        assert Errors(StagesConfig((boundary,)), data, 125).limit < 4e-4
    assert Errors(StagesConfig((B(0.5),), dimension_power=1.3), data, 125).limit < 4e-4
    assert 1e-3 < Errors(StagesConfig((B(0.5, back="bilinear", gamma=0.8),)), data, 500).limit < 2.5e-3
    assert 0.01 < Errors(StagesConfig((B(0.5),), dimension_power=0.5), data, 125).limit < 0.04


def behind(at: float, gains: Sequence[float], data: Gaussian, gamma: float | None = None) -> Errors:
    """Of a boundary at an autoencoder whose decoder has these gains; γ is measured on the data, or given."""
    pair = autoencoder(gains)
    if gamma is None:
        down, back, *_ = ways(B(at, "vae"), data.shape, pair)
        power = down @ (data.covariance + np.outer(data.mean, data.mean)) @ down.T
        gamma = np.trace(back @ power @ back.T) / np.trace(power) * len(power) / len(back)
    config = StagesConfig((B(at, "vae", autoencoder=pair.config, gamma=gamma),))
    return Errors(config, data, 125, pairs={0: pair})


@pytest.mark.parametrize("at", [0.2, 0.5])
@pytest.mark.parametrize("gains", [(1.0,), (1.0, 1.0), (1.1, 0.9), (1.3, 0.7), (0.7, 1.3)], ids=str)
def test_autoencoders_give_back_the_data(gains: tuple[float, ...], at: float) -> None:
    """As transformations without one do, within 0.04 %, or 0.11 % where the greatest gain is that of a weak signal.

    With fresh noise for a lift, 23 % of the covariance would be lost behind an orthonormal one at τ = 0.5.
    """
    errors = behind(at, gains, smooth(SHAPE))
    assert errors.mean < 1e-9
    assert errors.limit < (1.1e-3 if gains == (0.7, 1.3) else 4e-4)


@pytest.mark.parametrize("at", [0.2, 0.5])
def test_gains_that_are_far_apart_need_a_gamma_of_the_greatest(at: float) -> None:
    """With gains of 2 and 0.5 the measured γ leaves k J at 1.26 for what is left uncertain, which one step of DDIM
    brings to 1: off by up to 0.94 %. Where d γ is the greatest gain's square, nothing is limited, and all is exact."""
    data, gains = smooth(SHAPE), (2.0, 0.5)
    assert 4e-3 < behind(at, gains, data).limit < 0.01
    assert behind(at, gains, data, gamma=4.0 / 2).limit < 4e-4


def test_an_autoencoder_among_other_stages() -> None:
    """Behind a downsampling, before one, and before a blur."""
    vae, data = B(0.3, "vae", autoencoder=HALVING, gamma=0.25), smooth((1, 8, 8))
    for boundaries in ((B(0.3), replace(vae, at=0.6)), (vae, B(0.6)), (vae, B(0.6, "blur", width=0.7))):
        errors = Errors(StagesConfig(boundaries), data, 125)
        assert errors.mean < 1e-9
        assert errors.limit < 4e-4


def test_the_finer_stage_behind_an_autoencoder_begins_with_what_the_process_has_there() -> None:
    """In 1000 steps; with fresh noise for a lift, 16 times as far from it."""
    config = StagesConfig((B(0.5, "vae", autoencoder=HALVING, gamma=0.25),))
    schedule, data = Schedule(prediction="v", zero_terminal_snr=True), smooth(SHAPE)
    dense = Dense(schedule, config, SHAPE, {0: LinearPair()})
    right = dense.marginal(data, 0, 500)[1]
    assert distance(_at_the_boundary(dense, data, SHAPE), right) < 0.002
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jacobian, "lift", lambda g, y, noise, scale, fresh: fresh)
        assert distance(_at_the_boundary(dense, data, SHAPE), right) > 0.03


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
