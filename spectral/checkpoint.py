"""Checkpoints in and out: the door to every format (see `formats`), and the project's own.

That is one safetensors file with the tensors in LDM's layout and what they are in its metadata: tensors are
`model.diffusion_model.*`, `first_stage_model.*` and `cond_stage_model.*`; the metadata key `spectral_diffusion` holds
the versioned JSON of `config.ModelConfig`, and `modelspec.*` says the same to other tools.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from . import autoencoder, conditioning, memory
from .config import FORMAT_VERSION, ModelConfig, from_dict, to_dict
from .diffusion import Schedule
from .errors import SpectralError
from .formats import diffusers_folder, ldm
from .formats.source import CONDITIONER, FIRST_STAGE, UNET, ReadOptions, Source
from .formats.tensor_files import open_tensors
from .unet import UNet
from .unet import check as check_unet

METADATA_KEY = "spectral_diffusion"
AS_THE_FILE_SAYS = ReadOptions()
#: Characters and levels of the description; this project writes some 3000 and 5.
LARGEST_DESCRIPTION, DEEPEST_DESCRIPTION = 2**20, 24


@dataclass(frozen=True)
class CheckpointFile(Source):
    """A checkpoint as it lies on disk: what it is, and its tensors by LDM's names (mapped, not copied)."""

    @cached_property
    def sha256(self) -> str:
        """Of the whole file, in hexadecimal; of a folder, over all files in it."""
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
    """Digest of a file's content, or of the names and contents of all files in a folder, in hexadecimal."""
    digest = hashlib.sha256()
    folder = path.is_dir()
    for part in sorted(item for item in path.rglob("*") if item.is_file()) if folder else [path]:
        if folder:
            digest.update(f"{part.relative_to(path).as_posix()}\0{part.stat().st_size}\0".encode())
        with open(part, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def read(path: str | os.PathLike[str], options: ReadOptions = AS_THE_FILE_SAYS) -> CheckpointFile:
    """Open a checkpoint without building anything or reading its numbers.

    Args:
        path: a file of this project, of latent-diffusion or Stable Diffusion (.safetensors, .ckpt), or a diffusers
            folder; recognised by what is in it.
        options: what to assume where the file is silent.

    Raises:
        SpectralError: it is missing, damaged, of another kind, from a newer version, would run something; or it
            describes what cannot be built.
    """
    path = Path(path)
    source = _read(path, options)
    check(source.config, path.name)
    for name, tensor in source.tensors.items():
        if not name.startswith((UNET, FIRST_STAGE, CONDITIONER)):
            raise SpectralError(
                f"{path.name} holds a tensor {name[:200]!r} that belongs to no part of a model; re-export it."
            )
        if tensor.dtype not in (torch.float32, torch.float16, torch.bfloat16):
            raise SpectralError(
                f"{path.name}: tensor {name[:200]!r} is {tensor.dtype}; expected float32, float16 or bfloat16."
            )
    return CheckpointFile(path, source.config, source.tensors, source.metadata, source.notes)


def _read(path: Path, options: ReadOptions) -> Source:
    """By the reader of the format that `path` is in."""
    if diffusers_folder.is_folder(path):
        return diffusers_folder.read(path, options)
    tensors, metadata = open_tensors(path)
    if METADATA_KEY in metadata:
        return Source(path, _read_config(path, metadata), tensors, metadata)
    return ldm.read(path, tensors, metadata, options)


def load(
    path: str | os.PathLike[str],
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    options: ReadOptions = AS_THE_FILE_SAYS,
) -> Checkpoint:
    """Open a checkpoint and build what it holds, in evaluation mode, on `device` and in `dtype`.

    Raises:
        SpectralError: as `read`; or a tensor is missing, left over, not finite, or has another shape than its
            configuration says.
    """
    file = read(path, options)
    schedule = Schedule.from_config(file.config.schedule)
    modules = _modules(file.config)
    for prefix, module in modules.items():
        match(module, file.part(prefix), f"{file.path.name}: {prefix}")
    for prefix, module in modules.items():
        fill(module, file.part(prefix), f"{file.path.name}: {prefix}", device, dtype)
    unet, first_stage, conditioner = (cast(Any, modules[prefix]) for prefix in (UNET, FIRST_STAGE, CONDITIONER))
    return Checkpoint(file.config, schedule, unet, first_stage, conditioner, file)


def verify(file: CheckpointFile) -> None:
    """That `load` would succeed, without keeping anything in memory.

    Raises:
        SpectralError: as `load`.
    """
    for prefix, module in _modules(file.config).items():
        match(module, file.part(prefix), f"{file.path.name}: {prefix}")
    for name, tensor in file.tensors.items():
        memory.check_finite(tensor, f"{file.path.name}: {name}")
        memory.release(tensor)


def _modules(config: ModelConfig) -> dict[str, nn.Module | None]:
    """U-Net, first stage and conditioner by their prefix, on the meta device; None for what a model lacks."""
    with torch.device("meta"):
        return {
            UNET: UNet(config.unet) if config.unet is not None else None,
            FIRST_STAGE: autoencoder.build(config.first_stage) if config.first_stage is not None else None,
            CONDITIONER: conditioning.build(config.conditioning),
        }


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

    The weights are copied, for the file may be replaced while the model lives. What has been copied of a mapped file is
    released at once, so that opening takes the memory of the model and of one tensor.

    Raises:
        SpectralError: a key is missing or left over, a shape differs, or a number is not finite; the first is named.
    """
    match(module, tensors, where)
    if module is None:
        return
    weights = {}
    for name, tensor in tensors.items():
        memory.check_finite(tensor, where + name)
        weights[name] = tensor.to(device, dtype, copy=True)
        memory.release(tensor)
    module.load_state_dict(weights, assign=True)
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


def _read_config(path: Path, metadata: dict[str, str]) -> ModelConfig:
    description = metadata[METADATA_KEY]
    if len(description) > LARGEST_DESCRIPTION or _depth(description) > DEEPEST_DESCRIPTION:
        raise SpectralError(
            f"{path.name}: its {METADATA_KEY!r} metadata is larger or deeper than any; export it again."
        )
    try:
        data: Any = json.loads(description)
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


def _depth(text: str) -> int:
    """How deep the brackets of a JSON text go at most, counting those inside of strings too."""
    depth = deepest = 0
    for bracket in re.findall(r"[\[\]{}]", text):
        depth += 1 if bracket in "[{" else -1
        deepest = max(deepest, depth)
    return deepest
