"""The commands that report, as a person calls them: one JSON object on standard output, and what they leave on disk."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from spectral_diffusion.spectral import checkpoint, presets
from spectral_diffusion.spectral.config import ModelConfig
from spectral_diffusion.training import cli
from spectral_diffusion.training.demo import demo

from . import tiny

COUNTS = json.loads((Path(__file__).parents[1] / "manifests" / "architectures.json").read_text())


def reported(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> Any:
    """What a command prints, all of which must be one JSON value."""
    assert cli.main(arguments) == 0
    return json.loads(capsys.readouterr().out)


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert cli.main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and len(captured.err.splitlines()) == 1
    return captured.err


@pytest.mark.parametrize("role", ["teacher", "lite", "student"])
@pytest.mark.parametrize("name", presets.PRESETS)
def test_inspect_tells_every_preset(name: str, role: str, capsys: pytest.CaptureFixture[str]) -> None:
    report = reported(["inspect", "--preset", f"{name}-{role}", "--json"], capsys)
    assert {"kind", "preset", "params", "macs", "latent", "first_stage", "conditioning", "schedule"} <= set(report)
    assert (report["kind"], report["preset"]) == (role, f"{name}-{role}")
    if name in COUNTS:
        assert report["params"] == COUNTS[name][role]["params"]
        assert report["macs"] == COUNTS[name][role]["macs_conv_linear"]
    latent = report["latent"]
    assert latent["channels"] == report["unet"]["in_channels"] and latent["size"] == report["unet"]["image_size"]


@pytest.mark.parametrize("name", ["cin256_v2", "lsun_churches256"])
def test_inspect_calls_a_published_teacher_by_its_name(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    report = reported(["inspect", "--teacher", name, "--json"], capsys)
    assert report == reported(["inspect", "--preset", f"{name}-teacher", "--json"], capsys)


def test_inspect_tells_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tiny.teacher(tmp_path / "teacher.safetensors")
    report = reported(["inspect", str(path), "--json"], capsys)
    opened = checkpoint.load(path)
    assert opened.unet is not None
    assert report["params"] == sum(parameter.numel() for parameter in opened.unet.parameters())
    assert (report["kind"], report["sha256"]) == ("teacher", opened.file.sha256)
    assert report["modelspec"]["license"] == "Apache-2.0"
    assert report["latent"] == {"channels": 4, "size": 8, "image_size": 16, "scale_factor": 0.5}
    assert cli.main(["inspect", str(path)]) == 0
    assert f"{report['params']:,}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "one of"),
        (["--preset", "ffhq"], "ffhq"),
        (["--teacher", "nobody"], "nobody"),
        (["nowhere.safetensors"], "nowhere.safetensors"),
        (["a.safetensors", "--preset", "ffhq256-student"], "one of"),
    ],
    ids=" ".join,
)
def test_what_inspect_cannot_tell_is_a_sentence(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert says in refused(["inspect", *arguments], capsys)


def test_sample_leaves_pictures_and_a_grid(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same seed gives the same pictures, whatever is made beside them; what else lies there is left alone."""
    path, out = tiny.teacher(tmp_path / "teacher.safetensors"), tmp_path / "samples"
    given = ["sample", str(path), "--out", str(out), "--steps", "2", "--json"]
    report = reported([*given, "red", "blue", "--count", "2", "--seed", "5"], capsys)
    assert report["images"] == [str(out / "images" / f"{index:03d}.png") for index in range(4)]
    first = [np.asarray(Image.open(file)) for file in report["images"]]
    assert all(image.shape == (16, 16, 3) for image in first) and (first[0] != first[1]).any()
    with Image.open(report["grid"]) as grid:
        assert grid.width > 2 * 16
    assert reported([*given, "red", "--seed", "5"], capsys)["images"] == [str(out / "images" / "000.png")]
    assert len(list((out / "images").iterdir())) == 4
    assert (np.asarray(Image.open(out / "images" / "000.png")) == first[0]).all()
    reported([*given, "red", "--seed", "6"], capsys)
    assert (np.asarray(Image.open(out / "images" / "000.png")) != first[0]).any()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["green"], "No class 'green'"),
        (["red", "--count", "0"], "--count is 0"),
        (["red", "--steps", "0"], "steps"),
        (["red", "--size", "15"], "size is 15"),
        (["red", "--size", "4000000"], "size is 4000000"),
        (["red", "--guidance", "nan"], "guidance is nan"),
        (["red", "--seed", "-1"], "seed is -1"),
    ],
    ids=" ".join,
)
def test_what_sample_cannot_make_is_a_sentence(
    arguments: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tiny.teacher(tmp_path / "teacher.safetensors")
    assert says in refused(["sample", str(path), *arguments, "--out", str(tmp_path / "samples")], capsys)
    assert not (tmp_path / "samples").exists()


def test_spectrum_prints_numbers_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tiny.pictures(tmp_path / "a", size=64)
    report = reported(["spectrum", str(folder), "--json"], capsys)
    assert {"alpha", "alpha_error", "radial"} <= set(report)
    assert set(report["radial"]) >= {"cycles_per_pixel", "power", "count"}
    # A slope through two rings has no error.
    narrow = reported(["spectrum", str(folder), "--low", "0.2", "--high", "0.225", "--json"], capsys)
    assert narrow["alpha_error"] is None and narrow["alpha"] is not None


def test_spectrum_compares_sets_of_one_size_each(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    large, small = tiny.pictures(tmp_path / "large", size=64), tiny.pictures(tmp_path / "small", size=32)
    given = ["spectrum", "--compare", str(large), str(small), "--cutoff", "8", "--json"]
    report = reported(given, capsys)
    assert {"low_error", "high_error", "cutoff"} <= set(report) and report["low_error"] > 0
    Image.new("RGB", (48, 64)).save(large / "red" / "other.png")
    said = refused(given, capsys)
    assert "other.png is 48×64 pixels" in said and "64×64" in said


def test_demo_leaves_student_grid_plot_and_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two steps of training make no pictures, but everything else that the command is for."""
    out = tmp_path / "demo"
    report = demo(out, steps=2, seed=0, sample_steps=2)
    assert json.loads((out / "report.json").read_text()) == report
    assert set(report["models"]) == {"data", "teacher", "lite", "student"}
    sizes = {name: report["models"][name]["params"] for name in ("teacher", "lite", "student")}
    assert 4 * sizes["student"] < sizes["teacher"] and sizes["student"] < sizes["lite"]
    assert all(report["models"][name][band] > 0 for name in sizes for band in ("low_error", "high_error"))
    assert checkpoint.read(out / "student.safetensors").config.kind == "student"
    for name in ("grid.png", "spectra.png"):
        with Image.open(out / name) as picture:
            assert picture.width > 600
    for name in sizes:
        assert len(list((out / "samples" / name).glob("*.png"))) == report["images"]


def test_class_names_must_leave_room_for_the_null_class(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = ModelConfig(
        "teacher", tiny.CONDITIONED, tiny.FIRST_STAGE, replace(tiny.CLASSES, class_names=("a", "b", "c"))
    )
    path = checkpoint.save(tmp_path / "full.safetensors", config)
    assert "full.safetensors describes what cannot be built: conditioning.n_classes is 3" in refused(
        ["inspect", str(path)], capsys
    )
