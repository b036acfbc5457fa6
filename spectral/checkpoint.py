"""Checkpoints in and out: the one door to every format that `formats` knows, and the modules behind it.

A file or folder becomes a `CheckpointFile`, whose tensors are mapped and bear LDM's names; a `CheckpointFile` becomes
modules, key for key, or another file.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from . import autoencoder, conditioning, fdm, memory
from .config import ModelConfig, to_dict
from .diffusion import Schedule
from .errors import SpectralError
from .formats import diffusers_folder, ldm, ldm_writing, spectral_file
from .formats.source import CONDITIONER, FIRST_STAGE, UNET, ReadOptions, Source
from .formats.tensor_files import open_tensors
from .formats.writing import stored
from .layers import memory_order
from .limits import check as check_unet
from .unet import UNet

AS_THE_FILE_SAYS = ReadOptions()
Layout = Literal["spectral", "ldm", "diffusers"]


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


def parts_of(path: Path) -> list[Path]:
    """The files that a checkpoint consists of: itself, or those of a diffusers folder's settings and weights."""
    return diffusers_folder.files(path) if path.is_dir() else [path]


def sha256(path: Path) -> str:
    """Digest of a file's content, or of the names and contents of a folder's `parts_of`, in hexadecimal."""
    digest = hashlib.sha256()
    folder = path.is_dir()
    for part in parts_of(path):
        if folder:
            digest.update(f"{part.relative_to(path).as_posix()}\0{part.stat().st_size}\0".encode())
        with open(part, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def read(
    path: str | os.PathLike[str], options: ReadOptions = AS_THE_FILE_SAYS, beside: ModelConfig | None = None
) -> CheckpointFile:
    """Open a checkpoint without building anything or reading its numbers.

    Args:
        path: a file of this project, of latent-diffusion or Stable Diffusion (.safetensors, .ckpt), or a diffusers
            folder; recognised by what is in it.
        options: what to assume where the file is silent.
        beside: of another file, whose first stage this one's U-Net is to run with.

    Raises:
        SpectralError: it is missing, damaged, of another kind, from a newer version, would run something; it describes
            what cannot be built; or an option contradicts what the file says of itself.
    """
    path = Path(path)
    source = _read(path, options, beside)
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
    return CheckpointFile(path, source.config, source.tensors, source.metadata, source.notes, source.averaged)


def _read(path: Path, options: ReadOptions, beside: ModelConfig | None) -> Source:
    """By the reader of the format that `path` is in."""
    if diffusers_folder.is_folder(path):
        return diffusers_folder.read(path, options, beside)
    tensors, metadata = open_tensors(path)
    if spectral_file.is_described(tensors, metadata):
        return spectral_file.read(path, tensors, metadata, options)
    return ldm.read(path, tensors, metadata, options, beside)


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
    return build(read(path, options), device=device, dtype=dtype)


def build(
    file: CheckpointFile, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> Checkpoint:
    """The modules of an opened checkpoint, in evaluation mode, on `device` and in `dtype`.

    Raises:
        SpectralError: a tensor is missing, left over, not finite, or has another shape than the configuration says.
    """
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
    with memory.shapes_alone():
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
        if unet is not None and unet.stages is not None:
            fdm.check(unet.stages, config.schedule.steps)
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
    module: nn.Module | None,
    tensors: Mapping[str, Tensor],
    where: str,
    device: torch.device | str,
    dtype: torch.dtype,
    runs_on: torch.device | str | None = None,
) -> None:
    """Give a module built on the meta device its weights, key for key; `None` takes no tensors at all.

    The weights are copied, for the file may be replaced while the model lives. What has been copied of a mapped file is
    released at once, so that opening takes the memory of the model and of one tensor.

    Args:
        where: what the sentence about a wrong tensor begins with.
        runs_on: the device that the module will compute on, if that is not the one where its weights lie for now.

    Raises:
        SpectralError: a key is missing or left over, a shape differs, or a number is not finite; the first is named.
    """
    match(module, tensors, where)
    if module is None:
        return
    weights, plain, order = {}, torch.contiguous_format, memory_order(runs_on or device)
    for name, tensor in tensors.items():
        memory.check_finite(tensor, where + name)
        weights[name] = tensor.to(device, dtype, copy=True, memory_format=order if tensor.dim() == 4 else plain)
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
    path, tensors = Path(path), {}
    for module, prefix in ((unet, UNET), (first_stage, FIRST_STAGE), (conditioner, CONDITIONER)):
        for name, tensor in (module.state_dict() if module is not None else {}).items():
            tensors[prefix + name] = tensor
    spectral_file.write(path, config, stored(tensors, dtype), title=title, license=license, extra=extra)
    return path


def convert(
    file: CheckpointFile,
    path: str | os.PathLike[str],
    layout: Layout = "spectral",
    *,
    dtype: torch.dtype | None = None,
) -> list[str]:
    """Write an opened checkpoint in one of the three layouts.

    Args:
        file: as `read` gives it; its averages, where it has them and they were asked for.
        path: a new file, or for "diffusers" a new folder.
        layout: "spectral" (this project's, .safetensors), "ldm" (latent-diffusion's and Stable Diffusion's,
            .safetensors or .ckpt), or "diffusers".
        dtype: of the stored tensors; None keeps the file's.

    Returns:
        One sentence for everything that the new file does not say about the model, and that its reader must be told.

    Raises:
        SpectralError: the tensors do not fit the description; the layout has no place for the model; or the place is
            taken or cannot be written.
    """
    path = Path(path)
    if path.exists():
        raise SpectralError(f"{path} exists already; choose a new name, or move it away.")
    verify(file)
    if dtype is not None:
        for name, tensor in file.tensors.items():
            memory.check_fits(tensor, dtype, f"{file.path.name}: {name}")
            memory.release(tensor)
    if layout == "diffusers":
        diffusers_folder.write(path, file.config, file.tensors, dtype)
    elif layout == "ldm":
        ldm_writing.write(path, file.config, file.tensors, dtype)
    else:
        licensed = file.metadata.get("modelspec.license")
        title = file.metadata.get("modelspec.title")
        spectral_file.write(path, file.config, stored(file.tensors, dtype), title=title, license=licensed)
    lost = _lost(file.config, read(path).config)
    if layout == "diffusers" and file.config.conditioning.kind == "text":
        lost.append("The folder holds no tokenizer; a pipeline of diffusers takes the one of the original model.")
    return lost


def _lost(before: ModelConfig, after: ModelConfig) -> list[str]:
    """What a reader of the converted file would take the model for, where that differs from what it is."""
    kept, seen = to_dict(before), to_dict(after)
    sentences = []
    for side in (kept, seen):  # a last layer that is not run may be there or not
        side["conditioning"]["layers"] -= side["conditioning"].pop("skip_last")
    for part in ("unet", "first_stage", "conditioning", "schedule"):
        for key, value in (kept[part] or {}).items():
            found = (seen[part] or {}).get(key)
            if key == "attention_resolutions":  # in no order
                value, found = sorted(value), sorted(found or ())
            if found != value and not (key in _HEADS and value == -1):  # the other of the two is set
                said = f"{part}.{key} is {value}, but the new file will be read as {found}"
                sentences.append(f"{said}; open it with {_OPTIONS[key]} {value}." if key in _OPTIONS else f"{said}.")
    if not math.isclose(before.scale_factor, after.scale_factor, rel_tol=1e-6):
        sentences.append(
            f"scale_factor is {before.scale_factor:.7g}, but the new file will be read as {after.scale_factor:.7g}; "
            f"open it with --scale-factor {before.scale_factor:.7g}."
        )
    return sentences


_HEADS = ("num_heads", "num_head_channels")
#: What tells a reader of a file the settings that it does not say itself.
_OPTIONS = {"num_heads": "--heads", "num_head_channels": "--head-channels", "image_size": "--image-size"}
