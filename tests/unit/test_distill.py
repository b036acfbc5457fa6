"""The distillation task against hand-made cases, and what training leaves of teacher and student."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from spectral_diffusion.spectral import checkpoint
from spectral_diffusion.spectral.config import ModelConfig
from spectral_diffusion.spectral.errors import SpectralError
from spectral_diffusion.spectral.formats.source import CONDITIONER, FIRST_STAGE, UNET
from spectral_diffusion.spectral.unet import Tap
from spectral_diffusion.training import distill
from spectral_diffusion.training.data.batches import Batch
from spectral_diffusion.training.data.config import DataConfig
from spectral_diffusion.training.data.dataset import as_latents, open_images
from spectral_diffusion.training.data.latents import HeldLatents
from spectral_diffusion.training.data.order import Plan
from spectral_diffusion.training.distillation.config import DistillConfig, LossConfig, TapConfig
from spectral_diffusion.training.distillation.losses import frequency_loss, spatial_loss, spectrum_weights
from spectral_diffusion.training.distillation.task import DistillTask
from spectral_diffusion.training.loop.config import RunConfig
from spectral_diffusion.training.teachers import open_teacher
from spectral_diffusion.training.train_teacher import DenoisingTask, TeacherConfig

from . import tiny
from .test_data_images import noise

INDICES = [0, 3, 5, 6]


def configure(teacher: Path, data: DataConfig, out: Path = Path("unused"), **settings: Any) -> DistillConfig:
    often = {"preview_every": 0, "checkpoint_every": 2, "log_every": 1}
    run = RunConfig(out, steps=4, batch_size=4, warmup=1, trackers=(), **often)  # type: ignore[arg-type]
    return replace(DistillConfig(run, teacher, model_channels=32, data=data), **settings)


def data_of(config: DistillConfig, opened: checkpoint.Checkpoint) -> HeldLatents:
    assert opened.first_stage is not None
    data = as_latents(open_images(config.data), opened.first_stage, "teacher.safetensors")
    assert isinstance(data, HeldLatents)
    return data


def batch_of(config: DistillConfig) -> Batch:
    """Four of the images, as the first that a run sees."""
    loaded = data_of(config, open_teacher(config.teacher)).load(Plan([(0, index) for index in INDICES]), 0).batch
    assert loaded is not None
    return loaded | {"ordinal": torch.arange(4)}


def task_of(config: DistillConfig) -> DistillTask:
    """The task that `distill.train` makes, without the run around it."""
    opened = open_teacher(config.teacher)
    about = distill.student_of(config, opened)
    assert about.unet is not None
    contexts = distill.contexts_of(config, about, data_of(config, opened))
    task = DistillTask(about.unet, opened, contexts, config)
    tiny.randomized(task.student, 7)
    return task


def terms(losses: dict[str, Tensor]) -> dict[str, Tensor]:
    """Without what is logged beside them."""
    return {name: value for name, value in losses.items() if "/" not in name}


@pytest.mark.parametrize("resampler", ["wavelet", "conv"])
@pytest.mark.parametrize(("spatial", "frequency"), [(0.1, 0.1), (0.3, 0.0), (0.0, 2.0)])
def test_the_loss_is_the_weighted_sum_of_three(
    resampler: Any, spatial: float, frequency: float, teacher: Path, data: DataConfig
) -> None:
    loss = LossConfig(spatial=spatial, frequency=frequency)
    config = configure(teacher, data, resampler=resampler, loss=loss)
    found = terms(task_of(config)(batch_of(config)))
    assert set(found) == {"loss", "ddpm", "spatial", "frequency"}
    assert all(value.isfinite() and value.dim() == 0 and value >= 0 for value in found.values())
    expected = found["ddpm"] + spatial * found["spatial"] + frequency * found["frequency"]
    torch.testing.assert_close(found["loss"], expected)
    assert (found["frequency"] > 0) == (frequency > 0)


@pytest.mark.parametrize("normalize", [True, False])
def test_features_count_as_much_as_they_are_told_to(normalize: bool, teacher: Path, data: DataConfig) -> None:
    """Both losses are the output's and the weight times the features'."""
    found = []
    for taps in (
        TapConfig(False, False, False),
        *(TapConfig(normalize=normalize, weight=weight) for weight in (1.0, 0.25)),
    ):
        torch.manual_seed(0)
        found.append(task_of(config := configure(teacher, data, loss=LossConfig(taps=taps)))(batch_of(config)))
    for name in ("spatial", "frequency"):
        output, whole, less = (one[name] for one in found)
        assert whole > 1.1 * output
        torch.testing.assert_close(less, output + 0.25 * (whole - output))
    for weight in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(SpectralError, match="loss.taps.weight is .*; expected a number above 0"):
            TapConfig(weight=weight)


def test_without_weights_it_is_plain_ddpm(teacher: Path, data: DataConfig) -> None:
    """Oracle: the teacher's own training task, with the student's weights, on the same noise."""
    bare = configure(teacher, data, loss=LossConfig(0, 0))
    task, opened = task_of(bare), checkpoint.load(teacher)
    config = TeacherConfig(bare.run, teacher, task.student.config, data, tiny.CLASSES)
    plain = DenoisingTask(config, opened, task.noising.contexts)
    plain.unet.load_state_dict(task.student.state_dict())
    assert opened.conditioner is not None and plain.conditioner is not None
    plain.conditioner.load_state_dict(opened.conditioner.state_dict())
    batch = batch_of(bare)
    found = terms(task(batch))
    assert set(found) == {"loss", "ddpm"} and not list(task.align.parameters())
    assert found["loss"].item() == found["ddpm"].item() == plain(batch)["loss"].item()
    full = task_of(configure(teacher, data))(batch)
    assert full["ddpm"].item() == found["ddpm"].item()


def test_a_student_that_is_its_teacher_has_nothing_to_learn_from_it(teacher: Path, data: DataConfig) -> None:
    """Same weights, and A_i the identity: both distillation losses vanish."""
    config = configure(teacher, data, model_channels=64, resampler="conv")
    task = task_of(config)
    opened = checkpoint.load(teacher).unet
    assert opened is not None
    task.student.load_state_dict(opened.state_dict())
    for align in task.align:
        assert isinstance(align, nn.Conv2d) and align.bias is not None
        nn.init.dirac_(align.weight)
        nn.init.zeros_(align.bias)
    found = task(batch_of(config))
    assert found["spatial"].item() < 1e-10 and found["frequency"].item() < 1e-10 and found["ddpm"] > 0


def test_with_the_output_alone_the_losses_are_the_formulas(teacher: Path, data: DataConfig) -> None:
    """Eqs. 9 to 11 of the two outputs, with both networks called by hand on the same x_t."""
    taps = TapConfig(down=False, middle=False, up=False)
    config = configure(teacher, data, loss=LossConfig(taps=taps, alpha=-0.5), dropout=0.0)
    task, batch, opened = task_of(config), batch_of(config), checkpoint.load(teacher)
    assert opened.unet is not None and opened.conditioner is not None
    found, (x_0, t, noise, *_) = task(batch), task.inputs(batch)
    x_t = opened.schedule.q_sample(x_0, t, noise)
    context = opened.conditioner(torch.tensor([[0, 1][index >= 4] for index in INDICES]))
    student, target = task.student(x_t, t, context), opened.unet(x_t, t, context)
    torch.testing.assert_close(found["spatial"], spatial_loss(student, target))
    weights = spectrum_weights(x_0, (8, 8), -0.5)
    torch.testing.assert_close(found["frequency"], frequency_loss(student, target, weights))


@pytest.mark.parametrize(
    ("taps", "places"),
    [
        (TapConfig(), {Tap("down", 0), Tap("down", 1), Tap("middle", 1), Tap("up", 0), Tap("up", 1)}),
        (TapConfig(down=False, middle=False), {Tap("up", 0), Tap("up", 1)}),
        (TapConfig(down=False, up=False), {Tap("middle", 1)}),
    ],
    ids=["all", "up", "middle"],
)
def test_features_are_compared_where_the_configuration_says(
    taps: TapConfig, places: set[Tap], teacher: Path, data: DataConfig
) -> None:
    task = task_of(configure(teacher, data, loss=LossConfig(taps=taps)))
    assert set(task.taps) == places
    widths = [(32 * 2**tap.level, 64 * 2**tap.level) for tap in task.taps]
    aligned = [module for module in task.align if isinstance(module, nn.Conv2d)]
    assert [(conv.in_channels, conv.out_channels, conv.kernel_size) for conv in aligned] == [
        (own, known, (1, 1)) for own, known in widths
    ]


def test_normalised_features_weigh_alike_whatever_their_scale(teacher: Path, data: DataConfig) -> None:
    """A teacher's feature and A_i's output, both ten times as large, cost as much."""
    task = task_of(configure(teacher, data))
    x_0, output = torch.randn(2, 4, 8, 8), torch.zeros(2, 4, 8, 8)

    def cost(factor: float) -> tuple[Tensor, ...]:
        generator = torch.Generator().manual_seed(2)
        known = {
            tap: factor * torch.randn(2, a.out_channels, 8, 8, generator=generator)
            for tap, a in zip(task.taps, aligned, strict=True)
        }
        seen = {
            tap: factor * torch.randn(2, a.in_channels, 8, 8, generator=generator)
            for tap, a in zip(task.taps, aligned, strict=True)
        }
        return task.distillation(x_0, task.pairs(output, output, seen, known))

    aligned = [module for module in task.align if isinstance(module, nn.Conv2d)]
    for align in aligned:
        assert align.bias is not None
        nn.init.zeros_(align.bias)
    for one, ten in zip(cost(1.0), cost(10.0), strict=True):
        torch.testing.assert_close(one, ten)


def test_the_student_and_the_alignment_learn_and_the_teacher_does_not(teacher: Path, data: DataConfig) -> None:
    config = configure(teacher, data)
    task = task_of(config)
    task(batch_of(config))["loss"].backward()
    assert {name.split(".")[0] for name, _ in task.named_parameters()} == {"student", "align"}
    assert [name for name, p in task.named_parameters() if p.grad is None or not p.grad.any()] == []
    frozen = [p for module in task._frozen if module is not None for p in module.parameters()]
    assert frozen and not any(p.requires_grad or p.grad is not None for p in frozen)
    assert not any("teacher" in name or "conditioner" in name for name in task.state_dict())


@pytest.mark.parametrize("resampler", ["wavelet", "conv"])
def test_a_trained_students_file_opens_and_holds_its_teachers_other_parts(
    resampler: Any, teacher: Path, data: DataConfig, tmp_path: Path
) -> None:
    before = teacher.read_bytes()
    result = distill.train(configure(teacher, data, tmp_path / "run", resampler=resampler, title="Tiny"))
    kind = {"wavelet": "student", "conv": "lite"}[resampler]
    assert result["path"] == str(tmp_path / "run" / f"{kind}.safetensors")
    student, source = checkpoint.load(result["path"]), checkpoint.load(teacher)
    assert student.config.kind == kind and student.config.unet is not None and source.config.unet is not None
    assert student.config.unet == replace(source.config.unet, model_channels=32, resampler=resampler)
    assert student.config.teacher_sha256 == source.file.sha256
    assert (student.config.schedule, student.config.scale_factor) == (
        source.config.schedule,
        source.config.scale_factor,
    )
    assert student.config.training["config"]["loss"]["spatial"] == 0.1
    assert student.config.training["statistics"]["loss"] == result["loss"]
    assert student.file.metadata["modelspec.title"] == "Tiny"
    for prefix in (FIRST_STAGE, CONDITIONER):
        theirs = source.file.part(prefix)
        assert all(torch.equal(tensor, theirs[key].half()) for key, tensor in student.file.part(prefix).items())
    assert teacher.read_bytes() == before
    saved = torch.load(tmp_path / "run" / "checkpoints" / "00000004.pt", weights_only=True)
    first = student.file.tensors[UNET + "time_embed.0.weight"]
    assert torch.equal(first, saved["ema"]["average"][0].half())


def test_the_seed_decides_the_student(teacher: Path, data: DataConfig, tmp_path: Path) -> None:
    def train(name: str, seed: int) -> Tensor:
        config = configure(teacher, data, tmp_path / name)
        run = replace(config.run, seed=seed, steps=2)
        path = distill.train(replace(config, run=run))["path"]
        return checkpoint.read(path).tensors[UNET + "input_blocks.0.0.weight"]

    assert torch.equal(train("a", 3), train("b", 3)) and not torch.equal(train("c", 4), train("d", 3))


def test_what_cannot_teach_is_a_sentence(data: DataConfig, tmp_path: Path) -> None:
    autoencoder = tiny.write(
        tmp_path / "autoencoder.safetensors", ModelConfig("autoencoder", first_stage=tiny.FIRST_STAGE)
    )
    with pytest.raises(SpectralError, match=r"autoencoder\.safetensors cannot teach.*U-Net"):
        distill.train(configure(autoencoder, data, tmp_path / "run"))
    unet = tiny.write(tmp_path / "unet.safetensors", ModelConfig("teacher", tiny.UNCONDITIONAL))
    with pytest.raises(SpectralError, match=r"unet\.safetensors cannot teach.*first stage"):
        distill.train(configure(unet, data, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"model_channels": 20}, "model_channels is 20.*multiple of 32"),
        ({"wavelet": "no-such"}, "'no-such'"),
        ({"data": DataConfig("no-such-folder", size=16)}, "No data at no-such-folder"),
    ],
    ids=["width", "wavelet", "data"],
)
def test_what_cannot_be_distilled_is_a_sentence_and_leaves_no_run(
    settings: dict[str, Any], says: str, teacher: Path, data: DataConfig, tmp_path: Path
) -> None:
    with pytest.raises(SpectralError, match=says):
        distill.train(replace(configure(teacher, data, tmp_path / "run"), **settings))
    assert not (tmp_path / "run").exists()


def test_a_diverging_run_stops_and_exports_nothing(teacher: Path, data: DataConfig, tmp_path: Path) -> None:
    config = configure(teacher, data, tmp_path / "run")
    broken = replace(config, run=replace(config.run, lr=1e30, clip=1e30, warmup=0))
    with pytest.raises(SpectralError, match=r"not finite in the last \d steps.*lower run\.lr"):
        distill.train(broken)
    assert not list((tmp_path / "run").glob("*.safetensors"))


@pytest.mark.parametrize("resampler", ["wavelet", "conv"])
def test_a_student_learns_from_images_of_several_aspects(resampler: Any, teacher: Path, tmp_path: Path) -> None:
    """Features and spectra are compared at the shapes that the buckets have."""
    for index in range(24):
        name = ("blue", "red")[index % 2]
        (tmp_path / "data" / name).mkdir(parents=True, exist_ok=True)
        noise([(34, 20), (20, 34), (24, 24)][index % 3], index).save(tmp_path / "data" / name / f"{index}.png")
    buckets = DataConfig(str(tmp_path / "data"), size=16, buckets=True, workers=0)
    config = configure(teacher, buckets, tmp_path / "run", resampler=resampler)
    shapes = set()
    forward = DistillTask.distillation

    def spy(self: DistillTask, x_0: Tensor, pairs: Any) -> Any:
        shapes.add(tuple(x_0.shape[2:]))
        assert len(pairs) == 1 + len(self.taps) and pairs[0].student.shape == x_0.shape
        return forward(self, x_0, pairs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DistillTask, "distillation", spy)
        result = distill.train(replace(config, run=replace(config.run, steps=6, preview_every=6)))
    assert len(shapes) == 3 and (8, 8) in shapes and all(height * width <= 80 for height, width in shapes)
    assert all(result[name] > 0 for name in ("ddpm", "spatial", "frequency"))
    assert (tmp_path / "run" / "previews" / "000006.png").exists()


def test_weights_that_a_file_cannot_hold_are_not_exported(teacher: Path, data: DataConfig, tmp_path: Path) -> None:
    config = configure(teacher, data, tmp_path / "run")
    grown = replace(config, run=replace(config.run, steps=1, lr=1e6, clip=1e30, warmup=0))
    with pytest.raises(SpectralError, match=r"weights have grown beyond 65504.*student\.safetensors.*lower run\.lr"):
        distill.train(grown)
    assert not list((tmp_path / "run").glob("*.safetensors"))
