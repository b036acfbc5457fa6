"""Any teacher that a user downloaded teaches: LDM's .ckpt, a diffusers folder, a U-Net and its parts apart."""

from __future__ import annotations

import json
import struct
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from spectral_diffusion.spectral import checkpoint, presets
from spectral_diffusion.spectral.config import ConditioningConfig, FirstStageConfig, ModelConfig, ScheduleConfig
from spectral_diffusion.spectral.errors import SpectralError
from spectral_diffusion.spectral.formats.diffusers_keys import to_diffusers, unet_rows
from spectral_diffusion.spectral.formats.diffusers_unet import write_unet
from spectral_diffusion.spectral.formats.source import ReadOptions
from spectral_diffusion.spectral.unet import UNet
from spectral_diffusion.training import cli
from spectral_diffusion.training.teachers import assemble, open_teacher

from . import ldm_files, tiny
from .ldm_files import CLIP, CONDITIONED, LDM_TEXT, VQ, Parts

#: 16 × 16 pixels ↔ 4 × 4 × 4 cells.
STAGE = FirstStageConfig("kl", embed_dim=4, z_channels=4, ch=32, ch_mult=(1, 1, 1), num_res_blocks=1)
CLASSES = ConditioningConfig("class", width=64, n_classes=3)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders named by the numbers of classes."""
    folder = tiny.pictures(tmp_path_factory.mktemp("pictures"))
    (folder / "blue").rename(folder / "0")
    (folder / "red").rename(folder / "1")
    return folder


def ldm_teacher(folder: Path, condition: ConditioningConfig = CLASSES) -> tuple[Path, Parts]:
    """A whole model as Lightning saved it, with averages and buffers."""
    parts = Parts.make(CONDITIONED, STAGE, condition)
    extra = ldm_files.averages(parts.unet) | ldm_files.buffers(0.00085, 0.012, scale=0.25)
    return ldm_files.write(folder / "model.ckpt", parts.state() | extra), parts


def distilled(teacher: Path, pictures: Path, out: Path, *options: str) -> checkpoint.Checkpoint:
    """The student of two steps that the command makes."""
    run = ["--run.steps", "2", "--run.batch_size", "4", "--run.warmup", "1", "--run.preview_every", "0"]
    data = ["--data.path", str(pictures), "--data.size", "16"]
    command = ["distill", "--teacher", str(teacher), "--run.out", str(out), *run, *data, "--model_channels", "32"]
    assert cli.main([*command, "--read.image_size", "4", *options]) == 0
    return checkpoint.load(out / "student.safetensors")


@pytest.mark.parametrize("layout", ["ckpt", "diffusers"])
def test_a_whole_teacher_is_distilled(layout: str, pictures: Path, tmp_path: Path) -> None:
    path, parts = ldm_teacher(tmp_path)
    if layout == "diffusers":
        checkpoint.convert(checkpoint.read(path), tmp_path / "folder", "diffusers")
        path = tmp_path / "folder"
    student = distilled(path, pictures, tmp_path / "run")
    assert student.config.conditioning == CLASSES and student.config.schedule == ScheduleConfig(0.00085, 0.012)
    assert student.config.scale_factor == 0.25 and student.config.unet is not None
    assert student.config.unet == replace(CONDITIONED, image_size=4, resampler="wavelet")
    assert student.config.teacher_sha256 == checkpoint.sha256(path)
    assert student.first_stage is not None
    theirs = parts.first_stage.state_dict()
    assert all(torch.equal(v, theirs[k].half().float()) for k, v in student.first_stage.state_dict().items())


def test_the_averages_teach_unless_they_are_turned_off(pictures: Path, tmp_path: Path) -> None:
    path, parts = ldm_teacher(tmp_path)
    weight = parts.unet.state_dict()["out.2.weight"]
    for options, factor in ((ReadOptions(), 0.5), (ReadOptions(ema=False), 1.0)):
        teacher = open_teacher(path, options)
        assert teacher.unet is not None
        assert torch.equal(teacher.unet.state_dict()["out.2.weight"].cpu(), weight * factor)
    distilled(path, pictures, tmp_path / "averaged", "--run.steps", "1")
    distilled(path, pictures, tmp_path / "plain", "--run.steps", "1", "--no-ema")
    losses = [
        json.loads((tmp_path / run / "statistics.jsonl").read_text().splitlines()[0]) for run in ("averaged", "plain")
    ]
    assert losses[0]["ddpm"] == losses[1]["ddpm"] and losses[0]["spatial"] != losses[1]["spatial"]


def test_a_unet_is_completed_by_the_files_of_its_parts(pictures: Path, tmp_path: Path) -> None:
    parts = Parts.make(CONDITIONED, STAGE, CLIP)
    assert parts.conditioner is not None
    files = {name: tmp_path / f"{name}.safetensors" for name in ("unet", "vae", "clip")}
    ldm_files.write(files["unet"], dict(parts.unet.state_dict()))
    ldm_files.write(files["vae"], dict(parts.first_stage.state_dict()))
    tower = {k.removeprefix("transformer."): v for k, v in parts.conditioner.state_dict().items()}
    ldm_files.write(files["clip"], tower)
    options = ["--first_stage", str(files["vae"]), "--text_encoder", str(files["clip"])]
    student = distilled(files["unet"], pictures, tmp_path / "run", *options)
    assert student.config.conditioning == CLIP
    assert student.config.first_stage == STAGE
    whole = tmp_path / "whole.safetensors"
    command = ["convert", str(files["unet"]), str(whole), "--first-stage", str(files["vae"])]
    assert cli.main([*command, "--text-encoder", str(files["clip"])]) == 0
    opened = checkpoint.load(whole)
    assert opened.conditioner is not None and opened.first_stage is not None


@pytest.mark.parametrize("layout", ["ldm", "diffusers"])
def test_a_unet_takes_its_scale_from_the_first_stage_beside_it(
    layout: str, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And its latent size; both are said, for they are guesses."""
    parts = Parts.make(CONDITIONED, STAGE, CLASSES)
    unet = ldm_files.write(tmp_path / "unet.safetensors", dict(parts.unet.state_dict()))
    if layout == "diffusers":
        checkpoint.convert(checkpoint.read(unet), tmp_path / "folder", "diffusers")
        unet = tmp_path / "folder"
    stage = tmp_path / "vae.safetensors"
    checkpoint.save(
        stage, ModelConfig("autoencoder", first_stage=STAGE, scale_factor=0.5), first_stage=parts.first_stage
    )
    file = assemble(unet, first_stage=stage)
    assert file.config.scale_factor == 0.5 and file.config.unet is not None
    assert any("scale_factor" in note and "0.5" in note for note in file.notes)
    assert file.config.unet.image_size == (64 if layout == "ldm" else 32)
    assert assemble(unet, ReadOptions(scale_factor=0.25), first_stage=stage).config.scale_factor == 0.25


def write_zeros(path: Path, shapes: dict[str, Tensor], values: dict[str, Tensor]) -> None:
    """A float32 safetensors file of any size that takes no room: zeros that are not there, but for a few tensors."""
    header, places, end = {}, {}, 0
    for key, tensor in shapes.items():
        places[key] = end
        end += 4 * tensor.numel()
        header[key] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [places[key], end]}
    text = json.dumps(header).encode()
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
        for key, tensor in values.items():
            file.seek(8 + len(text) + places[key])
            file.write(tensor.numpy().tobytes())


@pytest.mark.parametrize(("name", "spread", "predicts"), [("1", 0.2, "eps"), ("2", 0.02, "eps"), ("2", 0.2, "v")])
def test_a_folder_with_a_unet_alone_is_known_by_its_architecture(
    name: str, spread: float, predicts: str, tmp_path: Path
) -> None:
    """As a file with the same U-Net is; Stable Diffusion's velocity is seen in its weights, and the rest is said."""
    unet = presets.PRESETS[f"stable_diffusion_{name}"].unet
    with torch.device("meta"):
        state = UNet(unet).state_dict()
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "config.json").write_text(json.dumps(write_unet(unet)))
    renamed = to_diffusers(unet_rows(unet), state, "The U-Net")
    bias = "up_blocks.3.attentions.2.transformer_blocks.0.norm1.bias"
    values = torch.linspace(-1, 1, renamed[bias].numel()) * spread * 3**0.5
    write_zeros(tmp_path / "unet" / "diffusion_pytorch_model.safetensors", renamed, {bias: values})
    read = checkpoint.read(tmp_path)
    assert read.config.scale_factor == 0.18215 and read.config.schedule.prediction == predicts
    assert (read.config.schedule.linear_start, read.config.schedule.linear_end) == (0.00085, 0.012)
    assert any("holds no conditioner" in note for note in read.notes)
    assert any("predicts" in note and "is assumed" in note for note in read.notes)


def test_what_is_assumed_of_a_teacher_is_said_and_kept(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parts = Parts.make(CONDITIONED, STAGE, CLASSES)
    path = ldm_files.write(tmp_path / "model.ckpt", parts.state())
    student = distilled(path, pictures, tmp_path / "run")
    said = capsys.readouterr().err
    assert "Note: The file does not tell its scale_factor; 0.18215 is assumed" in said
    assert any("scale_factor" in note for note in student.config.training["assumed"])
    images = ["sample", str(path), "0", "--steps", "2", "--size", "16", "--out", str(tmp_path / "samples"), "--json"]
    assert cli.main(images) == 0
    printed = capsys.readouterr()
    assert "Note: The file does not tell" in printed.err and len(json.loads(printed.out)["assumed"]) == 5


def test_a_run_goes_on_only_with_the_parts_that_it_had(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A first stage is known by its content, wherever it lies."""
    parts = Parts.make(CONDITIONED, STAGE, CLASSES)
    path = ldm_files.write(tmp_path / "model.ckpt", parts.state())
    weights = dict(parts.first_stage.state_dict())
    stage = ldm_files.write(tmp_path / "vae.ckpt", weights)
    distilled(path, pictures, tmp_path / "run", "--first_stage", str(stage))
    stage = stage.rename(tmp_path / "same.ckpt")
    more = ["--run.steps", "3", "--first_stage"]
    distilled(path, pictures, tmp_path / "run", *more, str(stage))
    weights["decoder.conv_out.bias"] = weights["decoder.conv_out.bias"] + 1
    other = ldm_files.write(tmp_path / "other.ckpt", weights)
    with pytest.raises(AssertionError):
        distilled(path, pictures, tmp_path / "run", *more, str(other))
    assert "holds a run whose first_stage was not what" in capsys.readouterr().err


def test_samples_with_parts_from_other_files(tmp_path: Path) -> None:
    parts = Parts.make(CONDITIONED, STAGE, CLIP)
    assert parts.conditioner is not None
    unet = ldm_files.write(tmp_path / "unet.ckpt", dict(parts.unet.state_dict()))
    stage = ldm_files.write(tmp_path / "vae.ckpt", dict(parts.first_stage.state_dict()))
    tower = {k.removeprefix("transformer."): v for k, v in parts.conditioner.state_dict().items()}
    text = ldm_files.write(tmp_path / "text.safetensors", tower)
    command = ["sample", str(unet), "a cat", "--steps", "2", "--size", "16", "--out", str(tmp_path / "samples")]
    assert cli.main([*command, "--first-stage", str(stage), "--text-encoder", str(text)]) == 0
    whole = ldm_files.write(tmp_path / "whole.ckpt", parts.state())
    assert cli.main([*command[:1], str(whole), *command[2:-1], str(tmp_path / "again")]) == 0
    pictures = [(tmp_path / name / "images" / "000.png").read_bytes() for name in ("samples", "again")]
    assert pictures[0] == pictures[1]


def test_parts_that_do_not_fit_are_sentences(tmp_path: Path) -> None:
    path, _ = ldm_teacher(tmp_path)
    other = ldm_files.write(tmp_path / "vq.ckpt", dict(Parts.make(CONDITIONED, VQ, CLASSES).first_stage.state_dict()))
    with pytest.raises(SpectralError, match="latents of 4 channels, its first stage makes 3"):
        assemble(path, first_stage=other)
    unet = ldm_files.write(tmp_path / "unet.ckpt", dict(Parts.make(CONDITIONED, VQ, CLASSES).unet.state_dict()))
    with pytest.raises(SpectralError, match=r"unet\.ckpt holds no first stage"):
        assemble(path, first_stage=unet)
    with pytest.raises(SpectralError, match=r"unet\.ckpt cannot teach: it lacks a first stage; .* or first_stage"):
        open_teacher(unet)
    narrow = Parts.make(CONDITIONED, STAGE, replace(LDM_TEXT, width=32)).conditioner
    assert narrow is not None
    encoder = ldm_files.write(tmp_path / "text.ckpt", dict(narrow.state_dict()))
    with pytest.raises(SpectralError, match=r"text\.ckpt holds a text encoder of width 32; expected 64"):
        assemble(path, text_encoder=encoder)
