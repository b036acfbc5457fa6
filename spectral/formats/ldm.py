"""Checkpoints in the layout of latent-diffusion and Stable Diffusion: a whole model, a U-Net, or a first stage."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from .. import presets
from ..config import ConditioningConfig, FirstStageConfig, ModelConfig, ScheduleConfig, UNetConfig
from ..errors import SpectralError
from ..limits import check as check_unet
from ..memory import shapes_alone
from ..presets import Preset
from ..unet import UNet
from . import assumptions, inference, text_keys
from .source import CONDITIONER, FIRST_STAGE, UNET, ReadOptions, Source

#: Averages lie under this prefix, by the name inside `model.` with its dots removed.
AVERAGE = "model_ema."
#: What LDM registers beside the weights.
_BUFFERS = {
    "betas",
    "alphas_cumprod",
    "alphas_cumprod_prev",
    "sqrt_alphas_cumprod",
    "sqrt_one_minus_alphas_cumprod",
    "log_one_minus_alphas_cumprod",
    "sqrt_recip_alphas_cumprod",
    "sqrt_recipm1_alphas_cumprod",
    "posterior_variance",
    "posterior_log_variance_clipped",
    "posterior_mean_coef1",
    "posterior_mean_coef2",
    "lvlb_weights",
    "logvar",
    "cond_ids",
    "scale_factor",
    "v_pred",
    "ztsnr",
    AVERAGE + "decay",
    AVERAGE + "num_updates",
}
#: Parts that no inference reads: the discriminator and perceptual loss of a first stage in training, and the like.
_UNREAD = (FIRST_STAGE + "loss.", FIRST_STAGE + "model_ema.", CONDITIONER + "transformer.to_logits.")
#: First names of tensors in other kinds of files, and what to say about them.
_OTHERS = {
    "conditioner.embedders.": "a Stable Diffusion XL checkpoint",
    "model.diffusion_model.joint_blocks.": "a Stable Diffusion 3 checkpoint",
    "model.diffusion_model.double_blocks.": "a Flux checkpoint",
    "double_blocks.": "a Flux checkpoint",
    "control_model.": "a ControlNet",
    "lora_unet_": "a LoRA; load it with Load LoRA",
    "lora_te_": "a LoRA; load it with Load LoRA",
    "unet.down_blocks.": "a LoRA; load it with Load LoRA",
    "down_blocks.": "one part of a diffusers folder; give the folder",
    "encoder.down_blocks.": "one part of a diffusers folder; give the folder",
    "text_model.": "a text encoder alone",
    "transformer.resblocks.": "a text encoder alone",
}


#: Which else would look like LDM's first stage.
_PARTS_OF_FOLDERS = ("encoder.down_blocks.", "decoder.up_blocks.")


def read(
    path: Path,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str],
    options: ReadOptions,
    beside: ModelConfig | None = None,
) -> Source:
    """A model from the tensors of a file.

    Args:
        beside: of another file, whose first stage the U-Net is to run with.

    Raises:
        SpectralError: it is another kind of model, or a tensor is missing or belongs to nothing.
    """
    parts = _parts(path.name, tensors)
    stage = inference.first_stage(parts[FIRST_STAGE], f"{path.name}: {FIRST_STAGE}") if parts[FIRST_STAGE] else None
    if not parts[UNET]:
        return _autoencoder(path, stage, parts, tensors, metadata, options)
    if any(".gate.fc1." in key for key in parts[UNET]):
        raise SpectralError(
            f"{path.name} says nothing of its architecture (its 'spectral_diffusion' metadata is gone), which a "
            "wavelet-gated model needs; get the file as it was exported."
        )
    where = f"{path.name}: "
    found = inference.unet(parts[UNET], where + UNET)
    known = assumptions.signature(found)
    serving = beside.first_stage if beside is not None else stage
    unet, notes = assumptions.completed(found, known, serving, options)
    averaged = options.ema and any(key.startswith(AVERAGE) and key not in _BUFFERS for key in tensors)
    if averaged:
        parts[UNET] = _averaged(path.name, unet, parts[UNET], tensors)
    conditioning, parts[CONDITIONER], more = _conditioning(parts[CONDITIONER], unet, where + CONDITIONER)
    notes += more
    schedule, more = _schedule(where, tensors, metadata, parts[UNET], unet, known, options)
    notes += more
    scale, more = _scale(where, tensors, stage, known, options, beside)
    config = ModelConfig(
        "teacher", unet, stage, conditioning, schedule, scale, preset=_preset_name(unet, stage, conditioning)
    )
    joined = {prefix + name: tensor for prefix, part in parts.items() for name, tensor in part.items()}
    return Source(path, config, joined, dict(metadata), tuple(notes + more), averaged)


def _parts(name: str, tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """The tensors of U-Net, first stage and conditioner, each without its prefix.

    Raises:
        SpectralError: there is neither a U-Net nor a first stage, or a tensor that belongs to no part.
    """
    if any(key.startswith(_PARTS_OF_FOLDERS) for key in tensors):
        raise SpectralError(_unknown(name, next(iter(tensors)), tensors))
    tensors = _with_prefixes(tensors)
    parts: dict[str, dict[str, Tensor]] = {UNET: {}, FIRST_STAGE: {}, CONDITIONER: {}}
    for key, tensor in tensors.items():
        if key in _BUFFERS or key.startswith((*_UNREAD, AVERAGE)) or key.endswith(".position_ids"):
            continue
        part = next((part for part in parts if key.startswith(part)), None)
        if part is None:
            raise SpectralError(_unknown(name, key, tensors))
        parts[part][key[len(part) :]] = tensor
    blocks = any(key.startswith(("input_blocks.", "output_blocks.")) for key in parts[UNET])
    if not blocks and (parts[UNET] or not parts[FIRST_STAGE]):
        raise SpectralError(_unknown(name, next(iter(tensors), "nothing"), tensors))
    return parts


def _with_prefixes(tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """The tensors of a U-Net or a first stage alone, as in a whole model's file."""
    if any(key.startswith((UNET, FIRST_STAGE)) for key in tensors):
        return tensors
    for prefix in ("", "diffusion_model.", "model."):
        if any(key.startswith((prefix + "input_blocks.", prefix + "output_blocks.")) for key in tensors):
            return {
                key if key in _BUFFERS or key.startswith(AVERAGE) else UNET + key.removeprefix(prefix): tensor
                for key, tensor in tensors.items()
            }
    if any(key.startswith(("encoder.conv_", "encoder.down.")) for key in tensors):
        return {FIRST_STAGE + key: tensor for key, tensor in tensors.items()}
    return tensors


def _unknown(name: str, key: str, tensors: Mapping[str, Tensor]) -> str:
    """What to say of a file in which `key` belongs to nothing that is known."""
    for prefix, kind in _OTHERS.items():
        if any(other.startswith(prefix) for other in tensors):
            return f"{name} looks like {kind}; expected a latent diffusion model or Stable Diffusion 1.x or 2.x."
    if any(other.startswith((UNET, FIRST_STAGE)) for other in tensors):
        return f"{name} holds a tensor {key[:200]!r} that belongs to no part of a latent diffusion model; remove it."
    return (
        f"{name} holds no latent diffusion model (its tensors have names such as {key[:200]!r}); expected a "
        "checkpoint of latent diffusion, Stable Diffusion 1.x or 2.x, or of this project's training kit."
    )


def _autoencoder(
    path: Path,
    stage: FirstStageConfig | None,
    parts: Mapping[str, Mapping[str, Tensor]],
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str],
    options: ReadOptions,
) -> Source:
    """A file of a first stage alone."""
    for key in parts[CONDITIONER]:
        raise SpectralError(f"{path.name}: {CONDITIONER}{key} belongs to no U-Net, which the file lacks.")
    scale, notes = _scale(f"{path.name}: ", tensors, stage, None, options, None)
    config = ModelConfig("autoencoder", first_stage=stage, scale_factor=scale)
    weights = {FIRST_STAGE + key: tensor for key, tensor in parts[FIRST_STAGE].items()}
    return Source(path, config, weights, dict(metadata), tuple(notes))


def _averaged(
    name: str, unet: UNetConfig, weights: Mapping[str, Tensor], tensors: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The averages of the U-Net's weights, of which the file keeps some at least.

    Raises:
        SpectralError: some averages are there and others are missing, have another shape, or belong to no weight.
    """
    found = {key for key in tensors if key.startswith(AVERAGE) and key not in _BUFFERS}
    names = {key: AVERAGE + ("diffusion_model." + key).replace(".", "") for key in weights}
    for key, average in names.items():
        if average not in found:
            raise SpectralError(f"{name} has averaged weights but not {average} (of {UNET}{key}); turn ema off.")
        if tensors[average].shape != weights[key].shape:
            shapes = f"{list(tensors[average].shape)}, {UNET}{key} has {list(weights[key].shape)}"
            raise SpectralError(f"{name}: the average {average} has shape {shapes}; turn ema off.")
    for average in sorted(found.difference(names.values())):
        missing = next((key for key in _names(unet) if key not in weights), None)
        if missing is not None:
            raise SpectralError(f"{name}: {UNET}{missing} is missing from the checkpoint; it is incomplete.")
        raise SpectralError(f"{name}: {average} is the average of no weight in the file; turn ema off.")
    return {key: tensors[average] for key, average in names.items()}


def _names(unet: UNetConfig) -> list[str]:
    """What the tensors of such a U-Net are called."""
    check_unet(unet)
    with shapes_alone():
        return list(UNet(unet).state_dict())


def _conditioning(
    tensors: dict[str, Tensor], unet: UNetConfig, where: str
) -> tuple[ConditioningConfig, dict[str, Tensor], list[str]]:
    """What the context is made from, its tensors under our names, and what was assumed."""
    if not unet.use_spatial_transformer:
        return ConditioningConfig(), tensors, []
    assert unet.context_dim is not None
    if not tensors:
        return ConditioningConfig("external", width=unet.context_dim), {}, [assumptions.WITHOUT_CONDITIONER]
    if "embedding.weight" in tensors:
        return _classes(tensors, unet, where)
    for mark, convert in _TOWERS.items():
        if any(key.startswith(mark) for key in tensors):
            conditioning, converted = convert(tensors, where)
            return conditioning, converted, []
    raise SpectralError(
        f"{where}{next(iter(tensors))[:200]} belongs to no known conditioner; expected classes, CLIP, OpenCLIP or "
        "LDM's text encoder."
    )


def _classes(
    tensors: dict[str, Tensor], unet: UNetConfig, where: str
) -> tuple[ConditioningConfig, dict[str, Tensor], list[str]]:
    """One vector a class; published models have 1000, and a null class beside them or none."""
    table = tensors["embedding.weight"]
    if table.dim() != 2 or not table.shape[0] or table.shape[1] != unet.context_dim:
        raise SpectralError(
            f"{where}embedding.weight has shape {list(table.shape)}; expected one row of {unet.context_dim} a class."
        )
    rows = table.shape[0]
    notes = [] if rows in (1000, 1001) else ["The last class is taken for the null class."]
    config = ConditioningConfig("class", width=table.shape[1], n_classes=rows, null_class=rows != 1000)
    return config, tensors, notes


def _clip(tensors: dict[str, Tensor], where: str) -> tuple[ConditioningConfig, dict[str, Tensor]]:
    """Stable Diffusion 1.x: the tower of CLIP ViT-L/14 in transformers' layout."""
    inner = {key.removeprefix("transformer."): tensor for key, tensor in tensors.items() if key != "logit_scale"}
    converted = text_keys.from_transformers(inner, where)
    return text_keys.describe(converted, where), converted


def _open_clip(tensors: dict[str, Tensor], where: str) -> tuple[ConditioningConfig, dict[str, Tensor]]:
    """Stable Diffusion 2.x: the tower of OpenCLIP's ViT-H, without its last layer."""
    inner = {key.removeprefix("model."): tensor for key, tensor in tensors.items()}
    converted = text_keys.from_open_clip(inner, where)
    described = text_keys.describe(converted, where)
    skip = text_keys.unused_layers(described.width, described.layers)
    return replace(described, activation="gelu", skip_last=skip, pad_token=0), converted


def _ldm_text(tensors: dict[str, Tensor], where: str) -> tuple[ConditioningConfig, dict[str, Tensor]]:
    """LDM's own transformer."""
    return text_keys.describe_ldm(tensors, where), tensors


_TOWERS: dict[str, Callable[[dict[str, Tensor], str], tuple[ConditioningConfig, dict[str, Tensor]]]] = {
    "transformer.token_emb.": _ldm_text,
    "transformer.": _clip,
    "model.": _open_clip,
}

_PUBLISHED = {(preset.schedule.linear_start, preset.schedule.linear_end) for preset in presets.PRESETS.values()}


def _schedule(
    where: str,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str],
    weights: Mapping[str, Tensor],
    unet: UNetConfig,
    known: Preset | None,
    options: ReadOptions,
) -> tuple[ScheduleConfig, list[str]]:
    """The noise schedule from the file's own buffer, else from the published model of this architecture."""
    if "betas" in tensors:
        schedule, notes = _from_betas(tensors["betas"], where), list[str]()
    else:
        schedule, notes = assumptions.schedule(unet, known)
    prediction = options.prediction or _prediction(tensors, metadata, weights, unet)
    # Other programs, too, mind this mark only of a network that predicts the velocity.
    rescaled = "ztsnr" in tensors and prediction == "v"
    if "ztsnr" in tensors and not rescaled:
        notes.append("The file asks for a schedule with zero terminal SNR (ztsnr), which only velocity can have.")
    return replace(schedule, prediction=prediction, zero_terminal_snr=rescaled), notes


def _from_betas(betas: Tensor, where: str) -> ScheduleConfig:
    """The schedule whose β are these, linear in √β, as LDM's "linear" is."""
    if betas.dim() != 1 or not 2 <= len(betas) <= 10**5 or not betas.is_floating_point():
        raise SpectralError(f"{where}betas has shape {list(betas.shape)}; expected one number a step.")
    exact = _precision(betas)
    betas = betas.double()
    start, end, steps = float(betas[0]), float(betas[-1]), len(betas)
    for known in _PUBLISHED:
        if abs(start / known[0] - 1) < exact and abs(end / known[1] - 1) < exact:
            start, end = known
    if not 0 < start < end < 1:
        raise SpectralError(f"{where}betas run from {start:.4g} to {end:.4g}; expected rising numbers between 0 and 1.")
    linear = torch.linspace(start**0.5, end**0.5, steps, dtype=torch.float64).square()
    if not torch.allclose(betas, linear, rtol=max(1e-4, exact), atol=0):
        raise SpectralError(f"{where}betas are not linear in their square roots, the only schedule of LDM known here.")
    return ScheduleConfig(float(f"{start:.6g}"), float(f"{end:.6g}"), steps)


def _precision(tensor: Tensor) -> float:
    """Relative difference within which a stored number may be the published one, rounded (twice at the most)."""
    return 0.75 * torch.finfo(tensor.dtype).eps if tensor.is_floating_point() else 0.0


def _prediction(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, str], weights: Mapping[str, Tensor], unet: UNetConfig
) -> Literal["eps", "v"]:
    """Whether the U-Net predicts noise or velocity: said by the file, or seen in its weights."""
    said = metadata.get("modelspec.prediction_type", "").lower()
    if "v_pred" in tensors or said.startswith("v"):
        return "v"
    return "eps" if said else assumptions.prediction(weights, unet)


def _scale(
    where: str,
    tensors: Mapping[str, Tensor],
    stage: FirstStageConfig | None,
    known: Preset | None,
    options: ReadOptions,
    beside: ModelConfig | None,
) -> tuple[float, list[str]]:
    """What first-stage latents are multiplied with: the file's own number, where it has one."""
    if "scale_factor" not in tensors or options.scale_factor:
        return assumptions.scale_factor(stage, known, options, beside)
    number = tensors["scale_factor"]
    if number.numel() != 1:
        raise SpectralError(f"{where}scale_factor has shape {list(number.shape)}; expected one number.")
    scale = float(f"{float(number):.7g}")
    published = (preset.scale_factor for preset in presets.PRESETS.values())
    return next((value for value in published if abs(scale / value - 1) < _precision(number)), scale), []


def _preset_name(unet: UNetConfig, stage: FirstStageConfig | None, conditioning: ConditioningConfig) -> str | None:
    """The name in the table of a model that is just this one."""
    for name, preset in presets.PRESETS.items():
        if (unet, stage, conditioning) == (preset.unet, preset.first_stage, preset.conditioning):
            return f"{name}-teacher"
    return None
