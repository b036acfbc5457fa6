"""Table 5 of the paper, the ablation of its three parts, and ours beside it."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from . import html

#: What of a report stands in the table, and what it is called there; what was not measured is left out.
COLUMNS = {
    "fd_effnet": "FD-EffNet",
    "kid_effnet": "KID-EffNet",
    "fid": "FID",
    "clip_score": "CLIP score",
    "low_error": "low band",
    "high_error": "high band",
}
#: The columns of which less is better.
ERRORS = ("fd_effnet", "kid_effnet", "fid", "low_error", "high_error")
PARTS = {"gating": "WG", "spatial": "spatial", "frequency": "frequency"}
#: What may stand under the eight rows, by the name of its folder: what the students' images are decoded by, and what
#: they learn from.
BASELINES = {"first-stage": "first stage alone", "teacher": "teacher"}


@dataclass(frozen=True)
class Row:
    """A row of Table 5: which parts are on, and the FID that the paper has for it, on FFHQ."""

    gating: bool
    spatial: bool
    frequency: bool
    paper_fid: float

    @property
    def parts(self) -> list[str]:
        """The names of the parts that are on."""
        return [called for name, called in PARTS.items() if getattr(self, name)]

    @property
    def title(self) -> str:
        """What it is called in figures."""
        return {0: "none", len(PARTS): "all"}.get(len(self.parts)) or " + ".join(self.parts)

    @property
    def name(self) -> str:
        """What its folder is called."""
        return self.title.lower().replace(" + ", "-")


ROWS = (
    Row(False, False, False, 17.3),
    Row(True, False, False, 14.7),
    Row(False, True, False, 16.6),
    Row(False, False, True, 15.3),
    Row(True, True, False, 12.3),
    Row(False, True, True, 12.4),
    Row(True, False, True, 11.4),
    Row(True, True, True, 10.5),
)


def measured_columns(reports: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The columns that any of the reports has."""
    return [name for name in COLUMNS if any(report.get(name) is not None for report in reports.values())]


def entries(reports: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The rows that there are reports of, by the rows' names, as they stand in ablation.json."""
    return [
        {
            "name": row.name,
            **{part: getattr(row, part) for part in PARTS},
            "paper_fid": row.paper_fid,
            **_scores(row.name, reports),
        }
        for row in ROWS
        if row.name in reports
    ]


def baselines(reports: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Those of BASELINES that there are reports of, likewise; the first stage alone has no "params" and no "macs"."""
    return [{"name": name, **_scores(name, reports)} for name in BASELINES if name in reports]


def _scores(name: str, reports: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    kept = (*measured_columns(reports), "kid_effnet_std", "params", "macs")
    return {key: reports[name].get(key) for key in kept}


def effects(found: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """What every part changes: the mean of new / old − 1 over the four pairs of rows that differ in it alone.

    Args:
        found: all eight `entries`.

    Returns:
        By part, the change of every error and of "paper_fid"; below 0, it helps. "all" is all parts against none.
        Errors that are not above 0 in a row (KID may not be) are left out.
    """
    return {
        part: {name: round(sum(each) / len(each), 4) for name, each in own.items()}
        for part, own in changes(found).items()
    }


def changes(found: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, list[float]]]:
    """What `effects` are the means of: by part and error, new / old − 1 of every pair of rows."""
    rows = {tuple(entry[part] for part in PARTS): entry for entry in found}
    pairs = {
        part: [(off, on) for off, on in itertools.product(rows, rows) if _differ(off, on, place)]
        for place, part in enumerate(PARTS)
    }
    pairs["all"] = [((False,) * len(PARTS), (True,) * len(PARTS))]
    errors = [
        name
        for name in ("paper_fid", *ERRORS)
        if all(entry.get(name) is not None and entry[name] > 0 for entry in found)
    ]
    return {
        part: {name: [rows[on][name] / rows[off][name] - 1 for off, on in own] for name in errors}
        for part, own in pairs.items()
    }


def _differ(off: tuple[bool, ...], on: tuple[bool, ...], place: int) -> bool:
    """Whether `on` is `off` but for the part at `place`, which it has."""
    return on[place] and not off[place] and off[:place] + off[place + 1 :] == on[:place] + on[place + 1 :]


def agreement(found: Sequence[Mapping[str, Any]], column: str) -> tuple[int, int]:
    """How many pairs of rows a column orders as the paper's FID does, and of how many."""
    pairs = list(itertools.combinations(found, 2))
    alike = sum((a["paper_fid"] - b["paper_fid"]) * (a[column] - b[column]) > 0 for a, b in pairs)
    return alike, len(pairs)


def claim(result: Mapping[str, Any]) -> str:
    """What the paper's claim comes down to, in a sentence: all three parts against none.

    Args:
        result: as ablation.json has it, with "effects".
    """
    whole, spread = result["effects"]["all"], result.get("effects_spread", {}).get("all", {})
    said = ", ".join(
        f"{COLUMNS[name]} {html.change(whole[name], spread.get(name))}"
        for name in ("fid", "fd_effnet", "high_error")
        if name in whole
    )
    return f"All three parts against none: {said} (the paper's FID {html.change(whole['paper_fid'])})."


def text(found: Sequence[Mapping[str, Any]], below: Sequence[Mapping[str, Any]] = ()) -> str:
    """The table in letters, for a terminal.

    Args:
        found: `entries`, of one seed or of several.
        below: `baselines`.
    """
    columns = [name for name in COLUMNS if found and found[0].get(name) is not None]
    head = [*PARTS.values(), "paper: FID"]
    named = [[*("x" if entry[part] else "-" for part in PARTS), f"{entry['paper_fid']:.1f}"] for entry in found]
    left = aligned([head, *named])
    left += [BASELINES[entry["name"]].ljust(len(left[0])) for entry in below]
    scores = [[f"ours: {COLUMNS[name]}", *_beside(shown(name, [*found, *below]))] for name in columns]
    right = aligned(list(zip(*scores, strict=True))) if scores else [""] * len(left)
    return "\n".join(f"{first}  {second}".rstrip() for first, second in zip(left, right, strict=True))


def aligned(lines: Sequence[Sequence[str]]) -> list[str]:
    """Lines of cells as lines of text, flush right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return ["  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in lines]


def _beside(cells: Sequence[tuple[str, str]]) -> list[str]:
    """Numbers and their spreads in one column, in which both are flush."""
    width = max(len(spread) for _, spread in cells)
    blank = " " * (width + 3 if width else 0)
    return [f"{mean} ± {spread.rjust(width)}" if spread else mean + blank for mean, spread in cells]


def shown(column: str, found: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """A column as the table shows it: every entry's score, and its spread over seeds, "" where there is none.

    A column with spreads has as many decimals as show two digits of their median; another one those of `number`.
    """
    spreads = [entry.get("spread", {}).get(column) for entry in found]
    above = [spread for spread in spreads if spread]
    places = max(0, 1 - math.floor(math.log10(statistics.median(above)))) if above else None

    def said(value: float) -> str:
        return number(column, value) if places is None else f"{value:.{places}f}"

    return [
        ("" if entry.get(column) is None else said(entry[column]), "" if spread is None else said(spread))
        for entry, spread in zip(found, spreads, strict=True)
    ]


def number(column: str, value: float) -> str:
    """A score as the table shows it."""
    return f"{value:.4f}" if column == "kid_effnet" else f"{value:.3f}" if value < 10 else f"{value:.1f}"
