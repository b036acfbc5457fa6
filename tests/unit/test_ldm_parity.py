"""Outputs of the original latent-diffusion implementation, for weights made by rule (see tests/golden/README.md)."""

from __future__ import annotations

import zlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from spectral_diffusion.spectral import presets
from spectral_diffusion.spectral.autoencoder import AutoencoderKL, AutoencoderVQ
from spectral_diffusion.spectral.config import UNetConfig
from spectral_diffusion.spectral.diffusion import Schedule, ddim
from spectral_diffusion.spectral.unet import UNet

GOLDEN = Path(__file__).parents[1] / "golden"
DDIM_UNET = UNetConfig(
    in_channels=3,
    out_channels=3,
    model_channels=32,
    attention_resolutions=(4, 2),
    num_res_blocks=1,
    channel_mult=(1, 2, 3),
    image_size=16,
    num_head_channels=32,
)


def with_weights_by_rule(module: nn.Module, factor: float = 0.05) -> nn.Module:
    """A module built on the meta device, its weights drawn key by key as the original's were."""
    weights = {}
    for key, tensor in module.state_dict().items():
        generator = torch.Generator().manual_seed(zlib.crc32(key.encode()))
        weights[key] = torch.randn(tensor.shape, generator=generator).mul_(factor)
        if tensor.dim() == 1 and key.endswith("weight"):
            weights[key] += 1
    module.load_state_dict(weights, assign=True)
    return module.eval().requires_grad_(False)


def golden(name: str) -> dict[str, Tensor]:
    return load_file(GOLDEN / f"{name}.safetensors")


def assert_close(ours: Tensor, original: Tensor) -> None:
    """To 1e-4 of the original's largest value, everywhere."""
    torch.testing.assert_close(ours, original, rtol=0, atol=1e-4 * original.abs().max().item())


@pytest.mark.parametrize("name", ["ffhq256", "cin256_v2"])
def test_unet_equals_the_original(name: str) -> None:
    data = golden(f"unet_{name}")
    unet = with_weights_by_rule(presets.build(f"{name}-teacher", device="meta"))
    assert_close(unet(data["x"], data["t"], data.get("context")), data["y"])


def test_vq_first_stage_equals_the_original() -> None:
    data = golden("first_stage_ffhq256")
    first_stage = with_weights_by_rule(presets.build_first_stage("ffhq256", device="meta"))
    assert isinstance(first_stage, AutoencoderVQ)
    latent = first_stage.encode(data["image"])
    assert_close(latent, data["moments_or_prequant"])
    assert torch.equal(first_stage.quantize.indices(latent).flatten(), data["indices"])
    assert_close(first_stage.quantize(latent), data["quantized"])
    assert_close(first_stage.decode(latent), data["decoded"])
    assert_close(first_stage.decode(data["quantized"]), data["decoded"])


def test_kl_first_stage_equals_the_original() -> None:
    data = golden("first_stage_txt2img_1p4B")
    first_stage = with_weights_by_rule(presets.build_first_stage("txt2img_1p4B", device="meta"))
    assert isinstance(first_stage, AutoencoderKL)
    assert_close(first_stage.moments(data["image"]), data["moments_or_prequant"])
    latent = first_stage.encode(data["image"])
    assert_close(latent, data["mode"])
    assert_close(first_stage.decode(latent), data["decoded"])


def test_ddim_equals_the_original_step_by_step() -> None:
    data = golden("ddim_uncond_20")
    unet = with_weights_by_rule(UNet(DDIM_UNET, device="meta"), factor=0.02)
    schedule = Schedule(0.0015, 0.0195, 1000)
    steps: list[int] = []
    predictions: list[Tensor] = []

    def denoise(x: Tensor, t: Tensor, context: Tensor | None = None) -> Tensor:
        steps.append(int(t[0]))
        return unet(x, t, context)  # type: ignore[no-any-return]

    x_0 = ddim(denoise, data["x_T"], schedule, 20, callback=lambda index, x, predicted: predictions.append(predicted))
    assert schedule.ddim_timesteps(20).tolist() == sorted(data["timesteps"].tolist())
    assert steps == sorted(data["timesteps"].tolist(), reverse=True)
    assert_close(torch.stack(predictions), data["pred_x0"])
    assert_close(x_0, data["x_0"])
