"""What pip installs, against the folders that there are."""

from __future__ import annotations

import re
from pathlib import Path

import spectral_diffusion

ROOT = Path(spectral_diffusion.__file__).parent


def test_every_package_is_installed() -> None:
    """setuptools is told a list; a folder that is not in it would be missing wherever pip copies the package."""
    told = re.search(r"^packages = \[(.*?)^\]", (ROOT / "pyproject.toml").read_text("utf-8"), re.DOTALL | re.MULTILINE)
    assert told is not None
    houses = [ROOT / name for name in ("nodes", "spectral", "training")]
    folders = [ROOT, *(path.parent for house in houses for path in house.rglob("__init__.py"))]
    names = {".".join(["spectral_diffusion", *folder.relative_to(ROOT).parts]) for folder in folders}
    assert set(re.findall(r'"(.*?)"', told[1])) == names
