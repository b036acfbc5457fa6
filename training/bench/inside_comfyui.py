"""Run by ComfyUI's own Python in ComfyUI's folder: KSampler with a model of the pack, and its U-Net alone, in turn.

    python inside_comfyui.py PACK BATCH ROUNDS

It knows ComfyUI and the names of nodes, nothing of this project's Python, and prints one JSON object of seconds.
"""

from __future__ import annotations

import asyncio
import importlib
import inspect
import json
import os
import sys
import time
from typing import Any

CHECKPOINT, STEPS, GUIDANCE = "emoji64-student.safetensors", 20, 2.0


def main() -> None:
    pack, batch, rounds = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    import torch

    sys.argv[1:] = [] if torch.cuda.is_available() else ["--cpu"]
    sys.path.insert(0, os.getcwd())
    importlib.import_module("comfy.options").enable_args_parsing()
    nodes = importlib.import_module("nodes")  # ComfyUI's, not the pack's

    loading = nodes.load_custom_node(pack)
    if inspect.isawaitable(loading):
        asyncio.run(_wait(loading))
    with torch.inference_mode():
        model, clip, *_ = _call(nodes, "SpectralDiffusionLoadCheckpoint", checkpoint=CHECKPOINT)
        positive, negative = (_call(nodes, "CLIPTextEncode", clip=clip, text=text)[0] for text in ("a red heart", ""))
        (latent,) = _call(nodes, "SpectralDiffusionEmptyLatent", model=model, batch_size=batch)

        def sampler() -> None:
            nodes.common_ksampler(model, 1, STEPS, GUIDANCE, "euler", "normal", positive, negative, latent)

        sampler()
        network, device = model.model.diffusion_model, model.load_device
        x = torch.randn(2 * batch, *latent["samples"].shape[1:], device=device)
        context = torch.cat([one[0][0] for one in (positive, negative)]).repeat_interleave(batch, dim=0).to(x)
        t = torch.full((2 * batch,), 500.0, device=device)

        def bare() -> None:
            for _ in range(STEPS):
                network(x, t, context)

        print(json.dumps(_in_turn({"sampler": sampler, "bare": bare}, rounds)))


async def _wait(loading: Any) -> None:
    await loading


def _call(nodes: Any, name: str, **inputs: Any) -> Any:
    """What a node gives for some inputs, the others at their defaults."""
    node = nodes.NODE_CLASS_MAPPINGS[name]
    declared = node.INPUT_TYPES()
    for group in ("required", "optional"):
        for key, spec in declared.get(group, {}).items():
            if key not in inputs and len(spec) > 1 and "default" in spec[1]:
                inputs[key] = spec[1]["default"]
    found = getattr(node(), node.FUNCTION)(**inputs)
    return found["result"] if isinstance(found, dict) else found


def _in_turn(functions: dict[str, Any], rounds: int) -> dict[str, list[float]]:
    import torch

    times: dict[str, list[float]] = {name: [] for name in functions}
    for turn in range(rounds + 1):
        for name, function in functions.items():
            began = time.perf_counter()
            function()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if turn:
                times[name].append(time.perf_counter() - began)
    return times


if __name__ == "__main__":
    main()
