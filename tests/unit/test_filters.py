"""Spectral correlation of filters against transforms of the padded filters by numpy, and of the grids against hooks."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spectral_diffusion.spectral import presets
from spectral_diffusion.spectral.config import BoundaryConfig, FirstStageConfig, StagesConfig
from spectral_diffusion.spectral.errors import SpectralError
from spectral_diffusion.spectral.spectrum import (
    convolutions,
    filter_correlations,
    independent_correlation,
    spectral_correlation,
)
from spectral_diffusion.spectral.spectrum import filters as module
from spectral_diffusion.spectral.unet import UNet

from .tiny import UNCONDITIONAL


def weight(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def by_transforms(filters: Tensor, grid: int) -> float:
    """Every filter padded and transformed, and numpy's correlation of each pair of neighbours."""
    flat = filters.double().numpy().reshape(-1, *filters.shape[2:])
    spectra = np.fft.fft2(flat, s=(grid, grid))
    found = []
    for u in range(grid):
        for v in range(grid):
            pair = np.stack([spectra[:, u, v], spectra[:, (u + 1) % grid, (v + 1) % grid]])
            found.append(abs(np.corrcoef(pair)[0, 1]))
    return float(np.mean(found))


@pytest.mark.parametrize(
    ("shape", "grid"), [((4, 3, 3, 3), 8), ((7, 1, 3, 3), 9), ((6, 4, 5, 5), 16), ((5, 5, 2, 2), 7), ((3, 4, 4, 4), 4)]
)
def test_the_correlation_is_that_of_the_padded_filters(shape: tuple[int, ...], grid: int) -> None:
    filters = weight(*shape) * torch.linspace(0.2, 3, shape[-1]) + torch.arange(shape[-2])[:, None]
    assert spectral_correlation(filters, grid) == pytest.approx(by_transforms(filters, grid), abs=1e-9)


@pytest.mark.parametrize(("kernel", "grid"), [(3, 64), (3, 16), (3, 7), (5, 32), (2, 9)])
def test_independent_taps_have_the_closed_form(kernel: int, grid: int) -> None:
    """|corr| of N samples has a mean error of about 1/√N."""
    expected = math.sin(math.pi * kernel / grid) ** 2 / (kernel**2 * math.sin(math.pi / grid) ** 2)
    assert independent_correlation(kernel, grid) == pytest.approx(expected, abs=1e-12)
    assert spectral_correlation(weight(200, 200, kernel, kernel), grid) == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize("grid", [2, 3, 5])
def test_filters_as_large_as_the_grid_are_free(grid: int) -> None:
    assert independent_correlation(grid, grid) == pytest.approx(0, abs=1e-12)
    assert spectral_correlation(weight(150, 150, grid, grid), grid) < 0.01


def test_a_single_tap_or_a_single_cell_ties_everything_together() -> None:
    assert independent_correlation(1, 32) == pytest.approx(1)
    assert independent_correlation(3, 1) == 1
    assert spectral_correlation(weight(4, 4, 1, 1), 8) == pytest.approx(1)
    assert spectral_correlation(weight(4, 4, 3, 3), 1) == pytest.approx(1)


def test_what_has_no_correlation_is_not_a_number() -> None:
    assert math.isnan(spectral_correlation(weight(1, 1, 3, 3), 8))
    assert math.isnan(spectral_correlation(torch.zeros(4, 4, 3, 3), 8))
    equal = weight(1, 1, 3, 3).expand(30, 11, 3, 3)
    assert math.isnan(spectral_correlation(equal, 8))
    assert not math.isnan(spectral_correlation(weight(2, 1, 3, 3), 8))


def test_frequencies_without_a_response_are_left_out() -> None:
    """Filters [a, a; b, b] pass nothing of half the waves along a row on a grid of two: V there, or U, is always 0."""
    filters = weight(50, 1, 2, 1).expand(50, 1, 2, 2)
    spectra = np.fft.fft2(filters.double().numpy()[:, 0], s=(4, 4))
    rows = range(4)
    known = [(u, v) for u in rows for v in rows if 2 not in (v, (v + 1) % 4)]
    pairs = [np.stack([spectra[:, u, v], spectra[:, (u + 1) % 4, (v + 1) % 4]]) for u, v in known]
    expected = np.mean([abs(np.corrcoef(pair)[0, 1]) for pair in pairs])
    assert spectral_correlation(filters, 4) == pytest.approx(expected, abs=1e-9)


def test_chunks_and_half_precision_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    filters = weight(13, 7, 3, 3).half()
    whole = spectral_correlation(filters.float(), 12)
    monkeypatch.setattr(module, "FILTERS_PER_CHUNK", 10)
    assert spectral_correlation(filters, 12) == pytest.approx(whole, abs=1e-12)


@pytest.mark.parametrize(("shape", "grid"), [((4, 4, 3, 1), 8), ((4, 4), 8), ((4, 4, 3, 3), 0)])
def test_what_is_no_filter_is_refused(shape: tuple[int, ...], grid: int) -> None:
    with pytest.raises(SpectralError, match=r"\[out, in, k, k\]|at least 1"):
        spectral_correlation(torch.ones(shape), grid)


def grids_by_hooks(network: nn.Module, size: int, *arguments: Tensor, **named: int) -> dict[str, int]:
    """Name and real grid of every convolution above 1×1, in the order in which they run."""
    found: dict[str, int] = {}
    for name, layer in network.named_modules():
        if isinstance(layer, nn.Conv2d) and layer.kernel_size != (1, 1):

            def note(_: nn.Module, given: tuple[Tensor, ...], name: str = name) -> None:
                found[name] = given[0].shape[-1]

            layer.register_forward_pre_hook(note)
    channels = next(layer.in_channels for layer in network.modules() if isinstance(layer, nn.Conv2d))
    with torch.no_grad():
        network(torch.zeros(1, channels, size, size), torch.zeros(1), *arguments, **named)
    return found


@pytest.mark.parametrize("size", [16, 21])
@pytest.mark.parametrize(
    "name",
    ["ffhq256-teacher", "ffhq256-student", "cin256_v2-teacher", "lsun_churches256-teacher", "lsun_churches256-student"],
)
def test_grids_of_our_networks_are_those_that_the_features_have(name: str, size: int) -> None:
    config = presets.config(name).unet
    assert config is not None
    width = {"num_heads": 2, "num_head_channels": -1}
    if config.use_spatial_transformer:
        width["context_dim"] = 8
    network = UNet(replace(config, model_channels=32, **width))
    context = [torch.zeros(1, 1, 8)] if config.use_spatial_transformer else []
    found = [(each.name, each.grid) for each in convolutions(network, size)]
    assert found == list(grids_by_hooks(network, size, *context).items())
    modules = dict(network.named_modules())
    assert all(each.weight is modules[each.name].weight for each in convolutions(network, size))


class Downsample(nn.Module):
    """LDM's, by its class's name."""

    def __init__(self, convolve: bool) -> None:
        super().__init__()
        self.op = nn.Conv2d(4, 4, 3, stride=2, padding=1) if convolve else nn.AvgPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


class Upsample(nn.Module):
    """LDM's, by its class's name."""

    def __init__(self, convolve: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1) if convolve else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2))


class Residual(nn.Module):
    """A residual block as LDM and ComfyUI build it, around resamplers or identities."""

    def __init__(self, resample: type[nn.Module] | None = None) -> None:
        super().__init__()
        self.in_layers = nn.Sequential(nn.SiLU(), nn.Conv2d(4, 4, 3, padding=1))
        self.h_upd, self.x_upd = (resample(False), resample(False)) if resample else (nn.Identity(), nn.Identity())

    def forward(self, x: Tensor) -> Tensor:
        return self.x_upd(x) + self.in_layers[1](self.h_upd(self.in_layers[0](x)))


class Foreign(nn.Module):
    """A U-Net with the names of LDM's parts and none of this project's classes."""

    def __init__(self, updown: bool) -> None:
        super().__init__()
        down, up = (Residual(Downsample), Residual(Upsample)) if updown else (Downsample(True), Upsample(True))
        self.input_blocks = nn.ModuleList([nn.Sequential(nn.Conv2d(2, 4, 3, padding=1)), nn.Sequential(down)])
        self.middle_block = nn.Sequential(Residual(), Residual())
        self.output_blocks = nn.ModuleList([nn.Sequential(Residual(), up), nn.Sequential(Residual(), nn.Identity())])
        self.out = nn.Sequential(nn.SiLU(), nn.Conv2d(4, 2, 3, padding=1))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        h = x
        for block in (*self.input_blocks, self.middle_block, *self.output_blocks):
            h = block(h)
        return self.out(h)


@pytest.mark.parametrize("updown", [False, True])
def test_grids_of_another_ldm_network_follow_from_its_names(updown: bool) -> None:
    network = Foreign(updown)
    assert [(each.name, each.grid) for each in convolutions(network, 12)] == list(grids_by_hooks(network, 12).items())


def test_another_network_works_at_the_latents_size() -> None:
    network = nn.Sequential(nn.Conv2d(3, 5, 3), nn.Conv2d(5, 5, 1), nn.Conv2d(5, 3, (3, 1)), nn.Linear(4, 4))
    (only,) = filter_correlations(network, 20)
    assert (only.name, only.kernel, only.grid, only.filters) == ("0", 3, 20, 15)
    assert only.independent == pytest.approx(independent_correlation(3, 20))
    assert only.measured == pytest.approx(by_transforms(network[0].weight.detach(), 20), abs=1e-9)
    with pytest.raises(SpectralError, match="at least 1"):
        convolutions(network, 0)


@pytest.mark.parametrize("size", [16, 13])
def test_the_ends_of_smaller_stages_run_at_the_stages_sizes(size: int) -> None:
    """In a network that begins at a quarter; the autoencoders between stages are left out."""
    boundaries = (BoundaryConfig(0.3), BoundaryConfig(0.6))
    network = UNet(replace(UNCONDITIONAL, channel_mult=(1, 1, 2), stages=StagesConfig(boundaries)))
    found = {one.name: one.grid for one in module.convolutions(network, size)}
    for stage in range(3):
        side = -(-size // 2**stage)
        expected = grids_by_hooks(network, side, stage=stage)
        assert {name: found[name] for name in expected} == expected
    pair = FirstStageConfig("kl", embed_dim=4, z_channels=4, ch=32, ch_mult=(1, 1), in_channels=4, out_ch=4)
    network = UNet(replace(UNCONDITIONAL, stages=StagesConfig((BoundaryConfig(0.5, "vae", autoencoder=pair),))))
    assert {one.name.split(".")[0] for one in module.convolutions(network, size)} >= {"stage_inputs", "input_blocks"}
    assert not [one.name for one in module.convolutions(network, size) if one.name.startswith("stage_pairs")]
