"""How a U-Net is run when a model is sampled from: its precision, what is reused between steps, compilation."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from ..spectral.deep_features import Reuse
from ..spectral.errors import SpectralError
from ..spectral.reuse import OneSampling
from ..spectral.unet import UNet
from .processes import device

Precision = Literal["no", "bf16", "fp16", "auto"]
DTYPES = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

#: A prediction for x [B, C, H, W] at the steps [B], with a context [B, T, width] or None.
Network = Callable[..., Tensor]


@dataclass(frozen=True)
class Running:
    """How a U-Net is run. As it stands here every step is computed whole, in float32.

    Args:
        precision: of the U-Net: "no" (float32), "bf16", "fp16", or "auto", what `fastest` says. The sampler's own
            sums, the first stage and the text encoder stay in float32.
        reuse: of so many steps in a row the first runs the whole U-Net, the others its outermost blocks
            (`spectral.deep_features`).
        reuse_outer: how many of those.
        compile: by torch.compile, on CUDA as CUDA graphs; the first steps take minutes.

    Raises:
        SpectralError: there is no such precision, a number is less than 1, outer blocks are counted where nothing is
            reused, or compilation and reuse meet: a graph does the same at every step.
    """

    precision: Precision = "no"
    reuse: int = 1
    reuse_outer: int = 1
    compile: bool = False

    def __post_init__(self) -> None:
        if self.precision not in get_args(Precision):
            raise SpectralError(f"precision is {self.precision!r}; expected one of {', '.join(get_args(Precision))}.")
        for name in ("reuse", "reuse_outer"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise SpectralError(f"{name} is {value!r:.30}; expected a whole number from 1.")
        if self.reuse == 1 and self.reuse_outer != 1:
            raise SpectralError(f"reuse_outer is {self.reuse_outer}, but nothing is reused; set reuse as well.")
        if self.compile and self.reuse > 1:
            raise SpectralError("compile makes one graph that does the same at every step; leave out it, or reuse.")

    def named(self) -> dict[str, Any]:
        """What differs from float32 and whole steps, under its name; of "auto" what it is here."""
        precision = self.precision if self.precision != "auto" else fastest(device())
        found = {"precision": precision, "reuse": self.reuse, "reuse_outer": self.reuse_outer, "compile": self.compile}
        if self.reuse == 1:
            del found["reuse_outer"]
        return {name: value for name, value in found.items() if value != getattr(Running, name)}

    def prepare(self, unet: nn.Module) -> None:
        """Bring a U-Net into the precision, in place, and have it compiled when it is called."""
        unet.to(DTYPES[self._precision(unet)])
        if isinstance(unet, UNet) and unet.config.stages is not None:
            unet.stage_pairs.float()  # which work on what the sampler has
        if self.compile:
            unet.compile(mode="reduce-overhead" if next(unet.parameters()).is_cuda else None)

    def _precision(self, unet: nn.Module) -> Literal["no", "bf16", "fp16"]:
        return fastest(next(unet.parameters()).device) if self.precision == "auto" else self.precision

    def network(self, unet: nn.Module, steps: Sequence[int]) -> Network:
        """A prepared U-Net for one sampling of one batch, which asks about these steps."""
        if not isinstance(unet, UNet):
            return unet
        if self.precision != "no" and _dtype(unet) == torch.float32 != DTYPES[self._precision(unet)]:
            raise ValueError("the U-Net is not prepared; call Running.prepare with it first")
        if self.compile:
            return partial(_compiled, unet)
        reuse = Reuse(self.reuse, self.reuse_outer) if self.reuse > 1 else None
        return partial(_predict, unet, hooks=OneSampling(steps, reuse))


def _predict(unet: UNet, x: Tensor, *others: Any, **named: Any) -> Tensor:
    """The U-Net in its own precision, for a sampler in that of x."""
    return unet(x.to(_dtype(unet)), *others, **named).to(x.dtype)  # type: ignore[no-any-return]


def _compiled(unet: UNet, *inputs: Any, **named: Any) -> Tensor:
    with translating("leave out --compile"):
        return _predict(unet, *inputs, **named)


def _dtype(unet: UNet) -> torch.dtype:
    return next(unet.parameters()).dtype


@contextmanager
def translating(advice: str) -> Iterator[None]:
    """Where torch.compile finds no compiler, or meets what it cannot translate, that is a sentence that ends so."""
    try:
        yield
    except RuntimeError as error:
        if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            raise
        reason = (str(error).strip().splitlines() or ["no reason given"])[0][:200]
        raise SpectralError(f"torch.compile failed ({reason}); {advice}.") from error


def fastest(where: torch.device) -> Literal["no", "bf16", "fp16"]:
    """The precision in which a device computes fastest.

    bfloat16 where a CPU has AMX or AVX512-BF16 or a GPU its tensor cores for it, float16 on older GPUs, else float32.
    """
    if where.type == "cuda":
        return "bf16" if torch.cuda.get_device_capability(where)[0] >= 8 else "fp16"
    if where.type == "cpu" and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()):
        return "bf16"
    return "no"


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of commands that sample; `of` reads them."""
    group = parser.add_argument_group("running the U-Net", "by default in float32, every step whole")
    group.add_argument(
        "--precision",
        choices=get_args(Precision),
        default="no",
        help="auto: bf16 where a CPU has AMX or AVX512-BF16, bf16 or fp16 on CUDA, else float32 (no)",
    )
    group.add_argument(
        "--reuse", type=int, default=1, metavar="STEPS", help="run the deep blocks at every so many-th step only"
    )
    group.add_argument(
        "--reuse-outer", type=int, default=1, metavar="BLOCKS", help="how many of the outer blocks all steps run"
    )
    group.add_argument("--compile", action="store_true", help="by torch.compile; on CUDA as CUDA graphs")


def of(arguments: argparse.Namespace) -> Running:
    """What the options of `add_options` say.

    Raises:
        SpectralError: as `Running`.
    """
    return Running(arguments.precision, arguments.reuse, arguments.reuse_outer, arguments.compile)
