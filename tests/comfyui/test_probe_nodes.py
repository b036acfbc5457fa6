"""The nodes that probe a MODEL: its schedule, its filters, its predictions, its response; on any kind of model."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from spectral_diffusion.spectral import checkpoint, spectrum
from spectral_diffusion.spectral.diffusion import Schedule
from spectral_diffusion.training.tokens import tokenize

from . import prompts
from .distribution import REPOSITORY
from .prompts import DECODE, LATENT, LOADER, SAMPLER, SAVE, Link, node
from .results import latents, models_folder, succeed
from .server import ComfyServer, Prompt
from .test_spectrum_nodes import examples, shown, table

DEFAULT_MODELS = REPOSITORY / "workflows" / "checkpoints"
STUDENT = DEFAULT_MODELS / "emoji64-student.safetensors"


def loaded(name: str) -> dict[str, Any]:
    return node("SpectralDiffusionLoadCheckpoint", checkpoint=f"{name}.safetensors")


# --- evolution ---


def traced(steps: int = 6, sampler: str = "ddim", model: str = "emoji64-student", **plot: Any) -> Prompt:
    """A sampling whose predictions are recorded and drawn."""
    made = prompts.generate(model, seed=3, steps=steps)
    del made[DECODE], made[SAVE]
    made["trace"] = node("SpectralDiffusionSpectrumTrace", model=[LOADER, 0], window="hann")
    made[SAMPLER]["inputs"] |= {"model": ["trace", 0], "sampler_name": sampler, "scheduler": "normal"}
    chart: dict[str, Any] = {"evolution": ["trace", 1], "samples": [SAMPLER, 0], "pictures": 4, **plot}
    made["spectrum"] = node("SpectralDiffusionSpectrumEvolution", **chart)
    return made


def test_the_last_prediction_is_the_picture_and_recording_changes_nothing(comfy: ComfyServer) -> None:
    """DDIM ends with its prediction of x_0, so that the last spectrum recorded is that of the latent."""
    made = traced()
    recorded = table(shown(comfy, made))
    steps = sorted({int(row["step"]) for row in recorded})
    assert steps == [1, 2, 3, 4, 5, 6]
    sigmas = [float(next(row["sigma"] for row in recorded if row["step"] == str(step))) for step in steps]
    assert sigmas == sorted(sigmas, reverse=True)
    (final,) = latents(comfy, made)
    config = checkpoint.load(STUDENT).config
    expected = spectrum.radial_spectrum(final * config.scale_factor)
    last = [float(row["power"]) for row in recorded if row["step"] == "6"]
    np.testing.assert_allclose(last, expected.power.numpy(), rtol=2e-3)
    plain = {name: one for name, one in made.items() if name not in ("trace", "spectrum")}
    plain[SAMPLER] = {**made[SAMPLER], "inputs": {**made[SAMPLER]["inputs"], "model": [LOADER, 0]}}
    assert torch.equal(latents(comfy, plain)[0], final)


@pytest.mark.parametrize("sampler", ["euler", "heun", "dpmpp_2m_sde", "lms"])
def test_every_core_sampler_is_recorded(comfy: ComfyServer, sampler: str) -> None:
    recorded = table(shown(comfy, traced(5, sampler, "none")))
    sigmas = [float(row["sigma"]) for row in recorded]
    assert len(set(sigmas)) == len({row["step"] for row in recorded}) >= 5
    assert sigmas == sorted(sigmas, reverse=True)


def test_pictures_and_steps_are_shown_together(comfy: ComfyServer) -> None:
    made = traced(8, vae=[LOADER, 2])
    made["pictures"] = node("PreviewImage", images=["spectrum", 1])
    run = succeed(comfy, made)
    assert len(run.outputs["pictures"]["images"]) == 4
    assert comfy.image(run.outputs["pictures"]["images"][-1]).size == (64, 64)
    described = run.outputs["spectrum"]["spectral_chart"][0]
    assert described["scrub"] == {"part": 1, "label": "step"}
    names = [view["name"] for view in described["views"]]
    assert names[:2] == [["latent", "1 of 8"], ["latent", "2 of 8"]]
    assert ["picture", "8 of 8"] in names
    for view in described["views"]:
        if "picture" in view:
            assert np.asarray(comfy.image(view["picture"])).std() > 0
    (whole,) = (view["map"] for view in described["views"] if view["name"][0] == "all steps")
    assert len(whole["values"]) == 8
    assert whole["values"][0] == [0.0] * len(whole["values"][0]), "the last step, on top, is its own final power"


def test_nothing_recorded_is_a_sentence(comfy: ComfyServer) -> None:
    made = traced(1, model="none")
    made[SAMPLER]["inputs"]["model"] = [LOADER, 0]
    assert "Spectrum Trace recorded nothing" in comfy.run(made).message


# --- Wiener filter ---


def test_the_wiener_filter_of_the_models_own_schedule(comfy: ComfyServer) -> None:
    """Closed forms of PAPER's section 2 with the ᾱ of the file's schedule."""
    made = {LOADER: loaded("emoji64-student")}
    widgets = {"amplitude": 0.5, "alpha": 1.5, "levels": 5, "window": "hann"}
    made["spectrum"] = node("SpectralDiffusionWienerFilter", model=[LOADER, 0], **widgets)
    rows = table(shown(comfy, made))
    schedule = Schedule.from_config(checkpoint.load(STUDENT).config.schedule)
    steps = {float(row["timestep"]) for row in rows}
    assert len(steps) == 5
    for row in rows:
        one = {name: float(value) for name, value in row.items()}
        alpha = float(np.interp(one["timestep"], np.arange(schedule.steps), schedule.alphas_cumprod))
        power = 0.5 / one["cycles_per_cell"] ** 1.5
        assert one["power"] == pytest.approx(power, rel=1e-4)
        # ComfyUI's time steps are whole numbers, its noise levels are not.
        assert one["reconstruction"] == pytest.approx(alpha**0.5 / (alpha + (1 - alpha) / power), rel=0.02, abs=1e-3)
        noise = (1 - alpha) ** 0.5 / (alpha * power + 1 - alpha)
        assert one["noise_filter"] == pytest.approx(noise, rel=0.02, abs=1e-3)
        assert one["kept"] == pytest.approx(power / (power + one["sigma"] ** 2), rel=1e-4)


def test_the_power_of_latents_is_measured_as_the_model_sees_them(comfy: ComfyServer) -> None:
    made: Prompt = {LOADER: loaded("text"), "latents": node("ProbeLatent", shape="8,4,32,32", fill="noise")}
    widgets = {"amplitude": 1.0, "alpha": 2.0, "levels": 1, "window": "none"}
    made["spectrum"] = node("SpectralDiffusionWienerFilter", model=[LOADER, 0], images=["latents", 0], **widgets)
    power = [float(row["power"]) for row in table(shown(comfy, made))]
    assert np.mean(power[-20:]) == pytest.approx(0.5**2 / 12, rel=0.1), "uniform noise times the scale of 0.5"


# --- filters ---


def test_every_convolution_of_a_checkpoint_is_measured(comfy: ComfyServer) -> None:
    """One layer by numpy's DFT of its filters, on the side that its feature map has."""
    made = {LOADER: loaded("none")}
    made["spectrum"] = node("SpectralDiffusionFilterCorrelation", model=[LOADER, 0], latent_size=0)
    rows = {row["layer"]: row for row in table(shown(comfy, made))}
    prefix = "model.diffusion_model."
    weights = load_file(models_folder(comfy) / "none.safetensors")
    wanted = {
        name.removeprefix(prefix).removesuffix(".weight"): weight.double().numpy()
        for name, weight in weights.items()
        if name.startswith(prefix) and weight.ndim == 4 and weight.shape[-1] > 1
    }
    assert set(rows) == set(wanted)
    for name, side in (("input_blocks.0.0", 16), ("middle_block.0.in_layers.2", 4)):
        filters = wanted[name].reshape(-1, 3, 3)
        assert (int(rows[name]["feature_map"]), int(rows[name]["filters"])) == (side, len(filters))
        spectra = np.fft.fft2(filters - filters.mean(0), s=(side, side))
        moved = np.roll(spectra, (-1, -1), (1, 2))
        power = (np.abs(spectra) ** 2).mean(0)
        found = np.abs((spectra * moved.conj()).mean(0)) / np.sqrt(power * np.roll(power, (-1, -1), (0, 1)))
        assert float(rows[name]["measured"]) == pytest.approx(found.mean(), rel=1e-3)


# --- response ---


def response(names: str, **inputs: Any) -> dict[str, Any]:
    counts = {"levels": 3, "frequencies": 5, "probes": 6, "probe_seed": 7}
    given: dict[str, Any] = {"positive": ["condition", 0], "samples": ["latents", 0], **counts, **inputs}
    return node("SpectralDiffusionDenoiserResponse", names=names, **given)


def encoded(model: str, count: int = 12) -> Prompt:
    """Latents of the example images by a checkpoint's own VAE, and its model unconditioned."""
    return {
        LOADER: loaded(model),
        "condition": node("SpectralDiffusionUnconditional", model=[LOADER, 0]),
        "images": examples(count),
        "latents": node("VAEEncode", pixels=["images", 0], vae=[LOADER, 2]),
    }


def test_the_response_is_that_of_the_network_itself(comfy: ComfyServer) -> None:
    """The same probes on the U-Net as the library opens it, without ComfyUI."""
    made = encoded("emoji64-student")
    made["spectrum"] = response("student", model=[LOADER, 0])
    rows = table(shown(comfy, made))
    (saved,) = latents(comfy, {key: one for key, one in made.items() if key != "spectrum"}, ("latents",))
    opened = checkpoint.load(STUDENT)
    steps = torch.tensor([float(step) for step in dict.fromkeys(row["timestep"] for row in rows)]).round().long()
    sigma = torch.tensor([float(one) for one in dict.fromkeys(row["sigma"] for row in rows)], dtype=torch.float64)
    signal = (1 + sigma.square()).rsqrt()
    assert opened.conditioner is not None and opened.unet is not None
    unet, context = opened.unet, empty_context(opened)

    def denoise(x: torch.Tensor, level: int) -> torch.Tensor:
        t = steps[level].expand(len(x))
        noise = unet(x.float(), t, context.expand(len(x), -1, -1)).double()
        s = signal[level]
        return ((x - (1 - s**2).sqrt() * noise) / s).float()

    expected = spectrum.denoiser_response(
        denoise, saved * opened.config.scale_factor, signal, sigma * signal, rings=5, probes=6, seed=7
    )
    kept = np.array([float(row["kept"]) for row in rows]).reshape(expected.kept.shape)
    optimum = np.array([float(row["kept_optimum"]) for row in rows]).reshape(expected.kept.shape)
    np.testing.assert_allclose(optimum, expected.kept_optimum, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(kept, expected.kept, atol=0.02)


def empty_context(opened: Any) -> torch.Tensor:
    """What the student is told by an empty text."""
    with torch.no_grad():
        made: torch.Tensor = opened.conditioner(tokenize([""]))
    return made


def test_a_model_beside_itself_differs_in_nothing(comfy: ComfyServer) -> None:
    made = encoded("class", 2)
    made["spectrum"] = response("one, other", model=[LOADER, 0], model_2=[LOADER, 0])
    run = shown(comfy, made)
    assert run["numbers"] == [{"difference": 0.0}]
    described = run["spectral_chart"][0]
    assert len(described["views"]) == 3
    assert [line["name"] for line in described["views"][0]["series"]] == ["Wiener optimum", "one", "other"]


def test_latents_of_another_model_are_a_sentence(comfy: ComfyServer) -> None:
    made = encoded("class", 2)
    made["wide"] = node("ProbeLatent", shape="2,16,16,16", fill="noise")
    made["spectrum"] = response("one", model=[LOADER, 0], samples=["wide", 0])
    assert "has 16 channels and this MODEL works on 4" in comfy.run(made).message
    widgets = {"amplitude": 1.0, "alpha": 2.0, "levels": 1, "window": "none", "model": [LOADER, 0]}
    made["spectrum"] = node("SpectralDiffusionWienerFilter", images=["images", 0], **widgets)
    assert "has 3 channels" in comfy.run(made).message


def test_empty_latents_and_missing_names_are_sentences(comfy: ComfyServer) -> None:
    made = encoded("class", 2)
    made[LATENT] = node("SpectralDiffusionEmptyLatent", model=[LOADER, 0], width=0, height=0, batch_size=1)
    made["spectrum"] = response("one", model=[LOADER, 0], samples=[LATENT, 0])
    assert "holds no picture" in comfy.run(made).message
    made["spectrum"] = response("one", model=[LOADER, 0], model_2=[LOADER, 0])
    assert "there are 2 models" in comfy.run(made).message


# --- models of core ---


@pytest.fixture(scope="module")
def networks(object_info: dict[str, Any]) -> list[str]:
    """Core's own architectures that this version has."""
    found: list[str] = object_info["ProbeModel"]["input"]["required"]["network"][0]
    return found


def test_core_models_are_probed(comfy: ComfyServer, networks: list[str]) -> None:
    """A U-Net of core, a flow transformer and a video model, as far as the version knows them."""
    assert "xl" in networks
    for name in networks:
        made: Prompt = {"model": node("ProbeModel", network=name)}
        made["trace"] = node("SpectralDiffusionSpectrumTrace", model=["model", 0], window="none")
        start = prompts.generate("none", steps=2)[SAMPLER]["inputs"]
        links: dict[str, Link] = {"model": ["trace", 0], "positive": ["model", 1], "negative": ["model", 2]}
        sampler = {"sampler_name": "euler", "scheduler": "normal", "latent_image": ["model", 3]}
        made[SAMPLER] = node("KSampler", **{**start, **links, **sampler})
        chart = {"evolution": ["trace", 1], "samples": [SAMPLER, 0], "pictures": 2}
        made["spectrum"] = node("SpectralDiffusionSpectrumEvolution", **chart)
        assert {row["step"] for row in table(shown(comfy, made))} == {"1", "2"}, name
        widgets = {"amplitude": 1.0, "alpha": 2.0, "levels": 3, "window": "hann"}
        wiener = {"model": made["model"]}
        wiener["spectrum"] = node("SpectralDiffusionWienerFilter", model=["model", 0], **widgets)
        kept = np.array([float(row["kept"]) for row in table(shown(comfy, wiener))])
        assert 0 <= kept.min() < kept.max() <= 1, name
        if name == "xl":
            made = {"model": made["model"]}
            made["spectrum"] = node("SpectralDiffusionFilterCorrelation", model=["model", 0], latent_size=32)
            sides = {int(row["feature_map"]) for row in table(shown(comfy, made))}
            assert sides == {32, 16}
        if name != "wan":
            made = {"model": made["model"], "latents": node("ProbeLatent", shape=SHAPES[name], fill="noise")}
            given: dict[str, Link] = {"model": ["model", 0], "positive": ["model", 1], "samples": ["latents", 0]}
            made["spectrum"] = response("core", **given)
            rows = table(shown(comfy, made))
            assert all(np.isfinite(float(row["kept"])) for row in rows), name


SHAPES = {"xl": "3,4,18,26", "flux": "3,16,10,14"}
