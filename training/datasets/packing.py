"""Samples as WebDataset shards: byte-identical for the same input, a fixed part held out, written whole or not."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from PIL import Image

from ...spectral.errors import SpectralError

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class Sample:
    """A picture and what is said of it.

    Args:
        key: its name, without a suffix.
        picture: a lossless WebP file.
        about: what the JSON file beside it holds.
        source: what it was cut from; samples of one source are held out together.
    """

    key: str
    picture: bytes
    about: dict[str, Any]
    source: str


def write(out: Path, samples: Iterable[Sample], held_out: float = 0.0) -> dict[str, Any]:
    """Write the shard `out`, and beside it, where some samples are held out, NAME-held-out.tar.

    Args:
        out: the `.tar` to write; replaced whole.
        held_out: share of the sources that are held out: those whose name's SHA-256 is among the smallest, the same
            ones whatever else there is.

    Returns:
        Counts: images, groups, bytes; and path, and the same of what was held out.

    Raises:
        SpectralError: the share is none, or leaves a part without samples.
    """
    if not 0.0 <= held_out < 1.0:
        raise SpectralError(f"--held-out is {held_out:g}; expected a share from 0 (nothing) up to, but not, 1.")
    ordered = sorted(samples, key=lambda sample: sample.key)
    parts = {out: [sample for sample in ordered if not is_held_out(sample.source, held_out)]}
    if held_out:
        parts[held_out_of(out)] = [sample for sample in ordered if is_held_out(sample.source, held_out)]
    for path, part in parts.items():
        if not part:
            raise SpectralError(
                f"--held-out is {held_out:g}, which leaves nothing for {path.name}; choose another share."
            )
    for path, part in parts.items():
        _write_shard(path, part)
    told = [_told(path, part) for path, part in parts.items()]
    return told[0] | ({"held_out": told[1]} if held_out else {})


def held_out_of(out: Path) -> Path:
    """Where the samples lie that a shard leaves out."""
    return out.with_name(f"{out.stem}-held-out{out.suffix}")


def is_held_out(source: str, share: float) -> bool:
    """Whether a source is among the share that is held out: a pure function of its name."""
    return int.from_bytes(hashlib.sha256(source.encode()).digest()[:8], "big") < share * 2.0**64


def webp(picture: Image.Image, method: int = 4) -> bytes:
    """A picture as a lossless WebP file; `method` is the effort, 0 to 6."""
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", lossless=True, quality=100, method=method)
    return buffer.getvalue()


def each(make: Callable[[T], R], items: Iterable[T]) -> list[R]:
    """What `make` gives for every item, in their order, by all cores (Pillow works without Python's lock)."""
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        return list(threads.map(make, items))


def _told(path: Path, samples: Sequence[Sample]) -> dict[str, Any]:
    groups = {sample.about["group"] for sample in samples}
    return {"images": len(samples), "groups": len(groups), "bytes": path.stat().st_size, "path": str(path)}


def _write_shard(out: Path, samples: Sequence[Sample]) -> None:
    """Write the tar beside its place and move it there when it is whole."""
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(out.name + ".partial")
    try:
        with tarfile.open(partial, "w", format=tarfile.USTAR_FORMAT) as archive:
            for sample in samples:
                for suffix, content in ((".json", json.dumps(sample.about).encode()), (".webp", sample.picture)):
                    info = tarfile.TarInfo(sample.key + suffix)
                    info.size = len(content)
                    archive.addfile(info, io.BytesIO(content))
        partial.replace(out)
    finally:
        partial.unlink(missing_ok=True)
