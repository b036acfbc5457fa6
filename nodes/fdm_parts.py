"""What latents come with, in the smaller stages of an f-DM run: areas and masks, and the part that is kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from ..spectral.fdm import Point, Process
from ..spectral.fdm.transforms import Size

#: Where ComfyUI of 2024 hands the conditioning to a sampler; newer versions keep it in the guider.
GIVEN = ("cond", "uncond")


@contextmanager
def conditioned_at(guider: Any, arguments: dict[str, Any], size: Size, cells: int) -> Iterator[dict[str, Any]]:
    """Conditionings whose areas and masks, which core has made for the latents, fit a smaller stage meanwhile.

    Args:
        guider: what a sampler is to call.
        arguments: that it is to be called with.
        size: height and width of the stage.
        cells: of the latents for one of the stage, along one side.

    Yields:
        The arguments to call it with.
    """
    if cells == 1:
        yield arguments
        return
    kept = getattr(guider, "conds", None)
    fitting = {key: _fitted(arguments[key], size, cells) for key in GIVEN if arguments.get(key)}
    if kept is not None:
        guider.conds = {key: _fitted(conditions, size, cells) for key, conditions in kept.items()}
    try:
        yield {**arguments, **fitting}
    finally:
        if kept is not None:
            guider.conds = kept


def _fitted(conditions: list[dict[str, Any]] | None, size: Size, cells: int) -> list[dict[str, Any]] | None:
    if conditions is None:
        return None
    made = []
    for one in conditions:
        changed = dict(one)
        if "area" in one:
            changed["area"] = area_at(one["area"], size, cells)
        if "mask" in one:
            mask: Tensor = one["mask"]
            changed["mask"] = F.avg_pool2d(mask[:, None].float(), cells, ceil_mode=True)[:, 0].to(mask)
        made.append(changed)
    return made


def area_at(area: tuple[int, ...], size: Size, cells: int) -> tuple[int, ...]:
    """An area (height, width, y, x) of the latents as that of all cells of a smaller stage that it touches."""
    half, lengths, starts = len(area) // 2, [], []
    for length, start, side in zip(area[:2], area[half : half + 2], size, strict=True):
        first = min(start // cells, side - 1)
        starts.append(first)
        lengths.append(max(1, min(-(-(start + length) // cells), side) - first))
    return (*lengths, *starts)


@dataclass
class Kept:
    """The part of a latent that inpainting keeps, at any stage.

    Args:
        latent: [B, C, H, W], as the network sees it.
        noises: the noise of every stage, [B, C, h, w] each.
        mask: of a noise level, where to paint: [B, C, H, W], 1 for what is new, 0 for what is kept.
    """

    process: Process
    latent: Tensor
    noises: list[Tensor]
    mask: Callable[[Tensor], Tensor]

    def new(self, sigma: Tensor, stage: int) -> Tensor:
        """The mask at a stage; a cell that is to be painted in part is painted."""
        mask = self.mask(sigma)
        if stage:
            mask = mask[:, :1]
        for transform in self.process.transforms[:stage]:
            if transform.factor > 1:
                mask = F.max_pool2d(mask, transform.factor, ceil_mode=True)
        return mask

    def point(self, t: Tensor, stage: int) -> Point:
        """x_t and δ_t of the latent."""
        return self.process.point(self.latent, t, stage)


def mixed(new: Tensor, kept: Tensor, mask: Tensor) -> Tensor:
    """`new` where the mask is 1, `kept` where it is 0."""
    return new * mask + kept * (1.0 - mask)


def noises(process: Process, noise: Tensor, last: int, fresh: Any) -> list[Tensor]:
    """White noise of the latents as that of every stage up to `last`."""
    made = [noise]
    for transform in process.transforms[:last]:
        made.append(transform.restrict(made[-1], fresh))
    return made
