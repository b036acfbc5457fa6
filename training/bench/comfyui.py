"""What the nodes cost in a ComfyUI of the user's: at its start, and on top of the U-Net while KSampler runs."""

from __future__ import annotations

import json
import statistics
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from ...spectral.errors import SpectralError
from .timing import Settings, overhead

PACK = Path(__file__).resolve().parents[2]
START = ("--cpu", "--quick-test-for-ci", "--disable-api-nodes")


@dataclass(frozen=True)
class Installation:
    """A ComfyUI.

    Args:
        folder: where its main.py is.
        python: the interpreter that it runs on.
    """

    folder: Path
    python: str

    def __post_init__(self) -> None:
        if not (self.folder / "main.py").is_file():
            raise SpectralError(f"{self.folder} is no ComfyUI: it has no main.py; give its folder to --comfyui.")


def measure(settings: Settings, at: Installation) -> dict[str, float]:
    """`ksampler_overhead` of KSampler over its calls of the U-Net, and `start_added_seconds` to ComfyUI's start."""
    batch = settings.of_batch(cpu=8)
    script = str(Path(__file__).with_name("inside_comfyui.py"))
    rounds = str(settings.rounds(cpu=11, quick=5))
    times = json.loads(_run(at, script, str(PACK), str(batch), rounds).splitlines()[-1])
    result = overhead("ksampler_overhead", times, "sampler", "bare", batch)
    return result | starts(at, settings.rounds(cpu=7, quick=3))


def starts(comfyui: Installation, rounds: int) -> dict[str, float]:
    """Seconds of ComfyUI's start with no custom nodes, and what ours add; each process ends when it is up."""
    times: dict[bool, list[float]] = {False: [], True: []}
    with tempfile.TemporaryDirectory() as folder:
        homes = {added: Path(folder, "with" if added else "without") for added in times}
        for added, home in homes.items():
            (home / "custom_nodes").mkdir(parents=True)
            if added:
                (home / "custom_nodes" / "spectral_diffusion").symlink_to(PACK, target_is_directory=True)
        for turn in range(rounds + 1):
            for added, home in homes.items():
                began = time.perf_counter()
                places = ("--base-directory", str(home), "--database-url", f"sqlite:///{home / 'comfyui.db'}")
                _run(comfyui, "main.py", *START, *places)
                if turn:
                    times[added].append(time.perf_counter() - began)
    differences = [one - other for one, other in zip(times[True], times[False], strict=True)]
    return {
        "start_added_seconds": round(statistics.median(differences), 3),
        "start_seconds": round(statistics.median(times[False]), 3),
    }


def _run(comfyui: Installation, *arguments: str) -> str:
    """What a process of ComfyUI's Python prints.

    Raises:
        SpectralError: it failed; with the last line that it wrote.
    """
    command = [comfyui.python, *arguments]
    done = subprocess.run(command, cwd=comfyui.folder, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise SpectralError(f"ComfyUI in {comfyui.folder} failed: {last}")
    return done.stdout
