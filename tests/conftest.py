"""How the tests are shared out where several processes run them (`make test`: two)."""

from __future__ import annotations

from pathlib import Path

import pytest

#: Folders whose tests share a server, and so a process.
SERVED = ("comfyui", "browser")


@pytest.hookimpl(tryfirst=True)  # before xdist reads the marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """One process runs all tests of a file, whose fixtures are made once, and all that need ComfyUI."""
    for item in items:
        path = Path(item.path)
        group = "comfyui" if path.parent.name in SERVED else path.stem
        item.add_marker(pytest.mark.xdist_group(group))
