"""Unit tests run on one thread: their models are tiny, and a machine that also trains stays usable."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from spectral_diffusion.training.tokens import declare_torchvision_operators

os.environ["OMP_NUM_THREADS"] = "1"  # for the commands that tests start
torch.set_num_threads(1)


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
