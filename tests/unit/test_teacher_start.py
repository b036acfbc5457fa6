"""Teachers that go on from others, on the same data or on a user's own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from spectral_diffusion.spectral import checkpoint
from spectral_diffusion.spectral.config import ConditioningConfig, ModelConfig, ScheduleConfig
from spectral_diffusion.spectral.errors import SpectralError
from spectral_diffusion.training import train_teacher
from spectral_diffusion.training.data.config import DataConfig
from spectral_diffusion.training.loop.config import RunConfig
from spectral_diffusion.training.train_teacher import TeacherConfig

from . import tiny

UNET = replace(tiny.CONDITIONED, model_channels=32, resampler="conv")
CLASSES = ConditioningConfig("class", width=32, n_classes=3, class_names=("cats", "dogs"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures, a teacher of other classes, and a first stage that is not that teacher's."""
    folder = tmp_path_factory.mktemp("start")
    tiny.pictures(folder / "data")
    tiny.write(folder / "start.safetensors", ModelConfig("teacher", UNET, tiny.FIRST_STAGE, CLASSES))
    stage = ModelConfig("autoencoder", first_stage=tiny.FIRST_STAGE, scale_factor=0.7)
    tiny.write(folder / "stage.safetensors", stage)
    return folder


def configure(folder: Path, out: Path, lr: float = 1e-12) -> TeacherConfig:
    run = RunConfig(out, steps=2, batch_size=4, lr=lr, warmup=1, ema=0.0, preview_every=0, trackers=())
    data, classes = DataConfig(str(folder / "data"), size=16), ConditioningConfig("class", width=32)
    stage, start = folder / "stage.safetensors", folder / "start.safetensors"
    return TeacherConfig(run, stage, UNET, data, classes, init=start)


@pytest.mark.parametrize("lr", [1e-12, 1e-2])
def test_it_starts_where_the_other_one_is(lr: float, folder: Path, tmp_path: Path) -> None:
    """With a first stage and names of classes of its own, and not just in the file that it writes."""
    config = configure(folder, tmp_path / "run", lr)
    made = checkpoint.load(Path(train_teacher.train(config)["path"]))
    assert config.init is not None
    start = checkpoint.load(config.init)
    assert made.config.scale_factor == 0.7 and made.config.conditioning.class_names == ("blue", "red")
    for own, other in ((made.unet, start.unet), (made.conditioner, start.conditioner)):
        assert own is not None and other is not None
        pairs = zip(own.state_dict().values(), other.state_dict().values(), strict=True)
        far = max((a - b).abs().max().item() for a, b in pairs)
        assert far < 1e-2 if lr < 1e-6 else far > 1e-2  # the file is in float16


def test_it_starts_from_one_of_smaller_images(folder: Path, tmp_path: Path) -> None:
    """What is learnt sooner from small images goes into one for larger ones, which its file tells."""
    small = configure(folder, tmp_path / "run")
    data, unet = replace(small.data, size=32), replace(UNET, image_size=2 * UNET.image_size)
    made = checkpoint.load(Path(train_teacher.train(replace(small, data=data, unet=unet))["path"]))
    assert small.init is not None and made.config.unet is not None
    start = checkpoint.load(small.init)
    assert made.config.unet.image_size == 2 * UNET.image_size and made.unet is not None and start.unet is not None
    pairs = zip(made.unet.state_dict().values(), start.unet.state_dict().values(), strict=True)
    assert max((a - b).abs().max().item() for a, b in pairs) < 1e-2


def test_it_goes_on_only_from_where_it_began(folder: Path, tmp_path: Path) -> None:
    config = configure(folder, tmp_path / "run")
    train_teacher.train(config)
    assert config.init is not None
    before = config.init.read_bytes()
    try:
        tiny.write(config.init, ModelConfig("teacher", UNET, tiny.FIRST_STAGE, CLASSES, scale_factor=0.1))
        with pytest.raises(SpectralError, match="a run whose init was not what .*start.safetensors holds now"):
            train_teacher.train(replace(config, run=replace(config.run, steps=3)))
    finally:
        config.init.write_bytes(before)


def test_what_does_not_fit_is_refused(folder: Path, tmp_path: Path) -> None:
    config = configure(folder, tmp_path / "run")
    cases = {
        r"unet.model_channels is 64, but that of start.safetensors is 32; make them equal": {
            "unet": replace(UNET, model_channels=64)
        },
        r"schedule.prediction is v, but that of start.safetensors is eps": {"schedule": ScheduleConfig(prediction="v")},
        r"init is .*stage.safetensors, which holds no U-Net": {"init": folder / "stage.safetensors"},
        r"nowhere": {"init": folder / "nowhere.safetensors"},
    }
    for says, settings in cases.items():
        with pytest.raises(SpectralError, match=says):
            train_teacher.train(replace(config, **settings))  # type: ignore[arg-type]
    assert not (tmp_path / "run").exists()
