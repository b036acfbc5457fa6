"""The table over several trainings of every row, one from each seed: means, spreads, and how often a part helps."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from . import html, table5
from .table5 import COLUMNS, PARTS, ROWS

#: The reports of trainings, by seed and by the row's name.
BySeed = Mapping[int, Mapping[str, Mapping[str, Any]]]


def entries(by_seed: BySeed) -> list[dict[str, Any]]:
    """The rows that there are reports of, as they stand in ablation.json.

    Returns:
        `table5.entries`, of which every score is the mean over the seeds that the row has (so is "kid_effnet_std",
        KID's own deviation between subsets), and beside them

        - "seeds": which seeds these are;
        - "values": by column, the score of each of them;
        - "spread": by column, their sample standard deviation (n − 1); None for one seed.

        A column that one of the seeds lacks is None, and left out of "values" and "spread".
    """
    own = {row.name: {seed: found[row.name] for seed, found in by_seed.items() if row.name in found} for row in ROWS}
    means = {name: _mean_report(list(reports.values())) for name, reports in own.items() if reports}
    found = []
    for entry in table5.entries(means):
        reports = own[entry["name"]]
        values = {
            name: [report[name] for report in reports.values()] for name in COLUMNS if entry.get(name) is not None
        }
        spread = {name: deviation(each) for name, each in values.items()}
        found.append(entry | {"seeds": list(reports), "values": values, "spread": spread})
    return found


def _mean_report(reports: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A report with the means of the scores of some; what is the same in all, such as sizes, is the first one's."""
    scores = {name: [report.get(name) for report in reports] for name in (*COLUMNS, "kid_effnet_std")}
    return dict(reports[0]) | {name: mean(each) for name, each in scores.items()}


def mean(values: Sequence[float | None]) -> float | None:
    """Rounded to six decimals, as reports have them at most; None where one is missing."""
    known = [value for value in values if value is not None]
    return round(statistics.fmean(known), 6) if len(known) == len(values) else None


def deviation(values: Sequence[float]) -> float | None:
    """Sample standard deviation (n − 1), rounded like `mean`; None for one value."""
    return round(statistics.stdev(values), 6) if len(values) > 1 else None


def effects(by_seed: BySeed) -> dict[str, Any]:
    """What every part changes, over the seeds of which all eight rows are there; nothing where there is none.

    Returns:
        By part, and by error as `table5.effects` has them,

        - "effects": the mean over seeds of what `table5.effects` gives for each;
        - "effects_spread": its sample standard deviation over them (n − 1); None for one seed. Not of "paper_fid";
        - "improved": in how many of the pairs of rows that differ in the part alone, of all seeds together, the error
          is lower with it, and as "pairs" how many pairs that are: four for each seed, one of "all".

        An error that is not above 0 in a row of any seed is left out.
    """
    whole = [table5.entries(reports) for reports in by_seed.values() if len(reports) == len(ROWS)]
    if not whole:
        return {}
    found = [table5.changes(rows) for rows in whole]
    names = [name for name in found[0]["all"] if all(name in own["all"] for own in found)]
    ours = [name for name in names if name != "paper_fid"]
    result: dict[str, dict[str, Any]] = {"effects": {}, "effects_spread": {}, "improved": {}}
    for part in found[0]:
        each = {name: [statistics.fmean(own[part][name]) for own in found] for name in names}
        pairs = {name: [change for own in found for change in own[part][name]] for name in ours}
        result["effects"][part] = {name: round(statistics.fmean(each[name]), 4) for name in names}
        result["effects_spread"][part] = {name: _rounded(deviation(each[name])) for name in ours}
        better = {name: sum(change < 0 for change in pairs[name]) for name in ours}
        result["improved"][part] = {"pairs": sum(len(own[part]["paper_fid"]) for own in found), **better}
    return result


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def text(result: Mapping[str, Any]) -> str:
    """What `effects` gives, in letters, for a terminal."""
    columns = list(result["effects"]["all"])
    lines = [["", *("paper: FID" if name == "paper_fid" else f"ours: {COLUMNS[name]}" for name in columns)]]
    for part, changes in result["effects"].items():
        spread, counts = result["effects_spread"][part], result["improved"][part]
        cells = [html.change(changes[name], spread.get(name)) for name in columns]
        helped = [f" ({counts[name]} of {counts['pairs']})" if name in counts else "" for name in columns]
        lines.append([PARTS.get(part, part), *map("".join, zip(cells, helped, strict=True))])
    return "\n".join(table5.aligned(lines))


def listed(seeds: Sequence[int]) -> str:
    """Consecutive seeds in words: "seed 0", "seeds 0 and 1", "seeds 0 to 4"."""
    if len(seeds) == 1:
        return f"seed {seeds[0]}"
    return f"seeds {seeds[0]} {'and' if len(seeds) == 2 else 'to'} {seeds[-1]}"


def note(rows: Sequence[Mapping[str, Any]]) -> str:
    """How much the means of `entries` are to be believed."""
    counts = sorted({len(row["seeds"]) for row in rows})
    if counts == [1]:
        return "So far every row was trained once, from one seed; small differences between rows may be chance."
    some = f"{counts[0]} to {counts[-1]} times so far" if len(counts) > 1 else f"{counts[0]} times"
    few = " A deviation over fewer than five seeds is itself rough." if counts[0] < 5 else ""
    return (
        f"Every row was trained {some}, each time from another seed; all were sampled with the same prompts and noise. "
        "Scores are means over the seeds, ± their standard deviation (n − 1), which says how far two trainings of "
        f"one row lie apart.{few}"
    )
