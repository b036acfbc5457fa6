"""Images that cannot be read: each is named once in the run's `corrupt.log`, and too many of them stop the run."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

from ...spectral.errors import SpectralError


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
        if self.path is None or not self.path.exists():
            return known
        for line in self.path.read_text("utf-8").splitlines():
            with suppress(ValueError, KeyError, TypeError):  # a line that was cut when the run was killed
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
                self.path.parent.mkdir(parents=True, exist_ok=True)
                with self.path.open("a", encoding="utf-8") as file:
                    file.write("\n" * self._cut() + json.dumps({"file": name, "reason": reason}) + "\n")
                self.known |= self._read()
        self.check(seen)

    def _cut(self) -> bool:
        """Whether the last line was cut when the run was killed."""
        assert self.path is not None
        content = self.path.read_bytes()
        return bool(content) and not content.endswith(b"\n")

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
