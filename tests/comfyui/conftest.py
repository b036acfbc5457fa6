"""One ComfyUI server for all tests of this folder, with this repository among its custom nodes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from . import distribution, hostile_files, models, stable, staged_models
from .server import ComfyServer


@pytest.fixture(scope="session")
def comfy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComfyServer]:
    """The server; its models/spectral_diffusion holds a tiny random checkpoint of each kind."""
    folder = tmp_path_factory.mktemp("comfyui")
    prepared = distribution.prepare(folder)
    write_checkpoints(prepared.base / "models" / "spectral_diffusion")
    with ComfyServer(prepared, folder / "server.log") as server:
        yield server


@pytest.fixture(scope="session")
def object_info(comfy: ComfyServer) -> dict[str, Any]:
    """What the server says about all of its nodes."""
    info: dict[str, Any] = comfy.get("/object_info")
    return info


@pytest.fixture(scope="module")
def stable_one(comfy: ComfyServer) -> Iterator[str]:
    """A Stable Diffusion 1.x-shaped file of 0.5 GB among the server's checkpoints, for one module of tests."""
    path = stable.write_one(comfy.distribution.base / "models" / "checkpoints" / "stable-one.safetensors")
    yield path.name
    path.unlink()


@pytest.fixture(scope="session")
def staged(comfy: ComfyServer) -> Iterator[Path]:
    """models/spectral_diffusion of the server, with the students that `staged_models.write_all` writes."""
    folder = comfy.distribution.base / "models" / "spectral_diffusion"
    written = staged_models.write_all(folder)
    yield folder
    for path in written:
        path.unlink()


@pytest.fixture(scope="session")
def hostile(comfy: ComfyServer) -> None:
    """The files that attacks name, in and beside the server's model folders."""
    hostile_files.write(comfy.distribution.base)


def write_checkpoints(folder: Path) -> None:
    """text, class, none: KL-f4, 4 channels; vq: unconditional, VQ-f4, 3 channels; half: text, stored in float16."""
    for kind in ("text", "class", "none"):
        models.write(folder / f"{kind}.safetensors", kind)
    models.write(folder / "vq.safetensors", "none", models.VQ_F4)
    models.write(folder / "half.safetensors", "text", dtype=torch.float16)
