"""First stages that learn from patches, and normalise in fewer groups than LDM's 32."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from spectral_diffusion.spectral import autoencoder, checkpoint
from spectral_diffusion.spectral.config import FirstStageConfig, ModelConfig
from spectral_diffusion.spectral.errors import SpectralError
from spectral_diffusion.training import cli
from spectral_diffusion.training.data.config import DataConfig
from spectral_diffusion.training.loop.config import RunConfig
from spectral_diffusion.training.loop.randomness import SampleRandom
from spectral_diffusion.training.train_autoencoder import AutoencoderConfig, AutoencoderTask, patches, train

from . import tiny

SMALL = FirstStageConfig("kl", 4, 4, ch=16, ch_mult=(1, 2), num_res_blocks=1, resolution=16, norm_groups=4)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> DataConfig:
    return DataConfig(str(tiny.pictures(tmp_path_factory.mktemp("data"))), 16, workers=0)


def run_of(out: Path, **settings: Any) -> RunConfig:
    often = {"preview_every": 1, "log_every": 1, "checkpoint_every": 1, "warmup": 1}
    return RunConfig(out, **{"steps": 2, "batch_size": 4, "lr": 1e-3, **often, **settings})


def config_of(out: Path, data: DataConfig, **settings: Any) -> AutoencoderConfig:
    return AutoencoderConfig(run_of(out), data, SMALL, **settings)


def batch_of(count: int, first: int = 0) -> dict[str, Tensor]:
    image = torch.randint(0, 256, (count, 3, 16, 16), generator=torch.Generator().manual_seed(first), dtype=torch.uint8)
    return {"image": image, "ordinal": torch.arange(first, first + count)}


# Patches


def where(patch: Tensor, image: Tensor) -> tuple[int, int]:
    """The place of a patch in a picture whose numbers are its places."""
    top, left = divmod(int(patch[0, 0, 0]), image.shape[-1])
    assert torch.equal(patch, image[:, top : top + patch.shape[1], left : left + patch.shape[2]])
    return top, left


def test_every_place_is_as_likely_as_any_other() -> None:
    """Of the 4 × 3 places that a patch of 5 has in 8 × 7 cells; a χ² test."""
    images = torch.arange(56.0).view(1, 1, 8, 7).expand(3000, 2, -1, -1)
    found = patches(images, 5, SampleRandom(0, torch.arange(3000)))
    assert found.shape == (3000, 2, 5, 5)
    counts = Counter(where(patch, images[0]) for patch in found)
    assert set(counts) == {(top, left) for top in range(4) for left in range(3)}
    assert stats.chisquare(list(counts.values())).pvalue > 1e-3


def test_the_whole_of_an_image_is_a_patch_of_it() -> None:
    images = torch.rand(3, 3, 8, 8)
    assert torch.equal(patches(images, 8, SampleRandom(0, torch.arange(3))), images)


def test_a_place_depends_on_the_seed_and_the_sample_alone() -> None:
    images = torch.arange(256.0).view(1, 1, 16, 16).expand(12, 1, -1, -1)
    whole = patches(images, 8, SampleRandom(1, torch.arange(12)))
    parts = [patches(images[:4], 8, SampleRandom(1, part)) for part in torch.arange(12).split(4)]
    assert torch.equal(whole, torch.cat(parts))
    assert not torch.equal(whole, patches(images, 8, SampleRandom(2, torch.arange(12))))


def test_losses_are_of_the_patch(data: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 8 × 8 pixels, coded in 4 × 4 cells: the same for the same seed, and another for another one."""
    seen: list[tuple[int, ...]] = []

    def losses(seed: int, patch: int | None) -> dict[str, Tensor]:
        torch.manual_seed(0)
        run = run_of(tmp_path, seed=seed)
        task = AutoencoderTask(replace(config_of(tmp_path, data, patch=patch), run=run))
        task.first_stage.decoder.register_forward_hook(lambda m, given, out: seen.append((*given[0].shape, *out.shape)))
        return task(batch_of(4))

    one, same, other, whole = losses(0, 8), losses(0, 8), losses(1, 8), losses(0, None)
    assert seen == 3 * [(4, 4, 4, 4, 4, 3, 8, 8)] + [(4, 4, 8, 8, 4, 3, 16, 16)]
    assert one.keys() == whole.keys() and all(torch.equal(one[name], same[name]) for name in one)
    assert all(not torch.equal(one[name], other[name]) for name in one)


def test_a_run_learns_from_patches_and_shows_whole_images(data: DataConfig, tmp_path: Path) -> None:
    found = [train(config_of(tmp_path / name, data, patch=8)) for name in "ab"]
    assert found[0]["loss"] == found[1]["loss"] > 0
    assert {path.name for path in (tmp_path / "a" / "previews").iterdir()} >= {"000002.png"}
    opened = checkpoint.load(found[0]["path"])
    assert opened.config.first_stage == SMALL and opened.config.training["config"]["patch"] == 8
    stage = opened.first_stage
    assert stage is not None and stage.decode(stage.encode(torch.zeros(1, 3, 16, 16))).shape == (1, 3, 16, 16)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["--patch", "7"], "patch is 7; expected a multiple of 2, at most data.size = 16"),
        (["--patch", "0"], "patch is 0; expected a multiple of 2"),
        (["--patch", "-8"], "patch is -8; expected"),
        (["--patch", "32"], "patch is 32; expected a multiple of 2, at most data.size = 16"),
        (["--patch", "8", "--data.buckets", "true"], "and no data.buckets"),
        (["--patch", "half"], 'key "patch"'),
    ],
)
def test_patches_that_cannot_be_are_refused(
    given: list[str], says: str, data: DataConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert says in refused(given, data, tmp_path / "run", capsys)
    assert not (tmp_path / "run").exists()


def refused(given: list[str], data: DataConfig, out: Path, capsys: pytest.CaptureFixture[str]) -> str:
    small = ["--first_stage.ch", "16", "--first_stage.norm_groups", "4", "--first_stage.ch_mult", "[1, 2]"]
    common = ["--data.path", data.path, "--data.size", "16", "--run.out", str(out), "--run.steps", "1", *small]
    assert cli.main(["train-autoencoder", *common, *given]) == 2
    return capsys.readouterr().err


def test_latents_have_no_patches(data: DataConfig, tmp_path: Path) -> None:
    base = tiny.write(tmp_path / "base.safetensors", ModelConfig("autoencoder", first_stage=tiny.FIRST_STAGE))
    pair = replace(SMALL, in_channels=4, out_ch=4, resolution=8)
    with pytest.raises(SpectralError, match="patch is for images; leave it out where latents_of is given"):
        train(AutoencoderConfig(run_of(tmp_path / "run"), data, pair, patch=8, latents_of=base))


# Groups


@pytest.mark.parametrize("kind", ["kl", "vq"])
def test_every_normalisation_has_the_groups(kind: Any) -> None:
    config = replace(SMALL, kind=kind, attn_resolutions=(16,), n_embed=8 if kind == "vq" else None)
    norms = [module for module in autoencoder.build(config).modules() if isinstance(module, nn.GroupNorm)]
    assert len(norms) > 10 and {norm.num_groups for norm in norms} == {4}
    usual = autoencoder.build(replace(config, ch=32, norm_groups=FirstStageConfig.norm_groups))
    assert {norm.num_groups for norm in usual.modules() if isinstance(norm, nn.GroupNorm)} == {32}


def test_fewer_groups_keep_what_groups_of_one_channel_lose() -> None:
    """Colours: a network that normalises every channel alone answers plain pictures of any brightness alike."""

    def contrast(groups: int) -> float:
        stage = tiny.randomized(autoencoder.build(replace(SMALL, norm_groups=groups)))
        plain = torch.stack([torch.full((3, 16, 16), value) for value in (0.2, 0.9)])
        with torch.no_grad():
            dark, bright = stage.encoder.down[0].block[0].norm1(stage.encoder.conv_in(plain))[:, :, 4:12, 4:12]
        return float((dark - bright).abs().max())

    assert contrast(4) > 20 * contrast(16)


@pytest.mark.parametrize("groups", [0, -4, 3, 32])
def test_groups_that_do_not_divide_the_width_are_refused(
    groups: int, data: DataConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(
        SpectralError, match=rf"ch is 16; group normalisation needs a multiple of {groups} \(norm_groups"
    ):
        autoencoder.check(replace(SMALL, norm_groups=groups))
    said = refused(["--first_stage.norm_groups", str(groups)], data, tmp_path / "run", capsys)
    assert "(norm_groups)" in said and not (tmp_path / "run").exists()


def test_files_with_few_groups_become_what_has_a_place_for_them(tmp_path: Path) -> None:
    """diffusers' folders, whose setting it is; and not LDM's files."""
    config = ModelConfig("autoencoder", first_stage=SMALL)
    file = checkpoint.read(tiny.write(tmp_path / "few.safetensors", config))
    with pytest.raises(SpectralError, match=r"ldm\.ckpt: normalisation in 4 groups has no place in LDM's layout"):
        checkpoint.convert(file, tmp_path / "ldm.ckpt", "ldm")
    assert not (tmp_path / "ldm.ckpt").exists()
    checkpoint.convert(file, tmp_path / "folder", "diffusers")
    (said,) = [json.loads(path.read_text()) for path in (tmp_path / "folder").rglob("config.json")]
    assert said["norm_num_groups"] == 4
    again = checkpoint.load(tmp_path / "folder").first_stage
    own, image = checkpoint.load(tmp_path / "few.safetensors").first_stage, torch.rand(1, 3, 16, 16)
    assert again is not None and own is not None and again.config.norm_groups == 4
    torch.testing.assert_close(again.encode(image), own.encode(image))
