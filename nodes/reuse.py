"""Reuse Deep Features: most steps run the outer blocks of the U-Net alone (DeepCache: Ma et al., 2023)."""

from __future__ import annotations

from typing import Any

from ..spectral.deep_features import DeepFeatures, Reuse
from . import during
from .during import Range
from .model import companions_of
from .patches import REUSE, Moment
from .recording import executing

try:
    from comfy.patcher_extension import WrappersMP
except ImportError:  # before 2025
    WrappersMP = None


class ReuseDeepFeatures:
    """Saves the deep blocks of the U-Net in most steps of the sampling."""

    CATEGORY = "spectral diffusion"
    DESCRIPTION = (
        "Makes sampling faster with any model of Load Checkpoint (Spectral Diffusion), without training (DeepCache). "
        "The deep blocks of the U-Net are run at every so many-th step only; in between their last features are used "
        "again, and the outer blocks alone are computed. With every at 1 nothing changes at all."
    )
    SEARCH_ALIASES = ("DeepCache", "speed up", "faster sampling", "cache", "skip blocks", "feature reuse")
    RETURN_TYPES = ("MODEL",)
    OUTPUT_TOOLTIPS = ("The faster model; the one that came in stays as it was.",)
    FUNCTION = "patch"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        every = (
            "Every so many-th call the whole U-Net is run, at the others its outer blocks. 1: always all of it; 2 or 3 "
            "is hardly seen over many steps; higher is faster and coarser."
        )
        outer = (
            "How many blocks are run at every call, counted from the outside: 1 is the least and the fastest; more "
            "stay closer to the picture without reuse. At the number that the U-Net has, all of it is run."
        )
        widgets = during.widgets("reuse")
        return {
            "required": {
                "model": ("MODEL", {"tooltip": "A model from Load Checkpoint (Spectral Diffusion)."}),
                "every": ("INT", {"default": 2, "min": 1, "max": 100, "tooltip": every}),
                "outer_blocks": ("INT", {"default": 1, "min": 1, "max": 100, "tooltip": outer}),
                "start_percent": widgets["start_percent"],
                "end_percent": widgets["end_percent"],
            }
        }

    @classmethod
    def VALIDATE_INPUTS(cls, start_percent: float | None = None, end_percent: float | None = None) -> bool | str:
        return during.validate(start_percent, end_percent)

    def patch(self, model: Any, every: int, outer_blocks: int, start_percent: float, end_percent: float) -> tuple[Any]:
        """A clone that reuses features; another of these nodes before this one counts no more.

        Raises:
            SpectralError: the model comes from another loader.
        """
        last_step = companions_of(model).config.schedule.steps - 1
        made, when = model.clone(), Range(start_percent, end_percent)
        options = made.model_options["transformer_options"]
        without(made)
        if every > 1:
            options[REUSE] = Sampling(Reuse(every, outer_blocks), when, last_step)
            if WrappersMP is not None:
                made.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, REUSE, _forgetting)
        return (made,)


def without(model: Any) -> Any:
    """The MODEL itself, which reuses nothing from now on."""
    model.model_options["transformer_options"].pop(REUSE, None)
    if WrappersMP is not None:
        model.remove_wrappers_with_key(WrappersMP.OUTER_SAMPLE, REUSE)
    return model


class Sampling:
    """What the samplings with one MODEL remember, one after the other, for `patches.Patches`.

    Batches of a step are told apart by their conditionings and by how often the same is asked at one noise level, as
    Perturbed-Attention Guidance does. What a step does not ask about is forgotten. Another run, or a noise level above
    the last one, begins anew.

    Args:
        reuse: how much is reused.
        when: the part of the sampling in which it is.
        last_step: the schedule's time step of pure noise.
    """

    def __init__(self, reuse: Reuse, when: Range, last_step: int) -> None:
        self.reuse, self.when, self.last_step = reuse, when, last_step
        self.forget()

    def __deepcopy__(self, memo: Any) -> Sampling:
        """The same settings with nothing remembered, for a clone of the MODEL."""
        return Sampling(self.reuse, self.when, self.last_step)

    def forget(self) -> None:
        """Let go of all features."""
        self._before: dict[Any, DeepFeatures] = {}
        self._now: dict[Any, DeepFeatures] = {}
        self._run: Any = None
        self._timestep, self._sigmas = 0.0, None

    def features(self, moment: Moment) -> DeepFeatures | None:
        """What this call remembers by; None where nothing is reused."""
        run, sigmas = executing(), moment.options.get("sigmas")
        if run != self._run or moment.timestep > self._timestep:
            self.forget()
        self._run, self._timestep = run, moment.timestep
        if sigmas is None or not self.when.strength(1 - moment.timestep / self.last_step):
            return None
        if sigmas is not self._sigmas:
            self._sigmas, self._before, self._now = sigmas, self._now, {}
        asked = (*moment.options.get("uuids", ()), *moment.options.get("cond_or_uncond", ()))
        batch = (*asked, sum(known[:-1] == asked for known in self._now))
        self._now[batch] = self._before.get(batch) or DeepFeatures(self.reuse)
        return self._now[batch]


def _forgetting(sample: Any, *given: Any, **named: Any) -> Any:
    """Core's wrapper of a whole sampling: no features stay in memory behind it."""
    try:
        return sample(*given, **named)
    finally:
        sampling = sample.class_obj.model_options.get("transformer_options", {}).get(REUSE)
        if sampling is not None:
            sampling.forget()
