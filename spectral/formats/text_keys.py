"""Names of text encoders' weights: OpenCLIP's, OpenAI's and transformers' into those of Stable Diffusion 1.x, and back.

Ours are `transformer.text_model.…` and `transformer.text_projection.weight`, as `text.TextTower` has them. Nothing is
copied on the way in: queries, keys and values are views of the matrix that OpenCLIP keeps them in.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from .. import conditioning
from ..config import ConditioningConfig
from ..errors import SpectralError
from ..ldm_text import HEAD_CHANNELS
from ..memory import shapes_alone
from ..text import END

MODEL, PROJECTION = "transformer.text_model.", "transformer.text_projection.weight"

#: OpenCLIP's names outside and inside a layer, and ours behind `MODEL` and behind the layer's number.
_OUTSIDE = {
    "token_embedding.weight": "embeddings.token_embedding.weight",
    "positional_embedding": "embeddings.position_embedding.weight",
    "ln_final.weight": "final_layer_norm.weight",
    "ln_final.bias": "final_layer_norm.bias",
}
_INSIDE = {
    "ln_1": "layer_norm1",
    "attn.out_proj": "self_attn.out_proj",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
#: What files hold beside the tower: a constant mask, and the temperature of CLIP's loss.
_UNUSED = ("attn_mask", "logit_scale", "logit_bias")

_OPEN_CLIP_LAYER = re.compile(r"transformer\.resblocks\.(\d{1,4})\.(.+)[._](weight|bias)")
_LAYER = re.compile(re.escape(MODEL) + r"encoder\.layers\.(\d{1,4})\.(.+)\.(weight|bias)")
_LDM_LAYER = re.compile(r"transformer\.attn_layers\.layers\.(\d{1,4})\.")


def from_open_clip(tensors: Mapping[str, Tensor], where: str = "the text encoder") -> dict[str, Tensor]:
    """The text part of an OpenCLIP or OpenAI CLIP model under our names.

    Args:
        tensors: `token_embedding.weight`, `positional_embedding`, `transformer.resblocks.N.…`, `ln_final.…` and, if
            there is one, `text_projection`.
        where: how to call them in an error.

    Raises:
        SpectralError: a name is none of a text tower, or a tensor cannot be split.
    """
    ours: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        layer = _OPEN_CLIP_LAYER.fullmatch(name)
        if name in _UNUSED:
            continue
        if name in _OUTSIDE:
            ours[MODEL + _OUTSIDE[name]] = tensor
        elif name == "text_projection" and tensor.dim() == 2:
            ours[PROJECTION] = tensor.T
        elif layer and layer[2] == "attn.in_proj" and tensor.dim() and tensor.shape[0] % 3 == 0:
            for part, chunk in zip("qkv", tensor.chunk(3), strict=True):
                ours[f"{MODEL}encoder.layers.{layer[1]}.self_attn.{part}_proj.{layer[3]}"] = chunk
        elif layer and layer[2] in _INSIDE:
            ours[f"{MODEL}encoder.layers.{layer[1]}.{_INSIDE[layer[2]]}.{layer[3]}"] = tensor
        else:
            raise SpectralError(
                f"{where} holds {name[:200]!r} of shape {list(tensor.shape)}, which is no part of OpenCLIP's text "
                "tower; give a CLIP model of the ViT kind."
            )
    return ours


def to_open_clip(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `from_open_clip`; queries, keys and values become one matrix again.

    Raises:
        SpectralError: a name is none of ours, or a layer lacks its queries, keys or values.
    """
    outside = {MODEL + own: other for other, own in _OUTSIDE.items()}
    inside = {own: other for other, own in _INSIDE.items()}
    theirs: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        layer = _LAYER.fullmatch(name)
        if name in outside:
            theirs[outside[name]] = tensor
        elif name == PROJECTION:
            theirs["text_projection"] = tensor.T
        elif layer and layer[2] in inside:
            theirs[f"transformer.resblocks.{layer[1]}.{inside[layer[2]]}.{layer[3]}"] = tensor
        elif layer and layer[2] == "self_attn.q_proj":
            parts = [name.replace("q_proj", f"{part}_proj") for part in "qkv"]
            missing = next((part for part in parts if part not in tensors), None)
            if missing is not None:
                raise _incomplete("the text encoder", missing)
            joined = torch.cat([tensors[part] for part in parts])
            theirs[f"transformer.resblocks.{layer[1]}.attn.in_proj_{layer[3]}"] = joined
        elif not (layer and layer[2] in ("self_attn.k_proj", "self_attn.v_proj")):
            raise _foreign("the text encoder", name)
    return theirs


def with_one_more_layer(tensors: Mapping[str, Tensor], layers: int) -> dict[str, Tensor]:
    """A last layer under our names, equal to the one before: for readers that do not run the last one."""
    last, more = (f"{MODEL}encoder.layers.{index}." for index in (layers - 1, layers))
    return {more + name.removeprefix(last): tensor for name, tensor in tensors.items() if name.startswith(last)}


def from_transformers(tensors: Mapping[str, Tensor], where: str = "the text encoder") -> dict[str, Tensor]:
    """A transformers CLIPTextModel, with or without its prefix `text_model.`, under our names.

    Raises:
        SpectralError: a name is none of a text tower.
    """
    ours: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        bare = name.removeprefix("text_model.")
        if bare == "embeddings.position_ids":  # 0 to 76, which older versions stored
            continue
        if name == "text_projection.weight":
            ours[PROJECTION] = tensor
        elif bare.startswith(("embeddings.", "encoder.layers.", "final_layer_norm.")):
            ours[MODEL + bare] = tensor
        else:
            raise _foreign(where, name)
    return ours


def to_transformers(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our names as those of a transformers CLIPTextModelWithProjection: `text_model.…` and `text_projection.weight`.

    Raises:
        SpectralError: a name is none of ours.
    """
    for name in tensors:
        if name != PROJECTION and not name.startswith(MODEL):
            raise _foreign("the text encoder", name)
    return {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}


def unused_layers(width: int, layers: int) -> int:
    """How many last layers of an OpenCLIP tower are not run: 1, as Stable Diffusion 2.x takes the states before it.

    Files of Stable Diffusion 2.x that were made from diffusers' folders lack that one of ViT-H's 24 layers. A tower of
    one layer runs it.
    """
    return 0 if layers == 1 or (width == 1024 and layers != 24) else 1


def describe(
    tensors: Mapping[str, Tensor],
    where: str = "the text encoder",
    *,
    heads: int | None = None,
    activation: Literal["quick_gelu", "gelu"] = "quick_gelu",
    skip_last: int = 0,
    pad_token: int = END,
) -> ConditioningConfig:
    """The configuration of the CLIP tower whose weights, under our names, these are.

    Args:
        where: how to call them in an error.
        heads: attention heads; None: of 64 channels each, as in every CLIP that was published.
        activation: which the weights do not tell; nor the following.
        skip_last: last layers that are not run.
        pad_token: fills a text up.

    Raises:
        SpectralError: a tensor is missing, left over or has an odd shape; it is named.
    """
    vocabulary, width = _table(tensors, MODEL + "embeddings.token_embedding.weight", where)
    length, _ = _table(tensors, MODEL + "embeddings.position_embedding.weight", where)
    numbers = [int(found[1]) for name in tensors if (found := _LAYER.fullmatch(name))]
    config = ConditioningConfig(
        "text",
        width=width,
        layers=max(numbers, default=-1) + 1,
        heads=heads or max(1, width // 64),
        context_length=length,
        activation=activation,
        skip_last=skip_last,
        projection=PROJECTION in tensors,
        vocabulary=vocabulary,
        pad_token=pad_token,
    )
    _check(config, tensors, where)
    return config


def describe_ldm(tensors: Mapping[str, Tensor], where: str = "the text encoder") -> ConditioningConfig:
    """The configuration of the LDM text encoder whose weights these are (without `transformer.to_logits`).

    Raises:
        SpectralError: a tensor is missing, left over or has an odd shape; it is named.
    """
    vocabulary, width = _table(tensors, "transformer.token_emb.weight", where)
    length, _ = _table(tensors, "transformer.pos_emb.emb.weight", where)
    inner, _ = _table(tensors, "transformer.attn_layers.layers.0.1.to_q.weight", where)
    numbers = [int(found[1]) for name in tensors if (found := _LDM_LAYER.match(name))]
    config = ConditioningConfig(
        "text",
        width=width,
        layers=max(numbers) // 2 + 1,  # attention and feed-forward are two entries
        heads=inner // HEAD_CHANNELS,
        context_length=length,
        tower="ldm",
        vocabulary=vocabulary,
        pad_token=0,
    )
    _check(config, tensors, where)
    return config


def _table(tensors: Mapping[str, Tensor], name: str, where: str) -> tuple[int, int]:
    """Rows and columns of a matrix that must be there."""
    if name not in tensors:
        raise _incomplete(where, name)
    if tensors[name].dim() != 2:
        raise SpectralError(f"{where}: {name} has shape {list(tensors[name].shape)}; expected a matrix.")
    return tensors[name].shape[0], tensors[name].shape[1]


def _check(config: ConditioningConfig, tensors: Mapping[str, Tensor], where: str) -> None:
    """That `tensors` are those of the encoder that `config` describes, name for name and shape for shape."""
    try:
        with shapes_alone():
            module = conditioning.build(config)
    except SpectralError as error:
        raise SpectralError(f"{where} holds no text encoder that can be built: {error}") from error
    assert module is not None
    expected = module.state_dict()
    for name, tensor in expected.items():
        if name not in tensors:
            raise _incomplete(where, name)
        if tensors[name].shape != tensor.shape:
            raise SpectralError(
                f"{where}: {name} has shape {list(tensors[name].shape)}, but the embeddings beside it ask for "
                f"{list(tensor.shape)}; the file is damaged or of another architecture."
            )
    foreign = next((name for name in tensors if name not in expected), None)
    if foreign is not None:
        raise _foreign(where, foreign)


def _incomplete(where: str, name: str) -> SpectralError:
    return SpectralError(f"{where} lacks {name}; it is incomplete, get it again.")


def _foreign(where: str, name: str) -> SpectralError:
    return SpectralError(
        f"{where} holds {name[:200]!r}, which is no part of a text encoder; give one whose layout is known."
    )
