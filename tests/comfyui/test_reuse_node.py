"""Reuse Deep Features against the library's own sampling with reuse, and beside other nodes, on a real server."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from spectral_diffusion.spectral import checkpoint
from spectral_diffusion.spectral.checkpoint import Checkpoint
from spectral_diffusion.spectral.deep_features import Reuse
from spectral_diffusion.spectral.diffusion import guided
from spectral_diffusion.spectral.reuse import OneSampling, Reusing
from spectral_diffusion.training.tokens import tokenize

from . import patching, prompts, stable, staged_models
from .distribution import REPOSITORY
from .prompts import LOADER, SAMPLER, node, patched
from .results import latent, latents, succeed
from .server import ComfyServer, Prompt
from .staged_models import noise_of, simple_times
from .test_gates import table, traced
from .test_parity import OURS, loader
from .test_patches import boxed, controlled, files
from .test_probe_nodes import encoded, response, shown
from .test_sampling import contexts

__all__ = ["files"]
STUDENT = "smiling face with hearts"


def reuse(every: int = 2, outer_blocks: int = 1, start: float = 0.0, end: float = 1.0) -> dict[str, Any]:
    """Reuse Deep Features, on the model of the loader until it is put elsewhere."""
    when = {"start_percent": start, "end_percent": end}
    return node("SpectralDiffusionReuseDeepFeatures", model=[LOADER, 0], every=every, outer_blocks=outer_blocks, **when)


def plain(kind: str = "text", steps: int = 6, seed: int = 11, **changes: Any) -> Prompt:
    prompt = prompts.generate(kind, seed=seed, steps=steps, batch_size=2)
    prompt[SAMPLER]["inputs"] |= {"sampler_name": "euler", "scheduler": "normal"} | changes
    return prompt


def sampled(comfy: ComfyServer, prompt: Prompt, *nodes: dict[str, Any]) -> Tensor:
    return latent(comfy, patched(prompt, *nodes), [SAMPLER, 0])


@pytest.mark.parametrize("kind", ["text", "class", "none", "vq", "half"])
def test_neutral_settings_change_nothing_to_the_last_bit(comfy: ComfyServer, kind: str) -> None:
    expected = latent(comfy, plain(kind), [SAMPLER, 0])
    for neutral in (reuse(every=1), reuse(outer_blocks=100), reuse(3, 1, 0.45, 0.55)):
        assert torch.equal(sampled(comfy, plain(kind), neutral), expected)
    assert not torch.equal(sampled(comfy, plain(kind), reuse()), expected)


@pytest.mark.parametrize(("every", "outer", "cfg"), [(2, 1, 3.0), (5, 3, 3.0), (3, 1, 1.0)])
def test_the_default_student_draws_what_the_library_draws(
    comfy: ComfyServer, every: int, outer: int, cfg: float
) -> None:
    prompt = plain(seed=5, steps=12, cfg=cfg, scheduler="simple")
    prompt["positive"]["inputs"]["text"] = STUDENT
    prompt[LOADER]["inputs"]["checkpoint"] = "emoji64-student.safetensors"
    found = sampled(comfy, prompt, reuse(every, outer))
    student = checkpoint.load(REPOSITORY / "workflows" / "checkpoints" / "emoji64-student.safetensors")
    expected, whole = (euler(student, 12, cfg, one) for one in (Reuse(every, outer), None))
    assert (found - expected).abs().max() < 2e-3 * expected.std()
    assert (found - whole).abs().max() > 2e-2 * expected.std()


@torch.no_grad()
def euler(student: Checkpoint, steps: int, cfg: float, reuse: Reuse | None) -> Tensor:
    """Core's Euler sampler and scheduler "simple" from noise of seed 5, with the library's network."""
    assert student.unet is not None and student.conditioner is not None
    positive, negative = student.conditioner(tokenize([STUDENT, ""])).split(1)
    times = simple_times(steps)[:-1]
    hooks = OneSampling(times, reuse)
    ask = guided(partial(student.unet, hooks=hooks), cfg, positive.expand(2, -1, -1), negative.expand(2, -1, -1))
    sigmas = [*((1 / student.schedule.alphas_cumprod[times] - 1).sqrt().tolist()), 0.0]
    x = noise_of(5, 2, 4, 16, 16) * (1 + sigmas[0] ** 2) ** 0.5
    for t, sigma, following in zip(times, sigmas, sigmas[1:], strict=False):
        x = x + (following - sigma) * ask(x / (1 + sigma**2) ** 0.5, torch.full((2,), t))
    return x / student.config.scale_factor


def test_a_sampling_knows_nothing_of_the_one_before(comfy: ComfyServer) -> None:
    """The same picture alone, after one of another seed, and after one that begins in the middle of the noise."""
    alone = sampled(comfy, plain(seed=3), reuse())
    two = patched(plain(seed=4), reuse())
    for name, changes in (("half", {"denoise": 0.5, "seed": 5}), ("again", {"seed": 3})):
        before = [SAMPLER, 0] if name == "half" else ["latent", 0]
        two[name] = {**two[SAMPLER], "inputs": {**two[SAMPLER]["inputs"], **changes, "latent_image": before}}
    first, half, again = latents(comfy, two, (SAMPLER, "half", "again"))
    assert torch.equal(again, alone) and not torch.equal(first, half)


def test_another_node_replaces_it_and_the_first_model_stays(comfy: ComfyServer) -> None:
    both = patched(plain(), reuse(3), reuse(2))
    both["untouched"] = {**both[SAMPLER], "inputs": {**both[SAMPLER]["inputs"], "model": [LOADER, 0]}}
    second, untouched = latents(comfy, both, (SAMPLER, "untouched"))
    assert torch.equal(second, sampled(comfy, plain(), reuse(2)))
    assert torch.equal(untouched, latent(comfy, plain(), [SAMPLER, 0]))


@pytest.mark.parametrize("sampler", ["heun", "dpm_2", "lcm", "uni_pc", "dpmpp_3m_sde"])
def test_samplers_that_ask_more_than_once_a_step(comfy: ComfyServer, sampler: str) -> None:
    prompt = plain(steps=8, sampler_name=sampler)
    found, whole = sampled(comfy, prompt, reuse()), latent(comfy, prompt, [SAMPLER, 0])
    assert found.isfinite().all() and not torch.equal(found, whole)


def small_stable(name: str) -> Prompt:
    """A small Stable Diffusion by our loader, four steps."""
    made = prompts.generate("text", steps=4)
    del made[prompts.DECODE], made[prompts.SAVE]
    return made | {
        LOADER: loader(OURS, name),
        "negative": node("CLIPTextEncode", clip=[LOADER, 1], text=""),
        "latent": node("EmptyLatentImage", width=96, height=64, batch_size=1),
    }


@pytest.fixture
def control(comfy: ComfyServer, stable_one: str) -> Iterator[Prompt]:
    """A ControlNet of a small Stable Diffusion, and the prompt that samples with both."""
    models = comfy.distribution.base / "models" / "controlnet"
    models.mkdir(exist_ok=True)
    patching.write_controlnet(models / "control.safetensors", stable.UNET_ONE)
    Image.radial_gradient("L").resize((96, 64)).save(comfy.distribution.base / "input" / "control.png")
    made = small_stable(stable_one) | controlled("positive", "negative")
    made[SAMPLER]["inputs"] |= {"positive": ["controlled", 0], "negative": ["controlled", 1]}
    yield made
    (models / "control.safetensors").unlink()


@pytest.mark.parametrize("outer", [1, 2, 3])
def test_a_controlnet_goes_on_adding_to_the_outer_blocks(comfy: ComfyServer, control: Prompt, outer: int) -> None:
    """Of a teacher of four blocks; what does not fit would be refused."""
    found = sampled(comfy, control, reuse(2, outer))
    assert found.isfinite().all() and not torch.equal(found, sampled(comfy, control))


@pytest.mark.parametrize("name", ["FreeU_V2", "SelfAttentionGuidance", "PerturbedAttentionGuidance", "HyperTile"])
def test_it_goes_with_other_patches(comfy: ComfyServer, object_info: dict[str, Any], name: str) -> None:
    """Every way differs from every other, and where all blocks are outer ones, from none."""
    if patching.PATCHES[name][0] not in object_info:
        pytest.skip("this version of ComfyUI has no such node")
    patch = patching.patch(object_info, name, [LOADER, 0])
    ways = [(patch,), (reuse(),), (patch, reuse()), (reuse(), patch)]
    only, reused, after, before = (sampled(comfy, plain(), *nodes) for nodes in ways)
    assert torch.equal(after, before) and after.isfinite().all()
    assert not torch.equal(after, only) and not torch.equal(after, reused)
    assert torch.equal(sampled(comfy, plain(), patch, reuse(2, 100)), only)


def test_gate_trace_shows_the_whole_steps(comfy: ComfyServer) -> None:
    """The outermost blocks of a student hold no resampler."""
    whole = table(comfy, traced(plain(steps=6)))
    reused = table(comfy, traced(patched(plain(steps=6), reuse(3))))
    steps = sorted({float(row["timestep"]) for row in whole}, reverse=True)
    assert len(steps) == 6 and {float(row["timestep"]) for row in reused} == {steps[0], steps[3]}
    assert len(reused) == len(whole) // 3


@pytest.mark.parametrize(("name", "every"), [("fdm-half", 2), ("fdm-half", 100), ("fdm-blur", 100)])
def test_fdm_sampler_reuses_within_each_stage(comfy: ComfyServer, staged: Path, name: str, every: int) -> None:
    student = checkpoint.load(staged / f"{name}.safetensors")
    found = sampled(comfy, staged_models.sample(name, steps=8), reuse(every)) * student.config.scale_factor
    positive, negative = (one[:1] for one in contexts(student.conditioner, "text") if one is not None)
    given = (student, noise_of(1, 1, 4, 16, 16), simple_times(8), 2.0, positive, negative)
    expected, whole = (staged_models.sampled(*given, hooks=Reusing(one)) for one in (Reuse(every), None))
    assert (found - expected).abs().max() < 1e-3 * expected.std() < (found - whole).abs().max()


def test_a_run_that_was_interrupted_leaves_nothing_to_the_next(comfy: ComfyServer) -> None:
    """The next one begins lower in the noise than the first one got."""

    def interrupt(value: int) -> None:
        if value == 2:
            comfy.post("/interrupt", {})

    def late(seed: int) -> Prompt:
        made = patched(plain(seed=seed, steps=10), reuse(100))
        inputs = made[SAMPLER]["inputs"]
        given = {key: inputs[key] for key in inputs if key not in ("seed", "denoise")}
        flags = {"add_noise": "enable", "return_with_leftover_noise": "disable", "noise_seed": seed}
        made[SAMPLER] = node("KSamplerAdvanced", **given, **flags, start_at_step=4, end_at_step=10)
        return made

    alone = latent(comfy, late(8), [SAMPLER, 0])
    first = patched(plain(seed=9, steps=500), reuse(100))
    first["saved"] = node("SaveLatent", samples=[SAMPLER, 0], filename_prefix="test")
    assert comfy.run(first, on_progress=interrupt).interrupted
    latent(comfy, plain(seed=10), [SAMPLER, 0])  # so that the server does not remember the result of `late`
    assert torch.equal(latent(comfy, late(8), [SAMPLER, 0]), alone)


@pytest.mark.usefixtures("files")
@pytest.mark.parametrize("outer", [1, 2, 3])
def test_gligen_finds_its_layers(comfy: ComfyServer, stable_one: str, outer: int) -> None:
    """By the number of the transformer, of which reuse leaves some out."""
    made = small_stable(stable_one) | boxed("positive")
    made[SAMPLER]["inputs"]["positive"] = ["boxed", 0]
    assert sampled(comfy, made, reuse(2, outer)).isfinite().all()


def test_a_response_is_measured_without_reuse(comfy: ComfyServer) -> None:
    made = encoded("class", 2)
    made["patched"] = reuse()
    made["spectrum"] = response("one, other", model=[LOADER, 0], model_2=["patched", 0])
    assert shown(comfy, made)["numbers"] == [{"difference": 0.0}]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"every": 0}, "every"),
        ({"outer_blocks": 0}, "outer_blocks"),
        ({"start_percent": 0.8, "end_percent": 0.2}, "the start not after the end"),
    ],
)
def test_what_cannot_be_is_refused(comfy: ComfyServer, changes: dict[str, Any], sentence: str) -> None:
    one = reuse()
    one["inputs"] |= changes
    assert sentence in comfy.run(patched(plain(), one)).message


def test_a_model_of_another_loader_is_a_sentence(comfy: ComfyServer, stable_one: str) -> None:
    prompt = plain()
    prompt["core"] = node("CheckpointLoaderSimple", ckpt_name=stable_one)
    one = reuse()
    one["inputs"]["model"] = ["core", 0]
    prompt["reuse"] = one
    prompt[SAMPLER]["inputs"]["model"] = ["reuse", 0]
    assert "needs a MODEL from Load Checkpoint (Spectral Diffusion)" in comfy.run(prompt).message


def test_nothing_is_said_on_the_way(comfy: ComfyServer) -> None:
    run = succeed(comfy, patched(prompts.generate("text", steps=5, seed=77), reuse()))
    assert [value for value, maximum in run.progress if maximum == 5] == [1, 2, 3, 4, 5]
