"""The images of the data that samples are compared with, a batch at a time; those that cannot be read are left out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from ...spectral.config import ConditioningConfig
from ...spectral.errors import SpectralError
from ..data.batches import Batch, Batches, Loading, make_loader
from ..data.config import DataConfig
from ..data.contexts import Contexts
from ..data.dataset import open_images
from ..data.images import Images
from ..data.notes import CorruptLog
from ..data.order import Plan


def open_reference(config: DataConfig, side: int) -> Images:
    """The images that `config` names as squares of a side, from their centres, none of them in memory, each with its
    first caption: the prompts, and what scores of data and samples compare them with, are the same.

    Raises:
        SpectralError: it names a stream or cached latents, or there are no images.
    """
    plain = replace(config, size=side, crop="centre", flip=False, buckets=False, cache="off", captions="first")
    return open_images(plain)


def look_through(data: Images, batch: int, log: Path) -> Iterator[tuple[Tensor, list[str]]]:
    """Every image that can be read, once and in order: [B, 3, S, S] in [0, 1], and their captions.

    Args:
        data: as `open_reference` gives it.
        batch: images at a time.
        log: JSON lines {"file", "reason"} of what cannot be read; written anew.

    Raises:
        SpectralError: more than the data's max_corrupt cannot be read.
    """
    plans = [
        Plan([(0, index) for index in range(start, min(start + batch, len(data)))])
        for start in range(0, len(data), batch)
    ]
    log.unlink(missing_ok=True)
    unreadable = CorruptLog(log, data.config.max_corrupt, data.source)
    loader = make_loader(Loading(data, 0, mirrored=False), data.config.workers, sampler=plans)
    with closing(Batches(loader, data, unreadable, len(data), 0)) as batches:
        for plan in plans:
            loaded = next(batches)
            kept = _asked_for(loaded["index"], plan)
            if kept:
                yield loaded["image"][kept].float() / 255, [loaded["caption"][row] for row in kept]


def pick(data: Images, indices: Sequence[int]) -> tuple[Tensor, list[int]]:
    """Some images [N, 3, S, S] in [0, 1], and their places in `indices`; those that cannot be read are left out."""
    plan = Plan([(0, index) for index in indices])
    batch = _load(data, plan)
    kept = _asked_for(batch["index"], plan)
    return batch["image"][kept].float() / 255, kept


def stand_in(data: Images, indices: Sequence[int]) -> Tensor:
    """Images [N, 3, S, S] in [0, 1], one for each index; what cannot be read is replaced by the next that can.

    Raises:
        SpectralError: too many of them cannot be read.
    """
    return _load(data, Plan([(0, index) for index in indices]))["image"].float() / 255  # type: ignore[no-any-return]


def _load(data: Images, plan: Plan) -> Batch:
    batch = data.load(plan, 0, mirrored=False).batch
    if batch is None:
        raise SpectralError(f"The images of {data.source} cannot be read any more; restore them.")
    return batch


def _asked_for(found: Tensor, plan: Plan) -> list[int]:
    """The rows of a batch that hold what was asked for, and no other in the place of what cannot be read."""
    return torch.nonzero(found == torch.tensor([index for _, index in plan.items])).flatten().tolist()


def prompts_of(config: ConditioningConfig, data: Images, vocabulary: Path | None = None) -> list[str]:
    """What each image of the data is asked for by: its caption, its class, or "".

    Args:
        vocabulary: for LDM's own text encoder, where BERT's vocab.txt lies.

    Raises:
        SpectralError: the model does not know a class of the data, or what reads its prompts is not there.
    """
    contexts = Contexts(config, data, vocabulary=vocabulary)
    return contexts.prompts({"caption": data.captions, "label": data.subgroups})
