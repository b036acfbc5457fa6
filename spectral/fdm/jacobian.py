"""White noise that fits a decoder: its derivative carries noise over from what it decodes to what comes out.

For a map g with the Jacobian J at y, and k = σ'α/(α'σ) between the levels of noise behind and before it,

    ζ(e) = M e + (1 − M Mᵀ)^½ η,    M = k J with its singular values limited to 1, η fresh white noise,

is white where e is. Where nothing had to be limited, α g(y) + σ ζ(e) is α g(y + σ'/α' e) and the fresh noise that it
lacks, to first order in e, and exactly for a linear g. M and the root are never made: with A = k² Jᵀ J,

    ζ(e) = η + k J (h(A) e + φ(A) k Jᵀ η),    h(λ) = min(1, λ^−½),    φ(λ) = (√max(0, 1 − λ) − 1)/λ,

and functions of A times a vector come from a few steps of Lanczos (Golub and Meurant, "Matrices, Moments and
Quadrature with Applications", 2010, chapter 4). All that remains of their error is in which directions are how white:
the mean square of ζ is a Gaussian quadrature of twice the degree.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

#: Steps of Lanczos. Behind the default teacher's decoder, whose λ go from 0.0006 to 54, the variance of ζ along J's
#: singular vectors is then right within 4 %; with 6 steps, within 20 %.
STEPS = 10
#: Numbers in what g gives whose derivatives are in memory at a time, of whole samples.
AT_ONCE = 2**16

Map = Callable[[Tensor], Tensor]
T = TypeVar("T")


@torch.no_grad()
def lift(g: Map, y: Tensor, noise: Tensor, scale: float, fresh: Tensor, steps: int = STEPS) -> Tensor:
    """ζ(e), [B, …] as g(y) is.

    Works under `torch.no_grad` and in inference mode; every sample by itself. Where J is 0, so is what ζ has of e.

    Args:
        g: differentiable (backwards), sample by sample.
        y: where the derivative is taken, [B, …].
        noise: e, as y.
        scale: k.
        fresh: η, as g(y).
        steps: of Lanczos; as many as y has numbers are exact.
    """
    samples = max(1, AT_ONCE // fresh[0].numel())
    parts = zip(y.split(samples), noise.split(samples), fresh.split(samples), strict=True)
    return torch.cat([_lift(g, at, e, rest, scale, steps) for at, e, rest in parts])


def _lift(g: Map, y: Tensor, noise: Tensor, fresh: Tensor, scale: float, steps: int) -> Tensor:
    few = len(y)  # two rows for every sample: one for e, one for η
    forth, back = linearized(g, torch.cat([y, y]))
    nothing = torch.zeros_like(fresh)

    def product(v: Tensor) -> Tensor:
        return scale**2 * back(forth(v))

    start = torch.cat([noise, scale * back(torch.cat([fresh, nothing]))[:few]])
    basis, values, weights = lanczos(product, start, steps)
    limited, completed = values[:few].clamp(min=1.0).rsqrt(), values[few:]
    # (√(1 − λ) − 1)/λ without the difference of two numbers that are nearly the same.
    completed = -1.0 / torch.where(completed < 1.0, 1.0 + (1.0 - completed).clamp(min=0.0).sqrt(), completed)
    shares = (weights * torch.cat([limited, completed])[:, None]).sum(2).to(basis)
    found = torch.einsum("bs,bsn->bn", shares, basis).view(start.shape)
    both = (found[:few] + found[few:]).to(y)
    return fresh + scale * forth(torch.cat([both, torch.zeros_like(both)]))[:few].to(fresh)


def linearized(g: Map, y: Tensor) -> tuple[Map, Map]:
    """v ↦ J v and u ↦ Jᵀ u for the Jacobian J of g at y; also where gradients are off.

    J is the derivative of Jᵀ u with respect to u, so that g needs derivatives backwards only. Attention is computed
    the plain way, because the fused kernels have no second derivative.
    """
    with torch.inference_mode(False), torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        at = y.detach().clone().requires_grad_()  # what inference mode made cannot be differentiated, a clone can
        out = g(at)
        dual = torch.zeros_like(out, requires_grad=True)
        (pulled,) = torch.autograd.grad(out, at, dual, create_graph=True)

    def along(result: Tensor, argument: Tensor, direction: Tensor) -> Tensor:
        with torch.inference_mode(False):
            (found,) = torch.autograd.grad(result, argument, direction.to(result).clone(), retain_graph=True)
        return found

    return (lambda v: along(pulled, dual, v)), (lambda u: along(out, at, u))


def differentiable(given: T) -> T:
    """A module itself, or a copy of one that was loaded in inference mode, whose weights no derivative goes through."""
    if isinstance(given, nn.Module) and any(one.is_inference() for one in (*given.parameters(), *given.buffers())):
        with torch.inference_mode(False):
            return copy.deepcopy(given)
    return given


def lanczos(product: Map, start: Tensor, steps: int) -> tuple[Tensor, Tensor, Tensor]:
    """f(A) v ≈ Σ_s basis_s Σ_i weights_si f(values_i), of every row by itself.

    Args:
        product: v ↦ A v of rows as `start`, A symmetric and not negative.
        start: v, [R, …].
        steps: S; no more are taken than v has numbers.

    Returns:
        Orthonormal vectors [R, S, N], of zeros where a row's space was found to be smaller; eigenvalues ≥ 0 [R, S] and
        weights [R, S, S], float64 on the CPU.
    """
    rows = start.flatten(1).to(torch.promote_types(start.dtype, torch.float32))
    length = rows.norm(dim=1)
    basis = rows.new_zeros(len(rows), min(steps, rows.shape[1]), rows.shape[1])
    diagonal, beside = (torch.zeros(len(rows), basis.shape[1], dtype=torch.float64) for _ in range(2))
    vector, size, largest = rows, length, length * 0.0
    for step in range(basis.shape[1]):
        vector = torch.where((size > 0.0)[:, None], vector / size.clamp(min=1e-30)[:, None], 0.0)
        basis[:, step] = vector
        pushed = product(vector.view(start.shape).to(start)).flatten(1).to(rows)
        diagonal[:, step] = (pushed * vector).sum(1).cpu()
        largest = torch.maximum(largest, pushed.norm(dim=1))
        for _ in range(2):  # once is not enough in float32
            pushed = pushed - torch.einsum("bsn,bs->bn", basis, torch.einsum("bsn,bn->bs", basis, pushed))
        vector, size = pushed, pushed.norm(dim=1)
        size = torch.where(size > 100.0 * torch.finfo(rows.dtype).eps * largest, size, 0.0)
        beside[:, step] = size.cpu()
        if not size.any():
            break
    inside = torch.diag_embed(beside[:, :-1], 1)
    values, vectors = torch.linalg.eigh(torch.diag_embed(diagonal) + inside + inside.mT)
    return basis, values.clamp(min=0.0), length.cpu().double()[:, None, None] * vectors * vectors[:, :1]
