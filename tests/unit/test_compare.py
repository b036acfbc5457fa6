"""The command `compare`: the reports of `evaluate`, of several models at once, and the picture of them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from spectral_diffusion.spectral.config import ModelConfig
from spectral_diffusion.spectral.errors import SpectralError
from spectral_diffusion.training import cli
from spectral_diffusion.training.compare import named

from . import tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher, a student of few steps, and pictures."""
    folder = tmp_path_factory.mktemp("compare")
    tiny.teacher(folder / "teacher.safetensors")
    few = ModelConfig("student", tiny.CONDITIONED, tiny.FIRST_STAGE, tiny.CLASSES, scale_factor=0.5, few_steps=3)
    tiny.write(folder / "few.safetensors", few)
    tiny.pictures(folder / "data")
    return folder


def command(folder: Path, out: Path, *models: str) -> list[str]:
    given = ["--data", str(folder / "data"), "--out", str(out), "--count", "6", "--columns", "4", "--batch", "3"]
    return ["compare", *(name.replace("@", f"{folder}/") for name in models), *given]


def test_every_model_is_measured_as_evaluate_does(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models = ("@teacher.safetensors", "our own=@few.safetensors")
    how = ["--seed", "5", "--cutoff", "4", "--json"]
    assert cli.main([*command(folder, tmp_path / "out", *models), *how]) == 0
    result: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert result == json.loads((tmp_path / "out" / "compare.json").read_text())
    teacher, ours = result["models"]
    assert (teacher["name"], ours["name"], ours["file"]) == ("teacher", "our own", "few.safetensors")
    assert (teacher["steps"], teacher["guidance"], ours["steps"], ours["guidance"]) == (50, 2.0, 3, 1.0)
    assert ours["file_bytes"] == (folder / "few.safetensors").stat().st_size
    alone = [
        "evaluate",
        str(folder / "few.safetensors"),
        "--data",
        str(folder / "data"),
        "--count",
        "6",
        "--batch",
        "3",
    ]
    assert cli.main([*alone, *how, "--out", str(tmp_path / "alone")]) == 0
    report = json.loads(capsys.readouterr().out)
    assert all(
        ours[name] == report[name] for name in ("fd_effnet", "low_error", "high_error", "alpha", "params", "macs")
    )
    assert result["about"]["data"]["sha256"] == report["data"]["sha256"] and result["about"]["samples"] == 6
    assert result["about"]["cutoff"] == report["cutoff"] == 4
    assert len(result["notes"]) == len(set(result["notes"])) and not any("(student)" in n for n in result["notes"])
    both, grid = (Image.open(tmp_path / "out" / name) for name in ("compare.png", "grid.png"))
    assert both.height == grid.height and both.width > grid.width
    assert both.convert("RGB").crop((0, 0, *grid.size)).tobytes() == grid.convert("RGB").tobytes()


def test_what_is_there_is_not_made_again(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(command(folder, tmp_path / "out", "few=@few.safetensors")) == 0
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "few" / "images").iterdir()}
    capsys.readouterr()
    assert cli.main(command(folder, tmp_path / "out", "few=@few.safetensors", "@teacher.safetensors")) == 0
    table = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in table[1:3]] == ["few", "teacher"]
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_what_cannot_be_compared_is_refused(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny.write(folder / "stage.safetensors", ModelConfig("autoencoder", first_stage=tiny.FIRST_STAGE))
    wide = replace(tiny.UNCONDITIONAL, image_size=16)
    tiny.write(folder / "wide.safetensors", ModelConfig("teacher", wide, tiny.FIRST_STAGE))
    for names, says in (
        (("@few.safetensors", "@few.safetensors"), "Two sets would be called few; tell them apart as NAME=FILE."),
        (("data=@few.safetensors",), "Two sets would be called data"),
        (("@missing.safetensors",), "missing.safetensors"),
        (("@few.safetensors", "@stage.safetensors"), "stage.safetensors cannot sample: it lacks a U-Net"),
        (("@few.safetensors", "@wide.safetensors"), "wide.safetensors makes 32 pixels, the first model 16"),
        (("@few.safetensors", "--columns=0"), "--columns is 0; expected at least 1 picture of each."),
    ):
        assert cli.main([*command(folder, tmp_path / "out"), *(n.replace("@", f"{folder}/") for n in names)]) == 2
        assert says in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_names_may_hold_equals_signs_of_paths(tmp_path: Path) -> None:
    strange = tmp_path / "lr=3.safetensors"
    strange.touch()
    assert named([str(strange), f"b={strange}"]) == {"lr=3": strange, "b": strange}
    with pytest.raises(SpectralError, match="Two sets would be called b"):
        named(["b=x", "c=y", "b=z"])


def test_what_is_kept_is_drawn_again(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    models = ("@teacher.safetensors", "our own=@few.safetensors")
    assert cli.main(command(folder, tmp_path / "out", *models)) == 0
    capsys.readouterr()
    assert cli.main(["results", str(tmp_path / "kept"), "--of", str(tmp_path / "out")]) == 0
    lines = [line.split("|")[1:-1] for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert [line[0].strip() for line in lines[2:]] == ["teacher", "our own"] and len({*map(len, lines)}) == 1
    kept, made = tmp_path / "kept", tmp_path / "out"
    assert {path.name for path in (kept / "reports").iterdir()} == {"teacher.json", "our-own.json"}
    assert (kept / "spectra.png").read_bytes() == (made / "spectra.png").read_bytes()
    with Image.open(kept / "compare.jpg") as ours, Image.open(made / "compare.png") as known:
        assert ours.size == known.size
    assert not any(str(folder) in path.read_text() for path in kept.rglob("*.json"))
