"""Wavelet gating (Section 5.1, Eq. 8): resamplers that let through each wavelet band by as much as the features ask.

Both are linear in the four bands, so gates and Haar filters fold into one small kernel per sample and channel.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from . import wavelet as wavelets
from .hooks import NO_HOOKS, Hooks
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
            return _gated_haar_down(x, gates)
        bands = torch.stack(wavelets.dwt2(x, self.wavelet, mode="periodization"), dim=1)
        return (bands * gates[..., None, None]).sum(1)


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
        gates = hooks.gates(self.gate(x), "up", self.level)
        gated = x.unflatten(1, (4, x.shape[1] // 4)) * gates[..., None, None]
        bands = (gated[:, 0], gated[:, 1], gated[:, 2], gated[:, 3])
        full = (2 * x.shape[2], 2 * x.shape[3])
        if size is None or all(most - 1 <= side <= most for side, most in zip(size, full, strict=True)):
            return self.project(wavelets.idwt2(bands, self.wavelet, mode="periodization", size=size))
        up = self.project(wavelets.idwt2(bands, self.wavelet, mode="periodization"))
        return F.interpolate(up, size=size, mode="nearest")


def _gated_haar_down(x: Tensor, gates: Tensor) -> Tensor:
    """Σ_b g_b ⊙ Haar_b(x) as one depthwise 2×2 convolution of stride 2, whose kernel is the Haar matrix times g."""
    batch, channels, height, width = x.shape
    if height % 2 or width % 2:
        x = F.pad(x, (0, width % 2, 0, height % 2), mode="replicate")
    haar = wavelets.haar_matrix(dtype=x.dtype, device=x.device)
    kernels = torch.einsum("bkc,kj->bcj", gates.to(x.dtype), haar).reshape(batch * channels, 1, 2, 2)
    down = F.conv2d(x.reshape(1, batch * channels, *x.shape[2:]), kernels, stride=2, groups=batch * channels)
    return down.view(batch, channels, *down.shape[2:])
