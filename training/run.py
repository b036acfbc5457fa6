"""What a run's folder says of itself: the resolved configuration, and the environment that it ran in."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
import yaml

PACKAGES = ("torch", "accelerate", "safetensors", "numpy", "open_clip_torch")


def plain(config: Any) -> Any:
    """A configuration dataclass as YAML-ready data."""
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        return {item.name: plain(getattr(config, item.name)) for item in dataclasses.fields(config)}
    if isinstance(config, dict):
        return {key: plain(value) for key, value in config.items()}
    if isinstance(config, (tuple, list)):
        return [plain(value) for value in config]
    return str(config) if isinstance(config, Path) else config


def begin(config: Any, out: Path, seed: int) -> None:
    """Start a run: write `config.yaml` and `environment.json` into its folder, and seed the weights made next."""
    torch.manual_seed(seed)
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
        "command": " ".join([*words, *sys.argv[1:]]),
        "config": plain(config),
        "images": images,
        "statistics": statistics,
        "git": _git_commit(),
    }
