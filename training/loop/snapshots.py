"""A run's checkpoints: all that it needs to go on as if it had never stopped; each is written whole or not at all."""

from __future__ import annotations

import errno
import os
import pickle
import random
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn

from ...spectral.errors import SpectralError
from .ema import EMA
from .optimizer import WholeOptimizer
from .sharding import load_whole_state, whole_state

FOLDER = "checkpoints"
_ENTRIES = {"step", "task", "ema", "optimizer", "scaler", "skipped", "rng"}


def saved(out: Path) -> list[Path]:
    """The checkpoints of a run's folder, oldest first; their names are the steps that they had done."""
    return sorted((out / FOLDER).glob("[0-9]*.pt"))


def save(
    accelerator: Accelerator,
    out: Path,
    keep: int,
    step: int,
    task: nn.Module,
    ema: EMA,
    optimizer: WholeOptimizer,
    extras: dict[str, Any],
) -> None:
    """Write a checkpoint beside its place, flush it to disk, move it there; then drop the oldest.

    All processes call it.

    Args:
        extras: "skipped", how many steps were, and "sums" of what is logged since the last line of the statistics.

    Raises:
        SpectralError: the weights are not finite, or it cannot be written; the checkpoints before it are as they were.
    """
    state = {
        "step": step,
        "task": whole_state(task),
        "ema": ema.state(),
        "optimizer": optimizer.state(),
        "scaler": accelerator.scaler.state_dict() if accelerator.scaler is not None else {},
        **extras,
        "rng": gather_object([_random_state()]),
    }
    if not all(bool(tensor.isfinite().all()) for tensor in state["task"].values()):
        raise SpectralError(f"The weights are not finite at step {step}; start anew with a lower run.lr.")
    if not accelerator.is_main_process:
        return
    _write(out / FOLDER, f"{step:08d}.pt", state)
    for old in saved(out)[:-keep]:
        old.unlink()


def _write(folder: Path, name: str, state: dict[str, Any]) -> None:
    partial = folder / "writing.partial"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with open(partial, "wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(folder / name)
        _flush(folder)
    except (OSError, RuntimeError) as error:  # torch's writer raises RuntimeError when the disk is full
        partial.unlink(missing_ok=True)
        before = next((int(path.stem) for path in reversed(saved(folder.parent))), None)
        kept = f"the checkpoint of step {before} is whole" if before is not None else "there is no checkpoint yet"
        raise SpectralError(
            f"The checkpoint {folder / name} could not be written ({_reason(error)}); {kept}. Make room there, and the "
            "same command goes on."
        ) from error


def _reason(error: OSError | RuntimeError) -> str:
    """Why a file could not be written; torch's writer hides the system's error behind its own."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno:
            return "file too large" if cause.errno == errno.EFBIG else (cause.strerror or str(cause)).lower()
        cause = cause.__cause__ or cause.__context__
    return (str(error).splitlines() or [""])[0][:200]


def _flush(folder: Path) -> None:
    """That a file's new name survives a power cut too."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def restore(
    accelerator: Accelerator, out: Path, task: nn.Module, ema: EMA, optimizer: WholeOptimizer
) -> tuple[int, int, dict[str, Tensor]]:
    """Load the newest checkpoint of the folder, if any.

    Returns:
        The steps that it had done, those that were skipped, and the sums since the last line of the statistics.

    Raises:
        SpectralError: it is damaged, or of another model.
    """
    files = saved(out)
    if not files:
        return 0, 0, {}
    state = _read(files[-1])
    try:
        load_whole_state(task, state["task"])
        ema.restore(state["ema"])
        optimizer.load(state["optimizer"])
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise SpectralError(
            f"{files[-1]} is a checkpoint of another model ({reason}); choose another output folder or remove it."
        ) from error
    if accelerator.scaler is not None and state["scaler"]:
        accelerator.scaler.load_state_dict(state["scaler"])
    if len(state["rng"]) == accelerator.num_processes:
        _set_random_state(state["rng"][accelerator.process_index])
    return int(state["step"]), int(state["skipped"]), state.get("sums", {})  # which older ones lack


def _read(path: Path) -> dict[str, Any]:
    try:
        with zipfile.ZipFile(path) as archive:
            if archive.testzip() is not None:  # torch.load does not look at the sums that it wrote
                raise ValueError("its content has changed")
        state = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(state, dict) or not set(state) >= _ENTRIES:
            raise ValueError("not what this kit writes")
    except (
        OSError,
        RuntimeError,
        EOFError,
        LookupError,
        ValueError,
        pickle.UnpicklingError,
        zipfile.BadZipFile,
    ) as error:
        raise SpectralError(
            f"{path} cannot be read as a checkpoint; remove it, and the run goes on from the one before it."
        ) from error
    return state


def _random_state() -> dict[str, Any]:
    """Of every generator that a library may draw from behind our back; samples have streams of their own."""
    state: Any = np.random.get_state(legacy=True)
    _, words, position, has_gauss, gauss = state
    return {
        "python": list(random.getstate()[1]),
        "numpy": [torch.from_numpy(words.astype(np.int64)), int(position), int(has_gauss), float(gauss)],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def _set_random_state(state: dict[str, Any]) -> None:
    random.setstate((3, tuple(state["python"]), None))
    words, position, has_gauss, gauss = state["numpy"]
    np.random.set_state(("MT19937", words.numpy().astype(np.uint32), position, has_gauss, gauss))
    torch.set_rng_state(state["torch"])
    if state["cuda"] and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
