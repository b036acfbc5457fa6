"""Archives of torch.save (.ckpt, .pt, .bin): read with `weights_only`, mapped, and nothing in them is ever run."""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import SpectralError
from . import pickle_check
from .pickle_check import RefusedPickleError
from .zip_directory import ProgramError, Record, read_directory

_PICKLE = "data.pkl"


def is_archive(head: bytes) -> bool:
    """Whether a file that starts with these bytes is a zip archive, as torch.save writes since PyTorch 1.6."""
    return head.startswith(b"PK\x03\x04")


def open_archive(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors of the state dict, mapped from the file; what Lightning keeps beside it is left out.

    Raises:
        SpectralError: the file is damaged, no torch.save archive, or wants to name or run something.
    """
    try:
        records = read_directory(path)
        inert = _check(path, records)
        with _stubs(inert):
            content = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
        return _tensors(content, path.stat().st_size), {}
    except (RefusedPickleError, ProgramError) as error:
        raise SpectralError(
            f"{path.name} is refused: {error}; get the model as .safetensors, or from a source that you trust."
        ) from error
    except OSError:
        raise
    # torch's and Python's readers raise almost anything on damaged bytes.
    except Exception as error:
        raise SpectralError(
            f"{path.name} is damaged or not a file of torch.save ({_reason(error)}); download or save it again."
        ) from error


def _check(path: Path, records: dict[str, Record]) -> set[str]:
    """That the archive holds weights and nothing else; returns the names that empty classes are to stand for."""
    pickle = records.get(_PICKLE)
    if pickle is None:
        raise ValueError(f"it is a zip archive without {_PICKLE}")
    if pickle.size > pickle_check.LARGEST_PICKLE:
        raise RefusedPickleError(f"its {_PICKLE} has {pickle.size} bytes, more than any model's")
    with open(path, "rb") as file:
        if "byteorder" in records and _read(file, records["byteorder"])[:16].strip() != b"little":
            raise RefusedPickleError("its numbers are in big-endian order")
        storages, inert = pickle_check.check(_read(file, pickle))
    for storage in storages:
        if storage.record not in records:
            raise ValueError(f"its record {storage.record[:200]!r} is missing")
        if records[storage.record].size != storage.size:
            raise ValueError(
                f"its record {storage.record!r} has {records[storage.record].size} bytes where {storage.size} are meant"
            )
    return inert


def _read(file: Any, record: Record) -> bytes:
    file.seek(record.offset)
    content: bytes = file.read(min(record.size, pickle_check.LARGEST_PICKLE))
    return content


class _Inert:
    """In place of a Lightning callback or a number of numpy: takes whatever it is given, keeps and does nothing."""

    def __new__(cls, *_arguments: Any) -> _Inert:
        return super().__new__(cls)

    def __init__(self, *_arguments: Any) -> None:
        pass

    def __setstate__(self, _state: Any) -> None:
        pass


def _stubs(names: Iterable[str]) -> AbstractContextManager[Any]:
    """Lets torch.load read the named classes, each as an empty one."""
    stubs: list[Any] = []
    for name in names:
        module, _, last = name.rpartition(".")
        stubs.append(type(last, (_Inert,), {"__module__": module, "__qualname__": last}))
    return torch.serialization.safe_globals(stubs) if stubs else nullcontext()


def _tensors(content: Any, size: int) -> dict[str, Tensor]:
    """The tensors of a state dict, bare or under "state_dict", none of them larger than what the file holds."""
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict):
        raise ValueError(f"it holds a {type(content).__name__} in place of a state dict")
    tensors = {
        name: value.detach()
        for name, value in content.items()
        if isinstance(name, str) and isinstance(value, Tensor) and value.layout == torch.strided
    }
    if not tensors:
        raise ValueError("its state dict holds no tensors")
    for name, tensor in tensors.items():
        if tensor.nbytes > tensor.untyped_storage().nbytes():
            raise ValueError(f"the tensor {name[:200]!r} claims more numbers than it has")
    if sum(tensor.nbytes for tensor in tensors.values()) > 2 * size:
        raise ValueError("its tensors claim more numbers than the file has")
    return tensors


def _reason(error: Exception) -> str:
    """Why an archive was refused, in words for a person."""
    if isinstance(error, zipfile.BadZipFile):
        return f"it is no whole zip archive: {error}"
    if isinstance(error, struct.error):
        return "it ends in the middle"
    first = (str(error).splitlines() or [""])[0]
    return first[:200].rstrip(". ") if isinstance(error, ValueError) and first else "its contents cannot be read"
