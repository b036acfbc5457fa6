"""`spectrum power`, `spectrum difference` and comparisons of several sets, on images that the tests make."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from spectral_diffusion.spectral import spectrum as spectra
from spectral_diffusion.spectral.errors import SpectralError
from spectral_diffusion.training import cli
from spectral_diffusion.training.spectrum import __main__ as command
from spectral_diffusion.training.spectrum import measure, plane

from .test_spectrum_command import folder_of


def wave(cycles: float, turned: bool = False, size: int = 64) -> Image.Image:
    """Stripes of so many cycles per pixel, vertical unless they are turned."""
    row = 127.5 + 100 * np.cos(2 * np.pi * cycles * np.arange(size))
    pixels = np.tile(row.round().astype(np.uint8), (size, 1))
    return Image.fromarray(pixels.T.copy() if turned else pixels)


def test_power_finds_the_share_the_direction_and_the_octave(tmp_path: Path) -> None:
    wave(0.375).save(tmp_path / "wave.png")
    found = plane.measure([str(tmp_path / "wave.png")], above=0.3, plot=tmp_path / "plots" / "power.png")
    assert found["high_share"] == pytest.approx(1, abs=1e-3)
    bands = found["bands"]
    assert bands["vertical"][0] == max(bands["horizontal"] + bands["vertical"] + bands["diagonal"])
    assert bands["cycles_per_pixel"][0] == [0.25, 0.5]
    assert Image.open(tmp_path / "plots" / "power.png").width > 1000
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_every_direction_of_a_field_has_its_slope(tmp_path: Path) -> None:
    found = plane.measure([str(folder_of(tmp_path / "images", 2))], sectors=6)
    directions = found["directions"]
    assert directions["degrees"] == [0, 30, 60, 90, 120, 150]
    for alpha, error in zip(directions["alpha"], directions["alpha_error"], strict=True):
        assert alpha == pytest.approx(2, abs=0.2)
        assert 0 < error < 0.2


def test_the_difference_of_pairs_is_where_it_was_made(tmp_path: Path) -> None:
    for name, cycles in (("a", 0.125), ("b", 0.375)):
        (tmp_path / name).mkdir()
        wave(0.25).save(tmp_path / name / "same.png")
        wave(cycles).save(tmp_path / name / "wave.png")
    places = (str(tmp_path / "a"), str(tmp_path / "b"))
    found = plane.compare(*places, above=0.3, window="none", plot=tmp_path / "d.svg")
    assert (found["pairs"], found["images"], found["size"]) == (2, [2, 2], [64, 64])
    assert found["high_share"] == pytest.approx(0.5, abs=1e-2)
    assert (tmp_path / "d.svg").read_text().lstrip().startswith("<?xml")


def test_several_sets_are_compared_with_the_first(tmp_path: Path) -> None:
    sets = {alpha: folder_of(tmp_path / f"set{alpha}", alpha, count=4) for alpha in (2, 1, 3)}
    report = measure(compare=[f"data={sets[2]}", f"rough={sets[1]}", str(sets[3])])
    assert list(report["sets"]) == ["data", "rough", "set3"]
    assert report["high_error"] == report["sets"]["rough"]["high_error"] == report["rough high_error"] > 0.5
    assert report["sets"]["set3"]["alpha"] == pytest.approx(3, abs=0.2)
    assert report["distance_db"] > 3


def test_a_mask_leaves_out_the_other_half(tmp_path: Path) -> None:
    left, right = wave(0.375, size=128), wave(0.0625, size=128)
    halves = Image.new("L", (128, 128))
    halves.paste(left.crop((0, 0, 64, 128)), (0, 0))
    halves.paste(right.crop((64, 0, 128, 128)), (64, 0))
    halves.save(tmp_path / "halves.png")
    mask = Image.new("L", (128, 128))
    mask.paste(255, (0, 0, 64, 128))
    mask.save(tmp_path / "mask.png")
    shares = [
        plane.measure([str(tmp_path / "halves.png")], above=0.2, mask=given)["high_share"]
        for given in (None, tmp_path / "mask.png")
    ]
    assert shares[0] < 0.7 < 0.9 < shares[1]
    whole = Image.new("L", (128, 128), 255)
    whole.save(tmp_path / "white.png")
    radial = [
        measure([str(tmp_path / "halves.png")], mask=given)["radial"]["power"]
        for given in (None, tmp_path / "white.png")
    ]
    assert radial[0] == radial[1]


def test_floating_pixels_keep_their_values(tmp_path: Path) -> None:
    values = np.random.default_rng(0).random((32, 40), dtype=np.float32)
    Image.fromarray(values).save(tmp_path / "float.tif")
    found = measure([str(tmp_path / "float.tif")])
    expected = spectra.radial_spectrum(torch.from_numpy(values).expand(1, 1, -1, -1)).power
    assert found["radial"]["power"] == pytest.approx(expected.tolist(), rel=1e-5)
    values[3, 4] = np.nan
    Image.fromarray(values).save(tmp_path / "nan.tif")
    with pytest.raises(SpectralError, match="NaN or infinity"):
        measure([str(tmp_path / "nan.tif")])


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["power", "missing"], "No images at missing"),
        (["power", "emoji64", "--sectors", "1"], "number of directions is 1"),
        (["power", "emoji64", "--plot", "x.gif"], "x.gif"),
        (["difference", "emoji64"], "other"),
        (["emoji64", "--mask", "missing.png"], "missing.png cannot be read"),
        (["--compare", "emoji64"], "two sets"),
        (["power"], "paths"),
        ([""], "an empty path"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_is_one_sentence(
    words: list[str], says: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.run(command.main, words) == 2
    out, err = capsys.readouterr()
    assert out == "" and says in err.splitlines()[-1] and "Traceback" not in err
    assert list(tmp_path.iterdir()) == []
