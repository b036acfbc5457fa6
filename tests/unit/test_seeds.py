"""The paper's ablation over several seeds: means, deviations, changes and counts against numpy's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from spectral_diffusion.training.evaluation import seeds, table5
from spectral_diffusion.training.evaluation.table5 import ROWS

REPORT = {"kid_effnet": 0.03, "kid_effnet_std": 0.01, "low_error": 0.2, "high_error": 0.5}
SIZE = {"params": 1_000_000, "macs": 2_000_000}
NAMES = [row.name for row in ROWS]


def by_seed(fd: np.ndarray[Any, Any], **more: Any) -> dict[int, dict[str, dict[str, Any]]]:
    """Reports with these FD-EffNets, [seeds, 8], of seeds 5, 6, …"""
    return {
        5 + place: {
            name: {**REPORT, **SIZE, "fd_effnet": value, **more} for name, value in zip(NAMES, own, strict=True)
        }
        for place, own in enumerate(fd.tolist())
    }


@pytest.fixture
def fd() -> np.ndarray[Any, Any]:
    return np.random.default_rng(3).uniform(10, 20, (4, 8)).round(4)


def test_means_and_sample_deviations(fd: np.ndarray[Any, Any]) -> None:
    rows = seeds.entries(by_seed(fd, fid=None))
    assert [row["name"] for row in rows] == NAMES
    for place, row in enumerate(rows):
        assert row["seeds"] == [5, 6, 7, 8] and row["values"]["fd_effnet"] == fd[:, place].tolist()
        assert row["fd_effnet"] == pytest.approx(np.mean(fd[:, place]), abs=1e-6)
        assert row["spread"]["fd_effnet"] == pytest.approx(np.std(fd[:, place], ddof=1), abs=1e-6)
        assert row["kid_effnet_std"] == 0.01 and row["spread"]["high_error"] == 0  # KID's own is kept apart
        assert set(row["values"]) == set(row["spread"]) == {"fd_effnet", "kid_effnet", "low_error", "high_error"}
        assert row["params"] == 1_000_000 and row["paper_fid"] == ROWS[place].paper_fid


def test_rows_have_the_seeds_that_are_there(fd: np.ndarray[Any, Any]) -> None:
    """Stopped in the second round: two values of the first rows, one of the others, which has no deviation."""
    found = by_seed(fd[:2])
    for name in NAMES[3:]:
        del found[6][name]
    rows = seeds.entries(found)
    assert [row["seeds"] for row in rows] == [[5, 6]] * 3 + [[5]] * 5
    assert rows[2]["fd_effnet"] == pytest.approx(fd[:2, 2].mean()) and rows[3]["fd_effnet"] == fd[0, 3]
    assert rows[3]["spread"]["fd_effnet"] is None
    assert "1 to 2 times so far" in seeds.note(rows)
    first = seeds.effects({5: found[5]})
    assert seeds.effects(found) == first and first["effects_spread"]["gating"]["fd_effnet"] is None
    assert seeds.effects({6: found[6]}) == {}


def test_a_column_that_a_seed_lacks_has_no_mean(fd: np.ndarray[Any, Any]) -> None:
    found = by_seed(fd, fid=12.5)
    found[6]["wg"]["fid"] = None
    rows = seeds.entries(found)
    assert rows[1]["fid"] is None and "fid" not in rows[1]["spread"] and rows[0]["fid"] == 12.5
    assert "fid" not in seeds.effects(found)["effects"]["all"]


def test_changes_are_of_each_seed_first(fd: np.ndarray[Any, Any]) -> None:
    """The mean of ratios, not the ratio of means; by the rows' parts as a cube [gating, spatial, frequency]."""
    found = seeds.effects(by_seed(fd))
    cube = np.empty((len(fd), 2, 2, 2))
    for place, row in enumerate(ROWS):
        cube[:, int(row.gating), int(row.spatial), int(row.frequency)] = fd[:, place]
    for axis, part in enumerate(["gating", "spatial", "frequency"], 1):
        changes = np.take(cube, 1, axis) / np.take(cube, 0, axis) - 1
        each = changes.reshape(len(fd), 4).mean(1)
        assert found["effects"][part]["fd_effnet"] == pytest.approx(each.mean(), abs=1e-4)
        assert found["effects_spread"][part]["fd_effnet"] == pytest.approx(each.std(ddof=1), abs=1e-4)
        assert found["improved"][part]["fd_effnet"] == (changes < 0).sum() and found["improved"][part]["pairs"] == 16
    whole = cube[:, 1, 1, 1] / cube[:, 0, 0, 0] - 1
    assert found["effects"]["all"]["fd_effnet"] == pytest.approx(whole.mean(), abs=1e-4)
    assert found["effects_spread"]["all"]["fd_effnet"] == pytest.approx(whole.std(ddof=1), abs=1e-4)
    assert found["improved"]["all"] == {**found["improved"]["all"], "pairs": 4, "fd_effnet": (whole < 0).sum()}
    assert found["effects"]["all"]["paper_fid"] == pytest.approx(10.5 / 17.3 - 1, abs=1e-4)
    assert found["improved"]["gating"]["high_error"] == 0 and "paper_fid" not in found["effects_spread"]["all"]


def test_one_seed_is_table5s_own(fd: np.ndarray[Any, Any]) -> None:
    reports = by_seed(fd[:1])
    rows, plain = seeds.entries(reports), table5.entries(reports[5])
    assert [{key: row[key] for key in own} for row, own in zip(rows, plain, strict=True)] == plain
    assert seeds.effects(reports)["effects"] == table5.effects(plain)


@pytest.mark.parametrize(
    ("values", "cell"),
    [
        ([72.4, 73.6, 74.8], "73.6 ± 1.2"),
        ([0.5, 0.513, 0.526], "0.513 ± 0.013"),
        ([0.0310, 0.0302, 0.0306], "0.03060 ± 0.00040"),
        ([310.0, 322.0, 334.0], "322 ± 12"),
        ([7.5, 7.5, 7.5], "7.500 ± 0.000"),
    ],
    ids=str,
)
def test_a_cell_shows_two_digits_of_the_spread(values: list[float], cell: str) -> None:
    rows = seeds.entries(by_seed(np.array(values)[:, None].repeat(8, 1)))
    head, *lines = table5.text(rows).splitlines()
    assert len(lines) == 8 and len({len(line) for line in (head, *lines)}) == 1
    assert all(f"  {cell}  " in line for line in lines)


def test_what_stands_under_the_rows_has_no_spread_and_lines_up(fd: np.ndarray[Any, Any]) -> None:
    below = table5.baselines({"teacher": {**REPORT, **SIZE, "fd_effnet": 7.25}, "first-stage": {"fd_effnet": 3.125}})
    assert [entry["name"] for entry in below] == ["first-stage", "teacher"] and below[0]["params"] is None
    _, *lines = table5.text(seeds.entries(by_seed(fd)), below).splitlines()
    assert [line.split("  ")[0] for line in lines[8:]] == ["first stage alone", "teacher"]
    point = lines[0].index(".", lines[0].index("17.3") + 4)
    assert lines[8][point] == lines[9][point] == "." and "3.1" in lines[8] and "7.2" in lines[9]


def test_the_claim_in_a_sentence(fd: np.ndarray[Any, Any]) -> None:
    fd[:, 0], fd[:, 7] = 20, [12, 13, 12, 13]
    found = seeds.effects(by_seed(fd))
    said = "All three parts against none: FD-EffNet −38 ± 3 %, high band 0 ± 0 % (the paper's FID −39 %)."
    assert table5.claim(found) == said
    lines = seeds.text(found).splitlines()
    assert [line.split()[0] for line in lines[1:]] == ["WG", "spatial", "frequency", "all"]
    assert "−39 %" in lines[4] and "−38 ± 3 % (4 of 4)" in lines[4]


@pytest.mark.parametrize(("given", "words"), [([7], "seed 7"), ([0, 1], "seeds 0 and 1"), ([2, 3, 4], "seeds 2 to 4")])
def test_seeds_in_words(given: list[int], words: str) -> None:
    assert seeds.listed(given) == words
