"""What distillation can do beyond the paper, against formulas by hand; and what it logs of its losses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from spectral_diffusion.spectral import checkpoint
from spectral_diffusion.spectral.config import ConditioningConfig, ScheduleConfig
from spectral_diffusion.spectral.diffusion import Schedule
from spectral_diffusion.spectral.errors import SpectralError
from spectral_diffusion.spectral.unet import Tap, UNet
from spectral_diffusion.training import distill
from spectral_diffusion.training.data.batches import Batch
from spectral_diffusion.training.data.config import DataConfig
from spectral_diffusion.training.distillation.config import LossConfig, TapConfig
from spectral_diffusion.training.distillation.losses import Pair
from spectral_diffusion.training.distillation.objectives import BINS, min_snr_weights
from spectral_diffusion.training.distillation.task import DistillTask, step_weights
from spectral_diffusion.training.sample import sample_checkpoint

from . import tiny
from .test_distill import batch_of, configure, task_of

OUTPUT_ALONE = TapConfig(down=False, middle=False, up=False)


@pytest.fixture(scope="module")
def batch(teacher: Path, data: DataConfig) -> Batch:
    return batch_of(configure(teacher, data))


def errors_of(task: DistillTask, batch: Batch) -> tuple[Tensor, Tensor]:
    """The error [B, …] of the student, called by hand, and its steps."""
    x_0, t, noise, x_t, context, _ = task.inputs(batch)
    with torch.no_grad():
        return task.student(x_t, t, context) - task.schedule.target(x_0, t, noise), t


@pytest.mark.parametrize("prediction", ["eps", "v"])
def test_min_snr_weighs_the_samples_of_l_ddpm_alone(
    prediction: Any, teacher: Path, data: DataConfig, batch: Batch
) -> None:
    config = configure(teacher, data, prediction=prediction)
    plain, task = task_of(config), task_of(replace(config, loss=LossConfig(min_snr=0.1)))
    task.align.load_state_dict(plain.align.state_dict())
    before = plain(batch)
    found, (error, t) = task(batch), errors_of(task, batch)
    weights = min_snr_weights(Schedule().alphas_cumprod, t, 0.1, prediction)
    torch.testing.assert_close(found["ddpm"], (weights * error.square().mean((1, 2, 3))).mean())
    assert found["ddpm"] < before["ddpm"]
    assert found["spatial"] == before["spatial"] and found["frequency"] == before["frequency"]


@pytest.mark.parametrize("prediction", ["eps", "v"])
def test_the_focal_frequency_loss_is_the_articles(
    prediction: Any, teacher: Path, data: DataConfig, batch: Batch
) -> None:
    """Of the outputs alone, by numpy: the mean of w |F_s − F_t|², w = |F_s − F_t| over its maximum in each channel."""
    loss = LossConfig(taps=OUTPUT_ALONE, frequency_weights="focal")
    task = task_of(configure(teacher, data, loss=loss, prediction=prediction))
    found = task(batch)
    gap = noises_apart(task, batch).numpy()
    distance = np.abs(np.fft.fft2(gap, norm="ortho"))
    weights = distance / distance.max(axis=(2, 3), keepdims=True)
    assert found["frequency"].item() == pytest.approx(float(np.mean(weights * distance**2)), rel=1e-4)
    assert found["spatial"].item() == pytest.approx(float(np.mean(gap**2)), rel=1e-4)


def noises_apart(task: DistillTask, batch: Batch) -> Tensor:
    """The student's noise less the teacher's, with both networks called by hand."""
    _, t, _, x_t, context, _ = task.inputs(batch)
    alpha = task.schedule.alphas_cumprod[t].view(-1, 1, 1, 1).float()
    with torch.no_grad():
        said, own = task._frozen[0](x_t, t, context), task.student(x_t, t, context)
    return ((1 - alpha).sqrt() * x_t + alpha.sqrt() * own if task.schedule.prediction == "v" else own) - said


@pytest.mark.parametrize(("student", "said"), [("eps", "eps"), ("v", "v"), ("v", "eps"), ("eps", "v")])
def test_two_perfect_networks_agree_whatever_they_predict(
    student: Any, said: Any, teacher: Path, data: DataConfig
) -> None:
    opened = checkpoint.load(teacher)
    task = task_of(configure(teacher, data, prediction=student))
    task._teacher_schedule = Schedule(prediction=said)
    x_0, noise, t = torch.randn(4, 4, 8, 8), torch.randn(4, 4, 8, 8), torch.tensor([0, 300, 700, 999])
    x_t = opened.schedule.q_sample(x_0, t, noise)
    outputs = [Schedule(prediction=kind).target(x_0, t, noise) for kind in (student, said)]
    mine, theirs = task.comparable(*outputs, x_t, t)
    torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)
    expected = outputs[0] if student == said else noise
    torch.testing.assert_close(mine, expected, rtol=1e-4, atol=1e-5)


def test_with_zero_terminal_snr_the_teacher_is_asked_where_it_knows_the_noise(
    teacher: Path, data: DataConfig, batch: Batch
) -> None:
    task = task_of(configure(teacher, data, prediction="v", zero_terminal_snr=True))
    known, rescaled = Schedule().alphas_cumprod.sqrt(), task.schedule.alphas_cumprod.sqrt()
    assert rescaled[-1] == 0 and task.teacher_steps[-1] == 999 and task.teacher_steps[0] == 0
    inside = rescaled > known[-1]
    assert ((known[task.teacher_steps] - rescaled).abs()[inside] < 1.1e-3).all()  # half a step, and a bit
    found = task(batch)
    assert all(value.isfinite().all() for value in found.values())
    found["loss"].backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in task.student.parameters())
    ordinary = task_of(configure(teacher, data))
    assert torch.equal(ordinary.teacher_steps, torch.arange(1000))


def test_min_snr_with_zero_terminal_snr_leaves_the_last_step_some_weight() -> None:
    weights = step_weights(Schedule(prediction="v", zero_terminal_snr=True), 5.0)
    alpha = Schedule().alphas_cumprod[-1].item()
    assert weights[-1].item() == pytest.approx(alpha / (1 - alpha) / (1 + alpha / (1 - alpha)), rel=1e-4)
    assert weights.isfinite().all() and (weights > 0).all()


@pytest.mark.parametrize(
    "settings",
    [
        {"loss": LossConfig(min_snr=5.0)},
        {"loss": LossConfig(frequency_weights="focal")},
        {"prediction": "v"},
        {"prediction": "v", "zero_terminal_snr": True, "loss": LossConfig(min_snr=5.0)},
        {"init": "teacher", "recompute": True},
    ],
    ids=["min-snr", "focal", "v", "zero-terminal-snr", "init"],
)
def test_a_run_with_an_option_makes_a_student_that_samples(
    settings: dict[str, Any], teacher: Path, data: DataConfig, tmp_path: Path
) -> None:
    config = configure(teacher, data, tmp_path / "run", **settings)
    result = distill.train(replace(config, run=replace(config.run, steps=2)))
    student = checkpoint.load(result["path"])
    expected = ScheduleConfig(
        prediction=settings.get("prediction", "eps"), zero_terminal_snr=settings.get("zero_terminal_snr", False)
    )
    assert student.config.schedule == expected
    images = sample_checkpoint(student, ["blue", "red"], steps=4)
    assert images.isfinite().all() and images.std() > 0


@pytest.mark.parametrize("lr", [1e-12, 1e-2])
def test_a_student_may_start_from_another_one(lr: float, teacher: Path, data: DataConfig, tmp_path: Path) -> None:
    """Also one that learnt from smaller images; and it goes on only from where it began."""
    config = configure(teacher, data, tmp_path / "run")
    unet = distill.student_of(config, checkpoint.load(teacher)).unet
    assert unet is not None
    path = tmp_path / "other.safetensors"
    about = checkpoint.read(teacher).config
    tiny.write(path, replace(about, kind="student", unet=replace(unet, image_size=2 * unet.image_size)))
    config = replace(config, init=str(path), run=replace(config.run, steps=2, lr=lr, ema=0.0, warmup=1))
    made, start = checkpoint.load(distill.train(config)["path"]), checkpoint.load(path)
    assert made.unet is not None and start.unet is not None and made.unet.config == unet
    pairs = zip(made.unet.state_dict().values(), start.unet.state_dict().values(), strict=True)
    far = max((a - b).abs().max().item() for a, b in pairs)
    assert far < 1e-2 if lr < 1e-6 else far > 1e-2  # the file is in float16
    tiny.write(path, replace(about, kind="student", unet=unet, scale_factor=0.1))
    with pytest.raises(SpectralError, match=r"a run whose init was not what .*other.safetensors holds now"):
        distill.train(replace(config, run=replace(config.run, steps=3)))


@pytest.mark.parametrize(
    ("unet", "says"),
    [
        ({"resampler": "conv"}, "The student's resampler is wavelet, but that of other.safetensors is conv; make them"),
        (None, "init is .*other.safetensors, which holds no U-Net"),
    ],
)
def test_another_network_is_no_start(
    unet: dict[str, Any] | None, says: str, teacher: Path, data: DataConfig, tmp_path: Path
) -> None:
    config = configure(teacher, data, tmp_path / "run", init=str(tmp_path / "other.safetensors"))
    own = distill.student_of(replace(config, init="random"), checkpoint.load(teacher)).unet
    assert own is not None
    about = checkpoint.read(teacher).config
    other = replace(about, kind="autoencoder", unet=None, conditioning=ConditioningConfig())
    tiny.write(Path(config.init), other if unet is None else replace(about, kind="lite", unet=replace(own, **unet)))
    with pytest.raises(SpectralError, match=says):
        distill.train(config)
    assert not (tmp_path / "run").exists()


def test_rows_add_up_to_the_losses(teacher: Path, data: DataConfig, batch: Batch) -> None:
    task = task_of(configure(teacher, data))
    found, (error, t) = task(batch), errors_of(task, batch)
    for name in ("ddpm", "spatial", "frequency"):
        rows = torch.stack([found[f"{name}/t{index}"] for index in range(BINS)])
        assert rows[:, 1].tolist() == [((t * BINS) // 1000 == index).sum() for index in range(BINS)]
        torch.testing.assert_close(rows[:, 0].sum() / rows[:, 1].sum(), found[name].detach())
        shares = torch.stack([found[f"{name}/high/t{index}"] for index in range(BINS)])
        torch.testing.assert_close(shares[:, 1], rows[:, 0])
        torch.testing.assert_close(shares.sum(0), found[f"{name}/high"])
        assert 0 < found[f"{name}/high"][0] < found[f"{name}/high"][1]
        assert not any(found[f"{name}/t{index}"].requires_grad for index in range(BINS))
    spectrum = np.abs(np.fft.fft2(error.numpy(), norm="ortho")) ** 2
    radius = np.hypot(np.fft.fftfreq(8)[:, None], np.fft.fftfreq(8)[None])
    share = spectrum[..., radius > 0.25].sum() / spectrum.sum()
    assert (found["ddpm/high"][0] / found["ddpm/high"][1]).item() == pytest.approx(share, rel=1e-4)


@pytest.mark.parametrize(
    ("loss", "names"),
    [(LossConfig(0, 0), {"ddpm"}), (LossConfig(0.1, 0), {"ddpm"}), (LossConfig(), {"ddpm", "spatial", "frequency"})],
    ids=["plain", "spatial", "all"],
)
def test_shares_of_the_high_band_are_there_where_there_is_a_spectrum(
    loss: LossConfig, names: set[str], teacher: Path, data: DataConfig, batch: Batch
) -> None:
    task = task_of(configure(teacher, data, loss=loss))
    found = task(batch)
    assert {name.split("/")[0] for name in found if "/high" in name} == names
    assert all(value.shape == ((2,) if "/" in name else ()) for name, value in found.items())


def test_the_teacher_is_asked_in_inference_mode_and_costs_no_gradient(
    teacher: Path, data: DataConfig, batch: Batch
) -> None:
    task = task_of(configure(teacher, data))
    known: dict[Tap, Tensor] = {}
    x_0, t, _, x, context, _ = task.inputs(batch)
    said = task.ask(x, t, context, known)
    assert said.is_inference() and all(feature.is_inference() for feature in known.values())
    gap = task.distillation(x_0, [Pair(torch.zeros_like(x).requires_grad_(), said)])
    (gap.spatial + gap.frequency).sum().backward()


def test_a_teacher_may_answer_in_bfloat16_and_the_student_does_not(
    teacher: Path, data: DataConfig, batch: Batch
) -> None:
    answers = {}
    for precision in ("auto", "run", "bf16"):
        task = task_of(configure(teacher, data, teacher_precision=precision))
        _, t, _, x, context, _ = task.inputs(batch)
        answers[precision] = task.ask(x, t, context, {})
        assert task.student(x, t, context).dtype == torch.float32
    assert torch.equal(answers["auto"], answers["run"]) and answers["run"].dtype == torch.float32
    rounded, exact = answers["bf16"].float(), answers["run"]
    assert 0 < (rounded - exact).norm() / exact.norm() < 0.02


@pytest.mark.parametrize("resampler", ["wavelet", "conv"])
@pytest.mark.parametrize("conditioned", [False, True])
def test_computing_activations_again_changes_no_number(resampler: Any, conditioned: bool) -> None:
    config = replace(tiny.CONDITIONED if conditioned else tiny.UNCONDITIONAL, resampler=resampler)
    network = tiny.randomized(UNet(config))
    x, t = torch.randn(2, 4, 8, 8), torch.tensor([3, 900])
    context = torch.randn(2, 5, 32) if conditioned else None
    results = []
    for again in (False, True):
        network.recompute = again
        network.zero_grad()
        features: dict[Tap, Tensor] = {}
        out = network(x, t, context, features=features)
        (out.square().sum() + sum(feature.square().mean() for feature in features.values())).backward()
        results.append([out.detach(), *(p.grad for p in network.parameters())])
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"zero_terminal_snr": True}, "zero_terminal_snr needs a student that predicts velocity.*set prediction to v"),
        ({"init": "teacher", "model_channels": 96}, "model_channels is 96.*64.*init"),
        ({"init": "techer"}, "init is techer, which is not there; expected random, teacher or the file of a student"),
    ],
    ids=["zero-terminal-snr", "wider", "init"],
)
def test_what_cannot_be_is_a_sentence_and_leaves_no_run(
    settings: dict[str, Any], says: str, teacher: Path, data: DataConfig, tmp_path: Path
) -> None:
    with pytest.raises(SpectralError, match=says):
        distill.train(configure(teacher, data, tmp_path / "run", **settings))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"min_snr": -1.0}, "loss.min_snr is -1.0"),
        ({"min_snr": float("nan")}, "loss.min_snr is nan"),
        ({"focal_alpha": 0.0}, "loss.focal_alpha is 0.0; expected an exponent above 0"),
    ],
)
def test_weights_that_cannot_be_are_refused(settings: dict[str, float], says: str) -> None:
    with pytest.raises(SpectralError, match=says):
        LossConfig(**settings)  # type: ignore[arg-type]
