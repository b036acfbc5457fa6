"""The U-Net at any size, its feature taps, its state dict and its refusals."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from spectral_diffusion.spectral.config import UNetConfig
from spectral_diffusion.spectral.errors import SpectralError
from spectral_diffusion.spectral.unet import Tap, UNet, timestep_embedding

from .tiny import randomized

BASE = UNetConfig(3, 3, 32, (1, 2, 4), num_res_blocks=2, channel_mult=(1, 2, 3), image_size=16, num_head_channels=32)
VARIANTS = {
    "plain": BASE,
    "transformer": replace(BASE, use_spatial_transformer=True, context_dim=24, num_head_channels=-1, num_heads=2),
    "linear-transformer": replace(BASE, use_spatial_transformer=True, context_dim=24, use_linear_in_transformer=True),
    "updown-blocks": replace(BASE, resblock_updown=True, use_scale_shift_norm=True),
}
CONFIGS = {
    f"{name}-{kind}": replace(config, resampler=resampler, wavelet=wavelet)
    for name, config in VARIANTS.items()
    for kind, resampler, wavelet in (("conv", "conv", "haar"), ("haar", "wavelet", "haar"), ("db2", "wavelet", "db2"))
}
SIZES = [(16, 16), (15, 15), (9, 14), (13, 5), (4, 32)]
every_config = pytest.mark.parametrize("config", [pytest.param(config, id=name) for name, config in CONFIGS.items()])


def inputs(
    config: UNetConfig, size: tuple[int, int] = (16, 16), batch: int = 2
) -> tuple[Tensor, Tensor, Tensor | None]:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(batch, config.in_channels, *size, generator=generator)
    context = torch.randn(batch, 5, config.context_dim, generator=generator) if config.context_dim else None
    return x, torch.linspace(900, 10, batch), context


def unet(config: UNetConfig) -> UNet:
    return randomized(UNet(config)).eval().requires_grad_(False)


@every_config
@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
def test_any_size_gives_that_size(config: UNetConfig, size: tuple[int, int]) -> None:
    out = unet(config)(*inputs(config, size))
    assert out.shape == (2, 3, *size)
    assert out.isfinite().all() and out.std() > 0.01


@every_config
@pytest.mark.parametrize("size", [(16, 16), (15, 10)], ids=["16x16", "15x10"])
def test_taps_have_the_channels_and_sizes_that_they_say(config: UNetConfig, size: tuple[int, int]) -> None:
    network = unet(config)
    seen: dict[Tap, Tensor] = {}
    network(*inputs(config, size), features=seen)
    widths = network.tap_channels()
    assert set(widths) == {Tap("middle", 2)} | {Tap(path, level) for path in ("down", "up") for level in range(3)}  # type: ignore[arg-type]
    assert {tap: tuple(features.shape) for tap, features in seen.items()} == {
        tap: (2, width, -(-size[0] // 2**tap.level), -(-size[1] // 2**tap.level)) for tap, width in widths.items()
    }


@every_config
def test_looking_at_features_changes_no_bit(config: UNetConfig) -> None:
    network = unet(config)
    assert torch.equal(network(*inputs(config)), network(*inputs(config), features={}))


def test_a_tap_is_the_features_before_they_are_resampled() -> None:
    """Oracle: forward hooks on the last residual block of each path."""
    network, caught = unet(CONFIGS["plain-haar"]), {}

    def catch(name: str) -> object:
        return lambda module, inputs, output: caught.__setitem__(name, output)

    network.input_blocks[2][1].register_forward_hook(catch("down"))
    network.middle_block[2].register_forward_hook(catch("middle"))
    network.output_blocks[2][1].register_forward_hook(catch("up"))
    seen: dict[Tap, Tensor] = {}
    network(*inputs(BASE), features=seen)
    assert torch.equal(seen[Tap("down", 0)], caught["down"])
    assert torch.equal(seen[Tap("middle", 2)], caught["middle"])
    assert torch.equal(seen[Tap("up", 2)], caught["up"])


@every_config
def test_the_order_of_memory_changes_no_bit(config: UNetConfig) -> None:
    """Neither that of the latent nor that of the weights, which the loader lays out for the device."""
    x, t, context = inputs(config, (12, 10))
    model = randomized(UNet(config), 1)
    expected = model(x, t, context)
    assert expected.is_contiguous()
    assert torch.equal(model(x.contiguous(memory_format=torch.channels_last), t, context), expected)
    assert torch.equal(model.to(memory_format=torch.channels_last)(x, t, context), expected)


@every_config
def test_without_gradients_the_numbers_are_the_same(config: UNetConfig) -> None:
    """There some sums are made in place."""
    model = randomized(UNet(config), 1)
    x, t, context = inputs(config)
    kept = x.clone()
    with torch.no_grad():
        alone = model(x, t, context)
    torch.testing.assert_close(alone, model(x, t, context))
    assert torch.equal(x, kept)


@every_config
def test_samples_of_a_batch_do_not_see_each_other(config: UNetConfig) -> None:
    network, (x, t, context) = unet(config), inputs(config, (9, 12), batch=3)
    alone = [network(x[i : i + 1], t[i : i + 1], None if context is None else context[i : i + 1]) for i in range(3)]
    torch.testing.assert_close(network(x, t, context), torch.cat(alone), atol=1e-4, rtol=1e-4)


@every_config
def test_time_is_heard(config: UNetConfig) -> None:
    network, (x, t, context) = unet(config), inputs(config)
    assert not torch.allclose(network(x, t, context), network(x, t + 50, context))


def test_context_is_heard() -> None:
    network, (x, t, context) = unet(CONFIGS["transformer-haar"]), inputs(CONFIGS["transformer-haar"])
    assert context is not None
    assert not torch.allclose(network(x, t, context), network(x, t, -context))


@every_config
def test_built_on_meta_it_has_the_same_keys_and_takes_the_weights(config: UNetConfig) -> None:
    real, meta = unet(config), UNet(config, device="meta")
    assert all(parameter.is_meta for parameter in meta.parameters())
    meta.load_state_dict(real.state_dict(), assign=True)
    assert torch.equal(meta.eval()(*inputs(config)), real(*inputs(config)))


def test_attention_weights_are_stored_as_ldms_1d_convolutions_and_read_either_way() -> None:
    network = unet(CONFIGS["plain-conv"])
    state = network.state_dict()
    name = next(key for key in state if key.endswith("qkv.weight"))
    assert state[name].dim() == 3
    network.load_state_dict(state)
    network.load_state_dict({key: w.squeeze(-1) if "qkv.weight" in key else w for key, w in state.items()})
    assert torch.equal(network.state_dict()[name], state[name])


@every_config
def test_every_normalisation_has_the_groups_that_the_configuration_says(config: UNetConfig) -> None:
    """And they are heard: the same weights in wider groups make other pictures."""
    wide = unet(replace(config, norm_groups=8))
    norms = [module for module in wide.modules() if isinstance(module, nn.GroupNorm)]
    assert len(norms) > 10 and {norm.num_groups for norm in norms} == {8}
    narrow = unet(config)
    narrow.load_state_dict(wide.state_dict())
    given = inputs(config)
    assert (wide(*given) - narrow(*given)).abs().mean() > 1e-3


def test_a_fresh_network_predicts_zero() -> None:
    """The last convolution starts at zero, as LDM's does."""
    assert torch.count_nonzero(UNet(BASE)(*inputs(BASE))) == 0


def test_every_parameter_learns() -> None:
    network = randomized(UNet(CONFIGS["transformer-haar"]))
    network(*inputs(CONFIGS["transformer-haar"])).square().sum().backward()
    assert [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_layers_come_from_the_given_operations() -> None:
    class Operations:
        class Linear(nn.Linear): ...

        class Conv2d(nn.Conv2d): ...

        class GroupNorm(nn.GroupNorm): ...

        class LayerNorm(nn.LayerNorm): ...

    network = UNet(CONFIGS["transformer-haar"], operations=Operations)
    leaves = [module for module in network.modules() if list(module.parameters(recurse=False))]
    assert {type(leaf) for leaf in leaves} == {
        Operations.Linear,
        Operations.Conv2d,
        Operations.GroupNorm,
        Operations.LayerNorm,
    }


@pytest.mark.parametrize("width", [8, 9])
def test_time_embedding_is_cosines_then_sines(width: int) -> None:
    t = torch.tensor([0.0, 1.0, 37.5])
    rates = 10000.0 ** (-torch.arange(4) / 4)
    expected = torch.cat([(t[:, None] * rates).cos(), (t[:, None] * rates).sin()], dim=1)
    embedding = timestep_embedding(t, width)
    torch.testing.assert_close(embedding[:, :8], expected)
    assert embedding.shape == (3, width) and torch.count_nonzero(embedding[:, 8:]) == 0


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"model_channels": 0}, "at least 1"),
        ({"in_channels": 0}, "at least 1"),
        ({"channel_mult": ()}, "channel_mult"),
        ({"channel_mult": (1, 0)}, "at least 1"),
        ({"num_res_blocks": 0}, "num_res_blocks"),
        ({"model_channels": 48}, "48.*multiple of 32"),
        ({"norm_groups": 12}, "32.*multiple of 12"),
        ({"norm_groups": 0}, "norm_groups"),
        ({"resampler": "wavelet", "model_channels": 6, "norm_groups": 2, "channel_mult": (2, 3)}, "18 channels.*bands"),
        ({"num_head_channels": -1, "num_heads": -1}, "num_heads or num_head_channels"),
        ({"num_head_channels": 64}, "32 channels.*heads.*num_head_channels"),
        ({"use_spatial_transformer": True}, "context_dim"),
        ({"resampler": "wavelet", "wavelet": "no-such"}, "'no-such'"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_what_cannot_be_built_is_refused_in_a_sentence(settings: dict[str, object], says: str) -> None:
    with pytest.raises(SpectralError, match=says):
        UNet(replace(BASE, **settings), device="meta")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "settings",
    [
        {"num_head_channels": 64, "attention_resolutions": (2,), "channel_mult": (1, 2, 4)},
        {"num_head_channels": 0, "num_heads": 2},
        {
            "resampler": "wavelet",
            "model_channels": 18,
            "norm_groups": 3,
            "channel_mult": (1, 2, 4),
            "num_head_channels": 9,
        },
    ],
    ids=["heads-fit-where-attention-is", "zero-head-channels-means-num-heads", "bands-where-there-are-four"],
)
def test_what_can_be_built_is_not_refused(settings: dict[str, object]) -> None:
    config = replace(BASE, **settings)  # type: ignore[arg-type]
    assert unet(config)(*inputs(config)).shape == (2, 3, 16, 16)
