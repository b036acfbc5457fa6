"""One run in a folder at a time: two that write the same checkpoints would spoil both."""

from __future__ import annotations

import errno
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ...spectral.errors import SpectralError

try:
    import fcntl
except ImportError:  # not on Windows, which has no such locks
    fcntl = None  # type: ignore[assignment]

#: Seconds that a process which was killed may take to be gone.
PATIENCE = 10.0


@contextmanager
def alone(out: Path, main: bool = True, patience: float = PATIENCE) -> Iterator[None]:
    """Within the block no other process may train in a run's folder.

    The lock is the system's, on the file `lock` there: it goes with the process, however that ends, and the workers
    which read data do not inherit it. A file system without locks is taken at its word.

    Args:
        out: the run's folder.
        main: whether this is the process that writes there; the others of a launch change nothing.
        patience: seconds to wait for the other one to end.

    Raises:
        SpectralError: another process trains there.
    """
    if not main:
        yield
        return
    out.mkdir(parents=True, exist_ok=True)
    with (out / "lock").open("a") as file:
        end = time.monotonic() + patience
        while not _locked(file.fileno()):
            if time.monotonic() > end:
                raise SpectralError(
                    f"Another process trains in {out} at this moment; wait for its end, stop it, or choose another "
                    "run.out."
                )
            time.sleep(0.1)
        yield


def _locked(descriptor: int) -> bool:
    """Whether the lock is this process's now, or there are no locks here."""
    if fcntl is None:
        return True
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in (errno.EACCES, errno.EAGAIN)
    return True
