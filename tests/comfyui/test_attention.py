"""Inside ComfyUI all attention of our networks is ComfyUI's own, whichever of its kinds that is."""

from __future__ import annotations

import pytest

from spectral_diffusion.spectral import checkpoint
from spectral_diffusion.spectral.attention import CrossAttention, SelfAttention

from .prompts import LOADER, node
from .results import succeed
from .server import ComfyServer


@pytest.mark.parametrize("kind", ["text", "class", "none"])
def test_every_attention_layer_calls_comfyuis_optimised_attention(comfy: ComfyServer, kind: str) -> None:
    model = checkpoint.load(comfy.distribution.base / "models" / "spectral_diffusion" / f"{kind}.safetensors")
    assert model.unet is not None
    layers = sum(isinstance(layer, (CrossAttention, SelfAttention)) for layer in model.unet.modules())
    prompt = {
        LOADER: node("SpectralDiffusionLoadCheckpoint", checkpoint=f"{kind}.safetensors"),
        "count": node("ProbeAttention", model=[LOADER, 0]),
        "text": node("ProbeText", text=["count", 0]),
    }
    assert succeed(comfy, prompt).outputs["text"]["text"] == [str(layers)]
    assert layers > 3
