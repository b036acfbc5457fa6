"""First stages that go on from others, and decoders that are trained alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from spectral_diffusion.spectral import checkpoint
from spectral_diffusion.spectral.config import ModelConfig
from spectral_diffusion.spectral.errors import SpectralError
from spectral_diffusion.training import train_autoencoder
from spectral_diffusion.training.data.config import DataConfig
from spectral_diffusion.training.loop.config import RunConfig
from spectral_diffusion.training.train_autoencoder import AutoencoderConfig

from . import tiny

SMALL = replace(tiny.FIRST_STAGE, norm_groups=8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stages")
    tiny.pictures(folder / "data")
    tiny.write(folder / "start.safetensors", ModelConfig("autoencoder", first_stage=SMALL, scale_factor=0.7))
    return folder


def configure(folder: Path, out: Path) -> AutoencoderConfig:
    run = RunConfig(out, steps=3, batch_size=4, lr=1e-2, warmup=0, ema=0.0, preview_every=0, trackers=())
    return AutoencoderConfig(run, DataConfig(str(folder / "data"), size=16), SMALL, init=folder / "start.safetensors")


@pytest.mark.parametrize("alone", [True, False])
def test_only_the_decoder_changes_where_that_is_asked_for(alone: bool, folder: Path, tmp_path: Path) -> None:
    """And the texture's distance is one of the terms that are logged."""
    config = replace(configure(folder, tmp_path / "run"), decoder_only=alone, texture_weight=0.1)
    result = train_autoencoder.train(config)
    assert result["texture"] > 0
    before, after = (checkpoint.load(path).first_stage for path in (config.init, Path(result["path"])))  # type: ignore[arg-type]
    assert before is not None and after is not None
    same = {name: torch.equal(tensor, before.state_dict()[name]) for name, tensor in after.state_dict().items()}
    coding = {name for name in same if name.startswith(("encoder.", "quant_conv."))}
    assert all(same[name] for name in coding) == alone
    assert not any(same[name] for name in set(same) - coding if name.endswith("conv_out.weight"))
    assert (result["scale_factor"] == 0.7) == alone
    if alone:
        image = torch.rand(1, 3, 16, 16)
        assert torch.equal(before.encode(image), after.encode(image))


def test_it_starts_where_the_other_one_is(folder: Path, tmp_path: Path) -> None:
    config = configure(folder, tmp_path / "run")
    config = replace(config, run=replace(config.run, steps=1, lr=1e-12))
    made = checkpoint.load(Path(train_autoencoder.train(config)["path"])).first_stage
    start = checkpoint.load(folder / "start.safetensors").first_stage
    assert made is not None and start is not None
    for name, tensor in made.state_dict().items():
        torch.testing.assert_close(tensor, start.state_dict()[name], atol=1e-6, rtol=0)


def test_what_does_not_fit_is_refused(folder: Path, tmp_path: Path) -> None:
    config = configure(folder, tmp_path / "run")
    with pytest.raises(
        SpectralError, match=r"first_stage\.ch_mult is \(1, 2\), but that of start.safetensors is \(1, 1\)"
    ):
        train_autoencoder.train(replace(config, first_stage=replace(SMALL, ch_mult=(1, 2))))
    with pytest.raises(SpectralError, match="decoder_only trains the decoder of a first stage; give its file as init"):
        replace(config, init=None, decoder_only=True)
    with pytest.raises(SpectralError, match="texture_weight is for images of 16 pixels or more; set it to 0"):
        replace(config, texture_weight=0.1, patch=8)
    with pytest.raises(SpectralError, match="texture_weight is for images"):
        replace(config, texture_weight=0.1, latents_of=folder / "start.safetensors")
