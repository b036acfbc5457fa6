"""How fast the kit is, in ratios of times that were taken side by side.

`bench spectrum`: the radial spectrum of images over their transforms alone. `bench fdm`: latents of the default student
in one stage over the same in two, with as many steps. `bench train`: a step of distillation over what nobody can leave
out: the teacher forwards, the student forwards and backwards, on the same batch and with the same precision. What comes
on top is the data, the noise, the losses, the gradient's norm, the optimizer and the average.
"""

from __future__ import annotations

import io
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import closing, redirect_stderr
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..spectral import checkpoint, fdm
from ..spectral.config import BoundaryConfig, StagesConfig
from ..spectral.diffusion import Schedule, ddim
from ..spectral.fdm import Process
from ..spectral.reuse import OneContext
from ..spectral.spectrum import radial_spectrum
from ..spectral.unet import UNet
from . import cli
from .data.config import DataConfig
from .data.contexts import Contexts
from .data.dataset import as_latents, open_data
from .demo import TEACHER
from .distill import student_of
from .distillation.config import DistillConfig
from .distillation.task import DistillTask
from .loop.config import RunConfig
from .loop.fit import Trainer
from .loop.folder import begin
from .loop.progress import Progress
from .processes import device
from .teachers import open_teacher

PAIRS, QUICK_PAIRS, WARM = 40, 5, 3
#: Stages of the default f-DM student (configs/emoji64-fdm.yaml), and the steps that both take.
FDM = StagesConfig((BoundaryConfig(0.25, factor=4),))
FDM_STEPS = 20


def paired(
    first: Callable[[], object], second: Callable[[], object], count: int, warm: int = WARM
) -> tuple[list[float], list[float]]:
    """Seconds that two functions take, called in turn, so that whatever else the machine does meets both."""
    times: tuple[list[float], list[float]] = ([], [])
    for turn in range(warm + count):
        for function, found in zip((first, second), times, strict=True):
            began = time.perf_counter()
            function()
            if device().type == "cuda":
                torch.cuda.synchronize()
            if turn >= warm:
                found.append(time.perf_counter() - began)
    return times


def ratios(name: str, times: tuple[list[float], list[float]]) -> dict[str, float]:
    """The median of the pairs' ratios, and the half of the range that the middle half of them lies in."""
    found = [one / other for one, other in zip(*times, strict=True)]
    low, _, high = statistics.quantiles(found, n=4)
    return {
        name: round(statistics.median(found), 4),
        f"{name}_spread": round((high - low) / 2, 4),
        f"{name}_seconds": round(statistics.median(times[0]), 6),
        f"{name}_reference_seconds": round(statistics.median(times[1]), 6),
    }


def distill_step(batch: int, precision: Any, pairs: int) -> dict[str, float]:
    """A step of distilling the default student from the default teacher over its reference.

    Args:
        batch: images of a step.
        precision: "no", "bf16" or "fp16", as RunConfig has it.
        pairs: steps that are timed.
    """
    with tempfile.TemporaryDirectory() as folder:
        run = RunConfig(Path(folder), steps=10_000, batch_size=batch, precision=precision, trackers=())
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
            times = paired(
                lambda: trainer.step(next(steps), feed, progress), _bare(trainer, next(trainer.feed(data, 0))), pairs
            )
    return ratios("distill_step_overhead", times)


def _bare(trainer: Trainer, batch: dict[str, Any]) -> Callable[[], None]:
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


def radial_spectrum_over_transforms(batch: int, _precision: Any, pairs: int) -> dict[str, float]:
    """The radial spectrum of a batch of RGB images of 512×512 pixels over the transforms of the same, rfft2 alone."""
    images = torch.rand(batch, 3, 512, 512, generator=torch.Generator().manual_seed(0)).to(device())
    times = paired(lambda: radial_spectrum(images), lambda: torch.fft.rfft2(images), pairs)
    return ratios("radial_spectrum_vs_fft", times)


def one_stage_over_two(batch: int, _precision: Any, pairs: int) -> dict[str, float]:
    """Sampling latents with the default student, over the same with the stages of `FDM`; random weights do as well."""
    config = checkpoint.read(TEACHER.with_name("emoji64-student.safetensors")).config
    assert config.unet is not None and config.unet.context_dim is not None
    schedule = Schedule.from_config(config.schedule)
    process = Process(schedule, FDM)
    plain, staged = (UNet(replace(config.unet, stages=stages)).to(device()).eval() for stages in (None, FDM))
    side = config.unet.image_size
    noise = torch.randn(batch, config.unet.in_channels, side, side, generator=torch.Generator().manual_seed(0))
    noise = noise.to(device())
    context = torch.zeros(batch, config.conditioning.context_length, config.unet.context_dim, device=device())
    times = paired(
        lambda: ddim(partial(plain, hooks=OneContext()), noise, schedule, FDM_STEPS, cond=context),
        lambda: fdm.sample(partial(staged, hooks=OneContext()), noise, process, FDM_STEPS, cond=context),
        max(3, pairs // 4),
        warm=1,
    )
    return ratios("fdm_speedup", times)


def main(argv: Sequence[str]) -> None:
    """The command `bench`."""
    parser = cli.Parser("bench", "Measure the kit: ratios of times that were taken side by side.")
    parser.add_argument(
        "what", nargs="*", metavar="WHAT", choices=[*BENCHES, []], help=f"of {', '.join(BENCHES)}; all by default"
    )
    parser.add_argument("--batch", type=int, help="images at a time; 64 on a GPU, else 32, by default")
    parser.add_argument("--precision", choices=("no", "bf16", "fp16"), default="no", help="of the training")
    parser.add_argument("--quick", action="store_true", help="less than a minute")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args(argv)
    batch = arguments.batch or (64 if device().type == "cuda" else 32)
    result: dict[str, Any] = {}
    for name in arguments.what or BENCHES:
        result |= BENCHES[name](batch, arguments.precision, QUICK_PAIRS if arguments.quick else PAIRS)
    kind = torch.cuda.get_device_name() if device().type == "cuda" else device().type
    threads = {} if device().type == "cuda" else {"threads": torch.get_num_threads()}
    cli.report(result | {"device": kind, "batch": batch, "precision": arguments.precision, **threads}, arguments.json)


BENCHES: dict[str, Callable[[int, Any, int], dict[str, float]]] = {
    "train": distill_step,
    "fdm": one_stage_over_two,
    "spectrum": radial_spectrum_over_transforms,
}

if __name__ == "__main__":
    sys.exit(cli.run(main))
