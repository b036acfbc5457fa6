"""Gates and one level of the orthonormal 2D Haar transform in one go (Eq. 8), forward and backward.

Both ways go over the four cells of every 2×2 block as strided views of the feature map, in whatever order its memory is
in, so that nothing is rearranged and no band is written out:

    down   y = Σ_b g_b · LL, LH, HL, HH of x, which is Σ_j k_j · x_j with one weight k_j = Σ_b g_b H[b, j] a cell
    up     x_j = Σ_b H[b, j] · g_b · (band b), written straight to its cells

float16 and bfloat16 are added up in float32. For the backward pass x and the gates are kept, nothing else.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .wavelet import haar_product

#: The cells of a 2×2 block in the order of `wavelet.haar_matrix`: upper left, upper right, lower left, lower right.
CELLS = ((0, 0), (0, 1), (1, 0), (1, 1))


def gated_down(x: Tensor, gates: Tensor) -> Tensor:
    """Σ_b g_b ⊙ Haar_b(x).

    Args:
        x: [B, C, H, W], H and W even.
        gates: [B, 4, C] in the order LL, LH, HL, HH.

    Returns:
        [B, C, H/2, W/2] of x's dtype and memory format.
    """
    return _GatedDown.apply(x, gates) if _recorded(x, gates) else _down(x, gates)  # type: ignore[no-any-return]


def gated_up(x: Tensor, gates: Tensor) -> Tensor:
    """The inverse Haar transform of the four gated bands that are the quarters of x's channels.

    Args:
        x: [B, 4·C, h, w], bands in the order LL, LH, HL, HH.
        gates: [B, 4, C].

    Returns:
        [B, C, 2h, 2w] of x's dtype and memory format.
    """
    return _GatedUp.apply(x, gates) if _recorded(x, gates) else _up(x, gates)  # type: ignore[no-any-return]


def _recorded(x: Tensor, gates: Tensor) -> bool:
    """Whether the backward pass is ours; a compiler makes its own."""
    if torch.compiler.is_compiling():
        return False
    return torch.is_grad_enabled() and (x.requires_grad or gates.requires_grad)


def _sums(dtype: torch.dtype) -> torch.dtype:
    """What is added up in."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def _cells(x: Tensor) -> list[Tensor]:
    """The four cells of every 2×2 block, [B, C, H/2, W/2] each, as views."""
    return [x[:, :, row::2, column::2] for row, column in CELLS]


def _cell_weights(gates: Tensor, dtype: torch.dtype) -> Tensor:
    """k_j = Σ_b g_b H[b, j], [4, B, C, 1, 1]."""
    return haar_product(gates.to(dtype)).transpose(0, 1)[..., None, None]


def _down(x: Tensor, gates: Tensor) -> Tensor:
    weights = _cell_weights(gates, _sums(x.dtype))
    first, *others = _cells(x)
    total = first * weights[0]
    for cell, weight in zip(others, weights[1:], strict=True):
        total = total.addcmul_(cell, weight)
    return total.to(x.dtype)


def _up(x: Tensor, gates: Tensor) -> Tensor:
    ll, lh, hl, hh = x.unflatten(1, (4, x.shape[1] // 4)).unbind(1)
    g = (0.5 * gates.to(_sums(x.dtype)))[..., None, None].unbind(1)
    low, high = ll * g[0], hl * g[2]
    upper = torch.addcmul(low, lh, g[1]), torch.addcmul(high, hh, g[3])
    lower = low.addcmul_(lh, g[1], value=-1), high.addcmul_(hh, g[3], value=-1)
    return _interleaved(*upper, *lower, like=x)


def _interleaved(a: Tensor, b: Tensor, c: Tensor, d: Tensor, like: Tensor) -> Tensor:
    """The map [B, C, 2h, 2w] of blocks (a + b, a − b, c + d, c − d)."""
    if torch.compiler.is_compiling():  # a graph has no writing to views
        rows = (torch.stack([a + b, a - b], dim=-1), torch.stack([c + d, c - d], dim=-1))
        return torch.stack(rows, dim=3).flatten(4, 5).flatten(2, 3).to(like.dtype)
    batch, channels, height, width = a.shape
    out = torch.empty(
        (batch, channels, 2 * height, 2 * width), dtype=like.dtype, device=like.device, memory_format=_format(like)
    )
    x00, x01, x10, x11 = _cells(out)
    torch.add(a, b, out=x00)
    torch.sub(a, b, out=x01)
    torch.add(c, d, out=x10)
    torch.sub(c, d, out=x11)
    return out


def _format(x: Tensor) -> torch.memory_format:
    """The order of a feature map's memory."""
    last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return torch.channels_last if last else torch.contiguous_format


def _bands(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Twice the Haar bands LL, LH, HL, HH of x."""
    x00, x01, x10, x11 = (cell.to(dtype) for cell in _cells(x))
    upper, lower = x00 + x01, x10 + x11
    ll, lh = upper + lower, upper.sub_(lower)
    upper, lower = x00 - x01, x10 - x11
    return ll, lh, upper + lower, upper.sub_(lower)


class _KeepsInputs(torch.autograd.Function):
    """Whose backward pass needs what it was given, and nothing else."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)


class _GatedDown(_KeepsInputs):
    @staticmethod
    def forward(x: Tensor, gates: Tensor) -> Tensor:
        return _down(x, gates)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, gates = ctx.saved_tensors
        work = _sums(x.dtype)
        dx = dgates = None
        if ctx.needs_input_grad[0]:
            dx = torch.empty_like(x)
            for cell, weight in zip(_cells(dx), _cell_weights(gates, work), strict=True):
                torch.mul(dy, weight, out=cell)
        if ctx.needs_input_grad[1]:
            sums = torch.stack([(dy * cell).sum((2, 3), dtype=work) for cell in _cells(x)], dim=1)
            dgates = haar_product(sums).to(gates.dtype)
        return dx, dgates


class _GatedUp(_KeepsInputs):
    @staticmethod
    def forward(x: Tensor, gates: Tensor) -> Tensor:
        return _up(x, gates)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, gates = ctx.saved_tensors
        work = _sums(x.dtype)
        bands = _bands(dy, work)
        dx = dgates = None
        if ctx.needs_input_grad[0]:
            dx = torch.empty_like(x)
            g = (0.5 * gates.to(work))[..., None, None].unbind(1)
            for out, band, gate in zip(dx.unflatten(1, (4, -1)).unbind(1), bands, g, strict=True):
                torch.mul(band, gate, out=out)
        if ctx.needs_input_grad[1]:
            quarters = x.unflatten(1, (4, -1)).unbind(1)
            sums = [(band * part).sum((2, 3), dtype=work) for band, part in zip(bands, quarters, strict=True)]
            dgates = (0.5 * torch.stack(sums, dim=1)).to(gates.dtype)
        return dx, dgates
