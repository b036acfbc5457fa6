"""How much a convolution's filters tie neighbouring frequencies together (spectral correlation), layer by layer.

A k×k filter on a d×d grid is a wide one cut down to k×k, which blurs its spectrum: the coefficients U at (u, v) and V
at its diagonal neighbour (u + 1, v + 1) cannot be chosen apart. For independent taps of one variance their correlation
is |corr(U, V)| = sin²(πk/d) / (k² sin²(π/d)) (Khayatkhoei and Elgammal, "Spatial Frequency Bias in Convolutional
Generative Adversarial Networks"): near 1 for small filters on large grids, 0 where k = d.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..errors import SpectralError
from ..resampling import Resampler

FILTERS_PER_CHUNK = 2**18  # as float64 taps of 3×3 filters: 19 MB
RELATIVE_FLOOR = 1e-12  # variances below this fraction of the mean power are rounding noise of equal filters


@dataclass(frozen=True)
class FilterCorrelation:
    """Spectral correlation of one convolution.

    name: of the module in its network.
    kernel: k.
    grid: d, the side of the feature map that the filters run over.
    filters: how many k×k filters the weight holds, outputs × inputs.
    measured: mean |corr| over all frequencies; NaN for fewer than two filters, or filters that are all equal.
    independent: what it would be of independent taps, the closed form.
    """

    name: str
    kernel: int
    grid: int
    filters: int
    measured: float
    independent: float


@dataclass(frozen=True)
class Convolution:
    """A convolution of a network with a square kernel above 1×1, and the side of the grid that it runs over."""

    name: str
    module: nn.Module
    grid: int

    @property
    def weight(self) -> Tensor:
        """[O, I, k, k]."""
        return self.module.weight  # type: ignore[return-value]


def independent_correlation(kernel: int, grid: int) -> float:
    """|corr| of diagonal neighbours for k×k filters of independent taps on a d×d grid; 1 for k = 1 or d = 1.

    Raises:
        SpectralError: a kernel or grid below 1.
    """
    if kernel < 1 or grid < 1:
        raise SpectralError(f"A filter's kernel and grid must be at least 1, not {kernel} and {grid}.")
    if grid == 1:
        return 1.0
    return (math.sin(math.pi * kernel / grid) / (kernel * math.sin(math.pi / grid))) ** 2


def spectral_correlation(weight: Tensor, grid: int) -> float:
    """Mean |corr(U, V)| over a d×d grid between Fourier coefficients of diagonal neighbours, (u, v) and (u + 1, v + 1).

    The correlation is the complex coefficient over the O·I filters of a weight, each padded with zeros to d×d, with
    their mean filter subtracted: E[U V*] / √(E|U|² E|V|²). No filter is transformed. With the covariance C of the taps
    over the filters, E[U V*](u) = Σ_pq C_pq e^{−2πi u·(p − q)/d} e^{2πi (1, 1)·q/d} is the transform of the sums of C
    along equal offsets p − q. Frequencies at which all filters respond alike have no correlation, and are left out.

    Args:
        weight: [O, I, k, k], any floating dtype and device.
        grid: d. Below k, taps fold onto each other as they do in a circular convolution.

    Returns:
        In [0, 1]; NaN for fewer than two filters, or where no frequency has a variance.

    Raises:
        SpectralError: a weight of another shape, or a grid below 1.
    """
    if weight.ndim != 4 or weight.shape[2] != weight.shape[3] or not weight.shape[2]:
        raise SpectralError(
            f"A spectral correlation needs a convolution's weight [out, in, k, k], not {list(weight.shape)}."
        )
    if grid < 1:
        raise SpectralError(f"The grid of a spectral correlation is {grid}; expected at least 1.")
    kernel, count = weight.shape[2], weight.shape[0] * weight.shape[1]
    if count < 2:
        return math.nan
    covariance, mean = _tap_covariance(weight.detach().reshape(count, kernel * kernel))
    floor = RELATIVE_FLOOR * (covariance.trace() + mean.square().sum()).item()
    variance = _along_offsets(covariance, kernel, grid, neighbour=False).real
    both = variance * variance.roll((-1, -1), (0, 1))
    known = (variance > floor) & (variance.roll((-1, -1), (0, 1)) > floor)
    if not bool(known.any()):
        return math.nan
    cross = _along_offsets(covariance, kernel, grid, neighbour=True).abs()
    return float((cross[known] / both[known].sqrt()).clamp_max(1.0).mean())


def _tap_covariance(taps: Tensor) -> tuple[Tensor, Tensor]:
    """[T, T] covariance over N filters of their taps [N, T], and [T] their mean; float64, chunk by chunk."""
    count, width = taps.shape
    chunks = [range(start, min(start + FILTERS_PER_CHUNK, count)) for start in range(0, count, FILTERS_PER_CHUNK)]
    mean = torch.zeros(width, dtype=torch.float64)
    for chunk in chunks:
        mean += taps[chunk.start : chunk.stop].cpu().double().sum(0) / count
    covariance = torch.zeros(width, width, dtype=torch.float64)
    for chunk in chunks:
        rest = taps[chunk.start : chunk.stop].cpu().double() - mean
        covariance += rest.T @ rest / count
    return covariance, mean


def _along_offsets(covariance: Tensor, kernel: int, grid: int, neighbour: bool) -> Tensor:
    """[d, d] complex: E[U V*] at every frequency, V the diagonal neighbour of U, or U itself."""
    place = torch.arange(kernel)
    rows, columns = (side.flatten() for side in torch.meshgrid(place, place, indexing="ij"))
    turn = 2 * math.pi / grid * (rows + columns).double() * neighbour
    terms = covariance * torch.polar(torch.ones_like(turn), turn)[None, :]
    offset = ((rows[:, None] - rows) % grid) * grid + (columns[:, None] - columns) % grid
    sums = torch.zeros(grid * grid, dtype=torch.complex128).index_add_(0, offset.flatten(), terms.flatten())
    return torch.fft.fft2(sums.view(grid, grid))


def filter_correlations(network: nn.Module, latent_size: int) -> list[FilterCorrelation]:
    """The spectral correlation of every convolution of a network, in the order in which it runs them.

    Raises:
        SpectralError: as `convolutions`.
    """
    return [filter_correlation(each) for each in convolutions(network, latent_size)]


def filter_correlation(convolution: Convolution) -> FilterCorrelation:
    """The spectral correlation of one convolution of `convolutions`."""
    weight, grid = convolution.weight, convolution.grid
    kernel, filters = weight.shape[2], weight.shape[0] * weight.shape[1]
    return FilterCorrelation(
        name=convolution.name,
        kernel=kernel,
        grid=grid,
        filters=filters,
        measured=spectral_correlation(weight, grid),
        independent=independent_correlation(kernel, grid),
    )


def convolutions(network: nn.Module, latent_size: int) -> list[Convolution]:
    """Every module with a four-dimensional weight of square kernels above 1×1, and the grid that it runs over.

    Of an LDM-type U-Net (input_blocks, middle_block, output_blocks: this project's, LDM's own, ComfyUI's) the grids
    follow from where its down- and up-samplings stand; it is not run. Of another network all are the latent's. A
    down-sampling's convolution runs over the grid that it halves, an up-sampling's over the one that it arrives at.

    Args:
        latent_size: side of the latent in cells.

    Raises:
        SpectralError: a side below 1.
    """
    if latent_size < 1:
        raise SpectralError(f"The side of a latent is {latent_size}; expected at least 1.")
    if not all(hasattr(network, part) for part in ("input_blocks", "middle_block", "output_blocks")):
        return list(_inside("", network, latent_size, latent_size))
    return list(_of_unet(network, latent_size))


def _of_unet(network: nn.Module, grid: int) -> Iterator[Convolution]:
    """The convolutions of an LDM-type U-Net in the order in which they run, then those of what stands beside it."""
    names = {id(module): name for name, module in network.named_modules()}
    skips = []
    for block in network.input_blocks:  # type: ignore[union-attr]
        for layer in block.children():
            after = (grid + 1) // 2 if _changes(layer, "Downsample") else grid
            yield from _inside(names[id(layer)], layer, grid, after)
            grid = after
        skips.append(grid)
    if isinstance(network.middle_block, nn.Module):
        yield from _inside(names[id(network.middle_block)], network.middle_block, grid, grid)
    for block in network.output_blocks:  # type: ignore[union-attr]
        skips.pop()
        for layer in block.children():
            after = (skips[-1] if skips else 2 * grid) if _changes(layer, "Upsample") else grid
            yield from _inside(names[id(layer)], layer, grid, after)
            grid = after
    # Where stages enter and leave; an autoencoder between two of them is no part of the network.
    sides = {entry.key: -(-grid // 2**entry.level) for entry in getattr(network, "entries", ())}
    parts = {"input_blocks", "middle_block", "output_blocks", "stage_pairs"}
    for name, module in network.named_children():
        if name in ("stage_inputs", "stage_outputs"):
            for key, inner in module.named_children():
                yield from _inside(f"{name}.{key}", inner, sides[key], sides[key])
        elif name not in parts:
            yield from _inside(name, module, grid, grid)


def _changes(layer: nn.Module, kind: str) -> bool:
    """Whether a layer of a block changes the resolution: a resampler, or a residual block around two of them.

    Args:
        kind: what LDM and ComfyUI call their resampler's class. This project's have classes of their own.
    """
    found = (layer, getattr(layer, "h_upd", None))
    return any(isinstance(part, Resampler) or type(part).__name__ == kind for part in found)


def _inside(name: str, layer: nn.Module, before: int, after: int) -> Iterator[Convolution]:
    """The convolutions in a layer that brings one grid to another.

    In a residual block around resamplers these stand before all convolutions, and a resampler that goes up has its
    convolution at the end; one that goes down convolves what it is given.
    """
    runs_over = before if after < before and not hasattr(layer, "h_upd") else after
    for inner, module in layer.named_modules():
        weight = getattr(module, "weight", None)
        if isinstance(weight, Tensor) and weight.ndim == 4 and weight.shape[2] == weight.shape[3] > 1:
            yield Convolution(".".join(part for part in (name, inner) if part), module, runs_over)
