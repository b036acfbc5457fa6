"""As a program: calls the gated Haar transforms in Triton's form, forward and backward.

`python interpreted.py CALLS RESULTS DEVICE`: CALLS is a list of (function, x, gates, dy) by torch.save, RESULTS becomes
the list of (out, dx, dgates, dx alone, dgates alone). A process of its own, because TRITON_INTERPRET=1, with which
Triton computes on a CPU, holds from the import of Triton on.
"""

from __future__ import annotations

import sys

import torch
from torch import Tensor

from spectral_diffusion.spectral import gated_haar


def attempt(name: str, x: Tensor, gates: Tensor, dy: Tensor) -> tuple[Tensor, ...]:
    function = getattr(gated_haar, name)
    with gated_haar.using("triton"):
        out = function(x.requires_grad_(), gates.requires_grad_())
        both = torch.autograd.grad(out, (x, gates), dy)
        (dx,) = torch.autograd.grad(function(x, gates.detach()), x, dy)
        (dgates,) = torch.autograd.grad(function(x.detach(), gates), gates, dy)
    return out.detach(), *both, dx, dgates


def main(calls: str, results: str, device: str) -> None:
    torch.set_num_threads(1)
    found = []
    for name, *tensors in torch.load(calls):
        found.append(tuple(one.cpu() for one in attempt(name, *(tensor.to(device) for tensor in tensors))))
    torch.save(found, results)


if __name__ == "__main__":
    main(*sys.argv[1:])
