"""What a running training shows of its model: samples beside the data, and their spectra, always from one seed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ..spectral.autoencoder import FirstStage
from ..spectral.config import ModelConfig
from ..spectral.spectrum import radial_spectrum
from . import figures
from .data.batches import Batch, Data
from .data.contexts import Contexts
from .data.latents import latents_of
from .processes import is_main
from .sample import sample

COLUMNS, STEPS = 12, 25


@dataclass(frozen=True)
class Preview:
    """Draws a grid of data over samples of the same conditions, and the radial spectra of both.

    Args:
        about: the model.
        unet, first_stage, conditioner: its parts, as they are when the preview is drawn.
        data: what it is trained on.
        contexts: that its samples are conditioned on.
    """

    about: ModelConfig
    unet: nn.Module
    first_stage: FirstStage
    conditioner: nn.Module | None
    data: Data
    contexts: Contexts

    def __call__(self, path: Path) -> None:
        """Write the grid to `path`, and the spectra beside it, NAME-spectra.png; of several processes, the main one."""
        batch = self.data.preview_samples(COLUMNS)
        rows = {"data": pictures_of(batch, self.first_stage)}
        rows[self.about.kind] = sample(
            self.about,
            self.unet,
            self.first_stage,
            self.conditioner,
            self.contexts.prompts(batch),
            steps=self.about.few_steps or min(STEPS, self.about.schedule.steps),
            vocabulary=self.contexts.vocabulary,
        )
        if not is_main():
            return
        figures.save_grid(rows, path)
        spectra = {name: radial_spectrum(images) for name, images in rows.items()}
        figures.plot_radial_spectra(spectra, path.with_name(f"{path.stem}-spectra.png"))


@torch.no_grad()
def pictures_of(batch: Batch, first_stage: FirstStage) -> Tensor:
    """The images of a batch, or what its latents decode to, [N, 3, H, W] in [0, 1] on the CPU."""
    if "image" in batch:
        return batch["image"].float() / 255.0  # type: ignore[no-any-return]
    decoded = first_stage.decode(latents_of(batch, next(first_stage.parameters()).device))
    return (decoded.cpu().float().clamp(-1, 1) + 1) / 2
