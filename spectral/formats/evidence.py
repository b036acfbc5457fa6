"""What the tensors of a file say together, though one of them be missing or damaged.

An architecture is read from several tensors that ought to agree, so that a single wrong one is found out afterwards,
key for key, and called by its name; read from that one alone, its healthy neighbours would be blamed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

from torch import Tensor

from ..errors import SpectralError

#: Nothing in a model is numbered higher than this.
_MOST = 256
#: Nor lies any layer that is asked for under more names than this.
_DEEPEST = 5


class Evidence:
    """The tensors of one part of a file, by LDM's names without any prefix.

    Args:
        tensors: their names and shapes; the numbers are never looked at.
        where: how to call the part in an error, before the name of a tensor.
    """

    def __init__(self, tensors: Mapping[str, Tensor], where: str) -> None:
        self.tensors, self.where = tensors, where
        self._under = Counter(prefix for name in tensors for prefix in _prefixes(name))

    def has(self, prefix: str, at_least: int = 2) -> bool:
        """Whether a layer is there: `at_least` so many tensors whose names start with `prefix`, up to a full stop.

        Every layer of LDM has a weight and a bias at least, so that one tensor alone makes no layer.
        """
        return self._under[prefix] >= at_least

    def count(self, pattern: str) -> int:
        """How many layers of a numbered row there are; `pattern` has {} for the number."""
        return next(index for index in range(_MOST + 1) if index == _MOST or not self.has(pattern.format(index)))

    def agreed(self, *places: tuple[str, int]) -> int:
        """The number that most of these say, and the first of them where as many say another.

        Args:
            places: names of tensors and the axis of each whose length is meant. What is missing says nothing.

        Raises:
            SpectralError: none of them is there; the first is named.
        """
        said = [
            self.tensors[name].shape[axis]
            for name, axis in places
            if name in self.tensors and axis < self.tensors[name].dim()
        ]
        if not said:
            raise self.missing(places[0][0])
        return Counter(said).most_common(1)[0][0]

    def ending(self, *ends: str) -> Iterator[str]:
        """The names that end so."""
        return (name for name in self.tensors if name.endswith(ends))

    def missing(self, name: str) -> SpectralError:
        """The error that this tensor is not there, or has not the axes that it should have."""
        if name in self.tensors:
            return SpectralError(
                f"{self.where}{name} has shape {list(self.tensors[name].shape)}; expected as in LDM's networks."
            )
        return SpectralError(f"{self.where}{name} is missing from the checkpoint; it is incomplete or of another kind.")

    def refuse_empty(self) -> None:
        """That every tensor holds numbers.

        Raises:
            SpectralError: one has no elements; it is named.
        """
        for name, tensor in self.tensors.items():
            if tensor.numel() == 0:
                raise SpectralError(f"{self.where}{name} has shape {list(tensor.shape)}, which holds no numbers.")


def most_common(values: Iterable[int], default: int) -> int:
    """The value that comes most often; of several the first."""
    found = Counter(values).most_common(1)
    return found[0][0] if found else default


def _prefixes(name: str) -> Iterator[str]:
    """`a.b.c` has the prefixes `a.` and `a.b.`."""
    place = name.find(".")
    for _ in range(_DEEPEST):
        if place < 0:
            return
        yield name[: place + 1]
        place = name.find(".", place + 1)
