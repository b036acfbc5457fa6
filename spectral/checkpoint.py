"""Checkpoints in and out: one safetensors file with the tensors in LDM's layout and what they are in its metadata.

Tensors are `model.diffusion_model.*`, `first_stage_model.*` and `cond_stage_model.*`. The metadata key
`spectral_diffusion` holds the versioned JSON of `config.ModelConfig`; `modelspec.*` says the same to other tools.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from . import autoencoder, conditioning
from .config import FORMAT_VERSION, ModelConfig, from_dict, to_dict
from .diffusion import Schedule
from .errors import SpectralError
from .unet import UNet
from .unet import check as check_unet

UNET, FIRST_STAGE, CONDITIONER = "model.diffusion_model.", "first_stage_model.", "cond_stage_model."
METADATA_KEY = "spectral_diffusion"


@dataclass(frozen=True)
class CheckpointFile:
    """A checkpoint as it lies on disk: what it is, and its tensors by name (mapped, not copied)."""

    path: Path
    config: ModelConfig
    tensors: dict[str, Tensor]
    metadata: dict[str, str]

    @cached_property
    def sha256(self) -> str:
        """Of the whole file, in hexadecimal."""
        return sha256(self.path)

    def part(self, prefix: str) -> dict[str, Tensor]:
        """The tensors whose names start with `prefix`, without it."""
        return {name[len(prefix) :]: tensor for name, tensor in self.tensors.items() if name.startswith(prefix)}


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint as modules that run. A part that the file does not hold is None."""

    config: ModelConfig
    schedule: Schedule
    unet: UNet | None
    first_stage: autoencoder.FirstStage | None
    conditioner: nn.Module | None
    file: CheckpointFile


def sha256(path: Path) -> str:
    """Digest of a file's content, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def read(path: str | os.PathLike[str]) -> CheckpointFile:
    """Open a checkpoint without building anything.

    Raises:
        SpectralError: the file is missing, damaged, not safetensors, not one of ours, or from a newer version; or it
            describes what cannot be built.
    """
    path = Path(path)
    tensors, metadata = _read_safetensors(path)
    config = _read_config(path, metadata)
    check(config, path.name)
    for name, tensor in tensors.items():
        if not name.startswith((UNET, FIRST_STAGE, CONDITIONER)):
            raise SpectralError(
                f"{path.name} holds a tensor {name!r} that belongs to no part of a model; re-export it."
            )
        if tensor.dtype not in (torch.float32, torch.float16, torch.bfloat16):
            raise SpectralError(
                f"{path.name}: tensor {name!r} is {tensor.dtype}; expected float32, float16 or bfloat16."
            )
    return CheckpointFile(path, config, tensors, metadata)


def load(
    path: str | os.PathLike[str], *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> Checkpoint:
    """Open a checkpoint and build what it holds, in evaluation mode, on `device` and in `dtype`.

    Raises:
        SpectralError: as `read`; or a tensor is missing, left over, or has another shape than its configuration says.
    """
    file = read(path)
    config = file.config
    with torch.device("meta"):
        unet = UNet(config.unet) if config.unet is not None else None
        first_stage = autoencoder.build(config.first_stage) if config.first_stage is not None else None
        conditioner = conditioning.build(config.conditioning)
    schedule = Schedule.from_config(config.schedule)
    parts = ((unet, UNET), (first_stage, FIRST_STAGE), (conditioner, CONDITIONER))
    for module, prefix in parts:
        fill(module, file.part(prefix), f"{file.path.name}: {prefix}", device, dtype)
    return Checkpoint(config, schedule, unet, first_stage, conditioner, file)


def check(config: ModelConfig, name: str) -> None:
    """That a model can be built, and that its parts go together.

    Args:
        name: of the file, for the sentence.

    Raises:
        SpectralError: names the setting, or the two that do not fit.
    """
    unet, stage, condition = config.unet, config.first_stage, config.conditioning
    try:
        if unet is not None:
            check_unet(unet)
        if stage is not None:
            autoencoder.check(stage)
        conditioning.check(condition)
        Schedule.from_config(config.schedule)
        if not 0 < config.scale_factor < math.inf:
            raise SpectralError(f"scale_factor is {config.scale_factor}; expected a positive number.")
        if unet is not None and stage is not None and unet.in_channels != stage.embed_dim:
            raise SpectralError(
                f"its U-Net takes latents of {unet.in_channels} channels, its first stage makes {stage.embed_dim}."
            )
        if unet is not None and unet.use_spatial_transformer and unet.context_dim != condition.width:
            raise SpectralError(
                f"its U-Net attends to a context of width {unet.context_dim}, its conditioner makes {condition.width}."
            )
    except SpectralError as error:
        raise SpectralError(f"{name} describes what cannot be built: {error}") from error


def fill(
    module: nn.Module | None, tensors: Mapping[str, Tensor], where: str, device: torch.device | str, dtype: torch.dtype
) -> None:
    """Give a module built on the meta device its weights, key for key; `None` takes no tensors at all.

    Raises:
        SpectralError: a key is missing or left over, or a shape differs; the first one is named.
    """
    match(module, tensors, where)
    if module is not None:
        # Copies: the file may be replaced while the model lives.
        module.load_state_dict({k: v.to(device, dtype, copy=True) for k, v in tensors.items()}, assign=True)
        module.eval().requires_grad_(False)


def match(module: nn.Module | None, tensors: Mapping[str, Tensor], where: str) -> None:
    """That `tensors` are what `module` takes, key for key and shape for shape; `None` takes none at all.

    Raises:
        SpectralError: a key is missing or left over, or a shape differs; the first one is named.
    """
    expected = {} if module is None else module.state_dict()
    for name, tensor in expected.items():
        if name not in tensors:
            raise SpectralError(f"{where}{name} is missing from the checkpoint; it is incomplete, get it again.")
        if tensors[name].shape != tensor.shape:
            raise SpectralError(
                f"{where}{name} has shape {list(tensors[name].shape)}, but its configuration says {list(tensor.shape)}."
            )
    for name in tensors:
        if name not in expected:
            raise SpectralError(f"{where}{name} belongs to nothing that the checkpoint's configuration describes.")


def save(
    path: str | os.PathLike[str],
    config: ModelConfig,
    *,
    unet: nn.Module | None = None,
    first_stage: nn.Module | None = None,
    conditioner: nn.Module | None = None,
    dtype: torch.dtype | None = None,
    title: str | None = None,
    license: str = "Apache-2.0",
    extra: Mapping[str, str] | None = None,
) -> Path:
    """Write a checkpoint: beside its place first, then moved there whole.

    Args:
        path: where to; ".safetensors".
        config: what the file is; its parts should agree with the modules given.
        dtype: of the stored tensors; None keeps each module's own.
        title: modelspec.title; the file's name by default.
        extra: further metadata, as strings.

    Raises:
        SpectralError: the folder cannot be written, or the metadata is not text.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise SpectralError(f"{path} is no name for a checkpoint; expected one that ends in .safetensors.")
    tensors: dict[str, Tensor] = {}
    for module, prefix in ((unet, UNET), (first_stage, FIRST_STAGE), (conditioner, CONDITIONER)):
        for name, tensor in (module.state_dict() if module is not None else {}).items():
            stored = tensor.detach().to("cpu", dtype if dtype and tensor.is_floating_point() else tensor.dtype)
            tensors[prefix + name] = stored.contiguous()
    metadata = {**_modelspec(path, config, title, license), **(extra or {}), METADATA_KEY: json.dumps(to_dict(config))}
    partial = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.touch()  # with the mode that the umask gives; the writer below would make it private
        mode = partial.stat().st_mode
        save_file(tensors, partial, metadata)
        partial.chmod(mode)
        partial.replace(path)
    except (OSError, SafetensorError, TypeError, UnicodeError) as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise SpectralError(f"{path} could not be written ({error}); choose a folder that you may write to.") from error
    return path


def _modelspec(path: Path, config: ModelConfig, title: str | None, license: str) -> dict[str, str]:
    """The metadata that other tools read: https://github.com/Stability-AI/ModelSpec."""
    spec = {
        "sai_model_spec": "1.0.1",
        "architecture": f"spectral-diffusion/{config.kind}",
        "implementation": "spectral-diffusion",
        "title": title or path.stem,
        "author": "Spectral Diffusion",
        "date": datetime.date.today().isoformat(),
        "license": license,
        "prediction_type": "epsilon" if config.schedule.prediction == "eps" else "v",
    }
    if config.first_stage is not None:
        side = config.unet.image_size * config.first_stage.downscale if config.unet else config.first_stage.resolution
        spec["resolution"] = f"{side}x{side}"
    return {f"modelspec.{key}": value for key, value in spec.items()}


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors and the metadata of a safetensors file; every way in which it can be broken is one sentence."""
    if not path.exists():
        raise SpectralError(f"No checkpoint at {path}; check the path.")
    if not path.is_file():
        raise SpectralError(f"{path} is a folder; expected a .safetensors file.")
    if path.suffix.lower() != ".safetensors":
        raise SpectralError(f"{path.name} is not a .safetensors file, the only kind of checkpoint that opens here.")
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in sorted(file.keys())}, dict(file.metadata() or {})
    except OSError as error:
        raise SpectralError(
            f"{path.name} cannot be opened ({error.strerror or error}); check its permissions."
        ) from error
    except SafetensorError as error:
        raise SpectralError(
            f"{path.name} is damaged or not a safetensors file ({_reason(path, str(error))}); "
            "download or export it again."
        ) from error


def _reason(path: Path, message: str) -> str:
    """Why safetensors refused a file, in words for a person."""
    if path.stat().st_size == 0:
        return "it is empty"
    if "incomplete" in message.lower():
        return "it ends before its last tensor, as after an interrupted download"
    return f"its header cannot be read: {message.removeprefix('Error while deserializing header: ')}"


def _read_config(path: Path, metadata: dict[str, str]) -> ModelConfig:
    if METADATA_KEY not in metadata:
        raise SpectralError(
            f"{path.name} says nothing of its architecture (no {METADATA_KEY!r} metadata); expected a model that this "
            "project's training kit exported."
        )
    try:
        data: Any = json.loads(metadata[METADATA_KEY])
    except (ValueError, RecursionError) as error:
        raise SpectralError(
            f"{path.name}: its {METADATA_KEY!r} metadata is not valid JSON; export it again."
        ) from error
    version = data.get("version") if isinstance(data, dict) else None
    if isinstance(version, int) and version < 1:
        raise SpectralError(f"{path.name} has format version {version}, which never was; export it again.")
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise SpectralError(
            f"{path.name} has format version {version}, newer than this reader's {FORMAT_VERSION}; "
            "update Spectral Diffusion."
        )
    return from_dict(ModelConfig, data, f"{path.name}: its description")
