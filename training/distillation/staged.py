"""The losses of a student of stages (f-DM), distilled from an ordinary teacher, which sees the whole latents.

The student's noise in every stage is the coarse part of the teacher's, and its steps are the teacher's, whose noise is
as strong before it is made coarse. So both look at one thing, and what the teacher thinks of the latents, x_0, says
through f and g what x_t and δ_t should be in the student's stage. Features are compared where both networks have them
in one size; L_freq is of that size.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from ...spectral import checkpoint
from ...spectral.config import UNetConfig
from ...spectral.unet import Tap
from ..data.batches import Batch
from ..data.contexts import Contexts
from ..noising import Noised
from ..staging import InStage, StagedErrors, fill_pairs
from .config import DistillConfig
from .losses import Distances, Pair
from .objectives import rows
from .task import DistillTask


class Known(NamedTuple):
    """What the teacher makes of a batch.

    Args:
        x_0: the clean latents that it sees in it, [B, C, H, W] float32.
        features: by tap, [B, …].
    """

    x_0: Tensor
    features: dict[Tap, Tensor]


class StagedDistillTask(DistillTask):
    """`DistillTask` for a student of stages. "ddpm" holds the errors of the noise and of δ; "delta" is the latter.

    Args: as `DistillTask`'s; the student's configuration has stages.
    """

    def __init__(
        self, student: UNetConfig, teacher: checkpoint.Checkpoint, contexts: Contexts, config: DistillConfig
    ) -> None:
        super().__init__(student, teacher, contexts, config)
        fill_pairs(self.student, config.stage_autoencoders)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        assert self.process is not None
        noised = self.inputs(batch)
        known = self.known(batch, noised) if self.weights.distils else None
        errors = StagedErrors(self.process, self.student, noised, features=known is not None)
        ddpm = errors.loss(self._sample_weights(noised))
        loss = self.weights.ddpm * ddpm
        losses = {"loss": loss, "ddpm": ddpm, "delta": errors.each[1].mean().detach()}
        apart = None
        if known is not None:
            apart = self.apart(errors, noised, known)
            spatial, frequency = apart.spatial.mean(), apart.frequency.mean()
            loss = loss + self.weights.spatial * spatial + self.weights.frequency * frequency
            losses |= {"loss": loss, "spatial": spatial, "frequency": frequency}
        if noised.paired is not None:
            losses["replaced"] = 1.0 - noised.paired.mean()
        told = rows({"ddpm": errors.bands(0)}, noised.t, self.schedule.steps, noised.paired)
        return losses | told | rows(self.terms(apart), noised.t, self.schedule.steps)

    def known(self, batch: Batch, noised: Noised) -> Known:
        """What the teacher, asked about the whole latents, makes of them."""
        features: dict[Tap, Tensor] = {}
        said = self.answer(batch, noised, features).float()
        x_0, _ = self._teacher_schedule.split(noised.x_t, self.teacher_steps[noised.t], said)
        return Known(x_0, features)

    def apart(self, errors: StagedErrors, noised: Noised, known: Known) -> Distances:
        """L_spatial and L_freq of every sample, each in its stage."""
        found = []
        for part, output, seen in zip(errors.parts, errors.outputs, errors.seen, strict=True):
            features = {tap: known.features[tap][part.places] for tap in self.taps if tap in seen}
            pairs = self._outputs(part, output, known.x_0[part.places]) + self.features(seen, features)
            found.append(self.distillation(noised.x_0[part.places], pairs))
        total = Distances(*(errors.ordered(values) for values in zip(*found, strict=True)))
        # Processes whose samples passed other places have gradients of the same parameters.
        absent = sum((0.0 * p.sum() for p in self.align.parameters()), start=total.spatial.new_zeros(()))
        return total._replace(spatial=total.spatial + absent)

    def _outputs(self, part: InStage, output: Tensor, x_0: Tensor) -> list[Pair]:
        """What the student says of the noise and of δ, beside what the teacher's x_0 stands for in the stage."""
        assert self.process is not None
        read = self.process.read(part.z, part.t, part.stage, output.float())
        point = self.process.point(x_0, part.t, part.stage)
        signal, sigma = self.process.coefficients(part.stage, part.t, part.z)
        pairs = [Pair(read.noise, (part.z - signal * point.x) / sigma)]
        if not self.process.moves(part.stage):
            return pairs
        return [*pairs, Pair(output.float().chunk(2, dim=1)[1], self.process.second(point))]

    def _sample_weights(self, noised: Noised) -> Tensor | None:
        """Of the samples' errors: min-SNR's, and 0 for those that were given other conditions; None for 1."""
        weights = None if self.step_weights is None else self.step_weights[noised.t]
        if noised.paired is None:
            return weights
        return noised.paired if weights is None else weights * noised.paired
