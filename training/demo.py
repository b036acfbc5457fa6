"""The main job in minutes: distil a student from the default teacher, next to the same network made plainly smaller.

Everything comes from the repository. It leaves a folder with the student, a grid of pictures, the spectra and a report.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..spectral import checkpoint
from ..spectral.counting import parameters, unet_macs
from ..spectral.spectrum import band_errors, fit_power_law, radial_spectrum
from . import cli, figures
from .data.config import DataConfig
from .data.dataset import open_images
from .distill import train
from .distillation.config import DistillConfig, LossConfig
from .loop.config import RunConfig
from .processes import device
from .sample import sample_checkpoint, write_images

TEACHER = Path(__file__).parents[1] / "workflows" / "checkpoints" / "emoji64-teacher.safetensors"
#: A domain narrow enough for minutes: the hearts among the emoji that the teacher knows.
DATA = DataConfig(subgroups=("heart",))
CUTOFF = 12.0  # cycles per image, of 64 pixels: where the low band ends; the paper's 28 is of 256


def demo(out: Path, steps: int, seed: int, sample_steps: int = 50) -> dict[str, Any]:
    """Train the student and the plain small model with equal budgets, sample, compare; returns the report.

    Args:
        out: folder to leave the results in; its runs are resumed if they were stopped.
        steps: optimizer steps of each of the two.
        seed: of the trainings and the samples.
        sample_steps: DDIM steps of the samples.

    Raises:
        SpectralError: the default teacher is missing or damaged, or the folder cannot be written.
    """
    started = time.perf_counter()
    teacher = checkpoint.load(TEACHER, device=device())
    data = open_images(DATA)
    seconds = {}
    for name, config in configurations(out / "runs", steps, seed).items():
        _say(f"Training the {'wavelet-gated student, distilled' if name == 'student' else 'plain small model'} …")
        seconds[name] = _timed(train, config)
    models = {"teacher": teacher}
    for name in ("lite", "student"):
        models[name] = checkpoint.load(out / "runs" / name / f"{name}.safetensors", device=device())
    _say(f"Sampling {len(data)} pictures with each model …")
    images: dict[str, Tensor] = {"data": data.preview_samples(len(data))["image"].float() / 255.0}
    for name, model in models.items():
        images[name] = sample_checkpoint(model, data.captions, steps=sample_steps, seed=seed)
        write_images(images[name], out / "samples" / name)
    report = compare(images, models)
    report |= {"steps": steps, "train_seconds": seconds, "seed": seed, "images": len(data)}
    draw(images, out)
    shutil.copyfile(models["student"].file.path, out / "student.safetensors")
    report["seconds"] = round(time.perf_counter() - started, 1)
    (out / "report.json").write_text(json.dumps(report, indent=1) + "\n")
    return report


def configurations(runs: Path, steps: int, seed: int) -> dict[str, DistillConfig]:
    """The two trainings, equal but for what is compared: gating and distillation, or neither."""
    student = DistillConfig(
        run=RunConfig(runs / "student", steps, batch_size=16, lr=2e-3, ema=0.99, seed=seed, preview_every=0),
        teacher=TEACHER,
        model_channels=32,
        norm_groups=8,
        data=DATA,
        title="Demo student",
    )
    lite = replace(
        student,
        run=replace(student.run, out=runs / "lite"),
        resampler="conv",
        loss=LossConfig(spatial=0.0, frequency=0.0),
        title="Demo Lite-LDM",
    )
    return {"student": student, "lite": lite}


def compare(images: dict[str, Tensor], models: dict[str, checkpoint.Checkpoint]) -> dict[str, Any]:
    """Size of every model, and the distance of its samples' mean spectrum from the data's (Table 1)."""
    reference = radial_spectrum(images["data"], window="none")
    rows: dict[str, dict[str, Any]] = {"data": {"alpha": round(fit_power_law(reference).alpha, 3)}}
    for name, model in models.items():
        own = radial_spectrum(images[name], window="none")
        errors = band_errors(reference, own, cutoff=CUTOFF)
        rows[name] = {
            "params": parameters(model.unet),
            "macs": unet_macs(model.config),
            "alpha": round(fit_power_law(own).alpha, 3),
            "low_error": round(errors.low, 4),
            "high_error": round(errors.high, 4),
        }
    return {"models": rows, "cutoff_cycles_per_image": CUTOFF}


def draw(images: dict[str, Tensor], out: Path) -> None:
    """The picture grid (a column for each of twelve captions) and the spectra."""
    chosen = torch.linspace(0, len(images["data"]) - 1, 12).long()
    figures.save_grid({name: own[chosen] for name, own in images.items()}, out / "grid.png")
    spectra = {name: radial_spectrum(own, window="none") for name, own in images.items()}
    figures.plot_radial_spectra(spectra, out / "spectra.png", cutoff=CUTOFF)


def _timed(function: Any, *arguments: Any) -> float:
    started = time.perf_counter()
    function(*arguments)
    return round(time.perf_counter() - started, 1)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _closing(report: dict[str, Any], out: Path) -> str:
    """What came out, and what to do next."""
    rows = report["models"]
    lines = [f"{'':10}{'parameters':>12}{'MACs':>10}{'low-band error':>16}{'high-band error':>17}"]
    for name in ("teacher", "lite", "student"):
        row = rows[name]
        size = f"{row['params']:>12,}{row['macs'] / 1e6:>9.0f}M"
        lines.append(f"{name:10}{size}{row['low_error']:>16.3f}{row['high_error']:>17.3f}")
    return "\n".join(
        [
            "",
            *lines,
            "",
            f"{out / 'grid.png'}     data, teacher, plain small model and student, same captions and seeds",
            f"{out / 'spectra.png'}  their radial power spectra",
            f"{out / 'report.json'}  the numbers",
            "",
            f"After minutes of training on {report['images']} pictures neither small model is done. What an hour makes",
            "of the student is in workflows/checkpoints (configuration: training/configs/emoji64-student.yaml).",
            "",
            f"Next: copy {out / 'student.safetensors'} into ComfyUI's models/spectral_diffusion folder, open this",
            'pack\'s template "generate", choose the file in its Load Checkpoint node, and queue.',
        ]
    )


def main(argv: Sequence[str]) -> None:
    """The command `demo`."""
    parser = cli.Parser("demo", __doc__)
    parser.add_argument("--out", type=Path, default=Path("demo"), help="folder for everything that it leaves")
    parser.add_argument("--steps", type=int, default=900, help="optimizer steps of the student, and of the plain model")
    parser.add_argument("--seed", type=int, default=0, help="of the trainings and the samples")
    parser.add_argument("--json", action="store_true", help="print the report as one JSON object")
    arguments = parser.parse_args(argv)
    report = demo(arguments.out, arguments.steps, arguments.seed)
    print(json.dumps(report) if arguments.json else _closing(report, arguments.out))


if __name__ == "__main__":
    sys.exit(cli.run(main))
