"""f-DM Sampler: a SAMPLER that takes students of several stages from small to large pictures, in core's samplers."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import Any

import comfy.model_management
import comfy.sample
import comfy.samplers
import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..spectral import fdm
from ..spectral.errors import SpectralError
from ..spectral.fdm import CLEAN, FreshNoise, Process, Read, Step
from ..spectral.fdm.transforms import Size
from . import fdm_parts, inputs
from .fdm_parts import Kept
from .model import OWN_LATENT
from .staged import PLACE, REPLACED, Place, StagedCalls, StagedSampling

NOT_STAGED = (
    "f-DM Sampler is for students that work in stages, and this MODEL has none; use KSampler, or KSamplerSelect with "
    "SamplerCustom (its ddim takes the same steps)."
)
RISING = "f-DM Sampler goes from noise to picture, and these SIGMAS rise on the way; take Flip Sigmas away."
ENDS_SMALL = (
    "These SIGMAS end with noise left in stage {}, whose pictures are smaller than the latents or blurred, and no "
    "other sampler can go on from there; let them end at or below {:.4g}, where the last stage begins, or at 0."
)
BEGINS_SMALL = (
    "Without noise of its own a sampler goes on where another one stopped, and that is the last stage alone; these "
    "SIGMAS begin in stage {}. Turn add_noise on, or let them begin at or below {:.4g}."
)


class FDMSampler:
    """The node that makes one."""

    CATEGORY = "spectral diffusion"
    DESCRIPTION = (
        "The sampler for f-DM students, which begin with small or blurred pictures and come to the full ones in "
        "stages: the first steps cost a fraction. Connect it to sampler of SamplerCustom, and a scheduler of the same "
        "MODEL to its sigmas. Load Checkpoint (Spectral Diffusion) says in its info whether a student works in stages."
    )
    SEARCH_ALIASES = ("fdm", "multi-stage sampler", "progressive sampler", "stages", "coarse to fine", "ddim")
    RETURN_TYPES = ("SAMPLER",)
    OUTPUT_TOOLTIPS = ("For sampler of SamplerCustom or SamplerCustomAdvanced.",)
    FUNCTION = "make"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        eta = (
            "How much of the noise is made anew at each step. 0: none, the same picture from few steps as from many "
            "(DDIM); 1: as much as training had (ancestral), for more variety of detail with many steps."
        )
        options = {"default": 0.0, "min": 0.0, "max": 1.0, "step": 0.01, "round": 0.001, "tooltip": eta}
        return {"required": {"eta": ("FLOAT", options)}}

    def make(self, eta: float) -> tuple[StagedSampler]:
        return (StagedSampler(eta),)


class StagedSampler(comfy.samplers.Sampler):  # type: ignore[misc]
    """Core's interface around `Run`.

    Args:
        eta: 0 is DDIM, 1 ancestral sampling.
    """

    def __init__(self, eta: float) -> None:
        self.eta = eta

    @torch.no_grad()
    def sample(
        self,
        model_wrap: Any,
        sigmas: Tensor,
        extra_args: dict[str, Any],
        callback: Any,
        noise: Tensor,
        latent_image: Tensor | None = None,
        denoise_mask: Tensor | None = None,
        disable_pbar: bool = False,
    ) -> Tensor:
        """Latents [B, C, H, W] in the model's scale, at the last of the sigmas.

        Args:
            model_wrap: what core samples with: (x, σ, **extra_args) → the prediction.
            sigmas: falling, of the base schedule; the nearest to the stages' boundaries are moved there.
            callback: called with step, x_0 at full size, the same again, and the number of steps.
            noise: white noise, or zeros where a sampling goes on.

        Raises:
            SpectralError: a MODEL without stages, or sigmas that lead through them nowhere.
        """
        latent = torch.zeros_like(noise) if latent_image is None else latent_image
        if len(sigmas) < 2:
            return latent
        model = model_wrap.inner_model
        _check(model, noise)
        # Core casts its own layers where memory is short, and leaves all others where they are.
        model.diffusion_model.stage_pairs.to(noise.device)
        walk = _walk(model, sigmas)
        run = Run(model_wrap, extra_args, walk, self.eta, _size(noise))
        run.check_end()
        known = bool(noise.any())
        fresh = FreshNoise(noise if known else _other_noise(latent, extra_args.get("seed") or 0))
        noises = fdm_parts.noises(model.process, noise, walk[0].stage, fresh)
        whole = self.max_denoise(model_wrap, sigmas)
        z = run.begin(latent, noises, whole) if known else run.go_on(latent)
        kept = None if denoise_mask is None else Kept(model.process, latent, noises, run.masks(denoise_mask, sigmas))
        z = run.through(z, kept, fresh, callback, disable_pbar)
        return z if walk[-1].to == CLEAN else z / run.alpha(walk[-1].to, 0)


@dataclass
class Run:
    """One sampling.

    Args:
        guider, arguments: what is asked for predictions, and what it is given besides the latent.
        walk: its steps.
        eta: as of `StagedSampler`.
        full: height and width of the latents in cells.
    """

    guider: Any
    arguments: dict[str, Any]
    walk: list[Step]
    eta: float
    full: Size

    def __post_init__(self) -> None:
        self.model = self.guider.inner_model
        self.process: Process = self.model.process
        self.sampling: Any = self.model.model_sampling
        self.sizes = [shape[1:] for shape in self.process.shapes(self.model.diffusion_model.in_channels, self.full)]

    def alpha(self, step: int, stage: int) -> float:
        """α_t of a stage, above 0 also where the schedule ends in noise alone."""
        return float((1.0 + self.sampling.level(step, stage) ** 2) ** -0.5)

    def begin(self, latent: Tensor, noises: list[Tensor], whole: bool) -> Tensor:
        """z of the first step, from latents [B, C, H, W] and the noise of every stage.

        Args:
            whole: the sampling begins at noise alone; what latents are there lie below it, as in core's samplers.
        """
        stage, t = self.walk[0].stage, _times(self.walk[0].t, latent)
        if whole and not bool(latent.any()):
            return noises[stage]
        point = self.process.point(latent, t, stage)
        if whole:
            return self.alpha(self.walk[0].t, stage) * point.x + noises[stage]
        return self.process.noised(point.x, t, stage, noises[stage])

    def go_on(self, latent: Tensor) -> Tensor:
        """z of the first step, from latents that another sampling has left with their noise.

        Raises:
            SpectralError: they are of another stage than the last one.
        """
        first = self.walk[0]
        if first.stage:
            raise SpectralError(BEGINS_SMALL.format(first.stage, self._entry()))
        return latent * self.alpha(first.t, 0)

    def check_end(self) -> None:
        """Refuse to stop where nothing can go on.

        Raises:
            SpectralError: the run ends with noise in a stage whose signal is no latent.
        """
        last = self.walk[-1]
        stage = last.stage - last.crosses
        if last.to != CLEAN and stage:
            raise SpectralError(ENDS_SMALL.format(stage, self._entry()))

    def _entry(self) -> float:
        """σ of the boundary that stage 0 begins at."""
        return float(self.sampling.sigmas[self.process.boundaries[1]])

    def masks(self, mask: Tensor, sigmas: Tensor) -> Any:
        """Of σ [B], where to paint; Differential Diffusion makes another mask at every step."""
        change = self.arguments["model_options"].get("denoise_mask_function")
        if change is None:
            return lambda _sigma: mask
        return lambda sigma: change(sigma, mask, extra_options={"model": self.guider, "sigmas": sigmas})

    def through(self, z: Tensor, kept: Kept | None, fresh: FreshNoise, callback: Any, silent: bool) -> Tensor:
        """z [B, C, H, W] of where the run ends, from that of its first step.

        Args:
            kept: of inpainting.
            fresh: noise for what grows.
            callback: core's, or None.
            silent: no progress bar in the console.
        """
        walk = tqdm(self.walk, disable=silent)
        for stage, steps in groupby(enumerate(walk), key=lambda pair: pair[1].stage):
            cells = 2 ** self.model.diffusion_model.entries[stage].level
            with fdm_parts.conditioned_at(self.guider, self.arguments, self.sizes[stage], cells) as arguments:
                told = _told(arguments, Place(stage, self.full))
                for index, step in steps:
                    comfy.model_management.throw_exception_if_processing_interrupted()
                    z, read = self._step(z, step, kept, fresh, told)
                    if callback is not None:
                        x_0 = self.process.upwards(self.process.finished(read, stage), stage, self.sizes)
                        # For the noisy latents too, whose size and noise are another in every stage.
                        callback(index, x_0, x_0, len(self.walk))
        return z

    def _step(
        self, z: Tensor, step: Step, kept: Kept | None, fresh: FreshNoise, told: dict[str, Any]
    ) -> tuple[Tensor, Read]:
        """z after a step, of the stage that it has come to, and what was predicted in the one before."""
        stage, t = step.stage, _times(step.t, z)
        sigma = self.sampling.sigmas[step.t].to(z).expand(len(z)).contiguous()
        alpha = self.alpha(step.t, stage)
        if kept is not None:
            point, mask = kept.point(t, stage), kept.new(sigma, stage)
            z = fdm_parts.mixed(z, self.process.noised(point.x, t, stage, kept.noises[stage]), mask)
        asked = torch.cat([z / alpha, torch.zeros_like(z)], dim=1)
        x, delta = self.guider(asked, sigma, **told).to(z).chunk(2, dim=1)
        if kept is not None:
            x, delta = fdm_parts.mixed(x, point.x, mask), fdm_parts.mixed(delta, point.delta, mask)
        read = Read(x, (z - alpha * x) / (1.0 - alpha**2) ** 0.5, delta)
        z = fdm.advance(self.process, step, read, fresh, self.sizes, eta=self.eta)
        if kept is not None and step.to == CLEAN:
            z = fdm_parts.mixed(z, kept.latent, mask)
        return z, read


def _check(model: Any, noise: Tensor) -> None:
    """That a MODEL has stages, its own schedule, and latents of its own.

    Raises:
        SpectralError: it has not.
    """
    if not isinstance(model, StagedCalls):
        raise SpectralError(NOT_STAGED)
    if not isinstance(model.model_sampling, StagedSampling):
        raise SpectralError(REPLACED)
    inputs.latent_shape(noise.shape, "This model", model.diffusion_model.in_channels, OWN_LATENT)


def _walk(model: Any, sigmas: Tensor) -> list[Step]:
    """The steps through the stages that noise levels of the base schedule ask for.

    Raises:
        SpectralError: they rise, or are fewer than the stages.
    """
    times = [int(t) for t in model.model_sampling.timestep(sigmas)]
    if any(after > before for before, after in pairwise(times)):
        raise SpectralError(RISING)
    if float(sigmas[-1]) <= 0:
        times[-1] = CLEAN
    return fdm.plan(model.process, times)


def _other_noise(latent: Tensor, seed: int) -> Tensor:
    """What the fresh noise of a run that goes on comes of; not that of the run before, which may have had this seed."""
    made: Tensor = comfy.sample.prepare_noise(latent.cpu(), (seed + 1) % 2**64)
    return made.to(latent)


def _told(arguments: dict[str, Any], place: Place) -> dict[str, Any]:
    """The arguments, in which the network is told its stage."""
    options = arguments.get("model_options", {})
    transformer_options = {**options.get("transformer_options", {}), PLACE: place}
    return {**arguments, "model_options": {**options, "transformer_options": transformer_options}}


def _times(step: int, like: Tensor) -> Tensor:
    return torch.full((len(like),), step, device=like.device, dtype=torch.long)


def _size(x: Tensor) -> Size:
    return (x.shape[2], x.shape[3])
