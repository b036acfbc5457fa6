"""The native MODEL among core's samplers, schedulers, latents and conditionings."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from .patching import filled
from .prompts import LATENT, LOADER, SAMPLER, Link, node
from .results import latents, sample
from .server import ComfyServer, Prompt


def assert_near(found: Tensor, expected: Tensor) -> None:
    """Equal to the rounding of float32 after some steps, relative to the largest number."""
    assert (found - expected).abs().max() < 1e-4 * expected.abs().max()


def choices(object_info: dict[str, Any], widget: str) -> list[str]:
    """What KSampler offers for a widget, in this version."""
    declared = object_info["KSampler"]["input"]["required"][widget]
    offered: list[str] = declared[0] if isinstance(declared[0], list) else declared[1]["options"]
    return offered


def variants(prompt: Prompt, changes: dict[str, dict[str, Any]]) -> Prompt:
    """The same with a sampler for each of `changes` in the place of the one, named for it."""
    base = prompt[SAMPLER]["inputs"]
    others = {key: one for key, one in prompt.items() if key != SAMPLER}
    return others | {name: node("KSampler", **{**base, **change}) for name, change in changes.items()}


@pytest.mark.parametrize("kind", ["text", "vq"])
@pytest.mark.parametrize("widget", ["sampler_name", "scheduler"])
def test_every_sampler_and_every_scheduler(
    comfy: ComfyServer, object_info: dict[str, Any], kind: str, widget: str
) -> None:
    """Two steps of each; the other of the two stays as it is."""
    prompt = sample(kind)
    prompt[SAMPLER]["inputs"] |= {"sampler_name": "euler", "scheduler": "karras"}
    names = choices(object_info, widget)
    made = variants(prompt, {name: {widget: name} for name in names})
    assert len(names) > 5
    for name, latent in zip(names, latents(comfy, made, names), strict=True):
        assert torch.isfinite(latent).all() and latent.std() > 1e-2, name


def test_two_advanced_samplers_in_a_row_are_one_run(comfy: ComfyServer) -> None:
    prompt = sample("text", steps=6)
    prompt[SAMPLER]["inputs"] |= {"sampler_name": "euler", "scheduler": "normal"}
    whole = {key: one for key, one in prompt[SAMPLER]["inputs"].items() if key not in ("seed", "denoise")}
    whole["noise_seed"] = prompt[SAMPLER]["inputs"]["seed"]
    first = {"add_noise": "enable", "start_at_step": 0, "end_at_step": 2, "return_with_leftover_noise": "enable"}
    second = {"add_noise": "disable", "start_at_step": 2, "end_at_step": 10, "return_with_leftover_noise": "disable"}
    prompt["first"] = node("KSamplerAdvanced", **{**whole, **first})
    prompt["second"] = node("KSamplerAdvanced", **{**whole, **second, "latent_image": ["first", 0]})
    one, noisy, two = latents(comfy, prompt, (SAMPLER, "first", "second"))
    assert_near(two, one)
    assert (noisy - one).abs().max() > 1e-2


def test_custom_samplers_agree_with_the_plain_one(comfy: ComfyServer, object_info: dict[str, Any]) -> None:
    prompt = sample("text", steps=4)
    prompt[SAMPLER]["inputs"] |= {"sampler_name": "dpmpp_2m", "scheduler": "normal"}
    given = prompt[SAMPLER]["inputs"]
    conditions = {key: given[key] for key in ("model", "positive", "negative", "cfg")}
    prompt["method"] = node("KSamplerSelect", sampler_name="dpmpp_2m")
    prompt["sigmas"] = node("BasicScheduler", model=[LOADER, 0], scheduler="normal", steps=4, denoise=1.0)
    rest: dict[str, Link] = {"sampler": ["method", 0], "sigmas": ["sigmas", 0], "latent_image": [LATENT, 0]}
    prompt["custom"] = node("SamplerCustom", add_noise=True, noise_seed=given["seed"], **conditions, **rest)
    names = [SAMPLER, "custom"]
    if "CFGGuider" in object_info:
        prompt["guider"] = node("CFGGuider", **conditions)
        prompt["noise"] = node("RandomNoise", noise_seed=given["seed"])
        prompt["advanced"] = node("SamplerCustomAdvanced", noise=["noise", 0], guider=["guider", 0], **rest)
        names.append("advanced")
    plain, *custom = latents(comfy, prompt, names)
    for other in custom:
        assert_near(other, plain)


@pytest.mark.parametrize("kind", ["text", "none"])
def test_a_batch_is_its_samples_alone(comfy: ComfyServer, kind: str) -> None:
    prompt = sample(kind, steps=3)
    prompt[SAMPLER]["inputs"] |= {"sampler_name": "euler", "scheduler": "normal"}
    prompt[LATENT]["inputs"]["batch_size"] = 3
    for index in range(3):
        prompt[f"part {index}"] = node("LatentFromBatch", samples=[LATENT, 0], batch_index=index, length=1)
        alone = {**prompt[SAMPLER]["inputs"], "latent_image": [f"part {index}", 0]}
        prompt[f"alone {index}"] = node("KSampler", **alone)
    whole, *singles = latents(comfy, prompt, (SAMPLER, *(f"alone {index}" for index in range(3))))
    assert_near(whole, torch.cat(singles))


@pytest.mark.parametrize("kind", ["text", "vq"])
@pytest.mark.parametrize(("width", "height"), [(40, 28), (64, 36)], ids=["odd", "wide"])
def test_a_second_pass_after_upscaling(comfy: ComfyServer, kind: str, width: int, height: int) -> None:
    prompt = sample(kind, steps=4)
    prompt[LATENT]["inputs"] |= {"width": width, "height": height}
    prompt["larger"] = node("LatentUpscaleBy", samples=[SAMPLER, 0], upscale_method="bilinear", scale_by=1.5)
    again = {**prompt[SAMPLER]["inputs"], "latent_image": ["larger", 0], "denoise": 0.5, "seed": 2}
    prompt["again"] = node("KSampler", **again)
    larger, found = latents(comfy, prompt, ("larger", "again"))
    assert found.shape[2:] == (round(height / 4 * 1.5), round(width / 4 * 1.5)) == larger.shape[2:]
    assert torch.isfinite(found).all() and (found - larger).abs().max() > 1e-2


class TestAreas:
    """A latent of 15 × 11 cells; core counts areas in cells of 8 pixels, whatever the model's first stage."""

    def prompt(self, kind: str) -> Prompt:
        made = sample(kind, steps=2)
        made[LATENT]["inputs"] |= {"width": 60, "height": 44}
        if kind == "text":
            made["other"] = node("CLIPTextEncode", clip=[LOADER, 1], text="a green tree")
        return made

    def sampled(self, comfy: ComfyServer, made: Prompt, **positives: str) -> list[Tensor]:
        """The latent for each node that conditions, and at the end the plain one."""
        for name, positive in positives.items():
            made[name] = node("KSampler", **{**made[SAMPLER]["inputs"], "positive": [positive, 0]})
        found = latents(comfy, made, (*positives, SAMPLER))
        assert all(torch.isfinite(latent).all() for latent in found)
        return found

    @pytest.mark.parametrize("kind", ["text", "none"])
    def test_parts_of_the_picture(self, comfy: ComfyServer, kind: str) -> None:
        made = self.prompt(kind)
        other = "other" if kind == "text" else "positive"
        area = {"height": 72, "strength": 1.0}
        made["left"] = node("ConditioningSetArea", conditioning=["positive", 0], width=64, x=0, y=0, **area)
        made["right"] = node("ConditioningSetArea", conditioning=[other, 0], width=64, x=56, y=16, **area)
        made["both"] = node("ConditioningCombine", conditioning_1=["left", 0], conditioning_2=["right", 0])
        made["all"] = node("ConditioningCombine", conditioning_1=["both", 0], conditioning_2=["positive", 0])
        parts, covered, plain = self.sampled(comfy, made, parts="both", covered="all")
        assert (parts - plain).abs().max() > 1e-3 and (covered - plain).abs().max() > 1e-3

    def test_an_area_of_everything_is_no_area(self, comfy: ComfyServer) -> None:
        made = self.prompt("text")
        area = {"width": 120, "height": 88, "x": 0, "y": 0, "strength": 1.0}
        made["everything"] = node("ConditioningSetArea", conditioning=["positive", 0], **area)
        found, plain = self.sampled(comfy, made, found="everything")
        assert_near(found, plain)

    @pytest.mark.parametrize("bounds", ["default", "mask bounds"])
    def test_masks(self, comfy: ComfyServer, bounds: str) -> None:
        """One of all ones changes nothing; halves of 1 and ½ do. They are of another size than the latent."""
        made = self.prompt("text")
        for name, value, width in (("full", 1.0, 97), ("half", 0.5, 97), ("narrow", 1.0, 41)):
            made[f"{name} mask"] = node("SolidMask", value=value, width=width, height=71)
        combined = {"x": 40, "y": 12, "operation": "add"}
        made["part mask"] = node("MaskComposite", destination=["no mask", 0], source=["narrow mask", 0], **combined)
        made["no mask"] = node("SolidMask", value=0.0, width=97, height=71)
        for name, positive in (("full", "positive"), ("half", "other"), ("part", "other")):
            conditioning: dict[str, Link] = {"conditioning": [positive, 0], "mask": [f"{name} mask", 0]}
            made[name] = node("ConditioningSetMask", **conditioning, strength=1.0, set_cond_area=bounds)
        made["both"] = node("ConditioningCombine", conditioning_1=["full", 0], conditioning_2=["part", 0])
        same, half, both, plain = self.sampled(comfy, made, same="full", halved="half", mixed="both")
        assert_near(same, plain)
        assert (half - plain).abs().max() > 1e-3 and (both - plain).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("class_type", "given"),
    [
        ("ConditioningAverage", {"conditioning_to_strength": 0.5}),
        ("ConditioningConcat", {}),
        ("ConditioningSetTimestepRange", {"start": 0.0, "end": 0.5}),
        ("ConditioningZeroOut", {}),
    ],
)
def test_other_conditionings(comfy: ComfyServer, class_type: str, given: dict[str, float]) -> None:
    prompt = sample("text")
    prompt["other"] = node("CLIPTextEncode", clip=[LOADER, 1], text="a green tree")
    links: dict[str, Link] = {"conditioning": ["other", 0]}
    if class_type in ("ConditioningAverage", "ConditioningConcat"):
        links = {"conditioning_to": ["positive", 0], "conditioning_from": ["other", 0]}
    prompt["made"] = node(class_type, **links, **given)
    prompt["with it"] = node("KSampler", **{**prompt[SAMPLER]["inputs"], "positive": ["made", 0]})
    if class_type == "ConditioningSetTimestepRange":
        prompt["both"] = node("ConditioningCombine", conditioning_1=["made", 0], conditioning_2=["positive", 0])
        prompt["with it"]["inputs"]["positive"] = ["both", 0]
    found, plain = latents(comfy, prompt, ("with it", SAMPLER))
    assert torch.isfinite(found).all() and (found - plain).abs().max() > 1e-3


@pytest.mark.parametrize("kind", ["text", "vq"])
def test_latents_that_core_cuts_and_pastes(comfy: ComfyServer, kind: str) -> None:
    """Composite, crop, flip, rotate, blend and repeat; then sample what they left, at half the noise."""
    prompt = sample(kind)
    prompt[LATENT]["inputs"] |= {"width": 64, "height": 48}
    samples: dict[str, Link] = {"samples": [SAMPLER, 0]}
    prompt["crop"] = node("LatentCrop", **samples, width=64, height=72, x=8, y=0)
    prompt["flip"] = node("LatentFlip", samples=["crop", 0], flip_method="x-axis: vertically")
    prompt["composite"] = node(
        "LatentComposite", samples_to=[SAMPLER, 0], samples_from=["flip", 0], x=16, y=16, feather=8
    )
    prompt["rotate"] = node("LatentRotate", samples=["composite", 0], rotation="90 degrees")
    prompt["blend"] = node("LatentBlend", samples1=["composite", 0], samples2=["rotate", 0], blend_factor=0.5)
    prompt["repeat"] = node("RepeatLatentBatch", samples=["blend", 0], amount=2)
    again = {**prompt[SAMPLER]["inputs"], "latent_image": ["repeat", 0], "denoise": 0.5}
    prompt["again"] = node("KSampler", **again)
    composite, found = latents(comfy, prompt, ("composite", "again"))
    assert found.shape == (2, *composite.shape[1:]) and torch.isfinite(found).all()


def test_core_s_inpainting_nodes(comfy: ComfyServer, object_info: dict[str, Any]) -> None:
    """They mask latents; what they put into the conditioning is for inpainting models alone, and does no harm."""
    prompt = sample("text")
    prompt["pixels"] = node("SpectralDiffusionExampleImages", images="emoji-64", count=1)
    prompt["mask"] = node("SolidMask", value=1.0, width=64, height=64)
    masked: dict[str, Link] = {"pixels": ["pixels", 0], "vae": [LOADER, 2], "mask": ["mask", 0]}
    prompt[LATENT] = node("VAEEncodeForInpaint", **masked, grow_mask_by=6)
    names = [SAMPLER]
    if "InpaintModelConditioning" in object_info:
        conditions: dict[str, Link] = {"positive": ["positive", 0], "negative": ["negative", 0]}
        prompt["inpaint"] = filled(object_info, "InpaintModelConditioning", **conditions, **masked)
        links = {"positive": ["inpaint", 0], "negative": ["inpaint", 1], "latent_image": ["inpaint", 2]}
        prompt["inpainted"] = node("KSampler", **{**prompt[SAMPLER]["inputs"], **links})
        names.append("inpainted")
    for found in latents(comfy, prompt, names):
        assert torch.isfinite(found).all() and found.std() > 1e-2
