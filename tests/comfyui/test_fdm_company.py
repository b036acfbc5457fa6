"""f-DM students among other nodes: each works with them, or says one sentence."""

from __future__ import annotations

import csv
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from spectral_diffusion.spectral import fdm, spectrum
from spectral_diffusion.spectral.fdm import FreshNoise

from . import patching, prompts, stable, staged_models
from .prompts import LATENT, LOADER, SAMPLER, node
from .results import latent, latents, succeed
from .server import ComfyServer, Prompt
from .staged_models import noise_of, sample, simple_times
from .test_fdm import assert_near, beside, conditions, load, refused
from .test_gates import gate
from .test_guidance import guidance


def modelled(prompt: Prompt, **nodes: dict[str, Any]) -> Prompt:
    """With more nodes on the MODEL, each with a sampler `on NAME` of its own."""
    made = {
        **prompt,
        **{name: {**one, "inputs": {**one["inputs"], "model": [LOADER, 0]}} for name, one in nodes.items()},
    }
    return beside(made, **{f"on {name}": {"model": [name, 0]} for name in nodes})


# --- other samplers and other models ---


def test_a_plain_sampler_says_which_one_to_use(comfy: ComfyServer, staged: Path) -> None:
    prompt = prompts.generate("text")
    prompt[LOADER]["inputs"]["checkpoint"] = "fdm-half.safetensors"
    run = comfy.run(prompt)
    assert run.error is not None and run.error["node_id"] == SAMPLER
    assert run.message.endswith("use f-DM Sampler with SamplerCustom instead of KSampler.")
    prompt = sample("fdm-half")
    prompt["fdm"] = node("KSamplerSelect", sampler_name="dpmpp_2m")
    assert "use f-DM Sampler with SamplerCustom" in refused(comfy, prompt, [SAMPLER, 0])


def test_a_model_without_stages_is_sent_to_the_plain_sampler(comfy: ComfyServer) -> None:
    message = refused(comfy, sample("text"), [SAMPLER, 0])
    assert message.startswith("f-DM Sampler is for students that work in stages") and "use KSampler" in message


def test_another_schedule_and_latents_of_another_model_are_sentences(comfy: ComfyServer, staged: Path) -> None:
    prompt = modelled(sample("fdm-half"), other=node("ModelSamplingDiscrete", sampling="v_prediction", zsnr=False))
    assert "take nodes such as ModelSamplingDiscrete away" in refused(comfy, prompt, ["on other", 0])
    prompt = sample("fdm-half")
    prompt[LATENT] = node("ProbeLatent", shape="1,8,16,16", fill="noise")
    assert "takes latents of 4 channels, the connected one has 8" in refused(comfy, prompt, [SAMPLER, 0])


def test_info_says_the_stages(comfy: ComfyServer, staged: Path) -> None:
    prompt = sample("fdm-all")
    prompt["info"] = node("ProbeText", text=[LOADER, 3])
    (text,) = succeed(comfy, {"info": prompt["info"], LOADER: prompt[LOADER]}).outputs["info"]["text"]
    lines = text.splitlines()
    at = lines.index("Works in stages: sample it with f-DM Sampler and SamplerCustom, not with KSampler")
    assert lines[at + 1 : at + 4] == [
        "Stage 2, steps 999 to 600: 8×8, means of 2×2 cells",
        "Stage 1, steps 599 to 300: 16×16, blurred (uniform, 3 cells)",
        "Stage 0, steps 299 to 0: 16×16, as it is",
    ]


# --- progress ---


def test_progress_and_previews_of_every_stage(comfy: ComfyServer, staged: Path) -> None:
    prompt = sample("fdm-quarter", steps=7)
    prompt[SAMPLER]["inputs"]["noise_seed"] = 99
    run = succeed(comfy, {**prompt, "saved": node("SaveLatent", samples=[SAMPLER, 0], filename_prefix="test")})
    assert [count for count in run.progress if count[1] == 7][-7:] == [(step, 7) for step in range(1, 8)]
    assert len(run.previews) == 7
    assert len({preview.size for preview in run.previews}) == 1
    assert min(np.asarray(preview).std() for preview in run.previews) > 0


def test_an_interrupted_run_ends_and_the_next_one_works(comfy: ComfyServer, staged: Path) -> None:
    def interrupt(value: int) -> None:
        if value == 2:
            comfy.post("/interrupt", {})

    prompt = sample("fdm-half", steps=500)
    prompt["saved"] = node("SaveLatent", samples=[SAMPLER, 0], filename_prefix="test")
    run = comfy.run(prompt, on_progress=interrupt)
    assert run.interrupted and max(value for value, _ in run.progress) < 500
    assert torch.isfinite(latent(comfy, sample("fdm-half"), [SAMPLER, 0])).all()


# --- conditionings for a part of the picture ---


@pytest.mark.parametrize("cfg", [1.0, 2.0])
def test_masks_of_conditionings_are_pooled_for_small_stages(comfy: ComfyServer, staged: Path, cfg: float) -> None:
    """Two labels, one left and one right of a column that no stage's cell has on both sides."""
    prompt = sample("fdm-v", "class", batch_size=2)
    prompt["other"] = node("SpectralDiffusionClassLabel", model=[LOADER, 0], label=7)
    prompt["ground"] = node("SolidMask", value=0.0, width=64, height=64)
    prompt["half"] = node("SolidMask", value=1.0, width=32, height=64)
    for key, condition, at in (("left", "positive", 0), ("right", "other", 32)):
        placed: dict[str, Any] = {"destination": ["ground", 0], "source": ["half", 0], "x": at, "y": 0}
        prompt[f"{key} mask"] = node("MaskComposite", **placed, operation="add")
        masked = {"conditioning": [condition, 0], "mask": [f"{key} mask", 0]}
        prompt[key] = node("ConditioningSetMask", **masked, strength=1.0, set_cond_area="default")
    prompt["both"] = node("ConditioningCombine", conditioning_1=["left", 0], conditioning_2=["right", 0])
    prompt[SAMPLER]["inputs"] |= {"positive": ["both", 0], "cfg": cfg}
    student = load(staged, "fdm-v")
    found = latent(comfy, prompt, [SAMPLER, 0]) * student.config.scale_factor
    assert student.conditioner is not None and student.unet is not None
    with torch.no_grad():
        first, second, nothing = student.conditioner(torch.tensor([[3], [7], [10]]).flatten()).split(1)
    mask = torch.zeros(1, 1, 16, 16)
    mask[..., :8] = 1.0

    def ask(z: Tensor, t: Tensor, stage: int) -> Tensor:
        def predict(context: Tensor) -> Tensor:
            answer: Tensor = student.unet(z, t, context.expand(len(z), -1, -1), stage=stage)  # type: ignore[misc]
            return answer

        left = F.interpolate(mask, z.shape[2:], mode="area")
        asked = left * predict(first) + (1 - left) * predict(second)
        return asked if cfg == 1 else predict(nothing) + cfg * (asked - predict(nothing))

    assert_near(found, walked(student, noise_of(1, 2, 4, 16, 16), ask))


@torch.no_grad()
def walked(student: Any, noise: Tensor, ask: Callable[[Tensor, Tensor, int], Tensor]) -> Tensor:
    """The library's run of six steps, with another answer of the network."""
    process = staged_models.process_of(student)
    sizes = [shape[1:] for shape in process.shapes(noise.shape[1], (noise.shape[2], noise.shape[3]))]
    fresh, walk = FreshNoise(noise), fdm.plan(process, simple_times(6))
    z = process.restrict(noise, walk[0].stage, fresh)
    for step in walk:
        t = torch.full((len(noise),), step.t)
        z = fdm.advance(process, step, process.read(z, t, step.stage, ask(z, t, step.stage)), fresh, sizes)
    return z


@pytest.mark.parametrize("name", ["fdm-quarter", "fdm-vae"])
def test_areas_of_conditionings_are_scaled_for_small_stages(comfy: ComfyServer, staged: Path, name: str) -> None:
    """The whole picture as an area is the picture; odd parts of it change it, on sizes that no factor divides."""
    prompt = sample(name, width=60, height=52)
    # In cells: width, height, x, y. Core takes 8 pixels a cell for granted, and at least 8 cells.
    areas = {"whole": (15, 13, 0, 0), "part": (8, 9, 3, 4), "corner": (9, 8, 7, 5), "cell": (0, 0, 11, 2)}
    for key, (width, height, x, y) in areas.items():
        sides = {"width": 8 * width, "height": 8 * height, "x": 8 * x, "y": 8 * y}
        prompt[f"{key} area"] = node("ConditioningSetArea", conditioning=["positive", 0], **sides, strength=1.0)
        if key == "cell":
            parts_of = {"width": 0.01, "height": 0.01, "x": x / 15, "y": y / 13}
            prompt["cell area"] = node(
                "ConditioningSetAreaPercentage", conditioning=["positive", 0], **parts_of, strength=1.0
            )
        both = {"conditioning_1": [f"{key} area", 0], "conditioning_2": ["negative", 0]}
        prompt[f"{key} and"] = node("ConditioningCombine", **both)
    areas_and = {key: {"positive": [f"{key} and", 0]} for key in areas if key != "whole"}
    prompt = beside(prompt, whole={"positive": ["whole area", 0]}, **areas_and)
    plain, whole, *parts = latents(comfy, prompt, (SAMPLER, *areas))
    assert_near(whole, plain)
    assert all(torch.isfinite(one).all() and (one - plain).abs().max() > 1e-3 for one in parts)


# --- nodes that patch a MODEL ---


def test_a_lora_changes_the_stages_own_layers_too(comfy: ComfyServer, staged: Path) -> None:
    student = load(staged, "fdm-half")
    assert student.unet is not None
    generator, factors = torch.Generator().manual_seed(2), {}
    for key in ("stage_inputs.1.weight", "stage_outputs.1.2.weight", "input_blocks.0.0.weight"):
        weight = student.unet.get_parameter(key)
        up = 0.2 * torch.randn(len(weight), 3, 1, 1, generator=generator)
        down = torch.randn(3, *weight.shape[1:], generator=generator) * weight[0].numel() ** -0.5
        named = "lora_unet_" + key.removesuffix(".weight").replace(".", "_")
        factors |= {f"{named}.lora_up.weight": up, f"{named}.lora_down.weight": down}
        with torch.no_grad():
            weight += torch.einsum("or,rihw->oihw", up[..., 0, 0], down)
    save_file(factors, comfy.distribution.base / "models" / "loras" / "fdm.safetensors")
    given = {"lora_name": "fdm.safetensors", "strength_model": 1.0, "strength_clip": 1.0}
    prompt = modelled(sample("fdm-half"), lora=node("SpectralDiffusionLoadLora", **given))
    prompt["report"] = node("ProbeText", text=["lora", 2])
    plain, found = latents(comfy, prompt, (SAMPLER, "on lora"))
    (report,) = succeed(comfy, prompt).outputs["report"]["text"]
    assert "6 of 6 keys matched, changing 3 weights of the U-Net" in report
    expected = staged_models.sampled(
        student, noise_of(1, 1, 4, 16, 16), simple_times(6), 2.0, *conditions(student, "text", 1)
    )
    assert_near(found * student.config.scale_factor, expected)
    assert (found - plain).abs().max() > 1e-2


def test_wavelet_gates_are_multiplied_in_every_stage(comfy: ComfyServer, staged: Path) -> None:
    gates = {"neutral": gate([]), "all": gate([], up_HH=3.0), "early": gate([], end=0.4, up_HH=3.0)}
    plain, neutral, throughout, early = latents(
        comfy, modelled(sample("fdm-half"), **gates), (SAMPLER, *(f"on {name}" for name in gates))
    )
    assert torch.equal(neutral, plain)
    assert (throughout - plain).abs().max() > 1e-3 < (early - plain).abs().max()
    assert (throughout - early).abs().max() > 1e-3


def test_gates_are_traced_at_the_levels_that_a_stage_passes(comfy: ComfyServer, staged: Path) -> None:
    prompt = modelled(sample("fdm-half", steps=8), trace=node("SpectralDiffusionGateTrace"))
    inputs: dict[str, Any] = {"gates": ["trace", 1], "samples": ["on trace", 0], "levels": "every level"}
    prompt["plot"] = node("SpectralDiffusionGateTracePlot", **inputs)
    prompt["text"] = node("ProbeText", text=["plot", 1])
    (text,) = succeed(comfy, prompt).outputs["text"]["text"]
    steps: dict[str, list[float]] = {"0": [], "1": []}
    for row in csv.DictReader(StringIO(text)):
        if row["direction"] == "up" and row["level"] in steps:
            steps[row["level"]].append(float(row["timestep"]))
    assert len(steps["1"]) == 8
    assert steps["0"] == [step for step in steps["1"] if step <= 500]
    assert torch.equal(*latents(comfy, prompt, (SAMPLER, "on trace")))


def test_guidance_of_all_bands_alike_is_a_higher_cfg(comfy: ComfyServer, staged: Path) -> None:
    """And bands finer than a small stage's cells are not in it."""
    twice = guidance([], low=2.0, **{f"level_{level}": 2.0 for level in range(1, 6)})
    fine = guidance([], levels=1, level_1=5.0, end_percent=0.4)
    coarser = guidance([], levels=2, level_2=5.0, end_percent=0.4)
    prompt = modelled(sample("fdm-half", steps=8), twice=twice, fine=fine, coarser=coarser)
    prompt = beside(prompt, higher={"cfg": 4.0})
    names = (SAMPLER, "on twice", "higher", "on fine", "on coarser")
    plain, doubled, higher, unchanged, changed = latents(comfy, prompt, names)
    assert_near(doubled, higher)
    assert_near(unchanged, plain)
    assert (changed - plain).abs().max() > 1e-2


@pytest.mark.parametrize("name", ["fdm-half", "fdm-vae"])
def test_the_spectra_of_every_step_are_those_of_whole_pictures(comfy: ComfyServer, staged: Path, name: str) -> None:
    """The last is that of the latents; the first two of a nearest neighbour's are of nothing but blocks."""
    prompt = modelled(sample(name, width=60, height=52), trace=node("SpectralDiffusionSpectrumTrace", window="none"))
    inputs = {"evolution": ["trace", 1], "samples": ["on trace", 0], "pictures": 6}
    prompt["spectrum"] = node("SpectralDiffusionSpectrumEvolution", **inputs)
    prompt["text"] = node("ProbeText", text=["spectrum", 2])
    prompt["previews"] = node("PreviewImage", images=["spectrum", 1])
    plain, final = latents(comfy, prompt, (SAMPLER, "on trace"))
    assert torch.equal(plain, final)
    run = succeed(comfy, prompt)
    rows = list(csv.DictReader(StringIO(run.outputs["text"]["text"][0])))
    assert {row["step"] for row in rows} == {"1", "2", "3", "4", "5", "6"}
    expected = spectrum.radial_spectrum(final * 0.5, window="none")
    last = [row for row in rows if row["step"] == "6"]
    np.testing.assert_allclose([float(row["power"]) for row in last], expected.power.numpy(), rtol=5e-3)
    np.testing.assert_allclose([float(row["cycles_per_cell"]) for row in last], expected.frequency.numpy(), rtol=1e-4)
    (first, *_, end) = (comfy.image(one) for one in run.outputs["previews"]["images"])
    assert first.size == end.size
    if name == "fdm-half":
        scale = first.width // 15  # pixels a cell
        blocks = np.asarray(first)[: 12 * scale, : 14 * scale].reshape(6, 2 * scale, 7, 2 * scale, 3)
        assert blocks.std(axis=(1, 3)).max() < 1e-6


def test_nodes_that_need_the_whole_latent_say_so(comfy: ComfyServer, staged: Path, object_info: dict[str, Any]) -> None:
    prompt = sample("fdm-half")
    prompt["images"] = node("SpectralDiffusionExampleImages", images="emoji-64", count=2)
    prompt["latents"] = node("VAEEncode", pixels=["images", 0], vae=[LOADER, 2])
    given: dict[str, Any] = {"model": [LOADER, 0], "positive": ["positive", 0], "samples": ["latents", 0]}
    counts = {"names": "one", "levels": 1, "frequencies": 2, "probes": 2, "probe_seed": 0}
    prompt["spectrum"] = node("SpectralDiffusionDenoiserResponse", **given, **counts)
    assert "this student works in stages" in comfy.run(prompt).message
    folder = comfy.distribution.base / "models" / "controlnet"
    folder.mkdir(exist_ok=True)
    patching.write_controlnet(folder / "staged.safetensors", stable.UNET_ONE)
    prompt = sample("fdm-half")
    prompt["net"] = node("ControlNetLoader", control_net_name="staged.safetensors")
    prompt["images"] = node("SpectralDiffusionExampleImages", images="emoji-64", count=1)
    links: dict[str, Any] = {"conditioning": ["positive", 0], "control_net": ["net", 0], "image": ["images", 0]}
    prompt["controlled"] = node("ControlNetApply", **links, strength=1.0)
    prompt[SAMPLER]["inputs"]["positive"] = ["controlled", 0]
    message = refused(comfy, prompt, [SAMPLER, 0])
    (folder / "staged.safetensors").unlink()
    assert message.startswith("A ControlNet is made for a network that sees the whole latent at every step")


#: Patches of core's that act on what guidance sees, or inside the network, whatever the size.
WORKING = ("FreeU_V2", "SelfAttentionGuidance", "PerturbedAttentionGuidance", "RescaleCFG", "HyperTile", "deep shrink")


def test_cores_patches_work_in_every_stage(comfy: ComfyServer, staged: Path, object_info: dict[str, Any]) -> None:
    """They change what is sampled; an order of theirs with f-DM is nobody's to say."""
    names = [name for name in WORKING if patching.PATCHES[name][0] in object_info]
    nodes = {name: patching.patch(object_info, name, [LOADER, 0]) for name in names}
    prompt = modelled(sample("fdm-half", width=128, height=128), **nodes)
    plain, *others = latents(comfy, prompt, (SAMPLER, *(f"on {name}" for name in names)))
    for name, one in zip(names, others, strict=True):
        assert torch.isfinite(one).all() and (one - plain).abs().max() > 1e-3, name


def test_a_mask_may_change_from_step_to_step(comfy: ComfyServer, staged: Path, object_info: dict[str, Any]) -> None:
    """Differential Diffusion: what lies under a weaker mask is painted later, what lies under none, never."""
    if "DifferentialDiffusion" not in object_info:
        pytest.skip("this version of ComfyUI has no Differential Diffusion")
    changing = patching.filled(object_info, "DifferentialDiffusion", model=[LOADER, 0])
    prompt = sample("fdm-half", steps=10)
    prompt["images"] = node("SpectralDiffusionExampleImages", images="emoji-64", count=1)
    prompt[LATENT] = node("VAEEncode", pixels=["images", 0], vae=[LOADER, 2])
    prompt["ground"] = node("SolidMask", value=0.0, width=64, height=64)
    prompt["weak"] = node("SolidMask", value=0.5, width=64, height=32)
    placed: dict[str, Any] = {"destination": ["ground", 0], "source": ["weak", 0], "x": 0, "y": 32}
    prompt["mask"] = node("MaskComposite", **placed, operation="add")
    prompt["masked"] = node("SetLatentNoiseMask", samples=[LATENT, 0], mask=["mask", 0])
    prompt[SAMPLER]["inputs"]["latent_image"] = ["masked", 0]
    prompt = modelled(prompt, changing=changing)
    mixed, late, start = latents(comfy, prompt, (SAMPLER, "on changing", LATENT))
    assert torch.equal(late[..., :8, :], start[..., :8, :])
    assert (late - start)[..., 8:, :].abs().max() > 1e-2 < (late - mixed).abs().max()


def test_guiders_and_the_advanced_sampler(comfy: ComfyServer, staged: Path, object_info: dict[str, Any]) -> None:
    if "CFGGuider" not in object_info:
        pytest.skip("this version of ComfyUI has no guiders")
    prompt = sample("fdm-quarter")
    given = prompt[SAMPLER]["inputs"]
    links = {key: given[key] for key in ("model", "positive", "negative")}
    guiders = {
        "cfg": node("CFGGuider", **links, cfg=given["cfg"]),
        "basic": node("BasicGuider", model=[LOADER, 0], conditioning=["positive", 0]),
    }
    two = {"cond1": ["positive", 0], "cond2": ["negative", 0], "negative": ["negative", 0]}
    scales = {"cfg_conds": 2.0, "cfg_cond2_negative": 1.0, "style": "regular"}
    guiders["dual"] = patching.filled(object_info, "DualCFGGuider", model=[LOADER, 0], **two, **scales)
    prompt["noise"] = node("RandomNoise", noise_seed=given["noise_seed"])
    rest = {key: given[key] for key in ("sampler", "sigmas", "latent_image")}
    for key, guider in guiders.items():
        prompt[f"{key} guider"] = guider
        prompt[key] = node("SamplerCustomAdvanced", noise=["noise", 0], guider=[f"{key} guider", 0], **rest)
    prompt = beside(prompt, once={"cfg": 1.0})
    plain, by_cfg, basic, dual, once = latents(comfy, prompt, (SAMPLER, "cfg", "basic", "dual", "once"))
    assert_near(by_cfg, plain)
    assert_near(basic, once)
    assert_near(dual, plain)  # the negative one + 2 · (the positive one − that)


# --- saved and loaded again ---


@pytest.mark.parametrize("name", ["fdm-half", "fdm-vae"])
def test_a_saved_student_keeps_its_stages(comfy: ComfyServer, staged: Path, name: str) -> None:
    prompt = sample(name)
    saver = node(
        "CheckpointSave", model=[LOADER, 0], clip=[LOADER, 1], vae=[LOADER, 2], filename_prefix=f"staged-{name}/model"
    )
    before = latent(comfy, prompt, [SAMPLER, 0])
    succeed(comfy, {**prompt, "save": saver})
    (written,) = (comfy.distribution.base / "output" / f"staged-{name}").iterdir()
    again = staged / f"saved-{name}.safetensors"
    written.rename(again)
    prompt[LOADER]["inputs"]["checkpoint"] = again.name
    assert torch.equal(latent(comfy, prompt, [SAMPLER, 0]), before)
    again.unlink()
