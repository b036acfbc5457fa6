"""Each workflow that ships runs as it is, on a fresh installation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

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


def images(comfy: ComfyServer, run: Run) -> list[Image.Image]:
    return [comfy.image(entry) for output in run.outputs.values() for entry in output["images"]]


def same(first: list[Image.Image], second: list[Image.Image]) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
