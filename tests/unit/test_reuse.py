"""What is computed once for a whole sampling: the same numbers to the last bit, and really once."""

from __future__ import annotations

from collections import Counter
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from spectral_diffusion.spectral.attention import CrossAttention
from spectral_diffusion.spectral.config import UNetConfig
from spectral_diffusion.spectral.diffusion import Schedule, ddim
from spectral_diffusion.spectral.reuse import OneContext, OneSampling
from spectral_diffusion.spectral.unet import UNet

from .tiny import randomized

CONFIG = UNetConfig(4, 4, 32, (1, 2), 1, (1, 2), 8, num_head_channels=16, use_spatial_transformer=True, context_dim=24)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def unet() -> UNet:
    return randomized(UNet(CONFIG)).eval().requires_grad_(False)


def projections(unet: UNet, counts: Counter[str]) -> list[torch.utils.hooks.RemovableHandle]:
    """Counts the calls of all layers that make keys or values of the context."""
    handles = []
    for name, module in unet.named_modules():
        if isinstance(module, CrossAttention) and name.endswith("attn2"):
            for part in (module.to_k, module.to_v):
                handles.append(part.register_forward_hook(lambda *_, name=name: counts.update([name])))
    return handles


@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_sample_is_the_same_and_reads_its_context_once(unet: UNet, guidance: float, mode: type) -> None:
    with mode():
        noise, cond, uncond = normal(2, 4, 8, 8), normal(2, 5, 24, seed=1), normal(1, 5, 24, seed=2)
        run = partial(ddim, schedule=Schedule(), steps=6)
        settings = {"guidance": guidance, "cond": cond, "uncond": uncond if guidance != 1 else None}
        expected = run(unet, noise, **settings)
        counts: Counter[str] = Counter()
        handles = projections(unet, counts)
        found = run(partial(unet, hooks=OneContext()), noise, **settings)
    for handle in handles:
        handle.remove()
    assert torch.equal(found, expected)
    assert len(counts) == len(handles) / 2 > 1 and set(counts.values()) == {2}


def test_another_context_or_a_changed_one_is_read_again(unet: UNet) -> None:
    hooks, x, t = OneContext(), normal(2, 4, 8, 8), torch.tensor([3, 700])
    contexts = [normal(2, 5, 24, seed=seed) for seed in (1, 2)]
    with torch.no_grad():
        for context in (contexts[0], contexts[0], contexts[1], contexts[0]):
            assert torch.equal(unet(x, t, context, hooks=hooks), unet(x, t, context))
        contexts[0].mul_(2)
        assert torch.equal(unet(x, t, contexts[0], hooks=hooks), unet(x, t, contexts[0]))


def test_nothing_is_kept_while_gradients_are_recorded() -> None:
    """The second call's gradient would lack what the first one's pass had been freed of."""
    unet, hooks, context = randomized(UNet(CONFIG)), OneContext(), normal(1, 5, 24)
    keys = next(
        module for module in unet.modules() if isinstance(module, CrossAttention) and module.to_k.in_features == 24
    )
    assert isinstance(keys.to_k, nn.Linear)
    found = []
    for _ in range(2):
        unet.zero_grad()
        unet(normal(1, 4, 8, 8), torch.tensor([5]), context, hooks=hooks).square().mean().backward()
        assert keys.to_k.weight.grad is not None
        found.append(keys.to_k.weight.grad.clone())
    assert torch.equal(found[0], found[1]) and found[0].any()


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_the_time_is_embedded_once_for_all_steps(unet: UNet, guidance: float) -> None:
    schedule, noise = Schedule(), normal(2, 4, 8, 8)
    contexts = {"cond": normal(2, 5, 24, seed=1), "uncond": normal(1, 5, 24, seed=2) if guidance != 1 else None}
    expected = ddim(unet, noise, schedule, 6, guidance=guidance, **contexts)
    calls: Counter[str] = Counter()
    modules = {"embed": unet.time_embed, **{name: m for name, m in unet.named_modules() if name.endswith("emb_layers")}}
    handles = [m.register_forward_hook(lambda *_, name=name: calls.update([name])) for name, m in modules.items()]
    hooks = OneSampling(schedule.ddim_timesteps(6).tolist())
    found = ddim(partial(unet, hooks=hooks), noise, schedule, 6, guidance=guidance, **contexts)
    for handle in handles:
        handle.remove()
    assert set(calls) == set(modules) and set(calls.values()) == {1}
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


def test_every_sample_may_have_a_step_of_its_own(unet: UNet) -> None:
    x, t, context = normal(3, 4, 8, 8), torch.tensor([981, 1, 321]), normal(3, 5, 24)
    with torch.no_grad():
        found = unet(x, t, context, hooks=OneSampling([1, 321, 981]))
        torch.testing.assert_close(found, unet(x, t, context), rtol=1e-5, atol=1e-5)


def test_a_step_that_was_not_announced_shows(unet: UNet) -> None:
    with torch.no_grad():
        found = unet(normal(2, 4, 8, 8), torch.tensor([1, 2]), normal(2, 5, 24), hooks=OneSampling([1, 9]))
    assert found[0].isfinite().all() and found[1].isnan().all()


def test_while_gradients_are_recorded_the_embedding_learns(unet: UNet) -> None:
    trained = randomized(UNet(CONFIG))
    trained(normal(1, 4, 8, 8), torch.tensor([5]), normal(1, 5, 24), hooks=OneSampling([5])).sum().backward()
    assert trained.time_embed[0].weight.grad is not None
