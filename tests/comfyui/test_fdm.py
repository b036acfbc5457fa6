"""f-DM students as MODELs, and the f-DM Sampler, on a real server against the library's own run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from spectral_diffusion.spectral import checkpoint
from spectral_diffusion.spectral.fdm import CLEAN

from . import prompts, staged_models
from .prompts import LOADER, SAMPLER, node
from .results import latent, models_folder
from .server import ComfyServer, Prompt
from .test_sampling import contexts


@pytest.fixture(scope="module")
def folder(comfy: ComfyServer) -> Iterator[Path]:
    """The server's model folder, with a staged student for each of `staged_models.STAGES`."""
    written = [
        staged_models.write(models_folder(comfy) / f"fdm-{name}.safetensors", name) for name in staged_models.STAGES
    ]
    written.append(staged_models.write(models_folder(comfy) / "fdm-v.safetensors", "quarter", "class", "v"))
    written.append(staged_models.write(models_folder(comfy) / "fdm-none.safetensors", "half", "none"))
    yield models_folder(comfy)
    for path in written:
        path.unlink()


def sample(
    name: str, kind: str = "text", steps: int = 6, eta: float = 0.0, denoise: float = 1.0, **size: int
) -> Prompt:
    """`prompts.generate` of a staged student, by SamplerCustom with f-DM Sampler."""
    made = prompts.generate(kind, **size)
    made[LOADER]["inputs"]["checkpoint"] = f"{name}.safetensors"
    asked = made[SAMPLER]["inputs"]
    made["sigmas"] = node("BasicScheduler", model=[LOADER, 0], scheduler="simple", steps=steps, denoise=denoise)
    made["fdm"] = node("SpectralDiffusionFDMSampler", eta=eta)
    kept = {key: asked[key] for key in ("model", "positive", "negative", "latent_image", "cfg")}
    custom = {"add_noise": True, "noise_seed": asked["seed"], "sampler": ["fdm", 0], "sigmas": ["sigmas", 0]}
    made[SAMPLER] = node("SamplerCustom", **kept, **custom)
    return made


def simple_times(steps: int, denoise: float = 1.0) -> list[int]:
    """The steps that core's scheduler "simple" takes, and the picture."""
    total = int(steps / denoise)
    return [999 - int(index * 1000 / total) for index in range(total)][-steps:] + [CLEAN]


def noise_of(seed: int, *shape: int) -> Tensor:
    """Core's."""
    return torch.randn(*shape, generator=torch.manual_seed(seed))


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


@pytest.mark.parametrize(("name", "kind", "cfg", "size", "batch"), CASES)
def test_a_picture_is_the_librarys(
    comfy: ComfyServer, folder: Path, name: str, kind: str, cfg: float, size: tuple[int, int], batch: int
) -> None:
    prompt = sample(name, kind, batch_size=batch, height=4 * size[0], width=4 * size[1])
    prompt[SAMPLER]["inputs"]["cfg"] = cfg
    student = checkpoint.load(folder / f"{name}.safetensors")
    found = latent(comfy, prompt, [SAMPLER, 0]) * student.config.scale_factor
    noise = noise_of(1, batch, 4, *size)
    positive, negative = (one if one is None else one[:batch] for one in contexts(student.conditioner, kind))
    expected = staged_models.sampled(student, noise, simple_times(6), cfg, positive, negative)
    assert found.shape == expected.shape
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3 * float(expected.std()))
