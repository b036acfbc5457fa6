"""The training commands as a person runs them, on tiny models: what they leave behind, and what they refuse."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image

from spectral_diffusion.spectral import checkpoint
from spectral_diffusion.spectral.config import ModelConfig
from spectral_diffusion.training import cli
from spectral_diffusion.training.sample import sample_checkpoint

from . import tiny

CONFIGS = sorted((Path(cli.__file__).parent / "configs").glob("*.yaml"))
SHORT = {"steps": 4, "batch_size": 4, "warmup": 1, "log_every": 2, "preview_every": 2, "checkpoint_every": 2}


@pytest.fixture
def configuration(tmp_path: Path) -> Path:
    """A folder with a teacher, data, and the YAML file of a run that distils four steps in `run`."""
    tiny.pictures(tmp_path / "data")
    tiny.teacher(tmp_path / "teacher.safetensors")
    return write(
        tmp_path / "config.yaml",
        run={"out": "run", **SHORT},
        teacher="teacher.safetensors",
        model_channels=32,
        data={"path": "data", "size": 16},
    )


def write(path: Path, **settings: Any) -> Path:
    path.write_text(yaml.safe_dump(settings))
    return path


def command(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """`spectral-diffusion …` as another process."""
    program = Path(sys.executable).with_name("spectral-diffusion")
    return subprocess.run([str(program), *arguments], cwd=cwd, capture_output=True, text=True)


def refusal(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The sentence with which a command ends in exit code 2."""
    assert cli.main(arguments) == 2
    captured = capsys.readouterr()
    said = captured.err.strip().splitlines()
    assert len(said) == 1 and captured.out == ""
    return said[0]


def test_distill_leaves_a_run_that_explains_itself_and_a_student_that_samples(configuration: Path) -> None:
    folder = configuration.parent
    done = command("distill", "--config", "config.yaml", "--loss.alpha", "-0.5", "--json", cwd=folder)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    run = folder / "run"
    assert sorted(file.name for file in run.iterdir()) == [
        "checkpoints",
        "config.yaml",
        "environment.json",
        "lock",
        "previews",
        "statistics.jsonl",
        "student.safetensors",
        "tensorboard",
    ]
    resolved = yaml.safe_load((run / "config.yaml").read_text())
    assert (resolved["loss"]["alpha"], resolved["model_channels"], resolved["run"]["ema"]) == (-0.5, 32, 0.999)
    lines = [json.loads(line) for line in (run / "statistics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4]
    assert {"loss", "ddpm", "spatial", "frequency", "images_per_s"} <= set(lines[0])
    assert result["loss"] == lines[-1]["loss"]
    for step in (2, 4):
        with Image.open(run / "previews" / f"{step:06d}.png") as preview:
            assert preview.width >= 32
        assert (run / "previews" / f"{step:06d}-spectra.png").stat().st_size > 5000
        assert (run / "checkpoints" / f"{step:08d}.pt").exists()
    environment = json.loads((run / "environment.json").read_text())
    assert environment["command"][1:] == ["distill", "--config", "config.yaml", "--loss.alpha", "-0.5", "--json"]
    student = checkpoint.load(folder / result["path"])
    assert student.config.kind == "student"
    assert student.config.training["command"].endswith(
        "spectral-diffusion distill --config config.yaml --loss.alpha -0.5 --json"
    )
    images = sample_checkpoint(student, ["red", "blue"], steps=2)
    assert images.shape == (2, 3, 16, 16) and images.isfinite().all()


def test_the_written_configuration_repeats_the_run(configuration: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(configuration.parent)
    assert cli.main(["distill", "--config", "config.yaml", "--loss.taps.middle", "false"]) == 0
    first = checkpoint.read("run/student.safetensors").tensors
    assert cli.main(["distill", "--config", "run/config.yaml", "--run.out", "again"]) == 0
    again = checkpoint.read("again/student.safetensors").tensors
    assert all(torch.equal(tensor, again[name]) for name, tensor in first.items())


def test_a_typo_in_a_key_is_a_sentence_and_exit_code_2(configuration: Path) -> None:
    """In a process of its own: no traceback, and no run."""
    text = configuration.read_text()
    configuration.write_text(text.replace("batch_size", "batchsize"))
    done = command("distill", "--config", "config.yaml", cwd=configuration.parent)
    assert done.returncode == 2 and done.stdout == ""
    assert "batchsize" in done.stderr and "Traceback" not in done.stderr and len(done.stderr.splitlines()) == 1
    assert not (configuration.parent / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--teacher", "missing.safetensors"], "No checkpoint at missing.safetensors"),
        (["--teacher", "data"], "data is a folder"),
        (["--data.path", "missing"], "No data at missing"),
        (["--data.subgroups", "[green]"], "no images in the groups green"),
        (["--model_channels", "33"], "model_channels is 33"),
        (["--wavelet", "no-such"], "no-such"),
        (["--run.steps", "many"], "steps"),
        (["--run.steps", "0"], "run.steps is 0"),
        (["--run.lr", "-1"], "run.lr is -1"),
        (["--run.lr", ".nan"], "run.lr is nan"),
        (["--run.ema", "1"], "run.ema is 1"),
        (["--run.preview_every", "-1"], "run.preview_every is -1"),
        (["--run.checkpoint_every", "-1"], "run.checkpoint_every is -1"),
        (["--run.seed", "-1"], "seed is -1"),
        (["--dropout", "1.5"], "dropout is 1.5"),
        (["--data.size", "32"], "trained at 16 pixels, data.size is 32"),
        (["--run.decay", "exponential"], "exponential"),
        (["--loss.spacial", "1"], "spacial"),
        (["--nonsense"], "nonsense"),
        (["--run.step", "3"], "run.step"),
        (["--run.out", ""], "run.out is empty"),
        (["--run.accumulate", "1000000000"], "run.accumulate is 1000000000"),
        (["--run.optimizer", "adamw8bit"], "needs the package bitsandbytes"),
        (["--run.trackers", "[clearml]"], "run.trackers names clearml, which is not installed here"),
        (["--config", "missing.yaml"], "missing.yaml"),
        (["--config", "teacher.safetensors"], "teacher.safetensors"),
        (["--config=teacher.safetensors"], "teacher.safetensors"),
        (["--config", "tab.yaml"], "tab.yaml, line 2"),
        (["--config", "flat.yaml"], "flat.yaml: data should hold settings, each with its name, not 5"),
        (["--config", "deep.yaml"], "deep.yaml: loss: taps should hold settings"),
        (["--loss.spatial", "-1"], "loss.spatial is -1"),
        (["--loss.alpha", "1e9"], "loss.alpha is"),
        (["--run.batch_size", "100000000000"], "run.batch_size is 100000000000"),
        (["--data.size", "1000000"], "data.size is 1000000"),
        (["--model_channels", "100000000"], "model_channels is 100000000"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_distill_cannot_do_is_a_sentence(
    arguments: list[str],
    says: str,
    configuration: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(configuration.parent)
    Path("tab.yaml").write_text("run:\n\tsteps: 3\n")
    Path("flat.yaml").write_text("data: 5\n")
    Path("deep.yaml").write_text("loss:\n  taps: 1\n")
    assert says in refusal(["distill", "--config", "config.yaml", *arguments], capsys)
    assert not Path("run").exists()


def test_a_run_goes_on_only_as_what_it_was(
    configuration: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(configuration.parent)
    assert cli.main(["distill", "--config", "config.yaml"]) == 0
    before = {file: file.read_bytes() for file in Path("run").rglob("*") if file.is_file()}
    capsys.readouterr()
    said = refusal(["distill", "--config", "config.yaml", "--loss.alpha", "-2", "--run.steps", "6"], capsys)
    assert "run holds a run with loss.alpha = -1.0, not -2.0" in said
    assert {file: file.read_bytes() for file in Path("run").rglob("*") if file.is_file()} == before
    assert cli.main(["distill", "--config", "config.yaml", "--run.steps", "6"]) == 0
    steps = [json.loads(line)["step"] for line in Path("run/statistics.jsonl").read_text().splitlines()]
    assert steps == [2, 4, 6]
    before = {file: file.read_bytes() for file in Path("run").rglob("*") if file.is_file()}
    capsys.readouterr()
    assert "has 6 steps already" in refusal(["distill", "--config", "config.yaml"], capsys)
    assert {file: file.read_bytes() for file in Path("run").rglob("*") if file.is_file()} == before


def test_a_run_goes_on_only_with_the_teacher_that_it_had(
    configuration: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same file elsewhere is the same teacher; another file in its place is not."""
    monkeypatch.chdir(configuration.parent)
    assert cli.main(["distill", "--config", "config.yaml"]) == 0
    Path("teacher.safetensors").rename("elsewhere.safetensors")
    more = ["distill", "--config", "config.yaml", "--run.steps", "6", "--teacher"]
    assert cli.main([*more, "elsewhere.safetensors"]) == 0
    opened = checkpoint.load("elsewhere.safetensors")
    checkpoint.save(
        "other.safetensors",
        opened.config,
        unet=opened.unet,
        first_stage=opened.first_stage,
        conditioner=opened.conditioner,
        title="another",
    )
    capsys.readouterr()
    assert "run holds a run whose teacher was not what other.safetensors holds now" in refusal(
        [*more, "other.safetensors"], capsys
    )
    more.append("elsewhere.safetensors")
    Path("data").rename("pictures")
    assert cli.main([*more, "--data.path", "pictures"]) == 0
    next(Path("pictures/red").iterdir()).unlink()
    capsys.readouterr()
    assert "run holds a run whose data was not what pictures holds now" in refusal(
        [*more, "--data.path", "pictures"], capsys
    )
    Path("run/config.yaml").write_text("")
    assert "config.yaml is damaged" in refusal([*more, "--data.path", "pictures"], capsys)


def test_without_intervals_there_is_one_checkpoint_at_the_end(
    configuration: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(configuration.parent)
    every = ["--run.checkpoint_every", "0", "--run.preview_every", "0"]
    assert cli.main(["distill", "--config", "config.yaml", *every]) == 0
    assert [file.name for file in Path("run/checkpoints").iterdir()] == ["00000004.pt"]
    assert not Path("run/previews").exists()


def test_the_noise_schedule_of_a_run_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`schedule.steps` is not `run.steps`."""
    monkeypatch.chdir(tmp_path)
    tiny.pictures(tmp_path / "data", 2)
    tiny.write(tmp_path / "a.safetensors", ModelConfig("autoencoder", first_stage=tiny.FIRST_STAGE))
    unet = {"in_channels": 4, "out_channels": 4, "model_channels": 32, "attention_resolutions": [2], "image_size": 8}
    unet |= {"num_res_blocks": 1, "channel_mult": [1, 2], "num_head_channels": 32}
    write(
        tmp_path / "t.yaml",
        run={"out": "t", **SHORT},
        autoencoder="a.safetensors",
        unet=unet,
        data={"path": "data", "size": 16},
    )
    assert cli.main(["train-teacher", "--config", "t.yaml"]) == 0
    capsys.readouterr()
    again = ["train-teacher", "--config", "t.yaml", "--run.steps", "6", "--schedule.steps", "500"]
    assert "schedule.steps = 1000, not 500" in refusal(again, capsys)


@pytest.mark.parametrize("name", ["in_channels", "out_ch"])
def test_a_first_stage_is_trained_on_colours(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "a.yaml", run={"out": "a", **SHORT})
    said = refusal(["train-autoencoder", "--config", "a.yaml", f"--first_stage.{name}", "1"], capsys)
    assert "3 channels" in said and not Path("a").exists()


def test_a_run_without_its_required_settings_says_which(capsys: pytest.CaptureFixture[str]) -> None:
    assert "run.out" in refusal(["distill", "--teacher", "a.safetensors"], capsys)


@pytest.mark.parametrize("kind", ["text", "class", "none"])
def test_from_images_to_a_teacher_and_a_student(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole road: autoencoder, teacher, student; each opens, and knows where it comes from."""
    monkeypatch.chdir(tmp_path)
    tiny.pictures(tmp_path / "data")
    data = {"path": "data", "size": 16}
    first_stage = {"kind": "kl", "embed_dim": 4, "z_channels": 4, "ch": 32, "ch_mult": [1, 1], "num_res_blocks": 1}
    write(tmp_path / "a.yaml", run={"out": "a", **SHORT}, data=data, first_stage={**first_stage, "resolution": 16})
    assert cli.main(["train-autoencoder", "--config", "a.yaml"]) == 0
    unet = {"in_channels": 4, "out_channels": 4, "model_channels": 32, "attention_resolutions": [2], "image_size": 8}
    unet |= {"num_res_blocks": 1, "channel_mult": [1, 2], "num_head_channels": 32}
    conditioning = {"kind": kind}
    if kind != "none":
        unet |= {"use_spatial_transformer": True, "context_dim": 32}
        conditioning |= {"width": 32, **({"layers": 1, "heads": 2} if kind == "text" else {})}
    about = {"unet": unet, "conditioning": conditioning, "autoencoder": "a/autoencoder.safetensors"}
    write(tmp_path / "t.yaml", run={"out": "t", **SHORT}, data=data, **about)
    assert cli.main(["train-teacher", "--config", "t.yaml"]) == 0
    teacher = checkpoint.load("t/teacher.safetensors")
    assert teacher.config.kind == "teacher" and teacher.config.conditioning.kind == kind
    assert teacher.config.conditioning.class_names == (("blue", "red") if kind == "class" else ())
    latents_std = 1 / checkpoint.read("a/autoencoder.safetensors").config.scale_factor
    assert teacher.config.scale_factor == pytest.approx(1 / latents_std)
    write(tmp_path / "s.yaml", run={"out": "s", **SHORT}, data=data, teacher="t/teacher.safetensors", model_channels=32)
    assert cli.main(["distill", "--config", "s.yaml"]) == 0
    student = checkpoint.load("s/student.safetensors")
    assert student.config.teacher_sha256 == teacher.file.sha256
    assert student.config.training["teacher"]["autoencoder"]["images"] == 8
    assert sample_checkpoint(student, ["", ""], steps=2).shape == (2, 3, 16, 16)


TEACHER = {"in_channels": "4", "out_channels": "4", "model_channels": "32", "attention_resolutions": "[2]"}
TRANSFORMER = ["--unet.use_spatial_transformer", "true", "--unet.context_dim", "8", "--conditioning.width", "16"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--unet.in_channels", "3"], "4 latent channels"),
        (["--unet.model_channels", "40"], "multiple of 32"),
        (
            ["--conditioning.kind", "class", "--conditioning.width", "16"],
            "kind is class, but unet.use_spatial_transformer is False",
        ),
        (["--conditioning.kind", "class", *TRANSFORMER], "context_dim is 8, but conditioning.width 16"),
        (["--autoencoder", "unet.safetensors"], "unet.safetensors holds no first stage"),
        (["--schedule.linear_end", "3"], "0 < β < 1"),
        (["--conditioning.kind", "external", *TRANSFORMER], "external has nothing to train"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_train_teacher_cannot_do_is_a_sentence(
    arguments: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    tiny.pictures(tmp_path / "data", 2)
    tiny.write(tmp_path / "autoencoder.safetensors", ModelConfig("autoencoder", first_stage=tiny.FIRST_STAGE))
    tiny.write(tmp_path / "unet.safetensors", ModelConfig("teacher", tiny.UNCONDITIONAL))
    given = [text for name, value in TEACHER.items() for text in (f"--unet.{name}", value)]
    given += [
        "--unet.num_head_channels",
        "32",
        "--unet.image_size",
        "8",
        "--autoencoder",
        "autoencoder.safetensors",
        "--run.out",
        "run",
    ]
    given += ["--run.steps", "1", "--data.path", "data", "--data.size", "16"]
    said = refusal(["train-teacher", *given, *arguments], capsys)
    assert re.search(says, said), said
    assert not Path("run").exists()


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_shipped_configurations_are_commented_and_have_known_keys_alone(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Parsed by the command that their comment names, with an override that stops them before anything is done."""
    words = next(line for line in path.read_text().splitlines() if "spectral-diffusion" in line).split()
    name = words[words.index("spectral-diffusion") + 1]
    said = refusal([name, "--config", str(path), "--run.steps", "0"], capsys)
    assert said.startswith("run.steps is 0")


def test_help_and_unknown_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    listing = capsys.readouterr().out
    assert all(f"  {name} " in listing for name in cli.COMMANDS)
    assert "no command 'destill'" in refusal(["destill"], capsys)
    assert cli.main([]) == 2


@pytest.mark.parametrize(
    "name",
    [*sorted(set(cli.COMMANDS) - {"data"}), *(f"data {name}" for name in ("cache", "imagine", "emoji", "photographs"))],
)
def test_every_command_has_help_with_defaults(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main([*name.split(), "--help"])
    assert caught.value.code == 0
    said = capsys.readouterr().out
    # jsonargparse leaves the default out where there is none; --json is there for every command.
    assert f"spectral-diffusion {name}" in said and "--json" in said and said.count("default") > 1
