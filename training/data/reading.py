"""The bytes of samples: of files of their own, and of shards, the last of which stay open."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from pathlib import Path
from typing import BinaryIO

from ...spectral.errors import SpectralError
from .pictures import CorruptImageError
from .records import Record


class Reader:
    """Reads samples at random, for any number of threads. In another process, forked or spawned, it opens files anew.

    Args:
        keep: how many shards stay open.
    """

    def __init__(self, keep: int = 64) -> None:
        self.keep = keep
        self._files: OrderedDict[Path, BinaryIO] = OrderedDict()
        self._process, self._lock = os.getpid(), threading.Lock()

    def __reduce__(self) -> tuple[type[Reader], tuple[int]]:
        return Reader, (self.keep,)

    def read(self, record: Record) -> bytes:
        """The image file of a sample.

        Raises:
            CorruptImageError: it is a file of its own, and cannot be read.
            SpectralError: its shard or its folder is gone, or not what it was when the run began.
        """
        if not record.member:
            return _read_file(record)
        try:
            with self._lock:
                file = self._open(record.file)
                file.seek(record.offset)
                content = file.read(record.size)
        except OSError as error:
            raise SpectralError(
                f"{record.file} cannot be read any more ({error.strerror}); restore the shard, and start the run again."
            ) from error
        if len(content) < record.size:
            raise SpectralError(
                f"{record.file} is shorter than when the run began; restore the shard, and start the run again."
            )
        return content

    def _open(self, path: Path) -> BinaryIO:
        if self._process != os.getpid():  # a position in a file is shared with the process that this one is a copy of
            self._files, self._process = OrderedDict(), os.getpid()
        if path not in self._files:
            self._files[path] = path.open("rb")
        self._files.move_to_end(path)
        while len(self._files) > self.keep:
            self._files.popitem(last=False)[1].close()
        return self._files[path]


def _read_file(record: Record) -> bytes:
    try:
        return record.file.read_bytes()
    except OSError as error:
        if not record.file.parent.exists():
            raise SpectralError(
                f"{record.file.parent} is gone; restore the folder of images, and start the run again."
            ) from error
        raise CorruptImageError(f"{record.name} cannot be read ({error.strerror}); restore it or remove it.") from error
