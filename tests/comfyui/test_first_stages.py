"""First stages of every kind as ComfyUI VAEs: encode and decode are the library's, tiles agree with the whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from spectral_diffusion.spectral import autoencoder, checkpoint
from spectral_diffusion.spectral.config import FirstStageConfig, ModelConfig

from ..unit.tiny import randomized
from .prompts import node
from .server import ComfyServer, Prompt

#: The published ones with fewer channels, and one of a shape that no published model has.
STAGES = {
    "vq-f4": FirstStageConfig("vq", 3, 3, 32, (1, 2, 4), 1, n_embed=64),
    "vq-f8": FirstStageConfig("vq", 4, 4, 32, (1, 2, 2, 4), 1, (32,), n_embed=64),
    "kl-f4": FirstStageConfig("kl", 3, 3, 32, (1, 2, 4), 1),
    "kl-f8": FirstStageConfig("kl", 4, 4, 32, (1, 2, 4, 4), 1),
    "kl-f2": FirstStageConfig("kl", 5, 8, 32, (1, 3), 1),
    "kl-f16": FirstStageConfig("kl", 16, 16, 32, (1, 1, 1, 1, 2), 1, (16,)),
}
#: Whose tiles are tested at leisure; in kl-f2's, attention over all cells would take minutes.
SLOW = ("vq-f8", "kl-f4", "kl-f8", "kl-f16")


@pytest.fixture(params=STAGES, scope="module")
def stage(request: pytest.FixtureRequest, comfy: ComfyServer) -> autoencoder.FirstStage:
    """One of them, in a file of its own; `name` is the file's."""
    config = STAGES[request.param]
    made = randomized(autoencoder.build(config), 7).eval()
    path = comfy.distribution.base / "models" / "spectral_diffusion" / f"stage-{request.param}.safetensors"
    checkpoint.save(path, ModelConfig("autoencoder", first_stage=config), first_stage=made)
    made.name = path.name  # type: ignore[assignment]
    return made


def vae(stage: autoencoder.FirstStage) -> dict[str, Any]:
    return node("SpectralDiffusionLoadCheckpoint", checkpoint=stage.name)


def run(comfy: ComfyServer, prompt: Prompt) -> dict[str, Any]:
    done = comfy.run(prompt)
    assert done.error is None, done.message
    return done.outputs


def encoded(comfy: ComfyServer, stage: autoencoder.FirstStage, side: int, **tiles: int) -> tuple[Tensor, Tensor]:
    """A smooth picture of `side` pixels, [1, 3, H, W] in [−1, 1], and the latent that the server makes of it."""
    waves = np.sin(np.arange(side) / (9 + np.arange(3)[:, None]))
    pixels = ((waves[:, None] * waves[:, :, None] + 1) * 127.5).round().astype(np.uint8)
    Image.fromarray(pixels.transpose(1, 2, 0)).save(comfy.distribution.base / "input" / f"waves{side}.png")
    kind = "VAEEncodeTiled" if tiles else "VAEEncode"
    prompt = {
        "loader": vae(stage),
        "image": node("LoadImage", image=f"waves{side}.png"),
        "encode": node(kind, pixels=["image", 0], vae=["loader", 2], **tiles),
        "save": node("SaveLatent", samples=["encode", 0], filename_prefix="stage"),
    }
    saved = run(comfy, prompt)["save"]["latents"][0]
    latent = load_file(comfy.distribution.base / "output" / saved["filename"])["latent_tensor"]
    return torch.from_numpy(pixels)[None] / 127.5 - 1, latent


def decoded(comfy: ComfyServer, stage: autoencoder.FirstStage, side: int, **tiles: int) -> tuple[Tensor, NDArray[Any]]:
    """A random latent of `side` cells, and the pixels [H, W, 3] that the server makes of it."""
    latent = torch.randn(1, stage.config.embed_dim, side, side, generator=torch.Generator().manual_seed(1))
    path = Path(comfy.distribution.base, "input", f"{stage.name}-{side}.latent")
    save_file({"latent_tensor": latent, "latent_format_version_0": torch.tensor([])}, path)
    kind = "VAEDecodeTiled" if tiles else "VAEDecode"
    prompt = {
        "loader": vae(stage),
        "latent": node("LoadLatent", latent=path.name),
        "decode": node(kind, samples=["latent", 0], vae=["loader", 2], **tiles),
        "save": node("SaveImage", images=["decode", 0], filename_prefix="stage"),
    }
    image = run(comfy, prompt)["save"]["images"][0]
    return latent, np.asarray(comfy.image(image)).astype(float)


def test_encoding_is_the_library_s(comfy: ComfyServer, stage: autoencoder.FirstStage) -> None:
    picture, latent = encoded(comfy, stage, 64)
    with torch.no_grad():
        torch.testing.assert_close(latent, stage.encode(picture), rtol=1e-3, atol=1e-3)


def test_decoding_is_the_library_s(comfy: ComfyServer, stage: autoencoder.FirstStage) -> None:
    latent, pixels = decoded(comfy, stage, 8)
    assert pixels.shape == (8 * stage.config.downscale,) * 2 + (3,)
    with torch.no_grad():
        expected = ((stage.decode(latent)[0].movedim(0, -1) + 1) * 127.5).clamp(0, 255)
    assert np.abs(pixels - expected.numpy()).max() <= 1.01
    assert pixels.std() > 1


@pytest.mark.parametrize(
    "stage", ["vq-f4", *(pytest.param(name, marks=pytest.mark.long) for name in SLOW)], indirect=True
)
def test_tiles_agree_with_the_whole(comfy: ComfyServer, stage: autoencoder.FirstStage) -> None:
    """Norms and attention see one tile alone, so a random network's tiles only resemble the whole picture's."""
    tiles = {"tile_size": 320, "overlap": 64, "temporal_size": 64, "temporal_overlap": 8}
    cells, side = 44, 352  # a little more than a tile: 320 pixels are 40 cells to ComfyUI, whatever the first stage
    _, whole = decoded(comfy, stage, cells)
    _, tiled = decoded(comfy, stage, cells, **tiles)
    assert whole.shape == tiled.shape == (cells * stage.config.downscale,) * 2 + (3,)
    assert np.corrcoef(whole.ravel(), tiled.ravel())[0, 1] > 0.8
    _, latent = encoded(comfy, stage, side)
    _, in_tiles = encoded(comfy, stage, side, **tiles)
    assert latent.shape == in_tiles.shape == (1, stage.config.embed_dim, *(side // stage.config.downscale,) * 2)
    assert np.corrcoef(latent.ravel(), in_tiles.ravel())[0, 1] > 0.8
