"""Students of few steps: the states that their teacher passes, the velocity that lands on them, and the commands."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from spectral_diffusion.spectral import checkpoint
from spectral_diffusion.spectral.config import ModelConfig, ScheduleConfig, StagesConfig
from spectral_diffusion.spectral.diffusion import Schedule, ddim
from spectral_diffusion.training import cli, distill
from spectral_diffusion.training.data.config import DataConfig
from spectral_diffusion.training.data.dataset import open_data
from spectral_diffusion.training.data.trajectories import Recorder, few_step_schedule
from spectral_diffusion.training.distillation.few_steps import landing
from spectral_diffusion.training.loop.config import RunConfig
from spectral_diffusion.training.sample import latents, sample_checkpoint

from . import tiny
from .test_distill import configure
from .test_fdm_files import KEPT

SPREAD = 0.6  # of the data of a teacher whose way is known


def recorded(steps: int, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Noise, states and the end, of the exact teacher of data N(0, SPREAD²)."""
    config = ScheduleConfig()
    schedule, noise = Schedule.from_config(config), torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(0))

    def teacher(x: Tensor, t: Tensor, context: Tensor | None = None) -> Tensor:
        signal, sigma = schedule.coefficients(t, x)
        return sigma * x / (signal**2 * SPREAD**2 + sigma**2)

    path = Recorder(config, steps, count)
    end = ddim(teacher, noise, schedule, steps, callback=path)
    return noise, path.states(), end


def test_states_lie_on_the_teachers_way() -> None:
    """Of Gaussian data it is known: x grows as the marginal's deviation, √(ᾱ s² + 1 − ᾱ)."""
    noise, states, _ = recorded(500, 4)
    few = Schedule.from_config(few_step_schedule(ScheduleConfig()))
    torch.testing.assert_close(states[:, 0], noise, atol=1e-5, rtol=0)
    start = Schedule().alphas_cumprod[Schedule().ddim_timesteps(500)[-1]].item()
    for place, t in ((1, 749), (2, 499), (3, 249)):
        alpha = few.alphas_cumprod[t].item()
        growth = ((alpha * SPREAD**2 + 1 - alpha) / (start * SPREAD**2 + 1 - start)) ** 0.5
        torch.testing.assert_close(states[:, place], growth * noise, atol=5e-3, rtol=5e-3)


@pytest.mark.parametrize("count", [1, 2, 4, 7])
def test_the_velocity_that_is_learnt_lands_on_the_next_state(count: int) -> None:
    """So a student that has learnt it by heart draws what the teacher drew, with the library's own DDIM."""
    noise, states, end = recorded(50, count)
    schedule = Schedule.from_config(few_step_schedule(ScheduleConfig()))
    times = schedule.ddim_timesteps(count).flip(0)
    keep, turn = landing(schedule, times)
    ends = torch.cat([states[:, 1:], end[:, None]], dim=1)
    seen: list[int] = []

    def student(x: Tensor, t: Tensor, context: Tensor | None = None) -> Tensor:
        place = times.tolist().index(int(t[0]))
        torch.testing.assert_close(x, states[:, place], atol=1e-4, rtol=1e-4)
        seen.append(place)
        return (ends[:, place] - keep[place] * x) / turn[place]

    found = ddim(student, noise, schedule, count)
    torch.testing.assert_close(found, end, atol=1e-4, rtol=1e-4)
    assert seen == list(range(count))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher, and six of its samples with the states of two steps."""
    folder = tmp_path_factory.mktemp("few")
    tiny.teacher(folder / "teacher.safetensors")
    imagine(folder, "two", "--states", "2", "--guidance", "1.5", "--dtype", "float32")
    return folder


def imagine(folder: Path, out: str, *more: str) -> int:
    given = ["--teacher", str(folder / "teacher.safetensors"), "--out", str(folder / out), "--count", "6"]
    return cli.main(["data", "imagine", *given, "--steps", "5", *more])


def test_states_are_kept_beside_the_samples(folder: Path) -> None:
    """The samples are those of an ordinary folder; the states are those on the way that a callback sees."""
    assert imagine(folder, "plain", "--guidance", "1.5", "--dtype", "float32") == 0
    data, plain = (open_data(DataConfig(str(folder / name), size=16)) for name in ("two", "plain"))
    batch, other = data.preview_samples(6), plain.preview_samples(6)
    assert torch.equal(batch["latent"], other["latent"]) and "states" not in other
    assert batch["states"].shape == (6, 2, 4, 8, 8) and data.sha256 != plain.sha256
    teacher = checkpoint.load(folder / "teacher.safetensors")
    path = Recorder(teacher.config.schedule, 5, 2)
    assert teacher.unet is not None
    prompts = batch["label"]
    made = latents(
        teacher.config, teacher.unet, teacher.conditioner, prompts, range(6), steps=5, guidance=1.5, callback=path
    )
    torch.testing.assert_close(made, batch["latent"], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(path.states(), batch["states"], atol=1e-5, rtol=1e-5)


def test_a_student_learns_its_steps_and_says_how_many(folder: Path, tmp_path: Path) -> None:
    settings = {"data": DataConfig(str(folder / "two"), size=16), "few_steps": 2, "init": "teacher"}
    run = RunConfig(tmp_path / "run", steps=60, batch_size=6, lr=3e-3, warmup=1, ema=0.0, preview_every=0, trackers=())
    result = distill.train(replace(configure(folder / "teacher.safetensors", DataConfig()), **settings, run=run))
    lines = [json.loads(line) for line in (tmp_path / "run" / "statistics.jsonl").read_text().splitlines()]
    assert lines[-1]["ddpm"] < 0.8 * lines[0]["ddpm"] and lines[-1]["frequency"] > 0
    student = checkpoint.load(Path(result["path"]))
    assert student.config.few_steps == 2 and student.config.schedule == few_step_schedule(ScheduleConfig())
    assert json.loads(checkpoint.read(Path(result["path"])).metadata["spectral_diffusion"])["version"] == 3
    usual, told = (sample_checkpoint(student, ["red"], seed=1, **more) for more in ({}, {"steps": 2, "guidance": 1.0}))
    assert torch.equal(usual, told)
    assert not torch.equal(usual, sample_checkpoint(student, ["red"], seed=1, steps=4))


def test_what_cannot_be_is_refused(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert imagine(folder, "plain", "--guidance", "1.5", "--dtype", "float32") == 0
    run = ["--run.out", str(tmp_path / "run"), "--run.steps", "1", "--data.size", "16", "--model_channels", "32"]
    given = ["distill", "--teacher", str(folder / "teacher.safetensors"), *run, "--data.path"]
    cases = {
        (
            *given,
            str(folder / "two"),
            "--few_steps",
            "3",
        ): r"few_steps is 3, but .*two holds the states of 2 steps; set few",
        (
            *given,
            str(folder / "plain"),
            "--few_steps",
            "2",
        ): r"holds no states of a teacher; make some with: data imagine",
        (*given, str(folder / "two"), "--few_steps", "-1"): r"few_steps is -1; expected a number of steps, or 0",
    }
    for command, says in cases.items():
        capsys.readouterr()
        assert cli.main(list(command)) == 2
        (told,) = capsys.readouterr().err.splitlines()[-1:]
        assert re.search(says, told), told
    assert not (tmp_path / "run").exists()
    assert imagine(folder, "more", "--states", "6") == 2
    assert "--states is 6; expected 0 (none) to --steps, which is 5." in capsys.readouterr().err
    staged = replace(tiny.UNCONDITIONAL, model_channels=64, resampler="conv", stages=StagesConfig(KEPT.boundaries[:1]))
    tiny.write(tmp_path / "teacher.safetensors", ModelConfig("teacher", staged, tiny.FIRST_STAGE, scale_factor=0.5))
    assert imagine(tmp_path, "more", "--states", "2") == 2
    assert "--states needs a teacher of one stage" in capsys.readouterr().err


def test_a_student_of_few_steps_teaches_nobody(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    about = ModelConfig("student", tiny.UNCONDITIONAL, tiny.FIRST_STAGE, schedule=few_step_schedule(ScheduleConfig()))
    tiny.write(tmp_path / "few.safetensors", replace(about, few_steps=4))
    config = configure(tmp_path / "few.safetensors", DataConfig(str(folder / "two"), size=16), tmp_path / "run")
    with pytest.raises(Exception, match="knows 4 steps alone; give what it learnt from"):
        distill.train(config)
