"""What a run's folder says of itself: the resolved configuration, and the environment that it ran in."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import platform
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate import PartialState

from ..spectral.errors import SpectralError

#: Settings that may change when a run goes on: they do not change what is learnt, or only how far.
FREE = {"out", "steps", "log_every", "preview_every", "checkpoint_every", "keep", "title", "license"}
PACKAGES = ("torch", "accelerate", "safetensors", "numpy", "open_clip_torch")


def plain(config: Any, names: bool = False) -> Any:
    """A configuration dataclass as YAML-ready data; `names` keeps only the names of files, not where they lie."""
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        return {item.name: plain(getattr(config, item.name), names) for item in dataclasses.fields(config)}
    if isinstance(config, dict):
        return {key: plain(value, names) for key, value in config.items()}
    if isinstance(config, (tuple, list)):
        return [plain(value, names) for value in config]
    if isinstance(config, Path):
        return config.name if names else str(config)
    return config


def _leaves(data: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of everything in nested dicts."""
    for key, value in data.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def device() -> torch.device:
    """Where this process trains: its own GPU, or the CPU."""
    return PartialState().device


def is_main() -> bool:
    """Whether this process is the one that writes files and prints."""
    return bool(PartialState().is_main_process)


def begin(config: Any, out: Path, seed: int) -> None:
    """Start a run, or go on with it: write what it is into its folder, and seed the weights that are made next.

    Raises:
        SpectralError: the folder has checkpoints of a run with other settings; the first that differs is named.
    """
    torch.manual_seed(seed)
    if not is_main():
        return
    if any((out / "checkpoints").glob("*.pt")) and (out / "config.yaml").exists():
        before = yaml.safe_load((out / "config.yaml").read_text())
        for key, value in _leaves(plain(config)):
            if key.split(".")[-1] not in FREE and dict(_leaves(before)).get(key, value) != value:
                raise SpectralError(
                    f"{out} holds a run with {key} = {dict(_leaves(before))[key]!r}, not {value!r}; "
                    "set it back to go on with that run, or choose another run.out."
                )
    out.mkdir(parents=True, exist_ok=True)
    (out / "config.yaml").write_text(yaml.safe_dump(plain(config), sort_keys=False))
    environment = {
        "command": sys.argv,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "git": _git_commit(),
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
    }
    (out / "environment.json").write_text(json.dumps(environment, indent=1) + "\n")


def _git_commit() -> str | None:
    """The commit that the kit runs from, when it runs from a checkout."""
    try:
        result = subprocess.run(
            ["git", "describe", "--always", "--dirty"], cwd=Path(__file__).parent, capture_output=True, text=True
        )
    except OSError:
        return None
    return result.stdout.strip() or None


def summary(config: Any, statistics: dict[str, float], images: int) -> dict[str, Any]:
    """What an exported model says of the run that made it: command, configuration, data and last statistics."""
    program = Path(sys.argv[0])
    words = [f"python -m spectral_diffusion.training.{program.stem}" if program.suffix == ".py" else program.name]
    return {
        "command": " ".join([*words, shlex.join(sys.argv[1:])]),
        "config": plain(config, names=True),
        "images": images,
        "statistics": statistics,
        "git": _git_commit(),
    }
