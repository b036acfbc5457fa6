"""Evaluation: scores against other commands, samples that survive a stop, data that is damaged, a page to read."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from spectral_diffusion.spectral import checkpoint
from spectral_diffusion.spectral.config import ModelConfig
from spectral_diffusion.spectral.errors import SpectralError
from spectral_diffusion.training import cli, spectrum
from spectral_diffusion.training.data.config import DataConfig
from spectral_diffusion.training.data.dataset import open_images
from spectral_diffusion.training.data.reading import Reader
from spectral_diffusion.training.evaluation import samples
from spectral_diffusion.training.evaluation.config import CUTOFF, default_cutoff
from spectral_diffusion.training.evaluation.measures import cautions
from spectral_diffusion.training.evaluation.reference import look_through, open_reference, stand_in
from spectral_diffusion.training.sample import sample_checkpoint

from . import clip, evaluation, tiny
from .evaluation import SHORT, again, common, model, pictures, report_of


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return evaluation.place(tmp_path_factory.mktemp("evaluate"))


@pytest.fixture
def copied(place: Path, tmp_path: Path) -> Path:
    """The same folder, to change."""
    return Path(shutil.copytree(place, tmp_path / "place"))


def refusal(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The sentence with which `evaluate` ends in exit code 2."""
    assert cli.main(["evaluate", *arguments]) == 2
    captured = capsys.readouterr()
    said = captured.err.strip().splitlines()
    assert len(said) == 1 and captured.out == ""
    return said[0]


# What the folder holds


def test_every_score_and_fact_is_reported(place: Path) -> None:
    report = report_of(place)
    for key in ("fd_effnet", "kid_effnet", "kid_effnet_std", "low_error", "high_error", "alpha", "images_per_s"):
        assert isinstance(report[key], float), key
    assert not {"fid", "clip_score"} & set(report)
    assert (report["images"], report["size"], report["data"]["images"]) == (8, 16, 8)
    assert report["checkpoint"]["sha256"] == checkpoint.sha256(place / "model.safetensors")
    assert report["sampling"]["steps"] == 3 and report["sampling"]["guidance"] == 2.0
    assert report["features"]["efficientnet_lite0"]["sha256"].startswith("57934424")
    assert report["throughput"]["images"] == 8 and report["throughput"]["processes"] == 1
    assert any("1,120" in note for note in report["notes"])


def test_size_is_what_inspect_says(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["inspect", str(place / "model.safetensors"), "--json"]) == 0
    inspected = json.loads(capsys.readouterr().out)
    report = report_of(place)
    assert (report["params"], report["macs"]) == (inspected["params"], inspected["macs"])


def test_band_errors_are_those_of_the_spectrum_command(place: Path) -> None:
    report = report_of(place)
    both = [str(place / "data"), str(place / "out" / "images")]
    measured = spectrum.measure(compare=both, cutoff=3.0)
    assert report["low_error"] == pytest.approx(measured["low_error"], abs=1e-4)
    assert report["high_error"] == pytest.approx(measured["high_error"], abs=1e-4)
    assert report["alpha"] == pytest.approx(measured["other"]["alpha"], abs=1e-4)
    np.testing.assert_allclose(report["spectra"]["student"]["power"], measured["other"]["radial"]["power"], rtol=1e-5)


def test_image_i_depends_on_seed_i_and_prompt_alone(place: Path) -> None:
    data = open_images(DataConfig(str(place / "data"), 16))
    order = samples.order_of(len(data), 8, seed=0)
    opened = checkpoint.load(place / "model.safetensors")
    five = sample_checkpoint(opened, [data.subgroups[order[5]]], steps=3, indices=[5])[0]
    written = np.asarray(Image.open(place / "out" / "images" / "000005.png"))
    assert np.array_equal(written, (five.movedim(0, -1) * 255).round().byte().numpy())


def test_every_image_of_the_data_is_asked_for_before_one_comes_again() -> None:
    order = samples.order_of(10, 25, seed=3)
    assert sorted(order[:10]) == sorted(order[10:20]) == list(range(10)) and order[:10] != order[10:20]
    assert order[:7] == samples.order_of(10, 7, seed=3) != samples.order_of(10, 7, seed=4)


def test_pictures_that_are_the_data_have_no_distance_from_it(place: Path, tmp_path: Path) -> None:
    images = str(place / "data")
    out = str(tmp_path / "out")
    assert cli.main(["evaluate", "--images", images, "--data", images, "--out", out]) == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["fd_effnet"] == pytest.approx(0, abs=1e-3)
    assert (report["low_error"], report["high_error"]) == (0, 0)
    assert report["params"] is None and report["images_per_s"] is None
    assert not (tmp_path / "out" / "images").exists()


def test_pictures_made_before_have_the_scores_of_their_sampling(place: Path, tmp_path: Path) -> None:
    """And a checkpoint beside them says what made them."""
    made = ["--images", str(place / "out" / "images"), "--data", str(place / "data"), "--out", str(tmp_path)]
    assert cli.main(["evaluate", str(place / "model.safetensors"), *made]) == 0
    report, before = json.loads((tmp_path / "report.json").read_text()), report_of(place)
    for key in ("fd_effnet", "kid_effnet", "low_error", "high_error", "params", "macs"):
        assert report[key] == pytest.approx(before[key], rel=1e-3), key


# The page


def test_the_page_is_whole_and_escapes_what_files_say(tmp_path: Path) -> None:
    model(tmp_path / "model.safetensors", "text")
    tiny.pictures(tmp_path / "data", count=4)
    for path in tmp_path.glob("data/*/*.png"):
        path.with_suffix(".txt").write_text("<script>alert('1')</script> & \"two\"")
    assert again(tmp_path, "--subgroups", "blue", "red", short=("--steps", "1", "--count", "4")) == 0
    html = (tmp_path / "out" / "report.html").read_text()
    assert "<script" not in html and "&lt;script&gt;alert(&#x27;1&#x27;)&lt;/script&gt; &amp; &quot;two&quot;" in html
    sources = re.findall(r"(?:src|href)='([^']*)'", html)
    assert len(sources) == 4 + 4 + 1 and all(source.startswith("data:image/") for source in sources)
    for said in ("FD-EffNet", "Not FID", "High-band error", "Throughput", "prefers-color-scheme: dark"):
        assert said in html
    with Image.open(tmp_path / "out" / "grid.png") as grid, Image.open(tmp_path / "out" / "spectra.png") as plot:
        assert grid.height > 2 * 2 * 16 and plot.width > 500


def test_an_unconditional_model_is_shown_beside_the_data(tmp_path: Path) -> None:
    tiny.write(tmp_path / "model.safetensors", ModelConfig("lite", tiny.UNCONDITIONAL, tiny.FIRST_STAGE))
    tiny.pictures(tmp_path / "data", count=4)
    assert again(tmp_path, short=("--steps", "1", "--count", "5")) == 0
    assert report_of(tmp_path)["sampling"]["data"] is None
    assert (tmp_path / "out" / "report.html").read_text().count("<figure>") == 10


# The data


def test_images_that_cannot_be_read_are_left_out_and_counted(copied: Path, tmp_path: Path) -> None:
    """The scores are those against the others alone; the page shows no picture beside them."""
    broken = copied / "data" / "blue" / "blue-2.png"
    broken.write_bytes(broken.read_bytes()[:100])
    made = ["--images", str(copied / "out" / "images"), "--out"]
    assert cli.main(["evaluate", *made, str(tmp_path / "a"), "--data", str(copied / "data"), "--max-corrupt", "1"]) == 0
    shutil.copytree(copied / "data", tmp_path / "good")
    (tmp_path / "good" / "blue" / "blue-2.png").unlink()
    assert cli.main(["evaluate", *made, str(tmp_path / "b"), "--data", str(tmp_path / "good")]) == 0
    report, expected = report_of(tmp_path, "a"), report_of(tmp_path, "b")
    for key in ("fd_effnet", "kid_effnet", "low_error", "high_error", "alpha_data"):
        assert report[key] == pytest.approx(expected[key], rel=1e-6), key
    assert report["data"]["images"] == 7
    assert "1 of the 8 images of the data cannot be read and were left out." in report["notes"]
    (line,) = (tmp_path / "a" / "corrupt.log").read_text().splitlines()
    assert json.loads(line)["file"] == str(broken)
    assert (tmp_path / "a" / "report.html").read_text().count("alt='data'") == 7


def test_too_many_unreadable_images_are_a_sentence(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (copied / "data" / "red" / "red-1.png").write_bytes(b"no picture")
    arguments = ["--images", str(copied / "out" / "images"), "--data", str(copied / "data"), "--out", str(copied / "o")]
    said = refusal([*arguments, "--max-corrupt", "0"], capsys)
    assert "1 of the images of" in said and "more than data.max_corrupt 0 allows" in said and "red-1.png" in said
    assert not (copied / "o" / "report.json").exists()


def test_the_data_is_read_a_batch_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.pictures(tmp_path / "data", 10)
    data = open_reference(DataConfig(str(tmp_path / "data"), workers=0), 16)
    read: list[str] = []
    whole = Reader.read
    monkeypatch.setattr(Reader, "read", lambda self, record: read.append(record.key) or whole(self, record))
    seen, told = [], []
    for images, captions in look_through(data, 4, tmp_path / "corrupt.log"):
        seen.append(images)
        told += captions
        assert len(read) == sum(map(len, seen))
    files = sorted((tmp_path / "data").rglob("*.png"))
    assert [len(images) for images in seen] == [4, 4, 2] and told == [file.stem.replace("-", " ") for file in files]
    pixels = np.stack([np.asarray(Image.open(file)).transpose(2, 0, 1) for file in files])
    assert np.array_equal((torch.cat(seen) * 255).round().numpy(), pixels)


def test_what_cannot_be_read_is_stood_in_for_by_the_next(tmp_path: Path) -> None:
    files = sorted(tiny.pictures(tmp_path / "data", 10).rglob("*.png"))
    files[3].write_bytes(b"no picture")
    config = DataConfig(str(tmp_path / "data"), workers=0)
    shown = stand_in(open_reference(config, 16), [5, 3, 0])
    expected = np.stack([np.asarray(Image.open(files[index])).transpose(2, 0, 1) for index in (5, 4, 0)])
    assert np.array_equal((shown * 255).round().numpy(), expected)
    data = open_reference(replace(config, max_corrupt=0), 16)
    with pytest.raises(SpectralError, match="cannot be read any more"):
        stand_in(data, [3])


def test_streams_and_latents_are_no_images(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cached = ["data", "cache", "--data", str(place / "data"), "--first-stage", str(place / "model.safetensors")]
    assert cli.main([*cached, "--out", str(tmp_path / "latents")]) == 0
    capsys.readouterr()
    for path, says in ((str(tmp_path / "latents"), "holds cached latents; expected images"), ("pipe:cat", "a stream")):
        arguments = [str(place / "model.safetensors"), "--data", path, "--out", str(tmp_path / "out"), *SHORT]
        assert says in refusal(arguments, capsys)
    assert not (tmp_path / "out").exists()


# What is refused


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--steps", "4"], "made with steps = 3, not 4"),
        (["--seed", "1"], "made with seed = 0, not 1"),
        (["--guidance", "1"], "made with guidance = 2.0, not 1"),
        (["--size", "18"], "made with size = 16, not 18"),
        (["--size", "17"], "multiples of 2"),
        (["--count", "3"], "at least 4"),
        (["--steps", "0"], "steps is 0"),
        (["--steps", "1001"], "1 to 1000 steps"),
        (["--seed", "-1"], "seed is -1"),
        (["--guidance", "nan"], "guidance is nan"),
        (["--batch", "0"], "at least 1 image"),
        (["--cutoff", "12"], "choose one from 2 to 8"),
        (["--data", "nowhere"], "No data at nowhere"),
        (["--inception", "nowhere.pth"], "nowhere.pth"),
        (["--images", "nowhere"], "No folder of images at nowhere"),
    ],
    ids=" ".join,
)
def test_what_does_not_fit_is_a_sentence(
    options: list[str], says: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = pictures(place / "out"), report_of(place)
    assert says in refusal([str(place / "model.safetensors"), *common(place), *SHORT, *options], capsys)
    assert (pictures(place / "out"), report_of(place)) == before


def test_samples_of_another_checkpoint_are_refused(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny.teacher(copied / "other.safetensors")
    arguments = [str(copied / "other.safetensors"), *common(copied), *SHORT]
    assert "made with checkpoint = " in refusal(arguments, capsys)
    (copied / "out" / "samples.json").write_text("{")
    assert "damaged" in refusal(arguments, capsys)
    (copied / "out" / "samples.json").unlink()
    assert "nothing says of what" in refusal(arguments, capsys)


def test_nothing_to_evaluate_is_a_sentence(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "give a checkpoint, or --images" in refusal(common(place), capsys)


def test_pictures_of_another_size_are_named(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("RGB", (20, 16)).save(copied / "out" / "images" / "000003.png")
    arguments = ["--images", str(copied / "out" / "images"), "--data", str(copied / "data"), "--out", str(copied / "o")]
    assert "000003.png is 20×16 pixels, others 16×16" in refusal(arguments, capsys)
    assert not (copied / "o").exists()


def test_a_model_of_classes_has_no_clip_score(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_file(dict(clip.in_open_clip().state_dict()), tmp_path / "clip.safetensors")
    arguments = [str(place / "model.safetensors"), *common(place), *SHORT, "--clip", str(tmp_path / "clip.safetensors")]
    assert "does not draw from text" in refusal(arguments, capsys)


# Cautions and defaults


def test_small_counts_are_pointed_out() -> None:
    assert cautions({"data": 50_000, "student": 50_000}, True, CUTOFF) == []
    few = cautions({"data": 5000, "student": 1000}, True, 12.0)
    assert len(few) == 3 and "FD-EffNet comes out too high" in few[0] and "FID says little" in few[1]
    assert all("1000 images (student)" in note for note in few[:2]) and "12 cycles" in few[2]
    assert "KID-EffNet is noisy" in cautions({"data": 100, "student": 5000}, False, CUTOFF)[1]


def test_the_cutoff_is_that_of_table_1_or_of_the_demo() -> None:
    assert (default_cutoff(256), default_cutoff(512), default_cutoff(64)) == (28, 28, 12)
