"""The project's own file: LDM's layout in safetensors, and what the model is in the metadata.

Tensors are `model.diffusion_model.*`, `first_stage_model.*` and `cond_stage_model.*`; the metadata key
`spectral_diffusion` holds the versioned JSON of `config.ModelConfig`, and `modelspec.*` says the same to other tools.
ComfyUI writes metadata of its own: in a file that it saved, a tensor of that name holds the JSON, in UTF-8.
"""

from __future__ import annotations

import datetime
import json
import math
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..config import FORMAT_VERSION, ModelConfig, from_dict, to_dict
from ..errors import SpectralError
from .source import CONDITIONER, FIRST_STAGE, UNET, ReadOptions, Source
from .writing import write_safetensors

METADATA_KEY = "spectral_diffusion"
#: Characters and levels of the description; this project writes some 3000 and 5.
LARGEST_DESCRIPTION, DEEPEST_DESCRIPTION = 2**20, 24


def is_described(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bool:
    """Whether a file says what it is, as this project's do."""
    return METADATA_KEY in metadata or METADATA_KEY in tensors


def read(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str], options: ReadOptions) -> Source:
    """A model from a file that describes it.

    Raises:
        SpectralError: the description is no JSON, from a newer version, or not of a model; or an option says
            otherwise.
    """
    if METADATA_KEY in metadata:
        description = metadata[METADATA_KEY]
    else:
        description = _text(tensors[METADATA_KEY], path.name)
        # ComfyUI adds marks of its own, such as v_pred.
        tensors = {key: one for key, one in tensors.items() if key.startswith((UNET, FIRST_STAGE, CONDITIONER))}
    if len(description) > LARGEST_DESCRIPTION or _depth(description) > DEEPEST_DESCRIPTION:
        raise SpectralError(
            f"{path.name}: its {METADATA_KEY!r} description is larger or deeper than any model's; export it again."
        )
    try:
        data: Any = json.loads(description, parse_constant=_finite, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        raise SpectralError(
            f"{path.name}: its {METADATA_KEY!r} description is not valid JSON; export it again."
        ) from error
    version = data.get("version") if isinstance(data, dict) else None
    if isinstance(version, int) and version < 1:
        raise SpectralError(f"{path.name} has format version {version}, which never was; export it again.")
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise SpectralError(
            f"{path.name} has format version {version}, newer than this reader's {FORMAT_VERSION}; "
            "update Spectral Diffusion."
        )
    # The version is the file's alone: every model is written in the oldest one that can say what it is.
    config = replace(from_dict(ModelConfig, data, f"{path.name}: its description"), version=FORMAT_VERSION)
    _refuse_contradiction(path.name, config, options)
    return Source(path, config, tensors, metadata)


def _refuse_contradiction(name: str, config: ModelConfig, options: ReadOptions) -> None:
    """That the options, which are for files that do not say what they are, are no others than this file says."""
    said: dict[str, Any] = {"prediction": config.schedule.prediction, "scale_factor": config.scale_factor}
    if config.unet is not None:
        network = config.unet
        said |= {
            "heads": network.num_heads,
            "head_channels": network.num_head_channels,
            "image_size": network.image_size,
        }
    for option, value in said.items():
        asked = getattr(options, option)
        if asked is not None and asked != value:
            raise SpectralError(f"{name} says itself that its {option} is {value}, not {asked}; leave {option} unset.")


def write(
    path: Path,
    config: ModelConfig,
    tensors: Mapping[str, Tensor],
    *,
    title: str | None = None,
    license: str | None = None,
    extra: Mapping[str, str] | None = None,
) -> None:
    """Write a file of this project.

    Raises:
        SpectralError: its name does not end in .safetensors, or it cannot be written.
    """
    if path.suffix != ".safetensors":
        raise SpectralError(
            f"{path} is no name for a checkpoint of this project; expected .safetensors at its end (the ldm layout "
            "takes .ckpt, the diffusers layout a folder)."
        )
    metadata = {**modelspec(path, config, title, license), **(extra or {}), METADATA_KEY: _description(config)}
    write_safetensors(path, tensors, metadata)


def as_tensor(config: ModelConfig) -> Tensor:
    """The description as bytes [N] uint8, for files whose metadata are not ours to write; its name is METADATA_KEY."""
    return torch.frombuffer(bytearray(_description(config), "utf-8"), dtype=torch.uint8)


def _description(config: ModelConfig) -> str:
    """The versioned JSON."""
    description = to_dict(config)
    # What is left out is so that readers who do not know the setting read all other files.
    if not config.schedule.zero_terminal_snr:
        del description["schedule"]["zero_terminal_snr"]
    staged = config.unet is not None and config.unet.stages is not None
    description["version"] = 2 if staged else 1
    if not staged and description["unet"] is not None:
        del description["unet"]["stages"]
    first_stages = [description["first_stage"]]
    if staged:
        first_stages += [boundary["autoencoder"] for boundary in description["unet"]["stages"]["boundaries"]]
    for first_stage in filter(None, first_stages):
        if first_stage["norm_groups"] == 32:
            del first_stage["norm_groups"]
        else:
            description["version"] = 3
    if config.few_steps is None:
        del description["few_steps"]
    else:
        description["version"] = 3
    if config.guidance is None:
        del description["guidance"]
    else:
        description["version"] = 4
    return json.dumps(description)


def _text(tensor: Tensor, name: str) -> str:
    """What `as_tensor` put into one.

    Raises:
        SpectralError: it holds no text.
    """
    try:
        if tensor.dtype != torch.uint8 or tensor.dim() != 1 or len(tensor) > LARGEST_DESCRIPTION:
            raise ValueError
        return bytes(tensor.tolist()).decode("utf-8")
    except ValueError as error:
        raise SpectralError(
            f"{name}: its tensor {METADATA_KEY!r} holds no description of a model; save the file again."
        ) from error


def modelspec(path: Path, config: ModelConfig, title: str | None, license: str | None) -> dict[str, str]:
    """The metadata that other tools read: https://github.com/Stability-AI/ModelSpec."""
    spec = {
        "sai_model_spec": "1.0.1",
        "architecture": f"spectral-diffusion/{config.kind}",
        "implementation": "spectral-diffusion",
        "title": title or path.stem,
        "author": "Spectral Diffusion",
        "date": datetime.date.today().isoformat(),
        "prediction_type": "epsilon" if config.schedule.prediction == "eps" else "v",
    }
    if license is not None:
        spec["license"] = license
    if config.first_stage is not None:
        side = config.unet.image_size * config.first_stage.downscale if config.unet else config.first_stage.resolution
        spec["resolution"] = f"{side}x{side}"
    return {f"modelspec.{key}": value for key, value in spec.items()}


def _finite(digits: str) -> float:
    """A number of a JSON text; Python's reader would take NaN, Infinity and 1e999 as well."""
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError(f"{digits[:20]} is no number")
    return number


def _depth(text: str) -> int:
    """How deep the brackets of a JSON text go at most, counting those inside of strings too."""
    depth = deepest = 0
    for bracket in re.findall(r"[\[\]{}]", text):
        depth += 1 if bracket in "[{" else -1
        deepest = max(deepest, depth)
    return deepest
