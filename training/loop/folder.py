"""What a run's folder says of itself: the resolved configuration, and the environment that it ran in."""

from __future__ import annotations

import dataclasses
import functools
import importlib.metadata
import json
import platform
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import yaml

from ...spectral.errors import SpectralError
from ..files import write_whole
from ..portable import portable, portable_command
from ..processes import is_main, processes
from . import snapshots
from .alone import alone
from .config import check_installed

#: Settings that may change when a run goes on: they do not change what is learnt, or only how far. Of a teacher, a
#: first stage and the images it is the content that must stay, wherever it lies.
FREE = {
    *(f"run.{name}" for name in ("out", "steps", "log_every", "preview_every", "checkpoint_every", "keep", "trackers")),
    *("run.max_skipped", "run.compile", "run.batch_size", "run.accumulate"),  # the images of a step are compared
    *("data.workers", "data.cache", "data.max_corrupt"),
    *("title", "license", "teacher", "autoencoder", "first_stage", "text_encoder", "vocabulary", "data.path"),
    "random_conditions.path",
    *("latents_of", "stage_autoencoders"),  # by their content
    *("recompute", "teacher_answers"),
}
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


def begin(config: Any, **inputs: str | None) -> None:
    """Start a run, or go on with it: write what it is into its folder, and seed the weights that are made next.

    Args:
        config: the run's configuration; its `run` (loop.RunConfig) names the folder, the steps and the seed.
        inputs: SHA-256 of what it learns from, by what they are called in the configuration; None where that is unset.

    Raises:
        SpectralError: the folder has checkpoints of a run with other settings or inputs (the first that differs is
            named), or of one with more steps than are asked for; another process trains there; or a package that the
            configuration names is not installed.
    """
    check_installed(config.run)
    torch.manual_seed(config.run.seed)
    commit = git_commit()  # of the code that runs, not of what the checkout has become when the run ends
    if not is_main():
        return
    out: Path = config.run.out
    with alone(out):
        check_resumable(config, inputs)
    write_whole(out / "config.yaml", yaml.safe_dump(plain(config), sort_keys=False))
    environment = {
        "command": sys.argv,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "git": commit,
        "inputs": inputs,
        "processes": processes().num_processes,
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
    }
    write_whole(out / "environment.json", json.dumps(environment, indent=1) + "\n")


def check_resumable(config: Any, inputs: dict[str, str | None]) -> None:
    """That the run in the folder, if there is one, can go on with this configuration; raises as `begin`."""
    out: Path = config.run.out
    checkpoints = snapshots.saved(out)
    if not checkpoints:
        return
    before = _known(out / "config.yaml")
    changed = {key: value for key, value in _leaves(plain(config)) if before.get(key, value) != value}
    refused = [f"{key} = {before[key]!r}, not {value!r}" for key, value in changed.items() if key not in FREE]
    if refused:
        raise SpectralError(
            f"{out} holds a run with {', and '.join(refused)}; set that back to go on with it, or choose another "
            "run.out."
        )
    learnt_from = _known(out / "environment.json")
    for name, digest in inputs.items():
        if learnt_from.get(f"inputs.{name}", digest) != digest:
            given = getattr(config, name)
            raise SpectralError(
                f"{out} holds a run whose {name} was not what {getattr(given, 'path', given) or 'nothing'} holds now; "
                "give the former content to go on with that run, or choose another run.out."
            )
    images = before.get("run.batch_size", 1) * before.get("run.accumulate", 1)
    if images != config.run.batch_size * config.run.accumulate:
        raise SpectralError(
            f"{out} holds a run of {images} images a step (run.batch_size × run.accumulate), not "
            f"{config.run.batch_size * config.run.accumulate}; set them back, or choose another run.out."
        )
    done = int(checkpoints[-1].stem)
    if done > config.run.steps:
        raise SpectralError(f"{out} has {done} steps already; ask for more than that, or choose another run.out.")
    for key, value in changed.items():
        if key != "run.out":
            print(f"Note: {key} was {before[key]!r} in this run before, and is {value!r} now.", file=sys.stderr)


def same_run(before: dict[str, Any], config: Any) -> bool:
    """Whether a finished run, by what its exported model says of it (`summary`), is the one that is configured now."""
    known = dict(_leaves(before))
    asked = {key: value for key, value in _leaves(plain(config, names=True)) if key not in FREE or key == "run.steps"}
    return all(known.get(key, value) == value for key, value in asked.items()) and "run.steps" in known


def _known(path: Path) -> dict[str, Any]:
    """What a run says of itself in a YAML or JSON file, by dotted key; nothing where there is no such file.

    Raises:
        SpectralError: the file has been damaged.
    """
    if not path.exists():
        return {}
    try:
        data = yaml.safe_load(path.read_text("utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError):
        data = None
    if not isinstance(data, dict):
        raise SpectralError(f"{path} is damaged, so nobody knows what the run beside it was; choose another run.out.")
    return dict(_leaves(data))


@functools.cache
def git_commit() -> str | None:
    """The commit that this process runs from, when that is a checkout; as it was when it was first asked for."""
    try:
        result = subprocess.run(
            ["git", "describe", "--always", "--dirty"], cwd=Path(__file__).parent, capture_output=True, text=True
        )
    except OSError:
        return None
    return result.stdout.strip() or None


def summary(config: Any, statistics: dict[str, float], images: int | None) -> dict[str, Any]:
    """What an exported model says of the run that made it: command, configuration, data and last statistics.

    Nobody who gets the model learns where on its maker's machine anything lay.
    """
    program = Path(sys.argv[0])
    module = ["python", "-m", f"spectral_diffusion.training.{program.stem}"]
    return {
        "command": portable_command([*(module if program.suffix == ".py" else [program.name]), *sys.argv[1:]]),
        "config": portable(plain(config, names=True)),
        "images": images,
        "statistics": statistics,
        "git": git_commit(),
    }
