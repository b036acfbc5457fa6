"""The figure of an ablation's rows: bars and dots lie where the numbers say, read back from the drawing."""

from __future__ import annotations

import re
import statistics
from pathlib import Path
from typing import Any

import pytest

from spectral_diffusion.spectral.colours import MODELS
from spectral_diffusion.spectral.errors import SpectralError
from spectral_diffusion.training.evaluation.ablation_figures import plot_rows
from spectral_diffusion.training.evaluation.table5 import ROWS


def result_of(values: list[list[float]], baselines: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    """An ablation.json of rows with these FD-EffNet, seed by seed."""
    rows = [
        {"gating": row.gating, "spatial": row.spatial, "frequency": row.frequency, "paper_fid": row.paper_fid}
        | {"fd_effnet": statistics.fmean(each)}
        | ({"values": {"fd_effnet": each}} if len(each) > 1 else {})
        for row, each in zip(ROWS, values, strict=True)
    ]
    return {"rows": rows} | ({"baselines": baselines} if baselines else {})


def bars(drawing: str, colour: str) -> list[float]:
    """The lengths of the bars of a colour, top to bottom."""
    paths = re.findall(rf'<path d="([^"]*)"[^>]*style="fill: {colour.lower()}; opacity: 0.35"', drawing)
    lengths = []
    for path in paths:
        across = [float(pair.split()[0]) for pair in re.findall(r"[ML] ([\d.]+ [\d.]+)", path)]
        lengths.append(max(across) - min(across))
    return lengths


def test_bars_are_as_long_as_the_means(tmp_path: Path) -> None:
    values = [[10.0 * place + 3.0, 10.0 * place + 7.0] for place in range(8, 0, -1)]
    plot_rows(result_of(values), tmp_path / "rows.svg")
    drawing = (tmp_path / "rows.svg").read_text()
    found, known = bars(drawing, MODELS["student"]), [statistics.fmean(each) for each in values]
    assert [length / found[0] for length in found] == pytest.approx([mean / known[0] for mean in known], rel=1e-4)
    paper = bars(drawing, "#7F7F7F")
    assert [length / paper[0] for length in paper] == pytest.approx([row.paper_fid / 17.3 for row in ROWS], rel=1e-4)


def test_every_training_has_a_dot_and_every_baseline_a_line(tmp_path: Path) -> None:
    values = [[20.0, 30.0, 40.0]] * 8
    below = [{"name": "teacher", "fd_effnet": 15.0}, {"name": "first-stage", "fd_effnet": 5.0}]
    plot_rows(result_of(values, below), tmp_path / "rows.svg")
    drawing = (tmp_path / "rows.svg").read_text()
    (dots,) = (
        group for group in re.findall(r"<g clip-path.*?</g>|<g>.*?</g>", drawing, re.S) if group.count("<use") == 24
    )
    across = sorted({round(float(x), 3) for x in re.findall(r'<use [^>]*x="([\d.]+)"', dots)})
    assert len(across) == 3 and across[1] - across[0] == pytest.approx(across[2] - across[1], rel=1e-3)
    lines = re.findall(r'<path d="M ([\d.]+) [\d.]+ *\n?L ([\d.]+) [\d.]+ *\n?"[^>]*stroke-dasharray', drawing)
    places = [float(start) for start, end in lines if start == end]
    assert len(places) == 2
    # Of one scale with the dots: 15 is as far from 20 as 5 is from 15, halved.
    unit = (across[2] - across[0]) / 20
    assert sorted(places) == pytest.approx([across[0] - 15 * unit, across[0] - 5 * unit], rel=1e-3)


def test_one_training_has_no_dots(tmp_path: Path) -> None:
    plot_rows(result_of([[float(place)] for place in range(1, 9)]), tmp_path / "rows.svg")
    drawing = (tmp_path / "rows.svg").read_text()
    assert len(bars(drawing, MODELS["student"])) == 8
    assert not any(group.count("<use") == 24 for group in re.findall(r"<g>.*?</g>", drawing, re.S))


def test_a_figure_of_another_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SpectralError, match=r"rows\.gif.*expected a name that ends in"):
        plot_rows(result_of([[1.0]] * 8), tmp_path / "rows.gif")
