"""Schedule, forward process, DDIM and guidance against closed forms, numpy, and the best denoiser of a Gaussian."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from spectral_diffusion.spectral.config import ScheduleConfig
from spectral_diffusion.spectral.diffusion import Denoise, Schedule, ddim
from spectral_diffusion.spectral.errors import SpectralError
from spectral_diffusion.training.tokens import declare_torchvision_operators

SHAPE = (64, 4, 16, 16)  # 65536 numbers: their mean is known to 0.004
PREDICTIONS = ["eps", "v"]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gaussian_denoiser(schedule: Schedule, mean: float, variance: float) -> Denoise:
    """The best prediction for data N(mean, variance), by the conditional expectation of jointly normal variables."""

    def denoise(x: Tensor, t: Tensor, context: Tensor | None = None) -> Tensor:
        signal, sigma = schedule.coefficients(t, x)
        total = signal**2 * variance + sigma**2
        noise = sigma * (x - signal * mean) / total
        x_0 = mean + signal * variance * (x - signal * mean) / total
        return noise if schedule.prediction == "eps" else signal * noise - sigma * x_0

    return denoise


@pytest.mark.parametrize(("start", "end", "steps"), [(0.0015, 0.0195, 1000), (0.00085, 0.012, 1000), (0.01, 0.3, 7)])
def test_betas_are_linear_in_their_root(start: float, end: float, steps: int) -> None:
    """Oracle: numpy, in float64."""
    betas = np.linspace(np.sqrt(start), np.sqrt(end), steps) ** 2
    schedule = Schedule(start, end, steps)
    np.testing.assert_allclose(schedule.betas.numpy(), betas, rtol=1e-12)
    np.testing.assert_allclose(schedule.alphas_cumprod.numpy(), np.cumprod(1 - betas), rtol=1e-12)


def test_a_configuration_gives_its_schedule() -> None:
    schedule = Schedule.from_config(ScheduleConfig(0.001, 0.02, 100, "v"))
    assert (schedule.linear_start, schedule.linear_end, schedule.steps, schedule.prediction) == (0.001, 0.02, 100, "v")


@pytest.mark.parametrize("steps", [1, 4, 20, 50, 200, 1000, 3, 7, 300, 999])
def test_ddim_timesteps_are_ldms(steps: int) -> None:
    """Oracle: the formula of LDM's make_ddim_timesteps; where that would run over the end, it is the last step."""
    original = np.asarray(list(range(0, 1000, 1000 // steps))) + 1
    assert Schedule().ddim_timesteps(steps).tolist() == np.unique(original.clip(max=999)).tolist()


@pytest.mark.parametrize("t", [0, 10, 300, 999])
def test_q_sample_has_the_moments_of_equation_2(t: int) -> None:
    """x_0 ~ N(2, 0.25): mean 2 √ᾱ, variance 0.25 ᾱ + 1 − ᾱ."""
    schedule = Schedule()
    x_0, noise = 2 + 0.5 * normal(*SHAPE), normal(*SHAPE, seed=1)
    x_t = schedule.q_sample(x_0, torch.full((len(x_0),), t), noise)
    alpha = float(np.cumprod(1 - np.linspace(0.0015**0.5, 0.0195**0.5, 1000) ** 2)[t])
    assert x_t.mean().item() == pytest.approx(2 * alpha**0.5, abs=0.015)
    assert x_t.var().item() == pytest.approx(0.25 * alpha + 1 - alpha, rel=0.02)


def test_q_sample_takes_each_samples_own_step() -> None:
    schedule, x_0, noise = Schedule(), normal(3, 2, 4, 4), normal(3, 2, 4, 4, seed=1)
    t = torch.tensor([0, 500, 999])
    alone = [schedule.q_sample(x_0[i : i + 1], t[i : i + 1], noise[i : i + 1]) for i in range(3)]
    assert torch.equal(schedule.q_sample(x_0, t, noise), torch.cat(alone))


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_split_undoes_q_sample_and_target(prediction: str, dtype: torch.dtype) -> None:
    schedule = Schedule(prediction=prediction)
    x_0, noise, t = (
        normal(5, 3, 4, 4).to(dtype),
        normal(5, 3, 4, 4, seed=1).to(dtype),
        torch.tensor([0, 1, 10, 300, 700]),
    )
    x_t = schedule.q_sample(x_0, t, noise)
    found = schedule.split(x_t, t, schedule.target(x_0, t, noise))
    assert found[0].dtype == dtype
    tolerance = 1e-9 if dtype == torch.float64 else 1e-4
    torch.testing.assert_close(found[0], x_0, atol=tolerance, rtol=tolerance)
    torch.testing.assert_close(found[1], noise, atol=tolerance, rtol=tolerance)


def test_noise_and_velocity_say_the_same() -> None:
    """Of one (x_0, ε), the two kinds of network see the same x_t and stand for the same x_0 and ε."""
    x_0, noise, t = normal(2, 3, 4, 4), normal(2, 3, 4, 4, seed=1), torch.tensor([5, 800])
    by_noise, by_velocity = Schedule(), Schedule(prediction="v")
    x_t = by_noise.q_sample(x_0, t, noise)
    for one, other in zip(
        by_noise.split(x_t, t, by_noise.target(x_0, t, noise)),
        by_velocity.split(x_t, t, by_velocity.target(x_0, t, noise)),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize(("eta", "steps"), [(0.0, 250), (1.0, 1000)], ids=["ddim", "ancestral"])
@pytest.mark.parametrize(("mean", "variance"), [(0.0, 1.0), (1.5, 0.25), (-1.0, 0.04)])
def test_with_the_best_denoiser_the_sampler_gives_the_gaussian(
    prediction: str, eta: float, steps: int, mean: float, variance: float
) -> None:
    """Data N(mean, variance); what differs is of the order of 1/steps, and of 1 − ᾱ_0, where the sampler ends."""
    schedule, shape = Schedule(prediction=prediction), (32, 4, 16, 16)
    data = mean + variance**0.5 * normal(*shape)
    x_T = schedule.q_sample(data, torch.full((len(data),), 999), normal(*shape, seed=1))
    denoise, noise = gaussian_denoiser(schedule, mean, variance), torch.Generator().manual_seed(3)
    x_0 = ddim(denoise, x_T, schedule, steps, eta=eta, generator=noise)
    assert x_0.mean().item() == pytest.approx(mean, abs=0.02)
    assert x_0.var().item() == pytest.approx(variance, rel=0.04, abs=0.002)


def test_one_step_of_ddim_is_the_formula() -> None:
    schedule, x_T = Schedule(), normal(2, 3, 4, 4)
    alpha, before = schedule.alphas_cumprod[1], schedule.alphas_cumprod[0]
    x_0 = (x_T - (1 - alpha).sqrt() * 0.3 * x_T) / alpha.sqrt()
    expected = before.sqrt() * x_0 + (1 - before).sqrt() * 0.3 * x_T
    torch.testing.assert_close(ddim(lambda x, t, context=None: 0.3 * x, x_T, schedule, 1), expected)


def contextual(x: Tensor, t: Tensor, context: Tensor | None = None) -> Tensor:
    """A "network" that tells its contexts apart."""
    told = torch.zeros(len(x), dtype=x.dtype) if context is None else context.mean(dim=(1, 2))
    return 0.2 * x + told.view(-1, 1, 1, 1)


COND, UNCOND = normal(2, 3, 5, seed=8), normal(1, 3, 5, seed=9)


@pytest.mark.parametrize("guidance", [0.0, 1.0, 2.5, 7.5])
def test_guidance_is_the_formula_by_hand(guidance: float) -> None:
    """ε = ε_u + w (ε_c − ε_u), with the two predictions made apart."""
    x_T, schedule = normal(2, 3, 4, 4), Schedule()

    def by_hand(x: Tensor, t: Tensor, context: Tensor | None = None) -> Tensor:
        without, with_ = contextual(x, t, UNCOND.expand(2, -1, -1)), contextual(x, t, COND)
        return without + guidance * (with_ - without)

    result = ddim(contextual, x_T, schedule, 5, guidance=guidance, cond=COND, uncond=UNCOND)
    torch.testing.assert_close(result, ddim(by_hand, x_T, schedule, 5))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"guidance": 3.0, "cond": COND}, "give cond and uncond"),
        ({"guidance": 2.0, "uncond": UNCOND}, "give cond and uncond"),
        ({"guidance": math.nan, "cond": COND, "uncond": UNCOND}, "guidance is nan"),
        ({"guidance": math.inf, "cond": COND, "uncond": UNCOND}, "guidance is inf"),
        ({"eta": -1.0}, "eta is -1"),
        ({"eta": math.nan}, "eta is nan"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_options_that_cannot_be_are_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(SpectralError, match=says):
        ddim(contextual, normal(2, 3, 4, 4), Schedule(), 5, **options)


@pytest.mark.parametrize("uncond", [UNCOND, None], ids=["uncond", "none"])
def test_without_guidance_the_condition_alone_is_asked(uncond: Tensor | None) -> None:
    x_T, schedule, sizes = normal(2, 3, 4, 4), Schedule(), set()

    def counting(x: Tensor, t: Tensor, context: Tensor | None = None) -> Tensor:
        sizes.add(len(x))
        return contextual(x, t, context)

    result = ddim(counting, x_T, schedule, 5, guidance=1.0, cond=COND, uncond=uncond)
    assert torch.equal(result, ddim(lambda x, t, context=None: contextual(x, t, COND), x_T, schedule, 5))
    assert sizes == {2}


def test_eta_noise_comes_from_the_generator_alone() -> None:
    x_T, schedule = normal(2, 3, 4, 4), Schedule()

    def run(seed: int) -> Tensor:
        return ddim(contextual, x_T, schedule, 10, eta=1.0, generator=torch.Generator().manual_seed(seed))

    state = torch.get_rng_state()
    assert torch.equal(run(1), run(1)) and not torch.equal(run(1), run(2))
    assert torch.equal(torch.get_rng_state(), state)


def test_the_callback_sees_every_step_and_no_gradient_is_kept() -> None:
    x_T, schedule = normal(2, 3, 4, 4).requires_grad_(), Schedule()
    seen: list[tuple[int, Tensor, Tensor]] = []
    x_0 = ddim(contextual, x_T, schedule, 5, callback=lambda *step: seen.append(step))
    assert [index for index, _, _ in seen] == [0, 1, 2, 3, 4]
    assert torch.equal(seen[-1][1], x_0) and not x_0.requires_grad
    assert all(predicted.shape == x_T.shape for _, _, predicted in seen)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((0.0, 0.02, 10), "0 < β < 1"),
        ((0.001, 1.0, 10), "0 < β < 1"),
        ((0.001, 0.02, 0), "1 to 1000000 steps"),
        ((0.001, 0.02, 10, "x0"), "'eps' or 'v', not 'x0'"),
    ],
    ids=["start", "end", "steps", "prediction"],
)
def test_a_schedule_that_cannot_be_is_refused(arguments: tuple[float, float, int, str], says: str) -> None:
    with pytest.raises(SpectralError, match=says):
        Schedule(*arguments)


@pytest.mark.parametrize("steps", [0, -1, 1001])
def test_a_number_of_steps_that_cannot_be_is_refused(steps: int) -> None:
    with pytest.raises(SpectralError, match=f"1 to 1000.*not {steps}"):
        ddim(contextual, normal(1, 3, 4, 4), Schedule(), steps)


def rescaled(steps: int = 1000, start: float = 0.00085, end: float = 0.012) -> Schedule:
    return Schedule(start, end, steps, "v", zero_terminal_snr=True)


@pytest.mark.parametrize(("start", "end"), [(0.0015, 0.0195), (0.00085, 0.012)])
def test_zero_terminal_snr_is_diffusers_rescaling(start: float, end: float) -> None:
    """Oracle: diffusers' function of Lin et al.'s Algorithm 1; √ᾱ keeps its first value and ends at 0 exactly."""
    declare_torchvision_operators()
    from diffusers.schedulers.scheduling_ddim import rescale_zero_terminal_snr

    found, before = rescaled(1000, start, end), Schedule(start, end)
    betas = rescale_zero_terminal_snr(before.betas.clone())
    torch.testing.assert_close(found.betas, betas, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(found.alphas_cumprod, torch.cumprod(1 - betas, 0), rtol=1e-9, atol=1e-12)
    assert found.alphas_cumprod[-1] == 0.0 and found.betas[-1] == 1.0
    torch.testing.assert_close(found.alphas_cumprod[0], before.alphas_cumprod[0], rtol=1e-12, atol=0)
    assert (found.alphas_cumprod.diff() < 0).all()


@pytest.mark.parametrize("steps", [1, 3, 20, 50, 999, 1000])
def test_zero_terminal_snr_is_sampled_from_the_last_step(steps: int) -> None:
    """Oracle: diffusers' "trailing" spacing, round(T, T − T/S, …) − 1."""
    expected = np.round(np.arange(1000, 0, -1000 / steps))[:steps] - 1
    assert rescaled().ddim_timesteps(steps).flip(0).tolist() == expected.tolist()


@pytest.mark.parametrize(
    ("eta", "steps", "mean", "variance"),
    [(0.0, 250, 0.0, 1.0), (0.0, 250, -1.0, 0.04), (1.0, 1000, 1.5, 0.25)],
    ids=["ddim", "ddim-narrow", "ancestral"],
)
def test_zero_terminal_snr_makes_the_gaussian_from_noise_alone(
    eta: float, steps: int, mean: float, variance: float
) -> None:
    """The mean, too, which the first steps of a network of LDM's schedule read off the noise they begin with."""
    schedule, shape, noise = rescaled(), (32, 4, 16, 16), torch.Generator().manual_seed(3)
    denoise = gaussian_denoiser(schedule, mean, variance)
    x_0 = ddim(denoise, normal(*shape, seed=1), schedule, steps, eta=eta, generator=noise)
    assert x_0.isfinite().all()
    assert x_0.mean().item() == pytest.approx(mean, abs=0.02)
    assert x_0.var().item() == pytest.approx(variance, rel=0.04, abs=0.002)


def test_one_step_from_noise_alone_is_finite() -> None:
    x_T = normal(2, 3, 4, 4)
    found = ddim(lambda x, t, context=None: torch.full_like(x, -0.5), x_T, rescaled(), 1)
    alpha = rescaled().alphas_cumprod[0]
    torch.testing.assert_close(found, alpha.sqrt() * 0.5 + (1 - alpha).sqrt() * x_T)


@pytest.mark.parametrize(("prediction", "steps"), [("eps", 1000), ("v", 1)])
def test_zero_terminal_snr_needs_a_velocity_and_two_steps(prediction: str, steps: int) -> None:
    with pytest.raises(SpectralError, match="zero terminal SNR needs.*set prediction to v"):
        Schedule(0.001, 0.02, steps, prediction, zero_terminal_snr=True)


def test_the_nearest_step_of_another_schedule() -> None:
    """A schedule is nearest to itself; a rescaled one's steps are later ones of the schedule before, up to its last."""
    schedule = Schedule(0.00085, 0.012)
    assert schedule.nearest_steps(schedule).tolist() == list(range(1000))
    found = schedule.nearest_steps(rescaled())
    gaps = (schedule.alphas_cumprod.sqrt()[None] - rescaled().alphas_cumprod.sqrt()[:, None]).abs()
    assert torch.equal(gaps.gather(1, found[:, None])[:, 0], gaps.amin(1))
    assert found[0] == 0 and (found >= torch.arange(1000)).all() and found[-100:].unique().tolist()[-1] == 999
