"""How the spectrum of the denoised prediction x̂_0 grows step by step: low frequencies first (Figure 2)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..errors import SpectralError
from .planes import Window
from .radial import RadialSpectrum, radial_spectrum


class Evolution:
    """Records the radial spectrum of each step's prediction of x_0, and a few of the predictions themselves.

    Give `callback` to `diffusion.ddim`, or call `add` from the callback of any sampler.

    Args:
        window: of the spectra, as for `radial_spectrum`; "hann" for pictures and latents whose borders do not meet.
        pictures: about how many predictions to keep, of the first image alone; from half of it to all of it are kept,
            evenly spaced, whatever the number of steps turns out to be, and the last one besides.

    Attributes:
        steps: what each step was called (its number, time step or σ), in the order of the sampling.
    """

    def __init__(self, *, window: Window = "hann", pictures: int = 16) -> None:
        if pictures < 1:
            raise SpectralError(f"An evolution keeps {pictures} pictures; expected at least 1.")
        self.steps: list[float] = []
        self._window, self._most, self._every = window, pictures, 1
        self._spectra: list[RadialSpectrum] = []
        self._kept: dict[int, Tensor] = {}
        self._last: Tensor | None = None

    def add(self, step: float, prediction: Tensor) -> None:
        """Record the prediction of x_0 at a step.

        Args:
            step: what to call it: its number, its time step, or σ.
            prediction: [B, C, H, W], latents or decoded images, of one size throughout.

        Raises:
            SpectralError: it cannot be measured, or has another size than those before it.
        """
        measured = radial_spectrum(prediction.detach(), window=self._window)
        if self._spectra and measured.size != self._spectra[0].size:
            raise SpectralError(
                f"The prediction is {tuple(prediction.shape[-2:])}, those before it were of {self._spectra[0].size}; "
                "record each run of a sampler by itself."
            )
        self._last = prediction[0].detach().float().cpu()
        if len(self.steps) % self._every == 0:
            self._kept[len(self.steps)] = self._last
        if len(self._kept) > self._most:
            self._every *= 2
            self._kept = {index: kept for index, kept in self._kept.items() if index % self._every == 0}
        self._spectra.append(measured)
        self.steps.append(step)

    def callback(self, index: int, x_t: Tensor, x_0: Tensor) -> None:
        """`add` in the form in which `diffusion.ddim` calls back; steps are called 0, 1, …"""
        self.add(index, x_0)

    @property
    def frequency(self) -> Tensor:
        """[R] of the rings, in cycles per pixel."""
        return self._measured()[0].frequency

    @property
    def power(self) -> Tensor:
        """[S, R] mean over the batch, step by step."""
        return torch.stack([spectrum.power for spectrum in self._measured()])

    @property
    def final(self) -> RadialSpectrum:
        """The spectrum of the last prediction."""
        return self._measured()[-1]

    @property
    def pictures(self) -> list[tuple[int, Tensor]]:
        """The predictions that were kept of the first image, [C, H, W] float32, each with its place in `steps`."""
        last = len(self._measured()) - 1
        assert self._last is not None
        return sorted((self._kept | {last: self._last}).items())

    def settled(self, tolerance: float = 2.0) -> Tensor:
        """[R] int64, when each ring is there: the place in `steps` from which on its power stays near its final one.

        Args:
            tolerance: near is within this factor, up or down.

        Raises:
            SpectralError: a factor not above 1, or nothing recorded.
        """
        if not 1 < tolerance < math.inf:
            raise SpectralError(f"The tolerance is {tolerance:g}; expected a factor above 1.")
        power = self.power
        final = power[-1]
        near = (power <= tolerance * final) & (power * tolerance >= final)
        return (~near).flip(0).int().cumsum(0).eq(0).sum(0).neg() + len(power)

    def _measured(self) -> list[RadialSpectrum]:
        if not self._spectra:
            raise SpectralError("Nothing was recorded of this evolution yet; run a sampler with its callback first.")
        return self._spectra
