"""Each workflow that ships runs as it is, on a fresh installation.

With UPDATE_THUMBNAILS set, the pictures beside the workflows are made anew from what they produce.
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from . import workflow
from .distribution import REPOSITORY
from .server import ComfyServer, Prompt, Run

WORKFLOWS = sorted((REPOSITORY / "workflows").glob("*.json"))


def run_ok(comfy: ComfyServer, prompt: Prompt) -> Run:
    run = comfy.run(prompt)
    assert run.error is None, run.message
    return run


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_the_workflow_makes_images_again_and_again(path: Path, comfy: ComfyServer, object_info: dict[str, Any]) -> None:
    prompt = workflow.to_prompt(path, object_info)
    sampler = workflow.find(prompt, "KSampler")
    run = run_ok(comfy, prompt)
    assert run.progress and run.previews
    for output in run.outputs.values():
        for entry in output["images"]:
            assert np.asarray(comfy.image(entry)).std() > 1

    if os.environ.get("UPDATE_THUMBNAILS"):
        thumbnail(comfy, prompt, run).save(path.with_suffix(".jpg"), quality=90)

    first = images(comfy, run)
    seed = prompt[sampler]["inputs"]["seed"]
    prompt[sampler]["inputs"]["seed"] = seed + 1
    assert not same(first, images(comfy, run_ok(comfy, prompt)))
    prompt[sampler]["inputs"]["seed"] = seed
    assert same(first, images(comfy, run_ok(comfy, prompt)))


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_the_workflow_has_a_thumbnail_and_fits_together(path: Path) -> None:
    with Image.open(path.with_suffix(".jpg")) as thumbnail:
        assert min(thumbnail.size) >= 256
    saved = json.loads(path.read_text(encoding="utf-8"))
    nodes = {node["id"]: node for node in saved["nodes"]}
    for link, source, slot, target, port, kind in saved["links"]:
        assert link in nodes[source]["outputs"][slot]["links"]
        assert nodes[target]["inputs"][port]["link"] == link
        assert nodes[source]["outputs"][slot]["type"] == kind


def thumbnail(comfy: ComfyServer, prompt: Prompt, run: Run) -> Image.Image:
    """What a workflow is for, 512 pixels wide: the comparison's chart, or else the pictures it saves, as a square."""
    for key, node in prompt.items():
        if node["class_type"] == "SpectralDiffusionCompareSpectra":
            chart = comfy.image(run.outputs[key]["images"][0])
            return ImageOps.contain(chart, (512, 512))
    pictures = [comfy.image(entry) for entry in run.outputs[workflow.find(prompt, "SaveImage")]["images"]]
    columns = math.ceil(len(pictures) ** 0.5)
    side = 512 // columns
    sheet = Image.new("RGB", (512, side * math.ceil(len(pictures) / columns)), "white")
    for index, picture in enumerate(pictures):
        sheet.paste(ImageOps.fit(picture, (side, side)), (index % columns * side, index // columns * side))
    return sheet


def images(comfy: ComfyServer, run: Run) -> list[Image.Image]:
    return [comfy.image(entry) for output in run.outputs.values() for entry in output["images"]]


def same(first: list[Image.Image], second: list[Image.Image]) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
