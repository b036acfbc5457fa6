"""WG-Down and WG-Up (Eq. 8) against numpy and PyWavelets, and their closed forms for constant gates."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import pywt
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from spectral_diffusion.spectral.gated_haar import gated_down, gated_up
from spectral_diffusion.spectral.gating import WaveletDown, WaveletGate, WaveletUp

from .tiny import randomized

Array = NDArray[np.float64]
SIZES = [(8, 8), (6, 10), (7, 8), (5, 9), (1, 3), (1, 1)]
WAVELETS = ["haar", "db2", "bior2.2"]


def size_id(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


def features(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(5)).to(dtype)


def down(channels: int = 8, wavelet: str = "haar") -> WaveletDown:
    return randomized(WaveletDown(channels, wavelet), 1).double()


def up(channels: int = 8, wavelet: str = "haar") -> WaveletUp:
    return randomized(WaveletUp(channels, wavelet), 2).double()


def array(tensor: Tensor) -> Array:
    return tensor.detach().numpy()  # type: ignore[no-any-return]


def oracle_gates(x: Array, gate: WaveletGate) -> Array:
    """sigmoid(W2 silu(W1 mean(x))) of one sample [C, H, W], as [4, gated]."""
    hidden = array(gate.fc1.weight) @ x.mean(axis=(1, 2))
    scores = array(gate.fc2.weight) @ (hidden / (1 + np.exp(-hidden)))
    return (1 / (1 + np.exp(-scores))).reshape(4, -1)


def oracle_down(x: Array, layer: WaveletDown) -> Array:
    gates = oracle_gates(x, layer.gate)
    channels = []
    for index, plane in enumerate(x):
        approximation, details = pywt.dwt2(plane, layer.wavelet, "periodization")
        channels.append(sum(g * band for g, band in zip(gates[:, index], (approximation, *details), strict=True)))
    return np.stack(channels)


def oracle_up(x: Array, layer: WaveletUp) -> Array:
    gates, bands = oracle_gates(x, layer.gate), np.split(x, 4)
    planes = []
    for index in range(len(x) // 4):
        ll, *details = (gates[band, index] * bands[band][index] for band in range(4))
        planes.append(pywt.idwt2((ll, details), layer.wavelet, "periodization"))
    return np.einsum("oc,chw->ohw", array(layer.project.weight)[..., 0, 0], np.stack(planes))


@pytest.mark.parametrize("size", SIZES, ids=size_id)
@pytest.mark.parametrize("wavelet", WAVELETS)
def test_down_equals_gated_pywt_bands(wavelet: str, size: tuple[int, int]) -> None:
    layer, x = down(wavelet=wavelet), features(3, 8, *size)
    expected = np.stack([oracle_down(array(sample), layer) for sample in x])
    np.testing.assert_allclose(array(layer(x)), expected, atol=1e-10)


@pytest.mark.parametrize("size", SIZES, ids=size_id)
@pytest.mark.parametrize("wavelet", WAVELETS)
def test_up_equals_pywt_of_gated_bands(wavelet: str, size: tuple[int, int]) -> None:
    layer, x = up(wavelet=wavelet), features(3, 8, *size)
    expected = np.stack([oracle_up(array(sample), layer) for sample in x])
    np.testing.assert_allclose(array(layer(x)), expected, atol=1e-10)


@pytest.mark.parametrize("wavelet", WAVELETS)
def test_up_crops_to_the_size_of_the_skip(wavelet: str) -> None:
    layer, x = up(wavelet=wavelet), features(2, 8, 5, 4)
    torch.testing.assert_close(layer(x, (9, 7)), layer(x)[..., :9, :7])


def test_up_goes_on_to_any_size_by_the_nearest_neighbour() -> None:
    """Features that hooks made smaller on the way down: a skip of three times their size."""
    layer, x = up(), features(2, 8, 2, 3)
    natural = layer(x).repeat_interleave(3, dim=2).repeat_interleave(2, dim=3)
    torch.testing.assert_close(layer(x, (12, 12)), natural)


def gates_at(value: float) -> Callable[[nn.Module, object, Tensor], Tensor]:
    """A forward hook that sets every gate to `value`."""
    return lambda module, inputs, gates: torch.full_like(gates, value)


def test_down_with_open_gates_is_twice_one_cell_of_each_block() -> None:
    """The four orthonormal Haar vectors of a 2×2 block sum to (2, 0, 0, 0): its upper left cell, twice."""
    layer, x = down(), features(2, 8, 6, 8)
    layer.gate.register_forward_hook(gates_at(1.0))
    torch.testing.assert_close(layer(x), 2 * x[..., ::2, ::2])


def test_down_with_zero_weights_halves_every_band() -> None:
    """sigmoid(0) = ½."""
    layer, x = down(), features(2, 8, 6, 8)
    nn.init.zeros_(layer.gate.fc2.weight)
    torch.testing.assert_close(layer(x), x[..., ::2, ::2])


@pytest.mark.parametrize("value", [1.0, 0.5])
def test_up_with_constant_gates_undoes_the_transform(value: float) -> None:
    layer, image = up(), features(2, 2, 6, 8)
    layer.gate.register_forward_hook(gates_at(value))
    nn.init.zeros_(layer.project.weight)
    nn.init.eye_(layer.project.weight.data[:2, :, 0, 0])
    approximation, details = pywt.dwt2(array(image), "haar")
    x = torch.from_numpy(np.concatenate([approximation, *details], axis=1))
    torch.testing.assert_close(layer(x)[:, :2], value * image)


@pytest.mark.parametrize(
    "layer", [down(), down(wavelet="db2"), up(), up(wavelet="db2")], ids=["down", "down-db2", "up", "up-db2"]
)
def test_samples_of_a_batch_do_not_see_each_other(layer: nn.Module) -> None:
    x = features(3, 8, 5, 6)
    torch.testing.assert_close(layer(x), torch.cat([layer(sample[None]) for sample in x]))


@pytest.mark.parametrize("make", [down, up], ids=["down", "up"])
@pytest.mark.parametrize("wavelet", ["haar", "db2"])
@pytest.mark.parametrize("size", [(4, 4), (3, 5)], ids=size_id)
def test_gradients_in_input_and_weights(make: Callable[..., nn.Module], wavelet: str, size: tuple[int, int]) -> None:
    layer = make(4, wavelet)
    x, weights = features(2, 4, *size).requires_grad_(), dict(layer.named_parameters())

    def call(x: Tensor, *values: Tensor) -> Tensor:
        return torch.func.functional_call(layer, dict(zip(weights, values, strict=True)), x)  # type: ignore[no-any-return]

    assert torch.autograd.gradcheck(call, (x, *weights.values()))


@pytest.mark.parametrize("channels", [8, 64, 192])
def test_parameter_counts_follow_the_widths(channels: int) -> None:
    """Down: C → C/2 → 4C. Up: C → C/2 → C and C/4 → C (1×1). No biases (PAPER, section 3)."""
    counts = {
        type(layer): sum(p.numel() for p in layer.parameters())
        for layer in (WaveletDown(channels), WaveletUp(channels))
    }
    c = channels
    assert counts == {WaveletDown: c * c // 2 + c // 2 * 4 * c, WaveletUp: c * c // 2 + c // 2 * c + c // 4 * c}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
@pytest.mark.parametrize("make", [down, up], ids=["down", "up"])
def test_half_precision_is_kept_and_close(make: Callable[..., nn.Module], dtype: torch.dtype) -> None:
    layer, x = make(), features(2, 8, 7, 6)
    expected = layer(x)
    result = layer.to(dtype)(x.to(dtype))
    assert result.dtype == dtype
    torch.testing.assert_close(result.double(), expected, atol=0.05, rtol=0.05)


@pytest.mark.parametrize("make", [down, up], ids=["down", "up"])
def test_autocast_runs_and_is_close(make: Callable[..., nn.Module]) -> None:
    layer, x = make().float(), features(2, 8, 7, 6, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = layer(x)
    torch.testing.assert_close(result.float(), layer(x), atol=0.05, rtol=0.05)


@pytest.mark.parametrize("wavelet", ["haar", "db2"])
def test_memory_layout_changes_nothing(wavelet: str) -> None:
    x = features(2, 8, 6, 7)
    for layer in (down(wavelet=wavelet), up(wavelet=wavelet)):
        torch.testing.assert_close(layer(x.contiguous(memory_format=torch.channels_last)), layer(x))


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-6), (torch.float16, 1e-3), (torch.bfloat16, 8e-3)])
@pytest.mark.parametrize("function", [gated_down, gated_up])
def test_every_precision_is_added_up_well(
    function: Callable[[Tensor, Tensor], Tensor], dtype: torch.dtype, bound: float
) -> None:
    """Output and gradients against float64 of the same rounded inputs: one rounding of the result, 2⁻¹¹ or 2⁻⁸."""
    x, gates = features(2, 8, 6, 8, dtype=dtype), torch.rand(2, 4, 8 if function is gated_down else 2).to(dtype)
    found, expected = (both_ways(function, x.to(kind), gates.to(kind)) for kind in (dtype, torch.float64))
    for mine, exact in zip(found, expected, strict=True):
        assert mine.dtype == dtype
        assert (mine.double() - exact).abs().max() <= bound * exact.abs().max()


def both_ways(function: Callable[[Tensor, Tensor], Tensor], x: Tensor, gates: Tensor) -> tuple[Tensor, ...]:
    """The output, and the gradients of a sum that weighs its cells by their place."""
    x, gates = x.clone().requires_grad_(), gates.clone().requires_grad_()
    out = function(x, gates)
    weights = torch.linspace(-1, 1, out.numel(), dtype=torch.float64).view(out.shape).to(out.dtype)
    return out.detach(), *torch.autograd.grad(out, (x, gates), weights)
