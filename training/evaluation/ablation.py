"""The page of an ablation: Table 5 with ours beside it, what each part does, pictures, spectra."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from . import html
from .seeds import listed
from .table5 import BASELINES, COLUMNS, PARTS, agreement, claim, shown

#: What is said of the two halves of the table, on the page and in the terminal.
PLAINLY = (
    "The paper's column is FID on FFHQ, 256 × 256 pixels, after 150,000 steps of 512 images. Ours are other measures "
    "of other pictures. The numbers of the two cannot be compared; whether the rows come in the same order can."
)


def page(result: dict[str, Any], rows_figure: bytes, grid: bytes, spectra: bytes) -> str:
    """The page.

    Args:
        result: as ablation.json has it, of all rows, with "effects".
        rows_figure: the scores of all rows, a PNG file.
        grid: pictures of all models on the same prompts and noise, likewise.
        spectra: their radial spectra, likewise.

    Returns:
        HTML. Whatever comes from files is escaped; pictures are inside; the reports of the rows are linked.
    """
    rows, about = result["rows"], result["about"]
    of_which = f" Those of seed {about['seed']}." if "seeds" in about else ""
    sections = [
        f"<h1>{escape(about['title'])}</h1><p class='lead'>{escape(told(about))}</p>",
        "<h2>Table 5, the paper's and ours</h2>",
        _table(rows, result.get("baselines", [])),
        f"<p class='soft' style='margin-top:.8rem'>{escape(PLAINLY)} {escape(_bands(about))}</p>",
        _under(result),
        html.plot(rows_figure, "Scores of every row, beside the paper's"),
        _effects(result),
        _order(rows),
        html.notes(result["notes"]),
        f"<h2>Pictures</h2><p class='soft'>Every model on the same prompts and the same noise.{of_which}</p>",
        html.plot(grid, "Data and samples of every row", "whole"),
        "<h2>Radial power spectra</h2>",
        html.plot(spectra, "Radial power spectra"),
        "<h2>How it was made</h2>",
        _facts(result),
    ]
    return html.document(about["title"], sections)


def told(about: Mapping[str, Any]) -> str:
    """What was trained and measured, in a sentence or two."""
    said = f"Each row: {about['steps']:,} steps of {about['images_per_step']:,} images of {about['data']}, "
    said += f"{listed(about.get('seeds', [about['seed']]))}. {about['samples']:,} samples of each, "
    said += f"{about['size']} × {about['size']} pixels, are "
    return said + f"compared with {about['reference_images']:,} images of {about['reference']}."


def _bands(about: Mapping[str, Any]) -> str:
    return (
        "Band errors are the mean |ln ratio| of the power spectra below and from "
        f"{about['cutoff']:g} cycles per image on (0 is none, 0.69 a factor of two)."
    )


def _table(rows: Sequence[Mapping[str, Any]], below: Sequence[Mapping[str, Any]]) -> str:
    """The eight rows, and under them what they may be measured by; a score's spread in a column of its own."""
    columns = [name for name in COLUMNS if rows[0].get(name) is not None]
    cells = {name: shown(name, [*rows, *below]) for name in columns}
    wide = {name: any(spread for _, spread in cells[name]) for name in columns}
    head = [*(f"<th>{called}</th>" for called in PARTS.values()), "<th class='number'>paper<br>FID</th>"]
    head += [_header(f"ours<br>{escape(COLUMNS[name])}", wide[name]) for name in columns]
    lines = [f"<tr>{''.join(head)}<th>{'reports<br>by seed' if 'seeds' in rows[0] else ''}</th></tr>"]
    for place, row in enumerate([*rows, *below]):
        if place < len(rows):
            left = "".join(f"<td>{'✓' if row[part] else '–'}</td>" for part in PARTS)
            left += f"<td class='number'>{row['paper_fid']:.1f}</td>"
        else:
            left = f"<td colspan='{len(PARTS) + 1}'>{BASELINES[row['name']]}</td>"
        right = "".join(_cell(*cells[name][place], wide[name]) for name in columns)
        lines.append(f"<tr>{left}{right}<td>{_links(row)}</td></tr>")
    return f"<div class='wide'><table class='figures'>{''.join(lines)}</table></div>"


def _header(said: str, wide: bool) -> str:
    return f"<th class='number'{' colspan=2' if wide else ''}>{said}</th>"


def _cell(mean: str, spread: str, wide: bool) -> str:
    """A score, and in a column with spreads, a second cell with its own, if it has one."""
    if not wide:
        return f"<td class='number'>{mean}</td>"
    beside = f"<td class='soft' style='white-space:nowrap'>{'± ' + spread if spread else ''}</td>"
    return f"<td class='number' style='padding-right:.3rem'>{mean}</td>{beside}"


def _links(row: Mapping[str, Any]) -> str:
    """To the report of a row, or to those of its seeds."""
    if "reports" not in row:
        return f"<a href='{escape(row['report'])}'>report</a>"
    pairs = zip(row["seeds"], row["reports"], strict=True)
    return " ".join(f"<a href='{escape(report)}'>{seed}</a>" for seed, report in pairs)


def _under(result: Mapping[str, Any]) -> str:
    """What the rows under the eight are."""
    if "baselines" not in result:
        return ""
    return (
        "<p class='soft'>First stage alone: images of the data, encoded and decoded again. Every sample comes through "
        "this decoder, so no row can be expected to be nearer to the data; its band error may be lower all the same, "
        "where noise stands in for details. Teacher: sampled as the rows are, on the same prompts and noise.</p>"
    )


def _effects(result: Mapping[str, Any]) -> str:
    """How much of the error each part takes away."""
    found, spread, improved = result["effects"], result.get("effects_spread", {}), result.get("improved", {})
    columns = list(found["all"])
    called = {"paper_fid": "paper<br>FID"} | {name: f"ours<br>{escape(said)}" for name, said in COLUMNS.items()}
    lines = [f"<tr><th></th>{''.join(f'<th class=number>{called[name]}</th>' for name in columns)}</tr>"]
    for part, changes in found.items():
        label = "all three, against none" if part == "all" else PARTS[part]
        cells = "".join(
            f"<td class='number'>{html.change(changes[name], spread.get(part, {}).get(name))}"
            f"{_helped(improved.get(part, {}), name)}</td>"
            for name in columns
        )
        lines.append(f"<tr><th>{label}</th>{cells}</tr>")
    said = "Mean change of each error over the four pairs of rows that differ in that part alone; below 0, it helps."
    if improved:
        said += " ± is its standard deviation over the seeds; below stands in how many of their pairs it helps."
    more = f"<p style='margin-top:.8rem'>{escape(claim(result))}</p>" if improved else ""
    table = f"<div class='wide'><table class='figures'>{''.join(lines)}</table></div>"
    return f"<h2>What each part changes</h2><p class='soft'>{said}</p>{table}{more}"


def _helped(counts: Mapping[str, int], name: str) -> str:
    return f"<br><span class='better'>{counts[name]} of {counts['pairs']}</span>" if name in counts else ""


def _order(rows: Sequence[Mapping[str, Any]]) -> str:
    said = []
    for name in ("fd_effnet", "fid", "high_error"):
        if rows[0].get(name) is not None:
            alike, pairs = agreement(rows, name)
            said.append(f"{COLUMNS[name]} orders {alike} of the {pairs} pairs of rows as the paper's FID does")
    return f"<p style='margin-top:.8rem'>{escape('; '.join(said))}. By chance it would be half of them.</p>"


def _facts(result: Mapping[str, Any]) -> str:
    rows = [(row["name"], f"{html.million(row['params'])} parameters, {html.million(row['macs'])} multiply-adds")
            for row in result["rows"]]  # fmt: skip
    rows += [(name, html.said(value).strip("()")) for name, value in result["about"].items() if name not in ("title",)]
    cells = (
        f"<tr><th>{escape(re.sub('_', ' ', name))}</th><td class='code'>{escape(said)}</td></tr>" for name, said in rows
    )
    return f"<table>{''.join(cells)}</table>"
