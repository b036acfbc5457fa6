"""LDM's own text encoder as a ComfyUI CLIP: core's prompt weights and offloading around `spectral.ldm_text`."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace
from typing import Any

import comfy.ops
import comfy.sd
import comfy.sd1_clip
import torch
from torch import Tensor, nn

from ..spectral import checkpoint
from ..spectral.config import ConditioningConfig
from ..spectral.errors import SpectralError
from ..spectral.formats.source import CONDITIONER
from ..spectral.ldm_text import LdmTextEncoder
from ..spectral.memory import shapes_alone
from ..spectral.wordpiece import CLS, SEP
from . import bert, patcher
from .clip import SMALL

#: Under which ComfyUI keeps this encoder and its tokens, as "l" and "h" for the CLIP towers.
NAME = "ldm"


def build(config: ConditioningConfig, weights: dict[str, Tensor], where: str) -> Any:
    """A `comfy.sd.CLIP` around LDM's encoder.

    Args:
        config: of kind "text" and tower "ldm".
        weights: tensors as under `cond_stage_model.`.
        where: how to call the file in an error.

    Raises:
        SpectralError: BERT's vocabulary is not on this machine, or is another one; a number is not finite.
    """
    words = bert.Tokenizer(config)
    small = sum(tensor.numel() for tensor in weights.values()) < SMALL
    tokenizer = partial(
        comfy.sd1_clip.SDTokenizer,
        tokenizer_class=SimpleNamespace(from_pretrained=lambda *_args, **_kwargs: words),
        max_length=config.context_length,
        pad_with_end=False,
        embedding_size=config.width,
        embedding_key=NAME,
    )
    target = SimpleNamespace(
        params={},
        clip=partial(_wrapped, config, weights, words, where=f"{where}: {CONDITIONER}", keep_float32=small),
        tokenizer=partial(_Tokenizer, clip_name=NAME, tokenizer=tokenizer),
    )
    # Without a folder of embeddings "embedding:name" is text: those are made for CLIP.
    clip = comfy.sd.CLIP(target, embedding_directory=None)
    patcher.counting(clip.patcher, patcher.TEXT)
    return clip


class _Tokenizer(comfy.sd1_clip.SD1Tokenizer):  # type: ignore[misc]
    """Core's, which before 2025 had no state to save."""

    def state_dict(self) -> dict[str, Any]:
        return {}


def _wrapped(
    config: ConditioningConfig,
    weights: dict[str, Tensor],
    words: bert.Tokenizer,
    *,
    where: str,
    keep_float32: bool,
    dtype: Any = None,
    device: Any = "cpu",
    **kwargs: Any,
) -> Any:
    """Core's holder of one text model, around ours with its weights."""
    dtype = torch.float32 if keep_float32 or dtype is None else dtype
    special = {"start": words.vocabulary[CLS], "end": words.vocabulary[SEP], "pad": config.pad_token}
    model = partial(LdmTextModel, config, weights, special, where)
    return comfy.sd1_clip.SD1ClipModel(clip_name=NAME, clip_model=model, dtype=dtype, device=device, **kwargs)


class LdmTextModel(nn.Module, comfy.sd1_clip.ClipTokenWeightEncoder):  # type: ignore[misc]
    """LDM's encoder under the signature by which core runs text models.

    Embeddings, and everything computed, are float32; the layers' weights are kept in `dtype` and cast where they are
    used, as core does with CLIP.
    """

    def __init__(
        self,
        config: ConditioningConfig,
        weights: dict[str, Tensor],
        special_tokens: dict[str, int],
        where: str,
        *,
        dtype: torch.dtype,
        device: Any,
        **_others: Any,
    ) -> None:
        super().__init__()
        self.special_tokens = special_tokens
        with shapes_alone():
            encoder = LdmTextEncoder(config)
            _cast_where_used(encoder)
        checkpoint.fill(encoder, weights, where, device, dtype)
        for table in (encoder.transformer.token_emb, encoder.transformer.pos_emb):
            table.float()
        self.transformer = encoder.transformer

    def set_clip_options(self, options: dict[str, Any]) -> None:
        """Called before encoding.

        Raises:
            SpectralError: CLIP Set Last Layer is connected.
        """
        if options.get("layer", -1) not in (-1, None):
            raise SpectralError(
                "This model's text encoder is LDM's own, which is read after its last layer; disconnect CLIP Set Last "
                "Layer, or set it to -1."
            )

    def reset_clip_options(self) -> None:
        """There are none to reset."""

    def encode(self, tokens: list[list[int]]) -> tuple[Tensor, None]:
        """Token ids → states [B, T, width]; the encoder has no pooled output."""
        table = self.transformer.token_emb.weight
        return self.transformer(torch.tensor(tokens, device=table.device)).float(), None

    def load_sd(self, weights: dict[str, Tensor]) -> Any:
        """Core's way to put weights in."""
        return self.load_state_dict(weights, strict=False)


def _cast_where_used(module: nn.Module) -> None:
    """Put core's casting layers in the place of plain ones; weights are still to come."""
    operations = comfy.ops.manual_cast
    for name, child in module.named_children():
        if isinstance(child, nn.Linear):
            made = operations.Linear(child.in_features, child.out_features, bias=child.bias is not None)
        elif isinstance(child, nn.LayerNorm):
            made = operations.LayerNorm(child.normalized_shape, eps=child.eps)
        else:
            _cast_where_used(child)
            continue
        setattr(module, name, made)
