"""Noise that goes through a decoder's derivative, against dense matrices, finite differences and Monte Carlo."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from spectral_diffusion.spectral import autoencoder, fdm
from spectral_diffusion.spectral.config import FirstStageConfig
from spectral_diffusion.spectral.fdm import jacobian

from .tiny import randomized

KL = FirstStageConfig("kl", embed_dim=2, z_channels=2, ch=32, ch_mult=(1, 1), num_res_blocks=1, resolution=8)
VQ = replace(KL, kind="vq", n_embed=16)
ATTENTIVE = replace(KL, attn_resolutions=(8,))


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def matrix(values: list[float], many: int) -> Tensor:
    """[many, len(values)] with these singular values."""
    left, right = (torch.linalg.qr(normal(size, len(values), seed=size))[0] for size in (many, len(values)))
    return left @ torch.diag(torch.tensor(values, dtype=torch.float64)) @ right.T


def bent(y: Tensor) -> Tensor:
    """Some smooth nonlinear map of 4 numbers to 9."""
    return torch.tanh(y @ normal(4, 6, seed=1) * 0.5) @ normal(6, 9, seed=2) * 0.4 + 0.1 * (y @ normal(4, 9)).square()


def slopes(g: jacobian.Map, y: Tensor, direction: Tensor, step: float = 1e-5) -> Tensor:
    return (g(y + step * direction) - g(y - step * direction)) / (2 * step)


@pytest.mark.parametrize("scale", [0.3, 1.0, 1.7])
@pytest.mark.parametrize(
    "values", [[1.0] * 6, [0.0] * 6, [1.0, 1.0, 0.5, 0.5, 0.0, 0.0], [2.0, 1.4, 1.0, 0.7, 0.2, 0.01]], ids=str
)
def test_the_lift_through_a_matrix_is_the_formula(values: list[float], scale: float) -> None:
    """Oracle: numpy's singular values, of k J limited to 1, and a root by eigenvectors."""
    dense = matrix(values, 11)
    e, fresh = normal(5, 6), normal(5, 11, seed=1)
    found = jacobian.lift(lambda y: y @ dense.T, normal(5, 6, seed=2), e, scale, fresh)
    left, found_values, right = np.linalg.svd(scale * dense.numpy(), full_matrices=False)
    limited = left @ np.diag(np.minimum(found_values, 1)) @ right
    power, vectors = np.linalg.eigh(np.eye(11) - limited @ limited.T)
    root = vectors @ np.diag(np.sqrt(np.maximum(power, 0))) @ vectors.T
    np.testing.assert_allclose(found.numpy(), e.numpy() @ limited.T + fresh.numpy() @ root, atol=2e-7)
    if not any(values):
        assert torch.equal(found, fresh)


def test_few_steps_among_many_values() -> None:
    """Eigenvalues of A that are spread as behind the default teacher's decoder, 0.0006 to 54: the variance is right
    within 2 % in all, and within 8 % in every eighth of the directions."""
    parts, found_there = (0, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99, 1), (6e-4, 3e-3, 0.022, 0.31, 1.0, 2.2, 5.8, 54)
    spread = np.exp(np.interp(np.linspace(0, 1, 400), parts, np.log(found_there)))
    values = torch.from_numpy(spread).sqrt().float()
    e, fresh = normal(1000, 400).float(), normal(1000, 400, seed=1).float()
    found = jacobian.lift(lambda y: y * values, torch.zeros(1000, 400), e, 1.0, fresh)
    assert found.square().mean().item() == pytest.approx(1, abs=0.02)
    for part in found.chunk(8, dim=1):
        assert part.square().mean().item() == pytest.approx(1, abs=0.08)
    exact = values.clamp(max=1) * e + (1 - values.square()).clamp(min=0).sqrt() * fresh
    assert (found - exact).square().mean().sqrt() < 0.08


@pytest.mark.parametrize("scale", [0.4, 1.0, 3.0])
def test_noise_lifted_through_a_nonlinear_map_is_white(scale: float) -> None:
    """Monte Carlo at one y: no entry of the covariance of 30000 is off by 5.5 standard errors."""
    count = 30000
    y = normal(1, 4, seed=3).expand(count, 4)
    found = jacobian.lift(bent, y, normal(count, 4), scale, normal(count, 9, seed=1)).numpy()
    off = np.abs(found.T @ found / count - np.eye(9)) / np.sqrt((1 + np.eye(9)) / count)
    assert off.max() < 5.5 and np.abs(found.mean(0)).max() * count**0.5 < 5.5


def test_to_first_order_the_lift_carries_the_signals_error() -> None:
    """α g(y) + σ ζ(e) is α g(y + σ'/α' e) and noise that is the same for all e, but for a part quadratic in e."""
    y, e, fresh = normal(6, 4, seed=3), normal(6, 4), normal(6, 9, seed=1)
    alpha, sigma, scale = 0.8, 0.6, 0.25
    spread = scale * sigma / alpha  # σ'/α'
    none = jacobian.lift(bent, y, 0 * e, scale, fresh)
    errors = []
    for size in (0.2, 0.1, 0.05):
        moved = alpha * bent(y + spread * size * e) - alpha * bent(y)
        errors.append((sigma * (jacobian.lift(bent, y, size * e, scale, fresh) - none) - moved).norm().item())
    assert errors[0] / errors[1] == pytest.approx(4, abs=0.4) and errors[1] / errors[2] == pytest.approx(4, abs=0.2)
    torch.testing.assert_close(
        jacobian.lift(bent, y, e, scale, fresh) - none, scale * slopes(bent, y, e), atol=1e-8, rtol=0
    )


@pytest.mark.parametrize("mode", ["plain", "no_grad", "inference", "loaded in inference"])
@pytest.mark.parametrize("config", [KL, VQ, ATTENTIVE], ids=["kl", "vq", "attentive"])
def test_derivatives_of_decoders(config: FirstStageConfig, mode: str) -> None:
    """Oracle: finite differences; a codebook is gone through straight, at the codes."""
    y, v, u = normal(2, 2, 4, 4), normal(2, 2, 4, 4, seed=1), normal(2, 3, 8, 8, seed=2)
    with torch.inference_mode(mode == "loaded in inference"):
        pair = randomized(autoencoder.build(config)).double().eval()
    around = {"plain": torch.enable_grad, "no_grad": torch.no_grad}.get(mode, torch.inference_mode)
    with around():
        g = jacobian.differentiable(pair).decode
        forth, back = jacobian.linearized(g, y.clone())
        found, pulled = forth(v.clone()), back(u.clone())
    with torch.no_grad():
        at = pair.quantize(y) if isinstance(pair, autoencoder.AutoencoderVQ) else y
        expected = slopes(lambda z: pair.decoder(pair.post_quant_conv(z)), at, v)
    torch.testing.assert_close(found, expected, atol=1e-7, rtol=1e-6)
    np.testing.assert_allclose((found * u).sum().item(), (v * pulled).sum().item(), rtol=1e-9)
    assert not any(one.grad is not None for one in pair.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_sample_is_lifted_alike_in_whatever_batch(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of more samples than are in memory at a time, in inference mode; its type stays."""
    pair = randomized(autoencoder.build(KL)).eval().to(dtype)
    between = fdm.Autoencode(pair)
    y, e, start = (normal(5, 2, 4, 4, seed=seed).to(dtype) for seed in range(3))
    monkeypatch.setattr(jacobian, "AT_ONCE", 2 * 3 * 8 * 7)
    with torch.inference_mode():
        together = between.lift(e, y, 2.0, (8, 7), fdm.FreshNoise(start))
        alone = [
            between.lift(*(x[i : i + 1] for x in (e, y)), 2.0, (8, 7), fdm.FreshNoise(start[i : i + 1])) for i in (0, 4)
        ]
    assert together.shape == (5, 3, 8, 7) and together.dtype == dtype and together.isfinite().all()
    if dtype == torch.float32:
        torch.testing.assert_close(torch.cat(alone), together[[0, 4]], atol=1e-3, rtol=0)
    assert together.float().square().mean().item() == pytest.approx(1, abs=0.15)
