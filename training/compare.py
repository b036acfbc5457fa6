"""Compare checkpoints: the same prompts and noise for all, measured against one set of data; a picture, a table, JSON.

Started again after a stop, it makes only what is missing, as `evaluate` does, whose reports it gathers.
"""

from __future__ import annotations

import argparse
import functools
import json
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from ..spectral import checkpoint
from ..spectral.checkpoint import Checkpoint
from ..spectral.errors import SpectralError
from ..spectral.formats.source import ReadOptions
from . import cli, figures, running
from .data.config import DataConfig
from .data.images import Images
from .evaluate import evaluate, plan
from .evaluation import samples, scoring, table5
from .evaluation.config import EvaluationConfig
from .evaluation.html import million
from .evaluation.measures import Measured, Networks
from .evaluation.reference import open_reference, pick
from .files import write_whole
from .loop.stopping import stopping_in_order
from .processes import device, is_main, join
from .sample import image_side
from .teachers import assemble

#: What of a report stands in the table, beside the scores.
SIZES = ("params", "macs", "file_bytes", "images_per_s")


def compare(
    models: Mapping[str, Path], data: DataConfig, out: Path, config: EvaluationConfig, columns: int = 10
) -> dict[str, Any] | None:
    """Evaluate every model; every process of a launch calls this.

    Leaves a folder for each model, as `evaluate` does, and compare.json, grid.png (pictures of all of them on the same
    prompts and noise, the first ones of the seed's order), spectra.png, and compare.png, which has both side by side.

    Args:
        models: what to call each, and its file.
        data: what they are compared with, and prompted by.
        columns: pictures of each in the grid.

    Returns:
        What compare.json holds; None in all processes but the main one.

    Raises:
        SpectralError: one cannot be sampled from, they make pictures of different sizes, or as `evaluate.evaluate`.
    """
    join()
    files = {name: assemble(path, ReadOptions(), None, None) for name, path in models.items()}
    for file in files.values():
        if file.config.unet is None or file.config.first_stage is None:
            raise SpectralError(f"{file.path.name} cannot sample: it lacks a U-Net or a first stage; leave it out.")
    sides = {name: image_side(file.config, config.size) for name, file in files.items()}
    side = next(iter(sides.values()))
    other = next((name for name, own in sides.items() if own != side), None)
    if other is not None:
        raise SpectralError(
            f"{models[other]} makes {sides[other]} pixels, the first model {side}; give models of one size."
        )
    images = open_reference(data, side)
    networks = Networks.load(config.inception, config.clip, config.clip_model)
    for name, file in files.items():  # before minutes of sampling
        plan(file.config, models[name].name, images, config, networks)

    @functools.cache
    def seen() -> Measured:
        return scoring.look_at(images, networks, config, captioned=networks.clip is not None, log=out / "corrupt.log")

    reports: dict[str, dict[str, Any]] = {}
    for name, file in files.items():
        if is_main():
            print(name, file=sys.stderr, flush=True)
        opened: Checkpoint = checkpoint.build(file, device=device())
        report = evaluate(opened, images, out / folder_of(name), config, networks, reference=seen)
        if report is not None:
            reports[name] = report | {"file_bytes": file.path.stat().st_size}
    if not is_main():
        return None
    result = _result(models, reports)
    _draw(out, images, config, reports, columns)
    write_whole(out / "compare.json", json.dumps(result, indent=1, allow_nan=False) + "\n")
    return result


def folder_of(name: str) -> str:
    """The folder of a model, by its name."""
    return re.sub(r"[^\w.-]+", "-", name).strip("-.") or "model"


def _result(models: Mapping[str, Path], reports: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    first = next(iter(reports.values()))
    kept = (*table5.measured_columns(reports), "kid_effnet_std", "alpha", *SIZES)
    return {
        "models": [
            {"name": name, "file": models[name].name, "sha256": report["checkpoint"]["sha256"]}
            | {column: report.get(column) for column in kept}
            | {key: report["sampling"][key] for key in ("steps", "guidance")}
            for name, report in reports.items()
        ],
        "about": {
            "data": first["data"],
            "alpha_data": first.get("alpha_data"),
            "samples": first["images"],
            "size": first["size"],
            "seed": first["sampling"]["seed"],
            "cutoff": first["cutoff"],
            "git": first["git"],
        },
        "notes": list(dict.fromkeys(note for report in reports.values() for note in _notes(report))),
    }


def _notes(report: Mapping[str, Any]) -> list[str]:
    """What to know before the scores are believed, said of every model alike."""
    return [note.replace(f"({report['checkpoint']['kind']})", "(each)") for note in report["notes"]]


def _draw(
    out: Path, data: Images, config: EvaluationConfig, reports: Mapping[str, dict[str, Any]], columns: int
) -> None:
    """grid.png, spectra.png, and both beside each other."""
    first = next(iter(reports.values()))
    side = first["size"]
    order = samples.order_of(len(data), first["images"], config.seed)[:columns]
    shown, kept = pick(data, order)
    lines = {"data": shown}
    for name, report in reports.items():
        paths = [samples.path_of(out / folder_of(name), index) for index in kept]
        lines[f"{name}\n{_size(report)}"] = torch.cat(list(samples.read(paths, side, columns)))
    figures.save_grid(lines, out / "grid.png", scale=2 if side < 128 else 1)
    plot_spectra(reports, out / "spectra.png")
    figures.beside(out / "grid.png", out / "spectra.png", out / "compare.png")


def plot_spectra(reports: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """Draw the radial spectra of the data and of every model, by its name."""
    first = next(iter(reports.values()))
    spectra = {"data": scoring.spectrum_of(first["spectra"]["data"])}
    for name, report in reports.items():
        spectra[name] = scoring.spectrum_of(report["spectra"][report["checkpoint"]["kind"]])
    title = f"Radial power spectra of data and of {first['images']:,} samples of each"
    figures.plot_radial_spectra(spectra, path, cutoff=first["cutoff"], title=title)


def _size(report: Mapping[str, Any]) -> str:
    """How large a model is, and how many steps it takes."""
    return f"{million(report['params'])} · {report['sampling']['steps']} steps"


def table(result: Mapping[str, Any]) -> list[list[str]]:
    """The models' names, scores and sizes in words, the heads of the columns first."""
    columns = [name for name in table5.COLUMNS if result["models"][0].get(name) is not None]
    rows = [["", *(table5.COLUMNS[name] for name in columns), "parameters", "multiply-adds", "steps", "file"]]
    for model in result["models"]:
        scores = [table5.number(name, model[name]) for name in columns]
        sizes = [million(model["params"]), million(model["macs"]), str(model["steps"])]
        rows.append([model["name"], *scores, *sizes, f"{model['file_bytes'] / 1e6:.1f} MB"])
    return rows


def told(result: Mapping[str, Any], out: Path) -> str:
    """The table in letters, for a terminal."""
    return "\n".join([*table5.aligned(table(result)), "", *result["notes"], "", str(out / "compare.png")])


def named(given: Sequence[str]) -> dict[str, Path]:
    """NAME=FILE, or a file alone, whose stem is its name then.

    Raises:
        SpectralError: two have one name.
    """
    found: dict[str, Path] = {}
    for entry in given:
        name, _, path = (
            entry.partition("=") if "=" in entry and not Path(entry).exists() else (Path(entry).stem, "", entry)
        )
        if folder_of(name) in map(folder_of, [*found, "data"]):
            raise SpectralError(f"Two sets would be called {name}; tell them apart as NAME=FILE.")
        found[name] = Path(path)
    return found


@stopping_in_order()
def main(argv: Sequence[str]) -> None:
    """The command `compare`."""
    parser = cli.Parser("compare", __doc__)
    parser.add_argument("models", nargs="+", help="checkpoints, each as NAME=FILE, or as FILE alone")
    parser.add_argument(
        "--data", required=True, help="what they are compared with: a folder of images, shards, emoji64"
    )
    parser.add_argument("--subgroups", nargs="+", default=(), help="only these; a trailing * matches any ending")
    parser.add_argument("--out", type=Path, required=True, help="folder for the reports and the figures")
    parser.add_argument("--count", type=int, help="samples of each; by default as many as the data has")
    parser.add_argument("--columns", type=int, default=10, help="pictures of each in the grid")
    parser.add_argument("--steps", type=int, help=cli.STEPS)
    parser.add_argument("--guidance", type=float, help=cli.GUIDANCE)
    parser.add_argument("--seed", type=int, default=0, help="of the noise and the order of the prompts")
    parser.add_argument("--batch", type=int, default=16, help="images at a time")
    parser.add_argument("--cutoff", type=float, help=cli.CUTOFF)
    parser.add_argument("--json", action="store_true", help="print what compare.json holds")
    running.add_options(parser)
    arguments = parser.parse_args(argv)
    if arguments.columns < 1:
        raise SpectralError(f"--columns is {arguments.columns}; expected at least 1 picture of each.")
    result = compare(
        named(arguments.models),
        DataConfig(arguments.data, subgroups=tuple(arguments.subgroups)),
        arguments.out,
        _config(arguments),
        arguments.columns,
    )
    if result is not None:
        print(json.dumps(result, allow_nan=False) if arguments.json else told(result, arguments.out))


def _config(arguments: argparse.Namespace) -> EvaluationConfig:
    given = {
        item.name: getattr(arguments, item.name) for item in fields(EvaluationConfig) if hasattr(arguments, item.name)
    }
    return EvaluationConfig(**given | {"running": running.of(arguments)})


if __name__ == "__main__":
    sys.exit(cli.run(main))
