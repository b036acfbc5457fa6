"""Weights kept in half precision and cast layer by layer, as on small graphics cards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from spectral_diffusion.spectral import checkpoint
from spectral_diffusion.spectral.formats.source import UNET

from . import distribution, prompts
from .conftest import write_checkpoints
from .prompts import LOADER, SAMPLER, SAVE, node
from .results import latents, sample, succeed
from .server import ComfyServer


@pytest.mark.parametrize(
    "flag", ["--fp16-unet", "--bf16-unet", pytest.param("--fp8_e4m3fn-unet", marks=pytest.mark.long)]
)
def test_half_precision_weights_give_nearly_the_same_image(comfy: ComfyServer, tmp_path: Path, flag: str) -> None:
    prepared = distribution.prepare(tmp_path)
    write_checkpoints(prepared.base / "models" / "spectral_diffusion")
    with ComfyServer(prepared, tmp_path / "server.log", [flag]) as half:
        for kind in ("text", "none"):
            images = []
            for server in (comfy, half):
                run = server.run(prompts.generate(kind, seed=11, steps=5))
                assert run.error is None, run.message
                images.append(np.asarray(server.image(run.outputs[SAVE]["images"][0])).astype(float))
            assert 0 < np.abs(images[0] - images[1]).mean() < 16
        assert_saved_as_it_runs(half, prepared.base / "models" / "checkpoints" / "saved.safetensors")


def assert_saved_as_it_runs(half: ComfyServer, path: Path) -> None:
    """What such a server saves has its weights in its precision, or in float16, and samples the same."""
    made = sample("text")
    saver = node("CheckpointSave", model=[LOADER, 0], clip=[LOADER, 1], vae=[LOADER, 2], filename_prefix="half/model")
    succeed(half, {**made, "save": saver})
    (written,) = (half.distribution.base / "output" / "half").iterdir()
    written.rename(path)
    again = {**made, LOADER: node("SpectralDiffusionLoadCheckpoint", checkpoint=path.name)}
    assert torch.equal(latents(half, made)[0], latents(half, again)[0])
    weights = checkpoint.read(path).part(UNET)
    assert {tensor.dtype for tensor in weights.values()} <= {torch.float16, torch.bfloat16}


@pytest.mark.parametrize("kind", ["text", "none"])
def test_the_network_computes_in_half_precision(comfy: ComfyServer, object_info: dict[str, Any], kind: str) -> None:
    """As on graphics cards: nothing on the way is left in float32 that meets a half."""
    if "ModelComputeDtype" not in object_info:
        pytest.skip("this version of ComfyUI cannot be told how to compute")
    made = sample(kind)
    names = ["bf16", "fp16", "fp32"]
    for name in names:
        made[f"computing {name}"] = node("ModelComputeDtype", model=[LOADER, 0], dtype=name)
        made[name] = node("KSampler", **{**made[SAMPLER]["inputs"], "model": [f"computing {name}", 0]})
    *halves, single = latents(comfy, made, names)
    for half in halves:
        assert 0 < (half - single).abs().max() < 0.1 * single.abs().max()
