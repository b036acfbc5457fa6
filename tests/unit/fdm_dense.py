"""f-DM once more, as dense float64 matrices made from its definitions: the oracle of the tests of `spectral.fdm`.

Signals are vectors of C · H · W numbers. Also here: the perfect denoiser of Gaussian data, and the exact moments of
what a sampler makes with it, which is affine in all the noise that it draws.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from spectral_diffusion.spectral import fdm
from spectral_diffusion.spectral.config import BoundaryConfig, FirstStageConfig, StagesConfig
from spectral_diffusion.spectral.diffusion import Schedule
from spectral_diffusion.spectral.fdm import sampling

Array = NDArray[np.float64]
Shape = tuple[int, int, int]

#: An autoencoder's description, of which only the sizes matter: 2 × 2 cells become one.
HALVING = FirstStageConfig("kl", embed_dim=1, z_channels=1, ch=32, ch_mult=(1, 1), in_channels=1, out_ch=1)


class LinearPair(nn.Module):
    """An encoder of blocks, 4 C numbers to `embed_dim`, and a decoder, whose product is an orthogonal projection.

    Its first rows are the blocks' sums over channels, so that it keeps of smooth signals nearly all.

    Args:
        gains: the decoder's singular values, one for each of the encoder's rows; all 1 by default, an orthonormal pair.
    """

    def __init__(self, config: FirstStageConfig = HALVING, gains: Sequence[float] | None = None) -> None:
        super().__init__()
        self.config = config
        values = torch.tensor(gains or [1.0] * config.embed_dim, dtype=torch.float64)
        self.register_buffer("gains", values[:, None, None, None])
        size = config.in_channels * config.downscale**2
        rows = np.random.default_rng(5).normal(size=(size, config.embed_dim))
        for index in range(min(config.in_channels, config.embed_dim)):
            rows[:, index] = np.repeat(np.eye(config.in_channels)[index], config.downscale**2)
        kernel = np.linalg.qr(rows)[0].T.reshape(config.embed_dim, config.in_channels, *(2 * [config.downscale]))
        self.register_buffer("kernel", torch.from_numpy(kernel.copy()))

    def encode(self, image: Tensor) -> Tensor:
        kernel = self.get_buffer("kernel") / self.get_buffer("gains")
        return F.conv2d(image, kernel.to(image), stride=self.config.downscale)

    def decode(self, latent: Tensor) -> Tensor:
        kernel = self.get_buffer("kernel") * self.get_buffer("gains")
        return F.conv_transpose2d(latent, kernel.to(latent), stride=self.config.downscale)


def autoencoder(gains: Sequence[float], channels: int = 1) -> LinearPair:
    """As many channels as gains, of a signal's `channels`."""
    config = replace(HALVING, embed_dim=len(gains), z_channels=len(gains), in_channels=channels, out_ch=channels)
    return LinearPair(config, gains)


def pooling(size: int, factor: int) -> Array:
    """Means over blocks along one axis; the last sample goes on beyond the end."""
    matrix = np.zeros((-(-size // factor), size))
    for index in range(len(matrix) * factor):
        matrix[index // factor, min(index, size - 1)] += 1 / factor
    return matrix


def repeating(size: int, factor: int) -> Array:
    """The nearest neighbour's way up to `size` along one axis."""
    return np.array([np.eye(-(-size // factor))[index // factor] for index in range(size)])


def interpolating(size: int, factor: int) -> Array:
    """The bilinear way up to `size` along one axis; samples stand in the middle of cells, the outer ones go on."""
    few = -(-size // factor)
    matrix = np.zeros((size, few))
    for index in range(size):
        place = min(max((index + 0.5) / factor - 0.5, 0.0), few - 1.0)
        left = min(int(place), few - 1)
        matrix[index, left] += 1 - (place - left)
        matrix[index, min(left + 1, few - 1)] += place - left
    return matrix


def blurring(size: int, kernel: str, width: float) -> Array:
    """A Gaussian (out to 4 standard deviations) or uniform mean along one axis, the border repeated."""
    reach = math.ceil(4 * width) if kernel == "gaussian" else (int(width) - 1) // 2
    weights = {o: math.exp(-(o**2) / (2 * width**2)) if kernel == "gaussian" else 1.0 for o in range(-reach, reach + 1)}
    matrix = np.zeros((size, size))
    for index in range(size):
        for offset, weight in weights.items():
            matrix[index, min(max(index + offset, 0), size - 1)] += weight / sum(weights.values())
    return matrix


def on_planes(channels: int, columns: Array, rows: Array) -> Array:
    """Matrices along the two axes as one over signals of `channels` planes."""
    return np.kron(np.eye(channels), np.kron(columns, rows))


def ways(boundary: BoundaryConfig, shape: Shape, pair: LinearPair | None = None) -> tuple[Array, Array, Shape, float]:
    """f, g, the shape of what f gives, and d, for signals of a shape [C, H, W]."""
    channels, *sizes = shape
    if boundary.transform == "blur":
        blur = on_planes(channels, *(blurring(size, boundary.kernel, boundary.width) for size in sizes))
        return blur, np.eye(len(blur)), shape, 1.0
    if boundary.transform == "vae":
        assert pair is not None
        down = _as_matrix(pair.encode, shape)
        small = (pair.config.embed_dim, *(size // pair.config.downscale for size in sizes))
        return down, _as_matrix(pair.decode, small), small, down.shape[1] / down.shape[0]  # type: ignore[arg-type, return-value]
    up = repeating if boundary.back == "nearest" else interpolating
    down = on_planes(channels, *(pooling(size, boundary.factor) for size in sizes))
    back = on_planes(channels, *(up(size, boundary.factor) for size in sizes))
    return down, back, (channels, *(-(-size // boundary.factor) for size in sizes)), boundary.factor**2  # type: ignore[return-value]


def _as_matrix(function: Callable[[Tensor], Tensor], shape: Shape) -> Array:
    """The matrix of a linear function of signals."""
    basis = torch.eye(math.prod(shape), dtype=torch.float64).view(-1, *shape)
    return function(basis).flatten(1).T.numpy()


@dataclass(frozen=True)
class Gaussian:
    """Data N(mean, covariance) of a shape [C, H, W]: planes with a correlation length, and a little white noise."""

    shape: Shape
    mean: Array
    covariance: Array


def smooth(shape: Shape, length: float = 1.5, white: float = 0.05, power: float = 1.0) -> Gaussian:
    """Planes of variance `power` to 1.5 `power`, correlated over `length` cells, a part `white` of it not at all."""
    channels, height, width = shape

    def along(size: int) -> Array:
        places = np.arange(size)
        return np.exp(-((places[:, None] - places[None]) ** 2) / (2 * length**2))

    plane = (1 - white) * np.kron(along(height), along(width)) + white * np.eye(height * width)
    mixed = np.linalg.qr(np.random.default_rng(1).normal(size=(channels, channels)))[0]
    between = mixed @ np.diag(np.linspace(1.0, 1.5, channels)) @ mixed.T
    mean = 0.7 * np.sin(1.0 + 0.9 * np.arange(math.prod(shape)))
    return Gaussian(shape, mean, power * np.kron(between, plane))


class Dense:
    """The process of `config` over signals of a shape, all of it as matrices."""

    def __init__(self, schedule: Schedule, config: StagesConfig, shape: Shape, pairs: dict[int, LinearPair]) -> None:
        self.schedule, self.config, self.shapes = schedule, config, [shape]
        self.places = [0, *(round(one.at * schedule.steps) for one in config.boundaries), schedule.steps]
        self.ways, self.to_stage, self.shift = [], [np.eye(math.prod(shape))], [0.0]
        for index, boundary in enumerate(config.boundaries):
            down, back, small, ratio = ways(boundary, self.shapes[-1], pairs.get(index))
            self.ways.append((down, back))
            self.shapes.append(small)
            self.to_stage.append(down @ self.to_stage[-1])
            grows = config.dimension_power * math.log(ratio) + math.log(boundary.gamma)
            self.shift.append(self.shift[-1] + (grows if config.shift else 0.0))

    def levels(self, stage: int, t: int) -> tuple[float, float]:
        """α_t and σ_t: the base schedule's log-SNR and the stage's shift, through a sigmoid."""
        power = float(self.schedule.alphas_cumprod[t])
        if power == 0.0:
            return 0.0, 1.0
        log_snr = math.log(power) - math.log1p(-power) + self.shift[stage]
        return (1 / (1 + math.exp(-log_snr))) ** 0.5, (1 / (1 + math.exp(log_snr))) ** 0.5

    def point(self, stage: int, t: int) -> tuple[Array, Array]:
        """The matrices that make x_t and δ_t of x_0."""
        x_k = self.to_stage[stage]
        if stage == len(self.ways) or not self.config.interpolate:
            return x_k, np.zeros_like(x_k)
        down, back = self.ways[stage]
        start, end = self.places[stage : stage + 2]
        x_t = ((t - start) * back @ down @ x_k + (end - t) * x_k) / (end - start)
        return x_t, x_k - x_t

    def second(self, stage: int, t: int) -> Array:
        """The matrix that makes of x_0 what a network says beside the noise: δ_t, or x^k − x̂^k."""
        x_k = self.to_stage[stage]
        if self.config.predicts == "delta" or stage == len(self.ways) or not self.config.interpolate:
            return self.point(stage, t)[1]
        down, back = self.ways[stage]
        return x_k - back @ down @ x_k

    def marginal(self, data: Gaussian, stage: int, t: int) -> tuple[Array, Array]:
        """Mean and covariance of z_t."""
        (alpha, sigma), x_t = self.levels(stage, t), self.point(stage, t)[0]
        return alpha * x_t @ data.mean, alpha**2 * x_t @ data.covariance @ x_t.T + sigma**2 * np.eye(len(x_t))


def perfect(dense: Dense, data: Gaussian) -> sampling.StagedDenoise:
    """The conditional expectations of jointly normal variables, as a network of stages would say them."""

    @cache
    def gains(stage: int, t: int) -> list[Tensor]:
        alpha, x_t, second = dense.levels(stage, t)[0], dense.point(stage, t)[0], dense.second(stage, t)
        mean, covariance = dense.marginal(data, stage, t)
        gain = alpha * np.linalg.solve(covariance, x_t @ data.covariance)  # of x_0 from z, transposed
        found = (mean, gain @ x_t.T, x_t @ data.mean, gain @ second.T, second @ data.mean)
        return [torch.from_numpy(np.ascontiguousarray(one)) for one in found]

    def denoise(x: Tensor, t: Tensor, context: Tensor | None = None, *, stage: int = 0) -> Tensor:
        assert (t == t[0]).all()
        alpha, sigma = dense.levels(stage, int(t[0]))
        mean, to_x, at_x, to_second, at_second = gains(stage, int(t[0]))
        z = x.flatten(1).double()
        signal, second = at_x + (z - mean) @ to_x, at_second + (z - mean) @ to_second
        noise = (z - alpha * signal) / sigma
        first = noise if dense.schedule.prediction == "eps" else alpha * noise - sigma * signal
        return torch.cat([first.view(x.shape), second.view(x.shape)], dim=1).to(x)

    return denoise


class Directions:
    """Noise of which every number that is asked for is a direction of its own: rows of an identity."""

    def __init__(self, rows: int = 1, used: int = 0) -> None:
        self.rows, self.used = rows, used

    def __call__(self, shape: Sequence[int]) -> Tensor:
        count = math.prod(shape)
        noise = torch.zeros(self.rows, count, dtype=torch.float64)
        if self.rows > 1:
            noise[self.used : self.used + count] = torch.eye(count, dtype=torch.float64)
        self.used += count
        return noise.view(self.rows, *shape)


def moments(
    denoise: sampling.StagedDenoise, process: fdm.Process, shape: Shape, steps: int, eta: float = 0.0
) -> tuple[Array, Array]:
    """Mean and covariance of what `fdm.sample` gives, without an error of chance.

    Everything that it draws (first noise, fresh noise, η's noise) takes its turn to be 1 while all the rest is 0.
    """
    counted = Directions(used=math.prod(shape))
    _sample(denoise, process, torch.zeros(1, *shape, dtype=torch.float64), steps, eta, counted)
    directions = Directions(counted.used + 1)
    found = _sample(denoise, process, directions(shape), steps, eta, directions).flatten(1).numpy()
    slopes = found[:-1] - found[-1]
    return found[-1], slopes.T @ slopes


def _sample(
    denoise: sampling.StagedDenoise, process: fdm.Process, noise: Tensor, steps: int, eta: float, drawn: Directions
) -> Tensor:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampling, "FreshNoise", lambda noise: drawn)
        return fdm.sample(denoise, noise, process, steps, eta=eta)


def distance(found: Array, expected: Array) -> float:
    """Of two vectors or matrices, as a part of the size of the second one."""
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))
