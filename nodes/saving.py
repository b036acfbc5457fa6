"""What core's Save Checkpoint and Model Save write of our MODEL: a file of this project, for our loader to read again.

Core writes metadata of its own, so the description of the model travels as a tensor.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ..spectral import autoencoder, checkpoint, conditioning
from ..spectral.config import ConditioningConfig, FirstStageConfig, ModelConfig
from ..spectral.errors import SpectralError
from ..spectral.formats import inference, spectral_file, text_keys
from ..spectral.formats.source import CONDITIONER, FIRST_STAGE, UNET
from ..spectral.memory import shapes_alone

Tensors = dict[str, Tensor]
#: What our reader takes; 8-bit floats are written as float16, which holds all their values.
STORED = (torch.float32, torch.float16, torch.bfloat16)
#: What core keeps beside a text encoder's weights.
BESIDE = ("logit_scale", "text_projection")
NO_PLACE = (
    "This model reads no text, so its file has no place for a text encoder; connect the CLIP output of its own Load "
    "Checkpoint (Spectral Diffusion) to Save Checkpoint."
)
OWN_CLIP = "connect the CLIP that belongs to the model, such as that of its own Load Checkpoint (Spectral Diffusion)"


def state_dict(
    config: ModelConfig, unet: Tensors, classes: Tensor | None, clip: Tensors | None, first_stage: Tensors | None
) -> Tensors:
    """All tensors of the file, under their names in it.

    Args:
        config: what the model was loaded as.
        unet: by LDM's names and in its shapes, without a prefix.
        classes: class embeddings, of a model of classes.
        clip: as core's CLIP gives it: under the name of a tower, such as `clip_l.transformer.`; None to leave it out.
        first_stage: as core's VAE gives it; None to leave it out.

    Raises:
        SpectralError: the VAE or the CLIP is none that goes with the model.
    """
    parts = {UNET: unet, FIRST_STAGE: first_stage or {}}
    condition, parts[CONDITIONER] = _conditioner(config.conditioning, classes, clip or {})
    stage = _first_stage(config.first_stage, first_stage) if first_stage else None
    described = replace(config, first_stage=stage, conditioning=condition)
    checkpoint.check(described, "Save Checkpoint")
    tensors = {prefix + name: _stored(tensor) for prefix, part in parts.items() for name, tensor in part.items()}
    return {**tensors, spectral_file.METADATA_KEY: spectral_file.as_tensor(described)}


def _stored(tensor: Tensor) -> Tensor:
    return (tensor if tensor.dtype in STORED else tensor.half()).contiguous()


def _first_stage(own: FirstStageConfig | None, tensors: Tensors) -> FirstStageConfig:
    """The configuration of a VAE: that of the model's own, or as its tensors say.

    Raises:
        SpectralError: it is no first stage of latent diffusion.
    """
    where = "the VAE connected to Save Checkpoint: "
    with shapes_alone():
        if own is not None and _fits(autoencoder.build(own), tensors):
            return own
        found = inference.first_stage(tensors, where)
        checkpoint.match(autoencoder.build(found), tensors, where)
    return found


def _conditioner(own: ConditioningConfig, classes: Tensor | None, clip: Tensors) -> tuple[ConditioningConfig, Tensors]:
    """What the file says of the conditioning, and the tensors for it, without a prefix.

    Raises:
        SpectralError: the CLIP is none that this model reads, or of a kind that this project's files do not hold.
    """
    if own.kind in ("class", "none"):
        if clip:
            raise SpectralError(NO_PLACE)
        return own, {} if classes is None else {"embedding.weight": classes}
    if not clip:
        return ConditioningConfig("external", width=own.width), {}
    name, tensors = _tower(clip)
    if own.kind == "text":
        described = own
    elif name in ("clip_l", "clip_h"):
        described = _described(name, tensors)
    else:
        raise SpectralError(f"Save Checkpoint knows no text encoder of the kind {name!r} in such a file; {OWN_CLIP}.")
    if not described.projection:  # core makes one all the same, of whatever numbers; nothing here reads what it makes
        tensors = {key: tensor for key, tensor in tensors.items() if key != text_keys.PROJECTION}
    with shapes_alone():
        encoder = conditioning.build(described)
    if encoder is None or not _fits(encoder, tensors):
        raise SpectralError(f"Save Checkpoint was given the CLIP of another model than its MODEL; {OWN_CLIP}.")
    return described, tensors


def _tower(clip: Tensors) -> tuple[str, Tensors]:
    """The name of the one tower in core's CLIP, and its weights without that name.

    Raises:
        SpectralError: there are several.
    """
    names = sorted({key.split(".")[0] for key in clip if ".transformer." in key})
    if len(names) != 1:
        raise SpectralError(f"Save Checkpoint was given a CLIP of {len(names)} text encoders; {OWN_CLIP}.")
    prefix = f"{names[0]}."
    held = {key.removeprefix(prefix): tensor for key, tensor in clip.items() if key.startswith(prefix)}
    return names[0], {key: tensor for key, tensor in held.items() if key not in BESIDE}


def _described(name: str, tensors: Tensors) -> ConditioningConfig:
    """A tower of core's own loaders: OpenAI's, as in Stable Diffusion 1.x, or OpenCLIP's, as in 2.x."""
    where = "the CLIP connected to Save Checkpoint"
    found = text_keys.describe(tensors, where)
    if name == "clip_l":
        return replace(found, projection=False)
    skipped = text_keys.unused_layers(found.width, found.layers)
    return replace(found, activation="gelu", skip_last=skipped, pad_token=0, projection=False)


def _fits(module: torch.nn.Module, tensors: Tensors) -> bool:
    """Whether these are the module's weights, by their names and shapes."""
    expected = {name: tensor.shape for name, tensor in module.state_dict().items()}
    return expected == {name: tensor.shape for name, tensor in tensors.items()}
