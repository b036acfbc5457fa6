"""Wavelet gating (Section 5.1, Eq. 8): resamplers that let through each wavelet band by as much as the features ask.

With Haar, gates and transform are one function (gated_haar.py); other filter banks go by the transforms of wavelet.py.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from . import wavelet as wavelets
from .gated_haar import gated_down, gated_up
from .hooks import NO_HOOKS, Hooks
from .layers import ordered
from .resampling import Resampler, Size


class WaveletGate(nn.Module):
    """Per-band, per-channel gates from globally pooled features (Eq. 8): g = sigmoid(W2 · silu(W1 · avgpool(x))).

    Args:
        channels: C of the incoming feature map [B, C, H, W]; the hidden width is C/2. There are no biases.
        gated: channels that each band carries: C going down, C/4 going up.

    Returns from forward: gates in (0, 1), [B, 4, gated], bands in the order LL, LH, HL, HH.
    """

    def __init__(self, channels: int, gated: int, operations: Any = nn, **factory: Any) -> None:
        super().__init__()
        self.gated = gated
        self.fc1 = operations.Linear(channels, channels // 2, bias=False, **factory)
        self.fc2 = operations.Linear(channels // 2, 4 * gated, bias=False, **factory)

    def forward(self, x: Tensor) -> Tensor:
        scores = self.fc2(F.silu(self.fc1(x.mean(dim=(2, 3)))))
        return torch.sigmoid(scores).unflatten(1, (4, self.gated))


class WaveletDown(Resampler):
    """WG-Down: X' = Σ_b g_b ⊙ DWT_b(X). [B, C, H, W] → [B, C, ⌈H/2⌉, ⌈W/2⌉]; an odd side repeats its last row.

    Args:
        channels: C.
        wavelet: filter bank, by PyWavelets' name; orthonormal Haar has a path of its own.

    Attributes:
        level: where it stands in a U-Net, for hooks: the level of the finer resolution, 0 being the latent's.
    """

    level = 0

    def __init__(self, channels: int, wavelet: str = "haar", operations: Any = nn, **factory: Any) -> None:
        super().__init__()
        self.wavelet = wavelet
        self.gate = WaveletGate(channels, channels, operations, **factory)

    def forward(self, x: Tensor, size: Size = None, hooks: Hooks = NO_HOOKS) -> Tensor:
        gates = hooks.gates(self.gate(x), "down", self.level)
        if self.wavelet == "haar":
            rows, columns = x.shape[2] % 2, x.shape[3] % 2
            return gated_down(F.pad(x, (0, columns, 0, rows), mode="replicate") if rows or columns else x, gates)
        bands = torch.stack(wavelets.dwt2(x, self.wavelet, mode="periodization"), dim=1)
        return ordered((bands * gates[..., None, None]).sum(1))


class WaveletUp(Resampler):
    """WG-Up: the channels are four bands of C/4; gate each, IDWT to twice the size, then a 1×1 convolution C/4 → C.

    Args:
        channels: C, a multiple of 4.
        wavelet: filter bank, by PyWavelets' name.

    Attributes:
        level: where it stands in a U-Net, as in `WaveletDown`.
    """

    level = 0

    def __init__(self, channels: int, wavelet: str = "haar", operations: Any = nn, **factory: Any) -> None:
        super().__init__()
        self.wavelet = wavelet
        self.gate = WaveletGate(channels, channels // 4, operations, **factory)
        self.project = operations.Conv2d(channels // 4, channels, 1, bias=False, **factory)

    def forward(self, x: Tensor, size: Size = None, hooks: Hooks = NO_HOOKS) -> Tensor:
        """[B, C, h, w] → [B, C, 2h, 2w], or `size`.

        At most one row and column less are cropped. Any other size is what a caller's hooks have made of the features
        on the way; the nearest neighbour leads there.
        """
        up = self._synthesis(x, hooks.gates(self.gate(x), "up", self.level))
        full = (up.shape[2], up.shape[3])
        if size is None or size == full:
            return self.project(up)
        if all(most - 1 <= side <= most for side, most in zip(size, full, strict=True)):
            return self.project(up[..., : size[0], : size[1]])
        return F.interpolate(self.project(up), size=size, mode="nearest")

    def _synthesis(self, x: Tensor, gates: Tensor) -> Tensor:
        """[B, C, h, w] → [B, C/4, 2h, 2w]."""
        if self.wavelet == "haar":
            return gated_up(x, gates)
        bands = (x.unflatten(1, gates.shape[1:]) * gates[..., None, None]).unbind(1)
        return ordered(wavelets.idwt2(bands, self.wavelet, mode="periodization"))  # type: ignore[arg-type]
