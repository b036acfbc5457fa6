"""Ctrl-C and SIGTERM (a queue that takes the machine back) end a run after its current step, with a checkpoint."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


class StoppedRun(BaseException):
    """A run ended early because it was asked to; what it had reached is in its last checkpoint."""


@contextmanager
def stopping_in_order() -> Iterator[None]:
    """Within the block both signals raise StoppedRun at once: for what goes on when it is started again, and before
    and after the steps of a run, which are `stoppable`. As a decorator, for a whole function."""

    def stop(_number: int, _frame: FrameType | None) -> None:
        raise StoppedRun("Stopped; the same command goes on.")

    with _handled(stop):
        yield


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

    with _handled(note):
        yield lambda: bool(asked)


@contextmanager
def _handled(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    before: dict[int, Any] = {}
    try:
        for kind in (signal.SIGINT, signal.SIGTERM):
            before[kind] = signal.signal(kind, handler)
    except ValueError:
        before.clear()
    try:
        yield
    finally:
        for number, former in before.items():
            signal.signal(number, former)
