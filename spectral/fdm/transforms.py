"""What a stage of f-DM does to the signal: f towards the simpler stage, g back, and noise that goes along with it.

A boundary between stages is a pair x^{k+1} = f(x^k) and x̂^k = g(x^{k+1}), g undoing f as far as it can. Going down in
size, white noise must become white noise of the small size (`restrict`); going back up, noise of the small size must
become white noise of the large one that says about the small signal what it said before (`lift`).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from functools import lru_cache
from typing import Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..config import BoundaryConfig, FirstStageConfig
from ..errors import SpectralError
from . import packets
from .packets import Fresh

#: Height and width in cells.
Size = tuple[int, int]
#: Standard deviations that a Gaussian kernel reaches to both sides.
REACH = 4.0


class Pair(Protocol):
    """An encoder and its decoder, like `autoencoder.FirstStage`; only sizes are read of the configuration."""

    config: FirstStageConfig

    def encode(self, image: Tensor) -> Tensor:
        """[B, in_channels, H, W] → [B, embed_dim, H / downscale, W / downscale]."""
        ...

    def decode(self, latent: Tensor) -> Tensor:
        """The way back."""
        ...


class Transform(ABC):
    """f and g between two stages.

    Attributes:
        factor: cells of the finer signal for one of the coarser one, along one side.
    """

    factor = 1

    def channels(self, before: int) -> int:
        """C of f's result."""
        return before

    def size(self, before: Size) -> Size:
        """Height and width of f's result."""
        return (-(-before[0] // self.factor), -(-before[1] // self.factor))

    @property
    def dimension_ratio(self) -> float:
        """d, how many times fewer cells f's result has."""
        return float(self.factor**2)

    @abstractmethod
    def forth(self, x: Tensor) -> Tensor:
        """x^{k+1} = f(x^k), [B, C, H, W] → [B, C', h, w]."""

    @abstractmethod
    def back(self, y: Tensor, size: Size) -> Tensor:
        """x̂^k = g(x^{k+1}) of the size (H, W)."""

    @abstractmethod
    def restrict(self, noise: Tensor, fresh: Fresh) -> Tensor:
        """White noise [B, C, H, W] of the finer stage as white noise of the coarser one.

        Args:
            fresh: more noise, for sides that `factor` does not divide.
        """

    @abstractmethod
    def lift(self, noise: Tensor, channels: int, size: Size, fresh: Fresh) -> Tensor:
        """ζ: noise [B, C', h, w] of the coarser stage as noise [B, C, H, W] of the finer one, white where it is.

        Args:
            fresh: white noise that is independent of all other noise.
        """


class Downsample(Transform):
    """Means over blocks; back by the nearest neighbour or bilinearly. Odd sides repeat their last row.

    With the nearest neighbour ζ is the inverse Haar transform with the noise as LL and fresh noise in all other bands:
    pooling it gives the noise back. In general it is ζ(ε) = g(ε)/s + (1 − g gᵀ/s²)^½ η for the factor s and fresh η,
    which is white, and which has α g(x) + σ ζ(ε) = (α/α') g(α' x + σ' ε) + …: x and ε as they were predicted lead to
    the same place as the true ones. For the nearest neighbour the two are one. It takes α²/σ² to grow by s² at the
    boundary; where γ or the power of d make it another number, predictions that are means of what may be lead to a z of
    a somewhat other variance.

    Args:
        factor: 2, 4 or 8.
        method: "nearest" or "bilinear".
    """

    def __init__(self, factor: int = 2, method: str = "nearest") -> None:
        self.factor, self.method = factor, method

    def forth(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(packets.padded(x, self.factor), self.factor)

    def back(self, y: Tensor, size: Size) -> Tensor:
        if self.method == "nearest":
            up = F.interpolate(y, scale_factor=self.factor, mode="nearest")
        else:
            up = F.interpolate(y, scale_factor=self.factor, mode="bilinear", align_corners=False)
        return up[..., : size[0], : size[1]]

    def restrict(self, noise: Tensor, fresh: Fresh) -> Tensor:
        return packets.restrict(noise, self.factor, noise.shape[1], fresh)

    def lift(self, noise: Tensor, channels: int, size: Size, fresh: Fresh) -> Tensor:
        if self.method == "nearest":
            return packets.lift(noise, self.factor, channels, size, fresh)
        rest = fresh((channels, *size))
        return self.back(noise, size) / self.factor + _completed(rest, self.factor)


class Blur(Transform):
    """A Gaussian or uniform mean over neighbours, the border repeated; back is the blurred signal itself.

    Noise is not blurred: both stages see the same.

    Args:
        kernel: "gaussian" or "uniform".
        width: standard deviation in cells, or the odd side.
    """

    def __init__(self, kernel: str = "gaussian", width: float = 1.0) -> None:
        self.weights = blur_kernel(kernel, width)

    def forth(self, x: Tensor) -> Tensor:
        weights, reach = self.weights.to(x), len(self.weights) // 2
        channels = x.shape[1]
        padded = F.pad(x, (reach, reach, reach, reach), mode="replicate")
        rows = F.conv2d(padded, weights.view(1, 1, -1, 1).expand(channels, 1, -1, 1), groups=channels)
        return F.conv2d(rows, weights.view(1, 1, 1, -1).expand(channels, 1, 1, -1), groups=channels)

    def back(self, y: Tensor, size: Size) -> Tensor:
        return y

    def restrict(self, noise: Tensor, fresh: Fresh) -> Tensor:
        return noise

    def lift(self, noise: Tensor, channels: int, size: Size, fresh: Fresh) -> Tensor:
        return noise


class Autoencode(Transform):
    """A frozen encoder as f and its decoder as g; noise is made anew on the way back.

    A decoder carries nothing of the noise in a latent over into noise in what it decodes, so ζ is fresh noise; what
    the coarser stage did not know yet of its own signal at the boundary is lost with it.

    Args:
        pair: a first stage whose images are the signals of the finer stage.
    """

    def __init__(self, pair: Pair) -> None:
        self.pair, self.factor = pair, pair.config.downscale

    def channels(self, before: int) -> int:
        return self.pair.config.embed_dim

    @property
    def dimension_ratio(self) -> float:
        return self.factor**2 * self.pair.config.in_channels / self.pair.config.embed_dim

    def forth(self, x: Tensor) -> Tensor:
        encoded: Tensor = self.pair.encode(packets.padded(x, self.factor))
        return encoded

    def back(self, y: Tensor, size: Size) -> Tensor:
        return self.pair.decode(y)[..., : size[0], : size[1]]

    def restrict(self, noise: Tensor, fresh: Fresh) -> Tensor:
        return packets.restrict(noise, self.factor, self.pair.config.embed_dim, fresh)

    def lift(self, noise: Tensor, channels: int, size: Size, fresh: Fresh) -> Tensor:
        return fresh((channels, *size))


def build(config: BoundaryConfig, pair: nn.Module | None = None) -> Transform:
    """The transformation of one boundary.

    Args:
        pair: the first stage of a boundary whose transform is "vae", or another `Pair`.

    Raises:
        SpectralError: a setting that cannot be, or a pair that is missing.
    """
    check(config)
    if config.transform == "downsample":
        return Downsample(config.factor, config.back)
    if config.transform == "blur":
        return Blur(config.kernel, config.width)
    if pair is None:
        raise SpectralError("A stage behind a vae needs its autoencoder; give the file that it is in.")
    return Autoencode(cast(Pair, pair))


def check(config: BoundaryConfig) -> None:
    """Refuse what cannot be built; raises as `build`."""
    if not 0.0 < config.at < 1.0:
        raise SpectralError(
            f"A stage's boundary lies at {config.at}; expected a part of the schedule, above 0 and below 1."
        )
    if config.transform == "downsample" and config.factor not in (2, 4, 8):
        raise SpectralError(f"A stage's factor is {config.factor}; expected 2, 4 or 8.")
    if not 0.0 < config.gamma < math.inf:
        raise SpectralError(f"A stage's gamma is {config.gamma}; expected a ratio of energies above 0.")
    if config.transform == "blur":
        blur_kernel(config.kernel, config.width)


def blur_kernel(kernel: str, width: float) -> Tensor:
    """The weights along one axis, float64 [2r + 1], of sum 1.

    Raises:
        SpectralError: a width that is no standard deviation from 0.1 to 32, or no odd side from 3 to 63.
    """
    if kernel == "uniform":
        if width not in range(3, 64, 2):
            raise SpectralError(
                f"The side of a uniform blur is {width:g}; expected an odd number of cells from 3 to 63."
            )
        return torch.full((int(width),), 1.0 / width, dtype=torch.float64)
    if not 0.1 <= width <= 32:
        raise SpectralError(
            f"The width of a Gaussian blur is {width:g}; expected a standard deviation of 0.1 to 32 cells."
        )
    reach = max(1, math.ceil(REACH * width))
    weights = torch.exp(-0.5 * (torch.arange(-reach, reach + 1, dtype=torch.float64) / width).square())
    return weights / weights.sum()


def _completed(noise: Tensor, factor: int) -> Tensor:
    """(1 − g gᵀ/s²)^½ η of noise η [B, C, H, W], g being the bilinear way up by the factor s."""
    columns, a = _axis(noise.shape[2], factor)
    rows, b = _axis(noise.shape[3], factor)
    columns, rows = columns.to(noise), rows.to(noise)
    share = (1.0 - a[:, None] * b[None]).clamp(min=0.0).sqrt().to(noise)
    return columns @ (share * (columns.T @ noise @ rows)) @ rows.T


@lru_cache(maxsize=32)
def _axis(size: int, factor: int) -> tuple[Tensor, Tensor]:
    """Eigenvectors [size, size] and eigenvalues of g gᵀ/s along one axis, float64."""
    few = -(-size // factor)
    basis = torch.eye(few, dtype=torch.float64)[None]
    up = F.interpolate(basis, scale_factor=factor, mode="linear", align_corners=False)[0].T[:size]
    values, vectors = torch.linalg.eigh(up @ up.T / factor)
    return vectors, values.clamp(min=0.0)
