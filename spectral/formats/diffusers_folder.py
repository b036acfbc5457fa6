"""(to be written)"""
from pathlib import Path
from typing import Any


def is_folder(path: Path) -> bool:
    return False


def read(path: Path, options: Any) -> Any: ...
