"""Folders of diffusers pipelines: a latent diffusion model with one sub-folder for each of its parts.

Read: `unet` (or `unet_ema`), `vae` or `vqvae`, `scheduler`, and `text_encoder`, `bert` or `class_embedder`; also a
U-Net or autoencoder alone. diffusers itself is not needed: the modules beside this one know its settings and names.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from .. import autoencoder, limits
from ..config import ConditioningConfig, FirstStageConfig, ModelConfig, ScheduleConfig, UNetConfig
from ..errors import SpectralError
from ..presets import Preset
from . import assumptions
from .diffusers_config import FIRST_STAGE_CLASSES, read_bert, read_classes, read_clip, read_first_stage, read_schedule
from .diffusers_keys import Row, conditioner_rows, first_stage_rows, to_ldm, unet_rows
from .diffusers_settings import (
    CONFIG,
    IGNORED,
    LARGEST_CONFIG,
    LARGEST_INDEX,
    MODEL_INDEX,
    SCHEDULER_CONFIG,
    Settings,
    label,
    read_json,
)
from .diffusers_unet import UNET_CLASSES, read_unet
from .diffusers_writer import write
from .source import CONDITIONER, FIRST_STAGE, UNET, ReadOptions, Source
from .tensor_files import open_tensors

__all__ = ["files", "is_folder", "read", "read_text_encoder", "write"]

_STAGE_FOLDERS = ("vae", "vqvae")

_CONDITIONERS: dict[str, Callable[[Settings], ConditioningConfig]] = {
    "text_encoder": read_clip,
    "bert": read_bert,
    "class_embedder": read_classes,
}
#: Tensors in a folder's files that are no part of what runs here, by sub-folder.
_DROPPED = {
    "text_encoder": re.compile(r"(text_model\.)?embeddings\.position_ids|text_projection\.weight"),
    "bert": re.compile(r"to_logits\.(weight|bias)"),
}


def is_folder(path: Path) -> bool:
    """Whether a path is a folder that diffusers could have written: a pipeline, or one part of it."""
    names = [MODEL_INDEX, CONFIG, *(f"{part}/{CONFIG}" for part in ("unet", *_STAGE_FOLDERS))]
    try:
        return path.is_dir() and any(os.path.lexists(path / name) for name in names)
    except (OSError, RuntimeError, ValueError):  # links in a circle, and names that are none
        return False


def files(path: Path) -> list[Path]:
    """The files of settings and weights that make up a folder, sorted; others may lie beside them.

    Raises:
        SpectralError: an index of shards is damaged.
    """
    pipeline = os.path.lexists(path / MODEL_INDEX)
    folders = [path / name for name in ("unet", "unet_ema", *_STAGE_FOLDERS, *_CONDITIONERS)]
    found = [path / MODEL_INDEX, path / "scheduler" / SCHEDULER_CONFIG]
    for folder in folders if pipeline or not os.path.lexists(path / CONFIG) else [path, *folders]:
        weights = next((folder / name for name in _candidates() if os.path.lexists(folder / name)), None)
        found += [folder / CONFIG, *([weights] if weights else [])]
        if weights and weights.name.endswith(".json"):
            found += [folder / name for name in _shard_names(weights)]
    return sorted(file for file in found if file.is_file())


def read(path: Path, options: ReadOptions, beside: ModelConfig | None = None) -> Source:
    """Open a folder without building anything; tensors are mapped, and copied only where LDM joins q, k and v.

    Args:
        beside: of another file, whose first stage the U-Net is to run with.

    Raises:
        SpectralError: a file is missing, damaged or does not go with its config.json; or a setting is of a model that
            LDM's layout cannot hold. File and setting are named.
    """
    folder = path.absolute()
    network, stage = _find(folder, options)
    config = ModelConfig("teacher" if network else "autoencoder", scale_factor=options.scale_factor or 1.0)
    notes: list[str] = []
    tensors: dict[str, Tensor] = {}
    texts: dict[str, str] = {}

    def add(prefix: str, settings: Settings, rows: Iterable[Row]) -> None:
        found, more = _tensors(settings.path.parent, rows, settings.path.parent.name)
        tensors.update({prefix + name: tensor for name, tensor in found.items()})
        texts.update(more)

    known = None
    if network:
        architecture = _read_unet(network, options, notes)
        known = assumptions.signature(architecture)
        add(UNET, network, unet_rows(architecture))
        weights = {name.removeprefix(UNET): tensor for name, tensor in tensors.items()}
        schedule = _read_schedule(folder, architecture, known, weights, options, notes)
        config = replace(config, unet=architecture, schedule=schedule)
    if stage:
        first_stage, scale_factor = _read_first_stage(stage, notes)
        config = replace(config, first_stage=first_stage, scale_factor=options.scale_factor or scale_factor)
        add(FIRST_STAGE, stage, first_stage_rows(first_stage))
    else:
        scale_factor, more = assumptions.scale_factor(None, known, options, beside)
        config = replace(config, scale_factor=scale_factor)
        notes += more
    if config.unet and config.unet.use_spatial_transformer:
        condition = ConditioningConfig("external", width=config.unet.context_dim or 0)
        settings = _find_conditioner(folder)
        if settings:
            condition = _CONDITIONERS[settings.path.parent.name](settings)
            add(CONDITIONER, settings, conditioner_rows(condition))
        else:
            notes.append(assumptions.WITHOUT_CONDITIONER)
        config = replace(config, conditioning=condition)
    averaged = network is not None and network.path.parent.name == "unet_ema"
    return Source(path, config, tensors, texts, tuple(notes), averaged)


#: What transformers calls the text encoders in config.json, and the sub-folders that they lie in.
_TEXT_MODELS = {"clip_text_model": "text_encoder", "ldmbert": "bert"}


def describes_text_encoder(folder: Path) -> bool:
    """Whether the config.json in a folder is of a text encoder."""
    try:
        return str(Settings(folder / CONFIG).get("model_type")) in _TEXT_MODELS
    except SpectralError:
        return False


def read_text_encoder(path: Path, weights: Path | None = None) -> tuple[ConditioningConfig, dict[str, Tensor]]:
    """The text encoder of a pipeline's folder, or of its sub-folder, and its weights by the names of LDM.

    Args:
        path: a folder with `text_encoder` or `bert` in it, or one of these.
        weights: the file in it that is meant; None: the best of those that are there.

    Raises:
        SpectralError: there is none, or a file is missing, damaged or does not go with its config.json.
    """
    folder = path.absolute()
    settings = Settings(folder / CONFIG) if os.path.lexists(folder / CONFIG) else _find_conditioner(folder)
    kind = _TEXT_MODELS.get(str(settings.get("model_type"))) if settings else None
    if settings is None or kind is None:
        raise SpectralError(
            f"{path} is a folder without a text encoder; expected text_encoder/ or bert/ in it, or one of these (or "
            "give a file of weights)."
        )
    condition = _CONDITIONERS[kind](settings)
    return condition, _tensors(settings.path.parent, conditioner_rows(condition), kind, weights)[0]


def _find(path: Path, options: ReadOptions) -> tuple[Settings | None, Settings | None]:
    """The settings of the U-Net and of the first stage, one of them at least."""
    if os.path.lexists(path / CONFIG) and not os.path.lexists(path / MODEL_INDEX):
        settings = _settings(path, (*UNET_CLASSES, *FIRST_STAGE_CLASSES))
        return (settings, None) if settings.get("_class_name") in UNET_CLASSES else (None, settings)
    averaged = options.ema and os.path.lexists(path / "unet_ema" / CONFIG)
    network = path / ("unet_ema" if averaged else "unet")
    if os.path.lexists(path / MODEL_INDEX) and not os.path.lexists(network):
        pipeline = str(read_json(path / MODEL_INDEX, LARGEST_CONFIG).get("_class_name"))
        raise SpectralError(
            f"{path.name} is a {pipeline[:80]!r} without unet/; expected a latent diffusion model, so choose another."
        )
    stages = [path / name for name in _STAGE_FOLDERS if os.path.lexists(path / name)]
    if not stages and not os.path.lexists(network):
        raise SpectralError(
            f"{path.name} is no diffusers folder; expected {MODEL_INDEX} or unet/ there, so check the path."
        )
    return (
        _settings(network, UNET_CLASSES) if os.path.lexists(network) else None,
        _settings(stages[0], FIRST_STAGE_CLASSES) if stages else None,
    )


def _find_conditioner(path: Path) -> Settings | None:
    folders = [path / name for name in _CONDITIONERS if os.path.lexists(path / name / CONFIG)]
    return Settings(folders[0] / CONFIG) if folders else None


def _settings(folder: Path, classes: tuple[str, ...]) -> Settings:
    """The config.json of a sub-folder, which is of one of these classes."""
    settings = Settings(folder / CONFIG)
    if settings.get("_class_name") not in classes:
        settings.refuse("_class_name", ", ".join(classes))
    return settings


def _read_unet(settings: Settings, options: ReadOptions, notes: list[str]) -> UNetConfig:
    """The U-Net as its folder and the options say, checked."""
    config = read_unet(settings, options.image_size)
    if options.heads is not None or options.head_channels is not None:
        config = replace(config, num_heads=options.heads or -1, num_head_channels=options.head_channels or -1)
    if options.image_size is None and settings.side("sample_size") is None:
        notes.append(f"{settings.name} does not say its sample_size; {config.image_size} is assumed.")
    _buildable(settings, lambda: limits.check(config))
    _note_unread(settings, notes)
    return config


def _read_first_stage(settings: Settings, notes: list[str]) -> tuple[FirstStageConfig, float]:
    config, scale_factor = read_first_stage(settings)
    _buildable(settings, lambda: autoencoder.check(config))
    if settings.get("scaling_factor") is None:
        notes.append(f"{settings.name} does not say its scaling_factor; {scale_factor} is assumed.")
    _note_unread(settings, notes)
    return config, scale_factor


def _buildable(settings: Settings, check: Callable[[], None]) -> None:
    try:
        check()
    except SpectralError as error:
        raise SpectralError(f"{settings.name} describes what cannot be built: {error}") from error


def _note_unread(settings: Settings, notes: list[str]) -> None:
    unread = settings.unread(IGNORED)
    if unread:
        names = ", ".join(repr(key[:40]) for key in unread[:8])
        notes.append(f"{settings.name} has settings that are not known here and were ignored: {names}.")


def _read_schedule(
    path: Path,
    network: UNetConfig,
    known: Preset | None,
    weights: Mapping[str, Tensor],
    options: ReadOptions,
    notes: list[str],
) -> ScheduleConfig:
    """The schedule beside the U-Net; where there is none, the published model's, or the usual one."""
    file = path / "scheduler" / SCHEDULER_CONFIG
    if os.path.lexists(file):
        return read_schedule(Settings(file), options.prediction)
    schedule, more = assumptions.schedule(network, known)
    prediction = options.prediction or assumptions.prediction(weights, network)
    notes += more
    if options.prediction is None:
        seen = "velocity (v)" if prediction == "v" else "noise (eps)"
        notes.append(
            f"{path.name} has no scheduler/{SCHEDULER_CONFIG}; that it predicts {seen} is assumed (set prediction to "
            "change it)."
        )
    return replace(schedule, prediction=prediction)


def _tensors(
    folder: Path, rows: Iterable[Row], kind: str, weights: Path | None = None
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of one sub-folder in LDM's layout, and the texts beside them; `kind` is what such ones are called."""
    found, texts, file = (*_opened(weights), weights) if weights is not None else _weights(folder)
    dropped = _DROPPED.get(kind)
    found = {name: tensor for name, tensor in found.items() if not (dropped and dropped.fullmatch(name))}
    if kind == "text_encoder" and not any(name.startswith("text_model.") for name in found):
        found = {f"text_model.{name}": tensor for name, tensor in found.items()}  # as transformers 5 saves them
    return to_ldm(rows, found, label(file)), texts


# --- files of weights ---

#: By how a part was saved: diffusers' own networks, then those of transformers.
_STEMS = (("diffusion_pytorch_model", "diffusion_pytorch_model"), ("model", "pytorch_model"))
_VARIANTS = ("", ".fp16", ".bf16", ".non_ema")
#: diffusers cuts into pieces of 10 GB; the largest model of this kind would have two.
_MOST_SHARDS = 64


def _candidates() -> list[str]:
    """Names of files of weights, the best first: safetensors before pickles, full precision before half."""
    names = []
    for safe in (True, False):
        for variant in _VARIANTS:
            for stems in _STEMS:
                plain = f"{stems[0]}{variant}.safetensors" if safe else f"{stems[1]}{variant}.bin"
                suffix = "safetensors" if safe else "bin"
                # diffusers puts the variant last, transformers and older versions first.
                names += [plain, f"{plain}.index.json", f"{stems[not safe]}.{suffix}.index{variant}.json"]
    return list(dict.fromkeys(names))


def _weights(folder: Path) -> tuple[dict[str, Tensor], dict[str, str], Path]:
    """The tensors in a sub-folder, the texts beside them, and the file that names them all."""
    for name in _candidates():
        if os.path.lexists(folder / name):
            file = folder / name
            return (*(_shards(file) if name.endswith(".json") else _opened(file)), file)
    raise SpectralError(
        f"{folder.name}/ holds no weights; expected diffusion_pytorch_model.safetensors, model.safetensors or a .bin "
        "there, so download it again."
    )


def _opened(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """A file of tensors, with its folder named where it cannot be opened."""
    try:
        return open_tensors(file)
    except SpectralError as error:
        raise SpectralError(f"{file.parent.name}/: {error}") from error


def _shards(index: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of all shards that an index names; each shard is a file beside it."""
    tensors: dict[str, Tensor] = {}
    texts: dict[str, str] = {}
    for name in _shard_names(index):
        more, words = _opened(index.parent / name)
        tensors.update(more)
        texts.update(words)
    return tensors, texts


def _shard_names(index: Path) -> list[str]:
    """The files beside an index that it says the tensors are in, sorted."""
    places = read_json(index, LARGEST_INDEX).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()):
        raise SpectralError(f"{label(index)} lacks a weight_map from tensors to files; download it again.")
    names = sorted(set(places.values()))
    if len(names) > _MOST_SHARDS:
        raise SpectralError(f"{label(index)} names {len(names)} files; expected {_MOST_SHARDS} at most.")
    for name in names:
        if not re.fullmatch(r"\w[\w.-]{0,200}", name, re.ASCII):
            raise SpectralError(f"{label(index)} names {name[:80]!r}; expected a file beside it, download it again.")
    return names
