"""Ctrl-C and SIGTERM (a queue that takes the machine back) end a run after its current step, with a checkpoint."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


class StoppedRun(Exception):  # noqa: N818 - no error: the run was asked to end
    """A run ended early because it was asked to; what it had reached is in its last checkpoint."""

    def __init__(self, step: int, steps: int) -> None:
        super().__init__(f"Stopped after step {step} of {steps}; the same command goes on from there.")


@contextmanager
def stoppable() -> Iterator[Callable[[], bool]]:
    """Within the block the first signal is noted, and a second Ctrl-C stops at once; yields whether one has come.

    Outside of the main thread, where Python takes no signals, nothing is changed.
    """
    asked: list[int] = []

    def note(number: int, _frame: FrameType | None) -> None:
        if asked and number == signal.SIGINT and asked[0] == signal.SIGINT:
            raise KeyboardInterrupt
        if not asked:
            print("Stopping after this step; press Ctrl-C again to stop at once.", file=sys.stderr)
        asked.append(number)

    before: dict[int, Any] = {}
    try:
        for kind in (signal.SIGINT, signal.SIGTERM):
            before[kind] = signal.signal(kind, note)
    except ValueError:
        before.clear()
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
