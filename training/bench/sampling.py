"""What sampling adds to the calls of the network, and what stages take away."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from ...spectral import checkpoint, fdm
from ...spectral.config import BoundaryConfig, ModelConfig, StagesConfig
from ...spectral.deep_features import Reuse
from ...spectral.diffusion import Schedule, ddim
from ...spectral.fdm import Process
from ...spectral.reuse import OneSampling
from ...spectral.unet import UNet
from ..demo import TEACHER
from ..processes import device
from .networks import filled
from .timing import Settings, in_turn, overhead, speed

#: Stages of the default f-DM student (configs/emoji64-fdm.yaml).
STAGES = StagesConfig((BoundaryConfig(0.25, factor=4),))
STEPS = 20


def measure_loop(settings: Settings) -> dict[str, float]:
    """`ddim_overhead`: sampling with guidance over as many calls of the network alone, the default student."""
    batch = settings.of_batch(cpu=16)
    config, unet, noise, context = _student(batch, None)
    schedule = Schedule.from_config(config.schedule)
    asked = schedule.ddim_timesteps(STEPS).tolist()
    both, t = torch.cat([noise, noise]), torch.full((2 * batch,), asked[0], device=device())
    contexts = torch.cat([context, context])

    def bare() -> None:
        network = partial(unet, hooks=OneSampling(asked))
        for _ in range(STEPS):
            network(both, t, contexts)

    def loop() -> Tensor:
        network = partial(unet, hooks=OneSampling(asked))
        return ddim(network, noise, schedule, STEPS, guidance=2.0, cond=context, uncond=context[:1])

    with torch.inference_mode():
        times = in_turn({"loop": loop, "bare": bare}, settings.rounds(cpu=11, quick=5))
    return overhead("ddim_overhead", times, "loop", "bare", batch)


def measure_stages(settings: Settings) -> dict[str, float]:
    """`fdm_speedup`: latents of the default student in two stages, against one stage with as many steps."""
    batch = settings.of_batch(cpu=32)
    config, plain, noise, context = _student(batch, None)
    staged = _student(batch, STAGES)[1]
    schedule = Schedule.from_config(config.schedule)
    process = Process(schedule, STAGES)
    asked, plan = schedule.ddim_timesteps(STEPS).tolist(), [step.t for step in fdm.plan_of(process, STEPS)]
    calls = {
        "one": lambda: ddim(partial(plain, hooks=OneSampling(asked)), noise, schedule, STEPS, cond=context),
        "two": lambda: fdm.sample(partial(staged, hooks=OneSampling(plan)), noise, process, STEPS, cond=context),
    }
    with torch.no_grad():
        times = in_turn(calls, settings.rounds(cpu=11, quick=3))
    return speed("fdm_speedup", times, "two", "one", batch)


def measure_reuse(settings: Settings) -> dict[str, float]:
    """`reuse_2_speedup` and `reuse_3_speedup`: the default student with every second or third step whole, against all.

    The others run the outermost blocks alone (`spectral.deep_features`).
    """
    batch = settings.of_batch(cpu=16)
    config, unet, noise, context = _student(batch, None)
    schedule = Schedule.from_config(config.schedule)
    asked = schedule.ddim_timesteps(STEPS).tolist()

    def loop(reuse: Reuse | None) -> Tensor:
        network = partial(unet, hooks=OneSampling(asked, reuse))
        return ddim(network, noise, schedule, STEPS, guidance=2.0, cond=context, uncond=context[:1])

    calls = {"whole": partial(loop, None), "2": partial(loop, Reuse(2)), "3": partial(loop, Reuse(3))}
    with torch.no_grad():
        times = in_turn(calls, settings.rounds(cpu=11, quick=3))
    return {
        key: value
        for every in "23"
        for key, value in speed(f"reuse_{every}_speedup", times, every, "whole", batch).items()
    }


def _student(batch: int, stages: StagesConfig | None) -> tuple[ModelConfig, UNet, Tensor, Tensor]:
    """The default student's network with other weights, noise for it, and a context."""
    config = checkpoint.read(TEACHER.with_name("emoji64-student.safetensors")).config
    assert config.unet is not None and config.unet.context_dim is not None
    unet = filled(partial(UNet, replace(config.unet, stages=stages)), torch.float32)
    assert isinstance(unet, UNet)
    side = config.unet.image_size
    noise = torch.randn(batch, config.unet.in_channels, side, side, generator=torch.Generator().manual_seed(0))
    context = torch.zeros(batch, config.conditioning.context_length, config.unet.context_dim, device=device())
    return config, unet, noise.to(device()), context
