"""Weights kept in half precision and cast layer by layer, as on small graphics cards."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from . import distribution, prompts
from .conftest import write_checkpoints
from .prompts import SAVE
from .server import ComfyServer


@pytest.mark.parametrize("flag", ["--fp16-unet", "--bf16-unet"])
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
