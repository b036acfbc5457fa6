"""Unit tests run on one thread: their models are tiny, and a machine that also trains stays usable."""

from __future__ import annotations

import importlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from spectral_diffusion.training.data.config import DataConfig
from spectral_diffusion.training.tokens import declare_torchvision_operators

from . import ablations, tiny

os.environ["OMP_NUM_THREADS"] = "1"  # for the commands that tests start
torch.set_num_threads(1)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of a class-conditional one for pictures of 16 pixels, untrained."""
    return tiny.teacher(tmp_path_factory.mktemp("teacher") / "teacher.safetensors")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> DataConfig:
    """Eight pictures for it."""
    return DataConfig(str(tiny.pictures(tmp_path_factory.mktemp("data"))), size=16)


@pytest.fixture(scope="module")
def ablation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a teacher, data, and what an ablation left in `out`."""
    return ablations.place(tmp_path_factory.mktemp("ablate"))


@pytest.fixture
def copied(ablation: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same folder, to change, where the test is in."""
    folder = Path(shutil.copytree(ablation, tmp_path / "place"))
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def figures(request: pytest.FixtureRequest) -> Iterator[list[str]]:
    """Sentences with what a test measured; all are shown at the end of the run."""
    found: list[str] = []
    yield found
    request.node.user_properties += [("measured", sentence) for sentence in found]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reports = (report for found in terminalreporter.stats.values() for report in found)
    measured = [
        str(sentence)
        for report in reports
        if getattr(report, "when", "") == "teardown"
        for name, sentence in report.user_properties
        if name == "measured"
    ]
    if measured:
        terminalreporter.section("measured")
        for sentence in measured:
            terminalreporter.write_line(sentence)


@pytest.fixture(scope="session")
def diffusers() -> Any:
    """The library, quiet."""
    declare_torchvision_operators()
    return _quiet("diffusers")


@pytest.fixture(scope="session")
def transformers(diffusers: Any) -> Any:
    """The library, quiet."""
    return _quiet("transformers")


def _quiet(name: str) -> Any:
    module = importlib.import_module(name)
    module.utils.logging.set_verbosity_error()
    module.utils.logging.disable_progress_bar()
    return module
