"""Wavelet Guidance against PyWavelets and plain classifier-free guidance, on a real server."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import pywt
import torch
from numpy.typing import NDArray
from torch import Tensor

from . import prompts
from .prompts import LOADER, SAMPLER, Link, node, patched
from .results import latent, probed
from .server import ComfyServer, Prompt

NEUTRAL: dict[str, Any] = {"low": 1.0, **{f"level_{level}": 1.0 for level in range(1, 6)}}
WHEN: dict[str, Any] = {"start_percent": 0.0, "end_percent": 1.0, "curve": "constant"}
ORIENTATIONS = ("horizontal", "vertical", "diagonal")
ONES = {"low": 1.0, **{f"{name}_{level}": 1.0 for level in range(1, 6) for name in ORIENTATIONS}}


def guidance(model: Link, **changes: Any) -> dict[str, Any]:
    """Wavelet Guidance, neutral but for `changes`."""
    given = {"wavelet": "haar", "levels": 3, "preserve_norm": False, **NEUTRAL, **WHEN, **changes}
    return node("SpectralDiffusionWaveletGuidance", model=model, **given)


def bands(**changes: float) -> dict[str, Any]:
    return node("SpectralDiffusionWaveletBands", **ONES | changes)


def plain(cfg: float = 2.0, steps: int = 3, kind: str = "text") -> Prompt:
    prompt = prompts.generate(kind, seed=11, steps=steps, batch_size=2)
    prompt[SAMPLER]["inputs"] |= {"sampler_name": "euler", "scheduler": "normal", "cfg": cfg}
    return prompt


def sampled(comfy: ComfyServer, prompt: Prompt) -> Tensor:
    return latent(comfy, prompt, [SAMPLER, 0])


@pytest.mark.parametrize("cfg", [1.0, 2.0])
def test_neutral_settings_are_plain_guidance_to_the_last_bit(comfy: ComfyServer, cfg: float) -> None:
    neutral = guidance([], preserve_norm=True, wavelet="db4", levels=5, curve="rising")
    neutral["inputs"] |= {"guidance_bands": ["bands", 0], "prediction_bands": ["bands", 0]}
    prompt = patched(plain(cfg), neutral, bands=bands())
    assert torch.equal(sampled(comfy, prompt), sampled(comfy, plain(cfg)))


def test_outside_its_range_nothing_changes_to_the_last_bit(comfy: ComfyServer) -> None:
    """Three steps of the normal schedule lie at 0, ½ and 1."""
    idle = guidance([], low=3.0, level_1=0.0, start_percent=0.1, end_percent=0.4)
    assert torch.equal(sampled(comfy, patched(plain(), idle)), sampled(comfy, plain()))


@pytest.mark.parametrize("wavelet", ["haar", "bior4.4"])
@pytest.mark.parametrize("cfg", [1.0, 2.0])
def test_the_same_factor_on_every_band_is_plain_guidance_of_another_scale(
    comfy: ComfyServer, cfg: float, wavelet: str
) -> None:
    every = {name: 1.5 for name in NEUTRAL}
    found = sampled(comfy, patched(plain(cfg), guidance([], wavelet=wavelet, **every)))
    torch.testing.assert_close(found, sampled(comfy, plain(1.5 * cfg)), rtol=1e-3, atol=2e-3)


def test_two_in_a_row_multiply(comfy: ComfyServer) -> None:
    first, second = guidance([], level_1=2.0, low=0.5), guidance([], level_1=1.5)
    found = sampled(comfy, patched(plain(), first, second))
    expected = sampled(comfy, patched(plain(), guidance([], level_1=3.0, low=0.5)))
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=2e-3)
    assert (found - sampled(comfy, plain())).abs().mean() > 1e-2


def test_the_model_it_was_made_from_stays_as_it_was(comfy: ComfyServer) -> None:
    both = patched(plain(), guidance([], level_1=3.0, low=0.0))
    both["second"] = {**both[SAMPLER], "inputs": {**both[SAMPLER]["inputs"], "model": [LOADER, 0]}}
    assert torch.equal(latent(comfy, both, ["second", 0]), sampled(comfy, plain()))


def test_any_checkpoint_of_cores_own_loader(comfy: ComfyServer, stable_one: str) -> None:
    prompt = plain(4.0)
    prompt[LOADER] = node("CheckpointLoaderSimple", ckpt_name=stable_one)
    prompt["negative"] = node("CLIPTextEncode", clip=[LOADER, 1], text="")
    prompt["latent"] = node("EmptyLatentImage", width=72, height=104, batch_size=1)
    every = {name: 0.5 for name in NEUTRAL}
    half = sampled(comfy, patched(prompt, guidance([], **every)))
    prompt[SAMPLER]["inputs"]["cfg"] = 2.0
    torch.testing.assert_close(half, sampled(comfy, prompt), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("network", ["xl", "flux", "wan"])
def test_networks_of_every_kind(comfy: ComfyServer, object_info: dict[str, Any], network: str) -> None:
    """Core's SDXL, Flux (a DiT) and Wan (video) with random weights and latents of odd sizes."""
    if network not in object_info["ProbeModel"]["input"]["required"]["network"][0]:
        pytest.skip("this ComfyUI does not know the network")
    prompt = plain(2.0)
    prompt[LOADER] = node("ProbeModel", network=network)
    prompt[SAMPLER]["inputs"] |= {name: [LOADER, slot] for slot, name in enumerate(SLOTS)}
    prompt = {name: prompt[name] for name in (LOADER, SAMPLER)}
    every, neutral = guidance([], **{name: 1.5 for name in NEUTRAL}), guidance([], levels=5, preserve_norm=True)
    found = {name: sampled(comfy, patched(prompt, one)) for name, one in (("all", every), ("none", neutral))}
    assert torch.equal(found["none"], sampled(comfy, prompt))
    detail = sampled(comfy, patched(prompt, guidance([], level_1=3.0)))
    assert detail.isfinite().all() and (detail - found["none"]).abs().mean() > 1e-4
    prompt[SAMPLER]["inputs"]["cfg"] = 3.0
    torch.testing.assert_close(found["all"], sampled(comfy, prompt), rtol=1e-3, atol=1e-3)


SLOTS = ("model", "positive", "negative", "latent_image")


def oracle(x: Tensor, factors: dict[str, float], levels: int, wavelet: str) -> NDArray[np.float64]:
    """Σ (w − 1) B(x) by pywt over the last two axes; factors are named as the widgets of Wavelet Bands."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of more levels than the size deserves
        low, *details = pywt.wavedec2(x.double().numpy(), wavelet, "symmetric", level=levels)
    scaled = [(factors["low"] - 1) * low]
    for level, found in zip(range(levels, 0, -1), details, strict=True):
        by = [factors[f"{name}_{level}"] - 1 for name in ORIENTATIONS]
        scaled.append(tuple(factor * band for factor, band in zip(by, found, strict=True)))
    made: NDArray[np.float64] = pywt.waverec2(scaled, wavelet, "symmetric")
    return made[..., : x.shape[-2], : x.shape[-1]]


SHAPES = ["1,4,64,64", "2,16,33,17", "1,4,7,9", "2,4,5,9,11", "1,16,3,32,32", "2,8,40", "1,4,1,1"]


def probe(comfy: ComfyServer, shape: str, one: dict[str, Any], **options: Any) -> dict[str, Tensor]:
    """What the patched MODEL makes of random predictions."""
    prompt: Prompt = {LOADER: node("SpectralDiffusionLoadCheckpoint", checkpoint="text.safetensors")}
    prompt["patched"] = {**one, "inputs": {**one["inputs"], "model": [LOADER, 0]}}
    for name, made in (("guidance_bands", GUIDANCE), ("prediction_bands", PREDICTION)):
        if name in one["inputs"]:
            prompt[name] = bands(**made)
    given = {"shape": shape, "percent": 0.5, "sampling": "discrete", "negative": True, **options}
    prompt["probe"] = node("ProbeGuidance", model=["patched", 0], **given)
    return probed(comfy, prompt, "probe")


GUIDANCE = {
    "horizontal_1": 2.0,
    "vertical_1": 0.5,
    "diagonal_2": -1.0,
    "vertical_3": 3.0,
    "low": 0.8,
    "diagonal_5": 4.0,
}
PREDICTION = {"diagonal_1": 1.5, "horizontal_2": 0.7, "low": 1.1}
SLIDERS = {"low": 1.2, "level_1": 1.5, "level_2": 0.25}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("wavelet", "levels"), [("haar", 3), ("db3", 2), ("haar", 5)])
def test_equals_pywt_for_images_videos_and_sounds(comfy: ComfyServer, shape: str, wavelet: str, levels: int) -> None:
    links = {"guidance_bands": ["guidance_bands", 0], "prediction_bands": ["prediction_bands", 0]}
    found = probe(comfy, shape, guidance([], wavelet=wavelet, levels=levels, **SLIDERS, **links))
    by_slider = {
        name: SLIDERS["low" if name == "low" else f"level_{name[-1]}"] if name[-1] in "w12" else 1.0 for name in ONES
    }
    factors = {name: by_slider[name] * GUIDANCE.get(name, 1.0) for name in ONES}
    expected = found["plain"].double().numpy() + change(found["plain"] - found["uncond"], factors, levels, wavelet)
    expected = expected + change(torch.from_numpy(expected), ONES | PREDICTION, levels, wavelet)
    np.testing.assert_allclose(found["changed"], expected, atol=1e-4, rtol=1e-4)


def test_video_and_sound_in_one_latent_are_changed_each_on_its_own(comfy: ComfyServer) -> None:
    """The shapes of LTX-2's latents, whose probes draw the same numbers alone and together."""
    shapes = ["2,8,3,6,9", "2,4,10,16"]
    one = guidance([], **SLIDERS)
    together = probe(comfy, ";".join(shapes), one)["changed"]
    alone = [probe(comfy, shape, one)["changed"].reshape(2, 1, -1) for shape in shapes]
    torch.testing.assert_close(together, torch.cat(alone, dim=-1))


def test_a_latent_of_too_many_positions_is_a_sentence(comfy: ComfyServer) -> None:
    prompt: Prompt = {LOADER: node("SpectralDiffusionLoadCheckpoint", checkpoint="text.safetensors")}
    prompt["patched"] = guidance([LOADER, 0], level_1=2.0)
    given = {"shape": "1,1,200000", "percent": 0.5, "sampling": "discrete", "negative": True}
    prompt["probe"] = node("ProbeGuidance", model=["patched", 0], **given)
    assert "at most 4096 positions along an axis, and these latents have 200000" in comfy.run(prompt).message


def change(x: Tensor, factors: dict[str, float], levels: int, wavelet: str) -> NDArray[np.float64]:
    """`oracle`; a sound is one row."""
    return oracle(x if x.ndim > 3 else x.unsqueeze(-2), factors, levels, wavelet).reshape(tuple(x.shape))


@pytest.mark.parametrize("shape", ["3,4,16,16", "2,4,3,8,8"])
def test_the_norm_of_each_sample_can_be_kept(comfy: ComfyServer, shape: str) -> None:
    strong = {"low": 3.0, "level_1": 4.0}
    free, kept = (probe(comfy, shape, guidance([], preserve_norm=keep, **strong)) for keep in (False, True))
    norm, wanted = (x.flatten(1).norm(dim=1) for x in (kept["changed"], kept["plain"]))
    torch.testing.assert_close(norm, wanted, rtol=1e-5, atol=0)
    ratio = kept["changed"] / free["changed"]
    assert float((ratio.flatten(1).std(dim=1) / ratio.flatten(1).mean(dim=1)).max()) < 1e-3
    assert (free["changed"].flatten(1).norm(dim=1) / wanted).min() > 1.5


@pytest.mark.parametrize("sampling", ["discrete", "continuous", "flow"])
@pytest.mark.parametrize(
    ("percent", "strength"), [(0.05, 0), (0.2, 0), (0.35, 0.25), (0.5, 0.5), (0.79, 0.983), (0.9, 0)]
)
def test_percents_mean_the_same_for_every_kind_of_schedule(
    comfy: ComfyServer, object_info: dict[str, Any], sampling: str, percent: float, strength: float
) -> None:
    if sampling not in object_info["ProbeGuidance"]["input"]["required"]["sampling"][0]:
        pytest.skip("this ComfyUI has no flow models")
    rising = guidance([], low=3.0, start_percent=0.2, end_percent=0.8, curve="rising")
    full = guidance([], low=3.0)
    found, whole = (probe(comfy, "1,4,8,8", one, percent=percent, sampling=sampling) for one in (rising, full))
    expected = found["plain"] + strength * (whole["changed"] - whole["plain"])
    torch.testing.assert_close(found["changed"], expected, rtol=1e-3, atol=0.02 if strength else 1e-6)


def test_only_guidance_asks_for_the_negative_conditioning_at_cfg_one(comfy: ComfyServer) -> None:
    asks = probe(comfy, "1,4,8,8", guidance([], level_1=2.0))
    reweighs = guidance([], prediction_bands=["prediction_bands", 0])
    without = probe(comfy, "1,4,8,8", reweighs, negative=False)
    assert bool(asks["needs_negative"]) and not bool(without["needs_negative"])
    assert (without["changed"] - without["plain"]).abs().mean() > 1e-2


def test_a_sampler_without_a_negative_conditioning_is_told_what_to_use(comfy: ComfyServer) -> None:
    prompt: Prompt = {
        LOADER: node("SpectralDiffusionLoadCheckpoint", checkpoint="text.safetensors"),
        "patched": guidance([LOADER, 0], level_1=2.0),
    }
    given = {"shape": "1,4,8,8", "percent": 0.5, "sampling": "discrete", "negative": False}
    prompt["probe"] = node("ProbeGuidance", model=["patched", 0], **given)
    assert "this sampler has no negative one. Use a guider with both" in comfy.run(prompt).message


@pytest.mark.parametrize("changes", [{"low": float("nan")}, {"start_percent": 0.7, "end_percent": 0.1}, {"levels": 9}])
def test_settings_that_cannot_be_are_named(comfy: ComfyServer, changes: dict[str, float]) -> None:
    message = comfy.run(patched(plain(), guidance([], **changes))).message
    assert any(name in message for name in changes)
