"""What a teacher says of the outputs, kept on disk: other runs that would ask the same look it up.

What a sample meets (its latents, its step, its noise, its condition) depends on the data, the run's seed and the
sample's ordinal alone. So students of one teacher, data and seed, such as the rows of an ablation, ask the same
questions in the same order, and all but the first need no teacher. Outputs alone are kept: features would take fifty
times the space.

A folder holds, for everything that the questions hang on, NAME.json, which says what that is, and whose SHA-256 is the
name; NAME.answers, a row for every ordinal; and NAME.checks, the CRC-32 of every row. A row that does not match its
check, where a process was killed or a disk was full, counts as not there.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any
from zlib import crc32

import numpy as np
import torch
from torch import Tensor

from ...spectral.errors import SpectralError
from ..files import write_whole

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
CHECK = np.dtype("<u4")


class Answers:
    """The answers in a folder to the questions of one kind of run.

    Args:
        folder: made where it is not there.
        questions: what they hang on, as JSON has it; other questions have other files in the same folder.
        shape: of an answer, (C, h, w).

    Raises:
        SpectralError: the folder cannot be written, or what it says of these answers is damaged.
    """

    def __init__(self, folder: Path, questions: Mapping[str, Any], shape: Sequence[int]) -> None:
        self.folder, self.questions, self.shape = folder, dict(questions), tuple(shape)
        name = hashlib.sha256(json.dumps(self.questions, sort_keys=True).encode()).hexdigest()[:16]
        self._about, self._rows, self._checks = (folder / f"{name}.{end}" for end in ("json", "answers", "checks"))
        #: Of the answers; None before there is one.
        self.dtype = self._known_dtype()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for path in (self._rows, self._checks):
                path.touch()
        except OSError as error:
            raise self._unwritable(error) from error

    def count(self, samples: int) -> int:
        """How many of a run's first so many samples have answers."""
        with self._checks.open("rb") as file:
            return int(np.count_nonzero(np.frombuffer(file.read(samples * CHECK.itemsize), CHECK)))

    def recall(self, ordinals: Tensor) -> Tensor | None:
        """The answers for the samples with these ordinals, [B] int64: [B, C, h, w]; None where one is missing."""
        if self.dtype is None:
            return None
        size, found = self._bytes(self.dtype), bytearray()
        with self._rows.open("rb", buffering=0) as rows, self._checks.open("rb", buffering=0) as checks:
            for ordinal in ordinals.tolist():
                row = _read(rows, ordinal, size)
                if _read(checks, ordinal, CHECK.itemsize) != _check(row):
                    return None
                found += row
        return torch.frombuffer(found, dtype=self.dtype).view(len(ordinals), *self.shape)

    def keep(self, ordinals: Tensor, answers: Tensor) -> None:
        """Write the answers [B, C, h, w] for the samples with these ordinals, [B] int64.

        Raises:
            SpectralError: they cannot be written.
        """
        if tuple(answers.shape[1:]) != self.shape:
            raise ValueError(f"an answer of shape {tuple(answers.shape[1:])} among such of {self.shape}")
        try:
            if self.dtype is None:
                name = next(name for name, dtype in DTYPES.items() if dtype == answers.dtype)
                about = {"dtype": name, "shape": self.shape, "questions": self.questions}
                write_whole(self._about, json.dumps(about, indent=1) + "\n")
                self.dtype = answers.dtype
            size, content = self._bytes(self.dtype), answers.to("cpu", self.dtype).contiguous().view(torch.uint8)
            with self._rows.open("r+b", buffering=0) as rows, self._checks.open("r+b", buffering=0) as checks:
                for ordinal, answer in zip(ordinals.tolist(), content, strict=True):
                    row = answer.numpy().tobytes()
                    _write(rows, ordinal * size, row)
                    _write(checks, ordinal * CHECK.itemsize, _check(row))
        except OSError as error:
            raise self._unwritable(error) from error

    def _bytes(self, dtype: torch.dtype) -> int:
        """Of an answer."""
        return int(np.prod(self.shape)) * dtype.itemsize

    def _known_dtype(self) -> torch.dtype | None:
        if not self._about.exists():
            return None
        try:
            return DTYPES[json.loads(self._about.read_text())["dtype"]]
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise SpectralError(f"{self._about} is damaged; remove it, and the teacher is asked again.") from error

    def _unwritable(self, error: OSError) -> SpectralError:
        return SpectralError(
            f"The teacher's answers cannot be kept in {self.folder} ({error.strerror or error}); free some space "
            "there, set teacher_answers to another folder, or leave it out."
        )


def _check(row: bytes) -> bytes:
    """What stands for a row in the file of checks; never 0, which is where there is no row."""
    return np.array(crc32(row) or 1, CHECK).tobytes()


def _read(file: IO[bytes], place: int, size: int) -> bytes:
    """The entry of so many bytes at a place; fewer of them, or none, where the file ends before."""
    file.seek(place * size)
    return file.read(size) or b""


def _write(file: IO[bytes], start: int, content: bytes) -> None:
    """All of the content, which one call of an unbuffered file need not write."""
    file.seek(start)
    while content:
        content = content[file.write(content) :]
