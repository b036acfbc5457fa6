"""Wavelet Gate and Gate Trace against the library's network with its gates changed by hand, on a real server."""

from __future__ import annotations

import csv
import time
from collections.abc import Iterator
from contextlib import contextmanager
from io import StringIO
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from spectral_diffusion.spectral import checkpoint
from spectral_diffusion.spectral.checkpoint import Checkpoint
from spectral_diffusion.spectral.diffusion import guided
from spectral_diffusion.spectral.gating import WaveletDown, WaveletGate, WaveletUp

from . import prompts
from .prompts import LOADER, SAMPLER, Link, node, patched
from .results import latent, succeed
from .server import ComfyServer, Prompt
from .test_sampling import contexts

NEUTRAL = {f"{direction}_{band}": 1.0 for direction in ("down", "up") for band in ("LL", "LH", "HL", "HH")}
KINDS = ["text", "class", "none", "vq"]


def gate(
    model: Link, start: float = 0.0, end: float = 1.0, curve: str = "constant", **changed: float
) -> dict[str, Any]:
    """Wavelet Gate with some multipliers that are not 1."""
    when = {"start_percent": start, "end_percent": end, "curve": curve}
    return node("SpectralDiffusionWaveletGate", model=model, **NEUTRAL | changed, **when)


def plain(kind: str = "text", steps: int = 4, **changes: Any) -> Prompt:
    prompt = prompts.generate(kind, seed=11, steps=steps, batch_size=2)
    prompt[SAMPLER]["inputs"] |= {"sampler_name": "euler", "scheduler": "normal"} | changes
    return prompt


@pytest.mark.parametrize("kind", KINDS)
def test_multipliers_of_one_change_nothing_to_the_last_bit(comfy: ComfyServer, kind: str) -> None:
    found = latent(comfy, patched(plain(kind), gate([LOADER, 0]), gate([LOADER, 0], 0.2, 0.6, "rising")), [SAMPLER, 0])
    assert torch.equal(found, latent(comfy, plain(kind), [SAMPLER, 0]))


def test_outside_its_range_a_gate_changes_nothing_to_the_last_bit(comfy: ComfyServer) -> None:
    """Four steps of the normal schedule lie at 0, ⅓, ⅔ and 1."""
    idle = gate([LOADER, 0], 0.4, 0.6, up_HH=0.0, down_LL=3.0)
    assert torch.equal(latent(comfy, patched(plain(), idle), [SAMPLER, 0]), latent(comfy, plain(), [SAMPLER, 0]))


def loaded(comfy: ComfyServer, kind: str) -> Checkpoint:
    return checkpoint.load(comfy.distribution.base / "models" / "spectral_diffusion" / f"{kind}.safetensors")


@contextmanager
def multiplied(unet: torch.nn.Module, factors: dict[str, float]) -> Iterator[dict[str, list[Tensor]]]:
    """The library's network with its gates multiplied by forward hooks; gives the gates that it used, by direction."""
    used: dict[str, list[Tensor]] = {"down": [], "up": []}
    hooks = []
    for layer in unet.modules():
        if not isinstance(layer, (WaveletDown, WaveletUp)):
            continue
        direction = "down" if isinstance(layer, WaveletDown) else "up"
        by = torch.tensor([factors.get(f"{direction}_{band}", 1.0) for band in ("LL", "LH", "HL", "HH")])[:, None]

        def change(_layer: Any, _inputs: Any, gates: Tensor, by: Tensor = by, direction: str = direction) -> Tensor:
            used[direction].append(gates * by)
            return gates * by

        hooks.append(layer.gate.register_forward_hook(change))
        assert isinstance(layer.gate, WaveletGate)
    yield used
    for hook in hooks:
        hook.remove()


@pytest.mark.parametrize("kind", KINDS)
def test_one_step_with_multiplied_gates_is_what_the_library_computes(comfy: ComfyServer, kind: str) -> None:
    first = {"down_LL": 0.7, "up_HH": 2.0, "up_LH": 0.0}
    second = {"down_LL": 1.5, "down_HL": 3.0}
    prompt = patched(plain(kind, 1), gate([LOADER, 0], **first), gate([LOADER, 0], **second))
    found = latent(comfy, prompt, [SAMPLER, 0])
    model = loaded(comfy, kind)
    together = {name: first.get(name, 1.0) * second.get(name, 1.0) for name in NEUTRAL}
    with multiplied(model.unet, together):  # type: ignore[arg-type]
        expected = one_step(model, kind)
    torch.testing.assert_close(found * model.config.scale_factor, expected, rtol=1e-3, atol=1e-2)
    assert (expected - one_step(model, kind)).abs().mean() > 0.05


def one_step(model: Checkpoint, kind: str) -> Tensor:
    """The denoised latent that one Euler step from noise of seed 11 arrives at, cfg 2."""
    assert model.unet is not None and model.config.unet is not None
    positive, negative = contexts(model.conditioner, kind)
    noise = torch.randn(2, model.config.unet.in_channels, 16, 16, generator=torch.manual_seed(11))
    with torch.no_grad():
        epsilon = guided(model.unet, 2.0, positive, negative)(noise, torch.tensor([999, 999]))
    alpha = model.schedule.alphas_cumprod[999].item()
    return noise / alpha**0.5 - epsilon * ((1 - alpha) / alpha) ** 0.5


@pytest.mark.parametrize(
    ("curve", "strength"),
    [("constant", 1.0), ("rising", 0.25), ("falling", 0.75), ("rising smoothly", 0.5 - 0.5**1.5)],
)
def test_a_curve_blends_towards_one(comfy: ComfyServer, curve: str, strength: float) -> None:
    """One step, the middle one of three, in a range of which a quarter lies before it."""
    middle = plain(steps=3)
    inputs = middle[SAMPLER]["inputs"]
    given = {key: inputs[key] for key in inputs if key not in ("seed", "denoise")}
    flags = {"add_noise": "enable", "return_with_leftover_noise": "enable", "noise_seed": 4}
    middle[SAMPLER] = node("KSamplerAdvanced", **given, **flags, start_at_step=1, end_at_step=2)
    percent = 1 - float(table(comfy, traced(middle))[0]["timestep"]) / 999
    assert abs(percent - 0.5) < 0.01
    curved = gate([LOADER, 0], percent - 0.1, percent + 0.3, curve, up_LL=3.0)
    straight = gate([LOADER, 0], up_LL=1 + 2 * strength)
    found, expected = (latent(comfy, patched(middle, one), [SAMPLER, 0]) for one in (curved, straight))
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=2e-3)
    assert (found - latent(comfy, middle, [SAMPLER, 0])).abs().mean() > 1e-3


def test_a_gate_does_not_leak_into_the_model_it_was_made_from(comfy: ComfyServer) -> None:
    both = patched(plain(), gate([LOADER, 0], up_HH=4.0, down_LL=0.5))
    both["second"] = {**both[SAMPLER], "inputs": {**both[SAMPLER]["inputs"], "model": [LOADER, 0]}}
    first, second = latent(comfy, both, [SAMPLER, 0]), latent(comfy, both, ["second", 0])
    assert torch.equal(second, latent(comfy, plain(), [SAMPLER, 0]))
    assert (first - second).abs().mean() > 1e-3


@pytest.mark.parametrize("name", ["Gate", "GateTrace"])
def test_a_model_without_gates_is_told_why_it_cannot_work(comfy: ComfyServer, name: str) -> None:
    given = NEUTRAL | {"start_percent": 0.0, "end_percent": 1.0, "curve": "constant"} if name == "Gate" else {}
    prompt = plain()
    prompt[LOADER]["inputs"]["checkpoint"] = "emoji64-teacher.safetensors"
    kind = f"SpectralDiffusion{'WaveletGate' if name == 'Gate' else name}"
    prompt["gate"] = node(kind, model=[LOADER, 0], **given)
    prompt[SAMPLER]["inputs"]["model"] = ["gate", 0]
    message = comfy.run(prompt).message
    assert "needs the gates of a wavelet-gated student, and this model has none: it is a teacher" in message
    assert "Wavelet Guidance" in message


@pytest.mark.parametrize("changes", [{"start": 0.8, "end": 0.2}, {"up_HH": float("nan")}, {"start": float("nan")}])
def test_settings_that_cannot_be_are_named(comfy: ComfyServer, changes: dict[str, float]) -> None:
    message = comfy.run(patched(plain(), gate([LOADER, 0], **changes))).message  # type: ignore[arg-type]
    assert "expected" in message and any(word in message for word in ("start_percent", "up_HH"))


def traced(prompt: Prompt, levels: str = "average") -> Prompt:
    """The prompt with a Gate Trace last before its sampler, and its plot."""
    trace = node("SpectralDiffusionGateTrace", model=prompt[SAMPLER]["inputs"]["model"])
    sampler = {**prompt[SAMPLER], "inputs": {**prompt[SAMPLER]["inputs"], "model": ["trace", 0]}}
    plotted = node("SpectralDiffusionGateTracePlot", gates=["trace", 1], samples=[SAMPLER, 0], levels=levels)
    return {**prompt, "trace": trace, SAMPLER: sampler, "plot": plotted}


def table(comfy: ComfyServer, prompt: Prompt) -> list[dict[str, str]]:
    """The rows of a traced prompt's table."""
    shown = node("ProbeText", text=["plot", 1])
    (text,) = succeed(comfy, {**prompt, "table": shown}).outputs["table"]["text"]
    return list(csv.DictReader(StringIO(text)))


def values(row: dict[str, str]) -> list[float]:
    return [float(row[band]) for band in ("LL", "LH", "HL", "HH")]


@pytest.mark.parametrize("kind", KINDS)
def test_the_trace_is_what_the_librarys_gates_are(comfy: ComfyServer, kind: str) -> None:
    """At the first step, where the noise is known: the positive conditioning's gates, per level and averaged."""
    factors = {"down_LL": 0.5, "up_HH": 2.0}
    rows = table(comfy, traced(patched(plain(kind, 1), gate([LOADER, 0], **factors))))
    model = loaded(comfy, kind)
    assert model.unet is not None and model.config.unet is not None
    positive, _ = contexts(model.conditioner, kind)
    noise = torch.randn(2, model.config.unet.in_channels, 16, 16, generator=torch.manual_seed(11))
    with torch.no_grad(), multiplied(model.unet, factors) as used:
        model.unet(noise, torch.tensor([999, 999]), positive)
    for direction in ("down", "up"):
        means = [gates.mean(dim=(0, 2)).tolist() for gates in used[direction]]
        if direction == "up":
            means.reverse()  # the way up begins at the coarsest level
        found = {row["level"]: values(row) for row in rows if row["direction"] == direction}
        assert sorted(found) == ["0", "1", "average"]
        for level, expected in enumerate(means):
            np.testing.assert_allclose(found[str(level)], expected, atol=2e-4)
        np.testing.assert_allclose(found["average"], np.mean(means, axis=0), atol=2e-4)


def test_tracing_changes_nothing_and_follows_the_sampler(comfy: ComfyServer) -> None:
    prompt = traced(plain(steps=5), "every level")
    assert torch.equal(latent(comfy, prompt, [SAMPLER, 0]), latent(comfy, plain(steps=5), [SAMPLER, 0]))
    rows = table(comfy, prompt)
    steps = [float(row["timestep"]) for row in rows if (row["direction"], row["level"]) == ("down", "average")]
    assert len(steps) == 5 and steps == sorted(steps, reverse=True) and steps[0] == 999
    assert all(0 < value < 1 for row in rows for value in values(row))
    sigmas = [float(row["sigma"]) for row in rows if (row["direction"], row["level"]) == ("up", "1")]
    assert sigmas == sorted(sigmas, reverse=True) and sigmas[-1] > 0


def test_a_second_run_replaces_the_first_and_a_cached_one_stays(comfy: ComfyServer) -> None:
    prompt = traced(plain(steps=3))
    first = table(comfy, prompt)
    prompt[SAMPLER]["inputs"]["seed"] = 12
    second = table(comfy, prompt)
    assert len(first) == len(second) and first != second
    prompt["plot"]["inputs"]["levels"] = "every level"
    assert table(comfy, prompt) == second


def test_two_samplers_in_a_row_are_two_runs_of_one_table(comfy: ComfyServer) -> None:
    prompt = traced(plain(steps=3))
    again = {**prompt[SAMPLER]["inputs"], "latent_image": [SAMPLER, 0], "denoise": 0.5}
    prompt["again"] = node("KSampler", **again)
    prompt["other"] = node("KSampler", **{**again, "seed": 99})  # does not lead to the plot
    prompt["other decoded"] = node("VAEDecode", samples=["other", 0], vae=[LOADER, 2])
    prompt["other saved"] = node("SaveImage", images=["other decoded", 0], filename_prefix="test")
    prompt["plot"]["inputs"]["samples"] = ["again", 0]
    rows = [row for row in table(comfy, prompt) if (row["direction"], row["level"]) == ("up", "average")]
    assert [row["run"] for row in rows] == ["0"] * 3 + ["1"] * 3
    assert float(rows[0]["timestep"]) == 999 > float(rows[3]["timestep"]) > float(rows[2]["timestep"])


def test_a_prompt_that_no_page_waits_for_is_traced_alone(comfy: ComfyServer) -> None:
    """Queued without a client, as scripts do it, before and after one with a client; both are the same graph."""
    prompt = traced(plain(steps=3))
    prompt["text"] = node("ProbeText", text=["plot", 1])
    named = table(comfy, prompt)
    prompt[SAMPLER]["inputs"]["seed"] = 77
    answer = comfy.post("/prompt", {"prompt": prompt})
    while answer["prompt_id"] not in (history := comfy.get("/history")):
        time.sleep(0.1)
    (text,) = history[answer["prompt_id"]]["outputs"]["text"]["text"]
    unnamed = list(csv.DictReader(StringIO(text)))
    assert len(unnamed) == len(named) and unnamed != named
    prompt[SAMPLER]["inputs"]["seed"] = 11
    assert table(comfy, prompt) == named


@pytest.mark.parametrize("guide", ["SelfAttentionGuidance", "PerturbedAttentionGuidance"])
def test_further_predictions_of_a_step_are_not_mixed_in(
    comfy: ComfyServer, object_info: dict[str, Any], guide: str
) -> None:
    """Those nodes ask the network once more after guidance; the first step is then what it is without them."""
    if guide not in object_info:
        pytest.skip("this version of ComfyUI has no such node")
    prompt = traced(plain(steps=1))
    alone = table(comfy, prompt)
    scales = {"scale": 2.0} | ({"blur_sigma": 2.0} if guide.startswith("Self") else {})
    prompt["guide"] = node(guide, model=prompt[SAMPLER]["inputs"]["model"], **scales)
    prompt[SAMPLER]["inputs"]["model"] = ["guide", 0]
    assert table(comfy, prompt) == alone


def test_a_trace_without_a_sampler_says_what_to_connect(comfy: ComfyServer) -> None:
    prompt = traced(plain())
    prompt[SAMPLER]["inputs"]["model"] = [LOADER, 0]
    assert "Gate Trace recorded nothing: connect its MODEL to the sampler" in comfy.run(prompt).message
