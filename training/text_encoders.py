"""A text encoder from a weight file on this machine, whoever wrote it: nothing is downloaded."""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from torch import Tensor

from ..spectral.checkpoint import read as read_checkpoint
from ..spectral.config import ConditioningConfig
from ..spectral.errors import SpectralError
from ..spectral.formats import diffusers_folder, spectral_file, text_keys
from ..spectral.formats.source import CONDITIONER
from ..spectral.formats.tensor_files import open_tensors
from ..spectral.formats.zip_directory import ProgramError, read_directory
from ..spectral.text import END

Activation = Literal["quick_gelu", "gelu"]

#: What only OpenAI's own files hold: the sizes of the model, as tensors.
OPENAI_SIZES = ("input_resolution", "context_length", "vocab_size")
#: What whole CLIP models hold beside their text tower.
PICTURES = ("visual.", "vision_model.", "visual_projection.")


def open_text_encoder(
    path: Path,
    width: int | None = None,
    *,
    activation: Activation | None = None,
    skip_last: int | None = None,
) -> tuple[ConditioningConfig, dict[str, Tensor]]:
    """The description of the text encoder in a file, and its weights by the names of `conditioning.build`'s module.

    The layouts: OpenCLIP's and OpenAI's CLIP models, transformers' CLIPModel and CLIPTextModel, Stable Diffusion's
    checkpoints (1.x and 2.x), LDM's own text encoder, and this project's checkpoints. Parts that read pictures are left
    out.

    Args:
        path: .safetensors, .bin, .pt or .ckpt; or a folder of diffusers or transformers, which says what follows.
        width: channels of the states that are needed: the U-Net's context_dim; None takes any.
        activation: of a CLIP tower, which no weights tell; None: "gelu" for OpenCLIP's (its layout, or the 1024 and
            1280 channels that only its towers have), "quick_gelu" for OpenAI's and for 768 channels (ViT-L/14, Stable
            Diffusion 1.x).
        skip_last: last layers of a CLIP tower that are not run; None: 1 of OpenCLIP's, as in Stable Diffusion 2.x, but
            where it is gone already (see `text_keys.unused_layers`), else 0.

    Raises:
        SpectralError: the file cannot be read, holds no text encoder, or one of another width.
    """
    if path.is_dir():
        return _of_width(path.name, width, *diffusers_folder.read_text_encoder(path))
    if path.is_file() and activation is None and skip_last is None and _is_described(path):
        return _of_width(path.name, width, *diffusers_folder.read_text_encoder(path.parent, path))
    refuse_programs(path)
    tensors, metadata = open_tensors(path)
    if spectral_file.is_described(tensors, metadata):
        config, weights = _ours(path)
    else:
        config, weights = _describe(_without_wrapping(tensors), path.name, activation, skip_last)
    return _of_width(path.name, width, config, weights)


def _is_described(path: Path) -> bool:
    """Whether a file of weights lies beside the config.json that transformers wrote with it."""
    usual = path.name.startswith(("model.", "pytorch_model."))
    return usual and diffusers_folder.describes_text_encoder(path.parent)


def _of_width(
    name: str, width: int | None, config: ConditioningConfig, weights: dict[str, Tensor]
) -> tuple[ConditioningConfig, dict[str, Tensor]]:
    """A text encoder whose states have `width` channels."""
    if width is not None and config.width != width:
        raise SpectralError(
            f"{name} holds a text encoder of width {config.width}; expected {width}, the U-Net's context_dim."
        )
    return config, weights


def _ours(path: Path) -> tuple[ConditioningConfig, dict[str, Tensor]]:
    """Of a checkpoint of this project, which says itself what it holds."""
    file = read_checkpoint(path)
    if file.config.conditioning.kind != "text":
        raise SpectralError(f"{path.name} holds no text encoder: its conditioning is {file.config.conditioning.kind}.")
    return file.config.conditioning, file.part(CONDITIONER)


def refuse_programs(path: Path) -> None:
    """A TorchScript archive, as OpenAI publishes CLIP in, is a program; it is not run here."""
    if not path.is_file():  # a pipe would never end; the reader says what it is
        return
    try:
        read_directory(path)
    except ProgramError as error:
        raise SpectralError(
            f"{path.name} is a TorchScript archive, a program and not weights alone; if you trust it, write its weights"
            f" with torch.save(torch.jit.load('{path.name}', 'cpu').state_dict(), '{path.stem}-weights.pt') and give "
            "that file."
        ) from error
    except (ValueError, OSError, struct.error, zipfile.BadZipFile):
        pass  # no archive, or a damaged one: the reader says so


def _without_wrapping(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A text encoder's tensors without what training loops and whole models put before their names."""
    found = dict(tensors)
    if any(name.startswith(CONDITIONER) for name in found):
        found = {name: tensor for name, tensor in found.items() if name.startswith(CONDITIONER)}
    for prefix in ("module.", CONDITIONER, "model."):
        if found and all(name.startswith(prefix) for name in found):
            found = {name.removeprefix(prefix): tensor for name, tensor in found.items()}
    found = {name: tensor for name, tensor in found.items() if not name.startswith(PICTURES)}
    # OpenCLIP's newer models keep the tower in a module of its own.
    return {name.removeprefix("text."): tensor for name, tensor in found.items()}


def _describe(
    tensors: dict[str, Tensor], where: str, activation: Activation | None, skip_last: int | None
) -> tuple[ConditioningConfig, dict[str, Tensor]]:
    """Description and weights of a tower in any layout but a checkpoint's of ours."""
    if "transformer.token_emb.weight" in tensors:
        weights = {name: tensor for name, tensor in tensors.items() if not name.startswith("transformer.to_logits.")}
        return text_keys.describe_ldm(weights, where), weights
    openai = any(name in tensors for name in OPENAI_SIZES)
    transformers = not any(name.startswith("transformer.resblocks.") for name in tensors)
    weights = _clip(tensors, where)
    width, layers = _size(weights)
    if activation is None:
        open_clip = width in (1024, 1280) if transformers else width != 768
        activation = "gelu" if open_clip and not openai else "quick_gelu"
    if skip_last is None:
        open_clip = activation == "gelu" and not openai and (not transformers or (width, layers) == (1024, 24))
        skip_last = text_keys.unused_layers(width, layers) if open_clip else 0
    # OpenAI's towers are used as Stable Diffusion 1.x does, OpenCLIP's as 2.x.
    pad_token = END if activation == "quick_gelu" else 0
    config = text_keys.describe(weights, where, activation=activation, skip_last=skip_last, pad_token=pad_token)
    return config, weights


def _clip(tensors: dict[str, Tensor], where: str) -> dict[str, Tensor]:
    """A CLIP tower's weights by our names, from any layout."""
    tensors = {name: tensor for name, tensor in tensors.items() if name not in (*OPENAI_SIZES, "logit_scale")}
    if any(name.startswith("transformer.resblocks.") for name in tensors):
        weights = text_keys.from_open_clip(tensors, where)
    elif any(name.removeprefix("transformer.").startswith(("text_model.", "embeddings.")) for name in tensors):
        bare = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
        weights = text_keys.from_transformers(bare, where)
    else:
        raise SpectralError(
            f"{where} holds no text encoder in a layout known here; expected a CLIP model of OpenCLIP, OpenAI or "
            "transformers, a Stable Diffusion checkpoint, or LDM's text encoder."
        )
    projection = weights.get(text_keys.PROJECTION)
    if projection is not None and projection.dim() == 2 and projection.shape[0] != projection.shape[1]:
        del weights[text_keys.PROJECTION]  # to another width, as in OpenAI's ResNets; the states do without
    return weights


def _size(weights: Mapping[str, Tensor]) -> tuple[int, int]:
    """Width and layers of a CLIP tower, as far as its tensors tell; `describe` checks them."""
    embedding = weights.get(text_keys.MODEL + "final_layer_norm.weight")
    width = embedding.shape[0] if embedding is not None and embedding.dim() else 0
    return width, sum(name.endswith(".layer_norm1.weight") for name in weights)
