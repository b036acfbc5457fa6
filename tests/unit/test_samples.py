"""Folders of samples: stopped, gone on with, shared between processes, and never made twice."""

from __future__ import annotations

import io
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from spectral_diffusion.training import cli

from . import evaluation
from .evaluation import SHORT, again, pictures, report_of


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return evaluation.place(tmp_path_factory.mktemp("evaluate"))


@pytest.fixture
def copied(place: Path, tmp_path: Path) -> Path:
    """The same folder, to change."""
    return Path(shutil.copytree(place, tmp_path / "place"))


def test_only_what_is_missing_is_made(copied: Path) -> None:
    before = pictures(copied / "out")
    folder = copied / "out" / "images"
    for name in ("000002.png", "000007.png"):
        (folder / name).unlink()
    kept = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert again(copied) == 0
    assert pictures(copied / "out") == before
    assert all(folder.joinpath(name).stat().st_mtime_ns == then for name, then in kept.items())
    assert report_of(copied)["throughput"]["images"] == 2


def test_nothing_is_made_or_measured_twice(copied: Path) -> None:
    """But a lost report is written again, with the speed at which the samples were made."""
    path = copied / "out" / "report.json"
    before = path.stat().st_mtime_ns, path.read_bytes()
    assert again(copied) == 0
    assert (path.stat().st_mtime_ns, path.read_bytes()) == before
    path.unlink()
    assert again(copied) == 0
    report, known = json.loads(path.read_bytes()), json.loads(before[1])
    elsewhere = [known.pop(name).pop("path") for name in ("checkpoint", "data")]
    assert elsewhere != [report.pop(name).pop("path") for name in ("checkpoint", "data")]
    assert report == known


def test_another_measurement_of_the_same_samples_is_made(copied: Path) -> None:
    before = report_of(copied)
    assert again(copied, "--cutoff", "5") == 0
    report = report_of(copied)
    assert (before["cutoff"], report["cutoff"]) == (3.0, 5.0) and report["high_error"] != before["high_error"]
    assert report["throughput"] == before["throughput"]


def test_more_samples_are_added_to_those_there(copied: Path) -> None:
    before = pictures(copied / "out")
    assert again(copied, "--count", "10") == 0
    after = pictures(copied / "out")
    assert len(after) == 10 and before.items() <= after.items()


def test_a_killed_evaluation_ends_like_one_that_was_not(place: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "spectral_diffusion.training.evaluate", str(place / "model.safetensors")]
    command += ["--data", str(place / "data"), "--out", str(tmp_path / "out"), *SHORT]
    started = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("out/images/*.png")) and started.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    started.send_signal(signal.SIGKILL)
    assert started.wait() == -signal.SIGKILL
    left = pictures(tmp_path / "out")
    assert left and not (tmp_path / "out" / "report.json").exists()
    for content in (content for name, content in left.items() if name.endswith(".png")):
        Image.open(io.BytesIO(content)).load()
    assert cli.main(["evaluate", *command[3:]]) == 0
    made = {name: content for name, content in pictures(tmp_path / "out").items() if name.endswith(".png")}
    assert made == pictures(place / "out")


LAUNCHERS = {
    "accelerate": ["accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", "0"],
    "torchrun": ["torch.distributed.run", "--nproc_per_node", "2", "--standalone"],
}


@pytest.mark.parametrize("launcher", ["torchrun", pytest.param("accelerate", marks=pytest.mark.long)])
def test_two_processes_share_the_samples(launcher: str, place: Path, tmp_path: Path) -> None:
    launch = [sys.executable, "-m", *LAUNCHERS[launcher], "-m", "spectral_diffusion.training.evaluate"]
    launch += [str(place / "model.safetensors"), "--data", str(place / "data"), "--out", str(tmp_path), *SHORT]
    ended = subprocess.run([*launch, "--json"], capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr
    report = json.loads(ended.stdout)
    assert report["throughput"]["processes"] == 2 and report["throughput"]["images"] == 8
    assert pictures(tmp_path) == pictures(place / "out")
    assert report["fd_effnet"] == report_of(place)["fd_effnet"]
