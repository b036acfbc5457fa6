"""The page of ComfyUI in a real browser, on the server of the neighbouring folder."""

from __future__ import annotations

import importlib.resources
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import comfyui_frontend_package
import pytest
from playwright.sync_api import Page, Route, sync_playwright

from ..comfyui import distribution
from ..comfyui.conftest import write_checkpoints
from ..comfyui.server import ComfyServer

#: Screenshots, for people to look at; not in git.
OUTPUT = distribution.REPOSITORY / "tests" / "browser" / "output"
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@pytest.fixture(scope="session")
def comfy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComfyServer]:
    """A server that serves the modern page."""
    folder = tmp_path_factory.mktemp("browser")
    prepared = distribution.prepare(folder)
    write_checkpoints(prepared.base / "models" / "spectral_diffusion")
    arguments: list[str] = []
    if prepared.modern:
        arguments = ["--front-end-root", str(importlib.resources.files(comfyui_frontend_package) / "static")]
    else:
        shutil.copytree(Path(__file__).with_name("shim"), prepared.base / "custom_nodes" / "shim")
    with ComfyServer(prepared, folder / "server.log", arguments) as server:
        yield server


@pytest.fixture
def page(comfy: ComfyServer) -> Iterator[Page]:
    """The page, loaded and empty; it reaches nothing but the server."""
    with modern_page(comfy) as opened:
        yield opened


@contextmanager
def modern_page(comfy: ComfyServer, vue: bool = False) -> Iterator[Page]:
    """The page of `comfyui-frontend-package`, loaded and empty.

    Args:
        vue: whether it renders nodes by Vue instead of on its canvas.
    """
    # The first two are what the page would ask a newcomer about in dialogs.
    settings = {"Comfy.TutorialCompleted": True, "Comfy.InstalledVersion": "1.0.0", "Comfy.VueNodes.Enabled": vue}
    comfy.post("/settings", {**settings, "Comfy.ColorPalette": "dark"})
    with browser_page(comfy) as opened:
        opened.wait_for_function("() => window.app?.extensionManager", timeout=120_000)
        yield opened


@contextmanager
def browser_page(comfy: ComfyServer) -> Iterator[Page]:
    """A browser of its own, at the server's page."""
    with empty_page() as opened:
        opened.route("**/*", only_local)
        opened.goto(comfy.url)
        # The page is ready when it has nothing more to ask the server, its extensions set up and its socket open.
        opened.wait_for_function("() => window.app?.graph", timeout=120_000)
        opened.wait_for_load_state("networkidle")
        yield opened


@contextmanager
def empty_page(scale: float = 1) -> Iterator[Page]:
    """A browser of its own, with nothing in it.

    Args:
        scale: how many of the screen's pixels a pixel of the page has along each side.
    """
    executable = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if executable is None:
        raise RuntimeError("The browser test needs Chromium; install Debian's package `chromium`.")
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=executable, args=list(FLAGS))
        opened = browser.new_page(viewport={"width": 1760, "height": 960}, device_scale_factor=scale)
        yield opened
        browser.close()


def only_local(route: Route) -> None:
    """Abort every request that would leave this machine."""
    if route.request.url.startswith(("http://127.0.0.1:", "data:", "blob:")):
        route.continue_()
    else:
        route.abort()
