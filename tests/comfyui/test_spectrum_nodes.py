"""The spectrum nodes on a real server: charts that arrive, numbers that are right."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image

from .prompts import node
from .server import ComfyServer, Prompt

KINDS = ["SpectralDiffusionPowerSpectrum", "SpectralDiffusionRadialSpectrum"]


def numbers(comfy: ComfyServer, prompt: Prompt, name: str = "spectrum") -> dict[str, Any]:
    """The numbers that a spectrum node shows."""
    run = comfy.run(prompt)
    assert run.error is None, run.message
    found: dict[str, Any] = run.outputs[name]["numbers"][0]
    return found


def measure(kind: str, images: list[str | int], **inputs: Any) -> dict[str, Any]:
    """A spectrum node with the default values of its widgets."""
    defaults: dict[str, dict[str, Any]] = {
        "SpectralDiffusionPowerSpectrum": {"above": 0.25},
        "SpectralDiffusionRadialSpectrum": {"fit_low": 0.0, "fit_high": 0.375},
        "SpectralDiffusionCompareSpectra": {"cutoff": 28.0},
    }
    return node(kind, images=images, window="hann", **{**defaults[kind], **inputs})


def save_image(comfy: ComfyServer, name: str, pixels: np.ndarray[Any, np.dtype[np.float64]]) -> dict[str, Any]:
    """Pixels [H, W] in [0, 1] as a file in the input folder, and the node that loads it."""
    grey = Image.fromarray((pixels.clip(0, 1) * 255).round().astype(np.uint8))
    grey.convert("RGB").save(comfy.distribution.base / "input" / name)
    return node("LoadImage", image=name)


def test_example_images_and_all_three_charts(comfy: ComfyServer) -> None:
    prompt: Prompt = {
        "images": node("SpectralDiffusionExampleImages", images="emoji-64", count=64),
        "half": node("SpectralDiffusionExampleImages", images="emoji-64", count=32),
        "compare": measure("SpectralDiffusionCompareSpectra", ["half", 0], reference=["images", 0]),
    }
    prompt |= {kind: measure(kind, ["images", 0]) for kind in KINDS}
    run = comfy.run(prompt)
    assert run.error is None, run.message
    for name in ("compare", *KINDS):
        chart = comfy.image(run.outputs[name]["images"][0])
        assert min(chart.size) >= 640
        assert len(chart.getcolors(1 << 24) or ()) > 50
    assert 0 < run.outputs["compare"]["numbers"][0]["low_error"] < 0.5


def test_a_set_compared_with_itself_has_no_error(comfy: ComfyServer) -> None:
    prompt = {
        "images": node("SpectralDiffusionExampleImages", images="emoji-64", count=5),
        "spectrum": measure("SpectralDiffusionCompareSpectra", ["images", 0], reference=["images", 0]),
    }
    assert numbers(comfy, prompt) == {"low_error": 0.0, "high_error": 0.0}


def test_the_slope_of_noise_made_with_a_known_slope(comfy: ComfyServer) -> None:
    size, alpha = 256, 2.0
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None])
    frequency[0, 0] = np.inf
    spectrum = np.fft.rfft2(np.random.default_rng(0).normal(size=(size, size))) * frequency ** (-alpha / 2)
    noise = np.fft.irfft2(spectrum, s=(size, size))
    image = save_image(comfy, "slope.png", 0.5 + noise / np.abs(noise).max() / 2)
    prompt = {"image": image, "spectrum": measure(KINDS[1], ["image", 0], fit_high=0.2)}
    found = numbers(comfy, prompt)
    assert abs(found["alpha"] - alpha) < 3 * found["alpha_error"] + 0.05


def test_where_the_power_of_a_grating_lies(comfy: ComfyServer) -> None:
    wave = np.broadcast_to(0.5 + 0.5 * np.cos(2 * np.pi * 0.375 * np.arange(64)), (64, 64))
    image = save_image(comfy, "grating.png", wave)
    for above, share in ((0.3, 1.0), (0.45, 0.0)):
        prompt = {"image": image, "spectrum": measure(KINDS[0], ["image", 0], above=above)}
        assert numbers(comfy, prompt)["high_share"] == pytest.approx(share, abs=1e-3)


def test_a_cut_off_beyond_the_image_is_a_sentence(comfy: ComfyServer) -> None:
    images = node("SpectralDiffusionExampleImages", images="emoji-64", count=2)
    spectrum = measure("SpectralDiffusionCompareSpectra", ["images", 0], reference=["images", 0], cutoff=500.0)
    assert "leaves a band empty" in comfy.run({"images": images, "spectrum": spectrum}).message


def test_a_blank_image_is_a_sentence_where_there_is_no_slope(comfy: ComfyServer) -> None:
    image = save_image(comfy, "blank.png", np.ones((48, 64)))
    assert "No slope" in comfy.run({"image": image, "spectrum": measure(KINDS[1], ["image", 0])}).message
    assert numbers(comfy, {"image": image, "spectrum": measure(KINDS[0], ["image", 0])})["high_share"] == 0.0
