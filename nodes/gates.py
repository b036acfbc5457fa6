"""Wavelet Gate: turn the gates of a student up or down, band by band, during a part of the sampling."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..spectral.errors import SpectralError
from ..spectral.hooks import Direction
from . import during
from .during import Range
from .model import companions_of
from .patches import GATES, GatePatch, Moment

BANDS = ("LL", "LH", "HL", "HH")
DIRECTIONS: tuple[Direction, ...] = ("down", "up")
_CONTENT = {
    "LL": "the coarse picture (low frequencies along both axes)",
    "LH": "horizontal edges and stripes (low frequencies along a row, high ones down a column)",
    "HL": "vertical edges and stripes (high frequencies along a row, low ones down a column)",
    "HH": "corners and diagonal texture (high frequencies along both axes)",
}


class WaveletGate:
    """Multiplies the gates of a wavelet-gated student."""

    CATEGORY = "spectral diffusion"
    DESCRIPTION = (
        "An equalizer inside a wavelet-gated student: multiplies the learned gates of its frequency bands, apart for "
        "the way down, where the network reads the noisy latent, and the way up, where it draws the result. Raise "
        "up_LH, up_HL and up_HH together for more detail, lower them for less. With every multiplier at 1 nothing "
        "changes at all. Several Wavelet Gates in a row multiply."
    )
    SEARCH_ALIASES = ("wavelet gating", "frequency gate", "detail slider", "band multiplier", "sharpness", "equalizer")
    RETURN_TYPES = ("MODEL",)
    OUTPUT_TOOLTIPS = ("The model with its gates multiplied; the one that came in stays as it was.",)
    FUNCTION = "patch"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        tooltip = "A wavelet-gated student from Load Checkpoint (Spectral Diffusion)."
        return {
            "required": {
                "model": ("MODEL", {"tooltip": tooltip}),
                **{
                    f"{direction}_{band}": ("FLOAT", _multiplier(direction, band))
                    for direction in DIRECTIONS
                    for band in BANDS
                },
                **during.widgets("the multiplication"),
            }
        }

    @classmethod
    def VALIDATE_INPUTS(cls, start_percent: float | None = None, end_percent: float | None = None) -> bool | str:
        return during.validate(start_percent, end_percent)

    def patch(
        self, model: Any, start_percent: float, end_percent: float, curve: str, **multipliers: float
    ) -> tuple[Any]:
        """A clone with one more patch, or without one where all multipliers are 1.

        Raises:
            SpectralError: the model has no gates.
        """
        check_gated(model, "Wavelet Gate")
        when = Range(start_percent, end_percent, curve)
        factors = {
            direction: tuple(float(multipliers[f"{direction}_{band}"]) for band in BANDS) for direction in DIRECTIONS
        }
        changed = {direction: given for direction, given in factors.items() if set(given) != {1.0}}
        last_step = companions_of(model).config.schedule.steps - 1
        return (with_gate_patch(model, GateFactors(changed, when, last_step)) if changed else model.clone(),)


@dataclass(frozen=True)
class GateFactors:
    """Multiplies gates while `when` says so.

    Args:
        factors: of each direction that changes, one for each of BANDS.
        last_step: the schedule's time step of pure noise.
    """

    factors: dict[Direction, tuple[float, ...]]
    when: Range
    last_step: int

    def __call__(self, gates: Tensor, direction: Direction, level: int, moment: Moment) -> Tensor:
        if direction not in self.factors:
            return gates
        strength = self.when.strength(1 - moment.timestep / self.last_step)
        if not strength:
            return gates
        factors = [1 + strength * (factor - 1) for factor in self.factors[direction]]
        return gates * torch.tensor(factors, dtype=gates.dtype, device=gates.device)[:, None]


def check_gated(model: Any, name: str) -> None:
    """Refuse what has no gates.

    Args:
        name: of the node that needs them.

    Raises:
        SpectralError: a Lite model, a teacher, or a model of another loader; it says which.
    """
    config = companions_of(model).config
    if config.unet is None or config.unet.resampler != "wavelet":
        raise SpectralError(
            f"{name} needs the gates of a wavelet-gated student, and this model has none: it is a {config.kind} that "
            "changes its resolution by convolutions. Load a student, such as emoji64-student.safetensors; for any "
            "other model Wavelet Guidance does something alike."
        )


def with_gate_patch(model: Any, patch: GatePatch) -> Any:
    """A clone of the MODEL with one more patch of its gates, after those that it has."""
    made = model.clone()
    options = made.model_options["transformer_options"]
    options[GATES] = (*options.get(GATES, ()), patch)
    return made


def _multiplier(direction: Direction, band: str) -> dict[str, Any]:
    way = "down, where the network reads the noisy latent" if direction == "down" else "up, where it draws the result"
    tooltip = (
        f"Multiplies the gates of {band}, {_CONTENT[band]}, on the way {way}. 1: as trained; above 1: more of it; "
        "0: the band is shut."
    )
    return {"default": 1.0, "min": 0.0, "max": 10.0, "step": 0.01, "round": 0.001, "tooltip": tooltip}
