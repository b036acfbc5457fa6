"""Distances between two sets of feature vectors: Fréchet's, from means and covariances, and the kernel distance (KID).

Both are Fréchet or kernel *Inception* distances only if the features are Inception's.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...spectral.errors import SpectralError

SUBSETS, SUBSET_SIZE = 100, 1000  # of KID, as its authors and torchmetrics take them


class Moments:
    """Mean and covariance of feature vectors that come batch by batch, in float64 (Chan, Golub and LeVeque's update).

    Args:
        width: D, the length of a vector; D² numbers are kept, however many vectors come.
    """

    def __init__(self, width: int) -> None:
        self.count = 0
        self.mean = torch.zeros(width, dtype=torch.float64)
        self._scatter = torch.zeros(width, width, dtype=torch.float64)

    def add(self, features: Tensor) -> None:
        """Take [B, D] more vectors."""
        batch = features.detach().cpu().double()
        if not len(batch):
            return
        own = batch.mean(0)
        centred, shift = batch - own, own - self.mean
        total = self.count + len(batch)
        self._scatter += centred.T @ centred + torch.outer(shift, shift) * (self.count * len(batch) / total)
        self.mean += shift * (len(batch) / total)
        self.count = total

    @property
    def covariance(self) -> Tensor:
        """[D, D] float64, with N − 1 in the denominator.

        Raises:
            SpectralError: fewer than two vectors.
        """
        if self.count < 2:
            raise SpectralError(f"A covariance needs at least 2 images, there are {self.count}; give more.")
        return self._scatter / (self.count - 1)


def frechet(a: Moments, b: Moments) -> float:
    """‖μ_a − μ_b‖² + tr(Σ_a + Σ_b − 2 (Σ_a Σ_b)^½), the squared Wasserstein-2 distance of two Gaussians.

    With Σ_a = R Rᵀ, R of as many columns as Σ_a has rank, the trace of (Σ_a Σ_b)^½ is that of the symmetric
    (Rᵀ Σ_b R)^½, which is well conditioned where covariances are singular: fewer images than features.

    Raises:
        SpectralError: fewer than two vectors in a set, or vectors that are not finite.
    """
    values, vectors = torch.linalg.eigh(_finite(a.covariance))
    kept = values > len(values) * torch.finfo(values.dtype).eps * values.max()
    root = vectors[:, kept] * values[kept].sqrt()
    product = root.T @ _finite(b.covariance) @ root
    between = torch.linalg.eigvalsh((product + product.T) / 2).clamp_min(0).sqrt().sum()
    distance = (a.mean - b.mean).square().sum() + a.covariance.trace() + b.covariance.trace() - 2 * between
    return max(0.0, distance.item())


def _finite(matrix: Tensor) -> Tensor:
    if not matrix.isfinite().all():
        raise SpectralError("The features of the images are not finite; give other weights to the feature network.")
    return matrix


@dataclass(frozen=True)
class KernelDistance:
    """The mean of unbiased squared MMDs over random subsets of both sets, and their standard deviation."""

    mean: float
    std: float
    subsets: int
    subset_size: int


def kid(
    reference: Tensor, other: Tensor, *, subsets: int = SUBSETS, subset_size: int = SUBSET_SIZE, seed: int = 0
) -> KernelDistance:
    """The kernel distance with the kernel (x · y / D + 1)³ of Bińkowski et al. (2018). It may come out negative.

    Args:
        reference, other: features [N, D] and [M, D] of the two sets, on the device to compute on.
        subsets: how many pairs of subsets.
        subset_size: vectors in each; at most half of the smaller set, so that subsets differ.
        seed: of the choice.

    Raises:
        SpectralError: fewer than four vectors in a set.
    """
    fewest = min(len(reference), len(other))
    size = min(subset_size, fewest // 2)
    if size < 2:
        raise SpectralError(f"KID needs at least 4 images in each set, there are {fewest}; give more.")
    generator = torch.Generator().manual_seed(seed)
    values = torch.tensor(
        [mmd(_subset(reference, size, generator), _subset(other, size, generator)) for _ in range(subsets)],
        dtype=torch.float64,
    )
    std = values.std(correction=0).item()
    return KernelDistance(values.mean().item(), std, subsets, size)


def mmd(x: Tensor, y: Tensor) -> float:
    """The unbiased estimate of the squared maximum mean discrepancy of [N, D] and [M, D], with KID's kernel."""
    within_x, within_y = _kernel(x, x), _kernel(y, y)
    total_x = (within_x.sum() - within_x.diagonal().sum()) / (len(x) * (len(x) - 1))
    total_y = (within_y.sum() - within_y.diagonal().sum()) / (len(y) * (len(y) - 1))
    return (total_x + total_y - 2 * _kernel(x, y).mean()).item()


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    """[N, M]; the products as the features come, the cube and what is summed of it in float64."""
    products = (x @ y.T / x.shape[1]).cpu().double()
    return (products + 1) ** 3


def _subset(features: Tensor, size: int, generator: torch.Generator) -> Tensor:
    return features[torch.randperm(len(features), generator=generator)[:size].to(features.device)]
