"""Models as folders that diffusers opens."""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from .. import autoencoder, limits
from ..config import ConditioningConfig, ModelConfig
from ..errors import SpectralError
from .diffusers_config import write_conditioner, write_first_stage, write_schedule
from .diffusers_keys import Row, conditioner_rows, first_stage_rows, to_diffusers, unet_rows
from .diffusers_settings import CONFIG, DIFFUSERS_VERSION, MODEL_INDEX, SCHEDULER_CONFIG, inexpressible
from .diffusers_unet import write_unet
from .source import CONDITIONER, FIRST_STAGE, UNET
from .writing import stored

#: Files of weights: of diffusers' own networks, and of transformers'.
_WEIGHTS, _TRANSFORMERS_WEIGHTS = "diffusion_pytorch_model.safetensors", "model.safetensors"


def write(path: Path, config: ModelConfig, tensors: Mapping[str, Tensor], dtype: torch.dtype | None = None) -> Path:
    """Write a folder that diffusers opens: beside its place first, then moved there whole.

    Text models come without a tokenizer: a pipeline takes one from the original model. Layers of a text tower that are
    not run, and its projection, are left out. Class embedders are in no pipeline: such a folder opens part by part.

    Args:
        path: where to; there must be nothing yet, or an empty folder.
        config: what the model is.
        tensors: in LDM's layout, as `Source` has them.
        dtype: of the stored tensors; None keeps their own.

    Raises:
        SpectralError: diffusers has no such model, the tensors are not those of the configuration, or the folder cannot
            be written.
    """
    files = _weights(config, tensors)
    settings = {name: _json(content) for name, content in _settings(config).items()}
    try:
        if os.path.lexists(path) and not (path.is_dir() and not any(path.iterdir())):
            raise SpectralError(f"{path} exists already; choose the name of a new folder.")
        path.parent.mkdir(parents=True, exist_ok=True)
        holder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
        try:
            whole = holder / path.name
            for name, content in settings.items():
                (whole / name).parent.mkdir(parents=True, exist_ok=True)
                (whole / name).write_text(content, encoding="utf-8")
            for name, part in files.items():
                _save(whole / name, part, dtype)
            if path.is_dir():
                path.rmdir()
            whole.rename(path)
        finally:
            shutil.rmtree(holder, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        raise SpectralError(f"{path} could not be written ({error}); choose a folder that you may write to.") from error
    return path


def _weights(config: ModelConfig, tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """The tensors in diffusers' names, by the file that they go into; refuses what cannot go anywhere."""
    network, stage, condition = config.unet, config.first_stage, config.conditioning
    if network is None and stage is None:
        raise inexpressible("it has neither a U-Net nor a first stage")
    rows: dict[str, Iterable[Row]] = {UNET: (), FIRST_STAGE: (), CONDITIONER: conditioner_rows(condition)}
    files = {UNET: f"unet/{_WEIGHTS}", FIRST_STAGE: "", CONDITIONER: ""}
    if network is not None:
        limits.check(network)
        rows[UNET] = unet_rows(network)
    if stage is not None:
        autoencoder.check(stage)
        rows[FIRST_STAGE] = first_stage_rows(stage)
        files[FIRST_STAGE] = f"{_stage_folder(config)}/{_WEIGHTS}"
    folder = _conditioner_folder(condition)
    if folder:
        files[CONDITIONER] = f"{folder}/{_WEIGHTS if condition.kind == 'class' else _TRANSFORMERS_WEIGHTS}"
    parts = _parts(tensors, condition)
    found = {files[prefix]: to_diffusers(rows[prefix], parts[prefix], _CALLED[prefix]) for prefix in parts}
    return {name: part for name, part in found.items() if part}


_CALLED = {UNET: "The U-Net", FIRST_STAGE: "The first stage", CONDITIONER: "The conditioner"}


def _parts(tensors: Mapping[str, Tensor], condition: ConditioningConfig) -> dict[str, dict[str, Tensor]]:
    """The tensors by their part, without its prefix, and without what diffusers' text towers lack."""
    parts: dict[str, dict[str, Tensor]] = {prefix: {} for prefix in _CALLED}
    for name, tensor in tensors.items():
        prefix = next((prefix for prefix in parts if name.startswith(prefix)), None)
        if prefix is None:
            raise SpectralError(f"The model holds {name[:200]!r}, which belongs to none of its parts; get it again.")
        parts[prefix][name[len(prefix) :]] = tensor
    if condition.kind == "text" and condition.tower == "clip":
        used = condition.layers - condition.skip_last
        for name in list(parts[CONDITIONER]):
            layer = re.match(r"transformer\.text_model\.encoder\.layers\.(\d{1,4})\.", name)
            unused = layer is not None and used <= int(layer[1]) < condition.layers
            if unused or name == "transformer.text_projection.weight":
                del parts[CONDITIONER][name]
    return parts


def _settings(config: ModelConfig) -> dict[str, dict[str, Any]]:
    """The JSON objects of a folder, by file."""
    settings: dict[str, dict[str, Any]] = {}
    if config.unet is not None:
        settings[f"unet/{CONFIG}"] = write_unet(config.unet)
        settings[f"scheduler/{SCHEDULER_CONFIG}"] = write_schedule(config.schedule)
    if config.first_stage is not None:
        settings[f"{_stage_folder(config)}/{CONFIG}"] = write_first_stage(config.first_stage, config.scale_factor)
    folder = _conditioner_folder(config.conditioning)
    if folder:
        settings[f"{folder}/{CONFIG}"] = write_conditioner(config.conditioning)
    pipeline = _pipeline(config)
    if pipeline:
        settings[MODEL_INDEX] = {"_diffusers_version": DIFFUSERS_VERSION, **pipeline}
    return settings


def _json(content: dict[str, Any]) -> str:
    try:
        return json.dumps(content, indent=2, allow_nan=False) + "\n"
    except ValueError as error:
        raise inexpressible("a number in its configuration is not finite") from error


def _pipeline(config: ModelConfig) -> dict[str, Any] | None:
    """The model_index.json: the pipeline that runs such a model, and where each of its parts comes from."""
    network, stage, condition = config.unet, config.first_stage, config.conditioning
    if network is None or stage is None:
        return None
    folder = _stage_folder(config)
    parts: dict[str, list[str | None]] = {
        "unet": ["diffusers", "UNet2DConditionModel" if network.use_spatial_transformer else "UNet2DModel"],
        folder: ["diffusers", "AutoencoderKL" if stage.kind == "kl" else "VQModel"],
        "scheduler": ["diffusers", "DDIMScheduler"],
    }
    if not network.use_spatial_transformer:
        return {"_class_name": "LDMPipeline", **parts}
    if condition.kind != "text":
        return None
    parts["tokenizer"] = [None, None]
    if condition.tower == "ldm":
        return {"_class_name": "LDMTextToImagePipeline", **parts, "bert": ["latent_diffusion", "LDMBertModel"]}
    if stage.kind == "vq":
        return None
    none = {name: [None, None] for name in ("safety_checker", "feature_extractor", "image_encoder")}
    parts["text_encoder"] = ["transformers", "CLIPTextModel"]
    return {"_class_name": "StableDiffusionPipeline", "requires_safety_checker": False, **parts, **none}


def _stage_folder(config: ModelConfig) -> str:
    """diffusers' LDM pipelines call every first stage a vqvae."""
    network, stage = config.unet, config.first_stage
    ldm = network is not None and not network.use_spatial_transformer
    ldm = ldm or (config.conditioning.kind == "text" and config.conditioning.tower == "ldm")
    return "vqvae" if ldm or (stage is not None and stage.kind == "vq") else "vae"


def _conditioner_folder(config: ConditioningConfig) -> str | None:
    """The sub-folder of a conditioner whose weights are in the model."""
    if config.kind == "class":
        return "class_embedder"
    if config.kind == "text":
        return "text_encoder" if config.tower == "clip" else "bert"
    return None


def _save(file: Path, tensors: Mapping[str, Tensor], dtype: torch.dtype | None) -> None:
    """A safetensors file as diffusers and transformers read it."""
    file.touch()  # with the mode that the umask gives; the writer below would make it private
    mode = file.stat().st_mode
    save_file(stored(tensors, dtype), file, {"format": "pt"})
    file.chmod(mode)
