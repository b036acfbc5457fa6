"""f-DM's sampler: one stage is plain DDIM to the last bit; steps and crossings against their formulas."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from spectral_diffusion.spectral import fdm
from spectral_diffusion.spectral.config import BoundaryConfig, StagesConfig, UNetConfig
from spectral_diffusion.spectral.diffusion import Schedule, ddim
from spectral_diffusion.spectral.errors import SpectralError
from spectral_diffusion.spectral.unet import UNet

from .fdm_dense import HALVING, Dense, LinearPair
from .tiny import randomized

B = BoundaryConfig
SHAPE = (1, 6, 4)
SCHEDULES = {
    "eps": Schedule(),
    "v": Schedule(prediction="v"),
    "zero-snr": Schedule(prediction="v", zero_terminal_snr=True),
    "short": Schedule(0.01, 0.3, 7),
}
STAGES = {
    "nearest": StagesConfig((B(0.5),)),
    "three": StagesConfig((B(0.3), B(0.7, factor=4))),
    "bilinear": StagesConfig((B(0.4, back="bilinear"),)),
    "mixture": StagesConfig((B(0.2, "blur"), B(0.4), B(0.6, "blur", kernel="uniform", width=3))),
    "vae": StagesConfig((B(0.3, "vae", autoencoder=HALVING),)),
    "no-shift": StagesConfig((B(0.5),), shift=False),
    "delta": StagesConfig((B(0.3), B(0.7)), predicts="delta"),
}
NETWORK = UNetConfig(2, 2, 32, (2,), num_res_blocks=1, channel_mult=(1, 2), image_size=8, num_head_channels=32)
every_stages = pytest.mark.parametrize("name", STAGES)


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def process_of(name: str, schedule: Schedule | None = None) -> fdm.Process:
    return fdm.Process(schedule or Schedule(), STAGES[name], {0: LinearPair()})


def some_network(x: Tensor, t: Tensor, context: Tensor | None = None) -> Tensor:
    """Any function of all that it is given."""
    shift = 0.0 if context is None else context.mean((1, 2))[:, None, None, None]
    return torch.tanh(x * 0.9 + t[:, None, None, None] / 2000 + shift) + 0.1 * x.roll(1, 3)


def staged(x: Tensor, t: Tensor, context: Tensor | None = None, *, stage: int = 0) -> Tensor:
    """The same for every stage, with a δ."""
    return torch.cat([some_network(x, t, context), 0.1 * some_network(x.flip(2), t, context)], dim=1)


@pytest.mark.parametrize("kind", SCHEDULES)
@pytest.mark.parametrize("eta", [0.0, 0.4, 1.7])
@pytest.mark.parametrize("steps", [1, 7, 23])
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_one_stage_is_plain_ddim_to_the_last_bit(kind: str, eta: float, steps: int, guidance: float) -> None:
    schedule = SCHEDULES[kind]
    steps = min(steps, schedule.steps)
    noise, cond, uncond = (normal(*shape, dtype=torch.float32) for shape in ((3, 2, 5, 4), (3, 2, 4), (1, 2, 4)))
    runs: list[tuple[Tensor, list[Any]]] = []
    for run in (ddim, fdm.sample):
        seen: list[Any] = []
        settings: Any = {
            "eta": eta,
            "guidance": guidance,
            "cond": cond,
            "uncond": uncond,
            "callback": lambda *one, seen=seen: seen.append(one),
            "generator": torch.Generator().manual_seed(4),
        }
        on: Any = schedule if run is ddim else fdm.Process(schedule, StagesConfig())
        runs.append((run(some_network, noise, on, steps, **settings), seen))  # type: ignore[operator]
    assert torch.equal(runs[0][0], runs[1][0])
    assert len(runs[0][1]) == len(runs[1][1]) == len(schedule.ddim_timesteps(steps))
    for plain, ours in zip(runs[0][1], runs[1][1], strict=True):
        assert plain[0] == ours[0] and torch.equal(plain[1], ours[1]) and torch.equal(plain[2], ours[2])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_plain_network_runs_as_it_is(dtype: torch.dtype) -> None:
    network = randomized(UNet(NETWORK)).eval().requires_grad_(False).to(dtype)
    noise = normal(2, 2, 8, 8, dtype=torch.float32).to(dtype)
    expected = ddim(network, noise, Schedule(), 4)
    assert torch.equal(fdm.sample(network, noise, fdm.Process(Schedule(), StagesConfig()), 4), expected)


def all_knowing(process: fdm.Process, x_0: Tensor, dense: Dense) -> fdm.sampling.StagedDenoise:
    """A network that knows x_0: its answers are the truth about every z, by dense matrices."""

    def denoise(x: Tensor, t: Tensor, context: Tensor | None = None, *, stage: int = 0) -> Tensor:
        matrices = dense.point(stage, int(t[0]))[0], dense.second(stage, int(t[0]))
        signal, second = ((x_0.flatten(1) @ torch.from_numpy(matrix).T).view(x.shape) for matrix in matrices)
        alpha, sigma = dense.levels(stage, int(t[0]))
        noise = (x - alpha * signal) / sigma
        first = noise if process.schedule.prediction == "eps" else alpha * noise - sigma * signal
        return torch.cat([first, second], dim=1)

    return denoise


@every_stages
@pytest.mark.parametrize("kind", ["eps", "v"])
@pytest.mark.parametrize("steps", [4, 9, 50])
def test_the_truth_leads_to_the_truth(name: str, kind: str, steps: int) -> None:
    """Asked for the truth at every z, any number of steps arrives at α_0 x_0 + σ_0 ε; ε in the finest stage is white
    and has the first noise, or a lift of it, in it."""
    process = process_of(name, SCHEDULES[kind])
    dense = Dense(SCHEDULES[kind], STAGES[name], SHAPE, {0: LinearPair()})
    x_0, noise = normal(3, *SHAPE), normal(3, *SHAPE, seed=1)
    states: list[Tensor] = []
    z = fdm.sample(
        all_knowing(process, x_0, dense), noise, process, steps, callback=lambda i, z, clean: states.append(clean)
    )
    alpha, sigma = dense.levels(0, 0)
    final = (z - alpha * x_0) / sigma
    assert final.std().item() == pytest.approx(1, abs=0.25)  # of 72 numbers
    if name in ("nearest", "three"):  # the coarse part of the final noise is what the run began with
        start = alpha_of(process, dense, noise, x_0, steps)
        small = process.restrict(final, process.last, fdm.FreshNoise(noise))
        whole = 8 if name == "three" else 2  # blocks that lie in the picture as a whole
        full = (..., *(slice(side // whole) for side in SHAPE[1:]))
        torch.testing.assert_close(small[full], start[full], atol=1e-9, rtol=0)
    for clean in states[-3:]:  # in the finest stage previews are x_0
        assert clean.shape == x_0.shape
    torch.testing.assert_close(states[-1], x_0, atol=1e-8, rtol=0)


def alpha_of(process: fdm.Process, dense: Dense, noise: Tensor, x_0: Tensor, steps: int) -> Tensor:
    """The noise that the first z has in it, given the truth."""
    t = process.schedule.ddim_timesteps(steps).tolist()[-1]
    z = process.restrict(noise, process.last, fdm.FreshNoise(noise))
    alpha, sigma = dense.levels(process.last, t)
    signal = (x_0.flatten(1) @ torch.from_numpy(dense.to_stage[-1]).T).view(z.shape)
    return (z - alpha * signal) / sigma


@every_stages
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_a_step_inside_of_a_stage_is_the_formula(name: str, eta: float) -> None:
    """x_s = x_θ + δ_θ (t − s)/(t − τ_k), z_s = α_s x_s + √(σ_s² − σ̄²) ε_θ + σ̄ η, σ̄ = η σ_s σ_{t|s}/σ_t."""
    process, dense = process_of(name), Dense(Schedule(), STAGES[name], SHAPE, {0: LinearPair()})
    sizes = [shape[1:] for shape in dense.shapes]
    for stage in range(process.last + 1):
        start, end = process.boundaries[stage : stage + 2]
        t, to = end - 20, start + 30
        read = fdm.Read(*(normal(2, *dense.shapes[stage], seed=seed) for seed in (1, 2, 3)))
        step, fresh = fdm.Step(stage, t, to, False), fdm.FreshNoise(read.x)
        drawn = torch.randn(2, *dense.shapes[stage], generator=torch.Generator().manual_seed(7), dtype=torch.float64)
        found = fdm.advance(
            process, step, read, fresh, sizes, eta=eta, generator=torch.Generator().manual_seed(7)
        ).numpy()
        (alpha_t, sigma_t), (alpha_s, sigma_s) = dense.levels(stage, t), dense.levels(stage, to)
        between = math.sqrt(sigma_t**2 - (alpha_t / alpha_s) ** 2 * sigma_s**2)
        added = eta * sigma_s * between / sigma_t
        x_s = read.x + (read.delta * (t - to) / (t - start) if stage < process.last else 0)
        expected = alpha_s * x_s + math.sqrt(sigma_s**2 - added**2) * read.noise + added * drawn
        np.testing.assert_allclose(found, expected.numpy(), atol=1e-9)


@every_stages
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_a_step_across_a_boundary_is_the_formula(name: str, eta: float) -> None:
    """z = α g(x^k) + σ ζ(ε), α and σ of the finer stage, x^k by dense matrices; ζ given the noise of z_s is the
    transform's own, whose law the tests of transforms know."""
    process, dense = process_of(name), Dense(Schedule(), STAGES[name], SHAPE, {0: LinearPair()})
    sizes = [shape[1:] for shape in dense.shapes]
    for stage in range(1, process.last + 1):
        to = process.boundaries[stage]
        t = to + 70
        read = fdm.Read(*(normal(2, *dense.shapes[stage], seed=seed) for seed in (1, 2, 3)))
        found = fdm.advance(
            process,
            fdm.Step(stage, t, to, True),
            read,
            fdm.FreshNoise(read.x),
            sizes,
            eta=eta,
            generator=torch.Generator().manual_seed(7),
        )
        drawn = torch.randn(2, *dense.shapes[stage], generator=torch.Generator().manual_seed(7), dtype=torch.float64)
        (alpha_t, sigma_t), (alpha_s, sigma_s) = dense.levels(stage, t), dense.levels(stage, to)
        between = math.sqrt(sigma_t**2 - (alpha_t / alpha_s) ** 2 * sigma_s**2)
        added = eta * between / sigma_t  # of the noise that is lifted, whose variance is 1
        noise = math.sqrt(1 - added**2) * read.noise + added * drawn
        signal = read.x + (read.delta if stage < process.last else 0)
        coarse = (signal.flatten(1) @ torch.from_numpy(dense.ways[stage - 1][1]).T).view(2, *dense.shapes[stage - 1])
        below = process.transforms[stage - 1]
        lifted = below.lift(noise, signal, process.growth[stage - 1], sizes[stage - 1], fdm.FreshNoise(read.x))
        alpha, sigma = dense.levels(stage - 1, to)
        torch.testing.assert_close(found, alpha * coarse + sigma * lifted, atol=1e-9, rtol=0)


def test_a_run_can_end_clean() -> None:
    """At CLEAN z is x^0 itself, and η adds nothing."""
    process = process_of("nearest")
    read = fdm.Read(*(normal(2, *SHAPE, seed=seed) for seed in (1, 2, 3)))
    for eta in (0.0, 1.0):
        z = fdm.advance(process, fdm.Step(0, 40, fdm.CLEAN, False), read, fdm.FreshNoise(read.x), [(6, 4)], eta=eta)
        torch.testing.assert_close(z, read.x + read.delta, atol=1e-12, rtol=0)
        assert torch.equal(
            fdm.advance(process, fdm.Step(0, 0, fdm.CLEAN, False), read, fdm.FreshNoise(read.x), [(6, 4)]), read.x
        )


@pytest.mark.parametrize("eta", [0.0, 1.0])
@every_stages
def test_a_sample_is_the_same_in_whatever_batch(name: str, eta: float) -> None:
    """Also where noise is added, as long as no generator is given for it."""
    process, noise = process_of(name), normal(4, *SHAPE)
    together = fdm.sample(staged, noise, process, 12, eta=eta)
    for index in range(4):
        alone = fdm.sample(staged, noise[index : index + 1], process, 12, eta=eta)
        torch.testing.assert_close(alone[0], together[index], atol=1e-12, rtol=0)
    assert torch.equal(fdm.sample(staged, noise, process, 12, eta=eta), together)


@every_stages
def test_guidance_weighs_both_predictions(name: str) -> None:
    """Oracle: a network that is ε_u + w (ε_c − ε_u) itself, δ likewise."""
    process, noise = process_of(name), normal(2, *SHAPE)
    cond, uncond = normal(2, 3, 4, seed=1), normal(1, 3, 4, seed=2)

    def weighed(x: Tensor, t: Tensor, context: Tensor | None = None, *, stage: int = 0) -> Tensor:
        without = staged(x, t, uncond.expand(2, -1, -1), stage=stage)
        return without + 2.5 * (staged(x, t, cond, stage=stage) - without)

    found = fdm.sample(staged, noise, process, 12, guidance=2.5, cond=cond, uncond=uncond)
    torch.testing.assert_close(found, fdm.sample(weighed, noise, process, 12), atol=1e-12, rtol=0)


@every_stages
def test_every_stage_sees_its_own_size_and_previews_are_whole(name: str) -> None:
    process, dense = process_of(name), Dense(Schedule(), STAGES[name], SHAPE, {0: LinearPair()})
    asked: list[tuple[int, int]] = []
    seen: list[int] = []

    def denoise(x: Tensor, t: Tensor, context: Tensor | None = None, *, stage: int = 0) -> Tensor:
        assert x.shape == (2, *dense.shapes[stage]) and x.dtype == torch.float32
        asked.append((stage, int(t[0])))
        return staged(x, t, context, stage=stage)

    def callback(index: int, z: Tensor, clean: Tensor) -> None:
        assert z.shape == clean.shape == (2, *SHAPE) and z.isfinite().all() and clean.isfinite().all()
        seen.append(index)

    before = torch.get_rng_state()
    out = fdm.sample(denoise, normal(2, *SHAPE, dtype=torch.float32), process, 20, callback=callback)
    assert torch.equal(torch.get_rng_state(), before)
    assert out.shape == (2, *SHAPE) and out.dtype == torch.float32
    assert seen == list(range(20)) and len(asked) == 20  # as many questions as plain DDIM asks
    assert {stage for stage, _ in asked} == set(range(process.last + 1))
    assert asked == sorted(asked, key=lambda one: -one[1])


@pytest.mark.parametrize("eta", [-0.1, math.inf, math.nan])
def test_an_eta_that_cannot_be_is_refused(eta: float) -> None:
    with pytest.raises(SpectralError, match="eta is"):
        fdm.sample(staged, normal(1, *SHAPE), process_of("nearest"), 4, eta=eta)


def test_a_network_of_stages_runs_in_all_of_them() -> None:
    config = replace(NETWORK, stages=StagesConfig((B(0.3, "blur"), B(0.6))))
    network = randomized(UNet(config)).eval().requires_grad_(False)
    process = fdm.Process(Schedule(), config.stages or StagesConfig())
    noise = normal(2, 2, 7, 9, dtype=torch.float32)
    out = fdm.sample(network, noise, process, 6)
    assert out.shape == noise.shape and out.isfinite().all()
