"""The JSON files of a diffusers folder, read with suspicion: bounded, and every value of the type that is expected."""

from __future__ import annotations

import json
import math
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from ..config import LARGEST_INTEGER
from ..errors import SpectralError

#: Names of the files of settings.
CONFIG, SCHEDULER_CONFIG, MODEL_INDEX = "config.json", "scheduler_config.json", "model_index.json"
#: Bytes of a config.json. Real ones have two thousand.
LARGEST_CONFIG = 2**20
#: Bytes of the index of a sharded file. Stable Diffusion XL's would have 0.2 million.
LARGEST_INDEX = 2**24
#: The version that the folders written here were opened with.
DIFFUSERS_VERSION = "0.42.1"
#: Settings that say nothing of the function: numerics, training, and what averaging leaves in a config.json.
IGNORED = (
    *("dropout", "upcast_attention", "force_upcast", "num_train_timesteps", "decay", "min_decay", "inv_gamma", "power"),
    *("optimization_step", "update_after_step", "use_ema_warmup", "addition_embed_type_num_heads"),
)

T = TypeVar("T")


def label(path: Path) -> str:
    """A file of the folder as a user knows it: with the name of the folder that it lies in."""
    return f"{path.parent.name}/{path.name}" if path.parent.name else path.name


def read_json(path: Path, limit: int) -> dict[str, Any]:
    """The JSON object in a file of at most `limit` bytes.

    Raises:
        SpectralError: there is no such file, or it is too large, or holds something else.
    """
    name = label(path)
    try:
        if not path.is_file():
            raise SpectralError(f"{name} is missing or no file; expected JSON there, download the folder again.")
        with open(path, "rb") as file:
            content = file.read(limit + 1)
    except (OSError, RuntimeError) as error:  # RuntimeError: links that lead in a circle, before Python 3.13
        raise SpectralError(f"{name} cannot be opened ({error}); check the path and its permissions.") from error
    if len(content) > limit:
        raise SpectralError(f"{name} is larger than {limit} bytes, more than any real one; download it again.")
    try:
        data = json.loads(content.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise SpectralError(f"{name} is not valid JSON; expected an object of settings, download it again.") from error
    if not isinstance(data, dict):
        raise SpectralError(f"{name} holds no JSON object; expected one of settings, download it again.")
    return data


class Settings:
    """The settings in one config.json.

    Args:
        path: the file, read here.

    Raises:
        SpectralError: from every method: the setting has a value that it cannot have; file and setting are named.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.name = path, label(path)
        self.data = read_json(path, LARGEST_CONFIG)
        self._read: set[str] = set()

    def __contains__(self, key: str) -> bool:
        return key in self.data

    def get(self, key: str, default: Any = None) -> Any:
        """The value as it stands there, whatever it is."""
        self._read.add(key)
        return self.data.get(key, default)

    def unread(self, ignored: tuple[str, ...]) -> list[str]:
        """The settings that are on (neither null nor false), that nothing has asked for, and that are not `ignored`."""
        known = self._read.union(ignored)
        return [
            key
            for key, value in self.data.items()
            if key not in known and value is not None and value is not False and not key.startswith("_")
        ]

    def refuse(self, key: str, expected: str) -> NoReturn:
        """Say that a setting cannot be read here."""
        value = _short(self.data[key]) if key in self.data else "missing"
        raise SpectralError(f"{self.name}: {key} is {value}; expected {expected}, so choose another model.")

    def integer(self, key: str, default: int | None = None, least: int = 1) -> int:
        """A whole number, `least` or more."""
        value = self.get(key, default)
        if not _is_integer(value) or not least <= value <= LARGEST_INTEGER:
            self.refuse(key, f"a whole number of {least} or more")
        return int(value)

    def number(self, key: str, default: float) -> float:
        """A finite number above 0; null counts as missing."""
        value = self.get(key)
        value = default if value is None else value
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < LARGEST_INTEGER:
            self.refuse(key, "a number above 0")
        return float(value)

    def flag(self, key: str, default: bool = False) -> bool:
        """true or false; null counts as missing."""
        value = self.get(key)
        value = default if value is None else value
        if not isinstance(value, bool):
            self.refuse(key, "true or false")
        return value

    def choice(self, key: str, options: Mapping[str, T], default: str | None = None) -> T:
        """What stands for the value among `options`."""
        value = self.get(key)
        value = default if value is None else value
        if not isinstance(value, str) or value not in options:
            self.refuse(key, " or ".join(map(json.dumps, options)))
        return options[value]

    def integers(self, key: str) -> tuple[int, ...]:
        """A list of 1 to 16 whole numbers above 0."""
        value = self.get(key)
        if not isinstance(value, list) or not 1 <= len(value) <= 16:
            self.refuse(key, "a list of 1 to 16 whole numbers")
        if not all(_is_integer(item) and 1 <= item <= LARGEST_INTEGER for item in value):
            self.refuse(key, "whole numbers of 1 or more")
        return tuple(value)

    def repeated(self, key: str, default: int | None = None) -> int:
        """A whole number above 0, or a list of equal ones."""
        value = self.get(key, default)
        same = isinstance(value, list) and value and all(item == value[0] for item in value)
        number = value[0] if same else value
        if not _is_integer(number) or not 1 <= number <= LARGEST_INTEGER:
            self.refuse(key, "one whole number of 1 or more for every block")
        return int(number)

    def side(self, key: str) -> int | None:
        """The side of a square, as a number or a list of two; None where the file does not say."""
        value = self.get(key)
        if value is None:
            return None
        height, width = value if isinstance(value, list) and len(value) == 2 else (value, value)
        if height != width or not _is_integer(height) or not 1 <= height <= LARGEST_INTEGER:
            self.refuse(key, "the side of a square, a whole number of 1 or more")
        return int(height)

    def blocks(self, key: str, options: tuple[str, ...], count: int) -> tuple[str, ...]:
        """`count` names of block types, each one of `options`."""
        value = self.get(key)
        if not isinstance(value, list) or len(value) != count:
            self.refuse(key, f"a list of {count} block types, as many as block_out_channels")
        for item in value:
            if item not in options:
                self.refuse(key, f"blocks of the types {', '.join(options)}")
        return tuple(value)

    def only(self, accepted: dict[str, tuple[Any, ...]]) -> None:
        """Refuse any of these settings whose value is not among those accepted; a missing one is fine."""
        for key, values in accepted.items():
            if self.get(key, values[0]) not in values:
                self.refuse(key, " or ".join(map(json.dumps, values)))


def inexpressible(reason: str) -> SpectralError:
    """Why a model cannot be written as a diffusers folder."""
    return SpectralError(f"A diffusers folder cannot hold this model: {reason}; keep it as .safetensors.")


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _short(value: Any) -> str:
    """A value as JSON writes it, and no longer than a line can hold."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return reprlib.repr(value)
