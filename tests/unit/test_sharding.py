"""Runs whose weights are cut into shards (FSDP 2): what they learn, and the files that they leave."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from spectral_diffusion.training.loop import sharding
from spectral_diffusion.training.loop.fit import fit

from .test_faults import assert_same
from .toy import Numbers, Quiet, config, no_preview

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]


def sharded(out: Path, steps: int) -> None:
    command = [*TORCHRUN, str(Path(__file__).with_name("sharded_toy.py")), str(out), str(steps)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr


def plain(out: Path, steps: int) -> dict[str, Tensor]:
    task = Quiet()
    fit(task, Numbers(), config(out, steps=steps), no_preview)
    return task.state_dict()


def checkpoint(out: Path, step: int) -> dict[str, Any]:
    return torch.load(out / "checkpoints" / f"{step:08d}.pt", weights_only=True)  # type: ignore[no-any-return]


def close(one: Any, other: Any) -> bool:
    """Of nested tensors: the same shapes, and the same numbers but for rounding."""
    if isinstance(one, Tensor):
        return one.shape == other.shape and torch.allclose(one.float(), other.float(), rtol=1e-4, atol=1e-5)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(close(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(close, one, other))
    return bool(one == other)


def test_cut_weights_learn_what_whole_ones_do_and_runs_change_between_them(tmp_path: Path) -> None:
    """On two processes with shards, on one without, and changed after 3 of 6 steps. Later, Adam amplifies roundings."""
    plain(tmp_path / "whole", 6)
    sharded(tmp_path / "cut", 6)
    plain(tmp_path / "whole-cut", 3)
    sharded(tmp_path / "whole-cut", 6)
    sharded(tmp_path / "cut-whole", 3)
    plain(tmp_path / "cut-whole", 6)
    expected = checkpoint(tmp_path / "whole", 6)
    for name in ("cut", "whole-cut", "cut-whole"):
        found = checkpoint(tmp_path / name, 6)
        for part in ("task", "ema", "optimizer"):
            assert close(found[part], expected[part]), (name, part)
    final = torch.load(tmp_path / "cut" / "final.pt", weights_only=True)
    averages = dict(
        zip(dict(Quiet().named_parameters()), checkpoint(tmp_path / "cut", 6)["ema"]["average"], strict=True)
    )
    assert all(torch.equal(final[name], average) for name, average in averages.items())
    assert (tmp_path / "cut" / "previews" / "000006.png").exists()


def test_what_is_whole_stays_as_it_is() -> None:
    module = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(module.parameters())
    module(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    state = sharding.whole_state(module)
    assert_same(state, dict(module.state_dict()))
    before = sharding.whole_optimizer_state(optimizer)
    assert_same(before, optimizer.state_dict())
    other = nn.Linear(3, 2)
    again = torch.optim.AdamW(other.parameters())
    sharding.load_whole_state(other, state)
    sharding.load_whole_optimizer_state(again, before)
    assert_same(dict(other.state_dict()), state)
    assert_same(again.state_dict(), before)
    parameters = list(other.parameters())
    sharding.gather_(other)
    assert not sharding.is_sharded(other) and list(other.parameters()) == parameters
    with pytest.raises(RuntimeError, match="Missing key"):
        sharding.load_whole_state(other, {"weight": state["weight"]})
