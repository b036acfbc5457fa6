"""Spectrum Trace and Spectrum Evolution: how the spectrum of the denoised prediction grows step by step (Figure 2)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..spectral import spectrum
from ..spectral.errors import SpectralError
from ..spectral.spectrum import Evolution, RadialSpectrum
from . import during, measured, show, staged
from .charts import Axis, Chart, Map, View
from .measured import CATEGORY, NYQUIST, WINDOW
from .plot import Series
from .recording import Record, traced_samplers

#: More steps are thinned out for the page, and finer rings are joined: its chart travels with the workflow.
MOST_STEPS, RINGS = 20, 40
#: Of how many steps a recording keeps the first image's prediction, about.
KEPT = 64
#: The side in pixels to which previews of latents are enlarged at least.
PREVIEW = 128
#: A map's colours end where a power is this many decades away from its final one.
DECADES = 2.0
THIS, FINAL = "#0072B2", "#000000"


@dataclass
class _Run:
    """One sampling: its predictions' spectra, and the noise levels at which they were made."""

    evolution: Evolution
    sigmas: list[float] = field(default_factory=list)
    failure: str | None = None


class SpectrumRecord:
    """The predictions of every sampling that a traced MODEL took part in; the last of each sampler node is kept.

    Args:
        window: of the spectra.
        latent_format: ComfyUI's, of the MODEL.
        sampling: its `model_sampling`.
    """

    def __init__(self, window: spectrum.Window, latent_format: Any, sampling: Any) -> None:
        self.latent_format, self.sampling = latent_format, sampling
        self._runs: Record[_Run] = Record(lambda: _Run(Evolution(window=window, pictures=KEPT)))

    def __deepcopy__(self, memo: Any) -> SpectrumRecord:
        """Itself, as `Record`."""
        return self

    def __call__(self, args: dict[str, Any]) -> Tensor:
        """Core's `sampler_post_cfg_function`: changes nothing. Of several predictions at one noise level the first."""
        denoised = staged.clean(args)
        run, sigma = self._runs.current(), float(args["sigma"].max())
        if run.failure is None and not (run.sigmas and math.isclose(run.sigmas[-1], sigma, rel_tol=1e-4)):
            try:
                run.evolution.add(sigma, _planes(denoised))
                run.sigmas.append(sigma)
            except SpectralError as error:  # the picture is worth more than its spectrum
                run.failure = str(error)
        return args["denoised"]  # type: ignore[no-any-return]

    def runs(self, samplers: set[str]) -> list[_Run]:
        """Of each sampling by these nodes, as `Record.of`; those with steps.

        Raises:
            SpectralError: nothing was recorded.
        """
        found = self._runs.of(samplers)
        made = [run for run in found if run.sigmas]
        if not made:
            why = next((run.failure for run in found if run.failure), None)
            raise SpectralError(
                why or "Spectrum Trace recorded nothing: connect its MODEL to the sampler whose LATENT comes here."
            )
        return made


def _planes(denoised: Tensor) -> Tensor:
    """A prediction as [B, C, H, W]; frames of a video are images.

    Raises:
        SpectralError: it has no height and width.
    """
    if denoised.ndim == 5:
        return denoised.movedim(2, 1).flatten(0, 1)
    if denoised.ndim != 4:
        raise SpectralError("Spectrum Trace needs latents of images or of video; this sampler's have no two sides.")
    return denoised


class SpectrumTrace:
    """Records the spectra of what a MODEL predicts."""

    CATEGORY = CATEGORY
    DESCRIPTION = (
        "Records the spectrum of the denoised prediction at every step while any sampler runs with this MODEL; the "
        "pictures stay the same to the last bit. Connect MODEL to the sampler, then evolution and the sampler's LATENT "
        "to Spectrum Evolution."
    )
    SEARCH_ALIASES = ("record spectrum", "frequency evolution", "figure 2", "denoised prediction")
    RETURN_TYPES = ("MODEL", "SPECTRAL_EVOLUTION")
    RETURN_NAMES = ("MODEL", "evolution")
    OUTPUT_TOOLTIPS = ("The same model, for the sampler.", "What was recorded, for Spectrum Evolution.")
    FUNCTION = "trace"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "model": ("MODEL", {"tooltip": "A model of any kind: a student, Stable Diffusion, a video model."}),
                "window": WINDOW,
            }
        }

    def trace(self, model: Any, window: spectrum.Window) -> tuple[Any, SpectrumRecord]:
        """A recording clone and its record."""
        made = model.clone()
        record = SpectrumRecord(window, made.model.latent_format, made.model.model_sampling)
        others = made.model_options.get("sampler_post_cfg_function", [])
        made.model_options["sampler_post_cfg_function"] = [*others, record]
        return made, record


class SpectrumEvolution:
    """Draws what Spectrum Trace recorded."""

    CATEGORY = CATEGORY
    DESCRIPTION = (
        "Draws the spectrum of the denoised prediction step by step (Figure 2 of the paper): diffusion models begin "
        "with the low frequencies and add the high ones later. Move the slider to go through the steps; connect a VAE "
        "to see each step's picture beside its spectrum."
    )
    SEARCH_ALIASES = ("frequency evolution", "figure 2", "denoising steps", "coarse to fine", "step scrubber")
    RETURN_TYPES = ("IMAGE", "IMAGE", "STRING")
    RETURN_NAMES = ("plot", "pictures", "table")
    OUTPUT_TOOLTIPS = (
        show.PLOT_TOOLTIP,
        "The first image's prediction at each of the steps that were drawn, from noise to picture.",
        show.TABLE_TOOLTIP,
    )
    OUTPUT_NODE = True
    FUNCTION = "draw"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        pictures = (
            "How many steps get a picture, spread evenly over the sampling. With a VAE each of them is decoded, which "
            "takes its time; without one they are rough previews."
        )
        return {
            "required": {
                "evolution": (
                    "SPECTRAL_EVOLUTION",
                    {"tooltip": "What Spectrum Trace recorded: its output evolution."},
                ),
                "samples": (
                    "LATENT",
                    {"tooltip": "From the sampler that uses Spectrum Trace's MODEL, so that the plot waits for it."},
                ),
                "pictures": ("INT", {"default": 12, "min": 1, "max": MOST_STEPS, "tooltip": pictures}),
            },
            "optional": {
                "vae": ("VAE", {"tooltip": "To show pictures instead of rough previews, and to draw their spectra."})
            },
            "hidden": {"prompt": "PROMPT", "node": "UNIQUE_ID"},
        }

    def draw(
        self,
        evolution: SpectrumRecord,
        samples: dict[str, Any],
        pictures: int,
        vae: Any = None,
        prompt: Any = None,
        node: str | None = None,
    ) -> dict[str, Any]:
        """Plot, pictures and table.

        Raises:
            SpectralError: nothing was recorded.
        """
        runs = evolution.runs(traced_samplers(prompt or {}, str(node), "evolution"))
        shown = [_Shown(run, evolution, pictures, vae) for run in runs]
        views = [view for index, one in enumerate(shown) for view in one.views(index if len(shown) > 1 else None)]
        last = shown[-1]
        chart = Chart(
            "Spectrum of the prediction",
            measured.frequency_axis(0.9 * float(last.frequency[0]), 0.75, "cell"),
            measured.power_axis("power of the denoised prediction"),
            views,
            notes=[f"predictions at {len(run.sigmas)} noise levels, latents of {_size(run)} cells" for run in runs],
            scrub=(1, "step"),
            drawn=_drawn(views),
        )
        table = show.csv(HEADER, (row for index, run in enumerate(runs) for row in _rows(index, run, evolution)))
        return {
            "ui": show.for_page(chart, table, {}),
            "result": (show.as_image(chart), last.pictures, table),
        }


class _Shown:
    """A run as it is drawn: some of its steps, with pictures."""

    def __init__(self, run: _Run, record: SpectrumRecord, pictures: int, vae: Any) -> None:
        self.run, count = run, len(run.sigmas)
        rings = run.evolution.final.count
        self.frequency = _joined(run.evolution.frequency, rings)
        self.power = _joined(run.evolution.power, rings)
        self.steps = _evenly(count, MOST_STEPS)
        kept = run.evolution.pictures
        self.places = [kept[index][0] for index in _evenly(len(kept), pictures)]
        chosen = torch.stack([kept[index][1] for index in _evenly(len(kept), pictures)])
        self.decoded = vae is not None
        self.pictures = _decoded(chosen, record, vae) if vae is not None else _previews(chosen, record)
        self.saved = [show.temporary(one) for one in self.pictures]

    def views(self, sampling: int | None) -> list[View]:
        """All of them.

        Args:
            sampling: its number where there are several.
        """
        suffix = "" if sampling is None else f", sampling {sampling + 1}"
        power = self.power
        made = [
            View(
                ("latent" + suffix, self._name(step)),
                _lines(self.frequency, power[step], power[-1]),
                marks=[NYQUIST],
                picture=self.saved[self._nearest(step)],
            )
            for step in self.steps
        ]
        made += self._of_pictures(suffix) if self.decoded else []
        return [*made, *self._together(suffix)]

    def _of_pictures(self, suffix: str) -> list[View]:
        """The spectra of the decoded pictures, against cycles per pixel."""
        planes = self.pictures.movedim(-1, 1)
        bins = min(spectrum.default_bins(*planes.shape[-2:]), RINGS)
        found = [spectrum.radial_spectrum(one[None], bins=bins) for one in planes]
        x = measured.frequency_axis(0.9 * float(found[-1].frequency[0]), 0.75)
        y = measured.power_axis("power of the decoded prediction")
        return [
            View(
                ("picture" + suffix, self._name(place)),
                _lines(one.frequency, one.power, found[-1].power),
                x=x,
                y=y,
                marks=[NYQUIST],
                picture=saved,
            )
            for place, one, saved in zip(self.places, found, self.saved, strict=True)
        ]

    def _together(self, suffix: str) -> list[View]:
        """All steps at once: powers as parts of their final ones, and when each frequency is there."""
        power, count = self.power, len(self.run.sigmas)
        ratio = (power / power[-1].clamp_min(1e-30)).clamp_min(1e-30).log10()
        rows = ratio[self.steps].flip(0).numpy()
        steps = Axis("step", low=0.5, high=count + 0.5)
        frequency = Axis("spatial frequency (cycles per cell)", low=0.0, high=float(self.frequency[-1]))
        label = "log10(power / final power)"
        shown = Map(rows, label, frequency, steps, -DECADES, DECADES, diverging=True, square=False)
        settled = (self.run.evolution.settled() + 1).numpy().astype(float)
        there = Series("first step", self.run.evolution.frequency.numpy(), settled)
        when = Axis("step from which the power is within a factor of 2 of its final one", low=0.0, high=count + 1.0)
        return [
            View(("all steps" + suffix, ""), map=shown),
            View(("when it is there" + suffix, ""), [there], y=when, marks=[NYQUIST]),
        ]

    def _name(self, step: int) -> str:
        return f"{step + 1} of {len(self.run.sigmas)}"

    def _nearest(self, step: int) -> int:
        """Which of the pictures is nearest to a step."""
        return min(range(len(self.places)), key=lambda index: abs(self.places[index] - step))


def _joined(values: Tensor, count: Tensor) -> Tensor:
    """Values [..., R] of rings that hold `count` [R] frequencies, neighbours joined until there are RINGS at most."""
    every = -(-len(count) // RINGS)
    groups = torch.arange(len(count)) // every
    weight = torch.zeros(int(groups[-1]) + 1, dtype=values.dtype).index_add_(0, groups, count.to(values.dtype))
    sums = values.new_zeros(*values.shape[:-1], len(weight)).index_add_(-1, groups, values * count)
    return sums / weight


def _lines(frequency: Tensor, power: Tensor, final: Tensor) -> list[Series]:
    return [
        Series("this step", frequency.numpy(), power.numpy(), colour=THIS),
        Series("last step", frequency.numpy(), final.numpy(), dashed=True, colour=FINAL),
    ]


def _evenly(count: int, most: int) -> list[int]:
    """At most so many of 0 … count − 1, evenly, the first and the last among them."""
    return sorted({round(place) for place in np.linspace(0, count - 1, min(count, most)).tolist()}) or [0]


def _drawn(views: list[View]) -> tuple[int, ...]:
    """For the picture: an early step, a late one, and all of them."""
    steps = [index for index, view in enumerate(views) if view.name[0] == views[0].name[0]]
    whole = next(index for index, view in enumerate(views) if view.map is not None)
    return tuple(dict.fromkeys((steps[len(steps) // 4], steps[(3 * len(steps)) // 4], whole)))


def _decoded(latents: Tensor, record: SpectrumRecord, vae: Any) -> Tensor:
    """[N, H, W, 3] in [0, 1] of predictions [N, C, h, w] in the model's scale, one at a time, interruptible."""
    done = measured.progress(len(latents))
    made = []
    for latent in latents:
        image = vae.decode(record.latent_format.process_out(latent[None]))
        made.append(image.reshape(-1, *image.shape[-3:])[:1, ..., :3].float().cpu().clamp(0, 1))
        done(1)
    return torch.cat(made)


def _previews(latents: Tensor, record: SpectrumRecord) -> Tensor:
    """[N, H, W, 3] in [0, 1]: colours by the model's own linear map, or its first channels in grey; enlarged."""
    factors = getattr(record.latent_format, "latent_rgb_factors", None)
    if factors is not None and len(factors) == latents.shape[1]:
        bias = getattr(record.latent_format, "latent_rgb_factors_bias", None) or [0.0] * 3
        colours = torch.einsum("nchw,cr->nrhw", latents, torch.tensor(factors)) + torch.tensor(bias)[:, None, None]
        pictures = (colours + 1) / 2
    else:
        spread = latents.std((-2, -1), keepdim=True).clamp_min(1e-6)
        pictures = ((latents / spread).mean(1, keepdim=True) / 4 + 0.5).expand(-1, 3, -1, -1)
    scale = max(1, -(-PREVIEW // max(latents.shape[-2:])))
    return pictures.repeat_interleave(scale, -2).repeat_interleave(scale, -1).clamp(0, 1).movedim(1, -1)


HEADER = ("sampling", "step", "sigma", "percent", "cycles_per_cell", "power")


def _rows(index: int, run: _Run, record: SpectrumRecord) -> Any:
    """Every step that was recorded, ring by ring."""
    frequency = run.evolution.frequency.tolist()
    for step, (sigma, power) in enumerate(zip(run.sigmas, run.evolution.power.tolist(), strict=True), start=1):
        percent = during.percent_of(record.sampling, sigma)
        for cycles, value in zip(frequency, power, strict=True):
            yield index + 1, step, sigma, percent, cycles, value


def _size(run: _Run) -> str:
    final: RadialSpectrum = run.evolution.final
    return f"{final.size[1]:g} x {final.size[0]:g}"
