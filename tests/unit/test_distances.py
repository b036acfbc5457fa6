"""Distances between sets of features: closed forms, numpy, scipy and torchmetrics as oracles."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor

from spectral_diffusion.spectral.errors import SpectralError
from spectral_diffusion.training.evaluation.distances import Moments, frechet, kid, mmd
from spectral_diffusion.training.tokens import declare_torchvision_operators

D = 6


def torchmetrics(name: str) -> Any:
    """A module of torchmetrics, which may import a torchvision without compiled operators."""
    declare_torchvision_operators()
    return pytest.importorskip(f"torchmetrics.image.{name}")


def drawn(count: int, seed: int = 0, width: int = D) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def whitened(count: int, seed: int = 0) -> Tensor:
    """Vectors with mean 0 and covariance 1, to rounding."""
    x = drawn(count, seed)
    x = x - x.mean(0)
    return x @ torch.linalg.inv(torch.linalg.cholesky(x.T @ x / (count - 1))).T


def moments(features: Tensor, batch: int = 7) -> Moments:
    gathered = Moments(features.shape[1])
    for start in range(0, len(features), batch):
        gathered.add(features[start : start + batch])
    return gathered


def gaussian(mean: Tensor, root: Tensor, seed: int) -> Moments:
    """Moments of a set whose mean is `mean` and whose covariance is root · rootᵀ, exactly."""
    return moments(whitened(60, seed) @ root.T + mean)


@pytest.mark.parametrize("batch", [1, 7, 64, 100])
def test_moments_of_batches_are_numpys_of_all(batch: int) -> None:
    features = drawn(100) * torch.arange(1, D + 1) + 1000  # a mean that would cancel in a sum of squares
    found = moments(features, batch)
    np.testing.assert_allclose(found.mean, features.numpy().mean(0), rtol=1e-12)
    np.testing.assert_allclose(found.covariance, np.cov(features.numpy(), rowvar=False), rtol=1e-9, atol=1e-9)
    assert found.count == 100


def test_moments_of_float32_features_are_gathered_in_float64() -> None:
    features = (drawn(4096) + 100).float()
    found = moments(features, 64).covariance
    np.testing.assert_allclose(found, np.cov(features.double().numpy(), rowvar=False), rtol=1e-9, atol=1e-9)


def test_frechet_of_a_shift_is_its_square() -> None:
    shift = torch.tensor([3.0, 0, 0, 0, 0, -4.0], dtype=torch.float64)
    x = drawn(50)
    assert frechet(moments(x), moments(x + shift)) == pytest.approx(25.0, rel=1e-9)


def test_frechet_of_a_set_and_itself_is_zero() -> None:
    assert frechet(moments(drawn(50)), moments(drawn(50).flip(0))) == pytest.approx(0.0, abs=1e-9)


def test_frechet_of_fewer_images_than_features_and_themselves_is_zero() -> None:
    few = drawn(5, width=40)
    assert frechet(moments(few), moments(few)) == pytest.approx(0.0, abs=1e-5)


def test_frechet_of_diagonal_gaussians_is_the_closed_form() -> None:
    a, b = torch.arange(1.0, D + 1, dtype=torch.float64), torch.linspace(0.1, 3, D, dtype=torch.float64)
    mean = torch.ones(D, dtype=torch.float64)
    expected = D + (a - b).square().sum().item()  # standard deviations a and b, a distance of 1 along each axis
    assert frechet(gaussian(mean, a.diag(), 1), gaussian(0 * mean, b.diag(), 2)) == pytest.approx(expected, rel=1e-9)


def test_frechet_of_any_gaussians_is_scipys() -> None:
    roots = drawn(D, 5), drawn(D, 6)
    means = drawn(2, 7)
    sigma_a, sigma_b = (root.numpy() @ root.numpy().T for root in roots)
    root = np.real(scipy.linalg.sqrtm(sigma_a @ sigma_b))
    expected = ((means[0] - means[1]) ** 2).sum().item() + np.trace(sigma_a + sigma_b - 2 * root)
    found = frechet(gaussian(means[0], roots[0], 1), gaussian(means[1], roots[1], 2))
    assert found == pytest.approx(expected, rel=1e-7)


def test_frechet_is_torchmetrics() -> None:
    image = torchmetrics("fid")

    class Pixels(torch.nn.Module):
        num_features = D

        def forward(self, images: Tensor) -> Tensor:
            return images.flatten(1)

    theirs = image.FrechetInceptionDistance(Pixels(), normalize=True, input_img_size=(1, 1, D)).set_dtype(torch.float64)
    real, fake = drawn(80, 1), drawn(70, 2) * 1.5 + 0.3
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs.update(real.view(80, 1, 1, D), real=True)
        theirs.update(fake.view(70, 1, 1, D), real=False)
    assert frechet(moments(real), moments(fake)) == pytest.approx(theirs.compute().item(), rel=1e-6)


def test_frechet_needs_two_images_and_finite_features() -> None:
    with pytest.raises(SpectralError, match="at least 2 images"):
        frechet(moments(drawn(1)), moments(drawn(5)))
    with pytest.raises(SpectralError, match="not finite"):
        frechet(moments(drawn(5) * math.nan), moments(drawn(5)))


def test_mmd_is_torchmetrics() -> None:
    theirs = torchmetrics("kid")
    x, y = drawn(40, 1), drawn(40, 2) + 0.5
    assert mmd(x, y) == pytest.approx(theirs.poly_mmd(x, y).item(), rel=1e-9)


def test_mmd_is_the_definition_term_by_term() -> None:
    x, y = drawn(5, 1), drawn(4, 2)

    def k(a: Tensor, b: Tensor) -> float:
        return (float(a @ b) / D + 1) ** 3

    within_x = [k(a, b) for i, a in enumerate(x) for j, b in enumerate(x) if i != j]
    within_y = [k(a, b) for i, a in enumerate(y) for j, b in enumerate(y) if i != j]
    across = [k(a, b) for a in x for b in y]
    expected = np.mean(within_x) + np.mean(within_y) - 2 * np.mean(across)
    assert mmd(x, y) == pytest.approx(expected, rel=1e-9)


def test_kid_of_one_distribution_is_zero_within_its_error() -> None:
    found = kid(drawn(600, 1), drawn(600, 2), subsets=50, subset_size=100)
    assert abs(found.mean) < 4 * found.std / math.sqrt(6)  # six disjoint subsets at most
    assert kid(drawn(600, 1), drawn(600, 2) + 0.5, subsets=50, subset_size=100).mean > 5 * found.std


def test_kid_says_which_subsets_it_took() -> None:
    found = kid(drawn(30, 1), drawn(90, 2), subsets=3)
    assert (found.subsets, found.subset_size) == (3, 15)
    assert found == kid(drawn(30, 1), drawn(90, 2), subsets=3)
    assert found != kid(drawn(30, 1), drawn(90, 2), subsets=3, seed=1)


def test_kid_needs_four_images() -> None:
    with pytest.raises(SpectralError, match="at least 4 images"):
        kid(drawn(3), drawn(50))
