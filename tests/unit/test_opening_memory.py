"""What opening a large checkpoint costs in memory: its file is mapped, and the model is filled in place."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from spectral_diffusion.spectral import autoencoder
from spectral_diffusion.spectral.presets import PRESETS
from spectral_diffusion.spectral.unet import UNet

from . import ldm_files

#: Opens a file and prints bytes of memory before and at the peak.
PROGRAM = """
import json, re, sys
from spectral_diffusion.spectral import checkpoint
def peak(): return int(re.search(r"VmHWM:\\s*(\\d+)", open("/proc/self/status").read())[1]) * 1024
before = peak()
file = checkpoint.read(sys.argv[1])
mapped = peak()
opened = checkpoint.load(sys.argv[1])
print(json.dumps([before, mapped, peak(), sum(p.nbytes for p in opened.unet.parameters())]))
"""


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    """An LDM teacher of 0.5 GB: ffhq256's network with fewer channels, and its first stage."""
    with torch.device("meta"):
        unet = UNet(replace(PRESETS["ffhq256"].unet, model_channels=96))
        stage = autoencoder.build(PRESETS["ffhq256"].first_stage)
    named = {f"model.diffusion_model.{key}": value for key, value in unet.state_dict().items()}
    named |= {f"first_stage_model.{key}": value for key, value in stage.state_dict().items()}
    return {key: torch.randn(value.shape) for key, value in named.items()}


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is measured as Linux counts it")
@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
def test_opening_takes_less_than_1_3_times_the_file(
    suffix: str, state: dict[str, torch.Tensor], tmp_path: Path, figures: list[str]
) -> None:
    path = ldm_files.write(tmp_path / f"teacher{suffix}", state)
    done = subprocess.run([sys.executable, "-c", PROGRAM, str(path)], capture_output=True, text=True, check=True)
    before, mapped, peak, weights = json.loads(done.stdout)
    size = path.stat().st_size
    figures.append(
        f"opening {size / 2**20:.0f} MiB of {suffix}: {(peak - before) / size:.2f} × its size at the peak, "
        f"{(mapped - before) / size:.2f} × to read what it is"
    )
    assert weights > 0.3 * size
    assert mapped - before < 0.1 * size and peak - before < 1.3 * size
