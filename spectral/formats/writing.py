"""Files of tensors, whole or not at all."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from ..errors import SpectralError


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A name beside `path` to write to; what was written takes its place at the end, or is removed after an error.

    Raises:
        SpectralError: the folder cannot be written, or the metadata is not text.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        partial.replace(path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        if isinstance(error, (OSError, SafetensorError, TypeError, UnicodeError, RuntimeError)):
            raise SpectralError(
                f"{path} could not be written ({error}); choose a folder that you may write to."
            ) from error
        raise


def stored(tensors: Mapping[str, Tensor], dtype: torch.dtype | None) -> dict[str, Tensor]:
    """The tensors as files keep them: on the CPU, contiguous, floating ones in `dtype` (None: as they are).

    No two of them share memory, and none is part of a larger one, as safetensors wants it; files of torch.save may tie
    weights together.
    """
    kept: dict[str, Tensor] = {}
    taken: set[int] = set()
    for name, tensor in tensors.items():
        number = dtype if dtype and tensor.is_floating_point() else tensor.dtype
        copy = tensor.detach().to("cpu", number).contiguous()
        memory = copy.untyped_storage()
        if memory.nbytes() != copy.nbytes or memory.data_ptr() in taken:
            copy = copy.clone()
        taken.add(copy.untyped_storage().data_ptr())
        kept[name] = copy
    return kept


def write_safetensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a .safetensors file; no two tensors may share memory.

    Raises:
        SpectralError: the folder cannot be written, or the metadata is not text.
    """
    with whole(path) as partial:
        partial.touch()  # with the mode that the umask gives; the writer below would make it private
        mode = partial.stat().st_mode
        save_file(dict(tensors), partial, dict(metadata))
        partial.chmod(mode)
