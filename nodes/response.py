"""Denoiser Response: what a MODEL does to every frequency at every noise level, against the Wiener optimum."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import comfy.sample
import comfy.samplers
import torch
from torch import Tensor

from ..spectral import spectrum
from ..spectral.colours import of_names
from ..spectral.errors import SpectralError
from ..spectral.spectrum import Response
from . import measured, show
from .charts import Axis, Chart, View
from .levels import Levels, levels_of
from .measured import CATEGORY, NYQUIST
from .plot import Series
from .reuse import without
from .show import PLOT_TOOLTIP, TABLE_TOOLTIP
from .staged import StagedCalls
from .wiener import clean, scaled

#: Probes that go through the model at a time; each is two latents.
BATCH = 8
OPTIMUM = "Wiener optimum"


class DenoiserResponse:
    """The gain of one or two models over frequency and noise level."""

    CATEGORY = CATEGORY
    DESCRIPTION = (
        "Adds small waves of every frequency to noisy latents and measures how much of each comes through a MODEL, at "
        "several noise levels, beside the best that a linear denoiser can do; with a second MODEL, teacher and student "
        "side by side. Where a student's curve falls below its teacher's, it follows less of the detail; a gain below "
        "the optimum is no fault by itself."
    )
    SEARCH_ALIASES = ("frequency response", "transfer function", "wiener", "student against teacher", "gain")
    RETURN_TYPES = ("IMAGE", "FLOAT", "STRING")
    RETURN_NAMES = ("plot", "difference", "table")
    OUTPUT_TOOLTIPS = (
        PLOT_TOOLTIP,
        "The mean size of the difference between model and model_2 in the share that comes through, over all "
        "frequencies and levels; without model_2, between model and the Wiener optimum.",
        TABLE_TOOLTIP,
    )
    OUTPUT_NODE = True
    FUNCTION = "measure"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        names = (
            "What the models are called, with a comma between. A name that speaks of a teacher, a student or lite has "
            "that model's colour in every chart."
        )
        probes = "Waves for each frequency and level: more make the bands narrower and take longer."
        latents = "Clean latents, such as Example Images through VAE Encode; the more, the better the optimum is known."
        return {
            "required": {
                "model": ("MODEL", {"tooltip": "The model to probe, or the teacher of two."}),
                "positive": ("CONDITIONING", {"tooltip": "What model is told: Unconditional, a label or a text."}),
                "samples": ("LATENT", {"tooltip": latents}),
                "names": ("STRING", {"default": "teacher, student", "tooltip": names}),
                "levels": ("INT", {"default": 4, "min": 1, "max": 8, "tooltip": "How many noise levels to probe at."}),
                "frequencies": ("INT", {"default": 10, "min": 2, "max": 32, "tooltip": "How many frequencies."}),
                "probes": ("INT", {"default": 16, "min": 2, "max": 256, "tooltip": probes}),
                "probe_seed": (
                    "INT",
                    {
                        "default": 0,
                        "min": 0,
                        "max": 2**53,
                        "tooltip": "Of noise and waves; both models get the same.",
                    },
                ),
            },
            "optional": {
                "model_2": ("MODEL", {"tooltip": "Another model for the same latents, such as the student."}),
                "positive_2": ("CONDITIONING", {"tooltip": "What model_2 is told; by default the same as model."}),
            },
        }

    def measure(
        self,
        model: Any,
        positive: Any,
        samples: dict[str, Tensor],
        names: str,
        levels: int,
        frequencies: int,
        probes: int,
        probe_seed: int,
        model_2: Any = None,
        positive_2: Any = None,
    ) -> dict[str, Any]:
        """Plot, difference and table.

        Raises:
            SpectralError: latents that are none of images, or that the models cannot take.
        """
        asked = [(model, positive)]
        if model_2 is not None:
            asked.append((model_2, positive_2 if positive_2 is not None else positive))
        called = _names(names, len(asked))
        latents = _latents(samples, [one for one, _ in asked])
        one_count = spectrum.probe_count((latents.shape[-2], latents.shape[-1]), levels, frequencies, probes)
        done = measured.progress(one_count * len(asked))
        settings = {"rings": frequencies, "probes": probes, "seed": probe_seed, "batch": BATCH, "progress": done}
        known = [levels_of(one, levels) for one, _ in asked]
        found = {
            name: _response(one, condition, latents, at, settings)
            for name, (one, condition), at in zip(called, asked, known, strict=True)
        }
        first, *others = found.values()
        other = others[0].kept if others else first.kept_optimum
        difference = float((other - first.kept).abs().mean())
        views = [View((name,), _lines(found, index), marks=[NYQUIST]) for index, name in enumerate(known[0].names())]
        chart = Chart(
            "Response of the denoiser",
            measured.frequency_axis(0.9 * float(first.frequency[0]), 0.75, "cell"),
            Axis("share of the clean picture that comes through", within=(0.0, 1.0)),
            views[::-1],  # the picture's end first: at the other there is little to see
            notes=[
                f"{len(latents)} latents, {first.probes} waves for each frequency (shaded: 2 standard errors)",
                f"mean difference of {' and '.join(called) if others else f'{called[0]} and the optimum'}: "
                f"{difference:.3f}",
            ],
            drawn=tuple(dict.fromkeys((levels // 3, (2 * levels) // 3))),
        )
        return show.chart(chart, show.csv(HEADER, _rows(found, known)), {"difference": difference})


def _names(given: str, count: int) -> list[str]:
    """What the models are called.

    Raises:
        SpectralError: fewer names than models, or the same twice.
    """
    names = [name.strip() for name in given.split(",")][:count]
    if len(names) < count or len(set(names)) < count or not all(names) or OPTIMUM in names:
        raise SpectralError(
            f"names of Denoiser Response is {given!r:.60}, and there are {count} models; expected a name for each, all "
            "different, with a comma between."
        )
    return names


def _latents(samples: dict[str, Tensor], models: list[Any]) -> Tensor:
    """Clean latents [N, C, h, w], in the VAE's scale.

    Raises:
        SpectralError: they are none of images, all zero, or of other channels than a model's, or that one has stages.
    """
    where = "samples of Denoiser Response"
    if any(isinstance(one.model, StagedCalls) for one in models):
        raise SpectralError(
            "Denoiser Response probes models that see the whole latent at every noise level, and this student works "
            "in stages, small pictures first; Spectrum Trace shows what its steps bring."
        )
    if any(getattr(one.model.latent_format, "latent_dimensions", 2) != 2 for one in models):
        raise SpectralError("Denoiser Response probes models of images, and this MODEL makes videos or sound.")
    if samples["samples"].ndim != 4:
        raise SpectralError(f"{where} are no latents of images; expected [batch, channels, height, width].")
    for one in models:
        clean(one, samples, where)
    return measured.as_set(samples, where).planes


def _response(model: Any, positive: Any, latents: Tensor, levels: Levels, settings: dict[str, Any]) -> Response:
    """The gains of a MODEL, asked through a sampler of core's: with all its patches, on its device, interruptible."""
    clean = scaled(model, {"samples": latents})["samples"]
    found: list[Response] = []

    def sampler(denoise: Any, x: Tensor, _sigmas: Tensor, extra_args: dict[str, Any], **_others: Any) -> Tensor:
        def predict(x_t: Tensor, index: int) -> Tensor:
            given = levels.as_sampled(x_t, index).to(x)
            sigma = levels.sigma[index].to(x).expand(len(given))
            return denoise(given, sigma, **extra_args).float()  # type: ignore[no-any-return]

        found.append(spectrum.denoiser_response(predict, clean, levels.signal, levels.noise, **settings))
        return x

    sigmas = torch.cat([levels.sigma[:1], levels.sigma.new_zeros(1)]).float()
    wrapped = comfy.samplers.KSAMPLER(sampler)
    start = latents[:1]
    whole = without(model.clone())  # every wave is a question of its own
    comfy.sample.sample_custom(
        whole, torch.zeros_like(start), 1.0, wrapped, sigmas, positive, positive, start, disable_pbar=True, seed=0
    )
    return found[0]


def _lines(found: dict[str, Response], level: int) -> list[Series]:
    first = next(iter(found.values()))
    frequency = first.frequency.numpy()
    made = [Series(OPTIMUM, frequency, first.kept_optimum[level].numpy(), dashed=True, colour="#000000")]
    for name, colour in of_names(found).items():
        kept, error = found[name].kept[level], 2 * found[name].kept_error[level]
        edges = ((kept - error).numpy(), (kept + error).numpy())
        made.append(Series(name, frequency, kept.numpy(), *edges, colour=colour))
    return made


HEADER = ("model", "timestep", "sigma", "cycles_per_cell", "kept", "kept_error", "kept_optimum", "gain", "imaginary")


def _rows(found: dict[str, Response], known: list[Levels]) -> Iterator[tuple[float | str, ...]]:
    for (name, one), levels in zip(found.items(), known, strict=True):
        for index, (step, sigma) in enumerate(zip(levels.timestep.tolist(), levels.sigma.tolist(), strict=True)):
            gain = one.gain[index]
            columns = (one.frequency, one.kept[index], one.kept_error[index], one.kept_optimum[index])
            for row in zip(*(column.tolist() for column in (*columns, gain.real, gain.imag)), strict=True):
                yield name, step, sigma, *row
