"""Writes a folder of cached latents, shard by shard: stopped at any moment and started again, it goes on."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import PartialState
from torch import Tensor
from tqdm import tqdm

from ...spectral import checkpoint
from ...spectral.autoencoder import FirstStage
from ...spectral.config import ConditioningConfig, ModelConfig
from ...spectral.errors import SpectralError
from ...spectral.formats.source import FIRST_STAGE
from ...spectral.formats.writing import write_safetensors
from ..files import write_whole
from . import latents, latents_folder, order
from .batches import Batches, Loading, make_loader
from .images import Images
from .latents import encode
from .latents_folder import FORMAT, INDEX, VERSION, described
from .notes import CorruptLog
from .order import Plan

DTYPES = {"float16": torch.float16, "float32": torch.float32}
#: Samples that every bucket has at least; smaller ones join their neighbours.
LEAST = 64


@dataclass(frozen=True)
class CacheOptions:
    """How latents are written.

    Args:
        out: the folder.
        shard_size: samples of a shard.
        batch: images that are encoded together.
        flip: cache the mirrored images too.
        dtype: of the numbers: "float16" or "float32".
        workers: processes that read and decode.
    """

    out: Path
    shard_size: int = 4096
    batch: int = 32
    flip: bool = False
    dtype: Literal["float16", "float32"] = "float16"
    workers: int = 2

    def __post_init__(self) -> None:
        for name in ("shard_size", "batch"):
            if getattr(self, name) < 1:
                raise SpectralError(f"--{name.replace('_', '-')} is {getattr(self, name)}; expected at least 1.")


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
    state = PartialState()
    shards = plan_shards(images, options.shard_size)
    about = _about(images, first_stage, scale_factor, options, shards)
    _check_same(options.out, about)
    state.wait_for_everyone()
    if state.is_main_process and not (options.out / INDEX).exists():
        write_whole(options.out / INDEX, json.dumps(about, indent=1) + "\n")
    mine = range(state.process_index, len(shards), state.num_processes)
    _write_shards([number for number in mine if not _is_whole(about, number, options.out)], shards, images, first_stage,
                  about, options)  # fmt: skip
    state.wait_for_everyone()
    if state.is_main_process:
        _finish(options.out, about, shards, images)
    state.wait_for_everyone()
    whole = latents_folder.read_index(options.out)
    size = sum((options.out / shard["file"]).stat().st_size for shard in whole["shards"])
    return {"samples": whole["count"], "shards": len(shards), "corrupt": len(whole["corrupt"]), "bytes": size}


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
    config = first_stage.config
    return {
        "format": FORMAT,
        "version": VERSION,
        "kind": latents.kind_of(first_stage),
        "first_stage": {
            "sha256": latents.first_stage_sha256(first_stage),
            "kind": config.kind,
            "channels": config.embed_dim,
            "downscale": config.downscale,
            "scale_factor": scale_factor,
        },
        "data": {"sha256": images.sha256, "source": Path(images.source).name, "images": len(images)},
        "settings": {
            "size": images.config.size,
            "subgroups": list(images.config.subgroups),
            "buckets": [list(size) for size in images.sizes] if images.config.buckets else [],
            "flip": options.flip,
            "dtype": options.dtype,
            "shard_size": options.shard_size,
        },
        "shards": [
            {"file": f"latents-{number:05d}.safetensors", "bucket": plan.bucket, "images": len(plan.items)}
            for number, plan in enumerate(shards)
        ],
        "complete": False,
        "count": 0,
        "corrupt": [],
    }


def _check_same(out: Path, about: dict[str, Any]) -> None:
    """That a folder which was begun holds the latents that are asked for now."""
    if not (out / INDEX).exists():
        if any(out.glob("latents-*.safetensors")):
            raise SpectralError(f"{out} holds latents without an {INDEX}; choose another folder, or empty this one.")
        return
    before = latents_folder.read_index(out, finished=False)
    for part, called in (("first_stage", "another first stage"), ("data", "other images")):
        if before[part]["sha256"] != about[part]["sha256"]:
            raise SpectralError(f"{out} was begun with {called}; choose another folder, or empty this one.")
    for name, value in about["settings"].items():
        if before["settings"].get(name) != value:
            raise SpectralError(
                f"{out} was begun with {name} {before['settings'].get(name)}, not {value}; "
                "choose another folder, or empty this one."
            )


def _is_whole(about: dict[str, Any], number: int, out: Path) -> bool:
    """Whether a shard is there, as it should be."""
    shard = about["shards"][number]
    if not (out / shard["file"]).exists():
        return False
    try:
        rows = len(latents_folder.open_shard(out, shard, about)["index"])
        return len(latents_folder.read_lines(out, shard)) == rows <= shard["images"]
    except SpectralError:
        return False


def _write_shards(
    numbers: list[int],
    shards: list[Plan],
    images: Images,
    first_stage: FirstStage,
    about: dict[str, Any],
    options: CacheOptions,
) -> None:
    log = CorruptLog(options.out / "corrupt.log", images.config.max_corrupt, images.source)
    for name, reason in images.found():
        log.add(name, reason, len(images))
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
    stored = {name: tensor.to("cpu", DTYPES[options.dtype]) for name, tensor in found.items()}
    if not all(bool(tensor.isfinite().all()) for tensor in stored.values()):
        raise SpectralError(
            f"The latents of {about['data']['source']} are not finite as {options.dtype}; the first stage is damaged, "
            "or they are too large: try --dtype float32."
        )
    return stored


def _write_shard(out: Path, file: str, indices: list[int], parts: list[dict[str, Tensor]], images: Images) -> None:
    """The lines first: a shard that is there is whole."""
    lines = []
    for index in indices:
        record = images.records[index]
        lines.append(json.dumps({"key": record.key, "caption": record.caption, "groups": record.groups}))
    write_whole(out / described(file), "".join(line + "\n" for line in lines))
    names = next((part.keys() for part in parts if part), ())
    tensors = {name: torch.cat([part[name] for part in parts if part]) for name in names}
    write_safetensors(out / file, {"index": torch.tensor(indices, dtype=torch.int64), **tensors}, {"format": "pt"})


def _finish(out: Path, about: dict[str, Any], shards: list[Plan], images: Images) -> None:
    """Count what is there, and say that it is all."""
    held: set[int] = set()
    for shard in about["shards"]:
        held |= set(latents_folder.open_shard(out, shard, about)["index"].tolist())
    corrupt = [images.records[index].key for index in range(len(images)) if index not in held]
    write_whole(
        out / INDEX, json.dumps(about | {"complete": True, "count": len(held), "corrupt": corrupt}, indent=1) + "\n"
    )
