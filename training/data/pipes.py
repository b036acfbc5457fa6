"""The samples of one shard that comes through a pipe, in bounded memory."""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath
from typing import IO, NamedTuple

from ...spectral.errors import SpectralError
from ..decoding import SUFFIXES
from . import tar
from .records import chosen
from .shards import DESCRIPTIONS, described, split, unreadable

#: Bytes; a longer file is no image to learn from.
LARGEST = 1 << 28
#: Seconds that a command has to end after its archive has ended.
PATIENCE = 30.0


class Raw(NamedTuple):
    """A sample that is not decoded yet.

    Args:
        key: its name.
        name: what to call it in a sentence.
        content: of the image file.
        captions, groups: what is said of it.
        epoch: how often its shard has been read before.
    """

    key: str
    name: str
    content: bytes
    captions: tuple[str, ...]
    groups: tuple[str, ...]
    epoch: int


def samples(command: str, subgroups: Sequence[str], epoch: int) -> Iterator[Raw]:
    """The samples of the shard that a command writes to its output, in their order there.

    The files of a sample stand beside each other, as WebDataset has it.

    Raises:
        SpectralError: the command fails, or what it writes is no whole shard; it is named.
    """
    with tempfile.TemporaryFile() as said, _started(command, said) as process:
        assert process.stdout is not None
        try:
            for name, content, files in _groups(tar.Archive(process.stdout, seekable=False)):
                captions, groups = described(name, files)
                if chosen(groups, subgroups):
                    yield Raw(name, f"{name} of pipe:{command}", content, captions, groups, epoch)
        except (tar.ArchiveError, ValueError) as error:
            if not process.stdout.read(1):  # it has ended, and says why; what still writes is no archive
                _check_exit(process, command, said)
            raise unreadable(f"pipe:{command}", error) from error
        _check_exit(process, command, said)


def _groups(archive: tar.Archive) -> Iterator[tuple[str, bytes, dict[str, bytes]]]:
    """(name, content, descriptions by suffix) of every image."""
    stem, images, files = "", dict[str, bytes](), dict[str, bytes]()
    for member in archive:
        own, suffix = split(member.name)
        if own != stem:
            yield from ((name, content, files) for name, content in images.items())
            stem, images, files = own, {}, {}
        content = archive.read(member.size) if member.size <= LARGEST else b""
        if suffix in SUFFIXES:
            images[member.name] = content
        elif suffix in DESCRIPTIONS:
            files[suffix] = content
    yield from ((name, content, files) for name, content in images.items())


@contextlib.contextmanager
def _started(command: str, said: IO[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    """The command, in a session of its own: Ctrl-C is for the run, which ends it when it is done with it."""
    shell = ["bash", "-o", "pipefail", "-c"] if shutil.which("bash") else ["sh", "-c"]
    process = subprocess.Popen(
        [*shell, command], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=said, start_new_session=True
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        assert process.stdout is not None
        process.stdout.close()
        process.wait()


def _drain(process: subprocess.Popen[bytes]) -> None:
    """Read on to the end of the output: a command that cannot write would not end, or end with an error."""
    assert process.stdout is not None
    end = time.monotonic() + PATIENCE
    while select.select([process.stdout], [], [], max(0.0, end - time.monotonic()))[0]:
        if not os.read(process.stdout.fileno(), 1 << 20) or time.monotonic() > end:
            break
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(max(0.1, end - time.monotonic()))


def _check_exit(process: subprocess.Popen[bytes], command: str, said: IO[bytes]) -> None:
    """Wait for the end of a command, as long as patience lasts; raise SpectralError where it failed."""
    _drain(process)
    if process.returncode:
        said.seek(max(0, said.seek(0, os.SEEK_END) - 2000))
        lines = said.read().decode("utf-8", "replace").strip().splitlines()
        reason = f": {lines[-1]}" if lines else ""
        raise SpectralError(
            f"pipe:{command} failed with exit code {process.returncode}{reason}; check the command of data.path."
        )


def shard_name(command: str) -> str:
    """What tells a command's shard from others, wherever it is fetched from."""
    words = [word.strip("'\"") for word in command.split()]
    named = [PurePosixPath(word).name for word in words if ".tar" in word]
    return named[-1] if named else command
