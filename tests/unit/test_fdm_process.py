"""f-DM's forward process against dense float64 matrices and closed forms; plans; the energies of boundaries."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as some
from torch import Tensor

from spectral_diffusion.spectral import fdm
from spectral_diffusion.spectral.config import BoundaryConfig, StagesConfig
from spectral_diffusion.spectral.diffusion import Schedule
from spectral_diffusion.spectral.errors import SpectralError

from .fdm_dense import HALVING, Dense, LinearPair, interpolating, on_planes, pooling, smooth

B = BoundaryConfig
CONFIGS = {
    "nearest": StagesConfig((B(0.5),)),
    "three": StagesConfig((B(0.3), B(0.7, back="bilinear", gamma=0.9))),
    "factor-4": StagesConfig((B(0.4, factor=4),), dimension_power=0.5),
    "blur": StagesConfig((B(0.2, "blur", width=0.7), B(0.6, "blur", kernel="uniform", width=3))),
    "vae": StagesConfig((B(0.3, "vae", autoencoder=HALVING, gamma=0.3), B(0.6))),
    "no-interpolation": StagesConfig((B(0.5),), interpolate=False),
    "no-shift": StagesConfig((B(0.3), B(0.7)), shift=False),
    "delta": StagesConfig((B(0.3), B(0.7, back="bilinear")), predicts="delta"),
}
SHAPE = (1, 6, 4)
every_config = pytest.mark.parametrize("name", CONFIGS)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def both(name: str, schedule: Schedule | None = None) -> tuple[fdm.Process, Dense]:
    schedule, config, pairs = schedule or Schedule(), CONFIGS[name], {0: LinearPair()}
    return fdm.Process(schedule, config, pairs), Dense(schedule, config, SHAPE, pairs)


def times_of(process: fdm.Process, stage: int) -> Tensor:
    """Some steps of a stage, its first and its end among them."""
    start, end = process.boundaries[stage : stage + 2]
    end = min(end, process.schedule.steps - 1)
    return torch.tensor([start, start + 1, (start + end) // 2, end - 1, end])


@every_config
def test_signals_are_the_formulas(name: str) -> None:
    """x_t = [(t − τ_k) x̂^k + (τ_{k+1} − t) x^k]/(τ_{k+1} − τ_k) and δ_t = x^k − x_t by dense matrices; z_t of them."""
    process, dense = both(name)
    assert process.shapes(1, SHAPE[1:]) == dense.shapes and process.last == len(dense.ways)
    for stage in range(process.last + 1):
        times = times_of(process, stage)
        x_0, noise = normal(len(times), *SHAPE), normal(len(times), *dense.shapes[stage], seed=1)
        point = process.point(x_0, times, stage)
        z = process.noised(point.x, times, stage, noise)
        assert point.x.shape == point.delta.shape == z.shape == noise.shape
        for index, t in enumerate(times.tolist()):
            (signal, delta), (alpha, sigma) = dense.point(stage, t), dense.levels(stage, t)
            flat = x_0[index].flatten().numpy()
            np.testing.assert_allclose(point.x[index].flatten().numpy(), signal @ flat, atol=1e-12)
            np.testing.assert_allclose(point.delta[index].flatten().numpy(), delta @ flat, atol=1e-12)
            expected = alpha * signal @ flat + sigma * noise[index].flatten().numpy()
            np.testing.assert_allclose(z[index].flatten().numpy(), expected, atol=1e-9)
        np.testing.assert_allclose(
            process.signal(x_0, stage).flatten(1).numpy(), x_0.flatten(1).numpy() @ dense.to_stage[stage].T, atol=1e-12
        )


@every_config
def test_marginals_are_those_of_the_closed_form(name: str) -> None:
    """Monte Carlo: entries of a covariance are off by √((c_ii c_jj + c_ij²)/N), means by √(c/N)."""
    (process, dense), data, count = both(name), smooth(SHAPE), 20000
    root = torch.from_numpy(np.linalg.cholesky(data.covariance))
    x_0 = (torch.from_numpy(data.mean) + normal(count, math.prod(SHAPE)) @ root.T).view(count, *SHAPE)
    for stage in range(process.last + 1):
        t = int(times_of(process, stage)[2])
        times = torch.full((count,), t)
        noise = process.restrict(normal(count, *SHAPE, seed=2), stage, fdm.FreshNoise(x_0))
        z = process.noised(process.point(x_0, times, stage).x, times, stage, noise).flatten(1).numpy()
        mean, covariance = dense.marginal(data, stage, t)
        spread = np.diag(covariance)
        assert np.abs((z.mean(0) - mean) / np.sqrt(spread / count)).max() < 5
        error = np.sqrt((np.outer(spread, spread) + covariance**2) / count)
        assert np.abs((np.cov(z.T) - covariance) / error).max() < 5


@every_config
@pytest.mark.parametrize("zero", [False, True], ids=["", "zero-snr"])
def test_log_snr_is_the_base_schedules_shifted(name: str, zero: bool) -> None:
    """log α²/σ² = base + Σ log(d^p γ) over the boundaries below; α² + σ² = 1; the first stage has none."""
    schedule = Schedule(prediction="v", zero_terminal_snr=zero)
    process, dense = both(name, schedule)
    assert torch.equal(process.alphas_cumprod[0], schedule.alphas_cumprod)
    steps = torch.arange(1000)
    base = torch.logit(schedule.alphas_cumprod)
    for stage in range(process.last + 1):
        alpha, sigma = process.coefficients(stage, steps, torch.zeros(1, dtype=torch.float64))
        torch.testing.assert_close(alpha**2 + sigma**2, torch.ones(1000, dtype=torch.float64), atol=1e-14, rtol=0)
        shifted = torch.logit(alpha**2)[: 999 if zero else 1000]
        torch.testing.assert_close(shifted, base[: len(shifted)] + dense.shift[stage], atol=1e-6, rtol=0)
        assert process.ratios[stage] == pytest.approx(math.exp(dense.shift[stage]))
        assert not zero or alpha[-1] == 0
    half = process.coefficients(process.last, steps[:3], torch.zeros(3, 2, 2, dtype=torch.float16))[0]
    assert half.shape == (3, 1, 1) and half.dtype == torch.float16


def test_the_shift_of_every_kind_of_boundary() -> None:
    """By hand: d is 4 for factor 2, 16 for factor 4, 1 for blur, 4 for the autoencoder (4 numbers become 1)."""
    assert both("three")[0].ratios == pytest.approx((1, 4, 4 * 4 * 0.9))
    assert both("factor-4")[0].ratios == pytest.approx((1, 4))  # 16^½
    assert both("blur")[0].ratios == (1, 1, 1)
    assert both("vae")[0].ratios == pytest.approx((1, 4 * 0.3, 4 * 0.3 * 4))
    assert both("no-shift")[0].ratios == (1, 1, 1)


def test_boundaries_and_stages() -> None:
    process, _ = both("three")
    assert process.boundaries == (0, 300, 700, 1000) and process.last == 2
    times = torch.tensor([0, 299, 300, 301, 699, 700, 999])
    assert process.stage_of(times).tolist() == [0, 0, 1, 1, 1, 2, 2]
    plain = fdm.Process(Schedule(steps=10), StagesConfig())
    assert plain.boundaries == (0, 10) and plain.last == 0 and plain.stage_of(torch.arange(10)).tolist() == [0] * 10
    assert [process.moves(stage) for stage in range(3)] == [True, True, False]
    assert not both("no-interpolation")[0].moves(0)


@pytest.mark.parametrize("name", ["nearest", "three"])
def test_across_a_boundary_pooled_z_is_the_smaller_stages(name: str) -> None:
    """Closed form: at τ the mean over blocks of the finer z is α/α' times the coarser one's, in mean and covariance."""
    config = replace(CONFIGS[name], boundaries=tuple(replace(b, gamma=1.0) for b in CONFIGS[name].boundaries))
    dense, data = Dense(Schedule(), config, SHAPE, {}), smooth(SHAPE)
    process = fdm.Process(Schedule(), config)
    for stage, boundary in enumerate(config.boundaries):
        t = process.boundaries[stage + 1]
        mean, covariance = dense.marginal(data, stage, t)
        small_mean, small = dense.marginal(data, stage + 1, t)
        if boundary.back == "nearest":
            pool = on_planes(1, *(pooling(size, 2) for size in dense.shapes[stage][1:]))
        else:  # the finer z is the coarser one's way up, and noise
            pool = np.linalg.pinv(on_planes(1, *(interpolating(size, 2) for size in dense.shapes[stage][1:])))
        finer, coarser = (process.alphas_cumprod[k, t].sqrt().item() for k in (stage, stage + 1))
        np.testing.assert_allclose(pool @ mean, finer / coarser * small_mean, atol=1e-12)
        if boundary.back == "nearest":
            np.testing.assert_allclose(pool @ covariance @ pool.T, (finer / coarser) ** 2 * small, atol=1e-12)


@every_config
@pytest.mark.parametrize("prediction", ["eps", "v"])
def test_read_undoes_target(name: str, prediction: str) -> None:
    process, dense = both(name, Schedule(prediction=prediction))
    for stage in range(process.last + 1):
        times = times_of(process, stage)
        x_0, noise = normal(len(times), *SHAPE), normal(len(times), *dense.shapes[stage], seed=1)
        point = process.point(x_0, times, stage)
        z, target = process.noised(point.x, times, stage, noise), process.target(point, times, stage, noise)
        assert target.shape[1] == 2 * z.shape[1]
        for index, t in enumerate(times.tolist()):
            second = dense.second(stage, t) @ x_0[index].flatten().numpy()
            np.testing.assert_allclose(target[index].chunk(2)[1].flatten().numpy(), second, atol=1e-12)
        read = process.read(z, times, stage, target)
        torch.testing.assert_close(read.x, point.x, atol=1e-9, rtol=0)
        torch.testing.assert_close(read.noise, noise, atol=1e-9, rtol=0)
        torch.testing.assert_close(read.delta, point.delta, atol=1e-12, rtol=0)
        torch.testing.assert_close(process.finished(read, stage), process.signal(x_0, stage), atol=1e-9, rtol=0)


def test_one_stage_is_plain_diffusion_to_the_last_bit() -> None:
    for schedule in (Schedule(), Schedule(prediction="v", zero_terminal_snr=True)):
        process, times = fdm.Process(schedule, StagesConfig()), torch.tensor([0, 3, 500, 999])
        for dtype in (torch.float32, torch.float64, torch.bfloat16):
            x_0, noise = normal(4, 3, 5, 5).to(dtype), normal(4, 3, 5, 5, seed=1).to(dtype)
            assert torch.equal(process.noised(x_0, times, 0, noise), schedule.q_sample(x_0, times, noise))
            point = process.point(x_0, times, 0)
            assert torch.equal(point.x, x_0) and not point.delta.any()
            assert torch.equal(
                process.target(point, times, 0, noise).chunk(2, 1)[0], schedule.target(x_0, times, noise)
            )
        assert torch.equal(process.restrict(noise, 0, fdm.FreshNoise(noise)), noise)


def test_previews_go_up_all_the_way() -> None:
    process, dense = both("three")
    y = normal(2, *dense.shapes[2])
    expected = y.flatten(1).numpy() @ dense.ways[1][1].T @ dense.ways[0][1].T
    sizes = [shape[1:] for shape in dense.shapes]
    np.testing.assert_allclose(process.upwards(y, 2, sizes).flatten(1).numpy(), expected, atol=1e-12)


def test_energies_of_nearest_are_exactly_one() -> None:
    """γ = 1 whatever the latents; the rest by numpy's means over blocks."""
    process = fdm.Process(Schedule(), StagesConfig((B(0.3), B(0.6, factor=4))))
    batches = [normal(3, 2, 16, 8), normal(5, 2, 16, 8, seed=1)]
    found = fdm.measure(process, batches)
    x = torch.cat(batches).numpy()
    assert [one.gamma for one in found] == pytest.approx([1, 1], abs=1e-14)
    assert [one.dimension_ratio for one in found] == [4, 16]
    pooled = x.reshape(8, 2, 8, 2, 4, 2).mean((3, 5))
    assert found[0].before == pytest.approx((x**2).mean()) and found[0].after == pytest.approx((pooled**2).mean())
    assert found[0].lost == pytest.approx(1 - (pooled**2).mean() / (x**2).mean())  # means are projections
    alpha = Schedule().alphas_cumprod[-1].item()
    assert [one.terminal for one in found] == pytest.approx([4 * alpha / (1 - alpha), 64 * alpha / (1 - alpha)])


@pytest.mark.parametrize("size", [(8, 6), (7, 5)], ids=str)
def test_energies_of_bilinear_and_autoencoders(size: tuple[int, int]) -> None:
    """Oracle: dense matrices."""
    x = normal(6, 1, *size)
    for boundary in (B(0.5, back="bilinear"), B(0.5, "vae", autoencoder=HALVING), B(0.5, "blur")):
        if boundary.transform == "vae" and size == (7, 5):
            continue
        config = StagesConfig((boundary,), dimension_power=0.5)
        dense = Dense(Schedule(), config, (1, *size), {0: LinearPair()})
        (found,) = fdm.measure(fdm.Process(Schedule(), config, {0: LinearPair()}), [x[:1], x[1:]])
        down, back = dense.ways[0]
        y = x.flatten(1).numpy() @ down.T
        up = y @ back.T
        assert found.gamma == pytest.approx((up**2).mean() / (y**2).mean())
        assert found.lost == pytest.approx(((x.flatten(1).numpy() - up) ** 2).sum() / (x**2).sum().item())
        alpha, ratio = Schedule().alphas_cumprod[-1].item(), down.shape[1] / down.shape[0]
        if size == (8, 6):
            assert found.terminal == pytest.approx(ratio**0.5 * found.gamma * alpha / (1 - alpha))


@pytest.mark.parametrize("latents", [[], [torch.zeros(2, 1, 4, 4)], [torch.full((2, 1, 4, 4), math.nan)]], ids=str)
def test_energies_of_nothing_are_refused(latents: list[Tensor]) -> None:
    with pytest.raises(SpectralError, match="energies need latents"):
        fdm.measure(both("nearest")[0], latents)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (StagesConfig((B(0.5), B(0.5))), "boundaries lie at 0.5, 0.5; expected rising"),
        (StagesConfig((B(0.7), B(0.3))), "boundaries lie at 0.7, 0.3"),
        (StagesConfig((B(0.5), B(0.5004))), "a step of its 1000 apart"),
        (StagesConfig((B(0.0001),)), "boundaries lie at 0.0001"),
        (StagesConfig((B(0.9999),)), "two from its end"),
        (StagesConfig((B(0.999),)), "two from its end"),
        (StagesConfig((B(0.5),), dimension_power=-1.0), "dimension_power is -1.0"),
        (StagesConfig((B(0.5),), dimension_power=math.nan), "dimension_power is nan"),
        (StagesConfig(tuple(B(0.1 * i, "blur") for i in range(1, 10))), "There are 9 boundaries"),
        (StagesConfig((B(0.3, gamma=1e200), B(0.6, gamma=1e200))), "beyond any number"),
        (StagesConfig((B(0.5, "vae", autoencoder=HALVING),)), "needs its autoencoder"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_stages_that_cannot_be_are_refused_in_a_sentence(config: StagesConfig, says: str) -> None:
    with pytest.raises(SpectralError, match=says):
        fdm.Process(Schedule(), config)


def check_plan(process: fdm.Process, times: list[int]) -> None:
    """What a plan has to be, said once more."""
    steps, end = fdm.plan(process, times), times[-1]
    assert len(steps) == len(times) - 1 and steps[-1].to == end and steps[0].t == times[0]
    assert all(step.t > step.to for step in steps)
    assert all(before.to == after.t for before, after in pairwise(steps))
    places = [place for place in process.boundaries[1:-1] if max(end, 0) < place < times[0]]
    assert [step.to for step in steps if step.crosses] == places[::-1] or end in process.boundaries
    assert sorted({step.stage for step in steps}) == list(range(steps[-1].stage, steps[0].stage + 1))
    for step in steps:  # within its stage, whose end counts as its own
        assert process.boundaries[step.stage] <= max(step.to, 0)
        assert step.t <= process.boundaries[step.stage + 1]
        assert step.crosses == (step.stage > 0 and step.to == process.boundaries[step.stage])
    kept = [step.t for step in steps if step.t not in places]
    assert set(kept) <= set(times) and len(times) - 1 - len(kept) == len(places)


@settings(max_examples=200, deadline=None)
@given(some.data())
def test_any_plan(data: some.DataObject) -> None:
    """Runs over any steps, from anywhere to anywhere, through up to four boundaries."""
    places = sorted(data.draw(some.sets(some.integers(1, 98), max_size=4)))
    config = StagesConfig(tuple(B(place / 100, "blur") for place in places))
    process = fdm.Process(Schedule(steps=100), config)
    times = sorted(data.draw(some.sets(some.integers(0, 99), min_size=2, max_size=100)), reverse=True)
    if data.draw(some.booleans()):
        times.append(fdm.CLEAN)
    within = [place for place in places if max(times[-1], 0) < place < times[0]]
    if len(times) - 1 <= len(within):
        with pytest.raises(SpectralError, match=f"{len(times) - 1} steps cannot go through {len(within) + 1} stages"):
            fdm.plan(process, times)
    else:
        check_plan(process, times)


@pytest.mark.parametrize("steps", [3, 4, 10, 50, 200, 1000])
def test_the_nearest_of_ldms_steps_are_moved(steps: int) -> None:
    """Oracle: the plan that moves steps least, found by trying all where there are few."""
    process, _ = both("three")
    times = [*Schedule().ddim_timesteps(steps).flip(0).tolist(), 0]
    check_plan(process, times)
    plan = fdm.plan(process, times)
    moved = [abs(step.t - time) for step, time in zip(plan, times, strict=False)]
    assert sorted(moved)[:-2] == [0] * (len(moved) - 2)
    if steps <= 10:
        possible = [
            abs(times[i] - 700) + abs(times[j] - 300)
            for i in range(1, len(times) - 1)
            for j in range(i + 1, len(times) - 1)
        ]
        assert sum(moved) == min(possible)


def test_runs_that_start_in_the_middle_or_end_clean() -> None:
    process, _ = both("three")
    assert [step.stage for step in fdm.plan(process, [600, 400, 100, fdm.CLEAN])] == [1, 0, 0]
    assert fdm.plan(process, [300, fdm.CLEAN]) == [fdm.Step(0, 300, fdm.CLEAN, False)]  # the end of the first stage
    assert fdm.plan(process, [301, 250, 0]) == [fdm.Step(1, 301, 300, True), fdm.Step(0, 300, 0, False)]
    assert fdm.plan(process, [999, 700]) == [fdm.Step(2, 999, 700, True)]  # a run to go on with from 700
    assert fdm.plan(process, [1, fdm.CLEAN]) == [fdm.Step(0, 1, fdm.CLEAN, False)]


def test_a_late_boundary_is_passed_also_by_few_steps() -> None:
    """LDM's two steps are 501 and 1; the stage above 700 is not left out."""
    process = fdm.Process(Schedule(), StagesConfig((B(0.7),)))
    asked: list[tuple[int, int]] = []

    def denoise(x: Tensor, t: Tensor, context: Tensor | None = None, *, stage: int = 0) -> Tensor:
        assert x.shape[1:] == ((1, 6, 4) if stage == 0 else (1, 3, 2))
        asked.append((stage, int(t[0])))
        return torch.cat([x, torch.zeros_like(x)], dim=1)

    assert fdm.sample(denoise, normal(2, *SHAPE), process, 2).shape == (2, *SHAPE)
    assert asked == [(1, 999), (0, 700)]
    asked.clear()
    fdm.sample(denoise, normal(2, *SHAPE), process, 4)
    assert asked == [(1, 751), (0, 700), (0, 251), (0, 1)]
    with pytest.raises(SpectralError, match="1 steps cannot go through 2 stages"):
        fdm.sample(denoise, normal(2, *SHAPE), process, 1)
