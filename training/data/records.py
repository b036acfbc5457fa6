"""What is known of a sample before it is read, and the samples of a folder of images."""

from __future__ import annotations

import csv
import io
import json
import random
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ...spectral.errors import SpectralError
from ..decoding import files_in

#: Files that describe the images beside and below them, as Hugging Face's imagefolder has them.
METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
_CAPTIONS, _LABELS = ("caption", "text", "prompt"), ("subgroup", "label", "class")


class Said(NamedTuple):
    """What is said of a sample: its captions, none twice, and its groups, as `Record` has them; either may be empty."""

    captions: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()


@dataclass(frozen=True)
class Record:
    """A sample: what it is called, where its image file lies, and what is said of it.

    Args:
        key: its name, the same wherever the data lies.
        file: the image, or the shard that holds it.
        offset, size: of the image in `file`, in bytes.
        caption: in words.
        groups: from the widest to the narrowest; the last one is the class.
        member: what a shard calls the image; "" for a file of its own.
        also: its other captions.
    """

    key: str
    file: Path
    offset: int
    size: int
    caption: str
    groups: tuple[str, ...]
    member: str = ""
    also: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """What to call the sample in a sentence."""
        return f"{self.member} in {self.file}" if self.member else str(self.file)


def chosen(groups: Sequence[str], patterns: Sequence[str]) -> bool:
    """Whether one of the groups is among `patterns`; "*" at the end of a pattern matches any ending."""
    if not patterns:
        return True
    return any(
        group == pattern or (pattern.endswith("*") and group.startswith(pattern[:-1]))
        for group in groups
        for pattern in patterns
    )


def drawn(captions: Sequence[str], seed: int, epoch: int, key: str, half: bool = False) -> str:
    """One of a sample's captions, for one epoch: all are equally likely, or the first half of them; a pure function."""
    if len(captions) == 1:
        return captions[0]
    chance = random.Random(f"{seed} {epoch} caption {key}")
    if half:
        return captions[0] if chance.random() < 0.5 else chance.choice(captions[1:])
    return chance.choice(captions)


def said_of(about: Mapping[str, Any]) -> Said:
    """What a description of an image says: the first of _CAPTIONS that it has, then the list "captions".

    What is no text is left out, and what is blank, where there is another; a mere text in the list's place (a table in
    CSV has no lists) is one caption.
    """
    own = [about[name] for name in _CAPTIONS if isinstance(about.get(name), str)][:1]
    listed = about.get("captions")
    listed = [listed] if isinstance(listed, str) else listed if isinstance(listed, list) else []
    captions = [entry for entry in (*own, *listed) if isinstance(entry, str) and entry.strip()] or own
    groups = [str(about["group"])] if about.get("group") is not None else []
    groups += [str(about[name]) for name in _LABELS if about.get(name) is not None][:1]
    return Said(tuple(dict.fromkeys(captions)), tuple(groups))


def in_folder(folder: Path) -> list[Record]:
    """The images of a folder and the folders in it, in the order of their paths.

    The captions are those that a metadata file gives, else a .txt beside the image, else its name in words. The class
    is what a metadata file gives, else the sub-folder.

    Raises:
        SpectralError: the folder or a description in it cannot be read, or describes an image that is not there.
    """
    files = files_in(folder)
    texts = {path for path in folder.rglob("*.txt")} if files else set()
    described = _metadata(folder) if files else {}
    records = []
    for file in files:
        captions, groups = described.pop(file, Said())
        if not captions:
            beside = file.with_suffix(".txt")
            captions = (read_text(beside).strip() if beside in texts else in_words(file.stem),)
        key, groups = file.relative_to(folder).as_posix(), groups or (file.parent.name,)
        records.append(Record(key, file, 0, _size(file), captions[0], groups, also=captions[1:]))
    for missing in described:
        raise SpectralError(
            f"{missing} is described in the metadata of {folder}, but is no image there; restore it, or remove its row."
        )
    return records


def in_words(stem: str) -> str:
    """A file's name as a caption."""
    return re.sub("[_-]", " ", stem)


def read_prompts(path: Path) -> list[str]:
    """The lines of a file that are not empty: captions, or names of classes.

    Raises:
        SpectralError: there are none, or it cannot be read as text in UTF-8.
    """
    try:
        lines = path.read_text("utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.reason if isinstance(error, UnicodeDecodeError) else error.strerror
        raise SpectralError(f"{path} cannot be read ({reason}); expected a text file with a caption a line.") from error
    prompts = [line.strip() for line in lines if line.strip()]
    if not prompts:
        raise SpectralError(f"{path} is empty; expected a text file with a caption on every line.")
    return prompts


def read_text(path: Path) -> str:
    """The caption in a file.

    Raises:
        SpectralError: it is no text in UTF-8, or cannot be read.
    """
    try:
        return path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise SpectralError(f"{path} is no caption: expected text in UTF-8 ({error.reason}).") from error
    except OSError as error:
        raise SpectralError(f"{path} cannot be read ({error.strerror}); check its permissions.") from error


def _size(file: Path) -> int:
    """Of a file in bytes; 0 for one that cannot be asked, which will be found corrupt."""
    try:
        return file.stat().st_size
    except OSError:
        return 0


def _metadata(folder: Path) -> dict[Path, Said]:
    """What a metadata file says of the images that it describes."""
    described = {}
    for path in sorted(path for name in METADATA for path in folder.rglob(name)):
        for number, row in enumerate(_rows(path), 1):
            named = row.get("file_name")
            if not isinstance(named, str):
                raise SpectralError(
                    f"Row {number} of {path} has no file_name; expected the image's path beside {path.name}."
                )
            described[path.parent / named] = said_of(row)
    return described


def _rows(path: Path) -> Iterator[Mapping[str, Any]]:
    """The rows of a metadata file."""
    try:
        if path.suffix == ".parquet":
            yield from _parquet(path)
        elif path.suffix == ".csv":
            yield from csv.DictReader(io.StringIO(path.read_text("utf-8-sig"), newline=""))
        else:
            yield from _json_lines(path.read_text("utf-8").split("\n"))
    except (OSError, ValueError, csv.Error) as error:
        if isinstance(error, SpectralError):
            raise
        reason = (str(error).splitlines() or [""])[0]
        raise SpectralError(f"{path} cannot be read as a table of images and captions ({reason}).") from error


def _json_lines(lines: Iterable[str]) -> Iterator[Mapping[str, Any]]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        row = json.loads(line)
        if not isinstance(row, dict):
            raise ValueError(f"line {number} is no object")
        yield row


def _parquet(path: Path) -> list[Mapping[str, Any]]:
    """Only the columns that are used: a data set may carry its images beside them."""
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise SpectralError(
            f"{path} needs pyarrow to be read; run: pip install pyarrow, or make it a metadata.jsonl."
        ) from error
    try:
        names = set(parquet.read_schema(path).names)
        wanted = [name for name in ("file_name", "group", "captions", *_CAPTIONS, *_LABELS) if name in names]
        rows: list[Mapping[str, Any]] = parquet.read_table(path, columns=wanted).to_pylist()
    except ArrowException as error:
        raise ValueError(error) from error
    return rows
