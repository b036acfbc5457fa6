"""Students of guided answers: what the teacher is asked, what the losses add up to, and what the file says."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from spectral_diffusion.spectral import checkpoint
from spectral_diffusion.spectral.config import BoundaryConfig, ModelConfig, StagesConfig
from spectral_diffusion.spectral.errors import SpectralError
from spectral_diffusion.training import cli, distill
from spectral_diffusion.training.ablation_config import AblateConfig
from spectral_diffusion.training.data.config import DataConfig
from spectral_diffusion.training.distillation.config import DistillConfig, LossConfig
from spectral_diffusion.training.sample import guidance_of, sample_checkpoint
from spectral_diffusion.training.teachers import open_teacher

from . import tiny
from .test_distill import batch_of, configure, task_of
from .test_distill_options import OUTPUT_ALONE

OUTPUTS = LossConfig(taps=OUTPUT_ALONE)


def guided(teacher: Path, data: DataConfig, *more: Any, weight: float = 3.0, **settings: Any) -> DistillConfig:
    return configure(teacher, data, *more, **{"loss": OUTPUTS, "teacher_guidance": weight} | settings)


@pytest.mark.parametrize("weight", [0.0, 0.5, 1.0, 3.0])
def test_the_teacher_answers_as_ddim_would_guide_it(weight: float, teacher: Path, data: DataConfig) -> None:
    """ε = ε(∅) + w (ε(c) − ε(∅)), where samples without a condition stay what they are."""
    config = guided(teacher, data, weight=weight, dropout=0.5)
    task, opened = task_of(config), checkpoint.load(teacher)
    assert opened.unet is not None and opened.conditioner is not None
    for seed in range(8):
        batch = batch_of(config) | {"ordinal": torch.arange(4) + 4 * seed}
        _, t, _, x_t, context, _ = task.inputs(batch)
        assert context is not None
        with torch.no_grad():
            nothing = opened.conditioner(torch.tensor([2] * 4))
            without, under = opened.unet(x_t, t, nothing), opened.unet(x_t, t, context)
        said = task.ask(x_t, t, context, {})
        torch.testing.assert_close(said, without + weight * (under - without), rtol=1e-4, atol=1e-5)
        dropped = (context == nothing).all(dim=(1, 2))
        torch.testing.assert_close(said[dropped], without[dropped], rtol=1e-4, atol=1e-5)


def test_guidance_changes_nothing_where_the_condition_is_the_null_one(data: DataConfig, tmp_path: Path) -> None:
    """To the last bit, also where the teacher answers in bfloat16: both passes see the same states of its encoder."""
    unet = replace(tiny.CONDITIONED, model_channels=64, resampler="conv")
    about = ModelConfig("teacher", unet, tiny.FIRST_STAGE, tiny.TEXT, scale_factor=0.5)
    teacher = tiny.write(tmp_path / "teacher.safetensors", about)
    config = guided(teacher, data, teacher_precision="bf16", dropout=0.5)
    task, plain = task_of(config), task_of(replace(config, teacher_guidance=1.0))
    batch = batch_of(config) | {"caption": ["red"] * 4}
    _, t, _, x_t, context, _ = task.inputs(batch)
    assert context is not None
    (nothing,) = task.noising.contexts.unconditional(checkpoint.load(teacher).conditioner)
    dropped = torch.tensor([torch.allclose(one, nothing) for one in context])
    said, unguided = task.ask(x_t, t, context, {}), plain.ask(x_t, t, context, {})
    assert dropped.any() and not dropped.all()
    assert torch.equal(said[dropped], unguided[dropped]) and not torch.equal(said[~dropped], unguided[~dropped])


@pytest.mark.parametrize("stages", [StagesConfig(), StagesConfig((BoundaryConfig(0.5, "blur"),))], ids=["one", "two"])
def test_l_ddpm_may_count_less_or_not_at_all(stages: StagesConfig, teacher: Path, data: DataConfig) -> None:
    found = {}
    for weight in (0.0, 0.25, 1.0):
        loss = replace(OUTPUTS, ddpm=weight, spatial=2.0, frequency=3.0)
        config = guided(teacher, data, loss=loss, stages=stages)
        opened = open_teacher(teacher)
        about = distill.student_of(config, opened)
        assert about.unet is not None
        contexts = task_of(replace(config, stages=StagesConfig())).noising.contexts
        torch.manual_seed(0)
        task = distill.task_of(config, about.unet)(about.unet, opened, contexts, config)
        tiny.randomized(task.student, 7)
        found[weight] = task(batch_of(config))
        expected = weight * found[weight]["ddpm"] + 2.0 * found[weight]["spatial"] + 3.0 * found[weight]["frequency"]
        torch.testing.assert_close(found[weight]["loss"], expected)
    assert found[0.0]["ddpm"] == found[1.0]["ddpm"] > 0 and found[0.0]["loss"] < found[1.0]["loss"]


def test_the_file_says_that_its_guidance_is_learnt(
    teacher: Path, data: DataConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = distill.train(guided(teacher, data, tmp_path / "run"))
    path = Path(result["path"])
    student = checkpoint.load(path)
    assert student.config.guidance == 3.0
    assert json.loads(checkpoint.read(path).metadata["spectral_diffusion"])["version"] == 4
    assert guidance_of(student.config, None) == 1.0 and guidance_of(student.config, 2.5) == 2.5
    usual, told, more = (
        sample_checkpoint(student, ["red"], steps=3, **given) for given in ({}, {"guidance": 1.0}, {"guidance": 2.0})
    )
    assert torch.equal(usual, told) and not torch.equal(usual, more)
    capsys.readouterr()
    assert cli.main(["inspect", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["guidance"] == 3.0


@pytest.mark.parametrize(
    ("settings", "learnt"),
    [
        ({}, 3.0),
        ({"weight": 1.0}, None),
        ({"loss": LossConfig(spatial=0.0, frequency=0.0)}, None),
        ({"loss": replace(OUTPUTS, frequency=0.0)}, 3.0),
    ],
    ids=["guided", "plain", "without-answers", "spatial-alone"],
)
def test_guidance_is_learnt_from_guided_answers_alone(
    settings: dict[str, Any], learnt: float | None, teacher: Path, data: DataConfig
) -> None:
    about = distill.student_of(guided(teacher, data, **settings), open_teacher(teacher))
    assert about.guidance == learnt


def test_a_student_of_a_guided_teacher_learns_its_guidance(data: DataConfig, tmp_path: Path) -> None:
    unet = replace(tiny.CONDITIONED, model_channels=64, resampler="conv")
    about = ModelConfig("teacher", unet, tiny.FIRST_STAGE, tiny.CLASSES, scale_factor=0.5, guidance=2.0)
    teacher = tiny.write(tmp_path / "guided.safetensors", about)
    opened = open_teacher(teacher)
    assert opened.config.guidance == 2.0
    assert distill.student_of(guided(teacher, data, weight=1.0), opened).guidance == 2.0
    assert distill.student_of(guided(teacher, data, weight=1.0, few_steps=2), opened).guidance is None
    with pytest.raises(SpectralError, match=r"guidance of 2 in its weights already; set teacher_guidance to 1"):
        distill.student_of(guided(teacher, data), opened)


def test_a_teacher_that_cannot_be_guided_is_refused_before_anything_is_written(
    data: DataConfig, tmp_path: Path
) -> None:
    unet = replace(tiny.CONDITIONED, model_channels=64, resampler="conv")
    classes = replace(tiny.CLASSES, n_classes=2, null_class=False)
    teacher = tiny.write(tmp_path / "t.safetensors", ModelConfig("teacher", unet, tiny.FIRST_STAGE, classes))
    with pytest.raises(SpectralError, match="teacher_guidance is 3, but .* knows no null condition.*set .* to 1"):
        distill.train(guided(teacher, data, tmp_path / "run", dropout=0.0))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (
            {"teacher_guidance": -1.0},
            "teacher_guidance is -1.0; expected a weight of guidance such as 2, or 1 for none",
        ),
        ({"teacher_guidance": float("inf")}, "teacher_guidance is inf"),
        ({"teacher_guidance": float("nan")}, "teacher_guidance is nan"),
        ({"teacher_guidance": 2.0, "loss": LossConfig()}, "features are compared too; set loss.taps.down"),
        ({"teacher_guidance": 2.0, "few_steps": 2}, "guided already; leave teacher_guidance out"),
        ({"loss": LossConfig(ddpm=0.0, spatial=0.0, frequency=0.0)}, "leaves nothing to learn from"),
    ],
    ids=["negative", "infinite", "nan", "features", "few-steps", "nothing"],
)
def test_what_cannot_be_is_refused(settings: dict[str, Any], says: str, tmp_path: Path) -> None:
    run = configure(tmp_path, DataConfig(), tmp_path / "run").run
    with pytest.raises(SpectralError, match=says):
        DistillConfig(run, tmp_path, **{"loss": OUTPUTS} | settings)


def test_l_ddpm_has_a_weight_and_not_less_than_none() -> None:
    with pytest.raises(SpectralError, match=r"loss.ddpm is -1.0; expected a weight of 0 \(off\) or more"):
        LossConfig(ddpm=-1.0)


def test_an_ablation_with_guided_answers_says_how_all_rows_are_sampled(tmp_path: Path) -> None:
    run = configure(tmp_path, DataConfig(), tmp_path / "run").run
    with pytest.raises(SpectralError, match="all are sampled alike; say with which guidance as evaluation.guidance"):
        AblateConfig(run, tmp_path, loss=OUTPUTS, teacher_guidance=2.0)
