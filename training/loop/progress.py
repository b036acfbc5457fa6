"""What a run says while it goes: one updating line, a line of JSON every few steps, and the trackers."""

from __future__ import annotations

import json
import math
import resource
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm import tqdm

from ...spectral.errors import SpectralError
from ..files import write_whole

if TYPE_CHECKING:
    from .config import RunConfig


class Progress:
    """Means of every loss since the last line, with the speed, the wait for data and the memory beside them.

    A loss is a scalar, of which the mean is taken, or a pair (sum, count), as for the time steps of one bin, of which
    some batches have none. Lines are means over all processes.

    Args:
        run: whose folder they go to.
        start: steps that were done before.
        sums: `totals` at that step.
    """

    def __init__(
        self, run: RunConfig, start: int, accelerator: Accelerator, sums: Mapping[str, Tensor] | None = None
    ) -> None:
        self.run, self.accelerator = run, accelerator
        own = float(accelerator.is_main_process)
        self.sums = {name: (own * total).float().to(accelerator.device) for name, total in (sums or {}).items()}
        self.batches, self.wait, self.since = 0, 0.0, time.perf_counter()
        self.skipped = 0
        self.last: dict[str, float] = {}
        self.bar: tqdm | None = None
        if accelerator.is_main_process:
            run.out.mkdir(parents=True, exist_ok=True)
            self.last = self._rewind(start)
            self.bar = tqdm(total=run.steps, initial=start, unit="step", dynamic_ncols=True)

    def _rewind(self, start: int) -> dict[str, float]:
        """Drop the lines behind step `start`, which will come again, and a cut one; returns the last that is kept."""
        path = self.run.out / "statistics.jsonl"
        kept: list[dict[str, float]] = []
        for text in path.read_text().splitlines() if path.exists() else ():
            with suppress(json.JSONDecodeError):
                line = json.loads(text)
                kept += [line] if line["step"] <= start else []
        write_whole(path, "".join(json.dumps(line) + "\n" for line in kept))
        return {name: value for name, value in kept[-1].items() if name != "step"} if kept else {}

    def add(self, losses: dict[str, Tensor], waited: float) -> None:
        """Count the losses of one batch, for which this process waited so many seconds."""
        for name, value in losses.items():
            pair = value.detach() if value.dim() else torch.stack((value.detach(), torch.ones_like(value)))
            self.sums[name] = self.sums[name] + pair if name in self.sums else pair.clone()
        self.batches += 1
        self.wait += waited

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Within the block the time does not count: of previews and checkpoints."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.since += time.perf_counter() - began

    def step(self, step: int, due: bool) -> None:
        """Count an optimizer step; write a line where one is due. All processes call it."""
        if self.bar is not None:
            self.bar.update()
        if due:
            self._write(step)

    def _write(self, step: int) -> None:
        seconds = time.perf_counter() - self.since
        line = self._means()
        images = self.batches * self.run.batch_size
        line["images_per_s"] = round(images / seconds, 2)
        line["wait"] = round(self.wait / seconds, 4)
        line["memory_gib"] = round(_memory(self.accelerator.device), 3)
        if self.skipped:
            line["skipped"] = self.skipped
        self.sums, self.batches, self.wait, self.since = {}, 0, 0.0, time.perf_counter()
        if not math.isfinite(line.get("loss", 0.0)):
            raise SpectralError(f"The loss is {line['loss']} at step {step}; start anew with a lower run.lr.")
        self.last = line
        if self.bar is None:
            return
        shown = {name: value for name, value in line.items() if "/" not in name}
        self.bar.set_postfix({name: f"{value:.4g}" for name, value in shown.items()}, refresh=False)
        with open(self.run.out / "statistics.jsonl", "a") as file:
            file.write(json.dumps({"step": step, **line}) + "\n")
        self.accelerator.log(line, step=step)

    def _means(self) -> dict[str, float]:
        """Of every loss, over all processes; of none where all steps since the last line were skipped."""
        pairs = {name: pair.tolist() for name, pair in self.totals().items()}
        return {name: round(total / count, 6) for name, (total, count) in pairs.items() if count}

    def totals(self) -> dict[str, Tensor]:
        """Sum and count of every loss since the last line, of all processes, which all call it; [2] on the CPU."""
        names = sorted(self.sums)
        if not names:
            return {}
        found: Any = self.accelerator.reduce(torch.stack([self.sums[name].double() for name in names]), "sum")
        return dict(zip(names, found.cpu(), strict=True))

    def close(self) -> None:
        """End the line."""
        if self.bar is not None:
            self.bar.close()


def _memory(device: torch.device) -> float:
    """GiB that this process has needed at most: on its GPU, else in main memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
