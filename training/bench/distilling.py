"""A step of distillation against what nobody can leave out.

That is: the teacher forwards, the student forwards and backwards, on the same batch and with the same precision. What
comes on top is the data, the noise, the losses, the gradient's norm, the optimizer and the average.
"""

from __future__ import annotations

import io
import tempfile
from collections.abc import Callable
from contextlib import closing, redirect_stderr
from pathlib import Path
from typing import Any

from torch import Tensor

from ..data.config import DataConfig
from ..data.contexts import Contexts
from ..data.dataset import as_latents, open_data
from ..demo import TEACHER
from ..distill import student_of
from ..distillation.config import DistillConfig
from ..distillation.task import DistillTask
from ..loop.config import RunConfig
from ..loop.fit import Trainer
from ..loop.folder import begin
from ..loop.progress import Progress
from ..teachers import open_teacher
from .timing import Settings, Times, in_turn, overhead, peak_memory


def measure(settings: Settings) -> dict[str, float]:
    """`distill_step_overhead`, the default student from the default teacher, and what a step takes of memory.

    `distill_step_gib` is the most that a step allocates beside weights, averages and the optimizer's state;
    `distill_step_recompute_gib` the same where blocks are computed again in the backward pass (`recompute`).
    """
    batch = settings.of_batch(cpu=32)
    with tempfile.TemporaryDirectory() as folder:
        times, memory = _measured(Path(folder), batch, settings)
    return overhead("distill_step_overhead", times, "step", "passes", batch) | memory


def _measured(folder: Path, batch: int, settings: Settings) -> tuple[Times, dict[str, float]]:
    precision: Any = settings.precision
    run = RunConfig(folder, steps=10_000, batch_size=batch, precision=precision, trackers=())
    config = DistillConfig(run, TEACHER, model_channels=32, norm_groups=8, data=DataConfig(subgroups=("food-*",)))
    teacher = open_teacher(config.teacher)
    about = student_of(config, teacher)
    assert about.unet is not None and teacher.first_stage is not None
    data = open_data(config.data)
    contexts = Contexts(about.conditioning, data, config.dropout)
    begin(config)
    contexts.freeze(teacher.conditioner)
    data = as_latents(data, teacher.first_stage, TEACHER.name)
    task = DistillTask(about.unet, teacher, contexts, config)
    trainer = Trainer(task, run)
    with (
        redirect_stderr(io.StringIO()),  # the line of the steps
        closing(Progress(run, 0, trainer.accelerator)) as progress,
        closing(trainer.feed(data, 0)) as feed,
    ):
        steps = iter(range(run.steps))
        calls = {
            "step": lambda: trainer.step(next(steps), feed, progress),
            "passes": _passes(trainer, next(trainer.feed(data, 0))),
        }
        times = in_turn(calls, settings.rounds(cpu=40, quick=5), warm=3)
        memory = {"distill_step_gib": round(peak_memory(calls["step"]) / 2**30, 6)}
        task.student.recompute = True
        memory["distill_step_recompute_gib"] = round(peak_memory(calls["step"]) / 2**30, 6)
    return times, memory


def _passes(trainer: Trainer, batch: dict[str, Any]) -> Callable[[], None]:
    """The teacher's pass forward, the student's forward and backward, with nothing around them."""
    task = trainer.task
    assert isinstance(task, DistillTask)
    inputs = task.inputs(batch)

    def passes() -> None:
        known: dict[Any, Tensor] = {}
        seen: dict[Any, Tensor] = {}
        with trainer.accelerator.autocast():
            task.ask(inputs.x_t, inputs.t, inputs.context, known)
            out = task.student(inputs.x_t, inputs.t, inputs.context, features=seen)
        out.backward(out.detach())
        task.zero_grad()

    return passes
