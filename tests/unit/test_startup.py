"""What importing the package brings along: ComfyUI waits for it at its start, and a person for every command."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = {"torch._dynamo", "scipy", "matplotlib", "diffusers", "transformers", "open_clip", "torchvision", "triton"}


def brought(module: str, names: set[str]) -> set[str]:
    """Which of these modules a fresh Python has after importing one."""
    program = f"import sys, {module}; print(*({names!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd="/")
    return set(done.stdout.split())


def test_the_package_itself_brings_no_torch() -> None:
    assert not brought("spectral_diffusion", {"torch", "numpy", "PIL", "pywt", "accelerate"})


@pytest.mark.parametrize(
    "module",
    [
        "spectral.checkpoint",
        "spectral.unet",
        "spectral.spectrum",
        "spectral.fdm",
        "training.sample",
        "training.inspect",
    ],
)
def test_no_part_brings_what_it_may_never_need(module: str) -> None:
    assert not brought(f"spectral_diffusion.{module}", HEAVY)


def test_opening_a_checkpoint_brings_no_compiler() -> None:
    """Modules without memory are not filled, which torch does by way of its compiler."""
    path = Path(__file__).parents[2] / "workflows" / "checkpoints" / "emoji64-student.safetensors"
    load = f"from spectral_diffusion.spectral import checkpoint; checkpoint.load({str(path)!r})"
    program = f"import sys; {load}; print('torch._dynamo' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd="/")
    assert done.stdout.split() == ["False"]
