"""What opening a large file costs: its numbers are looked at once, and mapped pages go as soon as they are copied."""

from __future__ import annotations

import ctypes
import functools
import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from .errors import SpectralError

#: Linux' MADV_PAGEOUT: pages that hold what lies in a file anyway leave memory, and come back when they are read.
_PAGEOUT = 21


@contextmanager
def shapes_alone() -> Iterator[None]:
    """Modules that are made here have tensors of a shape and no memory; they are not filled with first weights.

    Even without memory torch would fill them, by operations that import its compiler.
    """
    with torch.device("meta"), _Unfilled():
        yield


class _Unfilled(TorchFunctionMode):
    """The functions of torch.nn.init do nothing."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        named = kwargs or {}
        if getattr(func, "__module__", None) == "torch.nn.init":
            return named["tensor"] if "tensor" in named else args[0]
        return func(*args, **named)


def check_finite(tensor: Tensor, name: str) -> None:
    """That no number of a tensor is NaN or infinite.

    Raises:
        SpectralError: names the tensor.
    """
    if tensor.numel() == 0:
        return
    low, high = torch.aminmax(tensor.detach())
    if not (torch.isfinite(low) and torch.isfinite(high)):
        raise SpectralError(f"{name} holds numbers that are not finite (NaN or infinity); get the file again.")


def check_fits(tensor: Tensor, dtype: torch.dtype, name: str) -> None:
    """That no number of a finite tensor is too large for a floating type.

    Raises:
        SpectralError: names the tensor.
    """
    if tensor.numel() and max(map(abs, map(float, torch.aminmax(tensor.detach())))) > torch.finfo(dtype).max:
        raise SpectralError(f"{name} holds numbers that are too large for {dtype}; choose bfloat16 or float32.")


def release(tensor: Tensor) -> None:
    """Let the memory of a tensor that is mapped from a file go; what is not mapped stays as it is.

    Advice to the system that never changes what the tensor holds. Without Linux nothing happens.
    """
    advise = _madvise()
    if advise is None or tensor.device.type != "cpu" or not tensor.is_contiguous():
        return
    page = mmap.PAGESIZE
    start = -(-tensor.data_ptr() // page) * page
    end = (tensor.data_ptr() + tensor.nbytes) // page * page
    if end > start:
        advise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), _PAGEOUT)


@functools.cache
def _madvise() -> Any:
    """The C library's madvise, or None where there is none."""
    try:
        return ctypes.CDLL(None).madvise
    except (OSError, TypeError, AttributeError):
        return None
