"""What a distillation is about to do, told before it begins."""

from __future__ import annotations

import torch

from ...spectral.checkpoint import Checkpoint
from ...spectral.config import ModelConfig
from ...spectral.counting import parameters, unet_macs
from ..data.batches import Data
from ..loop import snapshots
from ..loop.trial import spoken
from ..processes import device, processes
from .conditions import RandomConditions
from .config import DistillConfig
from .few_steps import FewStepTask
from .task import DistillTask


def describe(
    config: DistillConfig,
    teacher: Checkpoint,
    about: ModelConfig,
    task: DistillTask | FewStepTask,
    data: Data,
    seconds: float,
    answers: int = 0,
) -> str:
    """A few lines: teacher, student, their sizes, data, steps, and how long it will take.

    Args:
        about: the student.
        seconds: of a step.
        answers: of the teacher, that are known for the run's samples.
    """
    run = config.run
    sizes = {
        "teacher": (parameters(teacher.unet), unet_macs(teacher.config)),
        about.kind: (parameters(task.student), unet_macs(about)),
    }
    (whole, work), (own, less) = sizes.values()
    samples = run.steps * run.batch_size * run.accumulate
    done = int(snapshots.saved(run.out)[-1].stem) if snapshots.saved(run.out) else 0
    images = "a stream" if data.count is None else f"{data.count:,} images"
    epochs = "" if data.count is None else f", {samples / data.count:.3g} epochs"
    known = TERMS[1:] if config.few_steps else TERMS
    terms = [f"{weight:g} {name}" for name, weight in vars(config.loss).items() if name in known and weight]
    lines = {
        "teacher": f"{config.teacher} ({whole:,} parameters, {work / 1e9:.3g} G MACs)",
        about.kind: f"{config.resampler}, width {config.model_channels} ({own:,} parameters, {whole / own:.1f} × fewer;"
        f" {less / 1e9:.3g} G MACs, {work / less:.1f} × fewer)",
        "loss": " + ".join(["ddpm", *terms]),
        **({"others": _others(task)} if config.random_conditions.share and isinstance(task, DistillTask) else {}),
        **(
            {"answers": f"{config.teacher_answers}, {answers:,} of {samples:,} are there"}
            if config.teacher_answers
            else {}
        ),
        "data": f"{config.data.path}, {images} of {config.data.size} pixels",
        "steps": f"{run.steps - done:,} of {run.steps:,}, each of {run.batch_size * run.accumulate} images{epochs}",
        "device": f"{processes().num_processes} × {device().type}, precision {run.precision}",
        "time": f"about {spoken(seconds * (run.steps - done))} ({seconds:.2g} s a step, measured)",
        "folder": str(run.out),
    }
    return "\n".join(f"{name:8} {line}" for name, line in lines.items())


def _others(task: DistillTask) -> str:
    """How many conditions take the places of samples' own, and how often."""
    others = task.noising.replace
    assert isinstance(others, RandomConditions)
    often = others.odds(torch.arange(others.steps)).mean()
    return f"{len(others.others):,} conditions, in place of samples' own for {often:.1%} of them"


#: The weights of a LossConfig that stand before terms of the loss.
TERMS = ("spatial", "frequency")
