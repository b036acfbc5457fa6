"""Distil a wavelet-gated student from a latent diffusion teacher (Section 5.2).

L = L_DDPM + λ_s L_spatial + λ_f L_freq. With both λ at 0 and `resampler: conv` this trains Lite-LDM, the baseline.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from ..spectral import checkpoint, fdm, presets
from ..spectral.conditioning import has_null
from ..spectral.config import ModelConfig, UNetConfig
from ..spectral.errors import SpectralError
from ..spectral.limits import check
from . import cli
from .data.batches import Data
from .data.contexts import Contexts
from .data.dataset import as_latents, open_data
from .data.records import read_prompts
from .distillation.answers import Answers
from .distillation.conditions import others_of
from .distillation.config import DistillConfig
from .distillation.few_steps import FewStepTask
from .distillation.few_steps import check as check_states
from .distillation.initialise import check as check_initial
from .distillation.staged import StagedDistillTask
from .distillation.summary import describe
from .distillation.task import DistillTask, compared, schedule_of
from .loop.fit import fit
from .loop.folder import begin, plain, summary
from .loop.stopping import stopping_in_order
from .loop.trial import seconds_per_step
from .portable import portable
from .previews import Preview
from .processes import device, is_main
from .staging import digest, with_autoencoders
from .teachers import digests, open_teacher

#: Of how samples meet their steps and noise; raised where that changes, so that old answers are not taken for new.
QUESTIONS = 2
#: Settings of the data that do not change what a sample is; where it lies is one, for its content counts.
WITHOUT_EFFECT = ("path", "workers", "cache", "max_corrupt")


def train(config: DistillConfig) -> dict[str, Any]:
    """Train, and export `RUN/student.safetensors` (`lite.safetensors` for conv); returns its path and statistics.

    Raises:
        SpectralError: the teacher, the data or the configuration cannot be used.
        StoppedRun: it was asked to end before its last step.
    """
    teacher = open_teacher(config.teacher, config.read, config.first_stage, config.text_encoder)
    assert teacher.first_stage is not None
    about = student_of(config, teacher)
    assert about.unet is not None
    data = open_data(config.data, multiple=teacher.first_stage.config.downscale << (len(about.unet.channel_mult) - 1))
    check_states(config, data)
    contexts = contexts_of(config, about, data)
    parts = digests(teacher.config, config.first_stage, config.text_encoder, config.vocabulary)
    others = config.random_conditions.path if config.random_conditions.share else None
    parts["random_conditions"] = None if others is None else checkpoint.sha256(others)
    answers = answers_of(config, teacher, data, parts)
    parts["stage_autoencoders"] = digest(config.stage_autoencoders)
    parts["init"] = config.init if config.init in ("random", "teacher") else checkpoint.sha256(Path(config.init))
    begin(config, teacher=teacher.file.sha256, data=data.sha256, **parts)
    if is_main():
        cli.say_assumed(teacher.file.notes + _of_another(data, teacher))
    contexts.freeze(teacher.conditioner)
    data = as_latents(data, teacher.first_stage, config.teacher.name, config.run.out)
    task = task_of(config, about.unet)(about.unet, teacher, contexts, config)
    seconds, there = _remembering(task, answers, data, config)
    if is_main():
        print(describe(config, teacher, about, task, data, seconds, there), file=sys.stderr)
    preview = Preview(about, task.student, teacher.first_stage, teacher.conditioner, data, contexts)
    statistics = fit(task, data, config.run, preview)
    path = config.run.out / f"{about.kind}.safetensors"
    if is_main():
        training = summary(config, statistics, data.count) | {"teacher": portable(teacher.config.training)}
        training |= {"assumed": list(teacher.file.notes)} if teacher.file.notes else {}
        export(path, replace(about, training=training), task.student, teacher, config)
    return {"path": str(path), **statistics, "assumed": list(teacher.file.notes)}


def student_of(config: DistillConfig, teacher: checkpoint.Checkpoint) -> ModelConfig:
    """What is trained: the teacher, slimmed.

    Raises:
        SpectralError: it cannot be built, or is to see images of another size than the teacher did.
    """
    assert teacher.config.unet is not None and teacher.first_stage is not None
    size = teacher.config.unet.image_size * teacher.first_stage.config.downscale
    if config.data.size != size:
        raise SpectralError(
            f"The teacher was trained at {size} pixels, data.size is {config.data.size}; set it to {size}."
        )
    if teacher.config.unet.stages is not None:
        raise SpectralError(f"{config.teacher} works in stages; give a teacher of one, as LDM's are.")
    if teacher.config.few_steps is not None:
        raise SpectralError(f"{config.teacher} knows {teacher.config.few_steps} steps alone; give what it learnt from.")
    unet = replace(
        presets.slim(teacher.config.unet, config.model_channels, config.resampler),
        wavelet=config.wavelet,
        norm_groups=config.norm_groups,
        stages=with_autoencoders(config.stages, config.stage_autoencoders),
    )
    check(unet)
    check_initial(unet, teacher.config.unet, config.init)
    kind: Literal["student", "lite"] = "student" if config.resampler == "wavelet" else "lite"
    schedule = schedule_of(config, teacher.config.schedule)
    if unet.stages is not None:
        fdm.check(unet.stages, schedule.steps)
    return replace(
        teacher.config,
        kind=kind,
        guidance=guidance_learnt(config, teacher.config),
        unet=unet,
        schedule=schedule,
        preset=None,
        teacher_sha256=teacher.file.sha256,
        few_steps=config.few_steps or None,
    )


def guidance_learnt(config: DistillConfig, teacher: ModelConfig) -> float | None:
    """The weight of guidance that a student learns from its teacher's answers; None where these have none.

    Raises:
        SpectralError: the teacher cannot be guided.
    """
    if config.few_steps or not config.loss.distils:
        return None
    if config.teacher_guidance == 1.0:
        return teacher.guidance
    if teacher.guidance is not None:
        raise SpectralError(
            f"{config.teacher} has guidance of {teacher.guidance:g} in its weights already; set teacher_guidance to 1."
        )
    if not has_null(teacher.conditioning):
        raise SpectralError(
            f"teacher_guidance is {config.teacher_guidance:g}, but {config.teacher} knows no null condition, which "
            "guidance leads away from; set teacher_guidance to 1."
        )
    return config.teacher_guidance


def task_of(config: DistillConfig, unet: UNetConfig) -> type[DistillTask] | type[FewStepTask]:
    """The losses that a student learns by."""
    if config.few_steps:
        return FewStepTask
    return StagedDistillTask if unet.stages is not None else DistillTask


def contexts_of(config: DistillConfig, about: ModelConfig, data: Data) -> Contexts:
    """What the data is conditioned on, and the other conditions where there are to be any.

    Raises:
        SpectralError: as `Contexts`; or there are no other conditions.
    """
    given = config.random_conditions
    others = read_prompts(given.path) if given.share and given.path is not None else None
    contexts = Contexts(about.conditioning, data, config.dropout, config.vocabulary, others)
    if given.share:
        others_of(contexts)
    return contexts


def answers_of(
    config: DistillConfig, teacher: checkpoint.Checkpoint, data: Data, parts: Mapping[str, str | None]
) -> Answers | None:
    """The answers that a run looks up and keeps; None where it asks its teacher every time.

    Args:
        data: as it was opened, of images or latents.
        parts: SHA-256 of the other files that teacher and conditions come from.

    Raises:
        SpectralError: as `Answers`.
    """
    if config.teacher_answers is None or not config.loss.distils:
        return None
    assert teacher.config.unet is not None and teacher.unet is not None
    others = {key: value for key, value in plain(config.random_conditions).items() if key != "path"}
    questions = {
        "version": QUESTIONS,
        "teacher": teacher.file.sha256,
        "parts": dict(parts),
        "read": plain(config.read),
        "data": data.sha256,
        "settings": {key: value for key, value in plain(config.data).items() if key not in WITHOUT_EFFECT},
        "seed": config.run.seed,
        "dropout": config.dropout,
        **({"guidance": config.teacher_guidance} if config.teacher_guidance != 1.0 else {}),
        "random_conditions": others,
        "schedule": plain(schedule_of(config, teacher.config.schedule)),
        "precision": [config.run.precision, config.teacher_precision, device().type],
    }
    widths, side = teacher.unet.tap_channels(), teacher.config.unet.image_size
    taps = compared(teacher.unet, config.loss.taps)
    questions |= {"features": [f"{tap.path} {tap.level}" for tap in taps]} if taps else {}
    shapes = [(teacher.config.unet.out_channels, side, side)]
    for tap in taps:
        own = -(-side >> tap.level)
        shapes.append((widths[tap], own, own))
    return Answers(config.teacher_answers, questions, shapes)


def _remembering(
    task: DistillTask | FewStepTask, answers: Answers | None, data: Data, config: DistillConfig
) -> tuple[float, int]:
    """Give the task its teacher's answers; returns the seconds of a step, and how many of the run's answers there are.

    A step is measured without them unless all are there, as most of the run's steps will be.
    """
    samples = config.run.steps * config.run.batch_size * config.run.accumulate
    there = 0 if answers is None else answers.count(samples)
    if isinstance(task, FewStepTask):
        return seconds_per_step(task, data, config.run), there
    task.answers = answers if there == samples else None
    seconds = seconds_per_step(task, data, config.run)
    task.answers = answers
    return seconds, there


def _of_another(data: Data, teacher: checkpoint.Checkpoint) -> tuple[str, ...]:
    """A sentence, where another teacher imagined the data."""
    if data.made_by is None or data.made_by == teacher.file.sha256:
        return ()
    return (f"The latents of {data.source} were imagined by another teacher than {teacher.file.path.name}.",)


def export(
    path: Path, about: ModelConfig, student: nn.Module, teacher: checkpoint.Checkpoint, config: DistillConfig
) -> None:
    """Write the student's file, in float16, with the teacher's first stage and conditioner beside its U-Net.

    Raises:
        SpectralError: the student's weights have grown beyond float16.
    """
    largest = torch.finfo(torch.float16).max
    if not all(bool((tensor.abs() <= largest).all()) for tensor in student.state_dict().values()):
        raise SpectralError(
            f"The student's weights have grown beyond {largest:g}, the most that {path.name} can hold; start anew with "
            "a lower run.lr."
        )
    checkpoint.save(
        path,
        about,
        unet=student,
        first_stage=teacher.first_stage,
        conditioner=teacher.conditioner,
        dtype=torch.float16,
        title=config.title,
        license=config.license,
    )


@stopping_in_order()
def main(argv: Sequence[str]) -> None:
    """The command `distill`."""
    config, as_json = cli.parse_config(DistillConfig, argv, "distill", __doc__)
    result = train(config)
    cli.report(result if as_json else {key: value for key, value in result.items() if key != "assumed"}, as_json)


if __name__ == "__main__":
    sys.exit(cli.run(main))
