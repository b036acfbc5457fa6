"""Each workflow that ships runs as it is, on a fresh installation.

With UPDATE_THUMBNAILS set, the pictures beside the workflows are made anew from what they produce.
"""

from __future__ import annotations

import copy
import itertools
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
from .prompts import node
from .server import ComfyServer, Prompt, Run

WORKFLOWS = sorted((REPOSITORY / "workflows").glob("*.json"))


def run_ok(comfy: ComfyServer, prompt: Prompt) -> Run:
    run = comfy.run(prompt)
    assert run.error is None, run.message
    return run


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_the_workflow_makes_images_again_and_again(path: Path, comfy: ComfyServer, object_info: dict[str, Any]) -> None:
    prompt = workflow.to_prompt(path, object_info)
    run = run_ok(comfy, prompt)
    assert run.progress and run.previews
    assert all(np.asarray(picture).std() > 1 for picture in images(comfy, run))
    assert all(chart["views"] for output in run.outputs.values() for chart in output.get("spectral_chart", []))

    if os.environ.get("UPDATE_THUMBNAILS"):
        thumbnail(comfy, prompt, run).save(path.with_suffix(".jpg"), quality=90)

    first = images(comfy, run_ok(comfy, few_steps(prompt, 0)))
    assert not same(first, images(comfy, run_ok(comfy, few_steps(prompt, 1))))
    assert same(first, images(comfy, run_ok(comfy, few_steps(prompt, 0))))


def test_gates_and_guidance_by_hand_change_the_pictures(comfy: ComfyServer, object_info: dict[str, Any]) -> None:
    for name, kinds in (("gate-by-hand", 3), ("wavelet-guidance", 2)):
        prompt = few_steps(workflow.to_prompt(path_of(name), object_info))
        run = run_ok(comfy, prompt)
        shown = [[np.asarray(picture) for picture in block] for block in blocks(comfy, prompt, run)]
        assert len(shown) == kinds
        for one, other in itertools.combinations(shown, 2):
            assert all(np.abs(a.astype(float) - b).mean() > 1 for a, b in zip(one, other, strict=True))


def test_inpainting_keeps_the_rest_of_the_picture(comfy: ComfyServer, object_info: dict[str, Any]) -> None:
    prompt = few_steps(workflow.to_prompt(path_of("inpaint"), object_info))
    (before,), (mask,), (after,) = (
        [np.asarray(picture).astype(float) for picture in block]
        for block in blocks(comfy, prompt, run_ok(comfy, prompt))
    )
    # Enlarging mixes a few rows on both sides of the mask's edge.
    kept = np.flatnonzero((mask == 0).all(axis=(1, 2)))[16:]
    drawn = np.flatnonzero((mask == 255).all(axis=(1, 2)))[:-16]
    assert len(kept) > 90 and len(drawn) > 90
    assert np.array_equal(before[kept], after[kept])
    assert np.abs(before[drawn] - after[drawn]).mean() > 10


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_the_workflow_has_a_thumbnail_and_fits_together(path: Path) -> None:
    with Image.open(path.with_suffix(".jpg")) as thumbnail:
        assert thumbnail.width == 512 and thumbnail.height >= 170
    saved = json.loads(path.read_text(encoding="utf-8"))
    nodes = {node["id"]: node for node in saved["nodes"]}
    for link, source, slot, target, port, kind in saved["links"]:
        assert link in nodes[source]["outputs"][slot]["links"]
        assert nodes[target]["inputs"][port]["link"] == link
        assert nodes[source]["outputs"][slot]["type"] == kind


def path_of(name: str) -> Path:
    return REPOSITORY / "workflows" / f"{name}.json"


def few_steps(prompt: Prompt, further: int = 0) -> Prompt:
    """The same with four steps and a later seed."""
    made = copy.deepcopy(prompt)
    for one in made.values():
        inputs = one["inputs"]
        if one["class_type"] in ("KSampler", "BasicScheduler"):
            inputs["steps"] = 4
        for seed in ("seed", "noise_seed"):
            if seed in inputs:
                inputs[seed] += further
    return made


def thumbnail(comfy: ComfyServer, prompt: Prompt, run: Run) -> Image.Image:
    """What a workflow is for, 512 pixels wide: the spectra where sets are compared, or else its pictures.

    One node's pictures make a square; of several nodes of as many pictures each has a column, as many rows as there are
    columns at most; of others the first node's are shown.
    """
    charts = [key for key, one in prompt.items() if one["class_type"] == "SpectralDiffusionCompareSpectra"]
    if charts:
        shown = {**prompt, "shown": node("PreviewImage", images=[charts[0], 0])}
        both = comfy.image(run_ok(comfy, shown).outputs["shown"]["images"][0])
        return ImageOps.contain(both.crop((0, 0, both.width // 2, both.height)), (512, 512))
    columns = blocks(comfy, prompt, run)
    if len(columns) == 1 or len({len(column) for column in columns}) > 1:
        count = math.ceil(len(columns[0]) ** 0.5)
        rows = [columns[0][start : start + count] for start in range(0, len(columns[0]), count)]
    else:
        rows = [list(row) for row in zip(*columns, strict=True)][: len(columns)]
    side = 512 // len(rows[0])
    sheet = Image.new("RGB", (512, side * len(rows)), "white")
    for y, row in enumerate(rows):
        for x, picture in enumerate(row):
            sheet.paste(ImageOps.fit(picture, (side, side)), (x * side, y * side))
    return sheet


def blocks(comfy: ComfyServer, prompt: Prompt, run: Run) -> list[list[Image.Image]]:
    """The pictures of each node that shows or saves some, from left to right."""
    shown = [key for key, node in prompt.items() if node["class_type"] in ("PreviewImage", "SaveImage")]
    return [[comfy.image(entry) for entry in run.outputs[key]["images"]] for key in sorted(shown, key=int)]


def images(comfy: ComfyServer, run: Run) -> list[Image.Image]:
    return [comfy.image(entry) for output in run.outputs.values() for entry in output.get("images", [])]


def same(first: list[Image.Image], second: list[Image.Image]) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
