"""What writes folders of latents share: begun once, shard by shard, and finished when all of it is there.

A shard that is there is whole, so that whoever is stopped goes on with the next; see `latents_folder` for the format.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import PartialState
from torch import Tensor

from ...spectral.autoencoder import FirstStage
from ...spectral.errors import SpectralError
from ...spectral.formats.writing import write_safetensors
from ..files import write_whole
from . import latents_folder
from .latents import first_stage_sha256
from .latents_folder import FORMAT, INDEX, VERSION, Line, described

DTYPES = {"float16": torch.float16, "float32": torch.float32}
#: What latents are made from, known by a hash, and what to call another one in a sentence.
PARTS = {"first_stage": "another first stage", "teacher": "another teacher", "data": "other images"}


@dataclass(frozen=True)
class WriteOptions:
    """How latents are written.

    Args:
        out: the folder.
        shard_size: samples of a shard.
        batch: samples that are made together.
        dtype: of the numbers: "float16" or "float32".
    """

    out: Path
    shard_size: int
    batch: int
    dtype: Literal["float16", "float32"] = "float16"

    def __post_init__(self) -> None:
        for name in ("shard_size", "batch"):
            if getattr(self, name) < 1:
                raise SpectralError(f"--{name.replace('_', '-')} is {getattr(self, name)}; expected at least 1.")


def new_index(
    kind: str, first_stage: FirstStage, scale_factor: float, shards: Sequence[tuple[int, int]], **parts: dict[str, Any]
) -> dict[str, Any]:
    """The index of a folder, before anything is in it.

    Args:
        kind: of the latents: "moments" or "latent".
        first_stage: that they are of.
        scale_factor: that goes with it, noted for people.
        shards: (bucket, samples) of each.
        parts: what else it is made from: "data", "settings", …
    """
    config = first_stage.config
    return {
        "format": FORMAT,
        "version": VERSION,
        "kind": kind,
        "first_stage": {
            "sha256": first_stage_sha256(first_stage),
            "kind": config.kind,
            "channels": config.embed_dim,
            "downscale": config.downscale,
            "scale_factor": scale_factor,
        },
        **parts,
        "shards": [
            {"file": f"latents-{number:05d}.safetensors", "bucket": bucket, "images": samples}
            for number, (bucket, samples) in enumerate(shards)
        ],
        "complete": False,
        "count": 0,
        "corrupt": [],
    }


def begin(out: Path, about: dict[str, Any]) -> list[int]:
    """Begin a folder, or go on with it: the shards that are missing and for this process to write.

    Raises:
        SpectralError: it was begun from something else.
    """
    state = PartialState()
    check_same(out, about)
    state.wait_for_everyone()
    if state.is_main_process and not _is_begun(out, about):
        write_whole(out / INDEX, json.dumps(about, indent=1) + "\n")
    mine = range(state.process_index, len(about["shards"]), state.num_processes)
    return [number for number in mine if not _is_whole(about, number, out)]


def check_same(out: Path, about: dict[str, Any]) -> None:
    """That a folder which was begun holds the latents that are asked for now; raises as `begin`."""
    if not (out / INDEX).exists():
        if any(out.glob("latents-*.safetensors")):
            raise SpectralError(f"{out} holds latents without an {INDEX}; choose another folder, or empty this one.")
        return
    before = latents_folder.read_index(out, finished=False)
    if latents_folder.maker(before) != latents_folder.maker(about):
        raise SpectralError(
            f"{out} was begun by data {latents_folder.maker(before)}; choose another folder, or empty this one."
        )
    for part, called in PARTS.items():
        if part in about and before[part]["sha256"] != about[part]["sha256"]:
            called = called.replace("images", "prompts") if latents_folder.maker(about) == "imagine" else called
            raise SpectralError(f"{out} was begun with {called}; choose another folder, or empty this one.")
    for name, value in about["settings"].items():
        if before["settings"].get(name) != value:
            raise SpectralError(
                f"{out} was begun with {name} {before['settings'].get(name)}, not {value}; "
                "choose another folder, or empty this one."
            )
    held, wanted = (sum(shard["images"] for shard in index["shards"]) for index in (before, about))
    if held > wanted:
        raise SpectralError(f"{out} was begun for {held} samples, not {wanted}; ask for no fewer, or empty it.")


def _is_begun(out: Path, about: dict[str, Any]) -> bool:
    """Whether the folder's index is of as many samples."""
    return (out / INDEX).exists() and latents_folder.read_index(out, finished=False)["shards"] == about["shards"]


def _is_whole(about: dict[str, Any], number: int, out: Path) -> bool:
    """Whether a shard is there, as it should be; only images may be missing in it, those that could not be read."""
    shard = about["shards"][number]
    if not (out / shard["file"]).exists():
        return False
    try:
        rows = len(latents_folder.open_shard(out, shard, about)["index"])
        least = shard["images"] if latents_folder.maker(about) == "imagine" else 0
        return least <= len(latents_folder.read_lines(out, shard)) == rows <= shard["images"]
    except SpectralError:
        return False


def write_shard(out: Path, file: str, indices: list[int], told: Sequence[Line], tensors: dict[str, Tensor]) -> None:
    """Write a shard and its lines; the lines first, for a shard that is there is whole.

    Args:
        file: its name.
        indices: the places of its samples in the data.
        told: what is said of each.
        tensors: by name, a row for each.
    """
    rows = [
        {"key": line.key, "caption": line.caption, "groups": list(line.groups)}
        | ({"captions": [line.caption, *line.also]} if line.also else {})
        for line in told
    ]
    write_whole(out / described(file), "".join(json.dumps(row) + "\n" for row in rows))
    write_safetensors(out / file, {"index": torch.tensor(indices, dtype=torch.int64), **tensors}, {"format": "pt"})


def stored(tensors: dict[str, Tensor], dtype: str, remedy: str) -> dict[str, Tensor]:
    """Tensors as they are stored.

    Raises:
        SpectralError: they are not finite then; `remedy` says what may be wrong.
    """
    found = {name: tensor.to("cpu", DTYPES[dtype]) for name, tensor in tensors.items()}
    if not all(bool(tensor.isfinite().all()) for tensor in found.values()):
        raise SpectralError(
            f"The latents are not finite as {dtype}; {remedy}, or they are too large: try --dtype float32."
        )
    return found


def finish(out: Path, about: dict[str, Any], keys: Sequence[str]) -> dict[str, int]:
    """Wait for all processes, count what is there, and say that it is all.

    Args:
        keys: of all samples; those that the shards lack are called corrupt.

    Returns:
        Counts: samples, shards, corrupt, bytes.
    """
    state = PartialState()
    state.wait_for_everyone()
    if state.is_main_process:
        held: set[int] = set()
        for shard in about["shards"]:
            held |= set(latents_folder.open_shard(out, shard, about)["index"].tolist())
        corrupt = [key for index, key in enumerate(keys) if index not in held]
        whole = about | {"complete": True, "count": len(held), "corrupt": corrupt}
        write_whole(out / INDEX, json.dumps(whole, indent=1) + "\n")
    state.wait_for_everyone()
    whole = latents_folder.read_index(out)
    size = sum((out / shard["file"]).stat().st_size for shard in whole["shards"])
    return {
        "samples": whole["count"],
        "shards": len(whole["shards"]),
        "corrupt": len(whole["corrupt"]),
        "bytes": size,
    }
