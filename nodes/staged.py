"""f-DM students as MODELs: what core carries through guidance is a stage's whole prediction, x_θ and δ_θ.

The f-DM Sampler asks with [z / α | 0], twice the channels of the stage's signal at the stage's size, and with the noise
level σ of the base schedule, so that percents and time ranges mean what they mean for every model. What comes back, and
what guidance and other nodes' patches see, is [x_θ | δ_θ]. Within a stage α²/σ² is that of the base schedule times the
stage's ratio (`Process.ratios`), so that the network's own noise level is σ / √ratio.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..spectral.errors import SpectralError
from ..spectral.fdm import Process
from ..spectral.fdm.transforms import Size

#: Where transformer_options hold the `Place` of a call.
PLACE = "spectral_diffusion_stage"
NO_STAGE = (
    "This student works in stages, small pictures first, which the sampler does not know; use f-DM Sampler with "
    "SamplerCustom instead of KSampler."
)
REPLACED = (
    "Another node has replaced the noise schedule of this MODEL, and a student that works in stages needs its own; "
    "take nodes such as ModelSamplingDiscrete away from it."
)
ADDED = (
    "{} is made for a network that sees the whole latent at every step, and this student works in stages, small "
    "pictures first; disconnect it, or load a student without stages."
)


@dataclass(frozen=True)
class Place:
    """Where in an f-DM run the network is asked.

    Args:
        stage: 0 is that of the latents themselves.
        size: height and width of those in cells.
    """

    stage: int
    size: Size


class StagedSampling:
    """Mixed into a model's ModelSampling: during a call within a stage, noise levels are the stage's."""

    process: Process
    stage: int | None = None

    def level(self, step: int, stage: int) -> float:
        """σ/α of a stage at a step of the schedule."""
        return float(self.sigmas[step]) * self.process.ratios[stage] ** -0.5  # type: ignore[attr-defined]

    def calculate_input(self, sigma: Tensor, noise: Tensor) -> Tensor:
        """[z / α | 0] [B, 2C, h, w] as z [B, C, h, w]."""
        if self.stage is None:
            return super().calculate_input(sigma, noise)  # type: ignore[misc, no-any-return]
        return super().calculate_input(self._own(sigma), noise.chunk(2, dim=1)[0])  # type: ignore[misc, no-any-return]

    def calculate_denoised(self, sigma: Tensor, model_output: Tensor, model_input: Tensor) -> Tensor:
        """The network's answer, noise or velocity and δ_θ or the detail, as [x_θ | δ_θ]."""
        if self.stage is None:
            return super().calculate_denoised(sigma, model_output, model_input)  # type: ignore[misc, no-any-return]
        prediction, second = model_output.chunk(2, dim=1)
        delta = self.process.delta(second, self.timestep(sigma), self.stage)  # type: ignore[attr-defined]
        x = super().calculate_denoised(  # type: ignore[misc]
            self._own(sigma), prediction, model_input.chunk(2, dim=1)[0]
        )
        return torch.cat([x, delta], dim=1)

    def _own(self, sigma: Tensor) -> Tensor:
        assert self.stage is not None
        return sigma * self.process.ratios[self.stage] ** -0.5


def with_stages(sampling: Any, process: Process) -> None:
    """Make a ModelSampling, of whatever class this version of core made, one of stages."""
    sampling.__class__ = type(f"Staged{type(sampling).__name__}", (StagedSampling, type(sampling)), {})
    sampling.process = process


class StagedCalls:
    """Mixed into a BaseModel whose network has stages; `process` is theirs."""

    process: Process
    diffusion_model: Any
    model_sampling: Any

    def apply_model(
        self,
        x: Tensor,
        t: Tensor,
        c_concat: Tensor | None = None,
        c_crossattn: Tensor | None = None,
        control: Any = None,
        transformer_options: dict[str, Any] | None = None,
        **conditions: Any,
    ) -> Tensor:
        """The base model's, in the stage that `transformer_options` tells.

        Raises:
            SpectralError: there is none, for the sampler is another one, or another node has changed the schedule.
        """
        options = {} if transformer_options is None else transformer_options
        sampling, place = self.model_sampling, options.get(PLACE)
        if not isinstance(place, Place):
            raise SpectralError(NO_STAGE)
        if not isinstance(sampling, StagedSampling):
            raise SpectralError(REPLACED)
        sampling.stage = place.stage
        try:
            return super().apply_model(  # type: ignore[misc, no-any-return]
                x, t, c_concat, c_crossattn, control, options, **conditions
            )
        finally:
            sampling.stage = None

    def memory_required(self, input_shape: Any, *others: Any, **named: Any) -> Any:
        """As the base model's; a stage's signal and its δ take what latents of the same size take."""
        entries, shape = self.diffusion_model.entries, list(input_shape)
        if len(shape) == 4 and shape[1] in {2 * entry.channels for entry in entries}:
            shape[1] = entries[0].channels
        return super().memory_required(shape, *others, **named)  # type: ignore[misc]

    def extra_conds(self, **kwargs: Any) -> dict[str, Any]:
        """As the base model's.

        Raises:
            SpectralError: as there, and for ControlNets and GLIGEN.
        """
        for name, title in (("control", "A ControlNet"), ("gligen", "GLIGEN")):
            if kwargs.get(name) is not None:
                raise SpectralError(ADDED.format(title))
        return super().extra_conds(**kwargs)  # type: ignore[misc, no-any-return]


def place_of(options: dict[str, Any] | None) -> Place | None:
    """Where in an f-DM run a call with these `model_options` is; None of any other sampler."""
    place = (options or {}).get("transformer_options", {}).get(PLACE)
    return place if isinstance(place, Place) else None


def clean(args: dict[str, Any]) -> Tensor:
    """What a prediction says of the finished latents, [B, C, H, W] at their full size.

    Args:
        args: those of core's `sampler_post_cfg_function`; of a model without stages its `denoised` is that already.
    """
    denoised: Tensor = args["denoised"]
    place, model = place_of(args.get("model_options")), args.get("model")
    if place is None or not isinstance(model, StagedCalls):
        return denoised
    x, delta = denoised.chunk(2, dim=1)
    sizes = [shape[1:] for shape in model.process.shapes(model.diffusion_model.in_channels, place.size)]
    signal = x + delta if model.process.moves(place.stage) else x
    return model.process.upwards(signal, place.stage, sizes)


def octaves(args: dict[str, Any]) -> int:
    """How many times the latents of a prediction are halved against those of full size.

    Args:
        args: as of `clean`.
    """
    place, model = place_of(args.get("model_options")), args.get("model")
    if place is None or not isinstance(model, StagedCalls):
        return 0
    return int(model.diffusion_model.entries[place.stage].level)
