"""A checkpoint's text tower as a ComfyUI CLIP, read by core's own CLIP classes: prompt weights and embeddings work."""

from __future__ import annotations

import json
import tempfile
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import comfy.sd
import comfy.sd1_clip
import folder_paths
import torch
from torch import Tensor

from ..spectral.config import ConditioningConfig
from ..spectral.errors import SpectralError

#: Below this many weights the tower stays in float32, so that every version of ComfyUI encodes alike.
SMALL = 50_000_000


def build(config: ConditioningConfig, weights: dict[str, Tensor]) -> Any:
    """A `comfy.sd.CLIP` around a tower in Stable Diffusion 1.x layout.

    Args:
        config: of kind "text".
        weights: tensors named text_model.…, as under `cond_stage_model.transformer.` in the checkpoint.
    """
    weights = {**weights, "text_projection.weight": torch.eye(config.width)}
    small = sum(tensor.numel() for tensor in weights.values()) < SMALL
    with tempfile.TemporaryDirectory() as folder:
        # ComfyUI before 2025 takes the tower's shape from a file alone.
        description = Path(folder) / "text_model.json"
        description.write_text(json.dumps(_description(config)), encoding="utf-8")
        target = SimpleNamespace(
            params={},
            clip=partial(_tower, description=str(description), keep_float32=small),
            tokenizer=partial(
                comfy.sd1_clip.SD1Tokenizer,
                tokenizer=partial(comfy.sd1_clip.SDTokenizer, embedding_size=config.width),
            ),
        )
        clip = comfy.sd.CLIP(target, embedding_directory=folder_paths.get_folder_paths("embeddings"))
    clip.load_sd(weights)
    return clip


def _tower(*, description: str, keep_float32: bool, dtype: Any, **kwargs: Any) -> Any:
    """Core's Stable Diffusion 1.x text model in the shape of `description`."""
    return comfy.sd1_clip.SD1ClipModel(
        dtype=torch.float32 if keep_float32 else dtype,
        textmodel_json_config=description,
        clip_model=comfy.sd1_clip.SDClipModel,
        return_projected_pooled=False,
        **kwargs,
    )


def _description(config: ConditioningConfig) -> dict[str, Any]:
    """The tower's shape under the names of a CLIP text model's configuration file."""
    return {
        "hidden_size": config.width,
        "num_attention_heads": config.heads,
        "num_hidden_layers": config.layers,
        "intermediate_size": 4 * config.width,
        "max_position_embeddings": config.context_length,
        "hidden_act": "quick_gelu",
        "eos_token_id": 49407,
        "vocab_size": 49408,
    }


class MissingClip:
    """Stands where a CLIP would be when the checkpoint has no text tower; says so when something uses it."""

    def __init__(self, advice: str) -> None:
        self.advice = advice

    def _explain(self, *_args: Any, **_kwargs: Any) -> Any:
        raise SpectralError(self.advice)

    tokenize = encode_from_tokens = encode_from_tokens_scheduled = encode = clone = add_patches = get_sd = _explain
