"""What a run remembers of its data, in files that all its processes share and that outlive it.

Images that cannot be read are named once each, and too many of them stop the run; the shards of a stream are counted.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from ...spectral.errors import SpectralError


def append(path: Path, entries: Sequence[dict[str, Any]]) -> None:
    """Add JSON lines to a file, behind a line that was cut when the run was killed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    cut = path.exists() and not (b"\n" + path.read_bytes()).endswith(b"\n")
    with path.open("a", encoding="utf-8") as file:
        file.write("\n" * cut + "".join(json.dumps(entry) + "\n" for entry in entries))


def _lines(path: Path | None) -> list[str]:
    """The lines of a file, if there is one; the last may have been cut when the run was killed."""
    return path.read_text("utf-8").split("\n") if path is not None and path.exists() else []


class CorruptLog:
    """Counts the samples that were left out, over all processes and resumed runs that share a log.

    Args:
        path: JSON lines {"file", "reason"}; None keeps count of this process alone.
        limit: as DataConfig.max_corrupt: a share below 1, or a number.
        source: what the data is called in a sentence.
    """

    def __init__(self, path: Path | None, limit: float, source: str) -> None:
        self.path, self.limit, self.source = path, limit, source
        self.known = self._read()

    def _read(self) -> dict[str, str]:
        known: dict[str, str] = {}
        for line in _lines(self.path):
            with suppress(ValueError, KeyError, TypeError):
                entry = json.loads(line)
                known[str(entry["file"])] = str(entry["reason"])
        return known

    def add(self, name: str, reason: str, seen: int) -> None:
        """Count a sample that cannot be read, of `seen` in all (of the data, or of a stream so far).

        Raises:
            SpectralError: it is one too many.
        """
        if name not in self.known:
            self.known[name] = reason
            if self.path is not None:
                append(self.path, [{"file": name, "reason": reason}])
                self.known |= self._read()
        self.check(seen)

    def check(self, seen: int) -> None:
        """Raise SpectralError where there are more than the limit allows."""
        allowed = self.limit * seen if self.limit < 1 else self.limit
        if self.known and len(self.known) > allowed:
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
        for line in _lines(path):
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
