"""Files in and beside the model folders of a server that attacks name."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file

from . import models

#: A weight of every tiny text model, as kohya's LoRAs call it.
PLACE = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_v"


def write(base: Path) -> None:
    """LoRAs that are sound, not finite, and no LoRA; a linked folder; and a checkpoint that lies outside.

    Args:
        base: the folder with models, inputs and outputs of the server.
    """
    loras, checkpoints = base / "models" / "loras", base / "models" / "spectral_diffusion"
    up, down = torch.rand(64, 2) - 0.5, torch.rand(2, models.WIDTH) - 0.5
    for name, number in {"tiny": 1.0, "nan": torch.nan}.items():
        tensors = {f"{PLACE}.lora_up.weight": number * up, f"{PLACE}.lora_down.weight": down}
        save_file(tensors, loras / f"{name}.safetensors")
    (loras / "text.safetensors").write_text("no weights at all\n" * 100)
    elsewhere = base.parent / f"{base.name}-elsewhere" / "models"
    elsewhere.mkdir(parents=True)
    for path in (elsewhere / "inside.safetensors", elsewhere.parent / "outside.safetensors"):
        models.write(path, "none")
    for folder in (checkpoints, loras):
        (folder / "linked").symlink_to(elsewhere, target_is_directory=True)
        models.write(folder.parent / "outside.safetensors", "none")
