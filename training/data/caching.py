"""Writes a folder of cached latents, shard by shard: stopped at any moment and started again, it goes on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from torch import Tensor
from tqdm import tqdm

from ...spectral import checkpoint
from ...spectral.autoencoder import FirstStage
from ...spectral.config import ConditioningConfig, ModelConfig
from ...spectral.errors import SpectralError
from ...spectral.formats.source import FIRST_STAGE
from . import latents, order
from .batches import Batches, Loading, corrupt_log, make_loader
from .images import Images
from .latents import encode
from .latents_folder import Line
from .latents_writing import WriteOptions, begin, finish, new_index, stored, write_shard
from .order import Plan

#: Samples that every bucket has at least; smaller ones join their neighbours.
LEAST = 64


@dataclass(frozen=True)
class CacheOptions(WriteOptions):
    """How the latents of images are written.

    Args:
        flip: cache the mirrored images too.
        workers: processes that read and decode.
    """

    flip: bool = False
    workers: int = 2


def open_first_stage(path: Path, device: torch.device) -> tuple[FirstStage, ModelConfig]:
    """The first stage of a checkpoint alone, and what the whole checkpoint is.

    Raises:
        SpectralError: it has none, or the file cannot be read.
    """
    file = checkpoint.read(path)
    if file.config.first_stage is None:
        raise SpectralError(f"{path} holds no first stage; give a file of train-autoencoder, or a whole checkpoint.")
    tensors = {name: tensor for name, tensor in file.tensors.items() if name.startswith(FIRST_STAGE)}
    config = replace(file.config, unet=None, conditioning=ConditioningConfig())
    opened = checkpoint.build(replace(file, config=config, tensors=tensors), device=device)
    assert opened.first_stage is not None
    return opened.first_stage, file.config


def write(images: Images, first_stage: FirstStage, scale_factor: float, options: CacheOptions) -> dict[str, Any]:
    """Write what is missing of the folder; with several processes, each writes shards of its own.

    Args:
        images: what is encoded.
        first_stage: with what, on its device.
        scale_factor: that goes with it, noted for people.
        options: where to and how.

    Returns:
        Counts: samples, shards, corrupt, bytes.

    Raises:
        SpectralError: the folder holds latents of something else, cannot be written, or too many images are corrupt.
    """
    shards = plan_shards(images, options.shard_size)
    about = _about(images, first_stage, scale_factor, options, shards)
    missing = begin(options.out, about)
    _write_shards(missing, shards, images, first_stage, about, options)
    return finish(options.out, about, [record.key for record in images.records])


def plan_shards(images: Images, size: int) -> list[Plan]:
    """The samples of every shard: those of one bucket, in their order."""
    buckets = images.buckets or [0] * len(images)
    joined = order.joined_buckets(Counter(buckets), LEAST)
    members: dict[int, list[int]] = {}
    for index, bucket in enumerate(buckets):
        members.setdefault(joined[bucket], []).append(index)
    return [
        Plan([(0, index) for index in indices[start : start + size]], bucket)
        for bucket, indices in sorted(members.items())
        for start in range(0, len(indices), size)
    ]


def _about(
    images: Images, first_stage: FirstStage, scale_factor: float, options: CacheOptions, shards: list[Plan]
) -> dict[str, Any]:
    """The index of the folder, before anything is in it."""
    return new_index(
        latents.kind_of(first_stage),
        first_stage,
        scale_factor,
        [(plan.bucket, len(plan.items)) for plan in shards],
        data={"sha256": images.sha256, "source": Path(images.source).name, "images": len(images)},
        settings={
            "size": images.config.size,
            "subgroups": list(images.config.subgroups),
            "buckets": [list(size) for size in images.sizes] if images.config.buckets else [],
            "flip": options.flip,
            "dtype": options.dtype,
            "shard_size": options.shard_size,
        },
    )


def _write_shards(
    numbers: list[int],
    shards: list[Plan],
    images: Images,
    first_stage: FirstStage,
    about: dict[str, Any],
    options: CacheOptions,
) -> None:
    log = corrupt_log(images, options.out, PartialState().is_main_process)
    plans = [plan for number in numbers for plan in _parts(shards[number], options.batch)]
    loader = make_loader(Loading(images, 0, mirrored=False), 0 if images.in_memory else options.workers, sampler=plans)
    loaded = Batches(loader, images, log, len(images), 0)
    bar = tqdm(
        total=sum(len(shards[n].items) for n in numbers), unit="image", disable=not PartialState().is_main_process
    )
    with bar:
        for number in numbers:
            rows, wanted = [], []
            for plan in _parts(shards[number], options.batch):
                batch = next(loaded)
                kept = [i for i, (_, index) in enumerate(plan.items) if batch["index"][i] == index]
                rows.append(_encoded(first_stage, batch["image"][kept], about, options))
                wanted += [plan.items[i][1] for i in kept]
                bar.update(len(plan.items))
            _write_shard(options.out, about["shards"][number]["file"], wanted, rows, images)
    loaded.close()


def _parts(shard: Plan, size: int) -> Iterator[Plan]:
    """A shard in batches."""
    for start in range(0, len(shard.items), size):
        yield Plan(shard.items[start : start + size], shard.bucket)


def _encoded(
    first_stage: FirstStage, images: Tensor, about: dict[str, Any], options: CacheOptions
) -> dict[str, Tensor]:
    """The latents of a batch by name, as they are stored."""
    if not len(images):
        return {}
    found = {about["kind"]: encode(first_stage, images)}
    if options.flip:
        found[about["kind"] + "_flipped"] = encode(first_stage, images.flip(-1))
    return stored(found, options.dtype, f"the first stage cannot encode {about['data']['source']}")


def _write_shard(out: Path, file: str, indices: list[int], parts: list[dict[str, Tensor]], images: Images) -> None:
    records = [images.records[index] for index in indices]
    names = next((part.keys() for part in parts if part), ())
    tensors = {name: torch.cat([part[name] for part in parts if part]) for name in names}
    write_shard(out, file, indices, [Line(r.key, r.caption, r.groups, r.also) for r in records], tensors)
