"""Losses that are no numbers: their steps are skipped and counted, and too many of them end the run."""

from __future__ import annotations

from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor

from ...spectral.errors import SpectralError
from ..data.batches import Batch
from . import zero
from .progress import Progress

#: Overflows in a row that fp16's loss scale may need to come down from where it started.
MOST_OVERFLOWS = 60
#: Steps in a row that are no accident any more.
HOPELESS = 2


class Guard:
    """Decides over every step, in all processes alike.

    Args:
        out: the run's folder, where the batch that ended a run is left.
        limit: steps that may be skipped in all; `skipped` of them were.
    """

    def __init__(self, accelerator: Accelerator, out: Path, limit: int) -> None:
        self.accelerator, self.out, self.limit = accelerator, out, limit
        self.skipped = self.in_a_row = self.overflows = 0
        self.seen: list[tuple[Batch, dict[str, Tensor], float]] = []

    def add(self, batch: Batch, losses: dict[str, Tensor], waited: float) -> None:
        """Remember a batch of the step, its losses, and the seconds that it was waited for."""
        self.seen.append((batch, losses, waited))

    def accepts(self, step: int, norm: Tensor, progress: Progress) -> bool:
        """Whether the gradients, whose norm over all processes this is, may change the weights.

        Raises:
            SpectralError: too many could not; the last batch lies in the run's folder.
        """
        seen, self.seen = self.seen, []
        if torch.isfinite(norm):
            self.overflows = self.in_a_row = 0
            for _, losses, waited in seen:
                progress.add(losses, waited)
            return True
        if zero.is_used(self.accelerator):
            raise SpectralError(
                f"The loss or its gradient was not finite at step {step + 1}, and DeepSpeed has applied it; the "
                "same command goes on from the last checkpoint. Lower run.lr if it comes again."
            )
        if self.accelerator.scaler is not None and self._losses_are_finite(seen):
            self.overflows += 1
            if self.overflows > MOST_OVERFLOWS:
                raise SpectralError(
                    f"fp16 overflowed {self.overflows} times in a row at step {step + 1}; set run.precision to bf16."
                )
            return False
        self.skipped += 1
        self.in_a_row += 1
        progress.skipped = self.skipped
        if self.skipped > self.limit:
            place = self._leave(step, seen)
            raise SpectralError(
                f"The loss or its gradient was not finite in {self.skipped} steps, the last of them step {step + 1}, "
                f"more than run.max_skipped; its batch is in {place}. Lower run.lr, or look for damaged data there."
            )
        return False

    def finish(self) -> None:
        """At the end of a run: raise SpectralError where the weights give no finite loss any more."""
        if self.in_a_row >= HOPELESS:
            raise SpectralError(
                f"The loss or its gradient was not finite in the last {self.in_a_row} steps, so the weights are of no "
                "use; start anew with a lower run.lr."
            )

    def _losses_are_finite(self, seen: list[tuple[Batch, dict[str, Tensor], float]]) -> bool:
        own = torch.stack([losses["loss"].detach().isfinite() for _, losses, _ in seen]).all()
        return bool(self.accelerator.gather(own[None].int()).min())  # type: ignore[union-attr]

    def _leave(self, step: int, seen: list[tuple[Batch, dict[str, Tensor], float]]) -> Path:
        """Write the step's batches and losses of this process, for `torch.load`."""
        place = self.out / f"not-finite-{step + 1:08d}-process{self.accelerator.process_index}.pt"
        content = [
            {"batch": batch, "losses": {name: value.detach().cpu() for name, value in losses.items()}}
            for batch, losses, _ in seen
        ]
        torch.save({"step": step + 1, "batches": content}, place)
        return place
