"""Train and measure the eight rows of Table 5: wavelet gating, spatial and frequency distillation, each on and off.

All rows have one configuration, that of `distill`, and one budget. Stopped and started again, it goes on where it was.
"""

from __future__ import annotations

import functools
import gc
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate.utils import broadcast_object_list

from ..spectral import checkpoint
from ..spectral.checkpoint import CheckpointFile
from ..spectral.errors import SpectralError
from . import cli, figures
from .data.config import DataConfig
from .data.images import Images
from .data.latents_folder import is_cache
from .distill import train
from .distillation.config import DistillConfig
from .evaluate import evaluate, plan
from .evaluation import ablation, samples, scoring, table5
from .evaluation.config import EvaluationConfig
from .evaluation.measures import Measured, Networks
from .evaluation.reference import open_reference, pick
from .evaluation.table5 import ROWS, Row
from .files import write_whole
from .loop.folder import check_resumable, plain, same_run
from .loop.stopping import stopping_in_order
from .processes import device, is_main, join, processes
from .sample import image_side
from .teachers import assemble, digests

#: The rows whose spectra are drawn.
DRAWN = ("none", "wg", "spatial-frequency", "all")
COLUMNS = 12  # pictures of every row in the grid


@dataclass(frozen=True)
class AblateConfig(DistillConfig):
    """Configuration of `ablate`: that of `distill`, of which every row has a part switched off, and how to measure.

    Args:
        evaluation: how the models are sampled from and measured.
        reference: the images that samples are compared with; null: those of `data`.
    """

    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    reference: DataConfig | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("spatial", "frequency"):
            if getattr(self.loss, name) <= 0:
                raise SpectralError(f"loss.{name} is 0; an ablation turns it off itself, so give its weight when on.")
        if self.resampler != "wavelet":
            raise SpectralError(f"resampler is {self.resampler}; an ablation trains both kinds, so leave it out.")


def ablate(config: AblateConfig) -> dict[str, Any] | None:
    """Train and measure every row that is not done; every process of a launch calls this.

    Leaves a folder for each row in `run.out`, with its run and, in `evaluation/STEPS`, its samples and report; and
    beside them ablation.json, after every row, and ablation.html, grid.png and spectra.png in the end.

    Returns:
        What ablation.json holds; None in all processes but the main one.

    Raises:
        SpectralError: as `distill.train` and `evaluate.evaluate`.
        StoppedRun: it was asked to end before its last step.
    """
    join()
    how = replace(config.evaluation, vocabulary=config.evaluation.vocabulary or config.vocabulary)
    teacher = assemble(config.teacher, config.read, config.first_stage, config.text_encoder)
    data = _reference(config, teacher)
    networks = Networks.load(how.inception, how.clip, how.clip_model)
    plan(teacher.config, teacher.path.name, data, how, networks)  # before hours of training
    done = broadcast_object_list([_done(config, how, teacher, data) if is_main() else None])[0]
    if is_main():
        write_whole(config.run.out / "config.yaml", yaml.safe_dump(plain(config), sort_keys=False))

    @functools.cache
    def seen() -> Measured:
        log = config.run.out / "corrupt.log"
        return scoring.look_at(data, networks, how, captioned=networks.clip is not None, log=log)

    reports: dict[str, dict[str, Any]] = {}
    for number, row in enumerate(ROWS, 1):
        _say(f"Row {number} of {len(ROWS)}: {row.title}")
        own = configuration(config, row)
        place = _measured_in(own)
        before = scoring.known_report(place, {})
        if row.name not in done:
            train(own)
            processes().wait_for_everyone()  # until the main one has written the model
        opened = checkpoint.load(_model(own), device=device())
        report = evaluate(opened, data, place, how, networks, reference=seen)
        gc.collect()  # a run's modules hold each other, and its teacher may be large
        if report is not None:
            reports[row.name] = report
            _say(", ".join(f"{name} {report[name]:g}" for name in table5.measured_columns(reports)))
            if report != before:
                _write(config.run.out, _result(config, data, reports))
    if not is_main():
        return None
    result = _result(config, data, reports)
    _draw(config, data, reports)
    grid, spectra = (config.run.out.joinpath(name).read_bytes() for name in ("grid.png", "spectra.png"))
    write_whole(config.run.out / "ablation.html", ablation.page(result, grid, spectra))
    _write(config.run.out, result)
    return result


def configuration(config: AblateConfig, row: Row) -> DistillConfig:
    """The run of one row."""
    base = DistillConfig(**{item.name: getattr(config, item.name) for item in fields(DistillConfig)})
    loss = replace(
        config.loss,
        spatial=config.loss.spatial if row.spatial else 0.0,
        frequency=config.loss.frequency if row.frequency else 0.0,
    )
    return replace(
        base,
        run=replace(config.run, out=config.run.out / row.name),
        resampler="wavelet" if row.gating else "conv",
        loss=loss,
        title=f"{config.title} ({row.title})",
    )


def _reference(config: AblateConfig, teacher: CheckpointFile) -> Images:
    """The images that samples are compared with, at the size of the samples."""
    if config.reference is None and (config.data.path.startswith("pipe:") or is_cache(Path(config.data.path))):
        raise SpectralError(
            f"data.path is {config.data.path}, which holds no images to compare samples with; give such images as "
            "reference.path."
        )
    if teacher.config.unet is None or teacher.config.first_stage is None:
        raise SpectralError(f"{teacher.path} cannot teach: it lacks a U-Net or a first stage; give a whole checkpoint.")
    return open_reference(config.reference or config.data, image_side(teacher.config, config.evaluation.size))


def _model(config: DistillConfig) -> Path:
    """What the run of a row leaves."""
    return config.run.out / f"{'student' if config.resampler == 'wavelet' else 'lite'}.safetensors"


def _measured_in(config: DistillConfig) -> Path:
    """The folder of a row's samples and report; another one when it is trained on."""
    return config.run.out / "evaluation" / f"{config.run.steps:06d}"


def _done(config: AblateConfig, how: EvaluationConfig, teacher: CheckpointFile, data: Images) -> list[str]:
    """The rows that have all their steps, by name.

    Raises:
        SpectralError: the folder of a row holds a run with other settings or more steps, or samples made otherwise.
    """
    inputs = digests(teacher.config, config.first_stage, config.text_encoder, config.vocabulary)
    inputs |= {"teacher": teacher.sha256} | ({"data": data.sha256} if config.reference is None else {})
    done = []
    for row in ROWS:
        own = configuration(config, row)
        check_resumable(own, inputs)
        samples.check_folder(_measured_in(own), samples.asked(teacher.config, how))
        if _model(own).exists():
            made = checkpoint.read(_model(own)).config
            if made.teacher_sha256 == teacher.sha256 and same_run(made.training.get("config", {}), own):
                done.append(row.name)
    return done


def _result(config: AblateConfig, data: Images, reports: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """What ablation.json holds, of the rows that there are reports of."""
    complete = len(reports) == len(ROWS)
    rows = table5.entries(reports)
    places = {row.name: _measured_in(configuration(config, row)).relative_to(config.run.out) for row in ROWS}
    rows = [entry | {"report": (places[entry["name"]] / "report.html").as_posix()} for entry in rows]
    found = {"complete": complete, "rows": rows, "about": _about(config, data, reports)}
    return found | ({"effects": table5.effects(rows)} if complete else {}) | {"notes": _notes(reports)}


def _write(out: Path, result: dict[str, Any]) -> None:
    write_whole(out / "ablation.json", json.dumps(result, indent=1, allow_nan=False) + "\n")


def _about(config: AblateConfig, data: Images, reports: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """What all rows have in common."""
    report = next(iter(reports.values()))
    run = config.run
    return {
        "title": f"Ablation of {config.title}",
        "teacher": config.teacher.name,
        "data": config.data.path,
        "subgroups": list(config.data.subgroups),
        "reference": report["data"]["path"],
        "reference_images": report["data"]["images"],
        "size": report["size"],
        "steps": run.steps,
        "images_per_step": run.batch_size * run.accumulate,
        "seed": run.seed,
        "model_channels": config.model_channels,
        "loss": {"spatial": config.loss.spatial, "frequency": config.loss.frequency},
        "samples": report["images"],
        "sampling": {name: report["sampling"][name] for name in ("steps", "guidance", "seed")},
        "cutoff": report["cutoff"],
        "git": report["git"],
    }


def _notes(reports: Mapping[str, dict[str, Any]]) -> list[str]:
    """What to know before the table is believed: of every report, what they all say, and that it is one run of each."""
    first, *others = ([_of_a_row(note, report) for note in report["notes"]] for report in reports.values())
    shared = [note for note in first if all(note in other for other in others)]
    return [*shared, "Every row was trained once, from one seed; small differences between rows may be chance."]


def _of_a_row(note: str, report: dict[str, Any]) -> str:
    return note.replace(f"({report['checkpoint']['kind']})", "(a row)")


def _draw(config: AblateConfig, data: Images, reports: Mapping[str, dict[str, Any]]) -> None:
    """grid.png, a line for every row on the same prompts and noise, and spectra.png of some of them."""
    out = config.run.out
    first = next(iter(reports.values()))
    side, count = first["size"], first["images"]
    shown, kept = pick(data, samples.order_of(len(data), count, config.evaluation.seed)[:COLUMNS])
    lines = {"data": shown}
    titles = {row.name: row.title for row in ROWS}
    for row in ROWS:
        place = _measured_in(configuration(config, row))
        paths = [samples.path_of(place, index) for index in kept]
        lines[row.title] = torch.cat(list(samples.read(paths, side, COLUMNS)))
    figures.save_grid(lines, out / "grid.png", scale=2 if side <= 128 else 1)
    spectra = {"data": scoring.spectrum_of(first["spectra"]["data"])}
    for name in DRAWN:
        report = reports[name]
        spectra[titles[name]] = scoring.spectrum_of(report["spectra"][report["checkpoint"]["kind"]])
    title = f"Radial power spectra of data and of {count:,} samples of each row"
    figures.plot_radial_spectra(spectra, out / "spectra.png", cutoff=first["cutoff"], title=title)


def _say(text: str) -> None:
    if is_main():
        print(text, file=sys.stderr, flush=True)


def told(result: dict[str, Any], out: Path) -> str:
    """The table for a terminal, and where the rest is."""
    lines = ["Table 5 of the paper, with ours beside it", "", table5.text(result["rows"]), ""]
    if "effects" in result:
        whole = result["effects"]["all"]
        changes = ", ".join(
            f"{name} {100 * change:+.0f} %" for name, change in whole.items() if name in ("fd_effnet", "high_error")
        )
        lines.append(f"All three parts against none: {changes} (the paper's FID {100 * whole['paper_fid']:+.0f} %).")
    lines += [ablation.told(result["about"]), ablation.PLAINLY, *result["notes"], "", str(out / "ablation.html")]
    return "\n".join(lines)


@stopping_in_order()
def main(argv: Sequence[str]) -> None:
    """The command `ablate`."""
    config, as_json = cli.parse_config(AblateConfig, argv, "ablate", __doc__)
    result = ablate(config)
    if result is not None:
        print(json.dumps(result, allow_nan=False) if as_json else told(result, config.run.out))


if __name__ == "__main__":
    sys.exit(cli.run(main))
