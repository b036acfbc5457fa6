"""White noise between sizes: Haar packets, in which the noise of a coarser stage is a part of the finer one's."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional as F

from .. import wavelet as wavelets

#: Gives white noise [B, …] of a shape that leaves the batch out.
Fresh = Callable[[tuple[int, ...]], Tensor]


def analysis(x: Tensor, factor: int) -> Tensor:
    """Haar coefficients of x [B, C, H, W] in blocks of s = `factor`, a power of 2: [B, C s², H / s, W / s].

    The first C channels are LL of LL …: `factor` times the mean of every block.
    """
    for _ in range(_levels(factor)):
        x = torch.cat(wavelets.dwt2(x), dim=1)
    return x


def synthesis(coefficients: Tensor, factor: int) -> Tensor:
    """The inverse of `analysis`."""
    for _ in range(_levels(factor)):
        low, horizontal, vertical, diagonal = coefficients.chunk(4, dim=1)
        coefficients = wavelets.idwt2((low, horizontal, vertical, diagonal))
    return coefficients


def restrict(noise: Tensor, factor: int, channels: int, fresh: Fresh) -> Tensor:
    """The first `channels` coefficients of white noise [B, C, H, W]: white noise, [B, channels, ⌈H/f⌉, ⌈W/f⌉].

    Args:
        fresh: noise for the rows and columns that are missing in the last blocks.
    """
    height, width = noise.shape[2:]
    down, right = -height % factor, -width % factor
    if right:
        noise = torch.cat([noise, fresh((noise.shape[1], height, right))], dim=3)
    if down:
        noise = torch.cat([noise, fresh((noise.shape[1], down, width + right))], dim=2)
    return analysis(noise, factor)[:, :channels]


def lift(noise: Tensor, factor: int, channels: int, size: tuple[int, int], fresh: Fresh) -> Tensor:
    """Noise [B, c, h, w] as the first coefficients of noise [B, channels, H, W]; all others are fresh.

    It is white where `noise` is, and `factor` times its means over blocks are `noise`.
    """
    few = noise.shape[1]
    others = fresh((channels * factor**2 - few, *noise.shape[2:]))
    full = synthesis(torch.cat([noise, others.to(noise)], dim=1), factor)
    return full[..., : size[0], : size[1]]


def padded(x: Tensor, factor: int) -> Tensor:
    """x [B, C, H, W] with its last row and column repeated up to a multiple of `factor`."""
    down, right = -x.shape[2] % factor, -x.shape[3] % factor
    return F.pad(x, (0, right, 0, down), mode="replicate") if down or right else x


class FreshNoise:
    """More white noise, of every sample a stream of its own that its first noise decides.

    So a sample is the same in whatever batch, and asks for no seed beside its noise.

    Args:
        noise: what the samples start from, [B, …].
    """

    def __init__(self, noise: Tensor) -> None:
        self.noise = noise

    def __call__(self, shape: tuple[int, ...]) -> Tensor:
        """White noise [B, *shape], independent of what was given before."""
        rows = [torch.randn(shape, generator=stream) for stream in self._streams]
        return torch.stack(rows).to(self.noise)

    @cached_property
    def _streams(self) -> list[torch.Generator]:
        """Made when first asked for: many runs need no more noise than they begin with."""
        keys = [zlib.crc32(one.numpy().tobytes()) for one in self.noise.detach().float().cpu().contiguous()]
        return [torch.Generator().manual_seed(key) for key in keys]


def _levels(factor: int) -> int:
    return int(math.log2(factor))
