"""A checkpoint's CLIP tower as a ComfyUI CLIP, read by core's own classes: prompt weights, embeddings, LoRAs work."""

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

from ..spectral import memory
from ..spectral.config import ConditioningConfig
from ..spectral.errors import SpectralError
from ..spectral.text import END, START, VOCABULARY
from . import patcher

#: Below this many weights the tower stays in float32, so that every version of ComfyUI encodes alike.
SMALL = 50_000_000


def build(config: ConditioningConfig, weights: dict[str, Tensor]) -> Any:
    """A `comfy.sd.CLIP` around a CLIP tower in Stable Diffusion 1.x layout, OpenAI's or OpenCLIP's.

    Args:
        config: of kind "text" and tower "clip".
        weights: tensors named text_model.… and text_projection.weight, as under `cond_stage_model.transformer.`.

    Raises:
        SpectralError: a number is not finite, or the tower reads tokens that ComfyUI does not make.
    """
    if config.vocabulary != VOCABULARY:
        raise SpectralError(
            f"The checkpoint's text tower knows {config.vocabulary} tokens, CLIP's tokenizer makes {VOCABULARY}; "
            "choose a checkpoint trained with CLIP's tokens."
        )
    for name, tensor in weights.items():
        memory.check_finite(tensor, f"cond_stage_model.transformer.{name}")
    small = sum(tensor.numel() for tensor in weights.values()) < SMALL
    letter = _letter(config)
    with tempfile.TemporaryDirectory() as folder:
        # ComfyUI before 2025 takes the tower's shape from a file alone.
        description = Path(folder) / "text_model.json"
        description.write_text(json.dumps(_description(config)), encoding="utf-8")
        words = partial(
            comfy.sd1_clip.SDTokenizer,
            pad_with_end=config.pad_token == END,
            embedding_size=config.width,
            embedding_key=f"clip_{letter}",
        )
        target = SimpleNamespace(
            params={},
            clip=partial(_tower, config, letter=letter, description=str(description), keep_float32=small),
            tokenizer=partial(comfy.sd1_clip.SD1Tokenizer, clip_name=letter, tokenizer=words),
        )
        clip = comfy.sd.CLIP(target, embedding_directory=folder_paths.get_folder_paths("embeddings"))
    projection = {} if config.projection else {"text_projection.weight": torch.eye(config.width)}
    clip.load_sd({**weights, **projection})
    for tensor in weights.values():
        memory.release(tensor)
    patcher.counting(clip.patcher, patcher.TEXT)
    return clip


def _letter(config: ConditioningConfig) -> str:
    """The name under which core's LoRA key maps and embeddings know the tower: ViT-H of Stable Diffusion 2.x, or L."""
    return "h" if config.activation == "gelu" else "l"


def _tower(
    config: ConditioningConfig, *, letter: str, description: str, keep_float32: bool, dtype: Any, **kwargs: Any
) -> Any:
    """Core's text model in the shape of `description`; of the last layers as many are left out as `config` says."""
    # Counted from the front: from the back, core refuses all but one layer of a tower to be left out.
    last = config.layers - 1 - config.skip_last
    layers = {"layer": "hidden", "layer_idx": last} if config.skip_last else {}
    return comfy.sd1_clip.SD1ClipModel(
        dtype=torch.float32 if keep_float32 else dtype,
        textmodel_json_config=description,
        clip_name=letter,
        clip_model=comfy.sd1_clip.SDClipModel,
        special_tokens={"start": START, "end": END, "pad": config.pad_token},
        return_projected_pooled=config.projection,
        **layers,
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
        "hidden_act": config.activation,
        "eos_token_id": END,
        "vocab_size": VOCABULARY,
    }
