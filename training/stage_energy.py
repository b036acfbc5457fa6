"""What the stages of a run do to the energy of its data: the γ of every boundary (`data stages`)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from ..spectral.autoencoder import FirstStage
from ..spectral.checkpoint import Checkpoint
from ..spectral.config import ScheduleConfig, UNetConfig
from ..spectral.diffusion import Schedule
from ..spectral.errors import SpectralError
from ..spectral.fdm import Energy, Process, measure
from ..spectral.unet import UNet
from . import cli
from .distill import student_of
from .distillation.config import DistillConfig
from .evaluation.reference import open_reference, pick
from .staging import fill_pairs, process_of, with_autoencoders
from .teachers import open_teacher
from .train_autoencoder import open_first_stage
from .train_teacher import TeacherConfig

BATCH = 16  # images through a first stage at a time


def main(argv: Sequence[str]) -> None:
    """The command `data stages`."""
    parser = cli.Parser("data stages", "Measure γ of every boundary between the stages of a run, on its data.")
    parser.add_argument("--config", type=Path, required=True, help="the YAML file of a run with stages")
    parser.add_argument("--count", type=int, default=512, help="images at most, from all over the data")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args(argv)
    if arguments.count < 1:
        raise SpectralError(f"--count is {arguments.count}; at least 1 image is needed.")
    config = _config(arguments.config)
    process, found, images = measured(config, arguments.count)
    result = {"images": images, "boundaries": rows(process, found)}
    cli.report(result if arguments.json else _lines(process, found, images), arguments.json)


def measured(config: DistillConfig | TeacherConfig, count: int) -> tuple[Process, list[Energy], int]:
    """The stages of a run, what they do to its data, and how many images said so.

    Raises:
        SpectralError: the run has no stages, or its files or data cannot be used.
    """
    if not config.stages.boundaries:
        raise SpectralError("The run has no stages; give it stages.boundaries.")
    opened, unet, schedule = _opened(config)
    first_stage, scale = opened.first_stage, opened.config.scale_factor
    assert first_stage is not None
    network = UNet(unet)
    fill_pairs(network, config.stage_autoencoders)
    process = process_of(network.to(next(first_stage.parameters()).device), Schedule.from_config(schedule))
    assert process is not None
    data = open_reference(config.data, config.data.size)
    places = torch.linspace(0, len(data) - 1, min(count, len(data))).long().tolist()

    def latents() -> Iterator[Tensor]:
        for start in range(0, len(places), BATCH):
            images, _ = pick(data, places[start : start + BATCH])
            yield _encoded(first_stage, images) * scale

    return process, measure(process, latents()), len(places)


def _opened(config: DistillConfig | TeacherConfig) -> tuple[Checkpoint, UNetConfig, ScheduleConfig]:
    """What makes the latents of a run, and the network and the schedule that it trains."""
    if isinstance(config, DistillConfig):
        teacher = open_teacher(config.teacher, config.read, config.first_stage, config.text_encoder)
        about = student_of(config, teacher)
        assert about.unet is not None
        return teacher, about.unet, about.schedule
    stages = with_autoencoders(config.stages, config.stage_autoencoders)
    return open_first_stage(config.autoencoder), replace(config.unet, stages=stages), config.schedule


@torch.no_grad()
def _encoded(first_stage: FirstStage, images: Tensor) -> Tensor:
    return first_stage.encode((2 * images - 1).to(next(first_stage.parameters()))).float()


def rows(process: Process, found: Sequence[Energy]) -> list[dict[str, Any]]:
    """What is known of every boundary, as JSON data."""
    result = []
    for boundary, energy in zip(process.config.boundaries, found, strict=True):
        growth = energy.dimension_ratio**process.config.dimension_power * energy.gamma
        result.append(
            {
                "at": boundary.at,
                "transform": boundary.transform,
                "dimension_ratio": energy.dimension_ratio,
                "gamma": energy.gamma,
                "configured_gamma": boundary.gamma,
                "log_snr_shift": math.log(growth),
                "mean_square": [energy.before, energy.after],
                "lost": energy.lost,
                "terminal_snr": energy.terminal,
            }
        )
    return result


def _lines(process: Process, found: Sequence[Energy], images: int) -> dict[str, Any]:
    """The same for people."""
    lines: dict[str, Any] = {"images": images}
    for index, row in enumerate(rows(process, found), 1):
        note = "" if math.isclose(row["gamma"], row["configured_gamma"], rel_tol=0.02) else "; set gamma to it"
        lines[f"boundary {index}"] = (
            f"at {row['at']:g}, {row['transform']}: gamma {row['gamma']:.4g} (the run has {row['configured_gamma']:g}"
            f"{note}), {row['lost']:.2%} of the energy is the finer stage's, log-SNR + {row['log_snr_shift']:.3g}"
        )
    return lines


def _config(path: Path) -> DistillConfig | TeacherConfig:
    """The configuration of a run, of whichever of the two commands it is."""
    try:
        data = yaml.safe_load(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise SpectralError(f"{path} cannot be read as YAML; give the configuration of a run.") from error
    kind: Any = DistillConfig if isinstance(data, dict) and "teacher" in data else TeacherConfig
    config: DistillConfig | TeacherConfig = cli.parse_config(kind, ["--config", str(path)], "data stages", __doc__)[0]
    return config


if __name__ == "__main__":
    import sys

    sys.exit(cli.run(main))
