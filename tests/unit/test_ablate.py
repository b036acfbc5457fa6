"""The ablation of a tiny teacher: rows that differ in one thing, never done twice, gone on with after accidents."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image
from safetensors.torch import load_file

from spectral_diffusion.training import cli
from spectral_diffusion.training.evaluation.table5 import ROWS

from . import tiny

RUN = {"steps": 2, "batch_size": 4, "warmup": 1, "log_every": 1, "preview_every": 0, "checkpoint_every": 1}
PROGRAM = ["-m", "spectral_diffusion.training.ablate", "--config", "config.yaml"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a teacher, data, and what an ablation left in `out`."""
    folder = tmp_path_factory.mktemp("ablate")
    tiny.pictures(folder / "data")
    tiny.teacher(folder / "teacher.safetensors")
    settings: dict[str, Any] = {"run": {"out": "out", **RUN}, "teacher": "teacher.safetensors", "model_channels": 32}
    settings |= {"data": {"path": "data", "size": 16}, "evaluation": {"steps": 2, "count": 6, "batch": 2}}
    (folder / "config.yaml").write_text(yaml.safe_dump({**settings, "title": "<Tiny>"}))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert cli.main(["ablate", "--config", "config.yaml"]) == 0
    return folder


@pytest.fixture
def copied(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same folder, to change, where the test is in."""
    folder = Path(shutil.copytree(place, tmp_path / "place"))
    monkeypatch.chdir(folder)
    return folder


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def model_of(folder: Path) -> Path:
    return next(path for path in folder.glob("*.safetensors"))


def state(folder: Path) -> dict[Path, tuple[int, int]]:
    """Size and time of every file."""
    return {path: (path.stat().st_size, path.stat().st_mtime_ns) for path in folder.rglob("*") if path.is_file()}


def refusal(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The sentence with which `ablate` ends in exit code 2."""
    assert cli.main(["ablate", "--config", "config.yaml", *arguments]) == 2
    return capsys.readouterr().err.strip().splitlines()[-1]


# What it leaves


def test_rows_differ_in_their_parts_alone(place: Path) -> None:
    runs = {row: yaml.safe_load((place / "out" / row.name / "config.yaml").read_text()) for row in ROWS}
    for row, run in runs.items():
        assert run.pop("resampler") == ("wavelet" if row.gating else "conv")
        assert run["loss"].pop("spatial") == (0.1 if row.spatial else 0.0)
        assert run["loss"].pop("frequency") == (0.1 if row.frequency else 0.0)
        assert run["run"].pop("out") == f"out/{row.name}" and run.pop("title") == f"<Tiny> ({row.title})"
    assert all(run == runs[ROWS[0]] for run in runs.values())
    reports = [read(place / "out" / row.name / "evaluation" / "000002" / "report.json") for row in ROWS]
    models = [report["sampling"].pop("checkpoint") for report in reports]
    assert len(set(models)) == 8
    for part in ("sampling", "images", "data", "cutoff", "window", "features"):
        assert all(report[part] == reports[0][part] for report in reports), part


def test_the_table_holds_what_the_reports_say(place: Path) -> None:
    result = read(place / "out" / "ablation.json")
    assert result["complete"] and [row["name"] for row in result["rows"]] == [row.name for row in ROWS]
    for row, entry in zip(ROWS, result["rows"], strict=True):
        report = read(place / "out" / row.name / "evaluation" / "000002" / "report.json")
        assert entry["paper_fid"] == row.paper_fid
        for name in ("fd_effnet", "kid_effnet", "low_error", "high_error", "params", "macs"):
            assert entry[name] == report[name], name
    assert set(result["effects"]) == {"gating", "spatial", "frequency", "all"}
    about = result["about"]
    assert (about["steps"], about["images_per_step"], about["samples"], about["reference_images"]) == (2, 4, 6, 8)
    assert any("trained once" in note for note in result["notes"])


def test_the_page_says_plainly_what_is_compared(place: Path) -> None:
    html = (place / "out" / "ablation.html").read_text()
    assert "The numbers of the two cannot be compared" in html and "Ablation of &lt;Tiny&gt;" in html
    for source in re.findall(r"src='([^']*)'", html):
        assert source.startswith("data:image/")
    links = re.findall(r"href='([^']*)'", html)
    assert len(links) == 8 and all((place / "out" / link).is_file() for link in links)
    with Image.open(place / "out" / "grid.png") as grid, Image.open(place / "out" / "spectra.png") as plot:
        assert grid.height > 9 * 2 * 16 and plot.width > 500


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
        "grid.png",
        "spectra.png",
    }
    assert all(after[path] == before[path] for path in after if path.parent != copied / "out")


def test_a_killed_row_goes_on_and_the_others_stay(place: Path, copied: Path) -> None:
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
    whole, again = (load_file(model_of(folder / "out" / "all")) for folder in (place, copied))
    assert all((again[name] == tensor).all() for name, tensor in whole.items())
    assert state(copied / "out").items() >= others.items()
    rows = [read(folder / "out" / "ablation.json")["rows"] for folder in (place, copied)]
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
def test_two_processes_train_and_sample_together(place: Path, copied: Path) -> None:
    """Two rows in one launch: the processes stay together behind the first."""
    for row in ROWS[-2:]:
        shutil.rmtree(copied / "out" / row.name)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    ended = subprocess.run([*launch, *PROGRAM, "--json"], capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr
    result = json.loads(ended.stdout)
    report = read(copied / "out" / "all" / "evaluation" / "000002" / "report.json")
    assert report["throughput"]["processes"] == 2
    assert read(copied / "out" / "all" / "environment.json")["processes"] == 2
    expected = read(place / "out" / "ablation.json")["rows"][-1]
    assert result["complete"] and result["rows"][-1]["fd_effnet"] == pytest.approx(expected["fd_effnet"], rel=1e-2)


# What is refused


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--loss.spatial", "0"], "loss.spatial is 0; an ablation turns it off itself"),
        (["--loss.frequency", "0"], "loss.frequency is 0"),
        (["--resampler", "conv"], "leave it out"),
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
