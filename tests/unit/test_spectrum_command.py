"""The `spectrum` command on files that the tests write, and the figures that the kit draws."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from spectral_diffusion.spectral import colours
from spectral_diffusion.spectral import spectrum as spectra
from spectral_diffusion.spectral.errors import SpectralError
from spectral_diffusion.training import figures
from spectral_diffusion.training.spectrum import measure


def picture(alpha: float, size: tuple[int, int], seed: int) -> Image.Image:
    """An 8-bit RGB image whose three channels fall as 1/f^α around mid-grey."""
    rows, columns = np.fft.fftfreq(size[0])[:, None], np.fft.fftfreq(size[1])[None, :]
    amplitude = (rows**2 + columns**2).clip(min=1e-9) ** (-alpha / 4)
    amplitude[0, 0] = 0
    white = np.random.default_rng(seed).standard_normal((3, *size))
    field = np.fft.ifft2(np.fft.fft2(white) * amplitude).real
    return Image.fromarray((127.5 + 30 * field / field.std()).clip(0, 255).astype(np.uint8).transpose(1, 2, 0).copy())


def folder_of(place: Path, alpha: float, count: int = 6, size: tuple[int, int] = (128, 128)) -> Path:
    place.mkdir(parents=True)
    for seed in range(count):
        picture(alpha, size, seed).save(place / f"{seed}.png")
    return place


@pytest.mark.parametrize("alpha", [0.0, 2.0])
def test_a_folder_has_its_slope_and_a_report_that_is_json(alpha: float, tmp_path: Path) -> None:
    report = measure([str(folder_of(tmp_path / "images", alpha))])
    assert report["alpha"] == pytest.approx(alpha, abs=0.05)
    assert 0 < report["alpha_error"] < 0.05
    radial = report["radial"]
    assert len(radial["cycles_per_pixel"]) == len(radial["power"]) == len(radial["count"]) == len(radial["std"])
    assert sum(radial["count"]) == 128 * 128 - 1
    assert json.loads(json.dumps(report, allow_nan=False)) == report


def test_files_folders_and_shards_hold_the_same_spectrum(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "images", 2, count=2)
    shard = tmp_path / "images.tar"
    with tarfile.open(shard, "w") as archive:
        for file in sorted(folder.iterdir()):
            archive.add(file, arcname=f"a/{file.name}")
            archive.addfile(tarfile.TarInfo(f"a/{file.stem}.json"), io.BytesIO())
    expected = measure([str(folder)])
    assert expected["images"] == 2
    assert measure([str(shard)]) == expected
    assert measure([str(file) for file in sorted(folder.iterdir())]) == expected


def test_the_shipped_emoji_fall_steeper_than_photographs() -> None:
    assert measure(["emoji64"])["alpha"] > 2.5


def test_sizes_and_modes_mix(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "images", 2, count=3)
    picture(2, (64, 80), 9).save(folder / "small.webp", lossless=True)
    picture(2, (96, 65), 10).convert("L").save(folder / "grey.png")
    report = measure([str(folder)], gray=True)
    assert (report["images"], report["size"]) == (5, [108.8, 105.8])
    assert report["alpha"] == pytest.approx(2, abs=0.15)


def test_sixteen_bits_and_transparency(tmp_path: Path) -> None:
    ramp = np.tile(np.arange(64, dtype=np.uint16) * 1000, (64, 1))
    Image.fromarray(ramp).save(tmp_path / "deep.png")
    plain = spectra.radial_spectrum(torch.from_numpy(ramp / 65535).expand(1, 1, -1, -1)).power
    assert measure([str(tmp_path / "deep.png")])["radial"]["power"] == pytest.approx(plain.tolist(), rel=1e-4, abs=1e-9)
    Image.new("RGBA", (32, 32), (200, 0, 0, 0)).save(tmp_path / "clear.png")
    clear = measure([str(tmp_path / "clear.png")])
    assert clear["alpha"] is None
    assert not any(clear["radial"]["power"])


def test_compare_finds_the_band_that_is_missing(tmp_path: Path) -> None:
    sharp, soft = folder_of(tmp_path / "sharp", 2), tmp_path / "soft"
    soft.mkdir()
    for file in sharp.iterdir():
        image = Image.open(file)
        image.resize((64, 64), Image.Resampling.BOX).resize(image.size, Image.Resampling.BICUBIC).save(soft / file.name)
    report = measure(compare=[str(sharp), str(soft)], cutoff=12, plot=tmp_path / "figure" / "compare.png")
    assert report["low_error"] < 0.2
    assert report["high_error"] > 5 * report["low_error"]
    assert report["other"]["alpha"] > report["reference"]["alpha"] + 0.5
    assert Image.open(tmp_path / "figure" / "compare.png").size[0] > 800
    same = measure(compare=[str(sharp), str(sharp)])
    assert (same["low_error"], same["high_error"]) == (0, 0)


def test_mistakes_are_named(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "images", 1, count=1, size=(32, 32))
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.png").write_text("not an image")
    (tmp_path / "broken.tar").write_bytes(b"x" * 2000)
    Image.new("RGB", (8, 40)).save(tmp_path / "tiny.png")
    (tmp_path / "cut.png").write_bytes((folder / "0.png").read_bytes()[:900])
    for paths, says in {
        "missing": "No images at .*missing",
        "empty": "empty holds no images",
        "text.png": r"text\.png cannot be read as an image",
        "cut.png": r"cut\.png cannot be read as an image",
        "broken.tar": r"broken\.tar cannot be read",
        "tiny.png": r"tiny\.png is 8×40 pixels.*16 or more",
    }.items():
        with pytest.raises(SpectralError, match=says):
            measure([str(tmp_path / paths)])
    with pytest.raises(SpectralError, match="No images to measure"):
        measure()
    with pytest.raises(SpectralError, match="not both"):
        measure([str(folder)], compare=[str(folder), str(folder)])
    with pytest.raises(SpectralError, match="two sets.*not 1"):
        measure(compare=[str(folder)])
    with pytest.raises(SpectralError, match="cut-off of 28"):
        measure(compare=[str(folder), str(folder)], plot=tmp_path / "never.png")
    with pytest.raises(SpectralError, match=r"figure\.gif.*\.png"):
        measure([str(folder)], plot=tmp_path / "figure.gif")
    assert not (tmp_path / "never.png").exists()


def test_a_model_keeps_its_colour() -> None:
    alone = colours.of_names(["student"])
    together = colours.of_names(["data", "mine", "teacher", "emoji64-student (fp16)", "student too", "other"])
    assert alone["student"] == together["emoji64-student (fp16)"] == colours.MODELS["student"]
    assert len(set(together.values())) == 6


@pytest.mark.parametrize("suffix", [".png", ".svg", ".pdf"])
def test_a_plot_of_flat_and_of_single_images_is_drawn(suffix: str, tmp_path: Path) -> None:
    sets = {"data": torch.zeros(1, 3, 32, 32), "student": torch.rand(1, 3, 48, 32)}
    path = tmp_path / "new" / f"plot{suffix}"
    figures.plot_radial_spectra({name: spectra.radial_spectrum(x) for name, x in sets.items()}, path, cutoff=10)
    assert path.stat().st_size > 5000


def test_a_grid_shows_every_pixel_in_its_row(tmp_path: Path) -> None:
    red, blue = torch.zeros(3, 3, 8, 8), torch.zeros(2, 3, 8, 8)
    red[:, 0], blue[:, 2] = 2.0, 1.0
    figures.save_grid({"red": red, "blue": blue}, tmp_path / "grid.png", scale=4)
    pixels = np.asarray(Image.open(tmp_path / "grid.png")).astype(int)
    assert (pixels == (255, 0, 0)).all(-1).sum() == 3 * 32 * 32
    assert (pixels == (0, 0, 255)).all(-1).sum() == 2 * 32 * 32
    top_of_blue, bottom_of_red = (np.nonzero((pixels == c).all(-1))[0] for c in ((0, 0, 255), (255, 0, 0)))
    assert top_of_blue.min() > bottom_of_red.max()


def test_grids_and_plots_say_what_is_wrong(tmp_path: Path) -> None:
    images = torch.zeros(2, 3, 8, 8)
    with pytest.raises(SpectralError, match=r"grid\.txt.*\.png"):
        figures.save_grid({"a": images}, tmp_path / "grid.txt")
    with pytest.raises(SpectralError, match="different sizes"):
        figures.save_grid({"a": images, "b": images[..., :4]}, tmp_path / "grid.png")
    with pytest.raises(SpectralError, match="rows of images"):
        figures.save_grid({"a": images[:, :1]}, tmp_path / "grid.png")
    with pytest.raises(SpectralError, match="scale.*0"):
        figures.save_grid({"a": images}, tmp_path / "grid.png", scale=0)
    with pytest.raises(SpectralError, match="at least one set"):
        figures.plot_radial_spectra({}, tmp_path / "plot.png")
    (tmp_path / "file").write_text("")
    with pytest.raises(SpectralError, match=r"grid\.png cannot be written"):
        figures.save_grid({"a": images}, tmp_path / "file" / "grid.png")
