"""Unit tests run on one thread: their models are tiny, and a machine that also trains stays usable."""

from __future__ import annotations

import os

import pytest
import torch

os.environ["OMP_NUM_THREADS"] = "1"  # for the commands that tests start
torch.set_num_threads(1)

_FIGURES: list[str] = []


@pytest.fixture
def figures() -> list[str]:
    """Sentences with what a test measured; all are shown at the end of the run."""
    return _FIGURES


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if _FIGURES:
        terminalreporter.section("measured")
        for figure in _FIGURES:
            terminalreporter.write_line(figure)
