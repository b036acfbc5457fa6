"""Which checkpoint files the loader offers, and nothing else: names in, paths inside known folders out."""

from __future__ import annotations

import os
from pathlib import Path

import folder_paths

from ..spectral import checkpoint
from ..spectral.errors import SpectralError

FOLDER = "spectral_diffusion"
EXTENSIONS = (".safetensors",)

#: The small models that come with the pack.
SHIPPED = Path(__file__).resolve().parents[1] / "workflows" / "checkpoints"

_hashes: dict[str, tuple[tuple[int, int], str]] = {}


def register() -> None:
    """Make models/spectral_diffusion one of ComfyUI's model folders, beside those from extra_model_paths.yaml."""
    folder_paths.add_model_folder_path(FOLDER, os.path.join(folder_paths.models_dir, FOLDER))


def names() -> list[str]:
    """What the loader lists: the pack's own models first, then the user's, sorted."""
    own = sorted(path.name for path in SHIPPED.glob("*") if path.suffix in EXTENSIONS)
    listed = {name for folder in (FOLDER, "checkpoints") for name in folder_paths.get_filename_list(folder)}
    return own + sorted(name for name in listed.difference(own) if name.lower().endswith(EXTENSIONS))


def find(name: str) -> Path:
    """The file behind a name of the list.

    Raises:
        SpectralError: there is no such file in the folders that the loader lists, or the name points out of them.
    """
    clean = os.path.normpath(name)
    inside = not os.path.isabs(clean) and not clean.startswith("..") and clean.lower().endswith(EXTENSIONS)
    folders = [Path(path) for folder in (FOLDER, "checkpoints") for path in folder_paths.get_folder_paths(folder)]
    for folder in (*folders, SHIPPED):
        if inside and (folder / clean).is_file():
            return folder / clean
    raise SpectralError(
        f"There is no checkpoint {name!r}; put the .safetensors file into models/{FOLDER} or "
        "models/checkpoints of ComfyUI, then refresh the page (R) and choose it again."
    )


def sha256(path: Path) -> str:
    """Hash of the file's content, read again only when its size or time of change differ."""
    stat = path.stat()
    stamp = (stat.st_mtime_ns, stat.st_size)
    known = _hashes.get(str(path))
    if known is None or known[0] != stamp:
        known = (stamp, checkpoint.sha256(path))
        _hashes[str(path)] = known
    return known[1]
