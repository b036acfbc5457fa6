"""Times taken in turn, and their ratios: whatever else the machine does meets everything that is compared."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch.profiler import ProfilerActivity, profile

from ..processes import device

#: Seconds of each round, by what was timed.
Times = dict[str, list[float]]


@dataclass(frozen=True)
class Settings:
    """What the command line says.

    Args:
        batch: samples at a time; None leaves it to each subject.
        precision: "no" for float32, "bf16" or "fp16".
        quick: fewer rounds, on a CPU of single samples.
    """

    batch: int | None = None
    precision: str = "no"
    quick: bool = False

    @property
    def dtype(self) -> torch.dtype:
        return {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[self.precision]

    def of_batch(self, cpu: int, quick: int | None = None) -> int:
        """How many samples at a time: as the command line says, or 64 on a GPU, or this many."""
        if self.batch is not None:
            return self.batch
        if device().type == "cuda":
            return 64
        return quick if self.quick and quick is not None else cpu

    def rounds(self, cpu: int, quick: int) -> int:
        """How many times everything is timed; 30 on a GPU, as in the paper's Figure 6."""
        if self.quick:
            return quick
        return 30 if device().type == "cuda" else cpu


def seconds(function: Callable[[], object], repeats: int = 1) -> float:
    """The time of one call, out of `repeats` in a row; on a GPU between two of its own events."""
    if device().type == "cuda":
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for _ in range(repeats):
            function()
        end.record()
        torch.cuda.synchronize()
        return begin.elapsed_time(end) / 1000 / repeats
    began = time.perf_counter()
    for _ in range(repeats):
        function()
    return (time.perf_counter() - began) / repeats


def peak_memory(function: Callable[[], object]) -> int:
    """Bytes that torch has allocated at most during a call, beyond what was allocated before it."""
    if device().type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        function()
    now = most = 0
    for event in sorted(profiler.profiler.kineto_results.events(), key=lambda one: one.start_ns()):
        if event.name() == "[memory]":
            now += event.nbytes()
            most = max(most, now)
    return most


def in_turn(functions: Mapping[str, Callable[[], object]], rounds: int, *, warm: int = 1, repeats: int = 1) -> Times:
    """Seconds of each function in each of `rounds` rounds, after `warm` rounds that do not count."""
    times: Times = {name: [] for name in functions}
    for turn in range(warm + rounds):
        for name, function in functions.items():
            taken = seconds(function, repeats)
            if turn >= warm:
                times[name].append(taken)
    return times


def overhead(name: str, times: Times, first: str, reference: str, batch: int) -> dict[str, float]:
    """Time of `first` over that of `reference`: the median over the rounds, and half the range of their middle half."""
    found = [one / other for one, other in zip(times[first], times[reference], strict=True)]
    low, _, high = statistics.quantiles(found, n=4) if len(found) > 1 else (found[0],) * 3
    return {
        name: round(statistics.median(found), 4),
        f"{name}_spread": round((high - low) / 2, 4),
        f"{name}_seconds": round(statistics.median(times[first]), 6),
        f"{name}_reference_seconds": round(statistics.median(times[reference]), 6),
        f"{name}_batch": batch,
    }


def speed(name: str, times: Times, first: str, reference: str, batch: int) -> dict[str, float]:
    """How many times faster `first` is than `reference`; the rest as `overhead`."""
    turned = overhead(name, times, reference, first, batch)
    mine, other = f"{name}_seconds", f"{name}_reference_seconds"
    return turned | {mine: turned[other], other: turned[mine]}
