"""Checkpoints from layout to layout: nothing is lost in silence."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from spectral_diffusion.spectral import checkpoint
from spectral_diffusion.spectral.checkpoint import CheckpointFile, Layout
from spectral_diffusion.spectral.config import ConditioningConfig, ModelConfig, ScheduleConfig, UNetConfig
from spectral_diffusion.spectral.diffusion import Schedule
from spectral_diffusion.spectral.errors import SpectralError
from spectral_diffusion.spectral.formats.source import ReadOptions
from spectral_diffusion.training import cli
from spectral_diffusion.training.tokens import declare_torchvision_operators

from . import ldm_files, tiny
from .ldm_files import CLASSES, CLIP, CONDITIONED, KL, LDM_TEXT, OPEN_CLIP, UNCONDITIONAL, VQ

CONDITIONED_2 = replace(CONDITIONED, use_linear_in_transformer=True, num_heads=-1, num_head_channels=64)
ZERO_TERMINAL = ScheduleConfig(0.00085, 0.012, prediction="v", zero_terminal_snr=True)
KINDS: dict[str, ModelConfig] = {
    "unconditional": ModelConfig("teacher", UNCONDITIONAL, VQ),
    "class": ModelConfig("teacher", replace(CONDITIONED, image_size=64), KL, CLASSES, scale_factor=0.3),
    "clip": ModelConfig("teacher", CONDITIONED, KL, CLIP, ScheduleConfig(0.00085, 0.012), 0.18215),
    "open-clip-v": ModelConfig(
        "teacher",
        replace(CONDITIONED_2, model_channels=64),
        KL,
        OPEN_CLIP,
        ScheduleConfig(0.00085, 0.012, prediction="v"),
        0.18215,
    ),
    "zero-terminal-snr": ModelConfig("teacher", CONDITIONED, KL, CLIP, ZERO_TERMINAL, 0.18215),
    "ldm-text": ModelConfig("teacher", CONDITIONED, KL, LDM_TEXT),
}
PLACES: dict[str, tuple[Layout, str]] = {
    "spectral": ("spectral", "model.safetensors"),
    "ldm-safetensors": ("ldm", "model.safetensors"),
    "ldm-ckpt": ("ldm", "model.ckpt"),
    "diffusers": ("diffusers", "model"),
}


def source(kind: str, folder: Path) -> CheckpointFile:
    return checkpoint.read(tiny.write(folder / "source.safetensors", KINDS[kind]))


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kind", KINDS)
def test_there_and_back_again(kind: str, place: str, tmp_path: Path) -> None:
    """The same weights to the last bit, and whatever the layout cannot say is said."""
    layout, name = PLACES[place]
    file = source(kind, tmp_path)
    lost = checkpoint.convert(file, tmp_path / "there" / name, layout)
    assert file.config.unet is not None
    told = ReadOptions(image_size=file.config.unet.image_size)
    there = checkpoint.read(tmp_path / "there" / name, told)
    if layout != "diffusers":
        assert lost == [] or all("image_size" in sentence for sentence in lost), lost
        assert replace(there.config, kind="teacher") == file.config
    checkpoint.convert(there, tmp_path / "back.safetensors", "spectral")
    back = checkpoint.read(tmp_path / "back.safetensors")
    dropped = {key for key in file.tensors if layout == "diffusers" and "cond_stage_model" in key}
    assert file.tensors.keys() - dropped <= back.tensors.keys() <= file.tensors.keys()
    assert all(torch.equal(file.tensors[key], value) for key, value in back.tensors.items())
    checkpoint.load(tmp_path / "there" / name, options=told)


def test_a_student_stays_itself_in_other_precision(tmp_path: Path) -> None:
    config = ModelConfig("student", tiny.CONDITIONED, tiny.FIRST_STAGE, tiny.TEXT, preset=None)
    file = checkpoint.read(tiny.write(tmp_path / "student.safetensors", config))
    assert checkpoint.convert(file, tmp_path / "half.safetensors", dtype=torch.float16) == []
    half = checkpoint.read(tmp_path / "half.safetensors")
    assert half.config == config and {tensor.dtype for tensor in half.tensors.values()} == {torch.float16}
    assert (tmp_path / "half.safetensors").stat().st_size < 0.52 * (tmp_path / "student.safetensors").stat().st_size


def test_averages_become_the_weights(tmp_path: Path) -> None:
    parts = ldm_files.Parts.make(UNCONDITIONAL, VQ, ConditioningConfig())
    path = ldm_files.write(tmp_path / "teacher.ckpt", parts.state() | ldm_files.averages(parts.unet))
    key = "model.diffusion_model.out.2.weight"
    for ema, factor in ((True, 0.5), (False, 1.0)):
        target = tmp_path / f"{ema}.safetensors"
        checkpoint.convert(checkpoint.read(path, ReadOptions(ema=ema)), target, "ldm")
        assert torch.equal(checkpoint.read(target).tensors[key], parts.state()[key] * factor)


REFUSED: dict[str, tuple[ModelConfig, Layout, str, str]] = {
    "student-as-ldm": (ModelConfig("student", tiny.UNCONDITIONAL), "ldm", "x.ckpt", "wavelet-gated"),
    "student-as-folder": (ModelConfig("student", tiny.UNCONDITIONAL), "diffusers", "x", "avelet"),
    "few-groups": (
        ModelConfig("lite", replace(UNCONDITIONAL, norm_groups=8)),
        "ldm",
        "x.safetensors",
        "normalisation in 8 groups",
    ),
    "name-of-another-kind": (ModelConfig("teacher", UNCONDITIONAL), "ldm", "x.zip", r"\.safetensors or \.ckpt"),
    "spectral-ckpt": (ModelConfig("teacher", UNCONDITIONAL), "spectral", "x.ckpt", r"the ldm layout takes \.ckpt"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_a_layout_has_no_place_for(kind: str, tmp_path: Path) -> None:
    config, layout, name, says = REFUSED[kind]
    file = checkpoint.read(tiny.write(tmp_path / "source.safetensors", config))
    with pytest.raises(SpectralError, match=says):
        checkpoint.convert(file, tmp_path / name, layout)
    assert [path.name for path in tmp_path.iterdir()] == ["source.safetensors"]


def test_what_exists_is_never_written_over(tmp_path: Path) -> None:
    file = source("unconditional", tmp_path)
    for layout, name in PLACES.values():
        (tmp_path / name).write_text("mine")
        with pytest.raises(SpectralError, match="exists already"):
            checkpoint.convert(file, tmp_path / name, layout)
        assert (tmp_path / name).read_text() == "mine"


def test_numbers_that_half_precision_cannot_hold_are_a_sentence(tmp_path: Path) -> None:
    parts = ldm_files.Parts.make(UNCONDITIONAL, VQ, ConditioningConfig())
    state = parts.state()
    state["model.diffusion_model.out.2.bias"][0] = 1e6
    file = checkpoint.read(ldm_files.write(tmp_path / "large.ckpt", state))
    with pytest.raises(SpectralError, match=r"out\.2\.bias holds numbers that are too large for torch\.float16"):
        checkpoint.convert(file, tmp_path / "half.safetensors", dtype=torch.float16)
    assert not (tmp_path / "half.safetensors").exists()
    checkpoint.convert(file, tmp_path / "half.safetensors", dtype=torch.bfloat16)


def test_what_a_file_calls_itself_cannot_write_over_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = ModelConfig("teacher", UNCONDITIONAL, VQ, preset="\x1b[31m\nevil")
    assert cli.main(["inspect", str(tiny.write(tmp_path / "x.safetensors", config))]) == 0
    said = capsys.readouterr().out
    assert "\x1b" not in said and "\\x1b[31m\\nevil" in said


def test_heads_that_no_table_knows_are_called_lost(tmp_path: Path) -> None:
    unet: UNetConfig = replace(CONDITIONED, num_heads=4)
    file = checkpoint.read(tiny.write(tmp_path / "source.safetensors", ModelConfig("teacher", unet, KL, CLASSES)))
    assert "unet.num_heads is 4, but the new file will be read as 8; open it with --heads 4." in checkpoint.convert(
        file, tmp_path / "x.ckpt", "ldm"
    )


def test_tied_weights_are_written_apart(tmp_path: Path) -> None:
    """Lightning's files may tie tensors together, and keep a part of a larger one; safetensors may not."""
    state = ldm_files.Parts.make(UNCONDITIONAL, VQ, ConditioningConfig()).state()
    first, second = (f"model.diffusion_model.output_blocks.{index}.0.in_layers.0.bias" for index in (0, 1))
    state[second] = state[first][: len(state[second])]
    path = ldm_files.write(tmp_path / "tied.ckpt", state)
    for layout, place in PLACES.values():
        checkpoint.convert(checkpoint.read(path), tmp_path / layout / place, layout)
        written = checkpoint.read(tmp_path / layout / place).tensors
        assert all(torch.equal(written[name], tensor) for name, tensor in state.items())


def test_only_what_makes_up_a_folder_is_part_of_it(tmp_path: Path) -> None:
    """Its digest does not change with what lies beside, and does with its settings."""
    checkpoint.convert(source("clip", tmp_path), tmp_path / "folder", "diffusers")
    folder = tmp_path / "folder"
    digest = checkpoint.sha256(folder)
    for name in ("big.bin", "notes.json", "unet/other.safetensors", "vae/notes.json"):
        (folder / name).write_bytes(b"{}")
    assert checkpoint.sha256(folder) == digest
    settings = folder / "scheduler" / "scheduler_config.json"
    settings.write_text(settings.read_text() + "\n")
    assert checkpoint.sha256(folder) != digest


def test_an_index_of_very_many_files_is_refused(tmp_path: Path) -> None:
    checkpoint.convert(source("clip", tmp_path), tmp_path / "folder", "diffusers")
    weights = tmp_path / "folder" / "unet" / "diffusion_pytorch_model.safetensors"
    weights.unlink()
    places = {f"tensor{index}": f"part{index}.safetensors" for index in range(800)}
    (weights.parent / f"{weights.name}.index.json").write_text(json.dumps({"weight_map": places}))
    with pytest.raises(SpectralError, match="names 800 files; expected 64 at most"):
        checkpoint.read(tmp_path / "folder")


def test_options_do_not_contradict_a_file_that_says_what_it_is(tmp_path: Path) -> None:
    path = tiny.write(tmp_path / "own.safetensors", KINDS["class"])
    config = checkpoint.read(path).config
    assert config.unet is not None
    assert checkpoint.read(path, ReadOptions(heads=config.unet.num_heads)).config == config
    for name, value in {"heads": 3, "image_size": 7, "prediction": "v", "scale_factor": 0.5}.items():
        with pytest.raises(SpectralError, match=f"says itself that its {name} is .*, not {value}; leave {name} unset"):
            checkpoint.read(path, ReadOptions(**{name: value}))  # type: ignore[arg-type]


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, target = tiny.write(tmp_path / "source.safetensors", KINDS["class"]), tmp_path / "out.ckpt"
    asked = ["convert", str(path), str(target), "--layout", "ldm", "--dtype", "float16", "--json"]
    assert cli.main(asked) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["bytes"] == target.stat().st_size and report["lost"] == [] and report["layout"] == "ldm"
    assert cli.main(asked) == 2
    assert "exists already" in capsys.readouterr().err
    assert cli.main(["inspect", str(target), "--json", "--heads", "4", "--no-ema"]) == 0
    about = json.loads(capsys.readouterr().out)
    assert about["unet"]["num_heads"] == 4 and about["kind"] == "teacher" and about["notes"]
    assert cli.main(["inspect", str(target), "--heads", "4", "--head-channels", "2"]) == 2
    assert "exclude each other" in capsys.readouterr().err


def test_files_without_zero_terminal_snr_do_not_speak_of_it(tmp_path: Path) -> None:
    """Readers from before the setting know no such key; a file without it means that it is off."""
    paths = [tiny.write(tmp_path / f"{kind}.safetensors", KINDS[kind]) for kind in ("clip", "zero-terminal-snr")]
    said = [json.loads(checkpoint.read(path).metadata["spectral_diffusion"])["schedule"] for path in paths]
    assert "zero_terminal_snr" not in said[0] and said[1]["zero_terminal_snr"] is True
    assert [checkpoint.read(path).config.schedule.zero_terminal_snr for path in paths] == [False, True]


def test_zero_terminal_snr_in_other_layouts_is_what_other_programs_read(tmp_path: Path) -> None:
    """LDM's layout: the schedule before, and ComfyUI's marks `v_pred` and `ztsnr`; diffusers': its own setting."""
    file = source("zero-terminal-snr", tmp_path)
    checkpoint.convert(file, tmp_path / "model.safetensors", "ldm")
    tensors = load_file(tmp_path / "model.safetensors")
    assert tensors["v_pred"].numel() == tensors["ztsnr"].numel() == 0
    torch.testing.assert_close(tensors["betas"].double(), Schedule(0.00085, 0.012).betas, rtol=1e-6, atol=0)
    plain = source("open-clip-v", tmp_path / "plain")
    checkpoint.convert(plain, tmp_path / "plain.safetensors", "ldm")
    assert "ztsnr" not in load_file(tmp_path / "plain.safetensors")
    checkpoint.convert(file, tmp_path / "folder", "diffusers")
    declare_torchvision_operators()
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler.from_pretrained(tmp_path / "folder" / "scheduler")
    ours = Schedule.from_config(ZERO_TERMINAL)
    torch.testing.assert_close(scheduler.alphas_cumprod.double(), ours.alphas_cumprod, rtol=1e-4, atol=1e-6)
    scheduler.set_timesteps(20)
    assert scheduler.timesteps.tolist() == ours.ddim_timesteps(20).flip(0).tolist()


def test_the_mark_of_zero_terminal_snr_means_nothing_of_a_network_that_predicts_noise(tmp_path: Path) -> None:
    file = source("zero-terminal-snr", tmp_path)
    checkpoint.convert(file, tmp_path / "model.safetensors", "ldm")
    read = checkpoint.read(tmp_path / "model.safetensors", ReadOptions(prediction="eps", image_size=32))
    assert not read.config.schedule.zero_terminal_snr
