"""A prompt around every node of the pack; a new node is attacked as soon as it has its line in `HOMES`."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from typing import Any

from . import prompts, staged_models
from .prompts import DECODE, LATENT, LOADER, SAMPLER, node
from .server import Prompt


def changed(prompt: Prompt, place: str, **inputs: Any) -> Prompt:
    """The prompt with other inputs at one node."""
    made = copy.deepcopy(prompt)
    made[place]["inputs"] |= inputs
    return made


@dataclass(frozen=True)
class Home:
    """A prompt that gives an image (each another one), and the id in it of the node that is attacked.

    Attributes:
        optional: only a link to an optional input leads to the node.
    """

    prompt: Prompt
    place: str
    optional: bool = False


def with_lora(**inputs: Any) -> Prompt:
    prompt = prompts.generate("text", steps=1)
    strengths = {"lora_name": "tiny.safetensors", "strength_model": 0.7, "strength_clip": 0.7, **inputs}
    prompt["lora"] = node("SpectralDiffusionLoadLora", model=[LOADER, 0], clip=[LOADER, 1], **strengths)
    prompt["positive"]["inputs"]["clip"] = ["lora", 1]
    prompt[SAMPLER]["inputs"]["model"] = ["lora", 0]
    return prompt


def _spectrum(kind: str, **inputs: Any) -> Prompt:
    given = {"images": ["images", 0], "window": "hann", **inputs}
    return {
        "images": node("SpectralDiffusionExampleImages", images="emoji-64", count=4),
        "spectrum": node(f"SpectralDiffusion{kind}", **given),
    }


def _patched(kind: str, **inputs: Any) -> Prompt:
    """One step with a node that patches the MODEL."""
    prompt = prompts.generate("text", steps=1)
    prompt["patch"] = node(f"SpectralDiffusion{kind}", model=[LOADER, 0], **inputs)
    prompt[SAMPLER]["inputs"]["model"] = ["patch", 0]
    return prompt


def _reused() -> Prompt:
    return _patched("ReuseDeepFeatures", every=2, outer_blocks=1, start_percent=0.0, end_percent=1.0)


def _guided() -> Prompt:
    """Guidance with bands of its own."""
    factors = {"low": 1.0, **{f"level_{level}": 1.1 for level in range(1, 6)}}
    prompt = _patched("WaveletGuidance", wavelet="haar", levels=3, preserve_norm=False, **factors, **_WHEN)
    names = [f"{name}_{level}" for level in range(1, 6) for name in ("horizontal", "vertical", "diagonal")]
    prompt["bands"] = node("SpectralDiffusionWaveletBands", low=1.0, **dict.fromkeys(names, 1.1))
    prompt["patch"]["inputs"] |= {"guidance_bands": ["bands", 0], "prediction_bands": ["bands", 0]}
    return prompt


def _traced() -> Prompt:
    prompt = _patched("GateTrace")
    plot = node("SpectralDiffusionGateTracePlot", gates=["patch", 1], samples=[SAMPLER, 0], levels="average")
    saved = node("SaveImage", images=["plot", 0], filename_prefix="test")
    return {**{key: one for key, one in prompt.items() if key != DECODE}, "plot": plot, prompts.SAVE: saved}


def _evolved() -> Prompt:
    prompt = _patched("SpectrumTrace", window="hann")
    plot = node("SpectralDiffusionSpectrumEvolution", evolution=["patch", 1], samples=[SAMPLER, 0], pictures=1)
    saved = node("SaveImage", images=["plot", 0], filename_prefix="test")
    return {**{key: one for key, one in prompt.items() if key != DECODE}, "plot": plot, prompts.SAVE: saved}


def _probed_model(kind: str, **inputs: Any) -> Prompt:
    loader = prompts.generate("class", steps=1)[LOADER]
    return {LOADER: loader, "spectrum": node(f"SpectralDiffusion{kind}", model=[LOADER, 0], **inputs)}


def _responding() -> Prompt:
    counts = {"levels": 1, "frequencies": 2, "probes": 2, "probe_seed": 0}
    return {
        LOADER: prompts.generate("class", steps=1)[LOADER],
        "condition": node("SpectralDiffusionUnconditional", model=[LOADER, 0]),
        "images": node("SpectralDiffusionExampleImages", images="emoji-64", count=2),
        "latents": node("VAEEncode", pixels=["images", 0], vae=[LOADER, 2]),
        "spectrum": node(
            "SpectralDiffusionDenoiserResponse",
            model=[LOADER, 0],
            positive=["condition", 0],
            samples=["latents", 0],
            model_2=[LOADER, 0],
            names="one, other",
            **counts,
        ),
    }


def _staged() -> Prompt:
    """Two steps of a student of two stages."""
    prompt = staged_models.sample("fdm-half", steps=2)
    prompt[DECODE] = node("VAEDecode", samples=[SAMPLER, 0], vae=[LOADER, 2])
    return {**prompt, prompts.SAVE: node("SaveImage", images=[DECODE, 0], filename_prefix="test")}


def _saved_spectrum() -> Prompt:
    saver = node("SpectralDiffusionSaveSpectrum", table=["table", 0], filename_prefix="attacked", format="csv")
    return {"table": node("ProbeValue", value=json.dumps("frequency,power\n0.1,2\n")), "saver": saver}


_WIENER = {"amplitude": 1.0, "alpha": 2.0, "levels": 3, "window": "hann"}
_WHEN = {"start_percent": 0.0, "end_percent": 1.0, "curve": "constant"}
_GATES = {f"{direction}_{band}": 1.1 for direction in ("down", "up") for band in ("LL", "LH", "HL", "HH")}
CLASS = prompts.generate("class", steps=1)
HOMES = {
    "SpectralDiffusionLoadCheckpoint": Home(prompts.generate("text", steps=1), LOADER),
    "SpectralDiffusionLoadLora": Home(with_lora(), "lora"),
    "SpectralDiffusionEmptyLatent": Home(CLASS, LATENT),
    "SpectralDiffusionClassLabel": Home(changed(CLASS, SAMPLER, seed=2), "positive"),
    "SpectralDiffusionUnconditional": Home(changed(CLASS, SAMPLER, seed=3), "negative"),
    "SpectralDiffusionFDMSampler": Home(_staged(), "fdm"),
    "SpectralDiffusionWaveletGate": Home(_patched("WaveletGate", **_GATES, **_WHEN), "patch"),
    "SpectralDiffusionGateTrace": Home(changed(_traced(), SAMPLER, seed=4), "patch"),
    "SpectralDiffusionGateTracePlot": Home(changed(_traced(), SAMPLER, seed=5), "plot"),
    "SpectralDiffusionReuseDeepFeatures": Home(changed(_reused(), SAMPLER, seed=14), "patch"),
    "SpectralDiffusionWaveletGuidance": Home(changed(_guided(), SAMPLER, seed=6), "patch"),
    "SpectralDiffusionWaveletBands": Home(changed(_guided(), SAMPLER, seed=7), "bands", optional=True),
    "SpectralDiffusionExampleImages": Home(_spectrum("PowerSpectrum", above=0.2), "images"),
    "SpectralDiffusionPowerSpectrum": Home(_spectrum("PowerSpectrum", above=0.25), "spectrum"),
    "SpectralDiffusionRadialSpectrum": Home(_spectrum("RadialSpectrum", fit_low=0.0, fit_high=0.375), "spectrum"),
    "SpectralDiffusionCompareSpectra": Home(
        _spectrum("CompareSpectra", reference=["images", 0], cutoff=28.0), "spectrum"
    ),
    "SpectralDiffusionDFTDifference": Home(_spectrum("DFTDifference", reference=["images", 0], above=0.25), "spectrum"),
    "SpectralDiffusionSpectrumTrace": Home(changed(_evolved(), SAMPLER, seed=8), "patch"),
    "SpectralDiffusionSpectrumEvolution": Home(changed(_evolved(), SAMPLER, seed=9), "plot"),
    "SpectralDiffusionWienerFilter": Home(_probed_model("WienerFilter", **_WIENER), "spectrum"),
    "SpectralDiffusionFilterCorrelation": Home(_probed_model("FilterCorrelation", latent_size=16), "spectrum"),
    "SpectralDiffusionDenoiserResponse": Home(_responding(), "spectrum"),
    "SpectralDiffusionSaveSpectrum": Home(_saved_spectrum(), "saver"),
}
