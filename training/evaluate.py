"""Measure a checkpoint against data: sample, then distances of features and spectra, size and speed; a page to read.

Started again after a stop, it makes only the samples that are missing. Under `accelerate launch` every process makes
its share of them, and the main one measures.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from ..spectral import checkpoint
from ..spectral.checkpoint import Checkpoint
from ..spectral.config import ModelConfig
from ..spectral.diffusion import Schedule
from ..spectral.errors import SpectralError
from . import cli, running
from .data.config import DataConfig
from .data.images import Images
from .evaluation import samples, scoring
from .evaluation.config import EvaluationConfig, enough
from .evaluation.measures import Measured, Networks
from .evaluation.reference import open_reference, prompts_of
from .evaluation.report import SCORES
from .evaluation.scoring import Subject
from .loop.stopping import stopping_in_order
from .processes import device, is_main, join
from .sample import guidance_of, steps_of
from .teachers import assemble, digests

MOST = 50_000  # samples by default, as published distances take them


def evaluate(
    opened: Checkpoint,
    data: Images,
    out: Path,
    config: EvaluationConfig,
    networks: Networks,
    *,
    inputs: dict[str, str | None] | None = None,
    reference: Callable[[], Measured] | None = None,
) -> dict[str, Any] | None:
    """Sample from a checkpoint and measure the samples; every process of a launch calls this.

    What is there already, samples or the whole report, is not made again.

    Args:
        opened: with a U-Net and a first stage.
        data: the reference, at the size of the samples; its captions or classes are the prompts.
        out: the folder of the samples and the report.
        inputs: SHA-256 of the other files that the model is put together from.
        reference: gives what `networks` saw in the data, where that is known already.

    Returns:
        The report; None in all processes but the main one.

    Raises:
        SpectralError: the folder holds samples made otherwise, the model cannot be sampled from, the sizes differ, or
            there are too few images.
    """
    condition = opened.config.conditioning
    order, prompts = plan(opened.config, opened.file.path.name, data, config, networks)
    asked = data.sha256 if condition.kind != "none" else None
    settings = samples.settings_of(opened, config, **(inputs or {}), data=asked)
    if settings["size"] != data.config.size:
        raise SpectralError(
            f"The samples have {settings['size']} pixels, the data {data.config.size}; make them equal."
        )
    filled = samples.fill(out, opened, prompts, config, settings)
    if not is_main():
        return None
    pictures = [samples.path_of(out, index) for index in range(len(order))]
    about = {"checkpoint": scoring.about_checkpoint(opened), "sampling": settings}
    subject = Subject(
        opened.config.kind, pictures, order, prompts, condition.kind == "text", opened, filled.throughput, about
    )
    return scoring.score_once(subject, data, out, config, networks, fresh=filled.made > 0, reference=reference)


def plan(
    model: ModelConfig, name: str, data: Images, config: EvaluationConfig, networks: Networks
) -> tuple[list[int], list[str]]:
    """The image of the data that every sample stands beside, and what it is asked for by.

    Args:
        model: what is sampled from.
        name: of its file, for the sentence.

    Raises:
        SpectralError: there are too few images, or the model cannot be sampled from or measured as `config` says.
    """
    count = min(len(data), MOST) if config.count is None else config.count
    enough(count, "count")
    enough(len(data), "The data")
    config.cutoff_of(data.config.size)
    Schedule.from_config(model.schedule).ddim_timesteps(steps_of(model, config.steps))
    guidance_of(model, config.guidance)
    if networks.clip is not None and model.conditioning.kind != "text":
        raise SpectralError(f"{name} does not draw from text, so it has no CLIP score; leave out clip.")
    known = prompts_of(model.conditioning, data, config.vocabulary)
    order = samples.order_of(len(data), count, config.seed)
    return order, [known[index] for index in order]


def evaluate_pictures(
    folder: Path, data: DataConfig, out: Path, config: EvaluationConfig, networks: Networks, opened: Checkpoint | None
) -> dict[str, Any]:
    """Measure pictures that are there already; a .txt beside each is its caption.

    Args:
        data: the reference; it is brought to the size of the pictures.
        opened: what made them, where that is known.

    Raises:
        SpectralError: as `scoring.score`; or CLIP wants captions that are not there.
    """
    found = samples.pictures_in(folder, config.count)
    enough(len(found), str(folder))
    texts = [path.with_suffix(".txt") for path in found]
    missing = next((text for text in texts if not text.exists()), None)
    if networks.clip is not None and missing is not None:
        raise SpectralError(f"{missing} is not there; CLIP needs the caption of every image, or leave out clip.")
    prompts = [text.read_text("utf-8").strip() if missing is None else "" for text in texts]
    images = open_reference(data, samples.side_of(found))
    enough(len(images), "The data")
    about: dict[str, Any] = {"folder": str(folder)}
    about |= {"checkpoint": scoring.about_checkpoint(opened)} if opened is not None else {}
    beside = [index % len(images) for index in range(len(found))]
    subject = Subject("images", found, beside, prompts, networks.clip is not None, opened, about=about)
    return scoring.score(subject, images, out, config, networks)


def run(arguments: argparse.Namespace) -> dict[str, Any] | None:
    """The command with its options parsed; returns the report in the main process.

    Raises:
        SpectralError: a file cannot be used, or as `evaluate` and `evaluate_pictures`.
    """
    join()
    named = [item.name for item in fields(EvaluationConfig) if item.name != "running"]
    config = EvaluationConfig(
        **{name: getattr(arguments, name) for name in named},
        running=running.of(arguments),
    )
    data = DataConfig(
        arguments.data,
        subgroups=tuple(arguments.subgroups),
        workers=arguments.workers,
        max_corrupt=arguments.max_corrupt,
    )
    if arguments.images is None and arguments.checkpoint is None:
        raise SpectralError("Nothing to evaluate: give a checkpoint, or --images with pictures that it made.")
    networks = Networks.load(config.inception, config.clip, config.clip_model)
    opened = _open(arguments)
    if arguments.images is not None:
        if not is_main():
            return None
        return evaluate_pictures(arguments.images, data, arguments.out, config, networks, opened)
    assert opened is not None
    side = int(samples.settings_of(opened, config)["size"])
    parts = digests(opened.config, arguments.first_stage, arguments.text_encoder, arguments.vocabulary)
    return evaluate(opened, open_reference(data, side), arguments.out, config, networks, inputs=parts)


def _open(arguments: argparse.Namespace) -> Checkpoint | None:
    """The checkpoint of the command line, put together, if one is given."""
    if arguments.checkpoint is None:
        return None
    options = cli.read_options(arguments)
    file = assemble(arguments.checkpoint, options, arguments.first_stage, arguments.text_encoder)
    if is_main():
        cli.say_assumed(file.notes)
    return checkpoint.build(file, device=device())


@stopping_in_order()
def main(argv: Sequence[str]) -> None:
    """The command `evaluate`."""
    parser = cli.Parser("evaluate", __doc__)
    parser.add_argument("checkpoint", type=Path, nargs="?", help=cli.CHECKPOINT)
    parser.add_argument("--data", required=True, help="what it is compared with: a folder of images, shards, emoji64")
    parser.add_argument("--subgroups", nargs="+", default=(), help="only these; a trailing * matches any ending")
    parser.add_argument("--out", type=Path, required=True, help="folder for images/, report.json and report.html")
    parser.add_argument("--count", type=int, help="samples; by default as many as the data has, 50,000 at most")
    parser.add_argument("--steps", type=int, help=cli.STEPS)
    parser.add_argument("--guidance", type=float, help=cli.GUIDANCE)
    parser.add_argument("--seed", type=int, default=0, help="of the noise and the order of the prompts")
    parser.add_argument("--batch", type=int, default=16, help="images at a time")
    parser.add_argument("--size", type=int, help="side of the images in pixels; the training size by default")
    parser.add_argument("--cutoff", type=float, help=cli.CUTOFF)
    parser.add_argument("--window", choices=["hann", "none"], default="hann", help="none: for images without a seam")
    parser.add_argument("--images", type=Path, help="measure these pictures instead of sampling")
    parser.add_argument("--inception", type=Path, help="weights of FID's Inception, for the standard FID")
    parser.add_argument("--clip", type=Path, help="weights of a CLIP model, for the CLIP score")
    parser.add_argument("--clip-model", help="its architecture by open_clip's name; by default, what its shapes say")
    parser.add_argument("--vocabulary", type=Path, help="BERT's vocab.txt, for models with LDM's own text encoder")
    parser.add_argument("--workers", type=int, default=2, help="processes that read the data")
    parser.add_argument("--max-corrupt", type=float, default=0.01, help="share, or number, of the data that may be bad")
    parser.add_argument("--json", action="store_true", help="print the report as one JSON object")
    running.add_options(parser)
    cli.add_part_options(parser)
    cli.add_read_options(parser)
    arguments = parser.parse_args(argv)
    report = run(arguments)
    if report is not None:
        cli.report(report if arguments.json else summary(report, arguments.out), arguments.json)


def summary(report: dict[str, Any], out: Path) -> dict[str, Any]:
    """The scores for a terminal, and where the rest is."""
    shown = {key: report[key] for key in SCORES if report.get(key) is not None}
    return shown | {"notes": " ".join(report["notes"]) or "none", "report": str(out / "report.html")}


if __name__ == "__main__":
    sys.exit(cli.run(main))
