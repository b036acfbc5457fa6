"""Save Spectrum: a chart's numbers as a file in the output folder, CSV or JSON."""

from __future__ import annotations

import csv
import io
import json
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

import folder_paths

from ..spectral.errors import SpectralError
from .measured import CATEGORY

#: Columns that hold names, which may look like numbers.
NAMES = ("set", "model", "layer", "axis")
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.ASCII | re.IGNORECASE)


class SaveSpectrum:
    """Writes a table."""

    CATEGORY = CATEGORY
    DESCRIPTION = (
        "Saves the numbers of a chart in the output folder: the table of Radial Spectrum, Compare Spectra or any other "
        "node of this pack, as CSV for a spreadsheet or as JSON for a program. A file that is there is never replaced."
    )
    SEARCH_ALIASES = ("export csv", "save table", "export json", "write numbers")
    RETURN_TYPES = ("STRING",)
    RETURN_NAMES = ("path",)
    OUTPUT_TOOLTIPS = ("Where the file was written.",)
    OUTPUT_NODE = True
    FUNCTION = "save"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        prefix = (
            "How the file's name begins; a counter follows. Folders may stand in front, such as spectra/student; "
            "%date:yyyy-MM-dd% is the day."
        )
        table = "The table output of a chart's node."
        return {
            "required": {
                "table": ("STRING", {"forceInput": True, "tooltip": table}),
                "filename_prefix": ("STRING", {"default": "spectrum", "tooltip": prefix}),
                "format": (
                    ["csv", "json"],
                    {"default": "csv", "tooltip": "csv: as it is; json: a list of numbers for each column."},
                ),
            }
        }

    def save(self, table: str, filename_prefix: str, format: str) -> dict[str, Any]:
        """Write it.

        Raises:
            SpectralError: the text is no table, or the prefix leads out of the output folder.
        """
        columns = read(table)
        folder, name, counter = _place(filename_prefix, f".{format}")
        path = folder / f"{name}_{counter:05}_.{format}"
        text = table if format == "csv" else json.dumps(columns, indent=1, allow_nan=False) + "\n"
        whole = path.with_name(path.name + ".part")
        try:
            whole.write_text(text, encoding="utf-8")
            whole.replace(path)
        except (OSError, ValueError) as error:  # a full disk, a name that is too long or that no file can have
            with suppress(OSError, ValueError):
                whole.unlink(missing_ok=True)
            raise SpectralError(
                f"filename_prefix of Save Spectrum is {filename_prefix!r:.80}, and no such file can be written "
                f"({getattr(error, 'strerror', None) or error}); choose a shorter or plainer name."
            ) from error
        return {"ui": {"text": [str(path)]}, "result": (str(path),)}


def read(table: str) -> dict[str, list[float | str | None]]:
    """A table's columns by their names; numbers as numbers, None where there is none.

    Raises:
        SpectralError: it is none: no header, no row, or rows of another length than the header.
    """
    rows = list(csv.reader(io.StringIO(table)))
    if len(rows) < 2 or not rows[0] or any(len(row) != len(rows[0]) for row in rows):
        raise SpectralError(
            "table of Save Spectrum is no table: expected CSV text with a header and rows, such as the table output of "
            "Radial Spectrum."
        )
    header, *values = rows
    return {
        name: [row[index] if name in NAMES else _value(row[index]) for row in values]
        for index, name in enumerate(header)
    }


def _value(text: str) -> float | str | None:
    if NUMBER.fullmatch(text):
        return float(text)
    return None if text.lower() in ("", "nan", "inf", "-inf") else text


def _place(prefix: str, suffix: str) -> tuple[Path, str, int]:
    """The folder, the name without its counter, and the next free counter.

    Raises:
        SpectralError: the prefix leads out of the output folder, or is no name.
    """
    try:
        folder, name, *_ = folder_paths.get_save_image_path(prefix, folder_paths.get_output_directory())
    except Exception as error:  # core says in several kinds that it leads outside, or that it is no name
        raise SpectralError(
            f"filename_prefix of Save Spectrum is {prefix!r:.80}; expected a name within the output folder, such as "
            "spectra/student."
        ) from error
    taken = [
        path.name.removeprefix(f"{name}_").split("_")[0]
        for path in Path(folder).glob("*" + suffix)
        if path.name.startswith(f"{name}_")
    ]
    return Path(folder), name, 1 + max((int(number) for number in taken if number.isdigit()), default=0)
