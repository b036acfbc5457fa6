"""For tests only: tiny random models of core's own architectures, with conditioning and latents that fit them."""

from __future__ import annotations

import sys
from typing import Any

import comfy.ldm.modules.attention
import comfy.model_management
import comfy.model_patcher
import comfy.supported_models
import torch

TRANSFORMER = {"use_spatial_transformer": True, "context_dim": 64, "transformer_depth": [0, 1]}
XL = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 64,
    "num_res_blocks": [1, 1],
    "channel_mult": [1, 2],
    "num_classes": "sequential",
    "adm_in_channels": 1280 + 6 * 256,
    "num_heads": -1,
    "num_head_channels": 64,
    "use_linear_in_transformer": True,
    "transformer_depth_middle": 1,
    "transformer_depth_output": [0, 0, 1, 1],
    **TRANSFORMER,
}
FLUX = {
    "image_model": "flux",
    "in_channels": 16,
    "out_channels": 16,
    "patch_size": 2,
    "vec_in_dim": 64,
    "context_in_dim": 64,
    "hidden_size": 128,
    "mlp_ratio": 2.0,
    "num_heads": 2,
    "depth": 1,
    "depth_single_blocks": 1,
    "axes_dim": [16, 24, 24],
    "theta": 10000,
    "qkv_bias": True,
    "guidance_embed": False,
}
WAN = {
    "image_model": "wan2.1",
    "model_type": "t2v",
    "dim": 128,
    "ffn_dim": 256,
    "num_heads": 2,
    "num_layers": 1,
    "freq_dim": 64,
    "text_dim": 64,
}
#: Core's class, its configuration, the width of the pooled conditioning, the shape of a latent of odd size.
NETWORKS: dict[str, tuple[str, dict[str, Any], int, tuple[int, ...]]] = {
    "xl": ("SDXL", XL, 1280, (2, 4, 18, 26)),
    "flux": ("FluxSchnell", FLUX, 64, (2, 16, 9, 14)),
    "wan": ("WAN21_T2V", WAN, 64, (1, 16, 3, 9, 14)),
}


class ProbeModel:
    """A model, what it is conditioned on, and where it starts."""

    CATEGORY = "probe"
    RETURN_TYPES = ("MODEL", "CONDITIONING", "CONDITIONING", "LATENT")
    FUNCTION = "make"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802 - ComfyUI names it
        known = [name for name, (kind, *_) in NETWORKS.items() if hasattr(comfy.supported_models, kind)]
        return {"required": {"network": (known,)}}

    def make(self, network: str) -> tuple[Any, Any, Any, Any]:
        kind, config, pooled, shape = NETWORKS[network]
        further = {"txt_ids_dims": []} if network == "flux" and _flux_has_text_positions() else {}
        described = getattr(comfy.supported_models, kind)({**config, **further})
        described.set_inference_dtype(torch.float32, None)
        model = described.get_model({}, "")
        random = torch.manual_seed(1)
        for parameter in model.diffusion_model.parameters():
            parameter.requires_grad_(False).copy_(0.05 * torch.randn(parameter.shape, generator=random))
        device = comfy.model_management.get_torch_device()
        patcher = comfy.model_patcher.ModelPatcher(model, load_device=device, offload_device=torch.device("cpu"))
        conditioning = [
            [[torch.randn(1, 7, 64, generator=random), {"pooled_output": torch.randn(1, pooled, generator=random)}]]
            for _ in range(2)
        ]
        return patcher, *conditioning, {"samples": torch.zeros(shape)}


def _flux_has_text_positions() -> bool:
    """Whether this version's Flux must be told which of its positions texts have."""
    from comfy.ldm.flux.model import FluxParams

    return "txt_ids_dims" in FluxParams.__dataclass_fields__


class ProbeAttention:
    """How often one call of a network goes through ComfyUI's optimised attention."""

    CATEGORY = "probe"
    RETURN_TYPES = ("STRING",)
    FUNCTION = "count"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802 - ComfyUI names it
        return {"required": {"model": ("MODEL",)}}

    def count(self, model: Any) -> tuple[str]:
        (ours,) = (module for name, module in sys.modules.items() if name.endswith(".nodes.patches"))
        attention = ours.optimized_attention
        assert attention is comfy.ldm.modules.attention.optimized_attention
        calls = []

        def counted(*inputs: Any, **options: Any) -> Any:
            calls.append(None)
            return attention(*inputs, **options)

        network = model.model.diffusion_model
        ours.optimized_attention = counted
        try:
            with torch.no_grad():
                latent, step = torch.zeros(1, network.config.in_channels, 16, 16), torch.zeros(1)
                network(latent, step, torch.zeros(1, 5, network.config.context_dim or 1))
        finally:
            ours.optimized_attention = attention
        return (str(len(calls)),)
