"""The help panel and the words of the nodes, in every language that the pack speaks, as a person sees them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from ..comfyui.distribution import REPOSITORY
from ..comfyui.server import ComfyServer
from .conftest import OUTPUT, browser_page

DOCS = REPOSITORY / "nodes" / "web" / "docs"
NODES = sorted(path.stem for path in DOCS.glob("*.md"))
ADDED = """(type) => {
    const node = LiteGraph.createNode(type);
    node.pos = [200, 200];
    app.graph.clear();
    app.graph.add(node);
    app.canvas.selectNode(node);
    app.canvas.ds.reset();
    const label = (slot) => slot.label ?? slot.localized_name ?? slot.name;
    return {title: node.title, inputs: node.inputs.map(label), outputs: node.outputs.map(label)};
}"""
HELP = ".node-help-content"
LOADED = f"""(title) => {{
    const help = document.querySelector("{HELP}");
    const images = [...help.querySelectorAll("img")];
    return help.querySelector("h1")?.textContent === title && images.length
        && images.every((image) => image.complete && image.naturalWidth);
}}"""


@pytest.fixture(params=["en", "zh"])
def language(request: pytest.FixtureRequest, comfy: ComfyServer) -> Iterator[str]:
    """The page's language."""
    settings = {"Comfy.TutorialCompleted": True, "Comfy.InstalledVersion": "1.0.0", "Comfy.Locale": request.param}
    comfy.post("/settings", settings)
    yield request.param
    comfy.post("/settings", {"Comfy.Locale": "en"})


@pytest.fixture
def page(comfy: ComfyServer, language: str) -> Iterator[Page]:
    """The page in that language, loaded and empty."""
    with browser_page(comfy) as opened:
        opened.wait_for_function("() => window.app?.extensionManager", timeout=120_000)
        yield opened


def words(language: str, node: str) -> dict[str, Any]:
    """What the locale says about a node."""
    every = json.loads((REPOSITORY / "locales" / language / "nodeDefs.json").read_text(encoding="utf-8"))
    said: dict[str, Any] = every[node]
    return said


def test_every_node_speaks_the_language_and_shows_its_help(language: str, page: Page) -> None:
    OUTPUT.mkdir(exist_ok=True)
    page.set_viewport_size({"width": 1760, "height": 2400})  # whole pages on the screenshots
    for node in NODES:
        said = words(language, node)
        shown = page.evaluate(ADDED, node)
        assert shown["title"] == said["display_name"]
        assert {slot["name"] for slot in said["inputs"].values()} == set(shown["inputs"])
        assert [slot["name"] for slot in said["outputs"].values()] == shown["outputs"]
        if not page.locator(HELP).is_visible():
            page.get_by_test_id("info-button").click()
        page.wait_for_function(LOADED, arg=said["display_name"], timeout=30_000)
        help_page = page.locator(HELP)
        # Marks of Markdown that the page did not understand.
        expect(help_page).not_to_contain_text("**")
        help_page.screenshot(path=OUTPUT / f"help-{language}-{node}.png")
    page.set_viewport_size({"width": 1760, "height": 960})
    page.screenshot(path=OUTPUT / f"help-{language}.png")
