"""The Triton kernels of the gated Haar transforms against PyWavelets in Triton's interpreter, compiled, and chosen.

The transform is orthonormal, so its gradients are transforms as well, and PyWavelets is the oracle of all of it.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pywt
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from spectral_diffusion.spectral import gated_haar
from spectral_diffusion.spectral.gated_haar import gated_down, gated_up
from spectral_diffusion.training.bench import resamplers
from spectral_diffusion.training.bench.timing import Settings

from . import interpreted

if sys.platform != "linux":
    pytest.skip("Triton is made for Linux", allow_module_level=True)

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from spectral_diffusion.spectral import gated_haar_triton

Array = NDArray[np.float64]
#: One rounding, relative.
ROUNDING = {torch.float32: 2**-24, torch.float16: 2**-11, torch.bfloat16: 2**-8}
#: [B, C, h, w] of the blocks: fewer and more than a tile, many channels, one, sizes that fill nothing.
BLOCKS = [(3, 5, 1, 3), (3, 5, 5, 7), (1, 1, 32, 32), (2, 40, 8, 8), (1, 2, 48, 32), (1, 3, 33, 35)]
ORDERS = ["packed", "channels-last", "rows-last"]


pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")  # of FakeTensorMode

# Parity


def inputs(way: str, blocks: tuple[int, ...], order: str, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """x, gates and the gradient of the output, the same numbers each time."""
    batch, channels, height, width = blocks
    generator = torch.Generator().manual_seed(7)
    full, quarters = (batch, channels, 2 * height, 2 * width), (batch, 4 * channels, height, width)
    small = (batch, channels, height, width)
    x, dy = (
        torch.randn(shape, generator=generator).to(dtype)
        for shape in ((full, small) if way == "down" else (quarters, full))
    )
    gates = torch.rand(batch, 4, channels, generator=generator).to(dtype)
    if order == "channels-last":
        x = x.contiguous(memory_format=torch.channels_last)
    elif order == "rows-last":
        dy, gates = (one.transpose(-1, -2).contiguous().transpose(-1, -2) for one in (dy, gates))
    return x, gates, dy


CALLS = [
    *product(["down", "up"], BLOCKS, ORDERS[:1], ROUNDING),
    *product(["down", "up"], [(3, 5, 5, 7)], ORDERS[1:], ROUNDING),
]


def call_id(call: Any) -> str:
    way, blocks, order, dtype = call
    return f"{way}-{'x'.join(map(str, blocks))}-{order}-{str(dtype).removeprefix('torch.')}"


@pytest.fixture(scope="module", params=["cpu", *(["cuda"] if torch.cuda.is_available() else [])])
def found(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Tensor, ...]]:
    """What the kernels make of all calls, on a CPU in the interpreter: out, dx, dgates, dx alone, dgates alone."""
    folder = tmp_path_factory.mktemp("interpreted")
    calls, results = folder / "calls", folder / "results"
    torch.save([(f"gated_{call[0]}", *inputs(*call)) for call in CALLS], calls)
    environment = os.environ | ({"TRITON_INTERPRET": "1"} if request.param == "cpu" else {})
    subprocess.run([sys.executable, interpreted.__file__, calls, results, request.param], env=environment, check=True)
    return dict(zip(map(call_id, CALLS), torch.load(results), strict=True))


def bands_of(planes: Array) -> Array:
    """[B, C, H, W] → [B, 4, C, H/2, W/2]."""
    approximation, details = pywt.dwt2(planes, "haar")
    return np.stack([approximation, *details], axis=1)


def planes_of(bands: Array) -> Array:
    ll, *details = np.moveaxis(bands, 1, 0)
    return pywt.idwt2((ll, details), "haar")  # type: ignore[no-any-return]


def oracle(way: str, x: Array, gates: Array, dy: Array) -> tuple[Array, Array, Array]:
    """Output, and the gradients in x and in the gates."""
    g = gates[..., None, None]
    if way == "down":
        bands, spread = bands_of(x), np.repeat(dy[:, None], 4, axis=1)
        return (g * bands).sum(1), planes_of(g * spread), (bands * spread).sum((3, 4))
    bands, spread = x.reshape(x.shape[0], 4, -1, *x.shape[2:]), bands_of(dy)
    return planes_of(g * bands), (g * spread).reshape(x.shape), (bands * spread).sum((3, 4))


def check(found: Tensor, exact: Array, dtype: torch.dtype) -> None:
    """One rounding of the result, after sums in float32. The interpreter cuts bfloat16 off, which counts as two."""
    assert found.dtype == dtype
    rounding = ROUNDING[dtype] * (2 if dtype == torch.bfloat16 else 1)
    error = np.abs(found.double().numpy() - exact)
    assert (error <= rounding * np.abs(exact) + 2**-21 * np.abs(exact).max()).all()


@pytest.mark.parametrize("call", CALLS, ids=call_id)
def test_kernels_equal_gated_pywt_bands_and_their_gradients(found: dict[str, tuple[Tensor, ...]], call: Any) -> None:
    way, dtype = call[0], call[-1]
    out, dx, dgates, dx_alone, dgates_alone = found[call_id(call)]
    x, gates, dy = (one.double().numpy() for one in inputs(*call))
    for mine, exact in zip((out, dx, dgates), oracle(way, x, gates, dy), strict=True):
        check(mine, exact, dtype)
    assert torch.equal(dx_alone, dx) and torch.equal(dgates_alone, dgates)


# Compilation, which needs no GPU


KERNELS = {"_down": (4, 1), "_up": (4, 4), "_down_backward": (5, 4), "_up_backward": (8, 4)}
TYPES = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}


@pytest.fixture
def no_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was compiled before is compiled again."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))


def compiled(name: str, dtype: torch.dtype, capability: int, tile: tuple[int, int], even: bool) -> Any:
    """A kernel's stages of compilation. `even`: pointers and sizes are multiples of 16, as they are in networks."""
    kernel = getattr(gated_haar_triton, name)
    constants = dict(zip(("PLANES", "CELLS"), tile, strict=True))
    types = dict.fromkeys(kernel.arg_names, f"*{TYPES[dtype]}")
    types |= dict.fromkeys(("planes", "channels", "cells", "width"), "i32") | dict.fromkeys(constants, "constexpr")
    places = [place for place, argument in enumerate(kernel.arg_names) if argument not in constants]
    hints = {(place,): [["tt.divisibility", 16]] for place in places} if even else {}
    source = ASTSource(kernel, types, constants, hints)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32)).asm


def vectors(ptx: str, way: str) -> int:
    """Bytes that the 128 threads of a program load ("ld") or store ("st") in one go over its code, by vectors."""
    found = re.findall(rf"\b{way}\.global\S*\.v(\d)\.b(\d+)", ptx)
    return 128 * sum(int(count) * int(bits) // 8 for count, bits in found)


@pytest.mark.usefixtures("no_cache")
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("dtype", TYPES, ids=TYPES.values())
@pytest.mark.parametrize("name", KERNELS)
def test_kernels_compile_and_move_every_element_once(name: str, dtype: torch.dtype, capability: int) -> None:
    loads, stores = KERNELS[name]
    asm = compiled(name, dtype, capability, gated_haar_triton.tile(1024), even=True)
    assert asm["cubin"].startswith(b"\x7fELF") and len(asm["cubin"]) > 4096
    assert vectors(asm["ptx"], "ld") == loads * 1024 * dtype.itemsize
    assert vectors(asm["ptx"], "st") == stores * 1024 * dtype.itemsize
    assert dtype != torch.bfloat16 or "cvt.rn.bf16" in asm["ptx"], "rounded to the nearest, unlike in the interpreter"


@pytest.mark.usefixtures("no_cache")
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("name", KERNELS)
def test_kernels_for_small_planes_of_any_size_compile(name: str, capability: int) -> None:
    asm = compiled(name, torch.float16, capability, gated_haar_triton.tile(15), even=False)
    assert asm["cubin"].startswith(b"\x7fELF") and len(asm["cubin"]) > 4096


@pytest.mark.parametrize(
    ("cells", "tile"), [(1, (16, 64)), (64, (16, 64)), (65, (8, 128)), (1024, (1, 1024)), (5000, (1, 1024))]
)
def test_tiles_hold_small_planes_side_by_side(cells: int, tile: tuple[int, int]) -> None:
    assert gated_haar_triton.tile(cells) == tile


# The choice


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Triton has not failed yet."""
    monkeypatch.setattr(gated_haar, "_gave_up", False)
    gated_haar._triton_is_installed.cache_clear()
    yield
    gated_haar._triton_is_installed.cache_clear()


def on_cuda(*shape: int, **options: Any) -> Tensor:
    """A tensor of no memory that says it is on a GPU."""
    with FakeTensorMode():
        return torch.empty(shape, device="cuda", **options)


MANY, GATES = (2, 32, 32, 32), torch.empty(2, 4, 32)


@pytest.mark.parametrize(
    ("make", "chosen"),
    [
        (lambda: on_cuda(*MANY), True),
        (lambda: on_cuda(*MANY, dtype=torch.float16), True),
        (lambda: on_cuda(*MANY, dtype=torch.bfloat16), True),
        (lambda: on_cuda(*MANY, dtype=torch.float64), False),
        (lambda: on_cuda(*MANY, memory_format=torch.channels_last), False),
        (lambda: on_cuda(1, 8, 8, 8), False),
        (lambda: on_cuda(0, 32, 32, 32), False),
        (lambda: torch.empty(MANY), False),
    ],
    ids=["float32", "float16", "bfloat16", "float64", "channels-last", "small", "empty", "cpu"],
)
def test_triton_takes_what_it_is_good_for(make: Callable[[], Tensor], chosen: bool) -> None:
    assert gated_haar._is_for_triton(make(), GATES) is chosen


def test_a_compiler_makes_its_own_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    with gated_haar.using("triton"):
        assert not gated_haar._is_for_triton(on_cuda(*MANY), GATES)


def test_forward_derivatives_are_torchs() -> None:
    x = on_cuda(*MANY)
    with torch.autograd.forward_ad.dual_level():
        x_dual, gates_dual = (torch.autograd.forward_ad.make_dual(one, torch.empty_like(one)) for one in (x, GATES))
        assert gated_haar._is_for_triton(x, GATES)
        assert not gated_haar._is_for_triton(x_dual, GATES) and not gated_haar._is_for_triton(x, gates_dual)


def test_where_triton_is_not_installed_torch_computes_and_nobody_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not gated_haar._is_for_triton(on_cuda(*MANY), GATES)


def test_one_form_can_be_asked_for() -> None:
    with gated_haar.using("torch"):
        assert not gated_haar._is_for_triton(on_cuda(*MANY), GATES)
        with gated_haar.using("triton"):
            assert gated_haar._is_for_triton(torch.empty(2), GATES)
    assert gated_haar._is_for_triton(on_cuda(*MANY), GATES)


# What goes wrong


@pytest.fixture
def chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton is chosen for maps on the CPU, which it cannot read."""
    monkeypatch.setattr(gated_haar, "_suits", lambda x: True)


@pytest.mark.usefixtures("chosen")
def test_where_triton_fails_torch_goes_on_and_says_so_once(monkeypatch: pytest.MonkeyPatch) -> None:
    x, gates, dy = inputs("down", (2, 3, 4, 4), "packed", torch.float32)
    x, gates = x.requires_grad_(), gates.requires_grad_()
    sentence = r"Triton could not run its kernels .* \(.+\); PyTorch's own operations take their place until .*\.$"
    with pytest.warns(UserWarning, match=sentence) as told:
        gated_down(x, gates)
    assert len(told) == 1
    monkeypatch.delattr(gated_haar_triton, "down")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        out = gated_down(x, gates)
        gradients = torch.autograd.grad(out, (x, gates), dy)
        gated_up(torch.empty(1, 4, 2, 2), torch.empty(1, 4, 1))
    exact = oracle("down", *(one.detach().double().numpy() for one in (x, gates, dy)))
    for found, expected in zip((out.detach(), *gradients), exact, strict=True):
        check(found, expected, torch.float32)


@pytest.mark.usefixtures("chosen")
def test_a_backward_pass_can_fail_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gated_haar_triton, "up", gated_haar.up)
    x, gates, dy = inputs("up", (2, 3, 4, 4), "packed", torch.float32)
    out = gated_up(x.requires_grad_(), gates.requires_grad_())
    with pytest.warns(UserWarning, match="Triton could not run"):
        gradients = torch.autograd.grad(out, (x, gates), dy)
    exact = oracle("up", *(one.detach().double().numpy() for one in (x, gates, dy)))
    for found, expected in zip(gradients, exact[1:], strict=True):
        check(found, expected, torch.float32)


@pytest.mark.usefixtures("chosen")
def test_memory_that_runs_out_is_no_fault_of_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(x: Tensor, gates: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(gated_haar_triton, "down", full)
    with pytest.raises(torch.OutOfMemoryError):
        gated_down(torch.empty(1, 1, 2, 2), torch.empty(1, 4, 1))
    assert not gated_haar._gave_up


def test_who_asks_for_triton_gets_its_error() -> None:
    with gated_haar.using("triton"), pytest.raises(Exception, match=r"(?i)driver|cpu tensor"):
        gated_down(torch.empty(1, 1, 2, 2), torch.empty(1, 4, 1))
    assert not gated_haar._gave_up


# bench


def test_bench_times_both_forms_both_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the CPU, with torch's functions in the place of the kernels."""
    called = []
    for name in ("down", "up", "down_backward", "up_backward"):

        def stands_in(*arguments: Any, name: str = name) -> Any:
            called.append(name)
            return getattr(gated_haar, name)(*arguments)

        monkeypatch.setattr(gated_haar_triton, name, stands_in)
    found: dict[str, float] = {}
    for way, name in enumerate(("gated_down", "gated_up")):
        found |= resamplers.forms(name, way, torch.Size((1, 4, 4, 4)), Settings(quick=True))
    assert [called.count(f"{way}_backward") for way in ("down", "up")] == [(3 + 10) * 5] * 2
    assert called.count("down") == called.count("up") == 2 * (3 + 10) * 5
    for ratio in (f"gated_{way}_{kind}triton_vs_torch" for way in ("down", "up") for kind in ("", "training_")):
        assert found[ratio] > 0 and found[f"{ratio}_batch"] == 1
