"""Train and measure the eight rows of Table 5: wavelet gating, spatial and frequency distillation, each on and off.

All rows have one configuration, that of `distill`, and one budget; with `seeds` each is trained several times. Stopped
and started again, it goes on where it was.
"""

from __future__ import annotations

import functools
import gc
import itertools
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate.utils import broadcast_object_list

from ..spectral import checkpoint
from ..spectral.checkpoint import CheckpointFile
from ..spectral.errors import SpectralError
from . import cli, figures
from .ablation_config import AblateConfig, baseline_in, configuration, measured_in, model_of
from .data.images import Images
from .data.latents_folder import is_cache
from .distill import train
from .distillation.config import DistillConfig
from .evaluate import evaluate, plan
from .evaluation import ablation, ablation_figures, first_stage, samples, scoring, seeds, table5
from .evaluation.config import EvaluationConfig
from .evaluation.measures import Measured, Networks
from .evaluation.reference import open_reference, pick
from .evaluation.table5 import BASELINES, ROWS
from .files import write_whole
from .loop.folder import check_resumable, plain, same_run
from .loop.stopping import stopping_in_order
from .processes import device, is_main, join, processes
from .sample import guidance_of, image_side, steps_of
from .teachers import assemble, digests

COLUMNS = 12  # pictures of every row in the grid
#: By seed and by the row's name.
Reports = dict[int, dict[str, dict[str, Any]]]


def ablate(config: AblateConfig) -> dict[str, Any] | None:
    """Train and measure every row that is not done; every process of a launch calls this.

    All rows of the first seed come first, then all of the second, and so on: each round completes a table. Where
    `config.rows` names some, only these are trained and measured, each in its own folder, and no table is left.

    Leaves a folder for each row in `run.out` (ROW, and ROW-seed-N for the seeds behind the first), with its run and, in
    `evaluation/STEPS`, its samples and report; baselines/; and beside them ablation.json, after every row, and
    ablation.html, rows.png, grid.png and spectra.png after every round.

    Returns:
        What ablation.json holds; None in all processes but the main one.

    Raises:
        SpectralError: as `distill.train` and `evaluate.evaluate`.
        StoppedRun: it was asked to end before its last step.
    """
    join()
    teacher = assemble(config.teacher, config.read, config.first_stage, config.text_encoder)
    how = _how(config, teacher)
    data = _reference(config, teacher)
    networks = Networks.load(how.inception, how.clip, how.clip_model)
    plan(teacher.config, teacher.path.name, data, how, networks)  # before hours of training
    done = broadcast_object_list([_done(config, how, teacher, data) if is_main() else None])[0]
    whole = not config.rows
    if is_main() and whole:
        write_whole(config.run.out / "config.yaml", yaml.safe_dump(plain(config), sort_keys=False))

    @functools.cache
    def seen() -> Measured:
        log = config.run.out / ("corrupt.log" if whole else f"corrupt-{'-'.join(config.rows)}.log")
        return scoring.look_at(data, networks, how, captioned=networks.clip is not None, log=log)

    below = _baselines(config, how, teacher, data, networks, seen) if config.baselines and whole else {}
    reports: Reports = {}
    result: dict[str, Any] | None = None
    news = False  # whether ablation.json, which may know of later rows, has been written anew
    for seed in config.all_seeds:
        for number, row in enumerate(config.asked_rows, 1):
            of_which = f" (seed {seed})" if config.seeds > 1 else ""
            _say(f"Row {number} of {len(config.asked_rows)}{of_which}: {row.title}")
            own = configuration(config, row, seed)
            before = scoring.known_report(measured_in(own), {})
            if own.run.out.name not in done:
                train(own)
                processes().wait_for_everyone()  # until the main one has written the model
            report = _measure(own, data, how, networks, seen)
            if report is not None:
                reports.setdefault(seed, {})[row.name] = report
                _say_scores(report)
                news |= report != before
                if news and whole:
                    _write(config.run.out, _result(config, data, reports, below))
        if is_main() and whole and (news or seed == config.all_seeds[-1]):
            result = _result(config, data, reports, below)
            _leave(config, data, reports, below, result)
    return _result(config, data, reports, below) if is_main() and not whole else result


def _how(config: AblateConfig, teacher: CheckpointFile) -> EvaluationConfig:
    """How all are sampled and measured, the same whatever a row's model would have chosen."""
    given = config.evaluation
    return replace(
        given,
        steps=steps_of(teacher.config, given.steps),
        guidance=guidance_of(teacher.config, given.guidance),
        vocabulary=given.vocabulary or config.vocabulary,
    )


def _measure(
    config: DistillConfig, data: Images, how: EvaluationConfig, networks: Networks, seen: Callable[[], Measured]
) -> dict[str, Any] | None:
    """The report of one trained row; None in processes that are not the main one."""
    gc.collect()  # a run's modules hold each other, and its teacher may be large
    opened = checkpoint.load(model_of(config), device=device())
    return evaluate(opened, data, measured_in(config), how, networks, reference=seen)


def _baselines(
    config: AblateConfig,
    how: EvaluationConfig,
    teacher: CheckpointFile,
    data: Images,
    networks: Networks,
    seen: Callable[[], Measured],
) -> dict[str, dict[str, Any]]:
    """The reports of BASELINES, by name, made where they are not there; none in processes that are not the main one."""
    opened = checkpoint.build(teacher, device=device())
    files = digests(teacher.config, config.first_stage, config.text_encoder, config.vocabulary)
    order, prompts = plan(teacher.config, teacher.path.name, data, how, networks)
    found: dict[str, dict[str, Any]] = {}
    for name, title in BASELINES.items():
        _say(f"Baseline: {title}")
        place = baseline_in(config, name)
        if name == "teacher":
            report = evaluate(opened, data, place, how, networks, inputs=files, reference=seen)
        else:
            report = first_stage.evaluate(
                opened, data, order, prompts, place, how, networks, digest=files["first_stage"], reference=seen
            )
        if report is not None:
            found[name] = report
            _say_scores(report)
    del opened
    gc.collect()  # before the first row needs the memory
    return found


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


def _done(config: AblateConfig, how: EvaluationConfig, teacher: CheckpointFile, data: Images) -> list[str]:
    """The runs that have all their steps, by the names of their folders.

    Raises:
        SpectralError: the folder of a row holds a run with other settings or more steps, or samples made otherwise.
    """
    inputs = digests(teacher.config, config.first_stage, config.text_encoder, config.vocabulary)
    inputs |= {"teacher": teacher.sha256} | ({"data": data.sha256} if config.reference is None else {})
    asked = samples.asked(teacher.config, how)
    done = []
    for seed, row in itertools.product(config.all_seeds, config.asked_rows):
        own = configuration(config, row, seed)
        check_resumable(own, inputs)
        samples.check_folder(measured_in(own), asked)
        if model_of(own).exists():
            made = checkpoint.read(model_of(own)).config
            if made.teacher_sha256 == teacher.sha256 and same_run(made.training.get("config", {}), own):
                done.append(own.run.out.name)
    if config.baselines and not config.rows:
        samples.check_folder(baseline_in(config, "teacher"), asked)
        samples.check_folder(baseline_in(config, "first-stage"), first_stage.settings_of(data, how))
    return done


def _result(
    config: AblateConfig, data: Images, reports: Reports, below: Mapping[str, dict[str, Any]]
) -> dict[str, Any]:
    """What ablation.json holds, of the rows that there are reports of.

    Returns:
        - "complete": whether every row has all its seeds;
        - "rows": `table5.entries`, of several seeds `seeds.entries`, with "report", the path of its page ("reports":
          of all its seeds);
        - "baselines", where they are asked for: `table5.baselines`, likewise;
        - "about": what all rows have in common; where several seeds are asked for, "seeds" are those begun so far;
        - "effects": `table5.effects` once all rows are there; of several seeds `seeds.effects`, with "effects_spread"
          and "improved", once all rows of one seed are;
        - "notes": what to know before it is believed.
    """
    complete = sum(map(len, reports.values())) == len(ROWS) * config.seeds
    if config.seeds == 1:
        rows = table5.entries(reports[config.run.seed])
        changes = {"effects": table5.effects(rows)} if complete else {}
    else:
        rows, changes = seeds.entries(reports), seeds.effects(reports)
    rows = [entry | _places(config, entry) for entry in rows]
    found = {"complete": complete, "rows": rows}
    if below:
        places = {name: (baseline_in(config, name) / "report.html").relative_to(config.run.out) for name in below}
        found["baselines"] = [entry | {"report": places[entry["name"]].as_posix()} for entry in table5.baselines(below)]
    return found | {"about": _about(config, data, reports)} | changes | {"notes": _notes(config, reports, rows)}


def _places(config: AblateConfig, entry: Mapping[str, Any]) -> dict[str, Any]:
    """Where the report of a row is; with several seeds, those of all."""
    row = next(row for row in ROWS if row.name == entry["name"])
    places = [
        (measured_in(configuration(config, row, seed)) / "report.html").relative_to(config.run.out).as_posix()
        for seed in entry.get("seeds", [config.run.seed])
    ]
    return {"report": places[0]} | ({"reports": places} if "seeds" in entry else {})


def _write(out: Path, result: dict[str, Any]) -> None:
    write_whole(out / "ablation.json", json.dumps(result, indent=1, allow_nan=False) + "\n")


def _about(config: AblateConfig, data: Images, reports: Reports) -> dict[str, Any]:
    """What all rows have in common."""
    report = _all_of(reports)[0]
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
        **({"seeds": list(reports)} if config.seeds > 1 else {}),
        "model_channels": config.model_channels,
        "loss": {"spatial": config.loss.spatial, "frequency": config.loss.frequency},
        "samples": report["images"],
        "sampling": {name: report["sampling"][name] for name in ("steps", "guidance", "seed")},
        "cutoff": report["cutoff"],
        "git": report["git"],
    }


def _all_of(reports: Reports) -> list[dict[str, Any]]:
    return [report for found in reports.values() for report in found.values()]


def _notes(config: AblateConfig, reports: Reports, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """What to know before the table is believed: of every report, what they all say, and how often rows were run."""
    first, *others = ([_of_a_row(note, report) for note in report["notes"]] for report in _all_of(reports))
    shared = [note for note in first if all(note in other for other in others)]
    if config.seeds > 1:
        return [*shared, seeds.note(rows)]
    return [*shared, "Every row was trained once, from one seed; small differences between rows may be chance."]


def _of_a_row(note: str, report: dict[str, Any]) -> str:
    return note.replace(f"({report['checkpoint']['kind']})", "(a row)")


def _leave(
    config: AblateConfig,
    data: Images,
    reports: Reports,
    below: Mapping[str, dict[str, Any]],
    result: dict[str, Any],
) -> None:
    """Write the figures, the page and, last, ablation.json."""
    out = config.run.out
    _draw(config, data, reports[config.run.seed], below)
    ablation_figures.plot_rows(result, out / "rows.png")
    pictures = (out.joinpath(name).read_bytes() for name in ("rows.png", "grid.png", "spectra.png"))
    write_whole(out / "ablation.html", ablation.page(result, *pictures))
    _write(out, result)


def _draw(
    config: AblateConfig,
    data: Images,
    reports: Mapping[str, dict[str, Any]],
    below: Mapping[str, dict[str, Any]],
) -> None:
    """grid.png, a line for every row on the same prompts and noise, and spectra.png of some of them.

    Args:
        reports: of the rows, of the first seed.
        below: of the baselines.
    """
    out = config.run.out
    first = next(iter(reports.values()))
    side, count = first["size"], first["images"]
    shown, kept = pick(data, samples.order_of(len(data), count, config.evaluation.seed)[:COLUMNS])
    lines = {"data": shown}
    titles = {row.name: row.title for row in ROWS} | BASELINES
    places = {name: baseline_in(config, name) for name in below}
    places |= {row.name: measured_in(configuration(config, row, config.run.seed)) for row in ROWS}
    for name, place in places.items():
        paths = [samples.path_of(place, index) for index in kept]
        lines[titles[name]] = torch.cat(list(samples.read(paths, side, COLUMNS)))
    figures.save_grid(lines, out / "grid.png", scale=2 if side < 128 else 1)
    of_which = f", seed {config.run.seed}" if config.seeds > 1 else ""
    ablation_figures.plot_spectra(reports, below, out / "spectra.png", of_which)


def _say(text: str) -> None:
    if is_main():
        print(text, file=sys.stderr, flush=True)


def _say_scores(report: Mapping[str, Any]) -> None:
    _say(", ".join(f"{name} {report[name]:g}" for name in table5.measured_columns({"": report})))


def told(result: dict[str, Any], page: Path | None) -> str:
    """The table for a terminal, and where the rest is; None where it has not been made."""
    table = table5.text(result["rows"], result.get("baselines", []))
    lines = ["Table 5 of the paper, with ours beside it", "", table, ""]
    if "improved" in result:
        lines += ["What each part changes, and in how many pairs of rows it helps", "", seeds.text(result), ""]
    if "effects" in result:
        lines.append(table5.claim(result))
    lines += [ablation.told(result["about"]), ablation.PLAINLY, *result["notes"], ""]
    lines.append("Run ablate without rows for the table of all." if page is None else str(page))
    return "\n".join(lines)


@stopping_in_order()
def main(argv: Sequence[str]) -> None:
    """The command `ablate`."""
    config, as_json = cli.parse_config(AblateConfig, argv, "ablate", __doc__)
    result = ablate(config)
    if result is not None:
        page = None if config.rows else config.run.out / "ablation.html"
        print(json.dumps(result, allow_nan=False) if as_json else told(result, page))


if __name__ == "__main__":
    sys.exit(cli.run(main))
