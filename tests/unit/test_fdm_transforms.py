"""What lies between two stages of f-DM, against dense matrices, pywt, scipy and numpy."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import pywt
import torch
from scipy import ndimage
from torch import Tensor

from spectral_diffusion.spectral import fdm
from spectral_diffusion.spectral.config import BoundaryConfig
from spectral_diffusion.spectral.errors import SpectralError
from spectral_diffusion.spectral.fdm import packets, transforms

from .fdm_dense import HALVING, LinearPair, blurring, interpolating, on_planes, pooling, repeating, ways

SAMPLES = 30000
SIZES = [(8, 8), (7, 5), (9, 12), (1, 3)]
FACTORS = [2, 4, 8]
BLURS = [("gaussian", 0.3), ("gaussian", 1.0), ("gaussian", 2.2), ("uniform", 3), ("uniform", 7)]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def fresh_of(batch: int, seed: int = 99) -> packets.Fresh:
    """White noise from one generator, faster than a stream for each of many samples."""
    generator = torch.Generator().manual_seed(seed)
    return lambda shape: torch.randn(batch, *shape, generator=generator, dtype=torch.float64)


def assert_white(noise: Tensor) -> None:
    """Covariance is the identity and the mean 0, of as many samples as there are rows.

    An entry of the empirical covariance is off by √(1/N), on the diagonal by √(2/N) (its standard deviation); none of
    some thousand should be off by more than 5.5 of these (p < 4e-8 each).
    """
    flat = noise.flatten(1).numpy()
    count, size = flat.shape
    off = np.abs(flat.T @ flat / count - np.eye(size)) / np.sqrt((1 + np.eye(size)) / count)
    assert off.max() < 5.5
    assert np.abs(flat.mean(0)).max() * count**0.5 < 5.5


def halved(name: str) -> fdm.Transform:
    return {
        "nearest": lambda: fdm.Downsample(2),
        "nearest-4": lambda: fdm.Downsample(4),
        "bilinear": lambda: fdm.Downsample(2, "bilinear"),
        "bilinear-4": lambda: fdm.Downsample(4, "bilinear"),
        "vae": lambda: fdm.Autoencode(LinearPair()),
        "vae-of-3": lambda: fdm.Autoencode(LinearPair(replace(HALVING, embed_dim=3))),
        "blur": lambda: fdm.Blur(),
    }[name]()


every_transform = pytest.mark.parametrize(
    "name", ["nearest", "nearest-4", "bilinear", "bilinear-4", "vae", "vae-of-3", "blur"]
)


@every_transform
@pytest.mark.parametrize("size", [(4, 4), (5, 3)], ids=["4x4", "5x3"])
def test_lifted_noise_is_white(name: str, size: tuple[int, int]) -> None:
    transform = halved(name)
    noise = normal(SAMPLES, transform.channels(1), *transform.size(size))
    lifted = transform.lift(noise, 1, size, fresh_of(SAMPLES))
    assert lifted.shape == (SAMPLES, 1, *size)
    assert_white(lifted)


@every_transform
@pytest.mark.parametrize("size", [(4, 4), (5, 3)], ids=["4x4", "5x3"])
def test_restricted_noise_is_white(name: str, size: tuple[int, int]) -> None:
    transform = halved(name)
    small = transform.restrict(normal(SAMPLES, 1, *size), fresh_of(SAMPLES))
    assert small.shape == (SAMPLES, transform.channels(1), *transform.size(size))
    assert_white(small)


@pytest.mark.parametrize("factor", FACTORS)
def test_lifted_noise_pools_back(factor: int) -> None:
    """Oracle: numpy's means over blocks, times the factor; and `restrict`, which is the same thing."""
    noise = normal(3, 2, 3, 2)
    down = fdm.Downsample(factor)
    lifted = down.lift(noise, 2, (3 * factor, 2 * factor), fresh_of(3))
    blocks = lifted.numpy().reshape(3, 2, 3, factor, 2, factor)
    np.testing.assert_allclose(factor * blocks.mean((3, 5)), noise.numpy(), atol=1e-12)
    torch.testing.assert_close(down.restrict(lifted, fresh_of(3)), noise, atol=1e-12, rtol=0)


@pytest.mark.parametrize("factor", FACTORS)
def test_restricted_noise_is_pywts_chain_of_approximations(factor: int) -> None:
    noise = normal(2, 3, 16, 24)
    expected = noise.numpy()
    for _ in range(round(math.log2(factor))):
        expected = pywt.dwt2(expected, "haar")[0]
    small = fdm.Downsample(factor).restrict(noise, fresh_of(2))
    np.testing.assert_allclose(small.numpy(), expected, atol=1e-12)


@pytest.mark.parametrize("factor", FACTORS)
def test_packets_are_pywts(factor: int) -> None:
    """The first packet is the chain of approximations; the details of the first level's details are there as well."""
    x = normal(1, 1, 16, 8)
    found = packets.analysis(x, factor)
    assert found.shape == (1, factor**2, 16 // factor, 8 // factor)
    tree = pywt.WaveletPacket2D(x[0, 0].numpy(), "haar")
    expected = np.array([node.data for node in tree.get_level(round(math.log2(factor)))])
    unused = list(range(len(expected)))
    for packet in found[0].numpy():  # in whatever order, each of them once
        nearest = min(unused, key=lambda index: np.abs(expected[index] - packet).max())
        np.testing.assert_allclose(packet, expected[nearest], atol=1e-12)
        unused.remove(nearest)
    torch.testing.assert_close(packets.synthesis(found, factor), x, atol=1e-12, rtol=0)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("factor", FACTORS)
def test_lifts_and_restrictions_are_parts_of_rotations(factor: int, size: tuple[int, int]) -> None:
    """Exactly white: M Mᵀ = 1 for the matrix M from all the noise that goes in to what comes out, odd sizes too."""
    for method in ("nearest", "bilinear"):
        down = fdm.Downsample(factor, method)
        for way in ("lift", "restrict"):
            matrix = _from_all_noise(down, way, size)
            np.testing.assert_allclose(matrix @ matrix.T, np.eye(len(matrix)), atol=1e-9)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("factor", FACTORS)
def test_a_bilinear_lift_has_the_covariances_of_its_two_parts(factor: int, size: tuple[int, int]) -> None:
    """ζ(ε) = g(ε)/s + …: the first part's covariance is g gᵀ/s², and the other's what is left to 1 (dense matrices)."""
    down = fdm.Downsample(factor, "bilinear")
    g = on_planes(1, interpolating(size[0], factor), interpolating(size[1], factor))
    matrix = _from_all_noise(down, "lift", size)
    given, fresh = np.split(matrix, [g.shape[1]], axis=1)
    np.testing.assert_allclose(given, g / factor, atol=1e-12)
    np.testing.assert_allclose(fresh @ fresh.T, np.eye(len(g)) - g @ g.T / factor**2, atol=1e-9)
    assert np.linalg.eigvalsh(g @ g.T / factor**2)[-1] < 1 + 1e-12  # so that there is something left


def _from_all_noise(transform: fdm.Transform, way: str, size: tuple[int, int]) -> np.ndarray:
    """The matrix [out, given + fresh] of `lift` or `restrict`: every number that goes in has its turn to be 1."""
    shape = transform.size(size) if way == "lift" else size
    given = math.prod(shape)
    asked = 0

    def run(rows: int) -> Tensor:
        nonlocal asked
        asked = given
        noise = torch.zeros(rows, given, dtype=torch.float64)
        noise[:given] = torch.eye(given, dtype=torch.float64)[:rows]

        def fresh(shape: tuple[int, ...]) -> Tensor:
            nonlocal asked
            directions = torch.zeros(rows, math.prod(shape), dtype=torch.float64)
            part = directions[asked : asked + math.prod(shape)]
            part.copy_(torch.eye(math.prod(shape), dtype=torch.float64)[: len(part)])
            asked += math.prod(shape)
            return directions.view(rows, *shape)

        noise = noise.view(rows, 1, *shape)
        return transform.lift(noise, 1, size, fresh) if way == "lift" else transform.restrict(noise, fresh)

    run(given)
    return run(asked).flatten(1).T.numpy()


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("factor", FACTORS)
def test_downsampling_is_the_mean_of_blocks(factor: int, size: tuple[int, int]) -> None:
    """Oracle: numpy, the last row and column repeated up to a multiple of the factor."""
    x = normal(2, 3, *size)
    more = [(0, 0), (0, 0), *((0, -side % factor) for side in size)]
    blocks = np.pad(x.numpy(), more, mode="edge")
    height, width = blocks.shape[2] // factor, blocks.shape[3] // factor
    expected = blocks.reshape(2, 3, height, factor, width, factor).mean((3, 5))
    down = fdm.Downsample(factor)
    np.testing.assert_allclose(down.forth(x).numpy(), expected, atol=1e-12)
    assert down.size(size) == (height, width) and down.dimension_ratio == factor**2 and down.channels(3) == 3


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("method", ["nearest", "bilinear"])
@pytest.mark.parametrize("factor", FACTORS)
def test_the_way_back_up(factor: int, method: str, size: tuple[int, int]) -> None:
    """Oracle: numpy's interpolation of values in the middles of cells."""
    down = fdm.Downsample(factor, method)
    y = normal(2, 3, *down.size(size))
    expected = y.numpy()
    for axis, side in ((2, size[0]), (3, size[1])):
        places, few = (np.arange(side) + 0.5) / factor - 0.5, expected.shape[axis]

        def along(values: np.ndarray, places: np.ndarray = places, few: int = few) -> np.ndarray:
            if method == "nearest":
                return values[np.floor(places + 0.5 - 1e-9).astype(int)]
            return np.interp(places, np.arange(few), values)

        expected = np.apply_along_axis(along, axis, expected)
    np.testing.assert_allclose(down.back(y, size).numpy(), expected, atol=1e-12)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize(("kernel", "width"), BLURS)
def test_blurs_are_scipys(kernel: str, width: float, size: tuple[int, int]) -> None:
    """Oracle: scipy.ndimage; its "nearest" repeats the border, and it truncates a Gaussian at whole cells."""
    x = normal(2, 3, *size)
    if kernel == "uniform":
        expected = ndimage.uniform_filter(x.numpy(), (0, 0, int(width), int(width)), mode="nearest")
    else:
        reach = max(1, math.ceil(4 * width))
        expected = ndimage.gaussian_filter(x.numpy(), (0, 0, width, width), mode="nearest", radius=(0, 0, reach, reach))
    blur = fdm.Blur(kernel, width)
    y = blur.forth(x)
    np.testing.assert_allclose(y.numpy(), expected, atol=1e-9)
    assert torch.equal(blur.back(y, size), y) and blur.size(size) == size and blur.dimension_ratio == 1
    noise = normal(2, 3, *size, seed=1)
    assert torch.equal(blur.restrict(noise, fresh_of(2)), noise) and torch.equal(
        blur.lift(noise, 3, size, fresh_of(2)), noise
    )


def test_the_oracles_matrices_are_the_transforms() -> None:
    """The dense process of the other tests and the library are one, each of which has an oracle of its own."""
    x = normal(2, 2, 6, 4)
    pair = LinearPair(replace(HALVING, in_channels=2, out_ch=2, embed_dim=3))
    for boundary in (
        BoundaryConfig(0.5, factor=2),
        BoundaryConfig(0.5, factor=4, back="bilinear"),
        BoundaryConfig(0.5, "blur", width=0.8),
        BoundaryConfig(0.5, "blur", kernel="uniform", width=3),
        BoundaryConfig(0.5, "vae", autoencoder=pair.config),
    ):
        transform = transforms.build(boundary, pair)
        down, back, shape, ratio = ways(boundary, (2, 6, 4), pair)
        y = transform.forth(x)
        np.testing.assert_allclose(y.flatten(1).numpy(), x.flatten(1).numpy() @ down.T, atol=1e-12)
        np.testing.assert_allclose(
            transform.back(y, (6, 4)).flatten(1).numpy(), y.flatten(1).numpy() @ back.T, atol=1e-12
        )
        assert (transform.channels(2), *transform.size((6, 4))) == shape and transform.dimension_ratio == ratio
    assert pooling(5, 2)[-1].tolist() == [0, 0, 0, 0, 1] and repeating(3, 2)[-1].tolist() == [0, 1]
    assert blurring(4, "uniform", 3)[0] == pytest.approx([2 / 3, 1 / 3, 0, 0])


def test_an_autoencoder_goes_its_ways_at_odd_sizes() -> None:
    pair = LinearPair(replace(HALVING, embed_dim=2))
    between = fdm.Autoencode(pair)
    x = normal(2, 1, 5, 3)
    y = between.forth(x)
    assert y.shape == (2, 2, 3, 2) == (2, between.channels(1), *between.size((5, 3)))
    assert between.dimension_ratio == 2 and between.back(y, (5, 3)).shape == x.shape
    wide = np.pad(x.numpy(), ((0, 0), (0, 0), (0, 1), (0, 1)), mode="edge")
    assert torch.equal(y, pair.encode(torch.from_numpy(wide)))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_fresh_noise_is_the_samples_own(dtype: torch.dtype) -> None:
    """Alone, or in any batch and place; whatever is asked comes in turn, and no two are alike."""
    noise = normal(5, 2, 3, 3).to(dtype)
    together = fdm.FreshNoise(noise)
    first, second = together((4, 4)), together((4, 4))
    assert first.dtype == dtype and first.shape == (5, 4, 4) and not torch.equal(first, second)
    assert len({tuple(row.flatten().tolist()) for row in first}) == 5
    for index in (0, 3):
        alone = fdm.FreshNoise(noise[index : index + 1])
        assert torch.equal(alone((4, 4))[0], first[index]) and torch.equal(alone((4, 4))[0], second[index])
    backwards = fdm.FreshNoise(noise.flip(0))
    assert torch.equal(backwards((4, 4)), first.flip(0))
    before = torch.get_rng_state()
    fdm.FreshNoise(noise)((3,))
    assert torch.equal(torch.get_rng_state(), before)


def test_fresh_noise_is_white_and_knows_nothing_of_the_first() -> None:
    noise = normal(20000, 1, 2, 2)
    fresh = fdm.FreshNoise(noise)
    assert_white(torch.cat([noise.flatten(1), fresh((3,)), fresh((2, 2)).flatten(1)], dim=1))


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"factor": 3}, "factor is 3; expected 2, 4 or 8"),
        ({"factor": 1}, "factor is 1"),
        ({"at": 0.0}, "boundary lies at 0.0"),
        ({"at": 1.0}, "boundary lies at 1.0"),
        ({"at": math.nan}, "boundary lies at nan"),
        ({"gamma": 0.0}, "gamma is 0.0"),
        ({"gamma": math.inf}, "gamma is inf"),
        ({"transform": "blur", "width": 0.0}, "width of a Gaussian blur is 0;"),
        ({"transform": "blur", "width": math.nan}, "width of a Gaussian blur is nan"),
        ({"transform": "blur", "width": 40.0}, "0.1 to 32 cells"),
        ({"transform": "blur", "kernel": "uniform", "width": 4.0}, "side of a uniform blur is 4; expected an odd"),
        ({"transform": "blur", "kernel": "uniform", "width": 1.0}, "from 3 to 63"),
        ({"transform": "vae"}, "needs its autoencoder"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_what_cannot_be_is_refused_in_a_sentence(settings: dict[str, object], says: str) -> None:
    with pytest.raises(SpectralError, match=says):
        transforms.build(replace(BoundaryConfig(0.5), **settings))  # type: ignore[arg-type]
