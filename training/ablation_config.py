"""Configuration of `ablate`, the runs that it consists of, and where each of them lies."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from pathlib import Path

from ..spectral.errors import SpectralError
from .data.config import DataConfig
from .distillation.config import DistillConfig
from .evaluation.config import EvaluationConfig
from .evaluation.table5 import ROWS, Row

MOST_SEEDS = 100


@dataclass(frozen=True)
class AblateConfig(DistillConfig):
    """Configuration of `ablate`: that of `distill`, of which every row has a part switched off, and how to measure.

    Args:
        evaluation: how the models are sampled from and measured.
        reference: the images that samples are compared with; null: those of `data`.
        seeds: trainings of every row, from seeds run.seed, run.seed + 1, …; evaluation.seed is the same for all. May be
            raised later: what is there is kept.
        rows: the names of the rows to train and measure, where other processes do the others at the same time; the
            table is left to a run of all, which finds what they have left.
        baselines: whether the first stage alone and the teacher are measured too, to stand under the rows.
    """

    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    reference: DataConfig | None = None
    seeds: int = 1
    rows: tuple[str, ...] = ()
    baselines: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.seeds <= MOST_SEEDS:
            raise SpectralError(f"seeds is {self.seeds}; expected 1 to {MOST_SEEDS} trainings of every row.")
        names = [row.name for row in ROWS]
        for name in self.rows:
            if name not in names:
                raise SpectralError(f"rows has {name!r}; expected some of {', '.join(names)}, or none for all.")
        if self.run.seed + self.seeds > 2**32:
            raise SpectralError(
                f"run.seed is {self.run.seed}, and seeds {self.seeds}; the last seed may be {2**32 - 1}, so lower one."
            )
        if self.loss.ddpm <= 0:
            raise SpectralError(
                "loss.ddpm is 0, but rows without distillation have nothing else to learn from; set it above 0."
            )
        for name in ("spatial", "frequency"):
            if getattr(self.loss, name) <= 0:
                raise SpectralError(f"loss.{name} is 0; an ablation turns it off itself, so give its weight when on.")
        if self.few_steps:
            raise SpectralError(
                f"few_steps is {self.few_steps}, but rows differ in a spatial term, which a student of few steps does "
                "not have; leave it out, and set such students side by side with: compare."
            )
        if self.teacher_guidance != 1.0 and self.evaluation.guidance is None:
            raise SpectralError(
                f"teacher_guidance is {self.teacher_guidance:g}, which some rows learn and others do not, and all are "
                "sampled alike; say with which guidance as evaluation.guidance."
            )
        if self.init not in ("random", "teacher"):
            raise SpectralError(
                f"init is {self.init}; an ablation trains two kinds of networks, so set it to random or teacher."
            )
        if self.resampler != "wavelet":
            raise SpectralError(f"resampler is {self.resampler}; an ablation trains both kinds, so leave it out.")

    @property
    def asked_rows(self) -> list[Row]:
        """Those that this run trains and measures."""
        return [row for row in ROWS if not self.rows or row.name in self.rows]

    @property
    def all_seeds(self) -> list[int]:
        """The seeds of the trainings of a row."""
        return list(range(self.run.seed, self.run.seed + self.seeds))


def configuration(config: AblateConfig, row: Row, seed: int) -> DistillConfig:
    """The run of one row from one seed."""
    base = DistillConfig(**{item.name: getattr(config, item.name) for item in fields(DistillConfig)})
    loss = replace(
        config.loss,
        spatial=config.loss.spatial if row.spatial else 0.0,
        frequency=config.loss.frequency if row.frequency else 0.0,
    )
    first = seed == config.run.seed  # its folder has no number: more seeds may be asked for later
    return replace(
        base,
        run=replace(config.run, out=config.run.out / (row.name if first else f"{row.name}-seed-{seed}"), seed=seed),
        resampler="wavelet" if row.gating else "conv",
        loss=loss,
        title=f"{config.title} ({row.title})" if first else f"{config.title} ({row.title}, seed {seed})",
    )


def model_of(config: DistillConfig) -> Path:
    """What the run of a row leaves."""
    return config.run.out / f"{'student' if config.resampler == 'wavelet' else 'lite'}.safetensors"


def measured_in(config: DistillConfig) -> Path:
    """The folder of a row's samples and report; another one when it is trained on."""
    return config.run.out / "evaluation" / f"{config.run.steps:06d}"


def baseline_in(config: AblateConfig, name: str) -> Path:
    """The folder of the images and the report of one of BASELINES."""
    return config.run.out / "baselines" / name
