"""What opening a large file costs: a server of its own, watched by the system's own counters."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from . import distribution
from .prompts import LOADER, node
from .server import ComfyServer


def counter(pid: int, name: str) -> float:
    """A line of /proc/PID/status, in MB."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(f"{name}:")).split()[1]) / 1024


@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux' /proc")
def test_opening_takes_the_memory_of_the_model_once(comfy: ComfyServer, stable_one: str, tmp_path: Path) -> None:
    prepared = distribution.prepare(tmp_path)
    file = comfy.distribution.base / "models" / "checkpoints" / stable_one
    (prepared.base / "models" / "checkpoints" / stable_one).symlink_to(file)
    with ComfyServer(prepared, tmp_path / "server.log") as server:
        assert server.process is not None
        pid = server.process.pid
        idle, idle_anonymous = counter(pid, "VmRSS"), counter(pid, "RssAnon")
        info = node("ProbeText", text=[LOADER, 3])
        run = server.run({LOADER: node("SpectralDiffusionLoadCheckpoint", checkpoint=stable_one), "info": info})
        assert run.error is None, run.message
        peak, kept = counter(pid, "VmHWM") - idle, counter(pid, "RssAnon") - idle_anonymous
    print(
        f"\nfile {file.stat().st_size / 2**20:.0f} MB, model in memory {kept:.0f} MB, most while opening {peak:.0f} MB"
    )
    assert kept > 500
    assert peak < 1.3 * kept
