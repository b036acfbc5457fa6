"""Which samples a run sees, and how they are framed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from ...spectral.errors import SpectralError


@dataclass(frozen=True)
class DataConfig:
    """Which images a run sees.

    Args:
        path: "emoji64", the set that ships with the kit; a folder of images; a WebDataset shard (.tar), or several
            (`shard-{000..099}.tar`, `shards/*.tar`); `pipe:COMMAND`, whose output is a shard (braces as before); or a
            folder of cached latents.
        size: side of the square that images are resized and cropped to, in pixels.
        subgroups: keep only images of these groups or subgroups (in a folder: sub-folders); a trailing "*" matches
            any ending; empty keeps all.
        crop: which square of an image that is none: its "centre", or a "random" one every time.
        flip: mirror every image or not, by chance.
        buckets: in place of squares, the aspect among a few of about the same area that is nearest to the image's.
        workers: processes that read and decode; none are started for what is in memory.
        cache: "memory" decodes every image once, when the run starts; "off" each time; "auto" chooses "memory" for
            less than a gigabyte of pixels.
        posterior: "sample" draws new latents from a KL first stage's posterior every time, as LDM does; "mode" takes
            the most likely.
        max_corrupt: images that cannot be read are left out; a run stops when there are more of them than this number,
            or, below 1, than this share of the data (of a stream, of what has been seen of it), or of 1000 images where
            there are fewer, but then than a quarter of them.
        captions: which is shown of the captions of a sample that has several: "all", one of them drawn anew in every
            epoch, each as likely; "half", the first with a chance of one half, else one of the others; or always the
            "first".
        shuffle: samples that each lane of a stream holds back to mix their order.
        lanes: parts of a stream, over all processes, each of which gives whole batches in its turn; the order of a
            stream depends on their number, and not on that of the workers.
    """

    path: str = "emoji64"
    size: int = 64
    subgroups: tuple[str, ...] = ()
    crop: Literal["centre", "random"] = "centre"
    flip: bool = False
    buckets: bool = False
    workers: int = 2
    cache: Literal["auto", "memory", "off"] = "auto"
    posterior: Literal["sample", "mode"] = "sample"
    max_corrupt: float = 0.01
    captions: Literal["all", "half", "first"] = "all"
    shuffle: int = 512
    lanes: int = 8

    def __post_init__(self) -> None:
        if not self.path.removeprefix("pipe:").strip():
            raise SpectralError(
                f"data.path is {self.path!r}; expected a folder, a .tar, pipe:COMMAND, or the name emoji64."
            )
        if not 1 <= self.size <= 8192:
            raise SpectralError(f"data.size is {self.size}; expected the side of the images in pixels, 1 to 8192.")
        if self.crop not in ("centre", "random"):
            raise SpectralError(f"data.crop is {self.crop!r}; expected centre or random.")
        if self.posterior not in ("sample", "mode"):
            raise SpectralError(f"data.posterior is {self.posterior!r}; expected sample or mode.")
        if self.captions not in ("all", "half", "first"):
            raise SpectralError(f"data.captions is {self.captions!r}; expected all, half or first.")
        if self.cache not in ("auto", "memory", "off"):
            raise SpectralError(f"data.cache is {self.cache!r}; expected auto, memory or off.")
        if self.cache == "memory" and self.buckets:
            raise SpectralError(
                "data.cache memory keeps squares only; set it to auto or off, or data.buckets to false."
            )
        if not 0 <= self.workers <= 256:
            raise SpectralError(f"data.workers is {self.workers}; expected a number of processes, 0 to 256.")
        if not 0 <= self.max_corrupt < math.inf:
            raise SpectralError(
                f"data.max_corrupt is {self.max_corrupt}; expected a share of the images below 1, or their number."
            )
        if not 1 <= self.shuffle <= 1_000_000:
            raise SpectralError(f"data.shuffle is {self.shuffle}; expected a number of samples, 1 to 1000000.")
        if not 1 <= self.lanes <= 65536:
            raise SpectralError(f"data.lanes is {self.lanes}; expected a number of shards read at once, 1 to 65536.")
