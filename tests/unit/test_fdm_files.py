"""Models with stages in files: there and back, versions, and descriptions that cannot be."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from spectral_diffusion.spectral import checkpoint, fdm
from spectral_diffusion.spectral.autoencoder import AutoencoderKL
from spectral_diffusion.spectral.config import (
    BoundaryConfig,
    FirstStageConfig,
    ModelConfig,
    ScheduleConfig,
    StagesConfig,
    UNetConfig,
)
from spectral_diffusion.spectral.errors import SpectralError
from spectral_diffusion.spectral.unet import UNet

from .tiny import randomized

B = BoundaryConfig
PAIR = FirstStageConfig("kl", 5, 4, 32, (1, 1), num_res_blocks=1, resolution=16, in_channels=3, out_ch=3)
SMALL = UNetConfig(3, 3, 32, (2,), num_res_blocks=1, channel_mult=(1, 2), image_size=8, num_head_channels=32)
KEPT = StagesConfig((B(0.3, "blur", width=0.7), B(0.6, back="bilinear", gamma=0.9)), dimension_power=0.5)
CODED = StagesConfig((B(0.3, "vae", autoencoder=PAIR, gamma=0.3),))


@pytest.mark.parametrize(
    "stages", [KEPT, CODED, replace(KEPT, interpolate=False, shift=False, predicts="delta")], ids=["", "vae", "all"]
)
def test_a_model_of_stages_comes_back_from_its_file(stages: StagesConfig, tmp_path: Path) -> None:
    config = ModelConfig("student", replace(SMALL, stages=stages), schedule=ScheduleConfig(prediction="v"))
    assert config.unet is not None
    unet = randomized(UNet(config.unet)).eval()
    path = checkpoint.save(tmp_path / "staged.safetensors", config, unet=unet)
    assert description(path)["version"] == 2
    back = checkpoint.load(path)
    assert back.config == config and back.unet is not None
    weights = unet.state_dict()
    assert back.unet.state_dict().keys() == weights.keys()
    assert all(torch.equal(tensor, weights[key]) for key, tensor in back.unet.state_dict().items())
    checkpoint.convert(checkpoint.read(path), tmp_path / "again.safetensors")
    assert checkpoint.read(tmp_path / "again.safetensors").config == config


def test_first_stages_of_other_groups_are_told_apart_by_the_version(tmp_path: Path) -> None:
    few = FirstStageConfig("kl", 3, 3, 32, (1, 2), num_res_blocks=1, resolution=16, norm_groups=8)
    alone = ModelConfig("autoencoder", first_stage=few)
    path = checkpoint.save(tmp_path / "few.safetensors", alone, first_stage=AutoencoderKL(few))
    assert description(path)["version"] == 3 and checkpoint.read(path).config == alone
    usual = replace(alone, first_stage=replace(few, norm_groups=32))
    path = checkpoint.save(tmp_path / "usual.safetensors", usual, first_stage=AutoencoderKL(few))
    assert description(path)["version"] == 1 and "norm_groups" not in json.dumps(description(path))
    assert checkpoint.read(path).config == usual
    coded = StagesConfig((B(0.3, "vae", autoencoder=replace(PAIR, norm_groups=8), gamma=0.3),))
    staged = ModelConfig("student", replace(SMALL, stages=coded), schedule=ScheduleConfig(prediction="v"))
    assert staged.unet is not None
    path = checkpoint.save(tmp_path / "staged.safetensors", staged, unet=UNet(staged.unet))
    assert description(path)["version"] == 3 and checkpoint.read(path).config == staged


def test_a_model_without_stages_is_written_as_ever(tmp_path: Path) -> None:
    path = checkpoint.save(tmp_path / "plain.safetensors", ModelConfig("student", SMALL), unet=UNet(SMALL))
    assert description(path)["version"] == 1 and "stages" not in json.dumps(description(path))
    back = checkpoint.read(path).config
    assert back == ModelConfig("student", SMALL)
    assert back.unet is not None
    staged = replace(back, unet=replace(SMALL, stages=KEPT))  # what was read from an old file, with stages
    assert staged.unet is not None
    path = checkpoint.save(tmp_path / "staged.safetensors", staged, unet=UNet(staged.unet))
    assert description(path)["version"] == 2


def description(path: Path) -> dict[str, Any]:
    with safe_open(path, "pt") as file:
        found: dict[str, Any] = json.loads(file.metadata()["spectral_diffusion"])
    return found


@pytest.mark.parametrize("layout", ["ldm", "diffusers"])
def test_other_layouts_have_no_place_for_stages(layout: Any, tmp_path: Path) -> None:
    config = ModelConfig("student", replace(SMALL, stages=KEPT))
    assert config.unet is not None
    path = checkpoint.save(tmp_path / "staged.safetensors", config, unet=UNet(config.unet))
    to = tmp_path / ("there" if layout == "diffusers" else "there.safetensors")
    with pytest.raises(SpectralError, match="U-Net of stages"):
        checkpoint.convert(checkpoint.read(path), to, layout)
    assert not to.exists()


def _broken(**settings: Any) -> Callable[[dict[str, Any]], None]:
    return lambda stages: stages["boundaries"][1].update(settings)


BROKEN: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "no-boundaries": (lambda s: s.update(boundaries=[]), "stages has no boundaries"),
    "boundaries-not-a-list": (lambda s: s.update(boundaries=3), "boundaries should be a list"),
    "boundary-not-an-object": (lambda s: s.update(boundaries=[0.5]), "should be a JSON object with BoundaryConfig"),
    "unknown-key": (_broken(size=3), "unknown key 'size'"),
    "unknown-setting": (lambda s: s.update(extra=1), "unknown key 'extra'"),
    "no-place": (lambda s: s["boundaries"][1].pop("at"), "lacks the key 'at'"),
    "place-below": (_broken(at=-0.5), "boundary lies at -0.5"),
    "place-above": (_broken(at=1.0), "boundary lies at 1.0"),
    "place-a-word": (_broken(at="0.5"), "at should be float"),
    "falling": (_broken(at=0.1), "expected rising parts"),
    "at-the-end": (_broken(at=0.9999), "two from its end"),
    "factor-0": (_broken(factor=0), "factor is 0; expected 2, 4 or 8"),
    "factor-3": (_broken(factor=3), "factor is 3; expected 2, 4 or 8"),
    "factor-large": (_broken(factor=2**40), "factor is beyond any number"),
    "too-deep": (_broken(factor=8), "last stage is 8 times smaller"),
    "other-transform": (_broken(transform="crop"), "expected one of 'downsample', 'blur', 'vae'"),
    "other-way-back": (_broken(back="cubic"), "expected one of 'nearest', 'bilinear'"),
    "vae-without": (_broken(transform="vae"), "an autoencoder belongs to a vae alone"),
    "autoencoder-broken": (_broken(transform="vae", autoencoder={"kind": "kl"}), "lacks the key 'embed_dim'"),
    "no-energy": (_broken(gamma=0), "gamma is 0.0"),
    "width": (lambda s: s["boundaries"][0].update(width=0), "width of a Gaussian blur is 0"),
    "kernel": (lambda s: s["boundaries"][0].update(kernel="uniform", width=2), "side of a uniform blur is 2"),
    "power": (lambda s: s.update(dimension_power=9), "dimension_power is 9.0"),
    "switch": (lambda s: s.update(shift="no"), "shift should be bool"),
    "other-output": (lambda s: s.update(predicts="epsilon"), "expected one of 'delta', 'detail'"),
    "many": (
        lambda s: s.update(boundaries=[{"at": i / 20, "transform": "blur"} for i in range(1, 11)]),
        "There are 10",
    ),
    "fewer": (lambda s: s["boundaries"].pop(), "belongs to nothing that the checkpoint's configuration describes"),
}


@pytest.fixture(scope="module")
def staged_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = ModelConfig("student", replace(SMALL, stages=KEPT))
    assert config.unet is not None
    return checkpoint.save(tmp_path_factory.mktemp("staged") / "staged.safetensors", config, unet=UNet(config.unet))


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_description_of_stages_is_refused_in_a_sentence(name: str, staged_file: Path, tmp_path: Path) -> None:
    breaks, says = BROKEN[name]
    said = description(staged_file)
    breaks(said["unet"]["stages"])
    path = tmp_path / "broken.safetensors"
    save_file(load_file(staged_file), path, {"spectral_diffusion": json.dumps(said)})
    with pytest.raises(SpectralError, match=says) as refused:
        checkpoint.load(path)
    assert "broken.safetensors" in str(refused.value) and "\n" not in str(refused.value)


def test_what_a_file_says_makes_a_process(staged_file: Path) -> None:
    found = checkpoint.load(staged_file)
    assert found.unet is not None and found.unet.config.stages is not None
    process = fdm.Process(found.schedule, found.unet.config.stages)
    assert process.boundaries == (0, 300, 600, 1000) and process.ratios == pytest.approx((1, 1, 2 * 0.9))
