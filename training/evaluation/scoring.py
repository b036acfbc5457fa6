"""From pictures and data to a report: report.json, the page report.html, and its figures."""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...spectral.checkpoint import Checkpoint
from ...spectral.counting import parameters, unet_macs
from ...spectral.spectrum import RadialSpectrum
from .. import figures
from ..data.images import Images
from ..files import write_whole
from ..loop.folder import PACKAGES, git_commit
from . import samples
from .config import EvaluationConfig
from .measures import Measured, Networks, cautions, compare
from .reference import look_through, pick
from .report import page
from .samples import Throughput

SHOWN, COLUMNS = 24, 12  # samples on the page, and in the grid


@dataclass(frozen=True)
class Subject:
    """What is measured.

    Args:
        name: of the set of pictures, in figures.
        pictures: the files.
        beside: the image of the data that each picture is shown beside.
        prompts: what each was asked for by; "" for nothing.
        captioned: whether the prompts describe the pictures in words.
        opened: what made them, where that is known.
        throughput: of making them.
        about: what else the report says of them.
    """

    name: str
    pictures: list[Path]
    beside: list[int]
    prompts: list[str]
    captioned: bool
    opened: Checkpoint | None = None
    throughput: Throughput | None = None
    about: dict[str, Any] = field(default_factory=dict)


def score(
    subject: Subject,
    data: Images,
    out: Path,
    config: EvaluationConfig,
    networks: Networks,
    reference: Measured | None = None,
) -> dict[str, Any]:
    """Compare pictures with data; leaves report.json, report.html, grid.png and spectra.png in `out`.

    Args:
        data: as `reference.open_reference` gives it.
        reference: what the networks saw in the data, where that is known already.

    Raises:
        SpectralError: a picture cannot be read or has another size than the data, there are too few, or too much of
            the data cannot be read.
    """
    side = data.config.size
    cutoff = config.cutoff_of(side)
    if reference is None:
        reference = look_at(data, networks, config, captioned=subject.captioned, log=out / "corrupt.log")
    found = networks.look(
        _read(subject, side, config), len(subject.pictures), config.window, captioned=subject.captioned
    )
    scores = compare(reference, found, cutoff, config.seed)
    model, speed = subject.opened, subject.throughput
    spectra = {"data": reference.spectrum, subject.name: found.spectrum}
    report = {
        **scores,
        "params": parameters(model.unet) if model is not None else None,
        "macs": unet_macs(model.config) if model is not None else None,
        "images_per_s": speed.images_per_s if speed is not None else None,
        "images": len(subject.pictures),
        "size": side,
        "notes": _notes(subject, data, reference, "fid" in scores, cutoff),
        "throughput": asdict(speed) if speed is not None else None,
        "data": about_data(data) | {"images": reference.spectrum.images},
        **subject.about,
        **circumstances(config, networks),
        "spectra": {name: rings_of(spectrum) for name, spectrum in spectra.items()},
    }
    _leave(report, spectra, subject, data, out)
    return report


def score_once(
    subject: Subject,
    data: Images,
    out: Path,
    config: EvaluationConfig,
    networks: Networks,
    *,
    fresh: bool,
    reference: Callable[[], Measured] | None = None,
) -> dict[str, Any]:
    """`score`, or the report that is in `out` already where it is of the same pictures and data, measured so.

    Args:
        subject: its `about` says how the pictures were made, as "sampling".
        fresh: whether any of the pictures is new, which no report can know.
        reference: gives what the networks saw in the data, where that is known already.

    Raises:
        SpectralError: as `score`.
    """
    expected = {
        "sampling": subject.about["sampling"],
        "images": len(subject.pictures),
        "cutoff": config.cutoff_of(data.config.size),
        **circumstances(config, networks),
    }
    before = known_report(out, expected) if not fresh else None
    if before is not None and before["data"]["sha256"] == data.sha256:
        return before
    return score(subject, data, out, config, networks, reference() if reference is not None else None)


def look_at(data: Images, networks: Networks, config: EvaluationConfig, *, captioned: bool, log: Path) -> Measured:
    """What the networks see in the data.

    Args:
        captioned: whether its captions describe it, for CLIP.
        log: of what cannot be read.

    Raises:
        SpectralError: too much of it cannot be read.
    """
    return networks.look(look_through(data, config.batch, log), len(data), config.window, captioned=captioned)


def circumstances(config: EvaluationConfig, networks: Networks) -> dict[str, Any]:
    """What the scores depend on beside the pictures and the data."""
    return {
        "window": config.window,
        "seed": config.seed,
        "features": networks.about(),
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
        "git": git_commit(),
    }


def about_data(data: Images) -> dict[str, Any]:
    """Which data it is."""
    return {"path": data.config.path, "subgroups": list(data.config.subgroups), "sha256": data.sha256}


def about_checkpoint(opened: Checkpoint) -> dict[str, Any]:
    """Which model it is."""
    file, config = opened.file, opened.config
    title = file.metadata.get("modelspec.title")
    return {"path": str(file.path), "sha256": file.sha256, "kind": config.kind, "preset": config.preset, "title": title}


def rings_of(spectrum: RadialSpectrum) -> dict[str, Any]:
    """A spectrum as it stands in a report."""
    std = None if spectrum.std is None else spectrum.std.tolist()
    plain = {"cycles_per_pixel": spectrum.frequency.tolist(), "power": spectrum.power.tolist(), "std": std}
    return plain | {"count": spectrum.count.tolist(), "images": spectrum.images, "size": list(spectrum.size)}


def spectrum_of(rings: dict[str, Any]) -> RadialSpectrum:
    """The spectrum that a report holds as `rings`."""
    numbers = {name: torch.tensor(rings[name], dtype=torch.float64) for name in ("cycles_per_pixel", "power")}
    std = None if rings["std"] is None else torch.tensor(rings["std"], dtype=torch.float64)
    height, width = rings["size"]
    frequency, power, count = numbers["cycles_per_pixel"], numbers["power"], torch.tensor(rings["count"])
    return RadialSpectrum(frequency, power, std, count, rings["images"], (height, width))


def known_report(out: Path, expected: dict[str, Any]) -> dict[str, Any] | None:
    """The report in a folder, if it is whole and says all of `expected`."""
    try:
        report = json.loads((out / "report.json").read_text("utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(report, dict) or not all((out / name).exists() for name in FILES):
        return None
    return report if {name: report.get(name) for name in expected} == expected else None


#: What `score` leaves beside report.json.
FILES = ("report.html", "grid.png", "spectra.png")


def _read(subject: Subject, side: int, config: EvaluationConfig) -> Iterator[tuple[Tensor, list[str]]]:
    """The pictures, and what is said of each, a batch at a time."""
    seen = 0
    for images in samples.read(subject.pictures, side, config.batch):
        yield images, subject.prompts[seen : seen + len(images)]
        seen += len(images)


def _notes(subject: Subject, data: Images, reference: Measured, with_inception: bool, cutoff: float) -> list[str]:
    """What to know before the scores are believed."""
    there = reference.spectrum.images
    left_out = len(data) - there
    notes = list(subject.opened.file.notes) if subject.opened is not None else []
    if left_out:
        notes.append(f"{left_out} of the {len(data)} images of the data cannot be read and were left out.")
    return notes + cautions({"data": there, subject.name: len(subject.pictures)}, with_inception, cutoff)


def _leave(
    report: dict[str, Any], spectra: dict[str, RadialSpectrum], subject: Subject, data: Images, out: Path
) -> None:
    """Write the figures, the page and, last, the report."""
    side = report["size"]
    beside, kept = pick(data, subject.beside[:SHOWN])
    made = torch.cat(list(samples.read([subject.pictures[row] for row in kept], side, SHOWN)))
    rows = {"data": beside[:COLUMNS], subject.name: made[:COLUMNS]}
    figures.save_grid(rows, out / "grid.png", scale=2 if side <= 128 else 1)
    first, second = spectra.values()
    title = f"Radial power spectra of {first.images:,} images of data and {second.images:,} of {subject.name}"
    figures.plot_radial_spectra(spectra, out / "spectra.png", cutoff=report["cutoff"], title=title)
    plot = out.joinpath("spectra.png").read_bytes()
    prompts = [subject.prompts[row] for row in kept]
    write_whole(out / "report.html", page(report, subject.name, beside, made, prompts, plot))
    write_whole(out / "report.json", json.dumps(report, indent=1, allow_nan=False) + "\n")
