"""Multiply-adds of one step of sampling: our students beside what others make of the same teachers.

Published are DeepCache's Table 1 (LDM-4-G on ImageNet, 256 pixels) and Table 3 (Stable Diffusion 1.5, 512 pixels; with
BK-SDM). Of a run with reuse it is the average of its steps. Attention's products are left out, as in these tables.
"""

from __future__ import annotations

import torch

from ...spectral import presets
from ...spectral.counting import count_macs
from ...spectral.deep_features import Reuse
from ...spectral.reuse import Reusing
from .timing import Settings

#: In 10⁹, by our name of the teacher.
PUBLISHED = {
    "cin256_v2": {
        "teacher": 99.82,
        "student": 9.9,
        "deepcache_2": 52.12,
        "deepcache_3": 36.48,
        "deepcache_5": 23.50,
        "deepcache_10": 13.97,
        "deepcache_20": 9.39,
    },
    "stable_diffusion_1": {
        "teacher": 338.83,
        "bk_sdm_base": 223.81,
        "bk_sdm_small": 217.78,
        "bk_sdm_tiny": 205.09,
        "deepcache_5": 130.45,
    },
}
#: What we count: of which network, and every how many steps is whole.
COUNTED = {
    "teacher": ("teacher", 1),
    **{f"teacher_reuse_{every}": ("teacher", every) for every in (2, 3, 5, 10, 20)},
    "lite": ("lite", 1),
    "student": ("student", 1),
    **{f"student_reuse_{every}": ("student", every) for every in (2, 3, 5)},
}


def measure(_settings: Settings) -> dict[str, float]:
    """`MODEL_WHAT_gmacs` as counted, and `MODEL_WHAT_published_gmacs`."""
    result: dict[str, float] = {}
    for model, published in PUBLISHED.items():
        for what, (kind, every) in COUNTED.items():
            result[f"{model}_{what}_gmacs"] = round(gmacs(f"{model}-{kind}", every), 3)
        result |= {f"{model}_{what}_published_gmacs": number for what, number in published.items()}
    return result


def gmacs(preset: str, every: int = 1) -> float:
    """10⁹ multiply-adds of a step of a preset's U-Net at its size, on average where every so many-th step is whole."""
    config = presets.config(preset)
    assert config.unet is not None
    network, side = presets.build(preset, device="meta"), config.unet.image_size
    x, t = torch.empty(1, config.unet.in_channels, side, side, device="meta"), torch.empty(1, device="meta")
    tokens = 1 if config.conditioning.kind == "class" else config.conditioning.context_length
    context = torch.empty(1, tokens, config.unet.context_dim, device="meta") if config.unet.context_dim else None
    hooks = Reusing(Reuse(every))
    return sum(count_macs(network, x, t, context, hooks=hooks) for _ in range(every)) / every / 1e9


def lines(result: dict[str, float]) -> list[str]:
    """What was counted as text."""
    shown = {name.removesuffix("_gmacs"): number for name, number in result.items() if name.endswith("_gmacs")}
    width = max(map(len, shown), default=0)
    return [f"{name:{width}}{number:10.2f} · 10⁹ multiply-adds a step" for name, number in shown.items()]
