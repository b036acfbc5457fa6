"""The ablation of a tiny teacher: rows that differ in one thing, from one seed and from several, and what is kept."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

from spectral_diffusion.spectral import checkpoint
from spectral_diffusion.training import ablate, cli
from spectral_diffusion.training.evaluation.table5 import ROWS
from spectral_diffusion.training.sample import sample_checkpoint

from .ablations import PROGRAM, again, model_of, read, state

SEVERAL = ["--seeds", "2", "--baselines", "true"]


@pytest.fixture(scope="module")
def several(ablation: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same folder, asked for a second seed and the baselines when the first was done."""
    folder = Path(shutil.copytree(ablation, tmp_path_factory.mktemp("several") / "place"))
    again(folder, *SEVERAL)
    return folder


# What it leaves


def test_rows_differ_in_their_parts_alone(ablation: Path) -> None:
    runs = {row: yaml.safe_load((ablation / "out" / row.name / "config.yaml").read_text()) for row in ROWS}
    for row, run in runs.items():
        assert run.pop("resampler") == ("wavelet" if row.gating else "conv")
        assert run["loss"].pop("spatial") == (0.1 if row.spatial else 0.0)
        assert run["loss"].pop("frequency") == (0.1 if row.frequency else 0.0)
        assert run["run"].pop("out") == f"out/{row.name}" and run.pop("title") == f"<Tiny> ({row.title})"
    assert all(run == runs[ROWS[0]] for run in runs.values())
    reports = [read(ablation / "out" / row.name / "evaluation" / "000002" / "report.json") for row in ROWS]
    models = [report["sampling"].pop("checkpoint") for report in reports]
    assert len(set(models)) == 8
    for part in ("sampling", "images", "data", "cutoff", "window", "features"):
        assert all(report[part] == reports[0][part] for report in reports), part


def test_the_table_holds_what_the_reports_say(ablation: Path) -> None:
    result = read(ablation / "out" / "ablation.json")
    assert result["complete"] and [row["name"] for row in result["rows"]] == [row.name for row in ROWS]
    for row, entry in zip(ROWS, result["rows"], strict=True):
        report = read(ablation / "out" / row.name / "evaluation" / "000002" / "report.json")
        assert entry["paper_fid"] == row.paper_fid
        for name in ("fd_effnet", "kid_effnet", "low_error", "high_error", "params", "macs"):
            assert entry[name] == report[name], name
    assert set(result["effects"]) == {"gating", "spatial", "frequency", "all"}
    about = result["about"]
    assert (about["steps"], about["images_per_step"], about["samples"], about["reference_images"]) == (2, 4, 6, 8)
    assert any("trained once" in note for note in result["notes"])


def test_the_page_says_plainly_what_is_compared(ablation: Path) -> None:
    html = (ablation / "out" / "ablation.html").read_text()
    assert "The numbers of the two cannot be compared" in html and "Ablation of &lt;Tiny&gt;" in html
    for source in re.findall(r"src='([^']*)'", html):
        assert source.startswith("data:image/")
    links = re.findall(r"href='([^']*)'", html)
    assert len(links) == 8 and all((ablation / "out" / link).is_file() for link in links)
    with Image.open(ablation / "out" / "grid.png") as grid:
        assert grid.height > 9 * 2 * 16
    for name in ("rows.png", "spectra.png"):
        with Image.open(ablation / "out" / name) as plot:
            assert plot.width > 500


# Several seeds, and what stands beside the rows


def reports_of(folder: Path, row: str) -> list[dict[str, Any]]:
    """Of both seeds."""
    return [read(folder / "out" / name / "evaluation" / "000002" / "report.json") for name in (row, f"{row}-seed-1")]


def test_more_seeds_keep_the_first(ablation: Path, several: Path) -> None:
    before, after = state(ablation / "out"), state(several / "out")
    rows = [row.name for row in ROWS]
    for path, known in before.items():
        place_in = path.relative_to(ablation)
        assert place_in.parts[1] not in rows or after[several / place_in] == known, place_in
    for row in ROWS:
        first, second = (
            yaml.safe_load((several / "out" / name / "config.yaml").read_text())
            for name in (row.name, f"{row.name}-seed-1")
        )
        assert (first["run"].pop("seed"), second["run"].pop("seed")) == (0, 1)
        assert second["run"].pop("out") == first["run"].pop("out") + "-seed-1"
        assert second.pop("title") == f"<Tiny> ({row.title}, seed 1)" and first.pop("title") and first == second
        one, other = (report["sampling"] for report in reports_of(several, row.name))
        assert one.pop("checkpoint") != other.pop("checkpoint") and one == other  # the same noise
    others = load_file(model_of(several / "out" / "all-seed-1"))
    assert any((others[name] != tensor).any() for name, tensor in load_file(model_of(several / "out" / "all")).items())


def test_several_seeds_have_a_mean_and_a_spread(several: Path) -> None:
    result = read(several / "out" / "ablation.json")
    assert result["complete"] and result["about"]["seeds"] == [0, 1] and result["about"]["seed"] == 0
    for row in result["rows"]:
        for name in ("fd_effnet", "kid_effnet", "low_error", "high_error"):
            values = [report[name] for report in reports_of(several, row["name"])]
            assert row["values"][name] == values
            assert row[name] == pytest.approx(np.mean(values), abs=1e-6)
            assert row["spread"][name] == pytest.approx(np.std(values, ddof=1), abs=1e-6)
        assert row["seeds"] == [0, 1] and row["report"] == row["reports"][0]
        assert all((several / "out" / report).is_file() for report in row["reports"])
    assert set(result["effects"]) == set(result["effects_spread"]) == set(result["improved"])
    assert result["improved"]["gating"]["pairs"] == 8 and result["improved"]["all"]["pairs"] == 2
    assert any("trained 2 times" in note for note in result["notes"])


def test_the_baselines_are_the_first_stage_and_the_teacher(several: Path) -> None:
    """Reconstructions in the samples' order, and the teacher's samples of the same prompts and noise as the rows'."""
    opened = checkpoint.load(several / "teacher.safetensors")
    assert opened.first_stage is not None
    order = torch.randperm(8, generator=torch.Generator().manual_seed(0)).tolist()[:6]
    files = sorted((several / "data").rglob("*.png"))
    shown = np.stack([np.asarray(Image.open(files[index]), dtype=np.float32) for index in order])
    pixels = torch.from_numpy(shown).movedim(-1, 1) / 127.5 - 1
    with torch.no_grad():
        decoded = opened.first_stage.decode(opened.first_stage.encode(pixels)).clamp(-1, 1) / 2 + 0.5
    sampled = sample_checkpoint(opened, [files[index].parent.name for index in order], steps=2)
    rows = {row["name"]: row for row in read(several / "out" / "ablation.json")["baselines"]}
    for name, expected in {"first-stage": decoded, "teacher": sampled}.items():
        folder = several / "out" / "baselines" / name
        made = [np.asarray(Image.open(path)) for path in sorted((folder / "images").iterdir())]
        assert np.abs(np.stack(made) - 255 * expected.movedim(1, -1).numpy()).max() < 0.6, name
        report = read(folder / "report.json")
        for column in ("fd_effnet", "kid_effnet", "kid_effnet_std", "low_error", "high_error", "params"):
            assert rows[name][column] == report[column], (name, column)
        assert rows[name]["report"] == f"baselines/{name}/report.html" and report["images"] == 6
    assert list(rows) == ["first-stage", "teacher"] and rows["first-stage"]["params"] is None
    assert rows["teacher"]["params"] > read(several / "out" / "ablation.json")["rows"][0]["params"]


def test_the_page_of_several_seeds(several: Path) -> None:
    html = (several / "out" / "ablation.html").read_text()
    row = read(several / "out" / "ablation.json")["rows"][0]
    links = re.findall(r"href='([^']*)'", html)
    assert len(links) == 8 * 2 + 2 and all((several / "out" / link).is_file() for link in links)
    cells = re.sub(r"<[^>]*>", " ", html.split("<table")[1].split("</table>")[0]).split()
    assert cells.count("±") == 8 * 4 and "first stage alone" in html and "seeds 0 and 1" in html
    numbers = [float(cell) for cell in cells[cells.index("17.3") + 1 :][:3:2]]
    assert numbers == pytest.approx([row["fd_effnet"], row["spread"]["fd_effnet"]], rel=0.05)
    assert html.count(" of 8</span>") == 3 * 4 and "All three parts against none: FD-EffNet" in html
    with Image.open(several / "out" / "grid.png") as grid:
        assert grid.height > 11 * 2 * 16


def test_several_seeds_are_not_done_again(
    several: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before, known = state(several / "out"), read(several / "out" / "ablation.json")
    monkeypatch.chdir(several)
    assert cli.main(["ablate", "--config", "config.yaml", *SEVERAL]) == 0
    assert read(several / "out" / "ablation.json") == known
    after = state(several / "out")
    assert all(after[path] == before[path] for path in after if path.parent != several / "out")
    said = capsys.readouterr()
    assert "Row 8 of 8 (seed 1): all" in said.err and "first stage alone  " in said.out
    assert re.search(r"17\.3 +\d+\.\d+ ± 0\.\d+ ", said.out) and re.search(r"\([0-8] of 8\)", said.out)


def test_a_stop_in_the_second_round_leaves_a_table(
    several: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of all rows; and the page of the first round, which was new. It then goes on to what it would have become."""
    monkeypatch.chdir(shutil.copytree(several, tmp_path / "place"))
    Path("out", "all", "evaluation", "000002", "report.json").unlink()
    for row in ROWS[2:]:
        shutil.rmtree(Path("out", f"{row.name}-seed-1"))
    command = ["ablate", "--config", "config.yaml", *SEVERAL]
    with monkeypatch.context() as patch:
        patch.setattr(ablate, "train", interrupted)
        assert cli.main(command) == 130
    found = read(Path("out", "ablation.json"))
    assert not found["complete"] and [row["seeds"] for row in found["rows"]] == [[0, 1]] * 2 + [[0]] * 6
    assert found["rows"][2]["spread"]["fd_effnet"] is None and found["improved"]["gating"]["pairs"] == 4
    assert any("1 to 2 times so far" in note for note in found["notes"])
    html = Path("out", "ablation.html").read_text()
    assert (
        "So far every row was trained once" in html
        and "seed 0. 6 samples" in html
        and "± 0." not in html
        and "of 4</span>" in html
    )
    for row in ROWS[3:]:
        shutil.copytree(several / "out" / f"{row.name}-seed-1", Path("out", f"{row.name}-seed-1"))
    assert cli.main(command) == 0
    assert read(Path("out", "ablation.json")) == read(several / "out" / "ablation.json")


def interrupted(config: Any) -> None:
    """In the place of a training."""
    raise KeyboardInterrupt


@pytest.mark.long
def test_two_processes_train_and_sample_together(ablation: Path, several: Path, copied: Path) -> None:
    """Two rows and the baselines in one launch: the processes stay together behind the first."""
    for row in ROWS[-2:]:
        shutil.rmtree(copied / "out" / row.name)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    ended = subprocess.run(
        [*launch, *PROGRAM, "--json", "--baselines", "true"], capture_output=True, text=True, timeout=300
    )
    assert ended.returncode == 0, ended.stderr
    result = json.loads(ended.stdout)
    report = read(copied / "out" / "all" / "evaluation" / "000002" / "report.json")
    assert report["throughput"]["processes"] == 2
    assert read(copied / "out" / "all" / "environment.json")["processes"] == 2
    expected = read(ablation / "out" / "ablation.json")["rows"][-1]
    assert result["complete"] and result["rows"][-1]["fd_effnet"] == pytest.approx(expected["fd_effnet"], rel=1e-2)
    assert "seeds" not in result["about"] and "spread" not in result["rows"][0]
    for ours, expected in zip(result["baselines"], read(several / "out" / "ablation.json")["baselines"], strict=True):
        assert ours["fd_effnet"] == pytest.approx(expected["fd_effnet"], rel=1e-2)


# What is kept of it


def test_what_is_kept_is_small_and_is_drawn_again(
    several: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = tmp_path / "kept"
    assert cli.main(["results", str(kept), "--of", str(several / "out")]) == 0
    assert read(kept / "ablation.json") == read(several / "out" / "ablation.json")
    for row in ROWS:
        for name in (row.name, f"{row.name}-seed-1"):
            report = read(several / "out" / name / "evaluation" / "000002" / "report.json")
            own = read(kept / "reports" / f"{name}.json")
            assert own["spectra"] == report["spectra"] and own["fd_effnet"] == report["fd_effnet"]
            log = (several / "out" / name / "statistics.jsonl").read_text()
            assert (kept / "logs" / f"{name}.jsonl").read_text() == log
    assert {path.stem for path in (kept / "reports").iterdir()} > {"teacher", "first-stage"}
    texts = [path.read_text() for path in kept.rglob("*") if path.suffix in (".json", ".jsonl", ".yaml", ".md")]
    assert not any(str(several) in text for text in texts)
    for name in ("rows.png", "spectra.png"):
        assert (kept / name).read_bytes() == (several / "out" / name).read_bytes()
        (kept / name).unlink()
    capsys.readouterr()
    assert cli.main(["results", str(kept), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {str(kept): read(kept / "ablation.json")}
    for name in ("rows.png", "spectra.png"):
        assert (kept / name).read_bytes() == (several / "out" / name).read_bytes()


def test_the_table_of_what_is_kept(several: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["results", str(tmp_path / "kept"), "--of", str(several / "out")]) == 0
    table = capsys.readouterr().out
    assert table.strip() == (tmp_path / "kept" / "table.md").read_text().strip()
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines() if line.startswith("|")]
    assert len(lines) == 2 + 8 + 2 and len({len(line) for line in lines}) == 1
    result = read(several / "out" / "ablation.json")
    column = lines[0].index("ours: FD-EffNet")
    for line, entry in zip(lines[2:], [*result["rows"], *result["baselines"]], strict=True):
        assert float(line[column].split(" ± ")[0]) == pytest.approx(entry["fd_effnet"], rel=0.02)
    assert [line[:4] for line in lines[2:10]] == [
        [*("✓" if on else "" for on in (row.gating, row.spatial, row.frequency)), f"{row.paper_fid:.1f}"]
        for row in ROWS
    ]


def test_what_cannot_be_kept_is_a_sentence(several: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def said(*arguments: str) -> str:
        assert cli.main(["results", *arguments]) == 2
        return capsys.readouterr().err

    assert "holds no ablation.json or compare.json; give a folder that ablate" in said(str(tmp_path))
    assert not list(tmp_path.iterdir())
    half = tmp_path / "half"
    shutil.copytree(several / "out", half, ignore=shutil.ignore_patterns("*.pt", "images"))
    (half / "ablation.json").write_text(json.dumps(read(half / "ablation.json") | {"complete": False}))
    assert "is not complete; run ablate again" in said(str(tmp_path / "kept"), "--of", str(half))
    assert "2 folders are given" in said("one", "two", "--of", str(half))
    assert not (tmp_path / "kept").exists()
