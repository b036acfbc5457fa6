"""An ablation of a tiny teacher on tiny pictures, and what it left."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from spectral_diffusion.training import cli

from . import tiny

RUN = {"steps": 2, "batch_size": 4, "warmup": 1, "log_every": 1, "preview_every": 0, "checkpoint_every": 1, "keep": 1}
PROGRAM = ["-m", "spectral_diffusion.training.ablate", "--config", "config.yaml"]


def place(folder: Path) -> Path:
    """A folder with a teacher, data, and what an ablation left in `out`."""
    tiny.pictures(folder / "data")
    tiny.teacher(folder / "teacher.safetensors")
    settings: dict[str, Any] = {"run": {"out": "out", **RUN}, "teacher": "teacher.safetensors", "model_channels": 32}
    settings |= {"data": {"path": "data", "size": 16}, "evaluation": {"steps": 2, "count": 6, "batch": 2}}
    (folder / "config.yaml").write_text(yaml.safe_dump({**settings, "title": "<Tiny>"}))
    again(folder)
    return folder


def again(folder: Path, *options: str) -> None:
    """`ablate` in that folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert cli.main(["ablate", "--config", "config.yaml", *options]) == 0


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def model_of(folder: Path) -> Path:
    return next(path for path in folder.glob("*.safetensors"))


def state(folder: Path) -> dict[Path, tuple[int, int]]:
    """Size and time of every file."""
    return {path: (path.stat().st_size, path.stat().st_mtime_ns) for path in folder.rglob("*") if path.is_file()}
