"""The wavelet transform against its oracle, PyWavelets; it must invert, differentiate, and refuse in one sentence."""

from __future__ import annotations

import numpy as np
import pytest
import pywt
import torch
from torch import Tensor

from spectral_diffusion.spectral import wavelet
from spectral_diffusion.spectral.errors import SpectralError

WAVELETS = ["haar", "db2", "db7", "sym4", "coif2", "bior1.3", "bior2.2", "rbio3.1"]
SIZES = [(8, 8), (16, 6), (7, 8), (9, 5), (3, 2), (1, 4), (1, 1), (33, 20)]
TOLERANCES = {torch.float64: 1e-10, torch.float32: 2e-5, torch.float16: 1e-2, torch.bfloat16: 1e-1}


def size_id(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


def dtype_id(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def sample(size: tuple[int, int], *lead: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*lead, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(7)).to(dtype)


def oracle(x: Tensor, name: str, mode: str) -> list[Tensor]:
    approximation, details = pywt.dwt2(x.double().numpy(), name, mode)
    return [torch.from_numpy(band) for band in (approximation, *details)]


@pytest.mark.parametrize(
    ("size", "mode"),
    [
        pytest.param(size, mode, id=f"{size_id(size)}-{mode}")
        for size in SIZES
        for mode in wavelet.MODES
        if not ("reflect" in mode and 1 in size)  # pywt refuses to reflect a single sample
    ],
)
@pytest.mark.parametrize("name", WAVELETS)
def test_bands_equal_pywt_dwt2_and_invert(name: str, size: tuple[int, int], mode: str) -> None:
    x = sample(size, 2)
    bands, expected = wavelet.dwt2(x, name, mode), oracle(x, name, mode)
    for band, truth in zip(bands, expected, strict=True):
        torch.testing.assert_close(band, truth, atol=1e-10, rtol=1e-10)
    inverse = torch.from_numpy(pywt.idwt2((expected[0].numpy(), [b.numpy() for b in expected[1:]]), name, mode))
    torch.testing.assert_close(wavelet.idwt2(bands, name, mode), inverse, atol=1e-10, rtol=1e-10)
    torch.testing.assert_close(wavelet.idwt2(bands, name, mode, size=size), x, atol=1e-8, rtol=1e-8)


@pytest.mark.parametrize("dtype", TOLERANCES, ids=dtype_id)
@pytest.mark.parametrize("size", [(8, 12), (7, 5)], ids=size_id)
@pytest.mark.parametrize("name", ["haar", "db3"])
def test_every_float_dtype_is_kept_and_accurate(name: str, size: tuple[int, int], dtype: torch.dtype) -> None:
    x = sample(size, 2, 3, dtype=dtype)
    bands = wavelet.dwt2(x, name)
    restored = wavelet.idwt2(bands, name, size=size)
    assert {band.dtype for band in bands} == {restored.dtype} == {dtype}
    tolerance = TOLERANCES[dtype]
    for band, truth in zip(bands, oracle(x, name, "symmetric"), strict=True):
        torch.testing.assert_close(band.double(), truth, atol=tolerance, rtol=tolerance)
    torch.testing.assert_close(restored, x, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("name", sorted(set(pywt.wavelist(kind="discrete")) - {"dmey"}))
def test_every_discrete_wavelet_reconstructs(name: str) -> None:
    x = sample((13, 18))
    torch.testing.assert_close(wavelet.idwt2(wavelet.dwt2(x, name), name, size=(13, 18)), x, atol=1e-7, rtol=0)


def test_a_wavelet_object_does_what_its_name_does() -> None:
    x = sample((9, 10))
    for mine, named in zip(wavelet.dwt2(x, pywt.Wavelet("bior2.2")), wavelet.dwt2(x, "bior2.2"), strict=True):
        assert torch.equal(mine, named)


def test_bands_are_named_width_first() -> None:
    """Horizontal stripes vary down the columns only: all they hold is LH, low along a row and high down a column."""
    stripes = torch.tensor([1.0, -1.0]).repeat(4)[:, None].expand(8, 8)
    ll, lh, hl, hh = wavelet.dwt2(stripes)
    assert lh.abs().min() == 2
    assert all(torch.count_nonzero(band) == 0 for band in (ll, hl, hh))


def test_haar_matrix_is_the_transform_of_one_block() -> None:
    block = sample((2, 2))
    bands = torch.stack(wavelet.dwt2(block)).flatten()
    torch.testing.assert_close(wavelet.haar_matrix(dtype=torch.float64) @ block.flatten(), bands)


@pytest.mark.parametrize("name", ["haar", "db4", "sym3"])
def test_an_orthogonal_wavelet_keeps_energy(name: str) -> None:
    x = sample((16, 8))
    energy = sum(band.square().sum() for band in wavelet.dwt2(x, name, "periodization"))
    torch.testing.assert_close(energy, x.square().sum())


@pytest.mark.parametrize(("name", "mode"), [("haar", "symmetric"), ("haar", "reflect"), ("db2", "smooth")])
def test_gradients(name: str, mode: str) -> None:
    def there_and_back(x: Tensor) -> Tensor:
        ll, lh, hl, hh = wavelet.dwt2(x, name, mode)
        return wavelet.idwt2((ll, 2 * lh, 3 * hl, 4 * hh), name, mode)

    assert torch.autograd.gradcheck(there_and_back, (sample((5, 4), 2).requires_grad_(),))


@pytest.mark.parametrize("name", ["haar", "db2"])
def test_a_matrix_made_in_inference_mode_serves_training(name: str) -> None:
    with torch.inference_mode():
        wavelet.dwt2(sample((22, 26)), name)
    x = sample((22, 26)).requires_grad_()
    wavelet.dwt2(x, name)[0].sum().backward()
    assert x.grad is not None


@pytest.mark.parametrize("name", ["haar", "db2"])
def test_any_layout_and_leading_axes(name: str) -> None:
    x = sample((6, 8), 2, 3, 4)
    strided = x.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3)
    for plain, other in zip(wavelet.dwt2(x, name), wavelet.dwt2(strided, name), strict=True):
        assert plain.shape[:3] == (2, 3, 4)
        torch.testing.assert_close(other, plain)
    assert wavelet.dwt2(x[:0], name)[3].shape[:3] == (0, 3, 4)


@pytest.mark.parametrize("name", ["haar", "db2"])
def test_shapes_on_the_meta_device(name: str) -> None:
    bands = wavelet.dwt2(torch.empty(2, 3, 7, 8, device="meta"), name)
    expected = (
        pywt.dwt_coeff_len(7, pywt.Wavelet(name), "symmetric"),
        pywt.dwt_coeff_len(8, pywt.Wavelet(name), "symmetric"),
    )
    assert all(band.shape == (2, 3, *expected) and band.device.type == "meta" for band in bands)
    assert wavelet.idwt2(bands, name, size=(7, 8)).shape == (2, 3, 7, 8)


@pytest.mark.parametrize("name", ["haar", "db2"])
def test_autocast_does_not_cost_precision(name: str) -> None:
    x = sample((8, 8), dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        bands = wavelet.dwt2(x, name)
        restored = wavelet.idwt2(bands, name)
    assert bands[0].dtype == torch.float32
    torch.testing.assert_close(restored, x, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["haar", "db2"])
def test_compiles(name: str) -> None:
    def there_and_back(x: Tensor) -> Tensor:
        return wavelet.idwt2(wavelet.dwt2(x, name), name, size=(7, 8))

    compiled = torch.compile(there_and_back, backend="aot_eager", fullgraph=name == "haar")
    x = sample((7, 8), 2)
    torch.testing.assert_close(compiled(x), x)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((torch.zeros(4, 4), "no-such"), "'no-such'.*pywt.wavelist"),
        ((torch.zeros(4, 4), "morl"), "'morl'.*discrete"),
        ((torch.zeros(4, 4), 3), "not int"),
        ((torch.zeros(4, 4), "haar", "mirror"), "'mirror'.*symmetric"),
        ((torch.zeros(4),), r"shape \(4,\).*height, width"),
        ((torch.zeros(4, 0),), "at least one row and column"),
        ((torch.zeros(4, 4, dtype=torch.int64),), r"torch.int64.*\.float\(\)"),
    ],
    ids=["unknown", "continuous", "not-a-wavelet", "mode", "one-axis", "empty", "integer"],
)
def test_dwt2_says_what_is_wrong(arguments: tuple[object, ...], says: str) -> None:
    with pytest.raises(SpectralError, match=says):
        wavelet.dwt2(*arguments)  # type: ignore[arg-type]


def test_idwt2_says_what_is_wrong() -> None:
    band = torch.zeros(4, 4)
    with pytest.raises(SpectralError, match=r"one shape and dtype.*\(4, 3\)"):
        wavelet.idwt2((band, band, band, band[:, :3]))
    with pytest.raises(SpectralError, match="one shape and dtype.*float64"):
        wavelet.idwt2((band, band, band, band.double()))
    with pytest.raises(SpectralError, match=r"\(5, 8\) does not fit.*\(8, 8\)"):
        wavelet.idwt2((band, band, band, band), size=(5, 8))
    with pytest.raises(SpectralError, match="axis of 4 are too small.*db10"):
        wavelet.idwt2((band, band, band, band), "db10")


def test_haar_needs_no_pywavelets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pywt", None)
    x = sample((5, 6))
    torch.testing.assert_close(wavelet.idwt2(wavelet.dwt2(x), size=(5, 6)), x)
    with pytest.raises(SpectralError, match="needs PyWavelets.*install"):
        wavelet.dwt2(x, "db2")


def test_a_constant_has_no_haar_detail() -> None:
    ll, *details = wavelet.dwt2(torch.full((3, 7, 7), np.pi))
    torch.testing.assert_close(ll, torch.full((3, 4, 4), 2 * np.pi))
    assert all(torch.count_nonzero(band) == 0 for band in details)
