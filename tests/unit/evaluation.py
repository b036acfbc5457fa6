"""An evaluation of a tiny model on tiny pictures, and what it left."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from spectral_diffusion.spectral.config import ModelConfig
from spectral_diffusion.training import cli

from . import tiny

SHORT = ("--steps", "3", "--count", "8", "--batch", "1")


def model(path: Path, condition: str = "class") -> Path:
    """A student that knows the classes of `tiny.pictures`, or reads captions."""
    conditioning = {"class": tiny.CLASSES, "text": tiny.TEXT}[condition]
    return tiny.write(path, ModelConfig("student", tiny.CONDITIONED, tiny.FIRST_STAGE, conditioning, scale_factor=0.5))


def place(folder: Path) -> Path:
    """A folder with a model, data, and what an evaluation left in `out`."""
    model(folder / "model.safetensors")
    tiny.pictures(folder / "data")
    assert again(folder) == 0
    return folder


def common(folder: Path, out: str = "out") -> list[str]:
    return ["--data", str(folder / "data"), "--out", str(folder / out)]


def again(folder: Path, *options: str, short: tuple[str, ...] = SHORT) -> int:
    """`evaluate` in that folder; its exit code."""
    return cli.main(["evaluate", str(folder / "model.safetensors"), *common(folder), *short, *options])


def report_of(folder: Path, out: str = "out") -> dict[str, Any]:
    return json.loads((folder / out / "report.json").read_text())  # type: ignore[no-any-return]


def pictures(folder: Path) -> dict[str, bytes]:
    """The content of all samples by their names."""
    return {path.name: path.read_bytes() for path in sorted((folder / "images").iterdir())}
