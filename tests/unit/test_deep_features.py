"""Reuse of deep features between steps: what it costs by the paper's own figures, what it keeps, and when it ends."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor

from spectral_diffusion.spectral import fdm, presets
from spectral_diffusion.spectral.config import BoundaryConfig, StagesConfig, UNetConfig
from spectral_diffusion.spectral.counting import count_macs
from spectral_diffusion.spectral.deep_features import Reuse
from spectral_diffusion.spectral.diffusion import Schedule, ddim
from spectral_diffusion.spectral.errors import SpectralError
from spectral_diffusion.spectral.hooks import Part
from spectral_diffusion.spectral.reuse import OneSampling, Reusing
from spectral_diffusion.spectral.unet import UNet
from spectral_diffusion.training.staging import process_of

from .tiny import randomized

CONFIG = UNetConfig(4, 4, 32, (1, 2), 1, (1, 2), 8, num_head_channels=16, resampler="wavelet")
BLOCKS = 4


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def new() -> UNet:
    return randomized(UNet(CONFIG)).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def unet() -> UNet:
    return new()


#: DeepCache's Table 1: multiply-adds a step of LDM-4-G on ImageNet, on average, if every N-th step is whole.
PUBLISHED = {1: 99.82, 2: 52.12, 3: 36.48, 5: 23.50, 10: 13.97, 20: 9.39}


@pytest.mark.parametrize("every", PUBLISHED)
def test_a_step_costs_what_deepcache_says(every: int) -> None:
    teacher = presets.build("cin256_v2-teacher", device="meta")
    x, context = torch.empty(1, 3, 64, 64, device="meta"), torch.empty(1, 1, 512, device="meta")
    hooks = Reusing(Reuse(every))
    t = torch.empty(1, device="meta")
    found = sum(count_macs(teacher, x, t, context, hooks=hooks) for _ in range(every)) / every
    assert found / 1e9 == pytest.approx(PUBLISHED[every], rel=0.025)


@pytest.mark.parametrize("outer", range(1, BLOCKS + 2))
def test_where_nothing_changes_reuse_changes_nothing(unet: UNet, outer: int) -> None:
    x, t = normal(2, 4, 8, 10), torch.tensor([300, 300])
    hooks = OneSampling([300], Reuse(3, outer))
    with torch.no_grad():
        for _ in range(5):
            torch.testing.assert_close(unet(x, t, hooks=hooks), unet(x, t), rtol=0, atol=1e-5)


@pytest.mark.parametrize("outer", [1, 2, 3])
def test_in_between_the_deep_blocks_are_not_asked(outer: int) -> None:
    """What they would now say is of no matter, and what the outer ones say is."""
    unet, t, hooks = new(), torch.tensor([300]), OneSampling([300], Reuse(2, outer))
    deep = [*unet.input_blocks[outer:], unet.middle_block, *unet.output_blocks[: BLOCKS - outer]]
    with torch.no_grad():
        unet(normal(1, 4, 8, 8), t, hooks=hooks)
        again = [OneSampling([300], Reuse(2, outer)) for _ in range(2)]
        for one in again:
            unet(normal(1, 4, 8, 8), t, hooks=one)
        x = normal(1, 4, 8, 8, seed=1)
        expected = unet(x, t, hooks=hooks)
        assert not torch.allclose(expected, unet(x, t), atol=1e-3)
        for block in deep:
            randomized(block, 9)
        assert torch.equal(unet(x, t, hooks=again[0]), expected)
        randomized(unet.output_blocks[-1], 9)
        assert not torch.allclose(unet(x, t, hooks=again[1]), expected, atol=1e-3)


def middles(unet: UNet, counts: list[int]) -> torch.utils.hooks.RemovableHandle:
    """Notes the number of samples at each call of the middle block."""
    return unet.middle_block[0].register_forward_hook(lambda _layer, inputs, _output: counts.append(len(inputs[0])))


@pytest.mark.parametrize(("every", "whole"), [(1, 8), (2, 4), (3, 3), (8, 1), (100, 1)])
def test_every_so_many_steps_are_whole(unet: UNet, every: int, whole: int) -> None:
    counts: list[int] = []
    handle, times = middles(unet, counts), Schedule().ddim_timesteps(8).tolist()
    ddim(partial(unet, hooks=OneSampling(times, Reuse(every))), normal(2, 4, 8, 8), Schedule(), 8)
    handle.remove()
    assert counts == [2] * whole


@pytest.mark.parametrize("reuse", [Reuse(1), Reuse(3, BLOCKS), Reuse(3, 99)], ids=str)
def test_without_reuse_a_sample_is_the_same_to_the_last_bit(unet: UNet, reuse: Reuse) -> None:
    times = Schedule().ddim_timesteps(5).tolist()
    found, expected = (
        ddim(partial(unet, hooks=OneSampling(times, one)), normal(2, 4, 8, 8), Schedule(), 5) for one in (reuse, None)
    )
    assert torch.equal(found, expected)


def test_another_size_begins_anew(unet: UNet) -> None:
    counts: list[int] = []
    handle, hooks = middles(unet, counts), OneSampling([300], Reuse(10))
    with torch.no_grad():
        for batch in (1, 1, 3, 3, 1, 1):
            unet(normal(batch, 4, 8, 8), torch.full((batch,), 300), hooks=hooks)
    handle.remove()
    assert counts == [1, 3, 1]


@pytest.mark.parametrize(
    "boundary", [BoundaryConfig(0.5), BoundaryConfig(0.5, "blur", width=1.5)], ids=["half", "blur"]
)
def test_each_stage_of_fdm_begins_with_a_whole_step(boundary: BoundaryConfig) -> None:
    """Also where both have one size."""
    staged = UNetConfig(4, 4, 32, (1, 2), 1, (1, 2), 8, num_head_channels=16, stages=StagesConfig((boundary,)))
    unet, schedule = randomized(UNet(staged)).eval().requires_grad_(False), Schedule()
    process = process_of(unet, schedule)
    assert process is not None
    stages = Counter(step.stage for step in fdm.plan_of(process, 8))
    counts: list[int] = []
    handle = middles(unet, counts)
    hooks = OneSampling([step.t for step in fdm.plan_of(process, 8)], Reuse(100))
    made = fdm.sample(partial(unet, hooks=hooks), normal(1, 4, 8, 8), process=process, steps=8)
    handle.remove()
    assert len(stages) == 2 and counts == [1, 1] and made.isfinite().all()


def test_while_gradients_are_recorded_nothing_is_kept() -> None:
    unet, hooks = randomized(UNet(CONFIG)).requires_grad_(), OneSampling([300], Reuse(2))
    counts: list[int] = []
    middles(unet, counts)
    for _ in range(3):
        unet(normal(1, 4, 8, 8), torch.tensor([300]), hooks=hooks).square().sum().backward()
    assert len(counts) == 3


class Counting(Reusing):
    """Also the places where attention comes, as ComfyUI's patches count them."""

    def __init__(self, reuse: Reuse) -> None:
        super().__init__(reuse)
        self.passed = 0
        self.at: dict[tuple[str, int], int] = {}

    def transform(self, shape: tuple[int, ...]) -> None:
        self.passed += 1

    def skipped(self, transformers: int) -> None:
        self.passed += transformers

    def enter(self, part: Part, index: int) -> None:
        self.at[part, index] = self.passed


@pytest.mark.parametrize("outer", [1, 2, 3])
@pytest.mark.parametrize("attending", [(1, 2), (2,)])
def test_places_with_attention_are_counted_as_if_all_were_run(outer: int, attending: tuple[int, ...]) -> None:
    unet = UNet(replace(CONFIG, attention_resolutions=attending, num_res_blocks=2)).eval()
    counts = []
    hooks = Counting(Reuse(2, outer))
    for _ in range(2):
        hooks.passed, hooks.at = 0, {}
        with torch.no_grad():
            unet(normal(1, 4, 8, 8), torch.tensor([300]), hooks=hooks)
        counts.append(hooks.at)
    whole, reused = counts
    assert len(reused) == 2 * outer < len(whole) and reused.items() <= whole.items()


@pytest.mark.parametrize(("every", "outer"), [(0, 1), (2, 0), (1.5, 1), ("2", 1), (True, 1)])
def test_numbers_that_are_none_are_refused(every: int, outer: int) -> None:
    with pytest.raises(SpectralError, match="give a whole number from 1"):
        Reuse(every, outer)
