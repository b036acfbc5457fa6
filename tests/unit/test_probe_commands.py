"""The subcommands of `spectrum` on tiny models: their numbers against the library's, figures, and what they refuse."""

from __future__ import annotations

import importlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from spectral_diffusion.spectral import checkpoint, presets
from spectral_diffusion.spectral.config import ModelConfig, ScheduleConfig
from spectral_diffusion.spectral.errors import SpectralError
from spectral_diffusion.training import cli
from spectral_diffusion.training.spectrum import __main__ as command
from spectral_diffusion.training.spectrum import opening

from . import tiny


def run(capsys: pytest.CaptureFixture[str], *argv: object) -> dict[str, Any]:
    """What a subcommand prints with --json, which must be one object and nothing else."""
    assert cli.main(["spectrum", *map(str, argv), "--json"]) == 0
    return json.loads(capsys.readouterr().out)  # type: ignore[no-any-return]


def refused(capsys: pytest.CaptureFixture[str], *argv: object) -> str:
    """The one sentence that a subcommand refuses with."""
    assert cli.main(["spectrum", *map(str, argv)]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and len(printed.err.strip().splitlines()) == 1
    return printed.err


def is_figure(path: Path) -> bool:
    with Image.open(path) as image:
        return min(image.size) > 400 and len(image.convert("L").resize((64, 64)).getcolors()) > 8


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.teacher(tmp_path_factory.mktemp("models") / "tiny-teacher.safetensors")


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = ModelConfig("student", tiny.UNCONDITIONAL, tiny.FIRST_STAGE, scale_factor=0.5)
    return tiny.write(tmp_path_factory.mktemp("models") / "tiny-student.safetensors", config)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.pictures(tmp_path_factory.mktemp("pictures"))


def test_help_lists_the_subcommands_behind_the_images_own(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command.main(["--help"])
    said = capsys.readouterr().out
    assert "--compare" in said and all(f"  {name} " in said for name in command.SUBCOMMANDS)


@pytest.mark.parametrize("name", ["wiener", "filters", "response", "evolution"])
def test_every_subcommand_has_a_help_of_its_own(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command.main([name, "--help"])
    said = capsys.readouterr().out
    assert said.startswith(f"usage: spectral-diffusion spectrum {name}") and "--plot" in said and "--json" in said


def test_the_first_word_alone_chooses(monkeypatch: pytest.MonkeyPatch) -> None:
    """A toy's module is imported when it is asked for; a path with a subcommand's name is one of images."""
    monkeypatch.setattr(importlib, "import_module", lambda name, package: pytest.fail(f"{name} was imported"))
    with pytest.raises(SpectralError, match="No images at wiener"):
        command.main(["./wiener"])
    called: list[object] = []

    class Toy:
        main = staticmethod(called.append)

    def imported(name: str, package: str) -> type[Toy]:
        called.append((name, package))
        return Toy

    monkeypatch.setattr(importlib, "import_module", imported)
    command.main(["toy-1d", "--json"])
    assert called == [("..toys.toy_1d", "spectral_diffusion.training.spectrum"), ["--json"]]


def test_wiener_of_numbers_is_the_closed_form(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plot = tmp_path / "new" / "wiener.png"
    given = ("--linear-start", 0.001, "--linear-end", 0.01, "--steps", 500, "--alpha", 1.5, "--amplitude", 0.1)
    said = run(capsys, "wiener", *given, "--at", 400, 100, "--plot", plot)
    alpha = np.cumprod(1 - np.linspace(0.001**0.5, 0.01**0.5, 500) ** 2)[[100, 400]]
    power = 0.1 / np.array(said["cycles_per_pixel"]) ** 1.5
    assert said["steps"] == [100, 400]
    np.testing.assert_allclose(said["alpha_bar"], alpha)
    whole = alpha[:, None] * power + 1 - alpha[:, None]
    np.testing.assert_allclose(said["reconstruction"], alpha[:, None] ** 0.5 * power / whole)
    np.testing.assert_allclose(said["noise_prediction"], (1 - alpha[:, None]) ** 0.5 / whole)
    expected = np.clip((alpha * 0.1 / (1 - alpha)) ** (1 / 1.5), None, 0.5)
    np.testing.assert_allclose(said["bandwidth"], expected, rtol=1e-6)
    assert is_figure(plot)


def test_wiener_takes_schedules_and_powers_from_where_it_is_told(
    tmp_path: Path, pictures: Path, student: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stable = ScheduleConfig(0.00085, 0.012)
    said = run(capsys, "wiener", "--preset", "stable_diffusion_1-student")
    alpha = np.cumprod(1 - np.linspace(stable.linear_start**0.5, stable.linear_end**0.5, 1000) ** 2)
    assert len(said["steps"]) == 9
    np.testing.assert_allclose(said["alpha_bar"], alpha[said["steps"]])
    own = run(capsys, pictures)
    pixels = run(capsys, "wiener", "--images", pictures)
    np.testing.assert_allclose(pixels["power"], 4 * np.array(own["radial"]["power"]))
    latents = run(capsys, "wiener", student, "--images", pictures)
    clean = opening.clean_latents(checkpoint.load(student), str(pictures), 99).double().numpy()
    power = (abs(np.fft.fft2(clean)) ** 2 / 64).mean((0, 1))
    radius = np.hypot(*np.meshgrid(np.fft.fftfreq(8), np.fft.fftfreq(8)))
    assert latents["power"][0] == pytest.approx(power[(radius > 0) & (radius < 0.15)].mean(), rel=1e-5)
    assert latents["cycles_per_pixel"][-1] == pytest.approx(math.sqrt(0.5))


def test_latents_are_scaled_and_from_all_over_the_set(pictures: Path, student: Path) -> None:
    opened = checkpoint.load(student)
    assert opened.first_stage is not None
    paths = sorted(pictures.glob("*/*.png"), key=lambda path: str(path.relative_to(pictures)))
    found = opening.clean_latents(opened, str(pictures), 2)
    ends = np.stack([np.asarray(Image.open(path)) for path in (paths[0], paths[-1])])
    expected = 0.5 * opened.first_stage.encode(torch.from_numpy(ends).movedim(-1, 1) / 127.5 - 1)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert len(opening.clean_latents(opened, str(pictures), 99)) == len(paths)


def test_filters_are_every_convolution_of_a_model(
    tmp_path: Path, student: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plot = tmp_path / "filters.svg"
    said = run(capsys, "filters", student, "--plot", plot)
    assert said["latent_size"] == 8 and plot.read_text().lstrip().startswith("<?xml")
    unet = checkpoint.load(student).unet
    assert unet is not None
    names = {name for name, module in unet.named_modules() if getattr(module, "kernel_size", 0) == (3, 3)}
    assert {row["name"] for row in said["convolutions"]} == names
    assert {row["grid"] for row in said["convolutions"]} == {4, 8}
    for row in said["convolutions"]:  # random weights: independent taps
        assert row["measured"] == pytest.approx(row["independent"], abs=0.15)
    fresh = run(capsys, "filters", "--preset", "lsun_churches256-student")
    by_name = {row["name"]: row for row in fresh["convolutions"]}
    assert by_name["out.2"]["measured"] is None  # starts at zero
    assert by_name["input_blocks.0.0"]["grid"] == presets.PRESETS["lsun_churches256"].unet.image_size


def test_response_of_two_models(
    tmp_path: Path, pictures: Path, student: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A model beside itself gives one answer; its kept share is √ᾱ times its gain, and the seed decides."""
    plot = tmp_path / "response.png"
    given = ("response", student, student, "--images", pictures, "--at", 100, 500, "--rings", 3, "--probes", 4)
    said = run(capsys, *given, "--plot", plot)
    one, other = said["models"]
    assert (one["model"], other["model"]) == (str(student), f"{student} (again)")
    assert one["gain"] == other["gain"] and np.shape(one["gain"]) == (2, 3)
    np.testing.assert_allclose(
        one["kept"], np.array(one["gain"]) * np.sqrt(np.array(said["alpha_bar"]))[:, None], rtol=1e-9
    )
    assert said["latents"] == 8 and np.shape(said["optimum"]) == (2, 3)
    assert is_figure(plot)
    assert run(capsys, *given)["models"][0]["gain"] == one["gain"]
    assert run(capsys, *given, "--seed", 1)["models"][0]["gain"] != one["gain"]


def test_evolution_ends_in_the_samples(tmp_path: Path, teacher: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plot = tmp_path / "evolution.png"
    said = run(capsys, "evolution", teacher, "blue", "--count", 2, "--steps", 5, "--plot", plot)
    assert said["steps"] == [801, 601, 401, 201, 1]
    assert np.shape(said["power"]) == (5, len(said["cycles_per_pixel"])) and set(said["there"]) <= set(said["steps"])
    assert is_figure(plot)
    latents = run(capsys, "evolution", teacher, "blue", "--count", 2, "--steps", 5, "--latents")
    assert latents["measured"] == "latents" and len(latents["cycles_per_pixel"]) < len(said["cycles_per_pixel"])


def test_lines_for_people(student: Path, pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    few = ("--images", pictures, "--at", "100", "--rings", "2", "--probes", "2")
    for argv in (("wiener",), ("filters", student), ("response", student, *few), ("evolution", student, "--steps", 2)):
        assert cli.main(["spectrum", *map(str, argv)]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert len(lines) > 1 and "tensor" not in "".join(lines) and "nan" not in "".join(lines)


def test_what_cannot_be_probed_is_one_sentence(
    tmp_path: Path, student: Path, teacher: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "one place" in refused(capsys, "wiener", student, "--preset", "ffhq256-teacher")
    assert "0 to 999" in refused(capsys, "wiener", "--at", 1000)
    assert ".png, .svg, .pdf" in refused(capsys, "wiener", "--plot", tmp_path / "wiener.gif")
    assert "one of" in refused(capsys, "filters")
    assert "latent" in refused(capsys, "filters", student, "--latent-size", 0)
    assert "no preset 'nothing'" in refused(capsys, "filters", "--preset", "nothing")
    assert "probes 0" in refused(capsys, "response", student, "--images", pictures, "--probes", 0)
    assert "without prompts" in refused(capsys, "response", student, "--images", pictures, "--prompt", "cat")
    assert "tolerance" in refused(capsys, "evolution", student, "--tolerance", 1)
    assert "--count" in refused(capsys, "evolution", student, "--count", 0)
    stage = tiny.write(tmp_path / "stage.safetensors", ModelConfig("autoencoder", None, tiny.FIRST_STAGE))
    assert "no U-Net" in refused(capsys, "evolution", stage)
    alone = tiny.write(tmp_path / "alone.safetensors", ModelConfig("student", tiny.UNCONDITIONAL, None))
    assert "first stage" in refused(capsys, "evolution", alone)
    assert "first stage" in refused(capsys, "response", alone)
    other = ModelConfig("student", tiny.UNCONDITIONAL, tiny.FIRST_STAGE, scale_factor=0.7)
    assert "latents of their own" in refused(
        capsys, "response", student, tiny.write(tmp_path / "other.safetensors", other)
    )
    schedule = ScheduleConfig(0.00085, 0.012)
    slow = ModelConfig("student", tiny.UNCONDITIONAL, tiny.FIRST_STAGE, schedule=schedule, scale_factor=0.5)
    assert "schedules of their own" in refused(
        capsys, "response", student, tiny.write(tmp_path / "slow.safetensors", slow)
    )
    assert list(tmp_path.glob("*.gif")) == []
