"""Wavelet Guidance: classifier-free guidance with a scale of its own for each band of a wavelet transform.

It works on what the sampler is told, the denoised prediction, so it works with any network, latent and sampler. With D
the prediction that all other nodes agreed on and U that of the negative conditioning, plain guidance has made
D = U + cfg · (C − U). Band b of the difference D − U is multiplied by w_b:  D' = D + Σ_b (w_b − 1) B_b(D − U).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from ..spectral import bands
from ..spectral.bands import MAX_LEVELS, BandWeights
from ..spectral.errors import SpectralError
from . import during, staged
from .during import Range

ORIENTATIONS = ("horizontal", "vertical", "diagonal")
LEVELS = range(1, MAX_LEVELS + 1)
CATEGORY = "spectral diffusion"
#: Below this norm there is nothing to keep.
TINY = 1e-12


class WaveletBands:
    """A factor for each level and orientation."""

    CATEGORY = CATEGORY
    DESCRIPTION = (
        "Sixteen sliders for Wavelet Guidance: five levels of detail from the finest on, each apart for horizontal, "
        "vertical and diagonal structure, and low for the layout below them. Connect it to guidance_bands or "
        "prediction_bands there. With everything at 1 nothing changes."
    )
    SEARCH_ALIASES = ("frequency bands", "band weights", "equalizer", "orientation")
    RETURN_TYPES = ("WAVELET_BANDS",)
    RETURN_NAMES = ("bands",)
    OUTPUT_TOOLTIPS = ("The factors, for guidance_bands or prediction_bands of Wavelet Guidance.",)
    FUNCTION = "make"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        low = _factor("low, the layout and large areas of colour: all that is coarser than Wavelet Guidance's levels")
        each = {
            f"{orientation}_{level}": _factor(f"{orientation} structure of {_octave(level)}")
            for level in LEVELS
            for orientation in ORIENTATIONS
        }
        return {"required": {"low": low, **each}}

    def make(self, low: float, **factors: float) -> tuple[BandWeights]:
        """Weights of all levels; Wavelet Guidance takes as many of them as it has levels."""
        each = tuple(tuple(factors[f"{name}_{level}"] for name in ORIENTATIONS) for level in LEVELS)
        return (BandWeights(each, low),)  # type: ignore[arg-type]


class WaveletGuidance:
    """Guidance by bands, for any MODEL."""

    CATEGORY = CATEGORY
    DESCRIPTION = (
        "Gives details and layout a guidance of their own: cfg is multiplied by level_1 for the finest details, by "
        "level_2 for those twice as large, and so on, and by low for the layout and the large areas of colour. For any "
        "model and sampler, Stable Diffusion, DiTs and video included. A setting means the same at every resolution. "
        "With everything at 1 nothing changes."
    )
    SEARCH_ALIASES = ("wavelet cfg", "frequency guidance", "cfg per frequency", "detail guidance", "equalizer")
    RETURN_TYPES = ("MODEL",)
    OUTPUT_TOOLTIPS = ("The model with guidance by bands; the one that came in stays as it was.",)
    FUNCTION = "patch"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        count = (
            "Into how many levels of detail the latent is taken apart. All that is coarser belongs to low; the sliders "
            "of further levels then have no effect."
        )
        wavelet = (
            "The wavelet that takes the latent apart. haar keeps changes where they belong; db4, sym4 and bior4.4 part "
            "frequencies more smoothly and spread changes a little."
        )
        norm = (
            "Scale the result so that it is as strong overall (in its norm) as with plain guidance: settings far from "
            "1 then change the character of the picture more than its contrast. A contrast that is too strong because "
            "of a high cfg stays: to lower that by factors below 1, leave this off."
        )
        guidance = (
            "From Wavelet Bands: further factors of the guidance, apart for each orientation; they multiply those here."
        )
        prediction = (
            "From Wavelet Bands: factors of the denoised prediction itself, after guidance. They change the contrast "
            "of each band directly and work at any cfg; stay within 0.8 to 1.2 at first."
        )
        return {
            "required": {
                "model": ("MODEL", {"tooltip": "Any model, from any loader."}),
                "wavelet": (wavelet_names(), {"default": "haar", "tooltip": wavelet}),
                "levels": ("INT", {"default": 3, "min": 1, "max": MAX_LEVELS, "tooltip": count}),
                "low": _factor(
                    "the guidance of the layout and large areas of colour: all that is coarser than the levels"
                ),
                **{f"level_{level}": _factor(f"the guidance of {_octave(level)}") for level in LEVELS},
                **during.widgets("the change"),
                "preserve_norm": ("BOOLEAN", {"default": False, "tooltip": norm}),
            },
            "optional": {
                "guidance_bands": ("WAVELET_BANDS", {"tooltip": guidance}),
                "prediction_bands": ("WAVELET_BANDS", {"tooltip": prediction}),
            },
        }

    @classmethod
    def VALIDATE_INPUTS(cls, start_percent: float | None = None, end_percent: float | None = None) -> bool | str:
        return during.validate(start_percent, end_percent)

    def patch(
        self,
        model: Any,
        wavelet: str,
        levels: int,
        low: float,
        start_percent: float,
        end_percent: float,
        curve: str,
        preserve_norm: bool,
        guidance_bands: BandWeights | None = None,
        prediction_bands: BandWeights | None = None,
        **scales: float,
    ) -> tuple[Any]:
        """A clone whose guidance goes by bands; without a patch where every factor is 1.

        Raises:
            SpectralError: a range that cannot be.
        """
        made = model.clone()
        sliders = tuple((scales[f"level_{level}"],) * 3 for level in LEVELS)
        guidance = _product(BandWeights(sliders, low), guidance_bands, levels)
        prediction = _product(prediction_bands, None, levels)
        when = Range(start_percent, end_percent, curve)
        if not (guidance.neutral and prediction.neutral):
            change = GuidanceChange(wavelet, guidance, prediction, when, preserve_norm)
            # At cfg 1 core leaves the negative conditioning out, which guidance by bands needs all the same.
            made.set_model_sampler_post_cfg_function(change, disable_cfg1_optimization=not guidance.neutral)
        return (made,)


@dataclass(frozen=True)
class GuidanceChange:
    """Core's `sampler_post_cfg_function`: the denoised prediction in, the changed one out."""

    wavelet: str
    guidance: BandWeights
    prediction: BandWeights
    when: Range
    preserve_norm: bool

    def __call__(self, args: dict[str, Any]) -> Tensor:
        """Latents [B, C, H, W], [B, C, T, H, W] (each frame on its own) or [B, C, L] (one row), of the same shape.

        Latents of two kinds, video and sound, come as one row [B, 1, N]; each kind is changed on its own.

        Raises:
            SpectralError: the sampler has no negative conditioning, which guidance needs, or an axis is too long.
        """
        denoised: Tensor = args["denoised"]
        strength = self.when.strength(during.percent_of(args["model"].model_sampling, args["sigma"]))
        if not strength:
            return denoised
        changed, kinds, halved = denoised, _packed(args, denoised), staged.octaves(args)
        if not self.guidance.neutral:
            weights = _of_smaller(self.guidance, halved)
            changed = changed + strength * self._change(denoised - _negative(args), weights, kinds)
        if not self.prediction.neutral:
            changed = changed + strength * self._change(changed, _of_smaller(self.prediction, halved), kinds)
        return _with_norm_of(denoised, changed) if self.preserve_norm else changed

    def _change(self, x: Tensor, weights: BandWeights, kinds: list[list[int]]) -> Tensor:
        """Σ_b (w_b − 1) B_b(x); a latent with one axis of positions is taken for a single row.

        Args:
            kinds: without the batch, the shapes of the latents that x holds one after the other, or none.
        """
        if kinds:
            parts = x.split([math.prod(shape) for shape in kinds], dim=-1)
            shaped = (part.reshape(len(x), *shape) for part, shape in zip(parts, kinds, strict=True))
            return torch.cat([self._change(part, weights, []).reshape(len(x), 1, -1) for part in shaped], dim=-1)
        planes = x if x.ndim > 3 else x.unsqueeze(-2)
        return bands.change(planes, weights, self.wavelet).reshape(x.shape)


@cache
def wavelet_names() -> list[str]:
    """Haar first, then every other discrete filter bank of PyWavelets, where that is installed."""
    try:
        import pywt
    except ImportError:
        return ["haar"]
    return ["haar", *(name for name in pywt.wavelist(kind="discrete") if name != "haar")]


def _negative(args: dict[str, Any]) -> Tensor:
    """The denoised prediction of the negative conditioning."""
    negative: Tensor | None = args.get("uncond_denoised")
    if negative is None or args.get("uncond") is None:
        raise SpectralError(
            "Wavelet Guidance scales what the positive conditioning adds to the negative one, and this sampler has no "
            "negative one. Use a guider with both, such as CFGGuider instead of BasicGuider; or leave low and all "
            "levels at 1 and connect prediction_bands, which need none."
        )
    return negative


def _packed(args: dict[str, Any], denoised: Tensor) -> list[list[int]]:
    """The shapes, without the batch, of several latents that core has packed into one row; [] for an ordinary one."""
    conds = args.get("cond") or args.get("uncond")
    shapes = conds[0].get("model_conds", {}).get("latent_shapes") if isinstance(conds, list) and conds else None
    found = [list(shape[1:]) for shape in getattr(shapes, "cond", None) or ()]
    fits = denoised.ndim == 3 and denoised.shape[1] == 1 and sum(map(math.prod, found)) == denoised.shape[2]
    return found if len(found) > 1 and fits else []


def _product(first: BandWeights | None, second: BandWeights | None, levels: int) -> BandWeights:
    """Both applied, of the first `levels` levels."""
    plain = BandWeights(((1.0, 1.0, 1.0),) * MAX_LEVELS)
    one, other = first or plain, second or plain
    each = tuple(
        tuple(a * b for a, b in zip(*pair, strict=True)) for pair in zip(one.levels, other.levels, strict=True)
    )
    return BandWeights(each[:levels], one.low * other.low)  # type: ignore[arg-type]


def _of_smaller(weights: BandWeights, octaves: int) -> BandWeights:
    """The weights of the bands that are left of a latent when it is halved so many times, as in a stage of f-DM.

    Of such a model's prediction, x_t and δ_t = x^k − x_t, both are weighed alike, so that they still belong together.
    """
    left = weights.levels[octaves:]
    return BandWeights(left or ((weights.low,) * 3,), weights.low)


def _with_norm_of(plain: Tensor, changed: Tensor) -> Tensor:
    """`changed` with each sample's root of summed squares as in `plain`."""
    axes = tuple(range(1, plain.ndim))
    wanted, found = (torch.linalg.vector_norm(x.float(), dim=axes, keepdim=True) for x in (plain, changed))
    return changed * (wanted / found.clamp_min(TINY)).to(changed.dtype)


def _octave(level: int) -> str:
    """What a level holds, for a person."""
    size = "the finest details" if level == 1 else f"details {2 ** (level - 1)} times as large as the finest"
    return f"level {level}, {size} (waves of {2**level} to {2 ** (level + 1)} latent pixels)"


def _factor(of: str) -> tuple[str, dict[str, Any]]:
    """A slider that is neutral at 1."""
    options = {"default": 1.0, "min": -10.0, "max": 10.0, "step": 0.05, "round": 0.001}
    return ("FLOAT", {**options, "tooltip": f"Factor of {of}. 1 changes nothing, 0 removes it."})
