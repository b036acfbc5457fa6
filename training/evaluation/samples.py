"""A folder of samples: made in shares by every process, gone on with after a stop, never mixed with others.

`FOLDER/images/000000.png` and so on, and beside them `FOLDER/samples.json`, which says what they were made with and how
fast.
"""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from ...spectral.checkpoint import Checkpoint
from ...spectral.config import ModelConfig
from ...spectral.errors import SpectralError
from ..decoding import decode, files_in, floats
from ..files import write_whole
from ..processes import device, is_main, processes
from ..running import Running
from ..sample import guidance_of, image_side, sample_checkpoint, steps_of
from .config import EvaluationConfig

#: Pixels along a side below which a spectrum has too few frequencies.
SMALLEST_SIDE = 16


@dataclass(frozen=True)
class Throughput:
    """Images per second of all processes together, from noise to pixels; writing files and the first call left out."""

    images_per_s: float
    images: int
    processes: int
    device: str


@dataclass(frozen=True)
class Filled:
    """What `fill` or `complete` did: how many samples it made, and how fast they were made, now or when they were."""

    made: int
    throughput: Throughput | None


def order_of(images: int, count: int, seed: int) -> list[int]:
    """Which image of the data sample 0, 1, … count − 1 stands beside: permutations of all of them, one after the other.

    A larger count only adds to the end.
    """
    generator = torch.Generator().manual_seed(seed)
    order: list[int] = []
    while len(order) < count:
        order += torch.randperm(images, generator=generator).tolist()
    return order[:count]


def settings_of(opened: Checkpoint, config: EvaluationConfig, **inputs: str | None) -> dict[str, Any]:
    """Everything that the pixels of sample i depend on beside its prompt.

    Args:
        inputs: SHA-256 of the data and of other files that the model is put together from.

    Raises:
        SpectralError: a step count, a guidance or a size that the model cannot be sampled with.
    """
    if opened.unet is None or opened.first_stage is None:
        raise SpectralError(f"{opened.file.path.name} cannot sample: it lacks a U-Net or a first stage.")
    opened.schedule.ddim_timesteps(steps_of(opened.config, config.steps))
    return {
        "checkpoint": opened.file.sha256,
        **inputs,
        "averages": opened.file.averaged,
        "heads": opened.unet.config.num_heads,
        "head_channels": opened.unet.config.num_head_channels,
        "prediction": opened.config.schedule.prediction,
        "scale_factor": opened.config.scale_factor,
        **asked(opened.config, config),
    }


def asked(model: ModelConfig, config: EvaluationConfig) -> dict[str, Any]:
    """What of `settings_of` is known before there is a model.

    Raises:
        SpectralError: a guidance or a size that the model cannot be sampled with.
    """
    return {
        "steps": steps_of(model, config.steps),
        "guidance": guidance_of(model, config.guidance),
        "seed": config.seed,
        "size": image_side(model, config.size),
        **config.running.named(),
    }


def fill(
    folder: Path, opened: Checkpoint, prompts: Sequence[str], config: EvaluationConfig, settings: dict[str, Any]
) -> Filled:
    """Make what is missing of `prompts`' samples in `folder`, as `complete`.

    Raises:
        SpectralError: the folder holds samples made with other settings, or as `sample.sample`.
    """
    options: dict[str, Any] = {"guidance": config.guidance, "seed": config.seed, "size": config.size}
    options |= {"vocabulary": config.vocabulary, "batch": config.batch, "how": config.running}

    def made(indices: Sequence[int], steps: int | None = config.steps) -> Tensor:
        asked = [prompts[index] for index in indices]
        return sample_checkpoint(opened, asked, steps=steps, indices=indices, **options)

    def ready(indices: Sequence[int]) -> None:
        if opened.unet is not None:
            config.running.prepare(opened.unet)
        made(indices, fewest_steps(opened))  # what the first call of a process costs is no property of the model

    return complete(folder, len(prompts), config.batch, settings, made, ready)


def complete(
    folder: Path,
    count: int,
    batch: int,
    settings: dict[str, Any],
    make: Callable[[Sequence[int]], Tensor],
    ready: Callable[[Sequence[int]], None] | None = None,
    said: str = "sampling",
) -> Filled:
    """Make what is missing of the pictures 0 … count − 1 in `folder`.

    Every process of a launch calls this, and makes its share; all return when all are done.

    Args:
        batch: pictures at a time.
        settings: everything that they depend on beside their numbers.
        make: gives the pictures of some numbers, [N, 3, S, S] in [0, 1] on the CPU.
        ready: called with the first numbers of a process before its first `make`, and not timed.
        said: what the progress bar calls it.

    Raises:
        SpectralError: the folder holds pictures made with other settings, or as `make`.
    """
    state = processes()
    before = check_folder(folder, settings)
    missing = [index for index in range(count) if not path_of(folder, index).exists()]
    state.wait_for_everyone()  # before anyone makes what another would then not miss
    if not missing:
        known = before.get("throughput")
        return Filled(0, Throughput(**known) if known else None)
    if is_main():
        write_whole(folder / "samples.json", json.dumps(settings, indent=1) + "\n")
        folder.joinpath("images").mkdir(exist_ok=True)
    state.wait_for_everyone()
    own = missing[state.process_index :: state.num_processes]
    if own and ready is not None:
        ready(own[:batch])
    shares = gather_object([(len(own), _write(folder, own, batch, make, said))])
    rate = sum(images / seconds for images, seconds in shares if images)
    kind = torch.cuda.get_device_name() if device().type == "cuda" else device().type
    speed = Throughput(round(rate, 3), len(missing), state.num_processes, kind)
    if is_main():
        write_whole(folder / "samples.json", json.dumps(settings | {"throughput": asdict(speed)}, indent=1) + "\n")
    return Filled(len(missing), speed)


def _write(folder: Path, own: Sequence[int], batch: int, make: Callable[[Sequence[int]], Tensor], said: str) -> float:
    """Write the pictures of this process; returns the seconds that making them took."""
    seconds = 0.0
    with tqdm(total=len(own), desc=said, unit="image", dynamic_ncols=True, disable=not is_main() or None) as bar:
        for start in range(0, len(own), batch):
            indices = own[start : start + batch]
            began = time.perf_counter()
            images = make(indices)
            seconds += time.perf_counter() - began
            for index, image in zip(indices, images, strict=True):
                write_whole(path_of(folder, index), png(image))
            bar.update(len(indices))
    return seconds


def fewest_steps(opened: Checkpoint) -> int:
    """That a model can be sampled in: one for each of its stages."""
    stages = None if opened.config.unet is None else opened.config.unet.stages
    return 1 if stages is None else 1 + len(stages.boundaries)


def check_folder(folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """That a folder is free, or holds samples made with `settings`; returns what samples.json says.

    Raises:
        SpectralError: names the first setting that differs.
    """
    path = folder / "samples.json"
    if not path.exists():
        if any(folder.joinpath("images").glob("*")):
            raise SpectralError(f"{folder} holds images, but nothing says of what; choose another folder.")
        return {}
    try:
        before = json.loads(path.read_text("utf-8"))
        assert isinstance(before, dict)
    except (ValueError, AssertionError) as error:
        raise SpectralError(
            f"{path} is damaged, so nobody knows what the images beside it are; choose another folder."
        ) from error
    for key in [*settings, *(item.name for item in fields(Running) if item.name in before)]:
        if before.get(key) != settings.get(key):
            raise SpectralError(
                f"{folder} holds samples made with {key} = {before.get(key)!r}, not {settings.get(key)!r}; "
                "set it back to go on with them, or choose another folder."
            )
    return before


def path_of(folder: Path, index: int) -> Path:
    """Where sample `index` lies."""
    return folder / "images" / f"{index:06d}.png"


def png(image: Tensor) -> bytes:
    """An image [3, H, W] in [0, 1] as a PNG file."""
    content = io.BytesIO()
    Image.fromarray((image.movedim(0, -1) * 255).round().to(torch.uint8).numpy()).save(content, format="PNG")
    return content.getvalue()


def pictures_in(folder: Path, count: int | None = None) -> list[Path]:
    """The pictures of a folder, or the first `count` of them, in the order of their names.

    Raises:
        SpectralError: there is no such folder, or it holds fewer.
    """
    if not folder.is_dir():
        raise SpectralError(f"No folder of images at {folder}; check the path.")
    found = files_in(folder)
    if not found or len(found) < (count or 1):
        raise SpectralError(f"{folder} holds {len(found)} images; expected {count or 'at least 1'}.")
    return found[:count]


def side_of(paths: Sequence[Path]) -> int:
    """The side in pixels of the first of some square images; the others are checked as they are read.

    Raises:
        SpectralError: it cannot be read, is not square, or is too small to have a spectrum.
    """
    width, height = decode(lambda: paths[0].open("rb"), str(paths[0]), lambda image: image.size)
    if width != height or width < SMALLEST_SIDE:
        raise SpectralError(
            f"{paths[0]} is {width}×{height} pixels; expected square images of {SMALLEST_SIDE} pixels or more."
        )
    return width


def read(paths: Sequence[Path], side: int, batch: int) -> Iterator[Tensor]:
    """Images [B, 3, side, side] in [0, 1], transparent parts over white; a batch is in memory at a time.

    Raises:
        SpectralError: one cannot be read, or has another size.
    """
    for start in range(0, len(paths), batch):
        yield torch.stack([_read(path, side) for path in paths[start : start + batch]])


def _read(path: Path, side: int) -> Tensor:
    pixels = torch.from_numpy(decode(lambda: path.open("rb"), str(path), floats)).movedim(-1, 0)
    if pixels.shape[1:] != (side, side):
        height, width = pixels.shape[1:]
        raise SpectralError(
            f"{path} is {width}×{height} pixels, others {side}×{side}; bring the images to one size, or remove it."
        )
    return pixels
