"""Which checkpoints the loader offers, and nothing else: names in, paths inside known folders out."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import folder_paths

from ..spectral.errors import SpectralError

FOLDER = "spectral_diffusion"
EXTENSIONS = (".safetensors", ".ckpt")
#: Model folders of ComfyUI that hold single files, Model Save's among them by its old and its new name, and those in
#: which folders of diffusers are looked for.
FILE_FOLDERS = (FOLDER, "checkpoints", "diffusion_models", "unet")
DIFFUSERS_FOLDERS = (FOLDER, "checkpoints", "diffusers")
#: How many levels below a model folder a diffusers folder may lie.
DEEPEST = 3

#: The small models that come with the pack.
SHIPPED = Path(__file__).resolve().parents[1] / "workflows" / "checkpoints"
#: Of them, what a new node has chosen: every sampler can sample it.
FIRST = "emoji64-student.safetensors"


def register() -> None:
    """Make models/spectral_diffusion one of ComfyUI's model folders, beside those from extra_model_paths.yaml."""
    folder_paths.add_model_folder_path(FOLDER, os.path.join(folder_paths.models_dir, FOLDER))


def names() -> list[str]:
    """What the loader lists: the pack's own models first, then the user's files and diffusers folders, sorted."""
    shipped = (path.name for path in SHIPPED.glob("*") if path.suffix in EXTENSIONS)
    own = sorted(shipped, key=lambda name: (name != FIRST, name))
    folders = {
        found.relative_to(root).as_posix() for root in _roots(DIFFUSERS_FOLDERS) for found in _diffusers(root, DEEPEST)
    }
    inside = tuple(f"{folder}/" for folder in folders)
    listed = {name for folder in _known(FILE_FOLDERS) for name in folder_paths.get_filename_list(folder)}
    files = {
        name
        for name in listed.difference(own)
        if name.lower().endswith(EXTENSIONS) and not Path(name).as_posix().startswith(inside)
    }
    return own + sorted(files | folders)


def find(name: str) -> Path:
    """The file or folder behind a name of the list.

    Raises:
        SpectralError: there is no such model in the folders that the loader lists, or the name points out of them.
    """
    clean = inside(name)
    if clean:
        for root in (*_roots(FILE_FOLDERS), SHIPPED):
            if clean.lower().endswith(EXTENSIONS) and os.path.isfile(root / clean):
                return root / clean
        for root in _roots(DIFFUSERS_FOLDERS):
            if _is_pipeline(root / clean):
                return root / clean
    raise SpectralError(
        f"There is no checkpoint {name!r}; put the .safetensors or .ckpt file, or the diffusers folder, into "
        f"models/{FOLDER} or models/checkpoints of ComfyUI, then refresh the page (R) and choose it again."
    )


def inside(name: Any) -> str:
    """A name of a list without its detours; "" for what would lead out of a model folder, or is no name at all.

    Links that a user has put into a model folder are followed, but not left again: link/../x is x beside the link.
    """
    if not isinstance(name, str) or "\0" in name:
        return ""
    clean = os.path.normpath(name)
    leads_out = os.path.isabs(clean) or os.path.splitdrive(clean)[0] or clean.split(os.sep)[0] in ("..", ".")
    return "" if leads_out else clean


def fingerprint(*paths: Path) -> str:
    """Changes with a file, or with any file of a folder: made of names, sizes and times, so that it costs nothing."""
    parts = [
        part
        for path in paths
        for part in (sorted(path.rglob("*")) if path.is_dir() else [path])
        if part.is_file() or part == path
    ]
    seen = [(part.as_posix(), (stat := part.stat()).st_size, stat.st_mtime_ns) for part in parts]
    return hashlib.sha256(repr(seen).encode()).hexdigest()


def _roots(folders: tuple[str, ...]) -> list[Path]:
    return [Path(path) for folder in _known(folders) for path in folder_paths.get_folder_paths(folder)]


def _known(folders: tuple[str, ...]) -> list[str]:
    """Those that this version of ComfyUI has."""
    return [folder for folder in folders if folder in folder_paths.folder_names_and_paths]


def _diffusers(folder: Path, levels: int) -> Iterator[Path]:
    """The diffusers folders below `folder`; what lies inside of one is not looked at."""
    try:
        below = sorted(Path(entry.path) for entry in os.scandir(folder) if entry.is_dir())
    except OSError:
        return
    for path in below:
        if _is_pipeline(path):
            yield path
        elif levels > 1:
            yield from _diffusers(path, levels - 1)


def _is_pipeline(path: Path) -> bool:
    """Whether a folder holds a model as diffusers writes it; one with a config.json alone may be anything."""
    return any(os.path.isfile(path / name) for name in ("model_index.json", "unet/config.json"))
