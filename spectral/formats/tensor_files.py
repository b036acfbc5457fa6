"""Any single file of tensors, recognised by its first bytes: safetensors, or an archive of torch.save."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from ..errors import SpectralError
from .safetensors_file import MOST_TENSORS, is_safetensors, open_safetensors
from .torch_file import is_archive, open_archive

#: The names under which such files are offered to a user.
EXTENSIONS = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")

#: A checkpoint has names of 100 characters and 4 axes.
LONGEST_NAME, MOST_AXES = 400, 8
#: Weights are floating; buffers may be whole numbers.
DTYPES = {
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.bool,
}


def open_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a file by name, mapped and not copied, and the texts beside them (safetensors only).

    Raises:
        SpectralError: there is no such file, it cannot be read, or it is damaged or of another kind.
    """
    try:
        head = _head(path)
        if is_archive(head):
            return _checked(path.name, *open_archive(path))
        if is_safetensors(head) or path.suffix.lower() == ".safetensors":
            return _checked(path.name, *open_safetensors(path))
    except OSError as error:
        raise SpectralError(
            f"{path.name} cannot be opened ({error.strerror or error}); check the path and its permissions."
        ) from error
    if path.suffix.lower() in EXTENSIONS:
        raise SpectralError(f"{path.name} is {_kind(head)}; expected .safetensors, or a .ckpt that torch.save wrote.")
    raise SpectralError(
        f"{path.name} is not a file of weights; expected a .safetensors or .ckpt file, or a diffusers folder."
    )


def _checked(
    name: str, tensors: dict[str, Tensor], metadata: dict[str, str]
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """What a file holds, unless it is more, longer or of stranger numbers than any model has."""
    if len(tensors) > MOST_TENSORS:
        raise SpectralError(f"{name} holds {len(tensors)} tensors; expected {MOST_TENSORS} at most, get another file.")
    for key, tensor in tensors.items():
        if len(key) > LONGEST_NAME or tensor.dim() > MOST_AXES:
            raise SpectralError(
                f"{name}: tensor {key[:80]!r} has a name of {len(key)} characters and {tensor.dim()} axes; expected at "
                f"most {LONGEST_NAME} and {MOST_AXES}, get another file."
            )
        if tensor.dtype not in DTYPES:
            raise SpectralError(
                f"{name}: tensor {key!r} is {tensor.dtype}; expected float32, float16 or bfloat16, convert the file."
            )
    return tensors, metadata


def _head(path: Path) -> bytes:
    """The first bytes of a regular file."""
    try:
        if not path.exists():
            raise SpectralError(f"No checkpoint at {path}; check the path.")
    except RuntimeError as error:  # Python before 3.13 on links that lead in a circle
        raise SpectralError(f"{path} is a link that leads to itself; check the path.") from error
    if path.is_dir():
        raise SpectralError(
            f"{path} is a folder without a diffusers model; expected a .safetensors or .ckpt file, or a folder with "
            "model_index.json."
        )
    if not path.is_file():
        raise SpectralError(f"{path} is neither a file nor a folder; expected a .safetensors or .ckpt file.")
    with open(path, "rb") as file:
        return file.read(64)


def _kind(head: bytes) -> str:
    """What a file that is no model seems to be."""
    if not head:
        return "empty"
    if head.lstrip()[:1] == b"<":
        return "a web page, perhaps of an error in place of the download"
    if head.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer, not the file itself (fetch it with git lfs pull)"
    if head[:2] in (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05") or b"ustar" in head:
        return "a pickle or an archive from before PyTorch 1.6 (load and save it again with a current torch.save)"
    return "damaged or of another kind"
