"""The native MODEL, CLIP and VAE in the company of core's nodes, on a real server."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from spectral_diffusion.spectral import checkpoint
from spectral_diffusion.spectral.diffusion import ddim, guided
from spectral_diffusion.training.data.trajectories import few_step_schedule
from spectral_diffusion.training.tokens import tokenize

from . import prompts
from .distribution import REPOSITORY
from .prompts import DECODE, LATENT, LOADER, SAMPLER, SAVE, node
from .results import latent
from .server import ComfyServer, Prompt, Run

DEFAULT_MODELS = REPOSITORY / "workflows" / "checkpoints"


def pictures(comfy: ComfyServer, prompt: Prompt, save: str = SAVE) -> list[NDArray[np.uint8]]:
    """Run a prompt that must succeed; the saved images, [H, W, 3] each."""
    run = comfy.run(prompt)
    assert run.error is None, run.message
    return [np.asarray(comfy.image(output)) for output in run.outputs[save]["images"]]


@pytest.mark.parametrize("kind", ["text", "class", "none", "vq", "half"])
def test_every_kind_of_checkpoint_gives_an_image_of_its_own_size(comfy: ComfyServer, kind: str) -> None:
    (image,) = pictures(comfy, prompts.generate(kind))
    assert image.shape == (64, 64, 3)
    assert image.std() > 1


def test_same_seed_same_image_other_seed_another(comfy: ComfyServer) -> None:
    (first,) = pictures(comfy, prompts.generate("text", seed=7))
    (other,) = pictures(comfy, prompts.generate("text", seed=8))
    # A different prefix makes the server save again; one step more in between makes it sample again.
    pictures(comfy, prompts.generate("text", seed=7, steps=5))
    (again,) = pictures(comfy, prompts.generate("text", seed=7))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_the_prompt_and_its_weights_matter(comfy: ComfyServer) -> None:
    texts = ("a red apple", "a green tree", "a (green:1.5) tree")
    first, second, weighted = (pictures(comfy, prompts.generate("text", text=text))[0] for text in texts)
    assert not np.array_equal(first, second)
    assert not np.array_equal(second, weighted)


@pytest.mark.parametrize("kind", ["text", "class", "none", "vq"])
def test_one_step_is_what_the_library_computes(comfy: ComfyServer, kind: str) -> None:
    prompt = prompts.generate(kind, seed=3, steps=1, batch_size=2)
    prompt[SAMPLER]["inputs"] |= {"sampler_name": "euler", "scheduler": "normal", "cfg": 2.0}
    loaded = checkpoint.load(comfy.distribution.base / "models" / "spectral_diffusion" / f"{kind}.safetensors")
    assert loaded.unet is not None and loaded.config.unet is not None
    positive, negative = contexts(loaded.conditioner, kind)
    noise = torch.randn(2, loaded.config.unet.in_channels, 16, 16, generator=torch.manual_seed(3))
    with torch.no_grad():
        last = torch.tensor([999, 999])
        epsilon = guided(loaded.unet, 2.0, positive, negative)(noise, last)
        # From pure noise at t = 999 to the denoised latent: x_T = noise · √(1 + σ²) in units where x = x_0 + σ ε.
        alpha = loaded.schedule.alphas_cumprod[999].item()
        expected = noise / alpha**0.5 - epsilon * ((1 - alpha) / alpha) ** 0.5
    found = latent(comfy, prompt, [SAMPLER, 0]) * loaded.config.scale_factor
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-2)


def contexts(conditioner: nn.Module | None, kind: str) -> tuple[Tensor | None, Tensor | None]:
    """What `prompts.generate` conditions on, positive and negative, as the library makes it."""
    if conditioner is None:
        return None, None
    asked, empty = torch.tensor([3]), torch.tensor([10])
    if kind == "text":
        # CLIP's tokens of "a red apple", and of the empty text.
        asked, empty = (
            torch.tensor([[49406, *words] + [49407] * (76 - len(words))]) for words in ([320, 736, 3055], [])
        )
    with torch.no_grad():
        return conditioner(asked).expand(2, -1, -1), conditioner(empty).expand(2, -1, -1)


@pytest.mark.parametrize("cfg", [1.0, 3.0])
def test_the_default_student_draws_what_the_kit_draws(comfy: ComfyServer, cfg: float) -> None:
    """From the same noise, core's sampler in its terms (sigmas, Euler) and the library's DDIM: the same pictures."""
    prompt = prompts.generate("text", seed=5, steps=50, batch_size=2, text="smiling face with hearts")
    prompt[LOADER]["inputs"]["checkpoint"] = "emoji64-student.safetensors"
    prompt[SAMPLER]["inputs"]["cfg"] = cfg
    expected = drawn_by_the_kit(DEFAULT_MODELS / "emoji64-student.safetensors", "smiling face with hearts", 50, cfg)
    difference = np.abs(np.stack(pictures(comfy, prompt)) - expected)
    assert difference.mean() < 1.5 and difference.max() < 30  # of 255; the server cuts to whole numbers


@pytest.mark.parametrize("sampler", ["euler", "ddim"])
def test_a_student_of_few_steps_draws_what_the_kit_draws(comfy: ComfyServer, sampler: str) -> None:
    """As the loader says that it is sampled; what its weights have learnt does not matter here."""
    student = checkpoint.load(DEFAULT_MODELS / "emoji64-student.safetensors")
    config = replace(student.config, schedule=few_step_schedule(student.config.schedule), few_steps=4)
    path = comfy.distribution.base / "models" / "spectral_diffusion" / f"few-{sampler}.safetensors"
    parts = {"unet": student.unet, "first_stage": student.first_stage, "conditioner": student.conditioner}
    checkpoint.save(path, config, **parts)
    prompt = prompts.generate("text", seed=5, steps=4, batch_size=2, text="red apple")
    prompt[LOADER]["inputs"]["checkpoint"] = path.name
    prompt[SAMPLER]["inputs"] |= {"cfg": 1.0, "sampler_name": sampler, "scheduler": "simple"}
    found = np.stack(pictures(comfy, prompt))
    expected = drawn_by_the_kit(path, "red apple", 4, 1.0)
    path.unlink()
    difference = np.abs(found - expected)
    assert expected.std() > 10 and difference.mean() < 1.5 and difference.max() < 30


def drawn_by_the_kit(path: Path, text: str, steps: int, cfg: float) -> NDArray[np.float32]:
    """Two pictures from seed 5, [2, H, W, 3] in [0, 255]."""
    student = checkpoint.load(path)
    assert student.unet is not None and student.first_stage is not None and student.conditioner is not None
    with torch.no_grad():
        positive, negative = student.conditioner(tokenize([text, ""])).split(1)
        noise = torch.randn(2, 4, 16, 16, generator=torch.manual_seed(5))
        cond = positive.expand(2, -1, -1)
        latent = ddim(student.unet, noise, student.schedule, steps, guidance=cfg, cond=cond, uncond=negative)
        decoded = student.first_stage.decode(latent / student.config.scale_factor)
    return ((decoded.clamp(-1, 1) + 1) * 127.5).movedim(1, -1).numpy()  # type: ignore[no-any-return]


def test_progress_and_previews_arrive(comfy: ComfyServer) -> None:
    run = comfy.run(prompts.generate("text", seed=21, steps=5))
    assert [value for value, maximum in run.progress if maximum == 5] == [1, 2, 3, 4, 5]
    assert len(run.previews) == 5
    assert np.asarray(run.previews[-1]).std() > 1


@pytest.mark.parametrize(("width", "height"), [(96, 64), (52, 76), (20, 128)])
@pytest.mark.parametrize("kind", ["text", "vq"])
def test_any_latent_size(comfy: ComfyServer, kind: str, width: int, height: int) -> None:
    images = pictures(comfy, prompts.generate(kind, width=width, height=height, batch_size=2))
    assert [image.shape for image in images] == [(height, width, 3)] * 2


def test_image_to_image_keeps_more_with_less_denoising(comfy: ComfyServer) -> None:
    Image.linear_gradient("L").resize((64, 64)).save(comfy.distribution.base / "input" / "gradient.png")
    images = {}
    for denoise in (0.1, 0.9):
        prompt = from_image(denoise)
        images[denoise] = pictures(comfy, prompt)[0].astype(float)
    prompt["untouched"] = node("SaveImage", images=["untouched decoded", 0], filename_prefix="test")
    prompt["untouched decoded"] = node("VAEDecode", samples=[LATENT, 0], vae=[LOADER, 2])
    untouched = pictures(comfy, prompt, "untouched")[0]
    assert np.abs(images[0.1] - untouched).mean() < np.abs(images[0.9] - untouched).mean()


@pytest.mark.parametrize("strength", [0, 128, 255])
def test_a_mask_decides_where_and_how_much_is_sampled(comfy: ComfyServer, strength: int) -> None:
    mask = Image.new("RGBA", (64, 64), (128, 90, 200, 255))
    mask.paste((128, 90, 200, 255 - strength), (32, 0, 64, 64))
    mask.save(comfy.distribution.base / "input" / f"mask{strength}.png")
    prompt = from_image(1.0, f"mask{strength}.png")
    prompt["masked"] = node("SetLatentNoiseMask", samples=[LATENT, 0], mask=["image", 1])
    prompt[SAMPLER]["inputs"]["latent_image"] = ["masked", 0]
    change = (latent(comfy, prompt, [SAMPLER, 0]) - latent(comfy, prompt, [LATENT, 0])).abs().mean((0, 1, 2))
    assert change[:8].max() < 1e-5
    assert (change[8:].min() > 1e-3) == (strength > 0)


def from_image(denoise: float, name: str = "gradient.png") -> Prompt:
    """`prompts.generate`, begun from an image of the input folder."""
    prompt = prompts.generate("text", steps=10)
    prompt["image"] = node("LoadImage", image=name)
    prompt[LATENT] = node("VAEEncode", pixels=["image", 0], vae=[LOADER, 2])
    prompt[SAMPLER]["inputs"]["denoise"] = denoise
    return prompt


def test_tiled_decoding_agrees_with_plain_decoding(comfy: ComfyServer) -> None:
    prompt = prompts.generate("vq", width=128, height=128)
    (plain,) = pictures(comfy, prompt)
    prompt[DECODE]["class_type"] = "VAEDecodeTiled"
    prompt[DECODE]["inputs"] |= {"tile_size": 512, "overlap": 64, "temporal_size": 64, "temporal_overlap": 8}
    (tiled,) = pictures(comfy, prompt)
    assert np.abs(plain.astype(int) - tiled).mean() < 1


def test_an_interrupted_run_ends_and_the_next_one_works(comfy: ComfyServer) -> None:
    def interrupt(value: int) -> None:
        if value == 2:
            comfy.post("/interrupt", {})

    run: Run = comfy.run(prompts.generate("text", seed=5, steps=500), on_progress=interrupt)
    assert run.interrupted
    assert max(value for value, _ in run.progress) < 500
    assert pictures(comfy, prompts.generate("text", seed=5))


def test_queueing_again_does_not_load_again(comfy: ComfyServer) -> None:
    comfy.run(prompts.generate("text", seed=31))
    run = comfy.run(prompts.generate("text", seed=32))
    assert LOADER in run.cached
    assert SAMPLER not in run.cached
