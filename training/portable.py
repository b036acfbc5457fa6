"""What a model or a result says of its making, without the folders of the machine that made it."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

#: The folders of an absolute path inside a longer text, such as pipe:cat /home/me/x.tar. Not those of an address.
_FOLDERS = re.compile(r"""(?<![\w.~/)\]}-])(?:[A-Za-z]:[\\/]|/)(?:[^\s\\/'",=]+[\\/])+""")


def portable(value: Any, key: str = "") -> Any:
    """JSON-like data, with only the name at its end of every absolute path; so too in the words of a "command"."""
    if isinstance(value, Mapping):
        return {name: portable(each, name) for name, each in value.items()}
    if isinstance(value, list):
        return [portable(each) for each in value]
    if isinstance(value, str):
        return _command(value) if key == "command" else _without_folders(value)
    return value


def portable_command(words: Sequence[str]) -> str:
    """A command's words as one line for a shell, likewise."""
    options = (word.partition("=") if word.startswith("-") else ("", "", word) for word in words)
    return shlex.join(f"{name}{equals}{_without_folders(given)}" for name, equals, given in options)


def _command(line: str) -> str:
    try:
        return portable_command(shlex.split(line))
    except ValueError:  # of a file that says what it likes
        return _without_folders(line)


def _without_folders(text: str) -> str:
    if PurePosixPath(text).is_absolute() or PureWindowsPath(text).is_absolute():
        return PureWindowsPath(text).name
    return _FOLDERS.sub("", text)
