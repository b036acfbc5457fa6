"""Training of networks of stages (f-DM): its losses against the formulas, and runs from images to a student."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pywt
import torch
from torch import Tensor
from torch.nn import functional as F

from spectral_diffusion.spectral import checkpoint
from spectral_diffusion.spectral.config import BoundaryConfig, FirstStageConfig, StagesConfig
from spectral_diffusion.spectral.diffusion import Schedule
from spectral_diffusion.training import cli, distill, stage_energy, train_autoencoder, train_teacher
from spectral_diffusion.training.data.batches import Batch
from spectral_diffusion.training.data.config import DataConfig
from spectral_diffusion.training.distillation.config import DistillConfig, LossConfig, TapConfig
from spectral_diffusion.training.distillation.losses import frequency_errors, spatial_errors, spectrum_weights
from spectral_diffusion.training.distillation.staged import StagedDistillTask
from spectral_diffusion.training.sample import sample_checkpoint
from spectral_diffusion.training.teachers import open_teacher
from spectral_diffusion.training.train_autoencoder import AutoencoderConfig
from spectral_diffusion.training.train_teacher import TeacherConfig

from . import tiny
from .test_distill import batch_of, configure, data_of, terms

TWO = StagesConfig((BoundaryConfig(0.4),))
AS_IN_THE_PAPER = replace(TWO, predicts="delta")
OUTPUT = LossConfig(spatial=1.0, frequency=1.0, taps=TapConfig(down=False, middle=False, up=False))


def staged_task(config: DistillConfig) -> StagedDistillTask:
    opened = open_teacher(config.teacher)
    about = distill.student_of(config, opened)
    assert about.unet is not None
    contexts = distill.contexts_of(config, about, data_of(config, opened))
    task = StagedDistillTask(about.unet, opened, contexts, config)
    tiny.randomized(task.student, 7)
    return task


def at(task: StagedDistillTask, steps: list[int]) -> None:
    """Let the next batches have these steps, whatever is drawn for them."""
    drawn = task.noising.__call__

    class Fixed:
        replace = None

        def __call__(self, batch: Batch, *others: Any) -> Any:
            noised = drawn(batch, *others)
            t = torch.tensor(steps)
            return noised._replace(t=t, x_t=task.schedule.q_sample(noised.x_0, t, noised.noise))

    task.noising = Fixed()  # type: ignore[assignment]


def low(x: Tensor) -> Tensor:
    """pywt's LL of every plane."""
    return torch.from_numpy(pywt.dwt2(x.numpy(), "haar")[0].astype(np.float32))


class ByHand:
    """One sample in one of the stages of TWO, by PAPER's formulas: 1000 steps, the boundary at 400."""

    def __init__(self, x_0: Tensor, t: int, noise: Tensor, schedule: Schedule) -> None:
        alpha = schedule.alphas_cumprod[t].item()
        pooled = F.avg_pool2d(x_0, 2)
        self.stage = int(t >= 400)
        snr = alpha / (1 - alpha) * (4 if self.stage else 1)
        self.signal, self.sigma = (snr / (1 + snr)) ** 0.5, (1 / (1 + snr)) ** 0.5
        self.noise = low(noise) if self.stage else noise
        back = pooled.repeat_interleave(2, 2).repeat_interleave(2, 3)
        self.x = pooled if self.stage else (t * back + (400 - t) * x_0) / 400
        self.delta = torch.zeros_like(pooled) if self.stage else x_0 - self.x
        self.detail = torch.zeros_like(pooled) if self.stage else x_0 - back
        self.z = self.signal * self.x + self.sigma * self.noise


@pytest.mark.parametrize("steps", [[10, 399, 400, 990], [950, 20, 700, 450], [100, 200, 300, 0], [500, 600, 700, 800]])
@pytest.mark.parametrize("stages", [TWO, AS_IN_THE_PAPER], ids=["detail", "delta"])
def test_the_losses_are_the_formulas_sample_by_sample(
    stages: StagesConfig, steps: list[int], teacher: Path, data: DataConfig
) -> None:
    """Double reconstruction, and Eqs. 9 to 11 of both predictions, with the teacher's x_0 taken into the stage."""
    config = configure(teacher, data, stages=stages, loss=OUTPUT, dropout=0.0)
    task, batch = staged_task(config), batch_of(config)
    at(task, steps)
    found, noised, opened = task(batch), task.inputs(batch), checkpoint.load(teacher)
    assert opened.unet is not None and noised.context is not None
    ddpm, spatial, frequency = [], [], []
    for index, t in enumerate(steps):
        one = slice(index, index + 1)
        hand = ByHand(noised.x_0[one], t, noised.noise[one], opened.schedule)
        context, step = noised.context[one], torch.tensor([t])
        with torch.no_grad():
            noise, second = task.student(hand.z, step, context, stage=hand.stage).chunk(2, dim=1)
            said = opened.unet(noised.x_t[one], step, context)
        errors = (noise - hand.noise).square().mean()
        ddpm.append(errors if hand.stage else errors + (second - getattr(hand, stages.predicts)).square().mean())
        x_0 = opened.schedule.split(noised.x_t[one], step, said)[0]
        known = ByHand(x_0, t, noised.noise[one], opened.schedule)
        known_noise = (hand.z - hand.signal * known.x) / hand.sigma
        pairs = (
            [(noise, known_noise)] if hand.stage else [(noise, known_noise), (second, getattr(known, stages.predicts))]
        )
        weights = spectrum_weights(noised.x_0[one], (noise.shape[2], noise.shape[3]), -1.0)
        spatial.append(sum(spatial_errors(*pair) for pair in pairs))
        frequency.append(sum(frequency_errors(*pair, weights) for pair in pairs))
    for name, values in {"ddpm": ddpm, "spatial": spatial, "frequency": frequency}.items():
        expected = torch.stack([torch.as_tensor(value) for value in values]).mean()
        torch.testing.assert_close(found[name].detach(), expected, rtol=2e-4, atol=1e-5, msg=name)
    total = found["ddpm"] + found["spatial"] + found["frequency"]
    torch.testing.assert_close(found["loss"], total)


def test_without_interpolation_the_teachers_noise_in_a_stage_is_the_coarse_part_of_it(
    teacher: Path, data: DataConfig
) -> None:
    """Closed form: the mean of the teacher's x_0, as noise of the small z, is LL of the teacher's own noise."""
    config = configure(teacher, data, stages=replace(TWO, interpolate=False), loss=OUTPUT, dropout=0.0)
    task, batch = staged_task(config), batch_of(config)
    at(task, [450, 600, 800, 990])
    noised, opened = task.inputs(batch), checkpoint.load(teacher)
    assert opened.unet is not None
    found = task(batch)
    with torch.no_grad():
        said = low(opened.unet(noised.x_t, noised.t, noised.context))
        mine = []
        for index, t in enumerate([450, 600, 800, 990]):
            one = slice(index, index + 1)
            hand = ByHand(noised.x_0[one], t, noised.noise[one], opened.schedule)
            context = None if noised.context is None else noised.context[one]
            mine.append(task.student(hand.z, noised.t[one], context, stage=1).chunk(2, dim=1)[0])
    torch.testing.assert_close(
        found["spatial"].detach(), (torch.cat(mine) - said).square().mean(), rtol=1e-3, atol=1e-5
    )


def test_features_are_compared_where_a_small_stage_has_them(teacher: Path, data: DataConfig) -> None:
    """In the second stage the student passes the lower level alone; what is above it leaves the losses as they are."""
    task = staged_task(configure(teacher, data, stages=TWO, dropout=0.0))
    at(task, [500, 600, 700, 800])
    batch = batch_of(configure(teacher, data, stages=TWO))
    before = terms(task(batch))
    at(task, [10, 20, 30, 40])
    fine = terms(task(batch))
    with torch.no_grad():
        for tap, align in zip(task.taps, task.align, strict=True):
            if tap.level == 0:
                for parameter in align.parameters():
                    parameter.add_(1.0)
    assert terms(task(batch))["spatial"] > fine["spatial"]
    at(task, [500, 600, 700, 800])
    after = terms(task(batch))
    assert {name: value.item() for name, value in before.items()} == {n: v.item() for n, v in after.items()}


@pytest.mark.parametrize("steps", [[10, 20, 30, 40], [500, 600, 700, 800]], ids=["fine", "coarse"])
def test_every_parameter_has_a_gradient_whatever_stages_a_batch_is_in(
    steps: list[int], teacher: Path, data: DataConfig
) -> None:
    """Processes that share a batch wait for each other's gradients, parameter by parameter."""
    config = configure(teacher, data, stages=TWO)
    task = staged_task(config)
    at(task, steps)
    task(batch_of(config))["loss"].backward()
    assert all(parameter.grad is not None for parameter in task.parameters())
    entered = task.student.stage_inputs["1"].weight.grad
    assert isinstance(entered, Tensor) and bool(entered.any()) == (steps[0] >= 400)
    assert bool(task.student.input_blocks[0][0].weight.grad.any()) == (steps[0] < 400)  # type: ignore[union-attr, operator]


def test_the_logged_rows_are_those_of_the_samples(teacher: Path, data: DataConfig) -> None:
    config = configure(teacher, data, stages=TWO, dropout=0.0)
    task = staged_task(config)
    at(task, [10, 399, 400, 990])
    found = task(batch_of(config))
    total = sum(found[f"ddpm/t{index}"] for index in range(4))
    assert isinstance(total, Tensor) and total[1] == 4
    torch.testing.assert_close(total[0] / 4, (found["ddpm"] - found["delta"]).detach(), rtol=1e-5, atol=1e-6)
    assert found["ddpm/t0"][1] == 1 and found["ddpm/t3"][1] == 1


RUN: dict[str, Any] = {"steps": 2, "batch_size": 4, "warmup": 1, "preview_every": 2, "log_every": 1, "trackers": ()}
PAIR = FirstStageConfig("kl", embed_dim=3, z_channels=3, ch=32, ch_mult=(1, 1), num_res_blocks=1, resolution=8)
PAIR = replace(PAIR, in_channels=4, out_ch=4)
THREE = StagesConfig((BoundaryConfig(0.3, "blur", kernel="gaussian", width=0.8), BoundaryConfig(0.6, back="bilinear")))


def test_from_images_to_a_student_behind_a_vae(tmp_path: Path, teacher: Path, data: DataConfig) -> None:
    """train-autoencoder on latents, distill and train-teacher with it, and samples of the files that they leave."""
    coder = AutoencoderConfig(run_of(tmp_path / "coder"), data, PAIR, latents_of=teacher)
    pair = Path(train_autoencoder.train(coder)["path"])
    assert checkpoint.read(pair).config.first_stage == PAIR
    stages = StagesConfig((BoundaryConfig(0.3, "vae", gamma=0.7),))
    config = replace(configure(teacher, data, tmp_path / "student", stages=stages), stage_autoencoders=(pair,))
    assert stage_energy.measured(config, 8)[1][0].gamma > 0
    opened = checkpoint.load(distill.train(config)["path"])
    assert opened.unet is not None and opened.config.unet is not None and opened.config.unet.stages is not None
    assert opened.config.unet.stages.boundaries[0].autoencoder == PAIR
    kept, given = opened.unet.stage_pairs["0"].state_dict(), checkpoint.load(pair).first_stage
    assert given is not None
    for name, tensor in given.state_dict().items():  # frozen, and as the file was, but for half precision
        torch.testing.assert_close(kept[name], tensor.half().float(), rtol=0, atol=0)
    images = sample_checkpoint(opened, ["red", "blue"], steps=5)
    assert images.shape == (2, 3, 16, 16) and images.isfinite().all()


def run_of(out: Path) -> Any:
    from spectral_diffusion.training.loop.config import RunConfig

    return RunConfig(out, checkpoint_every=2, **RUN)


@pytest.mark.parametrize("prediction", ["eps", "v"])
def test_a_student_of_three_stages_is_trained_stopped_and_sampled(
    prediction: Any, tmp_path: Path, teacher: Path, data: DataConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two steps and two more are four: the same weights to the last bit."""
    settings = {"stages": THREE, "prediction": prediction, "init": "random"}
    whole = configure(teacher, data, tmp_path / "whole", **settings)
    parts = configure(teacher, data, tmp_path / "parts", **settings)
    first = replace(parts, run=replace(parts.run, steps=2, decay="constant"))
    distill.train(first)
    last = distill.train(replace(parts, run=replace(parts.run, decay="constant")))
    once = distill.train(replace(whole, run=replace(whole.run, decay="constant")))
    weights = [checkpoint.read(str(run["path"])).tensors for run in (last, once)]
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())
    opened = checkpoint.load(once["path"])
    assert opened.config.unet is not None and opened.config.unet.stages == THREE
    alone = sample_checkpoint(opened, ["red"], steps=6, indices=[1])
    both = sample_checkpoint(opened, ["blue", "red"], steps=6)
    torch.testing.assert_close(alone[0], both[1], rtol=1e-4, atol=1e-5)
    capsys.readouterr()
    assert cli.main(["inspect", str(once["path"]), "--json"]) == 0
    stages = json.loads(capsys.readouterr().out)["stages"]
    assert [(stage["size"], stage["from"], stage["to"]) for stage in stages] == [
        (8, 0, 0.3),
        (8, 0.3, 0.6),
        (4, 0.6, 1),
    ]
    assert stages[0]["macs"] == stages[1]["macs"] > 1.4 * stages[2]["macs"]


def test_a_teacher_is_trained_in_stages(tmp_path: Path, teacher: Path, data: DataConfig) -> None:
    unet = replace(tiny.CONDITIONED, stages=None)
    config = TeacherConfig(run_of(tmp_path / "run"), teacher, unet, data, tiny.CLASSES, stages=THREE)
    result = train_teacher.train(config)
    assert result["delta/t0"] >= 0 and result["loss"] > 0
    opened = checkpoint.load(str(result["path"]))
    assert opened.config.unet is not None and opened.config.unet.stages == THREE
    assert sample_checkpoint(opened, ["red"], steps=4).isfinite().all()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"stages": StagesConfig((BoundaryConfig(1.2),))}, "boundary lies at 1.2"),
        ({"stages": StagesConfig((BoundaryConfig(0.5), BoundaryConfig(0.5)))}, "rising parts of the schedule"),
        ({"stages": StagesConfig((BoundaryConfig(0.5, factor=4),))}, "4 times smaller than the latent.*2 levels"),
        ({"stages": StagesConfig((BoundaryConfig(0.5, factor=3),))}, "factor is 3"),
        ({"stages": StagesConfig((BoundaryConfig(0.5, "vae"),))}, "names 0 files"),
        ({"stages": TWO, "stage_autoencoders": (Path("x"),)}, "names 1 files"),
        ({"stage_autoencoders": (Path("x"),)}, "give stages.boundaries, or leave them out"),
        ({"stages": replace(TWO, dimension_power=-1.0)}, "dimension_power is -1"),
        ({"stages": StagesConfig((BoundaryConfig(0.5, "blur", kernel="uniform", width=2),))}, "uniform blur is 2"),
        ({"stages": StagesConfig((BoundaryConfig(0.5, gamma=0.0),))}, "gamma is 0"),
    ],
)
def test_stages_that_cannot_be_are_a_sentence(settings: Any, said: str, teacher: Path, data: DataConfig) -> None:
    config = configure(teacher, data, **settings)
    with pytest.raises(ValueError, match=said):
        distill.student_of(config, open_teacher(teacher))


def test_a_student_of_stages_teaches_nobody(tmp_path: Path, teacher: Path, data: DataConfig) -> None:
    path = distill.train(configure(teacher, data, tmp_path / "run", stages=TWO))["path"]
    with pytest.raises(ValueError, match="works in stages; give a teacher of one"):
        distill.student_of(configure(Path(path), data, model_channels=32), open_teacher(Path(path)))
    for arguments, said in (
        (["convert", str(path), str(tmp_path / "x.ckpt"), "--layout", "ldm"], "no place in LDM's layout"),
        (["spectrum", "response", str(path), "--images", data.path], "works in stages"),
    ):
        assert cli.main(arguments) == 2, said
