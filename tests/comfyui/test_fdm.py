"""f-DM students as MODELs, and the f-DM Sampler, on a real server against the library's own run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from spectral_diffusion.spectral import checkpoint
from spectral_diffusion.spectral.checkpoint import Checkpoint

from . import staged_models
from .prompts import LATENT, LOADER, SAMPLER, Link, node
from .results import latent, latents
from .server import ComfyServer, Prompt
from .staged_models import noise_of, sample, simple_times
from .test_sampling import contexts

CASES = [
    ("fdm-half", "text", 2.0, (16, 16), 2),
    ("fdm-half", "text", 1.0, (15, 13), 1),
    ("fdm-quarter", "text", 2.0, (17, 14), 2),
    ("fdm-blur", "text", 3.0, (16, 12), 1),
    ("fdm-vae", "text", 2.0, (15, 16), 2),
    ("fdm-all", "text", 1.0, (16, 16), 1),
    ("fdm-v", "class", 2.0, (13, 16), 2),
    ("fdm-none", "none", 1.0, (16, 16), 1),
]


def assert_near(found: Tensor, expected: Tensor) -> None:
    """Equal to the rounding of float32 after some steps."""
    assert found.shape == expected.shape
    assert (found - expected).abs().max() < 1e-3 * expected.std()


def load(staged: Path, name: str) -> Checkpoint:
    return checkpoint.load(staged / f"{name}.safetensors")


def conditions(student: Checkpoint, kind: str, batch: int) -> list[Tensor | None]:
    """What a prompt of `sample` says, positive and negative."""
    return [one if one is None else one[:batch] for one in contexts(student.conditioner, kind)]


def beside(prompt: Prompt, **samplers: dict[str, Any]) -> Prompt:
    """The prompt with more samplers, like the one that is there but for some inputs."""
    base = prompt[SAMPLER]["inputs"]
    return {**prompt, **{name: node("SamplerCustom", **{**base, **inputs}) for name, inputs in samplers.items()}}


@pytest.mark.parametrize(("name", "kind", "cfg", "size", "batch"), CASES)
def test_a_picture_is_the_librarys(
    comfy: ComfyServer, staged: Path, name: str, kind: str, cfg: float, size: tuple[int, int], batch: int
) -> None:
    prompt = sample(name, kind, batch_size=batch, height=4 * size[0], width=4 * size[1])
    prompt[SAMPLER]["inputs"]["cfg"] = cfg
    student = load(staged, name)
    found = latent(comfy, prompt, [SAMPLER, 0]) * student.config.scale_factor
    noise = noise_of(1, batch, 4, *size)
    expected = staged_models.sampled(student, noise, simple_times(6), cfg, *conditions(student, kind, batch))
    assert_near(found, expected)


@pytest.mark.parametrize("name", ["fdm-half", "fdm-all"])
def test_ancestral_noise_is_every_samples_own(comfy: ComfyServer, staged: Path, name: str) -> None:
    prompt = beside(sample(name, eta=1.0, batch_size=2), ddim={"sampler": ["ddim", 0]}, alone={})
    prompt["ddim"]["inputs"]["sampler"] = ["other", 0]
    prompt["other"] = node("SpectralDiffusionFDMSampler", eta=0.0)
    prompt["one"] = node("SpectralDiffusionEmptyLatent", model=[LOADER, 0], width=0, height=0, batch_size=1)
    prompt["alone"]["inputs"]["latent_image"] = ["one", 0]
    ancestral, ddim, alone = latents(comfy, prompt, (SAMPLER, "ddim", "alone"))
    student = load(staged, name)
    given = conditions(student, "text", 2)
    expected = staged_models.sampled(student, noise_of(1, 2, 4, 16, 16), simple_times(6), 2.0, *given, eta=1.0)
    scale = student.config.scale_factor
    assert_near(ancestral * scale, expected)
    assert_near(alone, ancestral[:1])
    assert (ancestral - ddim).abs().max() > 1e-2


@pytest.mark.parametrize(("name", "denoise"), [("fdm-half", 0.4), ("fdm-quarter", 0.6), ("fdm-vae", 0.8)])
def test_from_a_picture_it_begins_in_the_stage_of_the_first_step(
    comfy: ComfyServer, staged: Path, name: str, denoise: float
) -> None:
    prompt = sample(name, steps=5, denoise=denoise)
    pictures(prompt)
    student = load(staged, name)
    found, start = (one * student.config.scale_factor for one in latents(comfy, prompt, (SAMPLER, LATENT)))
    noise, given = noise_of(1, 2, 4, 16, 16), conditions(student, "text", 2)
    expected = staged_models.sampled(student, noise, simple_times(5, denoise), 2.0, *given, start=start)
    assert_near(found, expected)


def pictures(prompt: Prompt) -> None:
    """Begin with latents of two pictures."""
    prompt["images"] = node("SpectralDiffusionExampleImages", images="emoji-64", count=2)
    prompt[LATENT] = node("VAEEncode", pixels=["images", 0], vae=[LOADER, 2])


@pytest.mark.parametrize(
    ("name", "denoise"), [("fdm-half", 0.7), ("fdm-quarter", 1.0), ("fdm-vae", 1.0), ("fdm-all", 1.0)]
)
def test_inpainting_keeps_what_is_not_painted(comfy: ComfyServer, staged: Path, name: str, denoise: float) -> None:
    """And a mask of all that there is changes nothing, an empty one everything back."""
    prompt = sample(name, denoise=denoise)
    pictures(prompt)
    masks = {"all": (1.0, 64, 0), "part": (1.0, 32, 16), "nothing": (0.0, 64, 0)}
    prompt["ground"] = node("SolidMask", value=0.0, width=64, height=64)
    for key, (value, side, at) in masks.items():
        prompt[f"{key} square"] = node("SolidMask", value=value, width=side, height=side)
        placed: dict[str, Any] = {"destination": ["ground", 0], "source": [f"{key} square", 0], "x": at, "y": at}
        prompt[f"{key} mask"] = node("MaskComposite", **placed, operation="add")
        prompt[f"{key} latent"] = node("SetLatentNoiseMask", samples=[LATENT, 0], mask=[f"{key} mask", 0])
    prompt = beside(prompt, **{key: {"latent_image": [f"{key} latent", 0]} for key in masks})
    plain, start, whole, part, nothing = latents(comfy, prompt, (SAMPLER, LATENT, *masks))
    assert torch.equal(nothing, start)
    assert_near(whole, plain)
    painted = torch.zeros(16, 16, dtype=torch.bool)
    painted[4:12, 4:12] = True
    assert torch.equal(part[..., ~painted], start[..., ~painted])
    assert (part - start)[..., painted].abs().min(dim=1).values.median() > 1e-3


def split(prompt: Prompt, at: int) -> Prompt:
    """The run in two, the second of which goes on where the first stopped, `at` steps from the beginning."""
    prompt["split"] = node("SplitSigmas", sigmas=["sigmas", 0], step=at)
    first = {"sigmas": ["split", 0]}
    second = {"sigmas": ["split", 1], "add_noise": False, "latent_image": ["first", 0]}
    return beside(prompt, first=first, second=second)


@pytest.mark.parametrize("name", ["fdm-quarter", "fdm-vae"])
def test_two_samplers_in_a_row_in_the_last_stage_are_one_run(comfy: ComfyServer, staged: Path, name: str) -> None:
    whole, noisy, two = latents(comfy, split(sample(name, steps=10), 8), (SAMPLER, "first", "second"))
    assert_near(two, whole)
    assert (noisy - whole).abs().max() > 1e-2


def refused(comfy: ComfyServer, prompt: Prompt, link: Link) -> str:
    """What the server says instead of a latent."""
    return comfy.run({**prompt, "saved": node("SaveLatent", samples=link, filename_prefix="test")}).message


def test_a_run_that_cannot_be_is_a_sentence(comfy: ComfyServer, staged: Path) -> None:
    prompt = sample("fdm-quarter", steps=10)
    message = refused(comfy, split(prompt, 2), ["first", 0])
    assert "end with noise left in stage 2" in message and "or at 0" in message
    prompt = split(prompt, 2)
    prompt["second"]["inputs"]["latent_image"] = [LATENT, 0]
    message = refused(comfy, prompt, ["second", 0])
    assert "begin in stage 2. Turn add_noise on" in message
    assert "2 steps cannot go through 3 stages" in refused(comfy, sample("fdm-quarter", steps=2), [SAMPLER, 0])
    prompt["flipped"] = node("FlipSigmas", sigmas=["sigmas", 0])
    message = refused(comfy, beside(prompt, flipped_run={"sigmas": ["flipped", 0]}), ["flipped_run", 0])
    assert "these SIGMAS rise" in message


def test_no_step_leaves_the_latents(comfy: ComfyServer, staged: Path) -> None:
    prompt = sample("fdm-half")
    pictures(prompt)
    found, start = latents(comfy, split(prompt, 0), ("first", LATENT))
    assert torch.equal(found, start)


def test_every_scheduler_leads_through_the_stages(comfy: ComfyServer, staged: Path) -> None:
    prompt = sample("fdm-quarter", steps=7)
    names = ("normal", "karras", "exponential", "sgm_uniform", "ddim_uniform")
    for name in names:
        scheduler = {**prompt["sigmas"]["inputs"], "scheduler": name}
        prompt[f"{name} sigmas"] = node("BasicScheduler", **scheduler)
    prompt = beside(prompt, **{name: {"sigmas": [f"{name} sigmas", 0]} for name in names})
    for name, found in zip(names, latents(comfy, prompt, names), strict=True):
        assert torch.isfinite(found).all() and found.std() > 1e-2, name


def test_half_precision_and_the_autoencoder_between_stages(comfy: ComfyServer, staged: Path) -> None:
    """Its weights are float32 all the same, as the signals are."""
    path = staged_models.write(staged / "fdm-half-precision.safetensors", "vae", dtype=torch.float16)
    found, single = (latent(comfy, sample(name), [SAMPLER, 0]) for name in (path.stem, "fdm-vae"))
    path.unlink()
    assert (found - single).abs().mean() < 0.1 * single.std()
