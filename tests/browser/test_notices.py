"""A warning of our nodes is something that the person at the page sees, on today's page and on that of 2024."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from playwright.sync_api import Page, expect
from safetensors.torch import save_file

from ..comfyui import distribution, models, prompts
from ..comfyui.prompts import LOADER, SAMPLER, node
from ..comfyui.server import ComfyServer, Prompt
from .conftest import OUTPUT, browser_page

FOREIGN = "lora_unet_double_blocks_0_img_attn_qkv"
TITLE = "LoRA without effect"
#: A message in the corner, in the page's releases before and after 2026.
TOAST = ".p-toast-message, li[role=alert]"


def write_lora(comfy: ComfyServer) -> None:
    """A LoRA of Flux, which fits none of our models."""
    lora = {f"{FOREIGN}.lora_up.weight": torch.ones(8, 2), f"{FOREIGN}.lora_down.weight": torch.ones(2, 8)}
    save_file(lora, comfy.distribution.base / "models" / "loras" / "foreign.safetensors")


@pytest.fixture
def lora(comfy: ComfyServer) -> None:
    """The LoRA among the server's, before the page is opened."""
    write_lora(comfy)


def prompt(kind: str) -> Prompt:
    """A text model with the LoRA."""
    made = prompts.generate("text", steps=2)
    # The server of 2024 takes nodes of one number and equal inputs for the same, whatever their kind.
    strength = 1.0 if kind == "LoraLoader" else 0.5
    strengths = {"lora_name": "foreign.safetensors", "strength_model": strength, "strength_clip": strength}
    made["lora"] = node(kind, model=[LOADER, 0], clip=[LOADER, 1], **strengths)
    made[SAMPLER]["inputs"]["model"] = ["lora", 0]
    return prompts.numbered(made)


@pytest.mark.parametrize("kind", ["LoraLoader", "SpectralDiffusionLoadLora"])
def test_a_lora_of_another_model_shows_a_message(kind: str, lora: None, page: Page) -> None:
    page.evaluate("([prompt, name]) => app.loadApiJson(prompt, name)", [prompt(kind), kind])
    page.evaluate("() => app.queuePrompt(0, 1)")
    message = page.locator(TOAST, has_text=TITLE)
    expect(message).to_be_visible(timeout=60_000)
    OUTPUT.mkdir(exist_ok=True)
    page.screenshot(path=OUTPUT / f"notice-{kind}.png")
    expect(message).to_contain_text("changes nothing")
    assert page.evaluate("() => app.lastExecutionError ?? null") is None


def test_the_page_of_2024_shows_a_dialog(tmp_path: Path) -> None:
    prepared = distribution.prepare(tmp_path)
    if prepared.modern:
        pytest.skip("this ComfyUI has another page")
    models.write(prepared.base / "models" / "spectral_diffusion" / "text.safetensors", "text")
    server = ComfyServer(prepared, tmp_path / "server.log")
    write_lora(server)
    with server, browser_page(server) as page:
        page.evaluate("(prompt) => app.loadApiJson(prompt)", prompt("LoraLoader"))
        page.evaluate("() => app.queuePrompt(0, 1)")
        dialog = page.locator(".comfy-modal", has_text=TITLE)
        expect(dialog).to_be_visible(timeout=60_000)
        page.screenshot(path=OUTPUT / "notice-2024.png")
