"""The shipped workflows, opened and run in both renderings of the page."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from ..comfyui.distribution import REPOSITORY
from ..comfyui.server import ComfyServer
from .conftest import OUTPUT, modern_page

#: Large enough for every workflow at a zoom at which the page still draws its texts.
SIZE = (2600, 1400)
#: Fewer steps than the workflows have, to save time.
STEPS = 10

SHORTEN = """(steps) => {
    for (const node of app.graph._nodes.filter((node) => node.type === "KSampler")) {
        node.widgets.find((widget) => widget.name === "steps").value = steps;
    }
}"""
FINISHED = """() => app.lastExecutionError || Object.keys(app.lastNodeErrors ?? {}).length
    || app.graph._nodes.filter((node) => node.constructor.nodeData?.output_node)
        .every((node) => app.nodeOutputs[node.id])"""
#: The nodes whose pictures or chart the person does not see.
UNSEEN = """(vue) => app.graph._nodes.filter((node) => {
    const output = app.nodeOutputs[node.id];
    const within = document.querySelector(`[data-node-id="${node.id}"]`);
    const pictures = vue ? [...(within?.querySelectorAll("img") ?? [])] : node.imgs ?? [];
    if (output?.images) return !pictures.length || !pictures.every((picture) => picture.naturalWidth);
    const drawn = ".sd-chart-line, .sd-chart-mapped .sd-chart-edge";
    if (output?.spectral_chart) return !(vue ? within : document).querySelector(drawn);
    return false;
}).map((node) => node.title)"""
#: Where nodes lie: title, left, top, width, height, in the canvas' units.
BOXES = """(vue) => app.graph._nodes.map((node) => {
    if (!vue) return [node.title, ...node.getBounding()];
    const box = document.querySelector(`[data-node-id="${node.id}"]`).getBoundingClientRect();
    const { scale } = app.canvas.ds;
    return [node.title, ...[box.x, box.y, box.width, box.height].map((value) => value / scale)];
})"""
WORKFLOWS = sorted((REPOSITORY / "workflows").glob("*.json"))


@dataclass
class Opened:
    """A page in one of the renderings, and what went wrong in it."""

    page: Page
    vue: bool
    errors: list[str]


@pytest.fixture(scope="module", params=["canvas", "vue"])
def opened(comfy: ComfyServer, request: pytest.FixtureRequest) -> Iterator[Opened]:
    vue = request.param == "vue"
    with modern_page(comfy, vue) as page:
        errors: list[str] = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.set_viewport_size({"width": SIZE[0], "height": SIZE[1]})
        yield Opened(page, vue, errors)


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_opens_and_runs_without_an_error(path: Path, opened: Opened, comfy: ComfyServer) -> None:
    page, vue = opened.page, opened.vue
    workflow = json.loads(path.read_text(encoding="utf-8"))
    page.evaluate("(workflow) => app.loadGraphData(workflow)", workflow)
    types = page.evaluate("() => app.graph._nodes.map((node) => [node.type, node.has_errors ?? false])")
    assert sorted(types) == sorted([node["type"], False] for node in workflow["nodes"])
    page.evaluate("() => app.extensionManager.command.execute('Comfy.Canvas.FitView')")
    # Nodes that need not run again tell the page of 2024's server nothing.
    comfy.post("/free", {"free_memory": True})
    page.evaluate(SHORTEN, STEPS)
    page.evaluate("() => app.queuePrompt(0, 1)")
    try:
        page.wait_for_function(FINISHED, timeout=300_000)
        page.wait_for_function(f"(vue) => !({UNSEEN})(vue).length", arg=vue, timeout=20_000)
    finally:
        OUTPUT.mkdir(exist_ok=True)
        page.screenshot(path=OUTPUT / f"{path.stem}-{'vue' if vue else 'canvas'}.png")
    expect(page.locator(".p-dialog")).to_have_count(0)
    assert page.evaluate("() => app.lastNodeErrors ?? null") in (None, {})
    assert page.evaluate("() => app.lastExecutionError ?? null") is None
    assert overlapping(page.evaluate(BOXES, vue)) == []
    assert not opened.errors


def overlapping(boxes: list[list[Any]]) -> list[tuple[str, str]]:
    """Pairs of nodes that cover a part of each other."""
    return [
        (one, other)
        for (one, *here), (other, *there) in itertools.combinations(boxes, 2)
        if all(min(here[i] + here[i + 2], there[i] + there[i + 2]) > max(here[i], there[i]) for i in (0, 1))
    ]
