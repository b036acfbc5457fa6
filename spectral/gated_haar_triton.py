"""The functions of `gated_haar` as one Triton kernel each, for float32, float16 and bfloat16 on a GPU.

A program has PLANES planes (a channel of a sample each) side by side, and of each CELLS blocks of 2×2 at a time; a
variable of a kernel holds one number for each of these blocks. Every element is read once and written once, whole rows
at a time. All is added up in float32. Going back, a program goes through its planes to their end and adds up their
gates' gradients alone, so that the order, and with it the result, is the same each time.

Triton is no dependency: only `gated_haar` imports this module, where Triton is installed.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

#: Blocks of 2×2 that a program has at a time: with four warps, 32 elements of the map for each thread.
TILE = 1024
#: How many of them lie in one plane at least; shorter pieces of rows would leave parts of memory transactions unused.
NARROWEST = 64


def down(x: Tensor, gates: Tensor) -> Tensor:
    """[B, C, H, W], H and W even, and gates [B, 4, C] → [B, C, H/2, W/2], as `gated_haar.gated_down`."""
    batch, channels, height, width = x.shape
    out = x.new_empty((batch, channels, height // 2, width // 2))
    _launch(_down, (x, gates.expand(batch, 4, channels), out), out.shape, width)
    return out


def up(x: Tensor, gates: Tensor) -> Tensor:
    """[B, 4·C, h, w] and gates [B, 4, C] → [B, C, 2h, 2w], as `gated_haar.gated_up`."""
    batch, channels, height, width = x.shape[0], x.shape[1] // 4, *x.shape[2:]
    out = x.new_empty((batch, channels, 2 * height, 2 * width))
    _launch(_up, (x, gates.expand(batch, 4, channels), out), (batch, channels, height, width), 2 * width)
    return out


def down_backward(x: Tensor, gates: Tensor, dy: Tensor, needs: tuple[bool, ...]) -> tuple[Tensor | None, Tensor | None]:
    """The gradients that `needs` asks for, in x and in the gates, for one in the output [B, C, H/2, W/2]."""
    gates = gates.expand(x.shape[0], 4, x.shape[1])
    dx, dgates = _gradients(x, gates, needs)
    _launch(_down_backward, (dy, x, gates, dx, dgates), dy.shape, x.shape[3], loop=True)
    return dx, dgates


def up_backward(x: Tensor, gates: Tensor, dy: Tensor, needs: tuple[bool, ...]) -> tuple[Tensor | None, Tensor | None]:
    """The gradients that `needs` asks for, in x and in the gates, for one in the output [B, C, 2h, 2w]."""
    batch, channels, height, width = x.shape[0], x.shape[1] // 4, *x.shape[2:]
    gates = gates.expand(batch, 4, channels)
    dx, dgates = _gradients(x, gates, needs)
    _launch(_up_backward, (dy, x, gates, dx, dgates), (batch, channels, height, width), 2 * width, loop=True)
    return dx, dgates


def _gradients(x: Tensor, gates: Tensor, needs: tuple[bool, ...]) -> tuple[Tensor | None, Tensor | None]:
    """Memory for those that are needed."""
    dx, dgates = (
        torch.empty_like(one, memory_format=torch.contiguous_format) if needed else None
        for one, needed in zip((x, gates), needs, strict=True)
    )
    return dx, dgates


def _launch(
    kernel: Any, tensors: tuple[Tensor | None, ...], blocks: tuple[int, ...], width: int, loop: bool = False
) -> None:
    """Start a kernel on the device of the first tensor.

    Args:
        tensors: what it reads, made contiguous here, and what it writes, which is.
        blocks: [B, C, h, w], how many 2×2 blocks there are.
        width: W of the map of full size.
        loop: whether a program goes through whole planes.
    """
    batch, channels, height, across = blocks
    planes, cells = batch * channels, height * across
    side_by_side, wide = tile(cells)
    grid = (triton.cdiv(planes, side_by_side), 1 if loop else triton.cdiv(cells, wide))
    packed = [None if one is None else one.contiguous() for one in tensors]
    with torch.cuda.device_of(packed[0]):
        kernel[grid](*packed, planes, channels, cells, width, PLANES=side_by_side, CELLS=wide)


def tile(cells: int) -> tuple[int, int]:
    """PLANES and CELLS for planes of so many blocks: powers of two whose product is TILE."""
    wide = min(TILE, max(NARROWEST, triton.next_power_of_2(cells)))
    return TILE // wide, wide


# The kernels. All share these arguments: `planes` B·C, `channels` C of the gates, `cells` h·w blocks in a plane,
# `width` W of the map of full size. What needs no gradient is None.


@triton.jit
def _down(x, gates, out, planes, channels, cells, width, PLANES: tl.constexpr, CELLS: tl.constexpr):  # type: ignore[no-untyped-def]
    plane = tl.program_id(0) * PLANES + tl.arange(0, PLANES)[:, None]
    start = tl.program_id(1) * CELLS
    g0, g1, g2, g3 = _load_gates(gates, plane, planes, channels)
    k0, k1, k2, k3 = _haar(g0, g1, g2, g3)
    x0, x1, x2, x3 = _load_blocks(x, plane, planes, start, cells, width, PLANES, CELLS)
    _store_band(out, k0 * x0 + k1 * x1 + k2 * x2 + k3 * x3, plane, plane < planes, start, cells, CELLS)


@triton.jit
def _up(x, gates, out, planes, channels, cells, width, PLANES: tl.constexpr, CELLS: tl.constexpr):  # type: ignore[no-untyped-def]
    plane = tl.program_id(0) * PLANES + tl.arange(0, PLANES)[:, None]
    start = tl.program_id(1) * CELLS
    g0, g1, g2, g3 = _load_gates(gates, plane, planes, channels)
    b0, b1, b2, b3 = _load_bands(x, plane, planes, channels, start, cells, CELLS)
    x0, x1, x2, x3 = _haar(g0 * b0, g1 * b1, g2 * b2, g3 * b3)
    _store_blocks(out, x0, x1, x2, x3, plane, planes, start, cells, width, CELLS)


@triton.jit
def _down_backward(  # type: ignore[no-untyped-def]
    dy, x, gates, dx, dgates, planes, channels, cells, width, PLANES: tl.constexpr, CELLS: tl.constexpr
):
    plane = tl.program_id(0) * PLANES + tl.arange(0, PLANES)[:, None]
    g0, g1, g2, g3 = _load_gates(gates, plane, planes, channels)
    k0, k1, k2, k3 = _haar(g0, g1, g2, g3)
    s0 = tl.zeros((PLANES, CELLS), tl.float32)
    s1, s2, s3 = s0, s0, s0
    for start in range(0, cells, CELLS):
        d = _load_band(dy, plane, plane < planes, start, cells, CELLS)
        if dx is not None:
            _store_blocks(dx, k0 * d, k1 * d, k2 * d, k3 * d, plane, planes, start, cells, width, CELLS)
        if dgates is not None:
            x0, x1, x2, x3 = _load_blocks(x, plane, planes, start, cells, width, PLANES, CELLS)
            s0, s1, s2, s3 = s0 + d * x0, s1 + d * x1, s2 + d * x2, s3 + d * x3
    if dgates is not None:
        s0, s1, s2, s3 = _sums(s0, s1, s2, s3)
        b0, b1, b2, b3 = _haar(s0, s1, s2, s3)
        _store_gates(dgates, b0, b1, b2, b3, plane, planes, channels)


@triton.jit
def _up_backward(  # type: ignore[no-untyped-def]
    dy, x, gates, dx, dgates, planes, channels, cells, width, PLANES: tl.constexpr, CELLS: tl.constexpr
):
    plane = tl.program_id(0) * PLANES + tl.arange(0, PLANES)[:, None]
    g0, g1, g2, g3 = _load_gates(gates, plane, planes, channels)
    s0 = tl.zeros((PLANES, CELLS), tl.float32)
    s1, s2, s3 = s0, s0, s0
    for start in range(0, cells, CELLS):
        y0, y1, y2, y3 = _load_blocks(dy, plane, planes, start, cells, width, PLANES, CELLS)
        d0, d1, d2, d3 = _haar(y0, y1, y2, y3)
        if dx is not None:
            _store_bands(dx, g0 * d0, g1 * d1, g2 * d2, g3 * d3, plane, planes, channels, start, cells, CELLS)
        if dgates is not None:
            b0, b1, b2, b3 = _load_bands(x, plane, planes, channels, start, cells, CELLS)
            s0, s1, s2, s3 = s0 + d0 * b0, s1 + d1 * b1, s2 + d2 * b2, s3 + d3 * b3
    if dgates is not None:
        b0, b1, b2, b3 = _sums(s0, s1, s2, s3)
        _store_gates(dgates, b0, b1, b2, b3, plane, planes, channels)


# Their parts


@triton.jit
def _haar(a, b, c, d):  # type: ignore[no-untyped-def]
    """`wavelet.haar_matrix` times four numbers: blocks to bands, and bands to blocks."""
    upper, lower = 0.5 * (a + b), 0.5 * (c + d)
    left, right = 0.5 * (a - b), 0.5 * (c - d)
    return upper + lower, upper - lower, left + right, left - right


@triton.jit
def _sums(a, b, c, d):  # type: ignore[no-untyped-def]
    """Of each plane, [PLANES, 1]."""
    return tl.sum(a, 1)[:, None], tl.sum(b, 1)[:, None], tl.sum(c, 1)[:, None], tl.sum(d, 1)[:, None]


@triton.jit
def _first(plane, channels):  # type: ignore[no-untyped-def]
    """Where LL of a plane stands among the B·4·C planes of all bands; the others follow, C planes apart."""
    return plane + 3 * channels * (plane // channels)


@triton.jit
def _load_gates(gates, plane, planes, channels):  # type: ignore[no-untyped-def]
    """[PLANES, 1] each."""
    at, there = gates + _first(plane, channels), plane < planes
    ll = tl.load(at, mask=there, other=0.0).to(tl.float32)
    lh = tl.load(at + channels, mask=there, other=0.0).to(tl.float32)
    hl = tl.load(at + 2 * channels, mask=there, other=0.0).to(tl.float32)
    hh = tl.load(at + 3 * channels, mask=there, other=0.0).to(tl.float32)
    return ll, lh, hl, hh


@triton.jit
def _store_gates(gates, ll, lh, hl, hh, plane, planes, channels):  # type: ignore[no-untyped-def]
    at, there = gates + _first(plane, channels), plane < planes
    tl.store(at, ll.to(gates.dtype.element_ty), mask=there)
    tl.store(at + channels, lh.to(gates.dtype.element_ty), mask=there)
    tl.store(at + 2 * channels, hl.to(gates.dtype.element_ty), mask=there)
    tl.store(at + 3 * channels, hh.to(gates.dtype.element_ty), mask=there)


@triton.jit
def _load_band(x, plane, there, start, cells, CELLS: tl.constexpr):  # type: ignore[no-untyped-def]
    """CELLS numbers of each plane of quarter size; 0 beyond its end, and in planes that are not there."""
    cell = start + tl.arange(0, CELLS)[None, :]
    at = x + (plane.to(tl.int64) * cells + cell)
    return tl.load(at, mask=there & (cell < cells), other=0.0).to(tl.float32)


@triton.jit
def _store_band(out, values, plane, there, start, cells, CELLS: tl.constexpr):  # type: ignore[no-untyped-def]
    cell = start + tl.arange(0, CELLS)[None, :]
    at = out + (plane.to(tl.int64) * cells + cell)
    tl.store(at, values.to(out.dtype.element_ty), mask=there & (cell < cells))


@triton.jit
def _load_bands(x, plane, planes, channels, start, cells, CELLS: tl.constexpr):  # type: ignore[no-untyped-def]
    """The four bands of [B, 4·C, h, w]."""
    first, there = _first(plane, channels), plane < planes
    ll = _load_band(x, first, there, start, cells, CELLS)
    lh = _load_band(x, first + channels, there, start, cells, CELLS)
    hl = _load_band(x, first + 2 * channels, there, start, cells, CELLS)
    hh = _load_band(x, first + 3 * channels, there, start, cells, CELLS)
    return ll, lh, hl, hh


@triton.jit
def _store_bands(out, ll, lh, hl, hh, plane, planes, channels, start, cells, CELLS: tl.constexpr):  # type: ignore[no-untyped-def]
    first, there = _first(plane, channels), plane < planes
    _store_band(out, ll, first, there, start, cells, CELLS)
    _store_band(out, lh, first + channels, there, start, cells, CELLS)
    _store_band(out, hl, first + 2 * channels, there, start, cells, CELLS)
    _store_band(out, hh, first + 3 * channels, there, start, cells, CELLS)


@triton.jit
def _rows(plane, planes, start, cells, width, CELLS: tl.constexpr):  # type: ignore[no-untyped-def]
    """Where the upper halves of CELLS blocks lie in planes of full size, two elements each, and which are there.

    The upper rows alone, one after the other, are counted by `upper`; below each of them `width` elements follow.
    """
    upper = 2 * start + tl.arange(0, 2 * CELLS)[None, :]
    at = plane.to(tl.int64) * (4 * cells) + (upper + upper // width * width)
    return at, (plane < planes) & (upper < 2 * cells)


@triton.jit
def _load_blocks(x, plane, planes, start, cells, width, PLANES: tl.constexpr, CELLS: tl.constexpr):  # type: ignore[no-untyped-def]
    """Upper left, upper right, lower left and lower right of the blocks of planes of full size."""
    at, there = _rows(plane, planes, start, cells, width, CELLS)
    upper = tl.load(x + at, mask=there, other=0.0).to(tl.float32)
    lower = tl.load(x + width + at, mask=there, other=0.0).to(tl.float32)
    a, b = tl.split(tl.reshape(upper, (PLANES, CELLS, 2)))
    c, d = tl.split(tl.reshape(lower, (PLANES, CELLS, 2)))
    return a, b, c, d


@triton.jit
def _store_blocks(out, a, b, c, d, plane, planes, start, cells, width, CELLS: tl.constexpr):  # type: ignore[no-untyped-def]
    at, there = _rows(plane, planes, start, cells, width, CELLS)
    tl.store(out + at, tl.interleave(a, b).to(out.dtype.element_ty), mask=there)
    tl.store(out + width + at, tl.interleave(c, d).to(out.dtype.element_ty), mask=there)
