"""An ablation is never done twice, goes on after accidents, may be shared out, and refuses what it cannot do."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from spectral_diffusion.training import cli
from spectral_diffusion.training.evaluation.table5 import ROWS

from .ablations import PROGRAM, model_of, read, state


def refusal(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The sentence with which `ablate` ends in exit code 2."""
    assert cli.main(["ablate", "--config", "config.yaml", *arguments]) == 2
    return capsys.readouterr().err.strip().splitlines()[-1]


# Stops and restarts


def test_a_finished_ablation_is_not_done_again(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before, known = state(copied / "out"), read(copied / "out" / "ablation.json")
    capsys.readouterr()
    assert cli.main(["ablate", "--config", "config.yaml", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == known
    after = state(copied / "out")
    assert {path.name for path in after if after[path] != before[path]} <= {
        "config.yaml",
        "ablation.json",
        "ablation.html",
        "rows.png",
        "grid.png",
        "spectra.png",
    }
    assert all(after[path] == before[path] for path in after if path.parent != copied / "out")


def test_a_killed_row_goes_on_and_the_others_stay(ablation: Path, copied: Path) -> None:
    """Killed behind its first checkpoint, it ends with the weights of the row that was not."""
    last = copied / "out" / "all"
    shutil.rmtree(last)
    others = {path: now for path, now in state(copied / "out").items() if path.parent != copied / "out"}
    process = subprocess.Popen([sys.executable, *PROGRAM], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list(last.glob("checkpoints/*.pt")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    process.kill()
    assert process.wait() == -signal.SIGKILL and not list(last.glob("*.safetensors"))
    assert cli.main(["ablate", "--config", "config.yaml"]) == 0
    whole, again = (load_file(model_of(folder / "out" / "all")) for folder in (ablation, copied))
    assert all((again[name] == tensor).all() for name, tensor in whole.items())
    assert state(copied / "out").items() >= others.items()
    rows = [read(folder / "out" / "ablation.json")["rows"] for folder in (ablation, copied)]
    assert rows[0] == rows[1]


@pytest.mark.long
def test_a_signal_ends_it_with_a_checkpoint(copied: Path) -> None:
    shutil.rmtree(copied / "out")
    long = ["--run.steps", "9000", "--run.checkpoint_every", "0"]
    process = subprocess.Popen([sys.executable, *PROGRAM, *long], stderr=subprocess.PIPE, text=True)
    lines = copied / "out" / "none" / "statistics.jsonl"
    deadline = time.monotonic() + 120
    while not (lines.exists() and lines.read_text().count("\n") > 2) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 0 and "of 9000; the same command goes on from there." in said
    assert len(list((copied / "out" / "none" / "checkpoints").iterdir())) == 1
    assert not (copied / "out" / "ablation.json").exists() and not (copied / "out" / "wg").exists()


@pytest.mark.long
def test_a_row_with_more_steps_is_trained_on(copied: Path) -> None:
    """And measured anew, beside what was known of it before."""
    before = state(copied / "out" / "all" / "evaluation")
    assert cli.main(["ablate", "--config", "config.yaml", "--run.steps", "3"]) == 0
    assert read(copied / "out" / "ablation.json")["about"]["steps"] == 3
    for row in ROWS:
        steps = [json.loads(line)["step"] for line in (copied / "out" / row.name / "statistics.jsonl").open()]
        assert steps == [1, 2, 3]
    assert state(copied / "out" / "all" / "evaluation").items() > before.items()


@pytest.mark.long
def test_rows_may_be_shared_out(ablation: Path, copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two ablations at a time in one folder, each of some rows; a third finds them all and leaves the table."""
    names = [row.name for row in ROWS]
    shares = names[:3], names[3:]
    command = [sys.executable, *PROGRAM, "--run.out", "shared", "--rows"]
    running = [
        subprocess.Popen([*command, json.dumps(share)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for share in shares
    ]
    for process, share in zip(running, shares, strict=True):
        said, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
        assert f"Row {len(share)} of {len(share)}" in errors and "Run ablate without rows" in said
    assert not list((copied / "shared").glob("ablation.*"))
    models = {path: path.stat().st_mtime_ns for path in (copied / "shared").rglob("*.safetensors")}
    capsys.readouterr()
    assert cli.main(["ablate", "--config", "config.yaml", "--run.out", "shared"]) == 0
    assert len(models) == 8 and all(path.stat().st_mtime_ns == made for path, made in models.items())
    assert "ablation.html" in capsys.readouterr().out
    together, alone = (read(copied / folder / "ablation.json") for folder in ("shared", "out"))
    assert together["complete"] and together["rows"] == alone["rows"] and together["effects"] == alone["effects"]


# What is refused


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--loss.spatial", "0"], "loss.spatial is 0; an ablation turns it off itself"),
        (["--loss.frequency", "0"], "loss.frequency is 0"),
        (["--loss.ddpm", "0"], "loss.ddpm is 0, but rows without distillation have nothing else to learn from"),
        (["--resampler", "conv"], "leave it out"),
        (["--few_steps", "4"], "few_steps is 4, but rows differ in a spatial term"),
        (["--init", "other.safetensors"], "an ablation trains two kinds of networks"),
        (["--data.path", "pipe:cat x.tar"], "give such images as reference.path"),
        (["--data.path", "nowhere"], "No data at nowhere"),
        (["--evaluation.steps", "1001"], "1 to 1000 steps"),
        (["--evaluation.count", "3"], "count has 3 images"),
        (["--evaluation.size", "17"], "multiples of 2"),
        (["--evaluation.cutoff", "9"], "choose one from 2 to 8"),
        (["--evaluation.clip", "clip.pt"], "clip.pt"),
        (["--evaluation.steps", "3"], "made with steps = 2, not 3"),
        (["--loss.alpha", "-2"], "out/none holds a run with loss.alpha = -1.0, not -2.0"),
        (["--run.steps", "1"], "out/none has 2 steps already"),
        (["--teacher", "data"], "data is a folder"),
        (["--seeds", "0"], "seeds is 0; expected 1 to 100 trainings"),
        (["--seeds", "101"], "seeds is 101; expected 1 to 100 trainings"),
        (["--run.seed", "4294967295", "--seeds", "2"], "the last seed may be 4294967295"),
        (["--rows", '["wavelet"]'], "rows has 'wavelet'; expected some of none, wg, spatial, frequency, wg-spatial"),
        (["--run.seed", "1"], "out/none holds a run with run.seed = 0, not 1"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_done_is_a_sentence(
    options: list[str], says: str, copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = state(copied / "out")
    assert says in refusal(options, capsys)
    assert state(copied / "out") == before


def test_other_pictures_in_the_place_of_the_data_are_refused(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    next((copied / "data" / "red").iterdir()).unlink()
    assert "run whose data was not what data holds now" in refusal([], capsys)
