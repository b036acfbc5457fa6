"""Tiny f-DM students with random weights, prompts that sample them, and the library's own way through their stages."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from spectral_diffusion.spectral import autoencoder, checkpoint, conditioning, fdm
from spectral_diffusion.spectral.checkpoint import Checkpoint
from spectral_diffusion.spectral.config import (
    BoundaryConfig,
    FirstStageConfig,
    ModelConfig,
    ScheduleConfig,
    StagesConfig,
)
from spectral_diffusion.spectral.diffusion import Schedule, guided
from spectral_diffusion.spectral.fdm import FreshNoise, Process
from spectral_diffusion.spectral.hooks import NO_HOOKS, Hooks
from spectral_diffusion.spectral.unet import UNet

from ..unit.tiny import randomized
from . import models, prompts
from .prompts import LOADER, SAMPLER, node
from .server import Prompt

#: Halves latents of 4 channels.
PAIR = FirstStageConfig(
    "kl", embed_dim=6, z_channels=6, ch=32, ch_mult=(1, 1), num_res_blocks=1, resolution=16, in_channels=4, out_ch=4
)
STAGES = {
    "half": StagesConfig((BoundaryConfig(0.5),)),
    "quarter": StagesConfig((BoundaryConfig(0.35), BoundaryConfig(0.7, back="bilinear")), predicts="delta"),
    "blur": StagesConfig((BoundaryConfig(0.5, "blur", width=1.5),)),
    "vae": StagesConfig((BoundaryConfig(0.5, "vae", gamma=0.7, autoencoder=PAIR),)),
    "all": StagesConfig((BoundaryConfig(0.3, "blur", kernel="uniform", width=3), BoundaryConfig(0.6))),
}


def write(
    path: Path, stages: str, kind: str = "text", prediction: str = "eps", dtype: torch.dtype = torch.float32
) -> Path:
    """As `models.write`, in the stages of this name."""
    condition = models.CONDITIONINGS[kind]
    unet = replace(models.unet_config(4, condition), stages=STAGES[stages])
    schedule = ScheduleConfig(0.0015, 0.0195, prediction=prediction)  # type: ignore[arg-type]
    config = ModelConfig("student", unet, models.KL_F4, condition, schedule, scale_factor=0.5)
    conditioner = conditioning.build(condition)
    return checkpoint.save(
        path,
        config,
        unet=randomized(UNet(unet), 1),
        first_stage=randomized(autoencoder.build(models.KL_F4), 2),
        conditioner=None if conditioner is None else randomized(conditioner, 3),
        dtype=dtype,
    )


def write_all(folder: Path) -> list[Path]:
    """One for each of STAGES, all conditioned on text; `fdm-v` predicts the velocity and knows classes."""
    written = [write(folder / f"fdm-{name}.safetensors", name) for name in STAGES]
    written.append(write(folder / "fdm-v.safetensors", "quarter", "class", "v"))
    return [*written, write(folder / "fdm-none.safetensors", "half", "none")]


def sample(
    name: str, kind: str = "text", *, steps: int = 6, eta: float = 0.0, denoise: float = 1.0, **size: int
) -> Prompt:
    """`prompts.generate` of a staged student, by SamplerCustom with f-DM Sampler and core's scheduler "simple"."""
    made = prompts.generate(kind, **size)
    made[LOADER]["inputs"]["checkpoint"] = f"{name}.safetensors"
    asked = made[SAMPLER]["inputs"]
    made["sigmas"] = node("BasicScheduler", model=[LOADER, 0], scheduler="simple", steps=steps, denoise=denoise)
    made["fdm"] = node("SpectralDiffusionFDMSampler", eta=eta)
    kept = {key: asked[key] for key in ("model", "positive", "negative", "latent_image", "cfg")}
    custom = {"add_noise": True, "noise_seed": asked["seed"], "sampler": ["fdm", 0], "sigmas": ["sigmas", 0]}
    made[SAMPLER] = node("SamplerCustom", **kept, **custom)
    del made[prompts.DECODE], made[prompts.SAVE]
    return made


def simple_times(steps: int, denoise: float = 1.0) -> list[int]:
    """The steps that "simple" takes, and the picture."""
    total = int(steps / denoise)
    return [*[999 - int(index * 1000 / total) for index in range(total)][-steps:], fdm.CLEAN]


def noise_of(seed: int, *shape: int) -> Tensor:
    """Core's."""
    return torch.randn(*shape, generator=torch.manual_seed(seed))


def process_of(student: Checkpoint) -> Process:
    """The stages of a loaded student."""
    assert student.unet is not None and student.unet.config.stages is not None
    pairs = {int(key): pair for key, pair in student.unet.stage_pairs.items()}
    return Process(Schedule.from_config(student.config.schedule), student.unet.config.stages, pairs)


@torch.no_grad()
def sampled(
    student: Checkpoint,
    noise: Tensor,
    times: list[int],
    guidance: float,
    cond: Tensor | None,
    uncond: Tensor | None,
    *,
    eta: float = 0.0,
    start: Tensor | None = None,
    hooks: Hooks = NO_HOOKS,
) -> Tensor:
    """The library's run down `times`: the latents [B, C, H, W] that it ends with, in the network's scale.

    Args:
        start: latents that the noise of the first step lies on; None for noise alone.
        hooks: on the way through the network.
    """
    process, unet = process_of(student), student.unet
    assert unet is not None
    sizes = [shape[1:] for shape in process.shapes(noise.shape[1], (noise.shape[2], noise.shape[3]))]
    fresh, walk = FreshNoise(noise), fdm.plan(process, times)
    z = process.restrict(noise, walk[0].stage, fresh)
    if start is not None:
        t = torch.full((len(noise),), walk[0].t)
        z = process.noised(process.point(start, t, walk[0].stage).x, t, walk[0].stage, z)
    for step in walk:
        t = torch.full((len(noise),), step.t)
        ask = guided(
            lambda x, t, context=None, stage=step.stage: unet(x, t, context, hooks=hooks, stage=stage),
            guidance,
            cond,
            uncond,
        )
        z = fdm.advance(process, step, process.read(z, t, step.stage, ask(z, t)), fresh, sizes, eta=eta)
    return z
