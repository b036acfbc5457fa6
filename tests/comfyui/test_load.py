"""A long queue, a tenth of it wrong: every sound prompt gives its images, every wrong one its sentence, and the server
is the same process afterwards, with no more memory than it had.
"""

from __future__ import annotations

import random
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from . import attacks, many, prompts
from .attacks import Attack
from .prompts import DECODE, LATENT, LOADER, SAMPLER, SAVE, node
from .server import ComfyServer, Prompt, Run
from .test_memory import counter

ROUNDS, SOUND, WRONG = 4, 45, 5
#: MB by which the most that a later round takes may exceed the most of the second. Of sixteen runs on three
#: versions 21 MB was the largest difference, from where malloc puts things; the history grows by 12 kB a prompt.
TOLERANCE = 40.0


@dataclass(frozen=True)
class Job:
    """A prompt of the queue, and what it must give: images of one size, or an answer."""

    prompt: Prompt
    images: int = 1
    size: tuple[int, int] = (64, 64)
    attack: Attack | None = None

    def complaint(self, comfy: ComfyServer, run: Run) -> str:
        """What is wrong with the way that the prompt ended; "" when nothing is."""
        if self.attack is not None:
            good = attacks.is_sentence(run.message) and re.search(self.attack.says, run.message)
            return "" if good else f"{self.attack.name}: {run.message!r}"
        if run.error is not None:
            return f"{self.prompt}: {run.message!r}"
        shown = [output for outputs in run.outputs.values() for output in outputs.get("images", [])]
        pictures = [comfy.image(output) for output in shown]
        sizes = [picture.size for picture in pictures]
        flat = [bool(np.asarray(picture).std() < 1) for picture in pictures]
        return "" if sizes == [self.size] * self.images and not any(flat) else f"{self.prompt}: {sizes}, flat: {flat}"


# --- sound prompts, one function a kind ---


def _plain(kind: str) -> Callable[[int], Job]:
    return lambda seed: Job(prompts.generate(kind, seed=seed, steps=2))


def _batch(seed: int) -> Job:
    return Job(prompts.generate("text", seed=seed, steps=2, text=f"picture {seed}", batch_size=3), images=3)


def _wide(seed: int) -> Job:
    return Job(prompts.generate("class", seed=seed, steps=2, width=96, height=48), size=(96, 48))


def _default_model(seed: int) -> Job:
    return Job(attacks.changed(prompts.generate("text", seed=seed, steps=2), LOADER, checkpoint=DEFAULT))


def _from_image(kind: str) -> Callable[[int], Job]:
    def make(seed: int) -> Job:
        prompt = prompts.generate(kind, seed=seed, steps=3)
        prompt["image"] = node("SpectralDiffusionExampleImages", images="emoji-64", count=2)
        prompt[LATENT] = node("VAEEncode", pixels=["image", 0], vae=[LOADER, 2])
        prompt[SAMPLER]["inputs"]["denoise"] = 0.6
        return Job(prompt, images=2)

    return make


def _tiled(seed: int) -> Job:
    prompt = prompts.generate("vq", seed=seed, steps=2, width=128, height=128)
    tiles = {"tile_size": 512, "overlap": 64, "temporal_size": 64, "temporal_overlap": 8}
    prompt[DECODE] = node("VAEDecodeTiled", samples=[SAMPLER, 0], vae=[LOADER, 2], **tiles)
    return Job(prompt, size=(128, 128))


def _lora(seed: int) -> Job:
    prompt = attacks.changed(attacks.HOMES["SpectralDiffusionLoadLora"].prompt, SAMPLER, seed=seed)
    return Job(prompt)


def _measured(kind: str, size: tuple[int, int], **inputs: Any) -> Callable[[int], Job]:
    """A chart of what has just been sampled."""

    def make(seed: int) -> Job:
        prompt = prompts.generate("none", seed=seed, steps=2, batch_size=2)
        prompt["data"] = node("SpectralDiffusionExampleImages", images="emoji-64", count=8)
        prompt["chart"] = node(f"SpectralDiffusion{kind}", images=[DECODE, 0], window="hann", **inputs)
        prompt[SAVE] = node("PreviewImage", images=["chart", 0])
        return Job(prompt, size=size)

    return make


DEFAULT = "emoji64-student.safetensors"
KINDS: tuple[Callable[[int], Job], ...] = (
    *(_plain(kind) for kind in ("text", "class", "none", "vq", "half")),
    _batch,
    _wide,
    _default_model,
    _from_image("text"),
    _from_image("vq"),
    _tiled,
    _lora,
    _measured("PowerSpectrum", (720, 680), above=0.25),
    _measured("RadialSpectrum", (960, 640), fit_low=0.0, fit_high=0.375),
    _measured("CompareSpectra", (1920, 640), reference=["data", 0], cutoff=8.0),
)


def _queue(object_info: dict[str, Any]) -> list[Job]:
    """Rounds of the same kinds in another order each, model after model, with other seeds and with other attacks."""
    chance = random.Random(0)
    pool = [*attacks.on_contents(), *attacks.on_every_input(object_info, all_checked=True)]
    wrong = [next(attack for attack in pool if attack.name == name) for name in ATTACKS]
    jobs: list[Job] = []
    for turn in range(ROUNDS):
        sound = [KINDS[index % len(KINDS)](1000 * turn + index) for index in range(SOUND)]
        chance.shuffle(sound)
        places = {model: chance.random() for model in sorted({_model(job) for job in sound})}
        sound.sort(key=lambda job: places[_model(job)])
        jobs += sound
        for attack in wrong[turn * WRONG : (turn + 1) * WRONG]:
            jobs.insert(len(jobs) - chance.randrange(SOUND), Job(attack.prompt, attack=attack))
    return jobs


def _model(job: Job) -> str:
    return str(job.prompt[LOADER]["inputs"]["checkpoint"])


#: One of each way to be wrong.
ATTACKS = (
    "LoadCheckpoint.checkpoint is '../../../../../etc/passwd'",
    "Load Checkpoint: linked/../outside.safetensors",
    "LoadCheckpoint.checkpoint is 'nul\\x00'",
    "LoadCheckpoint.scale_factor is linked to nan",
    "Load LoRA: ../outside.safetensors",
    "Load LoRA: a file with NaN",
    "LoadLora.strength_model is nan",
    "LoadLora.clip is 5",
    "EmptyLatent.width is linked to 1e+300",
    "Empty Latent: 4096 of 8192 x 8192",
    "ClassLabel.model is missing",
    "ClassLabel.label is linked to a node that is not there",
    "SpectralDiffusionClassLabel: a MODEL of core",
    "ExampleImages.images is linked to '../../../../../etc/passwd'",
    "PowerSpectrum.images: no pixels",
    "RadialSpectrum.images: no image",
    "CompareSpectra.reference: one NaN",
    "VAE Encode: infinity",
    "VAE Decode: NaN",
    "VAE Decode (VQ): 4 channels",
)


@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux' /proc")
@pytest.mark.usefixtures("hostile")
def test_two_hundred_prompts_at_once(comfy: ComfyServer, object_info: dict[str, Any]) -> None:
    assert comfy.process is not None
    pid, jobs = comfy.process.pid, _queue(object_info)
    assert len(jobs) == 200 and sum(job.attack is not None for job in jobs) == 20
    seen: list[tuple[int, float]] = []
    runs = many.run_all(
        comfy, [job.prompt for job in jobs], watch=lambda done: seen.append((done, counter(pid, "VmRSS")))
    )
    complaints = [job.complaint(comfy, run) for job, run in zip(jobs, runs, strict=True)]
    assert [complaint for complaint in complaints if complaint] == []
    assert comfy.process.poll() is None and comfy.process.pid == pid
    most = _most_of_each_round(seen, sum(bool(run.prompt_id) for run in runs))
    print("\nmost memory of each round: " + ", ".join(f"{value:.0f} MB" for value in most))
    assert max(most[2:]) <= most[1] + TOLERANCE


def _most_of_each_round(seen: list[tuple[int, float]], total: int) -> list[float]:
    """The largest of the values that were seen while each quarter of the prompts ran."""
    return [max(value for done, value in seen if done * ROUNDS // total == turn) for turn in range(ROUNDS)]
