"""Gates and one level of the orthonormal 2D Haar transform in one go (Eq. 8), forward and backward.

Both ways go over the four cells of every 2×2 block as strided views of the feature map, in whatever order its memory is
in, so that nothing is rearranged and no band is written out:

    down   y = Σ_b g_b · LL, LH, HL, HH of x, which is Σ_j k_j · x_j with one weight k_j = Σ_b g_b H[b, j] a cell
    up     x_j = Σ_b H[b, j] · g_b · (band b), written straight to its cells

float16 and bfloat16 are added up in float32. For the backward pass x and the gates are kept, nothing else.

On CUDA, where Triton is installed, `gated_haar_triton` has a kernel for each of the four functions `down`, `up`,
`down_backward` and `up_backward` below, which are their reference, and which compute everywhere else.
"""

from __future__ import annotations

import functools
import importlib.util
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor
from torch.autograd.forward_ad import unpack_dual
from torch.autograd.function import once_differentiable

from .wavelet import haar_product

Gradients = tuple[Tensor | None, Tensor | None]
Out = TypeVar("Out")

#: The cells of a 2×2 block in the order of `wavelet.haar_matrix`: upper left, upper right, lower left, lower right.
CELLS = ((0, 0), (0, 1), (1, 0), (1, 1))

#: Elements of x from which on Triton computes. It builds a kernel at first use, in tenths of a second for each class of
#: sizes, and keeps it on disk. Below, launches are all the time that there is to win back: such maps are a toy's.
WORTH_BUILDING = 1 << 14

#: What `using` says.
_asked_for: Literal["torch", "triton"] | None = None
#: Whether Triton was tried in this process, in vain.
_gave_up = False


def gated_down(x: Tensor, gates: Tensor) -> Tensor:
    """Σ_b g_b ⊙ Haar_b(x).

    Args:
        x: [B, C, H, W], H and W even.
        gates: [B, 4, C] in the order LL, LH, HL, HH.

    Returns:
        [B, C, H/2, W/2] of x's dtype and memory format.
    """
    return _GatedDown.apply(x, gates) if _recorded(x, gates) else _computed(down, x, gates)  # type: ignore[no-any-return]


def gated_up(x: Tensor, gates: Tensor) -> Tensor:
    """The inverse Haar transform of the four gated bands that are the quarters of x's channels.

    Args:
        x: [B, 4·C, h, w], bands in the order LL, LH, HL, HH.
        gates: [B, 4, C].

    Returns:
        [B, C, 2h, 2w] of x's dtype and memory format.
    """
    return _GatedUp.apply(x, gates) if _recorded(x, gates) else _computed(up, x, gates)  # type: ignore[no-any-return]


def _recorded(x: Tensor, gates: Tensor) -> bool:
    """Whether the backward pass is ours; a compiler makes its own."""
    if torch.compiler.is_compiling():
        return False
    return torch.is_grad_enabled() and (x.requires_grad or gates.requires_grad)


# Which form computes


@contextmanager
def using(form: Literal["torch", "triton"]) -> Iterator[None]:
    """Compute by this form, in every thread, whatever the map is, and let its errors through: for tests and bench."""
    global _asked_for
    before, _asked_for = _asked_for, form
    try:
        yield
    finally:
        _asked_for = before


def _computed(form: Callable[..., Out], x: Tensor, gates: Tensor, *others: Any) -> Out:
    """What `form`, a function of this module, or its namesake in `gated_haar_triton` computes."""
    global _gave_up
    if not _is_for_triton(x, gates):
        return form(x, gates, *others)
    try:
        from . import gated_haar_triton

        return getattr(gated_haar_triton, form.__name__)(x, gates, *others)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # Triton wants a C compiler, a driver, a folder to write to, and says so in many ways
        if _asked_for is not None:
            raise
        said = (str(error).strip() or "it gave no reason").splitlines()[0]
        _gave_up = True
    warnings.warn(
        f"Triton could not run its kernels for wavelet gating ({said}); PyTorch's own operations take their place "
        "until this program ends, with the same results in more time.",
        stacklevel=2,
    )
    return form(x, gates, *others)


def _is_for_triton(x: Tensor, gates: Tensor) -> bool:
    """A compiler makes its own kernels; forward-mode derivatives, of which Triton knows nothing, need torch's."""
    if torch.compiler.is_compiling():
        return False
    if _asked_for is not None:
        return _asked_for == "triton"
    if _gave_up or not _suits(x) or not _triton_is_installed():
        return False
    return unpack_dual(x).tangent is None and unpack_dual(gates).tangent is None


def _suits(x: Tensor) -> bool:
    """Torch's operations go over maps in any order, and keep it."""
    known = x.dtype in (torch.float32, torch.float16, torch.bfloat16)
    return x.is_cuda and known and x.numel() >= WORTH_BUILDING and x.is_contiguous()


@functools.cache
def _triton_is_installed() -> bool:
    """It is not on Windows and macOS."""
    return importlib.util.find_spec("triton") is not None


# The reference, in torch's operations


def _sums(dtype: torch.dtype) -> torch.dtype:
    """What is added up in."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def _cells(x: Tensor) -> list[Tensor]:
    """The four cells of every 2×2 block, [B, C, H/2, W/2] each, as views."""
    return [x[:, :, row::2, column::2] for row, column in CELLS]


def _cell_weights(gates: Tensor, dtype: torch.dtype) -> Tensor:
    """k_j = Σ_b g_b H[b, j], [4, B, C, 1, 1]."""
    return haar_product(gates.to(dtype)).transpose(0, 1)[..., None, None]


def down(x: Tensor, gates: Tensor) -> Tensor:
    """`gated_down` without a record."""
    weights = _cell_weights(gates, _sums(x.dtype))
    first, *others = _cells(x)
    total = first * weights[0]
    for cell, weight in zip(others, weights[1:], strict=True):
        total = total.addcmul_(cell, weight)
    return total.to(x.dtype)


def up(x: Tensor, gates: Tensor) -> Tensor:
    """`gated_up` without a record."""
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


def down_backward(x: Tensor, gates: Tensor, dy: Tensor, needs: tuple[bool, ...]) -> Gradients:
    """The gradients of `down` in x and in the gates, those that are needed, for the one in its output."""
    work = _sums(x.dtype)
    dx = dgates = None
    if needs[0]:
        dx = torch.empty_like(x)
        for cell, weight in zip(_cells(dx), _cell_weights(gates, work), strict=True):
            torch.mul(dy, weight, out=cell)
    if needs[1]:
        sums = torch.stack([(dy * cell).sum((2, 3), dtype=work) for cell in _cells(x)], dim=1)
        dgates = haar_product(sums).to(gates.dtype)
    return dx, dgates


def up_backward(x: Tensor, gates: Tensor, dy: Tensor, needs: tuple[bool, ...]) -> Gradients:
    """The same of `up`."""
    work = _sums(x.dtype)
    bands = _bands(dy, work)
    dx = dgates = None
    if needs[0]:
        dx = torch.empty_like(x)
        g = (0.5 * gates.to(work))[..., None, None].unbind(1)
        for out, band, gate in zip(dx.unflatten(1, (4, -1)).unbind(1), bands, g, strict=True):
            torch.mul(band, gate, out=out)
    if needs[1]:
        quarters = x.unflatten(1, (4, -1)).unbind(1)
        sums = [(band * part).sum((2, 3), dtype=work) for band, part in zip(bands, quarters, strict=True)]
        dgates = (0.5 * torch.stack(sums, dim=1)).to(gates.dtype)
    return dx, dgates


# Derivatives


class _KeepsInputs(torch.autograd.Function):
    """Whose backward pass needs what it was given, and nothing else."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)


class _GatedDown(_KeepsInputs):
    @staticmethod
    def forward(x: Tensor, gates: Tensor) -> Tensor:
        return _computed(down, x, gates)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> Gradients:
        x, gates = ctx.saved_tensors
        return _computed(down_backward, x, gates, dy, ctx.needs_input_grad)


class _GatedUp(_KeepsInputs):
    @staticmethod
    def forward(x: Tensor, gates: Tensor) -> Tensor:
        return _computed(up, x, gates)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> Gradients:
        x, gates = ctx.saved_tensors
        return _computed(up_backward, x, gates, dy, ctx.needs_input_grad)
