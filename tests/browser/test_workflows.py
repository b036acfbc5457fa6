"""The shipped workflows, opened and run in the page."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from ..comfyui.distribution import REPOSITORY
from ..comfyui.server import ComfyServer
from .conftest import OUTPUT

#: Every node that shows pictures has got them, or something has gone wrong.
FINISHED = """() => app.lastExecutionError || Object.keys(app.lastNodeErrors ?? {}).length
    || app.graph._nodes.filter((node) => node.constructor.nodeData?.output_node)
        .every((node) => node.imgs?.length && node.imgs.every((image) => image.naturalWidth))"""

WORKFLOWS = sorted((REPOSITORY / "workflows").glob("*.json"))


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_opens_and_runs_without_an_error(path: Path, page: Page, comfy: ComfyServer) -> None:
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    workflow = json.loads(path.read_text(encoding="utf-8"))
    page.evaluate("(workflow) => app.loadGraphData(workflow)", workflow)
    types = page.evaluate("() => app.graph._nodes.map((node) => [node.type, node.has_errors ?? false])")
    assert sorted(kind for kind, _ in types) == sorted(node["type"] for node in workflow["nodes"])
    page.evaluate("() => app.queuePrompt(0, 1)")
    OUTPUT.mkdir(exist_ok=True)
    try:
        page.wait_for_function(FINISHED, timeout=600_000)
        page.wait_for_timeout(1000)
    finally:
        page.screenshot(path=OUTPUT / f"{path.stem}.png")
    expect(page.locator(".p-dialog")).to_have_count(0)
    assert page.evaluate("() => app.lastNodeErrors ?? null") in (None, {})
    assert page.evaluate("() => app.lastExecutionError ?? null") is None
    assert not errors
