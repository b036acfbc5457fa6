"""Samples as WebDataset shards: byte-identical for the same input, a fixed part held out, written whole or not."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from ...spectral.errors import SpectralError


@dataclass(frozen=True)
class Sample:
    """A picture and what is said of it.

    Args:
        key: its name, without a suffix.
        picture: a lossless WebP file.
        about: what the JSON file beside it holds; at least its "group".
    """

    key: str
    picture: bytes
    about: Mapping[str, Any]


def write(
    out: Path, sources: Iterable[str], make: Callable[[str], Sequence[Sample]], held_out: float = 0.0
) -> dict[str, Any]:
    """Write the shard `out`, and beside it, where something is held out, NAME-held-out.tar: both, or none of them.

    Args:
        out: the `.tar` to write; replaced whole.
        sources: names of what samples are cut from; those of one source are held out together.
        make: gives a source's samples; called by several threads at once.
        held_out: share of the sources that are held out, as `is_held_out` says.

    Returns:
        Counts: images, groups, bytes, and path; and, as held_out, the same of what was held out.

    Raises:
        SpectralError: as `check`; or the share leaves a part without samples. Nothing has been made then.
    """
    check(out, held_out)
    parts = _parts(out, sources, held_out)
    with _partial_files(parts) as partials:
        told = {path: _write_shard(partials[path], _made(make, part)) for path, part in parts.items()}
    counts = [{**told[path], "path": str(path)} for path in parts]
    return counts[0] | ({"held_out": counts[1]} if held_out else {})


def check(out: Path, held_out: float) -> None:
    """Refuse, before anything is fetched or made, what `write` could not end well.

    Raises:
        SpectralError: the share is none; `out` is a folder; or another build's held-out part lies beside it.
    """
    if not 0.0 <= held_out < 1.0:
        raise SpectralError(f"--held-out is {held_out:g}; expected a share from 0 (nothing) up to, but not, 1.")
    if out.is_dir():
        raise SpectralError(f"--out is {out}, which is a folder; expected the name of a .tar to write.")
    if not held_out and held_out_of(out).exists():
        raise SpectralError(
            f"{held_out_of(out)} was held out of an earlier {out.name}, and the new one would hold the same samples; "
            "remove it, set --held-out, or choose another --out."
        )


def held_out_of(out: Path) -> Path:
    """Where the samples lie that a shard leaves out."""
    return out.with_name(f"{out.stem}-held-out{out.suffix}")


def is_held_out(source: str, share: float) -> bool:
    """Whether a source is among the share that is held out: where its name's SHA-256 is among the smallest.

    A pure function of its name, so that a source stays where it is, whatever else there is; of a larger share, too.
    """
    return int.from_bytes(hashlib.sha256(source.encode()).digest()[:8], "big") < share * 2.0**64


def webp(picture: Image.Image, effort: int = 4) -> bytes:
    """A picture as a lossless WebP file; `effort` is Pillow's `method`, 0 (fast) to 6 (small)."""
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", lossless=True, quality=100, method=effort)
    return buffer.getvalue()


def _parts(out: Path, sources: Iterable[str], held_out: float) -> dict[Path, list[str]]:
    """The sources of every file to write."""
    names = sorted(sources)
    parts = {out: [name for name in names if not is_held_out(name, held_out)]}
    if held_out:
        parts[held_out_of(out)] = [name for name in names if is_held_out(name, held_out)]
    for path, part in parts.items():
        if not part:
            raise SpectralError(
                f"--held-out is {held_out:g}, which leaves nothing for {path.name}; choose another share."
            )
    return parts


def _made(make: Callable[[str], Sequence[Sample]], sources: Sequence[str]) -> list[Sample]:
    """The samples of all sources in the order of their names, by all cores (Pillow works without Python's lock)."""
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        made = [sample for samples in threads.map(make, sources) for sample in samples]
    return sorted(made, key=lambda sample: sample.key)


@contextmanager
def _partial_files(paths: Iterable[Path]) -> Iterator[dict[Path, Path]]:
    """Where to write what is moved to `paths` when all of it is whole; nothing is left where it is not."""
    partials = {path: path.with_name(path.name + ".partial") for path in paths}
    try:
        for path in partials:
            path.parent.mkdir(parents=True, exist_ok=True)
        yield partials
        for path, partial in partials.items():
            partial.replace(path)
    finally:
        for partial in partials.values():
            partial.unlink(missing_ok=True)


def _write_shard(path: Path, samples: Sequence[Sample]) -> dict[str, Any]:
    """Write a tar, and count what is in it."""
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
        for sample in samples:
            for suffix, content in ((".json", json.dumps(sample.about).encode()), (".webp", sample.picture)):
                info = tarfile.TarInfo(sample.key + suffix)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    groups = {sample.about["group"] for sample in samples}
    return {"images": len(samples), "groups": len(groups), "bytes": path.stat().st_size}
