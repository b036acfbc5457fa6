"""Latents that a teacher makes, so that students learn from it without any image; written as `data cache` writes.

Sample i shows one of the prompts, in an order that the seed shuffles, and depends on the seed and i alone: more of them
can be asked for later, and any number of processes make the same.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import PartialState
from torch import Tensor
from tqdm import tqdm

from ...spectral import checkpoint
from ...spectral.conditioning import has_null
from ...spectral.config import ConditioningConfig
from ...spectral.errors import SpectralError
from ..loop.config import check_seed
from ..sample import class_number, context_of, guidance_of, latents
from . import latents_folder, records, shards, trajectories
from .contexts import class_numbers
from .dataset import EMOJI64
from .latents_writing import WriteOptions, begin, finish, new_index, stored, write_shard
from .order import Permutations
from .records import Said


class Wish(NamedTuple):
    """What a sample is to show.

    Args:
        prompt: as `sample` takes it.
        caption, groups: what is said of it afterwards.
    """

    prompt: str
    caption: str
    groups: tuple[str, ...]


@dataclass(frozen=True)
class ImagineOptions(WriteOptions):
    """How a teacher's latents are made and written.

    Args:
        count: of samples; None: one for each prompt.
        steps: of DDIM.
        guidance: weight of classifier-free guidance; None is 2, or 1 for a teacher without a null condition, or with
            guidance in its weights.
        seed: of the noise, and of the prompts' order.
        bf16: ask the teacher in bfloat16.
        vocabulary: for LDM's own text encoder, where BERT's vocab.txt lies.
        states: of how many steps a student is to be that learns from them (see `trajectories`); 0: of no few.
    """

    count: int | None = None
    steps: int = 50
    guidance: float | None = None
    seed: int = 0
    bf16: bool = False
    vocabulary: Path | None = None
    states: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.count is not None and self.count < 1:
            raise SpectralError(f"--count is {self.count}; expected at least 1.")
        if self.guidance is not None and not math.isfinite(self.guidance):
            raise SpectralError(f"--guidance is {self.guidance}; expected a number, 1 for none.")
        if not 0 <= self.states <= self.steps:
            raise SpectralError(f"--states is {self.states}; expected 0 (none) to --steps, which is {self.steps}.")
        check_seed(self.seed)


def write(
    teacher: checkpoint.Checkpoint,
    wishes: Sequence[Wish],
    source: str,
    made_with: dict[str, Any],
    options: ImagineOptions,
) -> dict[str, int]:
    """Make and write what is missing of the folder; with several processes, each writes shards of its own.

    Args:
        teacher: with a U-Net and a first stage, on its device.
        wishes: what is shown, not empty.
        source: what they are called.
        made_with: what else makes the teacher what it is, to be compared when the command is run again.
        options: where to and how.

    Returns:
        Counts: samples, shards, bytes.

    Raises:
        SpectralError: the folder holds latents of something else, or cannot be written; or samples cannot be made.
    """
    check_states(teacher, options)
    count = options.count or len(wishes)
    about = _about(teacher, wishes, source, made_with, count, options)
    teacher.schedule.ddim_timesteps(options.steps)  # which, like the next line, refuses before anything is written
    context_of(teacher.config, teacher.conditioner, [wishes[0].prompt], options.vocabulary)
    missing = begin(options.out, about)
    total = sum(about["shards"][number]["images"] for number in missing)
    permutations = Permutations(options.seed)
    with tqdm(total=total, unit="sample", disable=not PartialState().is_main_process) as bar:
        for number in missing:
            first = number * options.shard_size
            indices = range(first, first + about["shards"][number]["images"])
            rows: list[dict[str, Tensor]] = []
            told: list[latents_folder.Line] = []
            for some in _parts(indices, options.batch):
                shown = [wish_of(index, wishes, permutations) for index in some]
                rows.append(_made(teacher, shown, some, options))
                told += [
                    latents_folder.Line(f"{index:08d}", wish.caption, wish.groups)
                    for index, wish in zip(some, shown, strict=True)
                ]
                bar.update(len(some))
            tensors = {name: torch.cat([row[name] for row in rows]) for name in rows[0]}
            write_shard(options.out, about["shards"][number]["file"], list(indices), told, tensors)
    counts = finish(options.out, about, [f"{index:08d}" for index in range(count)])
    return {name: counts[name] for name in ("samples", "shards", "bytes")}


def check_states(teacher: checkpoint.Checkpoint, options: ImagineOptions) -> None:
    """Raise SpectralError where a teacher's states are asked for that it does not pass."""
    assert teacher.config.unet is not None
    if options.states and (teacher.config.unet.stages is not None or teacher.config.schedule.zero_terminal_snr):
        raise SpectralError(
            "--states needs a teacher of one stage, whose schedule ends in a little signal, as LDM's do; leave it out."
        )


def _about(
    teacher: checkpoint.Checkpoint,
    wishes: Sequence[Wish],
    source: str,
    made_with: dict[str, Any],
    count: int,
    options: ImagineOptions,
) -> dict[str, Any]:
    """The index of the folder, before anything is in it."""
    assert teacher.config.unet is not None and teacher.first_stage is not None
    size = options.shard_size
    return new_index(
        "latent",
        teacher.first_stage,
        teacher.config.scale_factor,
        [(0, min(size, count - first)) for first in range(0, count, size)],
        teacher={"sha256": teacher.file.sha256, "file": teacher.file.path.name},
        data={"sha256": hashlib.sha256(repr(list(wishes)).encode()).hexdigest(), "source": source, "images": count},
        settings={
            "size": teacher.config.unet.image_size * teacher.first_stage.config.downscale,
            "subgroups": [],
            "buckets": [],
            "flip": False,
            "dtype": options.dtype,
            "shard_size": size,
            "steps": options.steps,
            "guidance": guidance_of(teacher.config, options.guidance),
            "seed": options.seed,
            "bf16": options.bf16,
            **({"states": options.states} if options.states else {}),
            **made_with,
        },
    )


def _parts(indices: range, size: int) -> Iterator[range]:
    for start in range(0, len(indices), size):
        yield indices[start : start + size]


def wish_of(index: int, wishes: Sequence[Wish], permutations: Permutations) -> Wish:
    """What the sample of this number shows: in every round of all wishes, each of them once."""
    turn, place = divmod(index, len(wishes))
    return wishes[int(permutations.of(turn, len(wishes))[place])]


def _made(
    teacher: checkpoint.Checkpoint, shown: Sequence[Wish], indices: Sequence[int], options: ImagineOptions
) -> dict[str, Tensor]:
    """The latents of a batch, and the states on the way to them where there are to be some, as they are stored."""
    assert teacher.unet is not None
    path = trajectories.Recorder(teacher.config.schedule, options.steps, options.states) if options.states else None
    kind = next(teacher.unet.parameters()).device.type
    with torch.autocast(kind, torch.bfloat16, enabled=options.bf16):
        made = latents(
            teacher.config,
            teacher.unet,
            teacher.conditioner,
            [wish.prompt for wish in shown],
            indices,
            steps=options.steps,
            guidance=options.guidance,
            seed=options.seed,
            vocabulary=options.vocabulary,
            callback=path,
        )
    made_of = {"latent": made} | ({} if path is None else {"states": path.states()})
    return stored(made_of, options.dtype, "the teacher is damaged")


def wishes_of(
    conditioning: ConditioningConfig, prompts: Path | None, data: str | None, subgroups: Sequence[str] = ()
) -> tuple[list[Wish], str]:
    """What a teacher is to show, and what that is called.

    Args:
        conditioning: of the teacher.
        prompts: a text file with a caption, or a class by name or number, on every line.
        data: folder, shards or latents, as `data.path` of a run, of which all captions, or the classes, are taken.
        subgroups: of `data`: only these.

    Raises:
        SpectralError: they cannot be read, or the teacher does not know them; or none are given, where it needs them.
    """
    if prompts is not None and data is not None:
        raise SpectralError("--prompts and --data exclude each other; give one of them.")
    if conditioning.kind == "external":
        raise SpectralError("The teacher's text encoder is not in its checkpoint; give its file with --text-encoder.")
    if conditioning.kind == "none" and (prompts or data):
        raise SpectralError("The teacher takes no prompts; leave --prompts and --data out, and give --count.")
    if prompts is not None:
        return [_wish(conditioning, line) for line in records.read_prompts(prompts)], prompts.name
    if data is not None:
        return _of_data(conditioning, data, subgroups), Path(data).name
    if conditioning.kind == "class":
        count = conditioning.n_classes - has_null(conditioning)
        return [_wish(conditioning, str(number)) for number in range(count)], "all classes"
    if conditioning.kind == "none":
        return [Wish("", "", ("imagined",))], "no prompts"
    raise SpectralError(
        "The teacher draws what it is told; give --prompts a text file with a caption on every line, or --data the "
        "captions of a data set."
    )


def _wish(conditioning: ConditioningConfig, line: str) -> Wish:
    """What a line of text asks for."""
    if conditioning.kind == "text":
        return Wish(line, line, ("imagined",))
    name = _class_name(conditioning, class_number(conditioning, line))
    return Wish(name, name, (name,))


def _class_name(conditioning: ConditioningConfig, number: int) -> str:
    if number >= conditioning.n_classes - has_null(conditioning):
        raise SpectralError(f"Class {number} stands for no class in particular; leave it out.")
    return conditioning.class_names[number] if conditioning.class_names else str(number)


def _of_data(conditioning: ConditioningConfig, path: str, subgroups: Sequence[str]) -> list[Wish]:
    told = [(captions, groups) for captions, groups in told_of(path) if records.chosen(groups, subgroups)]
    if not told:
        raise SpectralError(f"{path} holds no captions of the groups {', '.join(subgroups)}.")
    if conditioning.kind == "text":
        return [Wish(caption, caption, groups) for captions, groups in told for caption in captions]
    numbers = class_numbers(conditioning, [groups[-1] for _, groups in told])
    return [Wish(_class_name(conditioning, numbers[groups[-1]]), captions[0], groups) for captions, groups in told]


def told_of(path: str) -> list[Said]:
    """Captions and groups of every sample of a data set; no image is read.

    Raises:
        SpectralError: as `open_data`; or it is a stream.
    """
    if path.startswith("pipe:"):
        raise SpectralError(f"{path} is a stream, whose captions nobody knows beforehand; give a file to --prompts.")
    place = EMOJI64 if path == "emoji64" else Path(path)
    if latents_folder.is_cache(place):
        about = latents_folder.read_index(place)
        lines = [line for shard in about["shards"] for line in latents_folder.read_lines(place, shard)]
        return [Said((line.caption, *line.also), line.groups) for line in lines]
    found = records.in_folder(place) if place.is_dir() else shards.in_shards(shards.named(str(place)))
    return [Said((record.caption, *record.also), record.groups) for record in found]
