"""Keep what an ablation or a comparison found, small enough for a repository, and draw its figures and tables again.

Kept are the JSON, the configuration, the log of every training and the pictures as JPEG; models and samples are not.
"""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

from ..spectral.errors import SpectralError
from . import cli, compare, figures
from .compare import folder_of
from .evaluation import ablation_figures, table5
from .evaluation.seeds import listed
from .files import write_whole
from .portable import portable

KINDS = {"ablation": "ablation.json", "comparison": "compare.json"}


def kind_of(folder: Path) -> str:
    """Whether a folder holds an "ablation" or a "comparison".

    Raises:
        SpectralError: neither, or one that has not come to its end.
    """
    kind = next((kind for kind, name in KINDS.items() if (folder / name).is_file()), None)
    if kind is None:
        raise SpectralError(
            f"{folder} holds no {' or '.join(KINDS.values())}; give a folder that ablate or compare left."
        )
    if kind == "ablation" and not _read(folder / KINDS[kind])["complete"]:
        raise SpectralError(f"The ablation in {folder} is not complete; run ablate again until it is.")
    return kind


def keep(run: Path, folder: Path) -> None:
    """Copy the small part of a run into a folder, without paths of this machine, and draw its figures.

    Raises:
        SpectralError: as `kind_of`, or one of the run's files is missing.
    """
    kind = kind_of(run)
    result = _read(run / KINDS[kind])
    kept: dict[str, str | bytes] = {"grid.jpg": _jpeg(run / "grid.png")}
    for name, place in _reports(kind, run, result).items():
        kept[f"reports/{name}.json"] = _text(_read(place))
        log = place.parents[2] / "statistics.jsonl"
        if kind == "ablation" and log.is_file():
            kept[f"logs/{name}.jsonl"] = log.read_text()
    if kind == "ablation":
        config = yaml.safe_load((run / "config.yaml").read_text())
        kept["config.yaml"] = yaml.safe_dump(portable(config), sort_keys=False)
    kept[KINDS[kind]] = _text(result)  # last: a folder that has it is whole
    for path, content in kept.items():
        write_whole(folder / path, content)
    draw(folder)


def draw(folder: Path) -> None:
    """Make the figures and the table of a folder that `keep` wrote: rows.png, spectra.png, compare.jpg, table.md.

    Raises:
        SpectralError: as `kind_of`, or one of its files is missing.
    """
    kind = kind_of(folder)
    result = _read(folder / KINDS[kind])
    reports = {path.stem: _read(path) for path in sorted((folder / "reports").glob("*.json"))}
    if kind == "ablation":
        below = {entry["name"]: reports[entry["name"]] for entry in result.get("baselines", [])}
        first = {entry["name"]: reports[entry["name"]] for entry in result["rows"]}
        seed = f", seed {result['about']['seed']}" if "seeds" in result["about"] else ""
        ablation_figures.plot_rows(result, folder / "rows.png")
        ablation_figures.plot_spectra(first, below, folder / "spectra.png", seed)
        write_whole(folder / "table.md", _ablation_table(result))
        return
    named = {model["name"]: reports[folder_of(model["name"])] for model in result["models"]}
    compare.plot_spectra(named, folder / "spectra.png")
    figures.beside(folder / "grid.jpg", folder / "spectra.png", folder / "compare.jpg")
    said = f"{result['about']['samples']:,} samples of each."
    write_whole(folder / "table.md", f"{_markdown(compare.table(result), 1)}\n{said}\n")


def _reports(kind: str, run: Path, result: Mapping[str, Any]) -> dict[str, Path]:
    """The report.json of every model, by the name of its folder."""
    if kind == "comparison":
        names = [folder_of(model["name"]) for model in result["models"]]
        return {name: run / name / "report.json" for name in names}
    pages = [page for row in result["rows"] for page in row.get("reports", [row["report"]])]
    found = {Path(page).parts[0]: run / page for page in pages}
    found |= {entry["name"]: run / entry["report"] for entry in result.get("baselines", [])}
    return {name: page.with_name("report.json") for name, page in found.items()}


def _ablation_table(result: Mapping[str, Any]) -> str:
    """Table 5 in Markdown, the paper's FID beside our scores."""
    rows, below = result["rows"], result.get("baselines", [])
    columns = [name for name in table5.COLUMNS if rows[0].get(name) is not None]
    cells = {name: table5.shown(name, [*rows, *below]) for name in columns}
    lines = [[*table5.PARTS.values(), "paper: FID", *(f"ours: {table5.COLUMNS[name]}" for name in columns)]]
    for place, row in enumerate([*rows, *below]):
        parts = ["✓" if row[part] else "" for part in table5.PARTS] if "paper_fid" in row else []
        left = [*parts, f"{row['paper_fid']:.1f}"] if parts else [table5.BASELINES[row["name"]], "", "", ""]
        lines.append([*left, *(" ± ".join(filter(None, cells[name][place])) for name in columns)])
    about = result["about"]
    said = f"{about['steps']:,} steps of {about['images_per_step']}, {listed(about.get('seeds', [about['seed']]))}; "
    said += f"{about['samples']:,} samples of each row."
    return f"{_markdown(lines, 3)}\n{said} {table5.claim(result)}\n"


def _markdown(lines: Sequence[Sequence[str]], left: int) -> str:
    """A table whose first columns, so many, are flush left and the others right."""
    head, *rest = (f"| {' | '.join(line)} |" for line in lines)
    rule = "|" + "".join("---|" if place < left else "---:|" for place in range(len(lines[0])))
    return "\n".join([head, rule, *rest]) + "\n"


def _read(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())  # type: ignore[no-any-return]
    except (OSError, ValueError) as error:
        raise SpectralError(f"{path} cannot be read ({error}); run the command again that left it.") from error


def _text(value: Any) -> str:
    return json.dumps(portable(value), indent=1, allow_nan=False) + "\n"


def _jpeg(path: Path) -> bytes:
    content = io.BytesIO()
    Image.open(path).convert("RGB").save(content, format="JPEG", quality=90)
    return content.getvalue()


def main(argv: Sequence[str]) -> None:
    """The command `results`."""
    parser = cli.Parser("results", __doc__)
    parser.add_argument("folder", type=Path, nargs="+", help="what is kept, of which figures and table are made again")
    parser.add_argument("--of", type=Path, help="first keep there the small part of this run of ablate or compare")
    parser.add_argument("--json", action="store_true", help="print what each folder's JSON holds, by folder")
    arguments = parser.parse_args(argv)
    if arguments.of is not None and len(arguments.folder) > 1:
        raise SpectralError(f"--of is one run, but {len(arguments.folder)} folders are given to keep it in; give one.")
    for folder in arguments.folder:
        keep(arguments.of, folder) if arguments.of is not None else draw(folder)
    if arguments.json:
        print(
            json.dumps(
                {str(folder): _read(folder / KINDS[kind_of(folder)]) for folder in arguments.folder}, allow_nan=False
            )
        )
        return
    for folder in arguments.folder:
        print((folder / "table.md").read_text())


if __name__ == "__main__":
    sys.exit(cli.run(main))
