"""A checkpoint's first stage, KL or VQ, as a ComfyUI VAE: encode, decode, both tiled, on every version of ComfyUI."""

from __future__ import annotations

from typing import Any

import comfy.model_patcher
import comfy.sd
import torch
from comfy.ldm.models.autoencoder import AutoencoderKL
from torch import Tensor
from torch.nn import functional as F

from ..spectral import autoencoder, checkpoint
from ..spectral.checkpoint import CheckpointFile
from ..spectral.config import FirstStageConfig
from ..spectral.formats.source import FIRST_STAGE
from ..spectral.memory import shapes_alone
from . import examples, inputs
from .model import RgbFactors

#: The smallest autoencoder that core builds; ours takes its place.
_PLACEHOLDER = {
    "embed_dim": 4,
    "ddconfig": {
        "double_z": True,
        "z_channels": 4,
        "resolution": 32,
        "in_channels": 3,
        "out_ch": 3,
        "ch": 32,
        "ch_mult": [1],
        "num_res_blocks": 1,
        "attn_resolutions": [],
        "dropout": 0.0,
    },
}


def load_first_stage(file: CheckpointFile, config: FirstStageConfig) -> autoencoder.FirstStage:
    """The checkpoint's first stage, in float32 on the CPU."""
    with shapes_alone():
        stage = autoencoder.build(config)
    where, runs_on = f"{file.path.name}: {FIRST_STAGE}", comfy.model_management.vae_device()
    checkpoint.fill(stage, file.part(FIRST_STAGE), where, "cpu", torch.float32, runs_on)
    return stage


class CheckedVAE(comfy.sd.VAE):  # type: ignore[misc]
    """Core's class, which looks at latents and images before the first stage does.

    Raises:
        SpectralError: from all four: what is connected is of another shape, empty, or holds a number that is not
            finite.
    """

    def decode(self, samples: Any, *args: Any, **kwargs: Any) -> Any:
        return super().decode(self._latents(samples), *args, **kwargs)

    def decode_tiled(self, samples: Any, *args: Any, **kwargs: Any) -> Any:
        return super().decode_tiled(self._latents(samples), *args, **kwargs)

    def encode(self, pixel_samples: Any, *args: Any, **kwargs: Any) -> Any:
        return super().encode(self._images(pixel_samples), *args, **kwargs)

    def encode_tiled(self, pixel_samples: Any, *args: Any, **kwargs: Any) -> Any:
        return super().encode_tiled(self._images(pixel_samples), *args, **kwargs)

    def _latents(self, samples: Any) -> Tensor:
        advice = "connect one that was sampled with the MODEL, or encoded with the VAE, of the same checkpoint"
        return inputs.latents(samples, "This VAE", self.latent_channels, advice)

    def _images(self, pixels: Any) -> Tensor:
        return inputs.images(pixels, "The images for this VAE", smallest=self.downscale_ratio, channels=3)


def build(stage: autoencoder.FirstStage) -> Any:
    """`stage` as a `comfy.sd.VAE`.

    Core's class picks devices and data types and does the batching and tiling; it cannot build a VQ first stage, nor
    everywhere one that reduces by 4, so it is made around a tiny autoencoder that is then replaced.
    """
    weights = AutoencoderKL(**_PLACEHOLDER).state_dict()
    config, factor = stage.config, stage.config.downscale
    # Of thousands of codes, half precision would often take another one than the nearest.
    dtype = torch.float32 if config.kind == "vq" else None
    vae = CheckedVAE(sd=weights, config={"params": _PLACEHOLDER}, dtype=dtype)
    vae.first_stage_model = stage.to(vae.vae_dtype)
    offload = vae.patcher.offload_device
    vae.patcher = comfy.model_patcher.ModelPatcher(stage, load_device=vae.device, offload_device=offload)
    vae.size = None
    vae.downscale_ratio = vae.upscale_ratio = factor
    vae.latent_channels = config.embed_dim
    vae.output_channels = config.out_ch
    # Core's own estimates for an autoencoder of 128 channels that reduces by 8, in proportion.
    width = config.ch / 128
    vae.memory_used_encode = lambda shape, dtype: 1767 * shape[2] * shape[3] * dtype.itemsize * width
    vae.memory_used_decode = lambda shape, dtype: 2178 * shape[2] * shape[3] * factor**2 * dtype.itemsize * width
    return vae


def rgb_factors(stage: autoencoder.FirstStage, scale_factor: float) -> RgbFactors:
    """Fit the colour under each latent cell to the cell, by least squares over a few of the pack's own pictures.

    Args:
        stage: first stage in float32 on the CPU.
        scale_factor: latents that the U-Net sees are first-stage latents × this.
    """
    # At half their size: a quarter of the time, and colours are all that counts here.
    pictures = F.avg_pool2d(examples.colourful(16).movedim(-1, 1), 2) * 2 - 1
    with torch.no_grad():
        latents = stage.encode(pictures) * scale_factor
    colours = F.adaptive_avg_pool2d(pictures, (latents.shape[2], latents.shape[3])).movedim(1, -1).reshape(-1, 3)
    cells = latents.movedim(1, -1).reshape(-1, latents.shape[1])
    design = torch.cat((cells, torch.ones(len(cells), 1)), dim=1)
    solution = torch.linalg.lstsq(design, colours).solution
    return RgbFactors(solution[:-1].tolist(), solution[-1].tolist())
