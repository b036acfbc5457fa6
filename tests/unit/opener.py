"""As a program: opens the model at each path that comes on standard input, and answers with one line of JSON.

A process of its own, so that its memory can be measured, and a crash or an endless loop is seen as what it is.
"""

from __future__ import annotations

import json
import re
import sys
import time
from pathlib import Path

import torch

from spectral_diffusion.spectral import checkpoint
from spectral_diffusion.spectral.errors import SpectralError


def attempt(path: Path) -> dict[str, str | float | None]:
    """The sentence with which a file is refused (None when it opens), what else was raised, seconds, and peak MiB."""
    said = raised = None
    before = time.perf_counter()
    try:
        checkpoint.load(path)
    except SpectralError as error:
        said = str(error)
    except Exception as error:
        raised = f"{type(error).__name__}: {error}"
    took = time.perf_counter() - before
    return {"said": said, "raised": raised, "seconds": took, "peak": peak()}


def peak() -> float:
    """The most memory that this process has had, in MiB (Linux; elsewhere 0)."""
    status = Path("/proc/self/status")
    found = re.search(r"VmHWM:\s*(\d+) kB", status.read_text()) if status.exists() else None
    return int(found[1]) / 1024 if found else 0.0


if __name__ == "__main__":
    torch.set_num_threads(1)
    for line in sys.stdin:
        print(json.dumps(attempt(Path(line.rstrip("\n")))), flush=True)
