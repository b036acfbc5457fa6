"""WebDataset shards on this machine: an index of their images, made in one pass, and random access ever after.

A sample is an image with its descriptions beside it under the same name: .txt (caption), .cls (class), .json.
"""

from __future__ import annotations

import glob
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

from ...spectral.errors import SpectralError
from ..decoding import SUFFIXES
from . import tar
from .records import Record, Said, said_of

DESCRIPTIONS = (".txt", ".json", ".cls")
#: No description of an image is longer, in bytes.
_LONGEST = 1 << 24


def expand(pattern: str, lists: bool = True) -> list[str]:
    """The names that braces stand for: {000..099}, and, where `lists`, {a,b}.

    Raises:
        SpectralError: a range runs down, or stands for more than a million names.
    """
    found = re.search(r"\{(\d+)\.\.(\d+)\}", pattern) or (re.search(r"\{([^{}]*,[^{}]*)\}", pattern) if lists else None)
    if found is None:
        return [pattern]
    before, behind = pattern[: found.start()], pattern[found.end() :]
    if len(found.groups()) == 2:
        first, last = found.groups()
        if not 0 <= int(last) - int(first) < 1_000_000:
            raise SpectralError(f"{found[0]} of {pattern} is no range; expected the first and the last number of it.")
        width = len(first) if first.startswith("0") else 0
        names = [f"{number:0{width}d}" for number in range(int(first), int(last) + 1)]
    else:
        names = found[1].split(",")
    return list(itertools.chain.from_iterable(expand(before + name + behind, lists) for name in names))


def named(pattern: str) -> list[Path]:
    """The shards that a path with braces, "*", "?" or "[…]" stands for, in the order of their names.

    Raises:
        SpectralError: one of them is not there, or none is.
    """
    if Path(pattern).exists():
        return [Path(pattern)]
    paths: list[Path] = []
    for name in expand(pattern):
        found = sorted(glob.glob(name)) if glob.has_magic(name) else [name]
        paths += map(Path, found)
    missing = [path for path in paths if not path.exists()]
    if missing and missing != [Path(pattern)]:
        raise SpectralError(f"No shard at {missing[0]}, of {pattern}: restore it, or leave it out of data.path.")
    if missing or not paths:
        raise SpectralError(
            f"No data at {pattern}: expected a folder of images, a .tar shard, pipe:COMMAND, or the name emoji64."
        )
    return paths


def in_shards(paths: Sequence[Path]) -> list[Record]:
    """The images of shards, shard after shard, in each in the order of their names.

    Raises:
        SpectralError: a shard cannot be read, or a description in it is none.
    """
    return [record for path in paths for record in _in_shard(path)]


def _in_shard(path: Path) -> list[Record]:
    try:
        with path.open("rb") as file:
            return _index(path, tar.Archive(file, seekable=True))
    except (tar.ArchiveError, ValueError, OSError) as error:
        raise unreadable(str(path), error) from error


def unreadable(name: str, error: Exception) -> SpectralError:
    """The sentence for a shard that is none."""
    reason = getattr(error, "strerror", None) or (str(error).splitlines() or ["it is empty"])[0].rstrip(":")
    return SpectralError(
        f"{name} cannot be read as a tar shard of images ({reason}); restore it, or leave it out of data.path."
    )


def _index(path: Path, archive: tar.Archive) -> list[Record]:
    images: dict[str, tar.Member] = {}
    descriptions: dict[str, dict[str, bytes]] = {}
    for member in archive:
        stem, suffix = split(member.name)
        if suffix in SUFFIXES:
            images[member.name] = member
        elif suffix in DESCRIPTIONS and member.size <= _LONGEST:
            descriptions.setdefault(stem, {})[suffix] = archive.read(member.size)
    records = []
    for name in sorted(images):
        stem, _ = split(name)
        (caption, *also), groups = described(name, descriptions.get(stem, {}))
        place = path, images[name].offset, images[name].size
        records.append(Record(f"{path.name}/{name}", *place, caption, groups, name, tuple(also)))
    return records


def split(name: str) -> tuple[str, str]:
    """What the files of a sample share, and the suffix, in small letters, that sets them apart."""
    suffix = PurePosixPath(name).suffix
    return name.removesuffix(suffix) if suffix else name, suffix.lower()


def described(name: str, files: Mapping[str, bytes]) -> Said:
    """What the files beside the image `name` say of it, by suffix; there always are a caption and a group.

    The .txt is the first caption, in the place of the .json's own, before the list "captions" there; where none of them
    gives any, the name is the caption.

    Raises:
        ValueError: one of them is not what its suffix says.
    """
    stem, _ = split(name)
    about = json.loads(files[".json"]) if ".json" in files else {}
    if not isinstance(about, dict):
        raise ValueError(f"{stem}.json should hold an object, not {type(about).__name__}")
    if ".txt" in files:
        about["caption"] = _text(files[".txt"], f"{stem}.txt")
    captions, groups = said_of(about)
    if ".cls" in files:
        groups = (*groups[:1], _text(files[".cls"], f"{stem}.cls"))
    path = PurePosixPath(name)
    return Said(captions or (path.stem,), groups or (path.parent.name,))


def _text(content: bytes, name: str) -> str:
    try:
        return content.decode().strip()
    except UnicodeDecodeError as error:
        raise ValueError(f"{name} is no text in UTF-8") from error
