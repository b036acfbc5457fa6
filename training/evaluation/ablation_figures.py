"""The figures of an ablation that need no pictures: the scores of its rows beside the paper's, and their spectra."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...spectral.colours import MODELS, OTHERS
from ..figures import check_figure_path, plot_radial_spectra
from ..files import write_whole
from . import scoring
from .table5 import BASELINES, PARTS, ROWS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: The scores that have a panel, where they were measured, and its title.
PANELS = {"fid": "FID", "fd_effnet": "FD-EffNet", "high_error": "high-band error"}
#: The rows whose spectra are drawn.
DRAWN = ("none", "wg", "spatial-frequency", "all")
BASELINE_COLOURS = {"teacher": MODELS["teacher"], "first-stage": OTHERS[0]}


def plot_rows(result: Mapping[str, Any], path: Path) -> None:
    """Draw the rows of an ablation: a panel of the paper's FID, and one for each of our PANELS.

    Dots are single trainings, bars the means over them, dashed lines the baselines. Every panel begins at 0, so that
    lengths may be compared.

    Args:
        result: as ablation.json has it, of one seed or of several.
        path: .png, .svg or .pdf; its folder is made.

    Raises:
        SpectralError: a suffix that is not one of these.
    """
    check_figure_path(path)
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = result["rows"]
    columns = [name for name in PANELS if rows[0].get(name) is not None]
    figure = Figure(figsize=(3.1 + 2.7 * len(columns), 3.9), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    first, *others = figure.subplots(1, 1 + len(columns), sharey=True, squeeze=False)[0]
    _panel(first, "paper: FID (FFHQ)", [[row["paper_fid"]] for row in rows], {}, OTHERS[4])
    for axes, name in zip(others, columns, strict=True):
        scores = [row.get("values", {}).get(name, [row[name]]) for row in rows]
        below = {entry["name"]: entry[name] for entry in result.get("baselines", []) if entry.get(name) is not None}
        _panel(axes, f"ours: {PANELS[name]}", scores, below, MODELS["student"])
    first.set_yticks(range(len(rows)), [_called(row) for row in rows])
    first.invert_yaxis()
    handles, labels = others[0].get_legend_handles_labels() if others else ([], [])
    if handles:
        figure.legend(handles, labels, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=9)
    content = io.BytesIO()
    figure.savefig(content, format=path.suffix[1:].lower())
    write_whole(path, content.getvalue())


def plot_spectra(
    reports: Mapping[str, Mapping[str, Any]], below: Mapping[str, Mapping[str, Any]], path: Path, of_which: str = ""
) -> None:
    """Draw the radial spectra of the data, of the baselines and of the rows DRAWN.

    Args:
        reports: of all rows, by their names, of one seed.
        below: of the baselines.
        path: .png, .svg or .pdf; its folder is made.
        of_which: ends the title, such as ", seed 0".

    Raises:
        SpectralError: a suffix that is not one of these.
    """
    titles = {row.name: row.title for row in ROWS} | BASELINES
    first = next(iter(reports.values()))
    spectra = {"data": scoring.spectrum_of(first["spectra"]["data"])}
    for name, report in {**below, **{name: reports[name] for name in DRAWN}}.items():
        spectra[titles[name]] = scoring.spectrum_of(report["spectra"][report["checkpoint"]["kind"]])
    title = f"Radial power spectra of data and of {first['images']:,} samples of each row{of_which}"
    plot_radial_spectra(spectra, path, cutoff=first["cutoff"], title=title)


def _panel(axes: Axes, title: str, scores: Sequence[Sequence[float]], below: Mapping[str, float], colour: str) -> None:
    """Bars of the means of every row's scores, dots of the scores themselves where there are several."""
    means = [sum(each) / len(each) for each in scores]
    axes.barh(range(len(scores)), means, height=0.62, color=colour, alpha=0.35, linewidth=0)
    several = [(score, place) for place, each in enumerate(scores) if len(each) > 1 for score in each]
    if several:
        across, down = zip(*several, strict=True)
        axes.plot(across, down, "o", color=colour, markersize=3.5, label="one seed", clip_on=False, zorder=3)
    for name, value in below.items():
        axes.axvline(value, color=BASELINE_COLOURS[name], linestyle="--", linewidth=1.3, label=BASELINES[name])
    widest = max(max(each) for each in scores)
    for place, mean in enumerate(means):
        beside = max(scores[place]) + 0.03 * widest
        axes.text(beside, place, f"{mean:.3g}", va="center", fontsize=8, color="#444444")
    axes.set_xlim(0, 1.22 * max(widest, *below.values()) if below else 1.22 * widest)
    axes.set_title(title, fontsize=10)
    axes.tick_params(axis="y", length=0)
    axes.tick_params(axis="x", labelsize=8)
    axes.grid(axis="x", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)


def _called(row: Mapping[str, Any]) -> str:
    """What a row is called beside its bar: the parts that it has."""
    parts = [called for name, called in PARTS.items() if row[name]]
    return {0: "none (Lite-LDM)", len(PARTS): "all"}.get(len(parts)) or " + ".join(parts)
