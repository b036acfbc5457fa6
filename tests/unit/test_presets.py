"""The preset table against the published checkpoints' keys and shapes, and the paper's counts (Tables 2 to 4)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from spectral_diffusion.spectral import counting, presets
from spectral_diffusion.spectral.autoencoder import AutoencoderKL, AutoencoderVQ
from spectral_diffusion.spectral.errors import SpectralError

MANIFESTS = Path(__file__).parents[1] / "manifests"
COUNTS = json.loads((MANIFESTS / "architectures.json").read_text())
TEACHERS = sorted(path.stem for path in MANIFESTS.glob("*.json") if path.stem != "architectures")


def manifest(name: str) -> dict[str, Any]:
    """A published teacher: its configuration, counts, and every key with its shape."""
    return json.loads((MANIFESTS / f"{name}.json").read_text())  # type: ignore[no-any-return]


def shapes(module: nn.Module) -> dict[str, list[int]]:
    return {key: list(tensor.shape) for key, tensor in module.state_dict().items()}


def part(name: str, prefix: str) -> dict[str, list[int]]:
    keys: dict[str, list[int]] = manifest(name)["keys"]
    return {key.removeprefix(prefix): shape for key, shape in keys.items() if key.startswith(prefix)}


every_count = pytest.mark.parametrize(
    ("name", "counts"),
    [
        pytest.param(f"{base}-{role}", counts, id=f"{base}-{role}")
        for base in COUNTS
        for role, counts in COUNTS[base].items()
    ],
)


@every_count
def test_parameters_match_the_papers_tables(name: str, counts: dict[str, int]) -> None:
    unet = presets.build(name, device="meta")
    assert unet.config.model_channels == counts["model_channels"]
    assert counting.parameters(unet) == counts["params"]


@every_count
def test_multiply_adds_match_the_papers_tables(name: str, counts: dict[str, int]) -> None:
    assert counting.unet_macs(presets.config(name)) == counts["macs_conv_linear"]


@pytest.mark.parametrize("name", TEACHERS)
def test_unet_has_the_keys_and_shapes_of_the_published_file(name: str) -> None:
    unet = presets.build(f"{name}-teacher", device="meta")
    assert shapes(unet) == part(name, "model.diffusion_model.")
    assert counting.parameters(unet) == manifest(name)["unet_params"]


@pytest.mark.parametrize("name", TEACHERS)
def test_first_stage_has_the_keys_and_shapes_of_the_published_file(name: str) -> None:
    first_stage = presets.build_first_stage(name, device="meta")
    assert shapes(first_stage) == part(name, "first_stage_model.")
    assert counting.parameters(first_stage) == manifest(name)["first_stage_params"]


@pytest.mark.parametrize("name", TEACHERS)
def test_latent_schedule_and_conditioning_are_the_published_ones(name: str) -> None:
    published, config = manifest(name)["config"], presets.config(f"{name}-teacher")
    assert config.unet is not None and config.first_stage is not None
    assert (config.unet.image_size, config.unet.in_channels) == (published["image_size"], published["channels"])
    assert (config.schedule.linear_start, config.schedule.linear_end, config.schedule.steps) == (
        published["linear_start"],
        published["linear_end"],
        published["timesteps"],
    )
    assert config.scale_factor == published.get("scale_factor", 1.0)
    details = published["first_stage"]["ddconfig"]
    assert config.first_stage.downscale == 2 ** (len(details["ch_mult"]) - 1)
    assert config.first_stage.resolution == details["resolution"]
    conditioner = published["cond_stage"]
    if conditioner == "__is_unconditional__":
        assert config.conditioning.kind == "none"
    else:
        assert config.conditioning.kind == {"ClassEmbedder": "class", "BERTEmbedder": "text"}[conditioner["target"]]
        if conditioner["target"] == "BERTEmbedder":
            assert (config.conditioning.tower, config.conditioning.layers) == ("ldm", conditioner["n_layer"])
        assert config.conditioning.width == conditioner.get("embed_dim", conditioner.get("n_embed"))
        assert config.conditioning.n_classes == (conditioner.get("n_classes", 1000) if "key" in conditioner else 0)


@pytest.mark.parametrize(("name", "kind"), [("ffhq256", AutoencoderVQ), ("txt2img_1p4B", AutoencoderKL)])
def test_first_stage_latents_have_the_unets_shape(name: str, kind: type[nn.Module]) -> None:
    unet, first_stage = presets.config(f"{name}-teacher").unet, presets.build_first_stage(name, device="meta")
    assert unet is not None and isinstance(first_stage, kind)
    latent = first_stage.encode(torch.empty(1, 3, 256, 256, device="meta"))
    assert latent.shape == (1, unet.in_channels, unet.image_size, unet.image_size)
    assert first_stage.decode(latent).shape == (1, 3, 256, 256)


@pytest.mark.parametrize("name", presets.names())
def test_a_student_differs_from_its_teacher_in_width_and_resampling_alone(name: str) -> None:
    base, role = name.rsplit("-", 1)
    teacher, unet = presets.config(f"{base}-teacher").unet, presets.config(name).unet
    assert teacher is not None and unet is not None
    differing = {key for key in vars(unet) if getattr(unet, key) != getattr(teacher, key)}
    assert differing == {"teacher": set(), "lite": {"model_channels"}, "student": {"model_channels", "resampler"}}[role]


def test_dtype_device_and_settings_are_followed() -> None:
    unet = presets.build("ffhq256-student", device="meta", dtype=torch.float16, wavelet="db2", image_size=32)
    assert {(p.device.type, p.dtype) for p in unet.parameters()} == {("meta", torch.float16)}
    assert (unet.config.wavelet, unet.config.image_size) == ("db2", 32)
    first_stage = presets.build_first_stage("ffhq256", device="meta", dtype=torch.bfloat16)
    assert {(p.device.type, p.dtype) for p in first_stage.parameters()} == {("meta", torch.bfloat16)}


@pytest.mark.parametrize("name", ["ffhq257-student", "ffhq256", "ffhq256-tiny", "student", "-student", ""])
def test_an_unknown_preset_is_one_sentence_with_the_known_ones(name: str) -> None:
    for ask in (presets.config, presets.build):
        with pytest.raises(SpectralError) as caught:
            ask(name)
        assert repr(name) in str(caught.value) and "cin256_v2" in str(caught.value) and "-student" in str(caught.value)


def test_an_unknown_first_stage_is_one_sentence_with_the_known_ones() -> None:
    with pytest.raises(SpectralError, match=r"'ffhq257'.*ffhq256.*txt2img_1p4B"):
        presets.build_first_stage("ffhq257")
