"""Accidents of real runs: signals, kills, losses that are no numbers, a full disk. Nothing is lost."""

from __future__ import annotations

import fcntl
import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor

from spectral_diffusion.spectral.errors import SpectralError
from spectral_diffusion.training.data.batches import Batch
from spectral_diffusion.training.loop.alone import alone
from spectral_diffusion.training.loop.fit import fit

from . import tiny, toy

TOY = [sys.executable, str(Path(toy.__file__ or ""))]
DISTILL = [sys.executable, "-m", "spectral_diffusion.training", "distill", "--config", "config.yaml"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where `distill --config config.yaml` distils for longer than anybody waits."""
    tiny.pictures(tmp_path / "data")
    tiny.teacher(tmp_path / "teacher.safetensors")
    run = {"out": "run", "steps": 9000, "batch_size": 4, "warmup": 1, "decay": "constant"}
    often = {"log_every": 1, "preview_every": 0, "checkpoint_every": 0}
    data = {"path": "data", "size": 16}
    settings = {"run": {**run, **often}, "teacher": "teacher.safetensors", "model_channels": 32, "data": data}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings))
    return tmp_path


def lines(run: Path) -> int:
    path = run / "statistics.jsonl"
    return len(path.read_text().splitlines()) if path.exists() else 0


def wait_for(condition: Any, process: subprocess.Popen[str], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end and process.poll() is None, process.communicate()
        time.sleep(0.01)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_run_with_a_checkpoint_from_which_it_goes_on(number: signal.Signals, folder: Path) -> None:
    process = subprocess.Popen(DISTILL, cwd=folder, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: lines(folder / "run") >= 3, process)
    process.send_signal(number)
    said = process.communicate(timeout=60)[1]
    (saved,) = (folder / "run" / "checkpoints").iterdir()
    done = int(saved.stem)
    assert process.returncode == 0 and done >= 3
    assert f"Stopped after step {done} of 9000; the same command goes on from there." in said
    assert not (folder / "run" / "student.safetensors").exists()
    if number == signal.SIGINT:
        return  # what it goes on with is the same
    for out in ("run", "whole"):
        ended = subprocess.run([*DISTILL, "--run.out", out, "--run.steps", str(done + 2)], cwd=folder, text=True)
        assert ended.returncode == 0
    resumed, whole = (load_file(folder / out / "student.safetensors") for out in ("run", "whole"))
    assert all(torch.equal(resumed[name], tensor) for name, tensor in whole.items())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_where_there_is_no_step_to_end_after_ends_a_command_in_order(number: signal.Signals) -> None:
    """As while data are read before a run's first step, even where readers take every error for damaged data."""
    program = """
import sys, time
from spectral_diffusion.training import cli
from spectral_diffusion.training.loop.stopping import stopping_in_order

@stopping_in_order()
def main(argv):
    print(flush=True)
    try:
        time.sleep(60)
    except Exception:
        print("damaged")

sys.exit(cli.run(main))
"""
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline()
    process.send_signal(number)
    out, said = process.communicate(timeout=60)
    assert (process.returncode, out, said) == (0, "", "Stopped; the same command goes on.\n")


@pytest.mark.parametrize("kills", [2, pytest.param(50, marks=pytest.mark.long)])
def test_a_run_that_is_killed_again_and_again_ends_with_the_same_bits(kills: int, tmp_path: Path) -> None:
    """At random moments, many of them in the middle of writing, for it writes a checkpoint at every step."""
    moments = random.Random(kills)
    killed = 0
    for _ in range(kills):
        process = subprocess.Popen([*TOY, str(tmp_path / "run"), "long"], stderr=subprocess.PIPE, text=True)
        before = lines(tmp_path / "run")
        wait_for(lambda before=before: lines(tmp_path / "run") > before, process)
        time.sleep(moments.uniform(0, 0.05))
        process.kill()
        process.communicate()
        killed += process.returncode == -signal.SIGKILL
    assert killed == kills
    ended = subprocess.run([*TOY, str(tmp_path / "run"), "long"], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    asked = toy.config(tmp_path / "whole", **toy.LONG)
    task = toy.Toy()
    fit(task, toy.Numbers(), asked, toy.no_preview)
    states = [
        torch.load(tmp_path / name / "checkpoints" / "00000300.pt", weights_only=True) for name in ("run", "whole")
    ]
    for part in ("task", "ema", "optimizer", "rng"):
        assert_same(states[0][part], states[1][part])
    assert lines(tmp_path / "run") == lines(tmp_path / "whole") == 300


def assert_same(one: Any, other: Any) -> None:
    if isinstance(one, Tensor):
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_same(one[key], other[key])
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other)
        for first, second in zip(one, other, strict=True):
            assert_same(first, second)
    else:
        assert one == other


class Ill(toy.Toy):
    """Whose loss is no number for the samples numbered so."""

    def __init__(self, numbers: set[int]) -> None:
        super().__init__()
        self.numbers = numbers

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        losses = super().forward(batch)
        if self.numbers & set(batch["ordinal"].tolist()):
            losses["loss"] = losses["loss"] * torch.nan
        return losses


def test_steps_without_a_number_are_skipped_and_counted(tmp_path: Path) -> None:
    """A stop in between does not forget them; batches have 4 samples, so these are of steps 2, 4 and 11."""
    task = Ill({5, 15, 42})
    asked = toy.config(tmp_path, steps=20, log_every=1, max_skipped=3)
    last = fit(task, toy.Numbers(), asked, toy.no_preview)
    assert last["skipped"] == 3 and all(parameter.isfinite().all() for parameter in task.parameters())
    assert lines(tmp_path) == 20
    more = toy.config(tmp_path, steps=24, log_every=1, max_skipped=3)
    with pytest.raises(
        SpectralError, match="not finite in 4 steps, the last of them step 22, more than run.max_skipped"
    ):
        fit(Ill({85}), toy.Numbers(), more, toy.no_preview)
    (left,) = tmp_path.glob("not-finite-*.pt")
    content = torch.load(left, weights_only=True)
    assert content["step"] == 22 and 85 in content["batches"][0]["batch"]["ordinal"]
    assert content["batches"][0]["losses"]["loss"].isnan()


def test_a_full_disk_leaves_the_checkpoints_that_there_are(tmp_path: Path) -> None:
    ended = subprocess.run([*TOY, str(tmp_path / "run"), "full"], capture_output=True, text=True)
    said = ended.stderr.strip().splitlines()[-1]
    assert ended.returncode == 2 and "Traceback" not in ended.stderr
    assert "00000030.pt could not be written (file too large); the checkpoint of step 20 is whole." in said
    assert sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir()) == ["00000010.pt", "00000020.pt"]
    asked = toy.config(tmp_path / "run")
    fit(toy.Toy(), toy.Numbers(), asked, toy.no_preview)


def test_a_checkpoint_of_which_a_bit_has_changed_is_not_gone_on_with(tmp_path: Path) -> None:
    out = tmp_path / "run"
    fit(toy.Toy(), toy.Numbers(), toy.config(out), toy.no_preview)
    newest = max((out / "checkpoints").iterdir())
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    with pytest.raises(SpectralError, match="cannot be read as a checkpoint; remove it"):
        fit(toy.Toy(), toy.Numbers(), toy.config(out), toy.no_preview)
    newest.unlink()
    fit(toy.Toy(), toy.Numbers(), toy.config(out), toy.no_preview)


def test_two_runs_do_not_share_a_folder(tmp_path: Path) -> None:
    """Here another process holds the lock; it is free as soon as that has been killed."""
    holds = "import fcntl, sys, time; file = open(sys.argv[1], 'a'); fcntl.lockf(file, fcntl.LOCK_EX); "
    holds += "print(flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", holds, str(tmp_path / "lock")], stdout=subprocess.PIPE) as other:
        assert other.stdout is not None and other.stdout.readline()
        with pytest.raises(SpectralError, match="Another process trains in"), alone(tmp_path, patience=0.2):
            pass
        with alone(tmp_path, main=False, patience=0):
            pass
        other.kill()
    with alone(tmp_path, patience=0), (tmp_path / "other").open("w") as file:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # nor are other files in it held


def test_processes_do_not_outlive_a_launcher_that_was_killed(folder: Path) -> None:
    """They would go on in the folder in which the same command starts anew."""
    program = ["-m", "spectral_diffusion.training.distill", "--config", "config.yaml"]
    launcher = subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", *program],
        cwd=folder,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for(lambda: lines(folder / "run") >= 2, launcher)
    children = [
        int(number) for number in Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
    ]
    assert len(children) == 2
    launcher.kill()
    launcher.wait()
    end = time.monotonic() + 30
    while any(alive(number) for number in children):
        assert time.monotonic() < end
        time.sleep(0.05)


def alive(number: int) -> bool:
    """Whether a process computes still; one that nobody has waited for does not."""
    try:
        return Path(f"/proc/{number}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def launched(folder: Path, launch: list[str], out: str, steps: int) -> int:
    """The distillation in `folder` with that many steps, by a launcher; how many processes it had."""
    program = ["-m", "spectral_diffusion.training.distill", "--config", "config.yaml"]
    options = ["--run.out", out, "--run.steps", str(steps)]
    command = [sys.executable, "-m", *launch, *program, *options]
    ended = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr
    return int(json.loads((folder / out / "environment.json").read_text())["processes"])


def test_two_processes_learn_what_one_does(folder: Path) -> None:
    """The same images a step, the same noise for each, so the same weights; a run may go on with fewer processes."""
    assert launched(folder, ["accelerate.commands.launch", "--cpu", "--num_processes", "1"], "one", 6) == 1
    assert launched(folder, ["accelerate.commands.launch", "--cpu", "--num_processes", "2"], "two", 6) == 2
    assert launched(folder, ["torch.distributed.run", "--nproc_per_node", "2"], "less", 3) == 2
    assert launched(folder, ["accelerate.commands.launch", "--cpu"], "less", 6) == 1
    one = load_file(folder / "one" / "student.safetensors")
    for name in ("two", "less"):
        other = load_file(folder / name / "student.safetensors")
        worst = max((other[key].float() - tensor.float()).abs().max().item() for key, tensor in one.items())
        assert worst < 2e-3, (name, worst)
