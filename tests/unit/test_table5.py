"""The paper's ablation as a table: its numbers, and changes and orders against those by hand and by scipy."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import scipy.stats

from spectral_diffusion.training.evaluation import table5
from spectral_diffusion.training.evaluation.table5 import ROWS

REPORT = {"fd_effnet": 20.0, "kid_effnet": 0.03, "kid_effnet_std": 0.01, "low_error": 0.2, "high_error": 0.5}
SIZE = {"params": 1_000_000, "macs": 2_000_000}


def reports(fd: list[float], **more: Any) -> dict[str, dict[str, Any]]:
    return {row.name: {**REPORT, **SIZE, "fd_effnet": value, **more} for row, value in zip(ROWS, fd, strict=True)}


def test_the_rows_are_those_of_the_paper() -> None:
    """Every combination once, with the FID of Table 5."""
    paper = {(row.gating, row.spatial, row.frequency): row.paper_fid for row in ROWS}
    assert set(paper) == set(itertools.product([False, True], repeat=3)) and len(ROWS) == 8
    off, on = False, True
    assert paper[off, off, off] == 17.3 and paper[on, on, on] == 10.5
    assert (paper[on, off, off], paper[off, on, off], paper[off, off, on]) == (14.7, 16.6, 15.3)
    assert (paper[on, on, off], paper[off, on, on], paper[on, off, on]) == (12.3, 12.4, 11.4)
    names = ["none", "wg", "spatial", "frequency", "wg-spatial", "spatial-frequency", "wg-frequency", "all"]
    assert [row.name for row in ROWS] == names and ROWS[4].title == "WG + spatial"


def test_what_the_papers_parts_change() -> None:
    """By hand, from its FIDs: gating in the four rows that have it against those that differ in it alone."""
    found = table5.effects(table5.entries(reports([row.paper_fid for row in ROWS])))
    gating = np.mean([14.7 / 17.3, 12.3 / 16.6, 11.4 / 15.3, 10.5 / 12.4]) - 1
    spatial = np.mean([16.6 / 17.3, 12.3 / 14.7, 12.4 / 15.3, 10.5 / 11.4]) - 1
    frequency = np.mean([15.3 / 17.3, 11.4 / 14.7, 12.4 / 16.6, 10.5 / 12.3]) - 1
    expected = {"gating": gating, "spatial": spatial, "frequency": frequency, "all": 10.5 / 17.3 - 1}
    for part, change in expected.items():
        assert found[part]["paper_fid"] == found[part]["fd_effnet"] == pytest.approx(change, abs=1e-4)
        assert found[part]["high_error"] == 0


def test_an_error_that_is_not_above_zero_has_no_relative_change() -> None:
    found = reports([10.0] * 8)
    found["wg"]["kid_effnet"] = -0.001
    changes = table5.effects(table5.entries(found))
    assert all("kid_effnet" not in own and "fd_effnet" in own for own in changes.values())


@pytest.mark.parametrize("seed", range(5))
def test_order_is_kendalls(seed: int) -> None:
    """τ = (alike − not alike) / pairs, for numbers without ties."""
    fd = np.random.default_rng(seed).permutation(8) + 1.5
    alike, pairs = table5.agreement(table5.entries(reports(fd.tolist())), "fd_effnet")
    expected = scipy.stats.kendalltau([row.paper_fid for row in ROWS], fd).statistic
    assert pairs == 28 and (2 * alike - pairs) / pairs == pytest.approx(expected)


def test_the_table_has_the_papers_column_and_ours() -> None:
    head, *lines = table5.text(table5.entries(reports([float(n) for n in range(1, 9)], fid=12.34))).splitlines()
    assert head.split("  ")[-1].strip() == "ours: high band" and "paper: FID" in head and "ours: FID" in head
    assert len(lines) == 8 and len({len(line) for line in (head, *lines)}) == 1
    assert lines[4].split() == ["x", "x", "-", "12.3", "5.000", "0.0300", "12.3", "0.200", "0.500"]
    assert "CLIP" not in head
