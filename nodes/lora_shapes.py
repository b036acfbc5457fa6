"""Whether the parts of a LoRA go together and fit the weight that they are to change.

Core computes a change when it is needed; where shapes do not fit it leaves the weight as it is, and only its log says
so.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor

_UP, _DOWN, _MIDDLE = "up.weight", "down.weight", "mid.weight"


def fit(parts: Mapping[str, Tensor], shape: tuple[int, ...]) -> bool:
    """Whether core can make a change of these tensors.

    Args:
        parts: of one weight, by the ends of their names.
        shape: the weight's.
    """
    return _scalars(parts) and _whole(parts, shape) and _factors(parts, shape) and _kronecker(parts, shape)


def _scalars(parts: Mapping[str, Tensor]) -> bool:
    """The scale is one number."""
    return all(tensor.numel() == 1 for name, tensor in parts.items() if name.endswith("alpha"))


def _whole(parts: Mapping[str, Tensor], shape: tuple[int, ...]) -> bool:
    """Differences have the size of the weight; DoRA's norms go along one of its first two axes."""
    for name, tensor in parts.items():
        if name.endswith(".diff") and tensor.numel() != math.prod(shape):
            return False
        if name.endswith("dora_scale") and tensor.numel() not in shape[:2]:
            return False
        # [blocks, size, size], or butterflies of them, [factors, blocks, size, size]
        if name.endswith("oft_blocks") and math.prod(tensor.shape[-3:-1]) * (tensor.ndim > 2) != shape[0]:
            return False
    return True


def _factors(parts: Mapping[str, Tensor], shape: tuple[int, ...]) -> bool:
    """Two low-rank factors: [rows, rank, …] and [rank, columns, …], with a third between them for convolutions."""
    up, down, middle = (_ending(parts, end) for end in (_UP, _DOWN, _MIDDLE))
    if up is not None and (up.ndim < 2 or up.shape[0] != shape[0]):
        return False
    if down is not None and (down.ndim < 2 or down.shape[1] != shape[1]):
        return False
    if up is None or down is None:
        return True  # half of a pair is another sentence
    if middle is not None:
        return middle.ndim == 4 and middle.shape[:2] == (up.shape[1], down.shape[0])
    rank = down.shape[0]
    return up.shape[1] == rank > 0 and up.numel() // rank * (down.numel() // rank) == math.prod(shape)


def _kronecker(parts: Mapping[str, Tensor], shape: tuple[int, ...]) -> bool:
    """LoKr's two whole factors: the weight's rows and columns are the products of theirs."""
    one, other = (_ending(parts, end) for end in ("lokr_w1", "lokr_w2"))
    if one is None or other is None:
        return True
    enough = one.ndim >= 2 and other.ndim >= 2
    return enough and all(one.shape[axis] * other.shape[axis] == shape[axis] for axis in (0, 1))


def _ending(parts: Mapping[str, Tensor], end: str) -> Tensor | None:
    return next((tensor for name, tensor in parts.items() if name.endswith(end)), None)
