"""What a teacher answers, outputs and features, kept on disk: other runs that would ask the same look it up.

What a sample meets (its latents, its step, its noise, its condition) depends on the data, the run's seed and the
sample's ordinal alone. So students of one teacher, data and seed, such as the rows of an ablation, ask the same
questions in the same order, and all but the first need no teacher.

A folder holds, for everything that the questions hang on, NAME.json, which says what that is, and whose SHA-256 is the
name; NAME.answers, a row for every ordinal, the output and then the features; and NAME.checks, the CRC-32 of every row.
A row that does not match its check, where a process was killed or a disk was full, counts as not there.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple
from zlib import crc32

import numpy as np
import torch
from torch import Tensor

from ...spectral.errors import SpectralError
from ..files import write_whole

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
CHECK = np.dtype("<u4")


class Kind(NamedTuple):
    """How a tensor of an answer lies in memory: sums over it are those of the teacher's own to the last bit."""

    dtype: torch.dtype
    channels_last: bool

    @classmethod
    def of(cls, tensor: Tensor) -> Kind:
        last = tensor.is_contiguous(memory_format=torch.channels_last) and not tensor.is_contiguous()
        return cls(tensor.dtype, last)

    @classmethod
    def read(cls, told: Mapping[str, Any]) -> Kind:
        """What `told` gave; raises LookupError or TypeError where it is something else."""
        return cls(DTYPES[told["dtype"]], bool(told["channels_last"]))

    def told(self) -> dict[str, Any]:
        """As JSON has it."""
        name = next(name for name, dtype in DTYPES.items() if dtype == self.dtype)
        return {"dtype": name, "channels_last": self.channels_last}

    @property
    def layout(self) -> torch.memory_format:
        return torch.channels_last if self.channels_last else torch.contiguous_format


class Answers:
    """The answers in a folder to the questions of one kind of run.

    Args:
        folder: made where it is not there.
        questions: what they hang on, as JSON has it; other questions have other files in the same folder.
        shapes: of the tensors that an answer consists of, (C, h, w) each.

    Raises:
        SpectralError: the folder cannot be written, or what it says of these answers is damaged.
    """

    def __init__(self, folder: Path, questions: Mapping[str, Any], shapes: Sequence[Sequence[int]]) -> None:
        self.folder, self.questions, self.shapes = folder, dict(questions), [tuple(shape) for shape in shapes]
        name = hashlib.sha256(json.dumps(self.questions, sort_keys=True).encode()).hexdigest()[:16]
        self._about, self._rows, self._checks = (folder / f"{name}.{end}" for end in ("json", "answers", "checks"))
        #: Of the tensors of an answer; None before there is one.
        self.kinds = self._known_kinds()
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

    def recall(self, ordinals: Tensor) -> list[Tensor] | None:
        """The answers for the samples with these ordinals, [B] int64: [B, C, h, w] each; None where one is missing."""
        if self.kinds is None:
            return None
        sizes, found = self._sizes(self.kinds), bytearray()
        with self._rows.open("rb", buffering=0) as rows, self._checks.open("rb", buffering=0) as checks:
            for ordinal in ordinals.tolist():
                row = _read(rows, ordinal, sum(sizes))
                if _read(checks, ordinal, CHECK.itemsize) != _check(row):
                    return None
                found += row
        parts = torch.frombuffer(found, dtype=torch.uint8).view(len(ordinals), -1).split(sizes, dim=1)
        return [
            part.contiguous().view(kind.dtype).view(-1, *shape).contiguous(memory_format=kind.layout)
            for part, kind, shape in zip(parts, self.kinds, self.shapes, strict=True)
        ]

    def keep(self, ordinals: Tensor, answers: Sequence[Tensor]) -> None:
        """Write the answers, [B, C, h, w] each, for the samples with these ordinals, [B] int64.

        Raises:
            SpectralError: they cannot be written.
        """
        found = [tuple(part.shape[1:]) for part in answers]
        if found != self.shapes:
            raise ValueError(f"an answer of shapes {found} among such of {self.shapes}")
        try:
            if self.kinds is None:
                kinds = [Kind.of(part) for part in answers]
                told = [{**kind.told(), "shape": shape} for kind, shape in zip(kinds, self.shapes, strict=True)]
                write_whole(self._about, json.dumps({"tensors": told, "questions": self.questions}, indent=1) + "\n")
                self.kinds = kinds
            size, content = sum(self._sizes(self.kinds)), self._rows_of(answers, self.kinds)
            with self._rows.open("r+b", buffering=0) as rows, self._checks.open("r+b", buffering=0) as checks:
                for ordinal, answer in zip(ordinals.tolist(), content, strict=True):
                    row = answer.numpy().tobytes()
                    _write(rows, ordinal * size, row)
                    _write(checks, ordinal * CHECK.itemsize, _check(row))
        except OSError as error:
            raise self._unwritable(error) from error

    def _sizes(self, kinds: Sequence[Kind]) -> list[int]:
        """Bytes of each tensor of an answer."""
        return [int(np.prod(shape)) * kind.dtype.itemsize for shape, kind in zip(self.shapes, kinds, strict=True)]

    def _rows_of(self, answers: Sequence[Tensor], kinds: Sequence[Kind]) -> Tensor:
        """As they are written, [B, bytes] uint8."""
        parts = (part.to("cpu", kind.dtype).contiguous() for part, kind in zip(answers, kinds, strict=True))
        return torch.cat([part.flatten(1).view(torch.uint8) for part in parts], dim=1)

    def _known_kinds(self) -> list[Kind] | None:
        if not self._about.exists():
            return None
        try:
            return [Kind.read(told) for told in json.loads(self._about.read_text())["tensors"]]
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
