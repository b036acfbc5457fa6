"""What a run remembers of its data, in files that all its processes share and that outlive it.

Images that cannot be read are named once each, and too many of them stop the run; the shards of a stream are counted.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from ...spectral.errors import SpectralError

#: Samples below which a share of corrupt ones says nothing.
JUDGED = 1000


def append(path: Path, entries: Sequence[dict[str, Any]]) -> None:
    """Add JSON lines to a file, behind a line that was cut when the run was killed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+") as file:
        end = file.seek(0, os.SEEK_END)
        file.seek(max(0, end - 1))
        cut = file.read(1) not in (b"", b"\n")
        file.write(("\n" * cut + "".join(json.dumps(entry) + "\n" for entry in entries)).encode())


def _lines(path: Path | None, start: int = 0) -> tuple[list[str], int]:
    """The lines of a file from a byte on, if there is one, and where they end; the last may have been cut when the run
    was killed, or not be whole yet."""
    if path is None or not path.exists():
        return [], 0
    with path.open("rb") as file:
        file.seek(start)
        content = file.read()
    return content.decode("utf-8", "replace").split("\n"), start + content.rfind(b"\n") + 1


def most_corrupt(limit: float, count: int) -> float:
    """How many of `count` samples may be corrupt.

    Args:
        limit: a number, or, below 1, a share: of the samples, or of `JUDGED` where there are fewer, up to a quarter of
            them.
    """
    return limit if limit >= 1 else min(limit * max(count, JUDGED), max(limit, 0.25) * count)


class CorruptLog:
    """Counts the samples that were left out, over all processes and resumed runs that share a log.

    Args:
        path: JSON lines {"file", "reason"}; None keeps count of this process alone.
        limit: as DataConfig.max_corrupt: a share below 1, or a number.
        source: what the data is called in a sentence.
    """

    def __init__(self, path: Path | None, limit: float, source: str) -> None:
        self.path, self.limit, self.source = path, limit, source
        self.known: dict[str, str] = {}
        self._end = 0
        self._read()

    def _read(self) -> None:
        """Learn what has been added to the file."""
        lines, self._end = _lines(self.path, self._end)
        for line in lines:
            with suppress(ValueError, KeyError, TypeError):
                entry = json.loads(line)
                self.known.setdefault(str(entry["file"]), str(entry["reason"]))

    def add(self, found: Sequence[tuple[str, str]], seen: int, write: bool = True) -> None:
        """Count samples that cannot be read, by name and reason.

        Args:
            seen: how many there are in all, of the data, or of a stream so far.
            write: name them in the file; not where another process does.

        Raises:
            SpectralError: there are too many now.
        """
        if not found:
            return
        self._read()
        new = {name: reason for name, reason in found if name not in self.known}
        self.known |= new
        if new and write and self.path is not None:
            append(self.path, [{"file": name, "reason": reason} for name, reason in new.items()])
        self.check(seen)

    def check(self, seen: int) -> None:
        """Raise SpectralError where there are more than the limit allows."""
        if self.known and len(self.known) > most_corrupt(self.limit, seen):
            where = f"; all are named in {self.path}" if self.path is not None else ""
            name, reason = next(reversed(self.known.items()))
            told = reason if name in reason else f"{name}: {reason}"
            raise SpectralError(
                f"{len(self.known)} of the images of {self.source} cannot be read, more than data.max_corrupt "
                f"{self.limit:g} allows{where}; the last one: {told}"
            )


class ShardCounts:
    """How many samples the shards of a stream have, as far as they have been read; a resumed run passes over them.

    Args:
        path: JSON lines {"shard", "samples"}; None remembers nothing.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.known: dict[int, int] = {}
        for line in _lines(path)[0]:
            with suppress(ValueError, KeyError, TypeError):
                entry = json.loads(line)
                self.known[int(entry["shard"])] = int(entry["samples"])
        self._written = set(self.known)

    def add(self, counted: Sequence[tuple[int, int]]) -> None:
        """Keep what was counted."""
        new = {shard: samples for shard, samples in counted if shard not in self._written}
        self.known |= new
        self._written |= set(new)
        if new and self.path is not None:
            append(self.path, [{"shard": shard, "samples": samples} for shard, samples in new.items()])
