"""safetensors files: the header is checked before the library maps the tensors.

The library refuses wrong offsets, shapes and lengths; what it lets pass (names that occur twice, headers whose reading
alone takes seconds) is refused here. Format: https://github.com/huggingface/safetensors
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import SpectralError

#: Bytes. Stable Diffusion's header has 0.2 million; merged models and embedded thumbnails a few more.
LARGEST_HEADER = 2 * 2**20
#: A checkpoint with averages and moments has some 5000.
MOST_TENSORS = 10_000
#: Bytes of the number that a file starts with: the length of its header.
_PREFIX = 8


def is_safetensors(head: bytes) -> bool:
    """Whether a file that starts with these bytes is meant as safetensors: a length, then a JSON object."""
    return len(head) > _PREFIX and head[_PREFIX : _PREFIX + 1] == b"{"


def open_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors, mapped from the file, and the texts of its metadata.

    Raises:
        SpectralError: the file is damaged or no safetensors file.
    """
    try:
        _check_header(path)
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in sorted(file.keys())}, dict(file.metadata() or {})
    except (SafetensorError, ValueError, TypeError, AttributeError, RuntimeError, RecursionError) as error:
        raise SpectralError(
            f"{path.name} is damaged or not a safetensors file ({_reason(path, error)}); download or export it again."
        ) from error


def _check_header(path: Path) -> None:
    """Refuse headers that are too long to read, and names that occur twice."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        prefix = file.read(_PREFIX)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == _PREFIX else 0
        if length > size - _PREFIX:
            raise ValueError(f"its header claims {length} bytes, the file has {size}")
        if length > LARGEST_HEADER:
            raise ValueError(f"its header has {length} bytes, more than any model's ({LARGEST_HEADER})")
        header = file.read(length)
    content = json.loads(header, object_pairs_hook=_without_twins, parse_int=_short_number)
    if isinstance(content, dict) and len(content) > MOST_TENSORS + 1:
        raise ValueError(f"it holds {len(content)} tensors, more than any model ({MOST_TENSORS})")


def _short_number(digits: str) -> int:
    if len(digits) > 20:
        raise ValueError("its header holds a number that no file reaches")
    return int(digits)


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        name = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the name {name[:200]!r} occurs twice in its header")
    return found


def _reason(path: Path, error: Exception) -> str:
    """Why a file was refused, in words for a person."""
    message = str(error)
    if path.stat().st_size == 0:
        return "it is empty"
    if "incomplete" in message.lower():
        return "it ends before its last tensor, as after an interrupted download"
    if isinstance(error, (json.JSONDecodeError, UnicodeDecodeError, RecursionError)):
        return "its header cannot be read"
    message = message.removeprefix("Error while deserializing header: ")
    return message if isinstance(error, ValueError) else f"its header cannot be read: {message}"
