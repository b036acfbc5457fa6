"""A guard against getting slower, by what can be counted and does not jitter: operations, copies, memory, kept tensors.

The limits are what was reached; whoever needs more raises them here, and says why.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from spectral_diffusion.spectral import presets
from spectral_diffusion.spectral.diffusion import Schedule, ddim
from spectral_diffusion.spectral.gated_haar import gated_down, gated_up
from spectral_diffusion.spectral.reuse import OneSampling
from spectral_diffusion.spectral.unet import UNet
from spectral_diffusion.training.bench.timing import peak_memory

COPIES = ("aten.clone", "aten.copy_", "aten._to_copy")
#: Operations that only look at memory, and those that only ask for it.
_LOOK = (
    "view _unsafe_view transpose permute t unsqueeze squeeze select slice split unbind expand alias detach as_strided"
)
FREE = {f"aten.{name}" for name in (*_LOOK.split(" "), "empty", "lift_fresh")}


class Operations(TorchDispatchMode):
    """Counts what arrives at torch's kernels."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.counts[str(function.overloadpacket)] += 1
        return function(*args, **(kwargs or {}))

    def kernels(self) -> int:
        return sum(count for name, count in self.counts.items() if name not in FREE)

    def copies(self) -> int:
        return sum(self.counts[name] for name in COPIES)


def counted(function: Callable[[], Any]) -> Operations:
    with torch.no_grad(), Operations() as operations:
        function()
    return operations


def network(kind: str) -> UNet:
    """The depth and the places of the paper's network; narrow."""
    unet = presets.build(f"ffhq256-{kind}", model_channels=32, norm_groups=8, num_head_channels=16)
    return unet.eval().requires_grad_(False).to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def latents(batch: int = 2, side: int = 16) -> Tensor:
    return torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("kind", "kernels"), [("student", 425), ("lite", 353)])
def test_a_prediction_takes_so_many_kernels_and_copies_only_its_ends(kind: str, kernels: int) -> None:
    unet, x, t = network(kind), latents(), torch.full((2,), 5)
    found = counted(lambda: unet(x, t))
    assert found.kernels() <= kernels
    assert found.copies() == 3, "the latent into the features' order, the prediction out of it, the steps to float"


def test_a_step_of_sampling_adds_few_kernels_to_the_network() -> None:
    """Guidance in one batch; the time is embedded once."""
    unet, x, schedule = network("student"), latents(1), Schedule()
    context = torch.zeros(1, 1, 1)  # this network reads none; guidance wants two

    def kernels(steps: int) -> int:
        hooks = OneSampling(schedule.ddim_timesteps(steps).tolist())
        sampled = partial(
            ddim, partial(unet, hooks=hooks), x, schedule, steps, guidance=2.0, cond=context, uncond=context
        )
        return counted(sampled).kernels()

    both, t = latents(2), torch.full((2,), 5)
    alone = counted(lambda: unet(both, t)).kernels()
    assert kernels(7) - kernels(6) <= alone - 34  # 22 blocks embed no time, in two kernels each; DDIM takes a dozen


@pytest.mark.parametrize(("function", "kernels"), [(gated_down, 5), (gated_up, 11)])
def test_gates_and_transform_take_so_many_kernels_and_no_copy(
    function: Callable[[Tensor, Tensor], Tensor], kernels: int
) -> None:
    x = torch.randn(2, 16, 8, 8).to(memory_format=torch.channels_last)
    gates = torch.rand(2, 4, 16 if function is gated_down else 4)
    found = counted(lambda: function(x, gates))
    assert found.kernels() <= kernels and found.copies() == 0


@pytest.mark.parametrize("function", [gated_down, gated_up])
def test_the_backward_pass_keeps_features_and_gates_and_nothing_else(
    function: Callable[[Tensor, Tensor], Tensor],
) -> None:
    x = torch.randn(2, 16, 8, 8, requires_grad=True)
    gates = torch.rand(2, 4, 16 if function is gated_down else 4, requires_grad=True)
    kept: list[int] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor.untyped_storage().data_ptr())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        function(x, gates)
    assert set(kept) == {x.data_ptr(), gates.data_ptr()}


def test_memory_of_a_prediction() -> None:
    """In units of one map of the widest features at full resolution, of which the skips hold most."""
    unet, x, t = network("student"), latents(4, 32), torch.full((4,), 5)
    unit = 4 * 32 * 32 * 32 * 4
    with torch.no_grad():
        unet(x, t)  # what is set up once
        # 9.2 where this was written; processors differ in the workspace of convolutions.
        assert peak_memory(lambda: unet(x, t)) / unit <= 12
