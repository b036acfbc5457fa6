"""What the recipes of the pictures of help pages share: samplings of the default models, and what comes of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from PIL import Image

from . import prompts
from .panels import Row
from .prompts import LOADER, SAMPLER, SAVE, Link, node
from .results import succeed
from .server import ComfyServer, Prompt

STUDENT, TEACHER = "emoji64-student", "emoji64-teacher"
STEPS = 20
Recipe = Callable[[ComfyServer], Image.Image]


def prompt(text: str = "", *nodes: dict[str, Any], model: str = STUDENT, cfg: float = 3.0, **size: int) -> Prompt:
    """A sampling of `text` (without one: of Unconditional), with nodes between loader and sampler."""
    made = prompts.generate(model, steps=STEPS, **size)
    made[SAMPLER]["inputs"]["cfg"] = cfg
    if text:
        made["positive"] = node("CLIPTextEncode", clip=[LOADER, 1], text=text)
    return prompts.patched(made, *nodes)


def drawn(comfy: ComfyServer, asked: Prompt) -> Image.Image:
    """The first picture that a prompt saves."""
    return comfy.image(succeed(comfy, asked).outputs[SAVE]["images"][0])


def shown(comfy: ComfyServer, asked: Prompt, link: Link) -> list[Image.Image]:
    """The pictures at one output of a prompt, whatever node it belongs to."""
    asked = {name: made for name, made in asked.items() if name != SAVE}
    run = succeed(comfy, {**asked, "shown": node("PreviewImage", images=link)})
    return [comfy.image(entry) for entry in run.outputs["shown"]["images"]]


def row(comfy: ComfyServer, heading: str, asked: dict[str, Prompt]) -> Row:
    """A sampling for each caption."""
    return Row([(drawn(comfy, one), caption) for caption, one in asked.items()], heading)


def example(count: int) -> dict[str, Any]:
    return node("SpectralDiffusionExampleImages", images="emoji-64", count=count)


def strip(comfy: ComfyServer, asked: Prompt, link: Link, heading: str) -> Row:
    """Ten of the pictures that a chart is about."""
    return Row([(one, "") for one in shown(comfy, asked, link)[:10]], heading)
