"""Single-level 2D wavelet transform and its inverse: a fast Haar, and every discrete PyWavelets filter bank.

Bands come in pywt's order (cA, cH, cV, cD), here LL, LH, HL, HH: the first letter is the horizontal axis (width), the
second the vertical one (height), so LH is low along a row and high down a column. Haar, the choice of "Diffusion
Probabilistic Model Made Slim" (Wavelet Gating), is orthonormal and needs torch alone; other banks ask PyWavelets for
their coefficients when first used. Everything is linear and made of differentiable torch operations. Under
torch.compile Haar stays inside one graph; the others break it to fetch their matrices.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from .errors import SpectralError

if TYPE_CHECKING:
    import pywt

    Wavelet: TypeAlias = str | pywt.Wavelet

Filters: TypeAlias = tuple[tuple[float, ...], tuple[float, ...]]
Bands: TypeAlias = tuple[Tensor, Tensor, Tensor, Tensor]

MODES = (
    "symmetric",
    "periodization",
    "zero",
    "periodic",
    "reflect",
    "constant",
    "smooth",
    "antisymmetric",
    "antireflect",
)


class FilterBank(NamedTuple):
    """The four filters of a wavelet, in pywt's convention and order, all of one even length."""

    analysis: Filters
    synthesis: Filters


_ROOT = math.sqrt(0.5)
HAAR = FilterBank(((_ROOT, _ROOT), (-_ROOT, _ROOT)), ((_ROOT, _ROOT), (_ROOT, -_ROOT)))


def haar_matrix(*, dtype: torch.dtype = torch.float32, device: torch.device | str | None = None) -> Tensor:
    """The orthonormal, symmetric [4, 4] matrix from a 2×2 block (x00, x01, x10, x11) to (LL, LH, HL, HH)."""
    rows = [[0.5, 0.5, 0.5, 0.5], [0.5, 0.5, -0.5, -0.5], [0.5, -0.5, 0.5, -0.5], [0.5, -0.5, -0.5, 0.5]]
    return torch.tensor(rows, dtype=dtype, device=device)


def dwt2(x: Tensor, wavelet: Wavelet = "haar", mode: str = "symmetric") -> Bands:
    """One level of the 2D discrete wavelet transform over the last two axes; equals `pywt.dwt2`.

    Args:
        x: [..., H, W], any floating dtype, any size from 1×1. float16 and bfloat16 are accumulated in float32.
        wavelet: name or object of a discrete PyWavelets wavelet.
        mode: how the signal goes on beyond its border, one of MODES. With Haar only odd sizes reach beyond it.

    Returns:
        (LL, LH, HL, HH), each [..., h, w] of x's dtype; h = ⌊(H + L − 1)/2⌋ for filters of length L (Haar: 2),
        ⌈H/2⌉ with "periodization"; w likewise.

    Raises:
        SpectralError: unknown wavelet or mode, fewer than two axes, an empty axis, or a dtype that is not floating.
    """
    _check_mode(mode)
    _check_floating("The input of dwt2", x)
    if _is_haar(wavelet):
        return _haar_analysis(_extend_to_even(x, mode))
    return _matrix_analysis(x, wavelet, mode)


def idwt2(
    bands: Bands,
    wavelet: Wavelet = "haar",
    mode: str = "symmetric",
    size: tuple[int, int] | None = None,
) -> Tensor:
    """Inverse of `dwt2`; equals `pywt.idwt2`.

    Args:
        bands: (LL, LH, HL, HH) of one shape [..., h, w] and one floating dtype.
        wavelet: as given to `dwt2`.
        mode: as given to `dwt2`; only "periodization" changes the inverse.
        size: (H, W) of the original. Needed to get an odd size back: without it the result has the even size above.

    Returns:
        [..., H, W], the dtype of the bands; without `size` H = 2h − L + 2 (2h for Haar and "periodization").

    Raises:
        SpectralError: unknown wavelet or mode, bands that do not match each other, or a size that they cannot have.
    """
    _check_mode(mode)
    bands = _check_bands(bands)
    x = _haar_synthesis(bands) if _is_haar(wavelet) else _matrix_synthesis(bands, wavelet, mode)
    if size is None:
        return x
    if not all(full - 1 <= wanted <= full for wanted, full in zip(size, x.shape[-2:], strict=True)):
        raise SpectralError(
            f"The size {tuple(size)} does not fit bands of {tuple(bands[0].shape[-2:])}, which give "
            f"{tuple(x.shape[-2:])} or one less along an axis; pass the height and width that dwt2 was given."
        )
    return x[..., : size[0], : size[1]]


def axis_matrices(wavelet: Wavelet, size: int, mode: str = "symmetric") -> tuple[Tensor, Tensor]:
    """One level of the transform along one axis, and its inverse, as float64 matrices on the CPU.

    Returns:
        analysis [2m, size], the m low-pass coefficients before the m high-pass ones, and synthesis [size, 2m]; their
        product is the identity.

    Raises:
        SpectralError: unknown wavelet or mode.
    """
    _check_mode(mode)
    bank, cpu = filter_bank(wavelet), torch.device("cpu")
    analysis = _build_analysis(bank.analysis, size, mode, torch.float64, cpu)
    synthesis = _build_synthesis(bank.synthesis, len(analysis) // 2, mode, torch.float64, cpu)
    return analysis, synthesis[:size]


def filter_bank(wavelet: Wavelet) -> FilterBank:
    """The filters of a discrete wavelet by its PyWavelets name, or of a `pywt.Wavelet`.

    Raises:
        SpectralError: not a discrete wavelet, or PyWavelets is not installed.
    """
    if _is_haar(wavelet):
        return HAAR
    try:
        import pywt
    except ImportError as error:
        raise SpectralError(
            f"The wavelet {wavelet!r} needs PyWavelets, which is not installed; install it or use 'haar'."
        ) from error
    if isinstance(wavelet, str):
        if wavelet.lower() not in pywt.wavelist(kind="discrete"):
            raise SpectralError(
                f"Unknown wavelet {wavelet!r}: expected the name of a discrete PyWavelets wavelet such as 'haar', "
                "'db2' or 'bior2.2'; pywt.wavelist(kind='discrete') lists them all."
            )
        wavelet = pywt.Wavelet(wavelet)
    if not isinstance(wavelet, pywt.Wavelet):
        raise SpectralError(
            f"A wavelet is a PyWavelets name or a pywt.Wavelet, not {type(wavelet).__name__}; pass 'haar' for example."
        )
    dec_lo, dec_hi, rec_lo, rec_hi = (tuple(map(float, taps)) for taps in wavelet.filter_bank)
    return FilterBank((dec_lo, dec_hi), (rec_lo, rec_hi))


# Haar: the 2×2 blocks as columns of four, one small matrix product. Two strided copies, no strided arithmetic.


def _is_haar(wavelet: Wavelet) -> bool:
    return (wavelet if isinstance(wavelet, str) else getattr(wavelet, "name", "")).lower() in ("haar", "db1")


def _haar_analysis(x: Tensor) -> Bands:
    lead, (h, w) = x.shape[:-2], (x.shape[-2] // 2, x.shape[-1] // 2)
    count = math.prod(lead)
    blocks = x.reshape(count, h, 2, w, 2).permute(0, 2, 4, 1, 3).reshape(count, 4, h * w)
    ll, lh, hl, hh = haar_product(blocks).unbind(1)
    shape = (*lead, h, w)
    return ll.reshape(shape), lh.reshape(shape), hl.reshape(shape), hh.reshape(shape)


def _haar_synthesis(bands: Bands) -> Tensor:
    *lead, h, w = bands[0].shape
    count = math.prod(lead)
    blocks = haar_product(torch.stack([band.reshape(count, h * w) for band in bands], dim=1))
    return blocks.reshape(count, 2, 2, h, w).permute(0, 3, 1, 4, 2).reshape(*lead, 2 * h, 2 * w)


def haar_product(columns: Tensor) -> Tensor:
    """`haar_matrix` times columns [..., 4, N], in full precision: cells of 2×2 blocks to bands, and bands to cells."""
    work = _working_dtype(columns.dtype)
    with _full_precision(columns):
        return torch.matmul(haar_matrix(dtype=work, device=columns.device), columns.to(work)).to(columns.dtype)


def _extend_to_even(x: Tensor, mode: str) -> Tensor:
    """x with one more row or column at the far end where the size is odd: all that Haar ever sees of the border."""
    for axis in (-2, -1):
        if x.shape[axis] % 2:
            x = torch.cat([x, _next_sample(x, axis, mode)], dim=axis)
    return x


def _next_sample(x: Tensor, axis: int, mode: str) -> Tensor:
    size = x.shape[axis]
    last, before = x.narrow(axis, size - 1, 1), x.narrow(axis, max(size - 2, 0), 1)
    if mode == "zero":
        return torch.zeros_like(last)
    if mode == "periodic":
        return x.narrow(axis, 0, 1)
    if mode == "reflect":
        return before
    if mode == "antisymmetric":
        return -last
    if mode in ("smooth", "antireflect"):
        return 2 * last - before
    return last


# Any filter bank: each axis is one matrix product, its border handling part of the matrix. On feature maps and latents
# this is several times faster than strided convolutions with one input channel.


def _matrix_analysis(x: Tensor, wavelet: Wavelet, mode: str) -> Bands:
    work = _working_dtype(x.dtype)
    rows = _analysis_matrix(wavelet, x.shape[-2], mode, work, x.device)
    columns = _analysis_matrix(wavelet, x.shape[-1], mode, work, x.device)
    with _full_precision(x):
        y = torch.matmul(torch.matmul(rows, x.to(work)), columns.mT).to(x.dtype)
    h, w = y.shape[-2] // 2, y.shape[-1] // 2
    return y[..., :h, :w], y[..., h:, :w], y[..., :h, w:], y[..., h:, w:]


def _matrix_synthesis(bands: Bands, wavelet: Wavelet, mode: str) -> Tensor:
    ll, lh, hl, hh = bands
    work = _working_dtype(ll.dtype)
    rows = _synthesis_matrix(wavelet, ll.shape[-2], mode, work, ll.device)
    columns = _synthesis_matrix(wavelet, ll.shape[-1], mode, work, ll.device)
    y = torch.cat([torch.cat([ll, hl], dim=-1), torch.cat([lh, hh], dim=-1)], dim=-2)
    with _full_precision(y):
        return torch.matmul(torch.matmul(rows, y.to(work)), columns.mT).to(ll.dtype)


def _analysis_matrix(wavelet: Wavelet, size: int, mode: str, dtype: torch.dtype, device: torch.device) -> Tensor:
    """[2m, size]: from a signal to its m low-pass coefficients followed by its m high-pass ones."""
    return _constant(_build_analysis, filter_bank(wavelet).analysis, size, mode, dtype, device)


def _synthesis_matrix(wavelet: Wavelet, count: int, mode: str, dtype: torch.dtype, device: torch.device) -> Tensor:
    """[size, 2·count]: back from `count` low-pass and `count` high-pass coefficients."""
    filters = filter_bank(wavelet).synthesis
    if _synthesis_size(count, len(filters[0]), mode) < 1:
        raise SpectralError(
            f"Bands with an axis of {count} are too small for the filters of {wavelet}, of length {len(filters[0])}: "
            f"expected at least {len(filters[0]) // 2}; use a shorter wavelet or the mode 'periodization'."
        )
    return _constant(_build_synthesis, filters, count, mode, dtype, device)


def _constant(build: Any, *arguments: Any) -> Tensor:
    """A matrix that is made once and kept; a compiler does not look into how.

    The decorator `torch.compiler.disable` would import torch's compiler together with this file. While a graph is
    exported tensors are none to keep.
    """
    if torch.compiler.is_dynamo_compiling():
        build = torch.compiler.disable(build)
    elif torch.compiler.is_compiling():
        build = build.__wrapped__
    return build(*arguments)  # type: ignore[no-any-return]


def _synthesis_size(count: int, length: int, mode: str) -> int:
    return 2 * count if mode == "periodization" else 2 * count - length + 2


@lru_cache(maxsize=32)
def _build_analysis(filters: Filters, size: int, mode: str, dtype: torch.dtype, device: torch.device) -> Tensor:
    """c[k] = Σ_j filter[j] · x[2k + shift − j], with x extended by `mode`."""
    length = len(filters[0])
    if mode == "periodization":
        count, shift = (size + 1) // 2, length // 2
    else:
        count, shift = (size + length - 1) // 2, 1
    first = shift - length + 1
    with torch.inference_mode(False), torch.no_grad():
        extended = _extension(size, mode, first, 2 * (count - 1) + shift + 1)
        matrix = torch.zeros(2, count, size, dtype=torch.float64)
        for band, taps in enumerate(filters):
            for j, tap in enumerate(taps):
                start = length - 1 - j
                matrix[band].add_(extended[start : start + 2 * count - 1 : 2], alpha=tap)
        return matrix.reshape(2 * count, size).to(device, dtype)


@lru_cache(maxsize=32)
def _build_synthesis(filters: Filters, count: int, mode: str, dtype: torch.dtype, device: torch.device) -> Tensor:
    """x[i] = Σ_k low[k] · filter_lo[i − 2k + shift] + high[k] · filter_hi[i − 2k + shift]."""
    length = len(filters[0])
    size = _synthesis_size(count, length, mode)
    shift = length // 2 - 1 if mode == "periodization" else length - 2
    column = torch.arange(count)
    with torch.inference_mode(False), torch.no_grad():
        matrix = torch.zeros(size, 2, count, dtype=torch.float64)
        for j in range(length):
            row = 2 * column + j - shift
            if mode == "periodization":
                row = row % size
            inside = (row >= 0) & (row < size)
            for band, taps in enumerate(filters):
                matrix[row[inside], band, column[inside]] += taps[j]
        return matrix.reshape(size, 2 * count).to(device, dtype)


def _extension(size: int, mode: str, first: int, stop: int) -> Tensor:
    """[stop − first, size]: row i − first gives the extended signal's sample i as weights of the `size` real ones."""
    samples = torch.eye(size, dtype=torch.float64)
    rows = torch.zeros(stop - first, size, dtype=torch.float64)
    for i in range(first, min(0, stop)):
        rows[i - first] = _extended_sample(samples, i, mode)
    rows[max(0, -first) : min(stop, size) - first] = samples[max(0, first) : min(stop, size)]
    for i in range(max(size, first), stop):
        rows[i - first] = _extended_sample(samples, i, mode)
    return rows


def _extended_sample(samples: Tensor, i: int, mode: str) -> Tensor:
    """Sample i of the signal that `samples` ([n, n], the identity) goes on as, by pywt's definition of the mode."""
    n = samples.shape[0]
    if 0 <= i < n:
        return samples[i]
    edge, inner = (0, min(1, n - 1)) if i < 0 else (n - 1, max(n - 2, 0))
    if mode == "zero":
        return torch.zeros_like(samples[0])
    if mode == "constant" or (n == 1 and mode in ("reflect", "smooth", "antireflect")):
        return samples[edge]
    if mode == "periodic":
        return samples[i % n]
    if mode == "periodization":
        return samples[min(i % (n + n % 2), n - 1)]
    if mode == "smooth":
        return samples[edge] + abs(i - edge) * (samples[edge] - samples[inner])
    if mode == "reflect":
        return _extended_sample(samples, 2 * edge - i, mode)
    if mode == "antireflect":
        return 2 * samples[edge] - _extended_sample(samples, 2 * edge - i, mode)
    mirrored = _extended_sample(samples, -1 - i if i < 0 else 2 * n - 1 - i, mode)
    return -mirrored if mode == "antisymmetric" else mirrored


# Checks and precision


def _check_mode(mode: str) -> None:
    if mode not in MODES:
        raise SpectralError(f"Unknown wavelet border mode {mode!r}: expected one of {', '.join(MODES)}.")


def _check_floating(name: str, x: Tensor) -> None:
    if x.ndim < 2 or 0 in x.shape[-2:]:
        raise SpectralError(
            f"{name} has the shape {tuple(x.shape)}: expected [..., height, width] with at least one row and column."
        )
    if not x.is_floating_point():
        raise SpectralError(f"{name} has the dtype {x.dtype}: expected a floating one; convert it with .float() first.")


def _check_bands(bands: Bands) -> Bands:
    if len(bands) != 4 or any(b.shape != bands[0].shape or b.dtype != bands[0].dtype for b in bands):
        found = ", ".join(f"{tuple(b.shape)} {b.dtype}" for b in bands)
        raise SpectralError(f"idwt2 needs four bands (LL, LH, HL, HH) of one shape and dtype, not {found}.")
    _check_floating("The LL band of idwt2", bands[0])
    return bands


def _working_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _full_precision(x: Tensor) -> AbstractContextManager[object]:
    """Autocast off: a transform that must invert exactly is not the place to save bits."""
    kind = x.device.type
    if kind == "meta" or not torch.is_autocast_enabled(kind):
        return nullcontext()
    return torch.autocast(kind, enabled=False)
