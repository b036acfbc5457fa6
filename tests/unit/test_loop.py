"""The training loop on a toy: averages, learning rates, what a run leaves behind, and exact resume."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import subprocess
import sys
from functools import partialmethod
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from spectral_diffusion.spectral.errors import SpectralError
from spectral_diffusion.training.loop.ema import EMA
from spectral_diffusion.training.loop.fit import fit
from spectral_diffusion.training.loop.optimizer import set_learning_rate

from . import toy
from .toy import Numbers, Toy, config, no_preview

State = dict[str, Tensor]


def run(out: Path, preview: Any = no_preview, width: int = 8, **settings: Any) -> tuple[State, dict[str, float]]:
    """A finished run: its weights, and what `fit` returned."""
    task = Toy(width)
    asked = config(out, **settings)
    statistics = fit(task, Numbers(), asked, preview)
    return task.state_dict(), statistics


def lines(out: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (out / "statistics.jsonl").read_text().splitlines()]


def assert_same(state: State, other: State) -> None:
    assert state.keys() == other.keys()
    assert [name for name in state if not torch.equal(state[name], other[name])] == []


@pytest.mark.parametrize("decay", [0.9, 0.999])
def test_ema_follows_its_closed_form(decay: float) -> None:
    """a_n = Σ_i (1 − d_i) p_i ∏_{j>i} d_j + p_0 ∏ d_j, d_i = min(d, (1 + i) / (10 + i))."""
    module = nn.Linear(1, 1, bias=False)
    values = [math.sin(3 * n) for n in range(40)]
    nn.init.constant_(module.weight, values[0])
    ema = EMA(module, decay)
    for value in values[1:]:
        nn.init.constant_(module.weight, value)
        ema.update()
    decays = [min(decay, (1 + n) / (10 + n)) for n in range(39)]
    expected = values[0] * math.prod(decays)
    for index, value in enumerate(values[1:]):
        expected += (1 - decays[index]) * value * math.prod(decays[index + 1 :])
    assert ema.average[0].item() == pytest.approx(expected, rel=1e-5)


def test_averaged_weights_are_lent_and_given_back() -> None:
    module = nn.Linear(3, 3)
    ema, trained = EMA(module, 0.5), {k: v.clone() for k, v in module.state_dict().items()}
    for average in ema.average:
        average.fill_(7.0)
    with pytest.raises(RuntimeError, match="in the middle"), ema.applied():
        assert torch.equal(module.weight, torch.full((3, 3), 7.0))
        raise RuntimeError("in the middle")
    assert_same(module.state_dict(), trained)


def test_a_run_ends_with_the_average_of_its_weights(tmp_path: Path) -> None:
    weights, _ = run(tmp_path)
    last = torch.load(tmp_path / "checkpoints" / "00000060.pt", weights_only=True)
    assert torch.equal(weights["layers.0.weight"], last["ema"]["average"][0])
    assert not torch.equal(weights["layers.0.weight"], last["task"]["layers.0.weight"])


def test_a_run_learns(tmp_path: Path) -> None:
    run(tmp_path, steps=300, lr=0.02)
    losses = [line["loss"] for line in lines(tmp_path)]
    assert sum(losses[-10:]) < 0.7 * sum(losses[:10])


@pytest.mark.parametrize("decay", ["linear", "cosine", "constant"])
def test_learning_rates_rise_and_fall_as_configured(decay: Any, tmp_path: Path) -> None:
    settings = config(tmp_path, steps=110, warmup=10, lr=2.0, decay=decay)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)

    def rate(step: int) -> float:
        set_learning_rate(optimizer, settings, step)
        return float(optimizer.param_groups[0]["lr"])

    assert [rate(step) for step in (0, 4, 9)] == pytest.approx([0.2, 1.0, 2.0])
    expected = {"linear": [1.0, 0.0], "cosine": [1.0, 0.0], "constant": [2.0, 2.0]}[decay]
    assert [rate(60), rate(110)] == pytest.approx(expected)
    assert rate(35) == pytest.approx({"linear": 1.5, "cosine": 1 + math.cos(math.pi / 4), "constant": 2.0}[decay])


@pytest.mark.parametrize("stop", [15, 30, 45])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_stopped_run_goes_on_to_the_same_bits(stop: int, accumulate: int, tmp_path: Path) -> None:
    class StoppedError(Exception):
        pass

    def stop_at(path: Path) -> None:
        if path.stem == f"{stop:06d}":
            raise StoppedError

    with pytest.raises(StoppedError):
        run(tmp_path / "stopped", stop_at, accumulate=accumulate, log_every=4)
    resumed, _ = run(tmp_path / "stopped", accumulate=accumulate, log_every=4)
    whole, _ = run(tmp_path / "whole", accumulate=accumulate, log_every=4)
    assert_same(resumed, whole)
    logged = [[(line["step"], line["loss"]) for line in lines(tmp_path / name)] for name in ("stopped", "whole")]
    assert logged[0] == logged[1] and len(logged[0]) == 15


def test_a_translated_network_learns_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.compile, with a backend that needs no compiler."""
    graphs: list[nn.Module] = []

    def keep(graph: nn.Module, inputs: list[Tensor]) -> Any:
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(nn.Module, "compile", partialmethod(nn.Module.compile, backend=keep))
    plain, _ = run(tmp_path / "plain")
    assert not graphs
    translated, _ = run(tmp_path / "run", compile=True)
    assert len(graphs) == 1
    for name in plain:
        torch.testing.assert_close(translated[name], plain[name], rtol=1e-5, atol=1e-6)


def test_a_missing_compiler_is_a_sentence(tmp_path: Path) -> None:
    without = {"CXX": str(tmp_path / "none"), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    command = [sys.executable, toy.__file__, str(tmp_path / "run"), "compile"]
    done = subprocess.run(command, env=os.environ | without, capture_output=True, text=True)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert re.search(r"^torch\.compile failed \(.+\); set run\.compile to false\.$", done.stderr, re.MULTILINE)


@pytest.mark.parametrize("where", ["preview", "checkpoint"])
def test_a_killed_process_goes_on_to_the_same_bits(where: str, tmp_path: Path) -> None:
    """Killed by SIGKILL at step 30: while drawing, and half-way through a checkpoint."""
    script = [sys.executable, str(Path(toy.__file__ or "")), str(tmp_path / "killed"), where]
    assert subprocess.run(script, capture_output=True).returncode == -signal.SIGKILL
    assert sorted(file.stem for file in (tmp_path / "killed" / "checkpoints").glob("*.pt")) == ["00000010", "00000020"]
    resumed, _ = run(tmp_path / "killed")
    whole, _ = run(tmp_path / "whole")
    assert_same(resumed, whole)


def test_a_finished_run_runs_no_further(tmp_path: Path) -> None:
    weights, statistics = run(tmp_path)
    again = Toy()
    assert fit(again, Numbers(), config(tmp_path), no_preview) == statistics
    assert again.seen == []
    assert_same(again.state_dict(), weights)


def test_the_seed_decides_the_noise_and_the_order(tmp_path: Path) -> None:
    first, _ = run(tmp_path / "a", seed=5)
    same, _ = run(tmp_path / "b", seed=5)
    other, _ = run(tmp_path / "c", seed=6)
    assert_same(first, same)
    assert not torch.equal(first["layers.0.weight"], other["layers.0.weight"])


def test_drawing_previews_changes_nothing(tmp_path: Path) -> None:
    drawn: list[tuple[str, float]] = []
    with_previews, _ = run(tmp_path / "a", lambda path: drawn.append((path.stem, torch.rand(1).item())))
    without, _ = run(tmp_path / "b", preview_every=0)
    assert_same(with_previews, without)
    assert [name for name, _ in drawn] == ["000015", "000030", "000045", "000060"]
    assert len({number for _, number in drawn}) == 1  # all from the same noise


@pytest.mark.parametrize(
    ("keep", "left"), [(1, [60]), (2, [50, 60]), (4, [30, 40, 50, 60]), (9, [10, 20, 30, 40, 50, 60])]
)
def test_as_many_checkpoints_as_configured_are_kept(keep: int, left: list[int], tmp_path: Path) -> None:
    run(tmp_path, keep=keep)
    assert sorted(int(file.stem) for file in (tmp_path / "checkpoints").iterdir()) == left


def test_statistics_are_means_since_the_last_line(tmp_path: Path) -> None:
    _, last = run(tmp_path / "five")
    run(tmp_path / "one", log_every=1)
    five, one = lines(tmp_path / "five"), lines(tmp_path / "one")
    assert [line["step"] for line in five] == list(range(5, 61, 5))
    assert [line["step"] for line in one] == list(range(1, 61))
    for index, line in enumerate(five):
        for name in ("loss", "rms"):
            assert line[name] == pytest.approx(sum(each[name] for each in one[5 * index : 5 * index + 5]) / 5, abs=2e-6)
    assert {"step": 60, **last} == five[-1]
    assert all(line["images_per_s"] > 0 for line in five)
    assert all(line["memory_gib"] > 0 and 0 <= line["wait"] <= 1 for line in five)
    assert list((tmp_path / "five" / "tensorboard").rglob("events*"))


def test_every_batch_has_its_size_and_every_item_its_turn(tmp_path: Path) -> None:
    task = Toy()
    asked = config(tmp_path, steps=10, batch_size=3)
    fit(task, Numbers(), asked, no_preview)
    assert {len(batch) for batch in task.seen} == {3}
    order = [index for batch in task.seen for index in batch]
    assert all(sorted(order[start : start + 10]) == list(range(10)) for start in (0, 10, 20))


def test_a_checkpoint_of_another_model_is_a_sentence(tmp_path: Path) -> None:
    run(tmp_path)
    with pytest.raises(SpectralError, match=r"00000060\.pt is a checkpoint of another model.*another output folder"):
        run(tmp_path, width=9)


def test_a_damaged_checkpoint_is_a_sentence(tmp_path: Path) -> None:
    run(tmp_path)
    path = tmp_path / "checkpoints" / "00000060.pt"
    for content in (path.read_bytes()[:1000], b"", b"no checkpoint at all"):
        path.write_bytes(content)
        with pytest.raises(SpectralError, match=r"00000060\.pt cannot be read.*remove it"):
            run(tmp_path)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"batch_size": 0}, "batch_size"),
        ({"accumulate": 0}, "accumulate"),
        ({"steps": 0}, "steps"),
        ({"keep": 0}, "keep"),
    ],
    ids=["batch_size", "accumulate", "steps", "keep"],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, int], says: str, tmp_path: Path) -> None:
    with pytest.raises(SpectralError, match=f"run.{says} is 0"):
        run(tmp_path / "run", **settings)
    assert not (tmp_path / "run").exists()
