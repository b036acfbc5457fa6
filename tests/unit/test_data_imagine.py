"""Latents that a teacher makes: what `sample` would draw, whoever makes them, and a student learns from them alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from spectral_diffusion.spectral import checkpoint
from spectral_diffusion.spectral.config import ConditioningConfig, ModelConfig
from spectral_diffusion.spectral.errors import SpectralError
from spectral_diffusion.training import cli, distill
from spectral_diffusion.training.data import imagining, latents_writing
from spectral_diffusion.training.data.config import DataConfig
from spectral_diffusion.training.data.dataset import open_data
from spectral_diffusion.training.data.imagining import wishes_of
from spectral_diffusion.training.data.latents_folder import CachedLatents
from spectral_diffusion.training.distillation.config import RandomConditionsConfig
from spectral_diffusion.training.sample import sample_checkpoint

from . import tiny
from .test_data_latents import refusal
from .test_distill import configure

UNET = replace(tiny.CONDITIONED, model_channels=64, resampler="conv")
PROMPTS = ["a cat", "a red ship", "zwei Häuser", "a dog", "rain"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Teachers of each kind, and a file of prompts."""
    folder = tmp_path_factory.mktemp("teachers")
    tiny.teacher(folder / "class.safetensors")
    for name, conditioning in (("text", tiny.TEXT), ("none", ConditioningConfig())):
        unet = UNET if name == "text" else replace(tiny.UNCONDITIONAL, model_channels=64, resampler="conv")
        about = ModelConfig("teacher", unet, tiny.FIRST_STAGE, conditioning, scale_factor=0.5)
        tiny.write(folder / f"{name}.safetensors", about)
    (folder / "prompts.txt").write_text("\n".join(PROMPTS), "utf-8")
    return folder


def command(folder: Path, kind: str, out: Path, *more: str) -> list[str]:
    given = ["--teacher", str(folder / f"{kind}.safetensors"), "--out", str(out), "--shard-size", "4"]
    return ["data", "imagine", *given, "--batch", "3", "--steps", "2", *more]


def imagined(folder: Path, kind: str, out: Path, *more: str) -> Path:
    assert cli.main(command(folder, kind, out, *more)) == 0
    return out


def opened(folder: Path) -> CachedLatents:
    data = open_data(DataConfig(str(folder), size=16))
    assert isinstance(data, CachedLatents)
    return data


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("kind", ["class", "text", "none"])
def test_latents_decode_to_what_the_teacher_draws(kind: str, folder: Path, tmp_path: Path) -> None:
    """Sample i is image i of `sample` for the same prompts and seed; latents are the first stage's own, not scaled."""
    more = {"class": (), "text": ("--prompts", str(folder / "prompts.txt")), "none": ()}[kind]
    imagined(folder, kind, tmp_path / "out", "--count", "7", "--seed", "3", "--dtype", "float32", *more)
    data, teacher = opened(tmp_path / "out"), checkpoint.load(folder / f"{kind}.safetensors")
    assert len(data) == 7 and data.made_by == teacher.file.sha256 and teacher.first_stage is not None
    rows = torch.stack([data.row(index, False) for index in range(7)])
    with torch.no_grad():
        found = (teacher.first_stage.decode(rows).clamp(-1, 1) + 1) / 2
    asked = {"class": data.subgroups, "text": data.captions, "none": [""] * 7}[kind]
    expected = sample_checkpoint(teacher, list(asked), steps=2, seed=3)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert expected.std() > 0.02


def test_every_prompt_comes_once_a_round_in_an_order_of_the_seed(folder: Path, tmp_path: Path) -> None:
    prompts = ("--prompts", str(folder / "prompts.txt"))
    orders = []
    for seed in ("0", "1"):
        data = opened(imagined(folder, "text", tmp_path / seed, "--count", "12", "--seed", seed, *prompts))
        captions = list(data.captions)
        assert Counter(captions[:5]) == Counter(captions[5:10]) == Counter(PROMPTS) and captions[:5] != captions[5:10]
        orders.append(captions)
    assert orders[0] != orders[1]
    assert len(opened(imagined(folder, "text", tmp_path / "once", *prompts))) == 5


def test_captions_and_classes_of_a_data_set(folder: Path, tmp_path: Path) -> None:
    pictures = tiny.pictures(tmp_path / "pictures", 6)
    (pictures / "blue" / "blue-0.png").write_bytes(b"no image is read")
    data = opened(imagined(folder, "text", tmp_path / "text", "--data", str(pictures)))
    assert sorted(data.captions) == ["blue 0", "blue 2", "blue 4", "red 1", "red 3", "red 5"]
    assert [caption.split()[0] for caption in data.captions] == list(data.subgroups)
    again = opened(imagined(folder, "class", tmp_path / "class", "--data", str(tmp_path / "text"), "--subgroups", "r*"))
    assert list(again.subgroups) == ["red"] * 3
    wishes, source = wishes_of(tiny.TEXT, None, "emoji64", ["food-fruit"])
    assert source == "emoji64" and "watermelon" in [wish.prompt for wish in wishes]
    classes, _ = wishes_of(ConditioningConfig("class", width=32, n_classes=5), None, None)
    assert [wish.prompt for wish in classes] == [wish.groups[-1] for wish in classes] == ["0", "1", "2", "3"]


def test_stopped_or_asked_for_more_it_goes_on(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = imagined(folder, "class", tmp_path / "whole", "--count", "14")
    parts, write = tmp_path / "parts", imagining.write_shard

    def stop_at_the_third(out: Path, file: str, *given: Any) -> None:
        if file == "latents-00002.safetensors":
            raise KeyboardInterrupt
        write(out, file, *given)

    monkeypatch.setattr(imagining, "write_shard", stop_at_the_third)
    assert cli.main(command(folder, "class", parts, "--count", "10")) == 130
    monkeypatch.setattr(imagining, "write_shard", write)
    with pytest.raises(SpectralError, match="is not finished; run the same data imagine command again"):
        opened(parts)
    done = {path: path.stat().st_mtime_ns for path in parts.glob("*.safetensors")}
    imagined(folder, "class", parts, "--count", "10")
    assert len(done) == 2 and {path: path.stat().st_mtime_ns for path in done} == done and len(opened(parts)) == 10
    before = [opened(parts).row(index, False).clone() for index in range(10)]
    imagined(folder, "class", parts, "--count", "14")
    assert files(parts) == files(whole)
    assert all(torch.allclose(opened(parts).row(i, False), row, atol=1e-2) for i, row in enumerate(before))
    (parts / "latents-00001.safetensors").write_bytes(b"damage")
    imagined(folder, "class", parts, "--count", "14")
    assert files(parts) == files(whole)


def test_two_processes_make_what_one_does(folder: Path, tmp_path: Path) -> None:
    module = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "-m", "spectral_diffusion.training.data"]
    result = subprocess.run(
        [sys.executable, *module, *command(folder, "class", tmp_path / "two", "--count", "11")[1:], "--json"],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=180,
    )
    assert result.returncode == 0, result.stderr
    assert [json.loads(line)["samples"] for line in result.stdout.splitlines()] == [11]
    assert files(tmp_path / "two") == files(imagined(folder, "class", tmp_path / "one", "--count", "11"))


def test_a_student_learns_without_any_image(folder: Path, tmp_path: Path, capsys: Any) -> None:
    """And of prompts that no latent was made of; previews show what the latents decode to."""
    imagined(folder, "text", tmp_path / "latents", "--prompts", str(folder / "prompts.txt"), "--count", "12")
    more = tmp_path / "more.txt"
    more.write_text("a whale\na lamp\nthe sea")
    given = RandomConditionsConfig(share=1.0, decay=1.0, path=more)
    config = configure(folder / "text.safetensors", DataConfig(str(tmp_path / "latents"), size=16), tmp_path / "run")
    config = replace(config, random_conditions=given, run=replace(config.run, preview_every=2))
    result = distill.train(config)
    assert "imagined by another teacher" not in capsys.readouterr().err
    student = checkpoint.load(Path(result["path"]))
    assert sample_checkpoint(student, ["a whale"], steps=2).isfinite().all()
    assert (tmp_path / "run" / "previews" / "000002.png").stat().st_size > 1000
    assert 0 < result["replaced"] <= 1
    held = load_file(tmp_path / "latents" / "latents-00000.safetensors")["latent"]
    assert held.shape == (4, 4, 8, 8) and held.dtype == torch.float16


def test_another_teacher_is_a_note_and_another_first_stage_a_refusal(folder: Path, tmp_path: Path, capsys: Any) -> None:
    imagined(folder, "class", tmp_path / "latents", "--count", "4")
    data = DataConfig(str(tmp_path / "latents"), size=16)
    other = checkpoint.load(folder / "class.safetensors")
    assert other.first_stage is not None and other.unet is not None
    similar = tmp_path / "similar.safetensors"
    checkpoint.save(similar, other.config, unet=tiny.randomized(other.unet, 9), first_stage=other.first_stage,
                    conditioner=other.conditioner)  # fmt: skip
    distill.train(configure(similar, data, tmp_path / "run"))
    said = capsys.readouterr().err
    assert "Note: The latents of" in said and "imagined by another teacher than similar.safetensors" in said
    foreign = tmp_path / "foreign.safetensors"
    checkpoint.save(foreign, other.config, unet=other.unet, first_stage=tiny.randomized(other.first_stage, 9),
                    conditioner=other.conditioner)  # fmt: skip
    with pytest.raises(SpectralError, match=r"latents of another first stage.*data imagine --teacher foreign"):
        distill.train(configure(foreign, data, tmp_path / "other"))


@pytest.mark.parametrize(
    ("kind", "more", "says"),
    [
        ("text", [], "give --prompts a text file with a caption on every line, or --data"),
        ("text", ["--prompts", "missing.txt"], "missing.txt cannot be read"),
        ("text", ["--data", "pipe:cat x.tar"], "is a stream, whose captions nobody knows beforehand"),
        ("text", ["--data", "missing"], "No data at missing"),
        ("class", ["--prompts", "PROMPTS"], "No class 'a cat': expected 0 to 2 or one of blue, red"),
        ("class", ["--prompts", "PROMPTS", "--data", "emoji64"], "exclude each other"),
        ("class", ["--data", "emoji64"], "no class named"),
        ("none", ["--prompts", "PROMPTS"], "takes no prompts; leave --prompts and --data out, and give --count"),
        ("none", ["--guidance", "nan"], "--guidance is nan"),
        ("class", ["--guidance", "inf"], "--guidance is inf; expected a number"),
        ("class", ["--count", "0"], "--count is 0; expected at least 1"),
        ("class", ["--steps", "1001"], "DDIM can take 1 to 1000 steps"),
        ("class", ["--seed", "-1"], "The seed is -1"),
        ("class", ["--batch", "0"], "--batch is 0"),
        ("class", ["--shard-size", "0"], "--shard-size is 0"),
    ],
)
def test_what_cannot_be_is_a_sentence_and_leaves_nothing(
    kind: str, more: list[str], says: str, folder: Path, tmp_path: Path, capsys: Any
) -> None:
    more = [str(folder / "prompts.txt") if text == "PROMPTS" else text for text in more]
    assert says in refusal(command(folder, kind, tmp_path / "out", *more), capsys)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--seed", "1"], "was begun with seed 0, not 1"),
        (["--steps", "3"], "was begun with steps 2, not 3"),
        (["--guidance", "1"], "was begun with guidance 2.0, not 1.0"),
        (["--count", "3"], "was begun for 6 samples, not 3"),
        (["--prompts", "CLASSES"], "was begun with other prompts"),
        (["--no-ema"], "was begun with read"),
    ],
)
def test_another_folder_is_not_mixed_in(more: list[str], says: str, folder: Path, tmp_path: Path, capsys: Any) -> None:
    classes = tmp_path / "classes.txt"
    classes.write_text("red\n0\n")
    out = imagined(folder, "class", tmp_path / "out", "--count", "6")
    before = files(out)
    more = [str(classes) if text == "CLASSES" else text for text in more]
    assert says in refusal(command(folder, "class", out, *["--count", "6", *more]), capsys)
    assert "was begun with another teacher" in refusal(command(folder, "none", out, "--count", "6"), capsys)
    assert files(out) == before


def test_latents_that_are_no_numbers_are_refused() -> None:
    with pytest.raises(SpectralError, match=r"not finite as float16; the teacher is damaged.*--dtype float32"):
        latents_writing.stored({"latent": torch.tensor([1e5])}, "float16", "the teacher is damaged")
