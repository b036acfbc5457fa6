"""The command `data`: build a set of emoji or photographs, cache latents of images, let a teacher make them, or measure
what stages do to the data of a run."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from ...spectral.config import ModelConfig
from ...spectral.errors import SpectralError
from .. import cli
from ..datasets import emoji, photographs
from ..loop.stopping import stopping_in_order
from .config import DataConfig


@stopping_in_order()
def main(argv: Sequence[str]) -> None:
    """The command `data`."""
    if argv and argv[0] in COMMANDS:
        COMMANDS[argv[0]](argv[1:])
        return
    parser = cli.Parser("data", __doc__)
    parser.add_argument("name", choices=list(COMMANDS), help="each has a --help of its own, as: data cache --help")
    parser.parse_args(argv)


def build_emoji(argv: Sequence[str]) -> None:
    """The command `data emoji`."""
    parser = cli.Parser("data emoji", "Build a set of emoji with captions; without options, the one that ships.")
    parser.add_argument("--out", type=Path, default=Path("emoji64.tar"), help="the WebDataset shard to write")
    parser.add_argument("--size", type=int, default=64, help="side of the square images, in pixels")
    parser.add_argument(
        "--held-out", type=float, default=0.0, help="share of the emoji that go to NAME-held-out.tar instead, 0 to 1"
    )
    parser.add_argument("--captions", action="store_true", help="several of each: name, tags and colour of the picture")
    parser.add_argument("--pictures", type=Path, help=f"the .tgz of npm's {emoji.PICTURES}, when it is at hand")
    parser.add_argument("--names", type=Path, help=f"the .tgz of npm's {emoji.NAMES}, when it is at hand")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args(argv)
    options = {name: getattr(arguments, name) for name in ("size", "pictures", "names", "held_out", "captions")}
    cli.report(emoji.build(arguments.out, **options), arguments.json)


def build_photographs(argv: Sequence[str]) -> None:
    """The command `data photographs`."""
    parser = cli.Parser(
        "data photographs",
        f"Build a set of landscapes, cities and skies from Debian's {photographs.PACKAGE}: ten squares of each "
        "photograph, with its author and licence.",
    )
    parser.add_argument("--out", type=Path, default=Path("photographs.tar"), help="the WebDataset shard to write")
    parser.add_argument("--size", type=int, default=128, help="side of the square images, in pixels")
    parser.add_argument("--cut", type=int, default=256, help="side of the squares in the photographs, before resizing")
    parser.add_argument(
        "--held-out", type=float, default=0.0, help="share of them that go to NAME-held-out.tar whole, 0 to 1"
    )
    parser.add_argument("--package", type=Path, help=f"the .deb of Debian's {photographs.PACKAGE}, when it is at hand")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args(argv)
    options = {name: getattr(arguments, name) for name in ("size", "cut", "held_out", "package")}
    cli.report(photographs.build(arguments.out, **options), arguments.json)


def cache(argv: Sequence[str]) -> None:
    """The command `data cache`."""
    parser = cli.Parser("data cache", "Cache the latents of images; stopped and started again, it goes on.")
    parser.add_argument("--data", required=True, help="the images, as data.path of a run: a folder, shards, emoji64")
    parser.add_argument("--first-stage", type=Path, required=True, help="an autoencoder, or a checkpoint that has one")
    parser.add_argument("--out", type=Path, required=True, help="the folder to write; data.path of the run afterwards")
    parser.add_argument("--size", type=int, help="side of the square images in pixels; the model's own if not given")
    parser.add_argument("--subgroups", nargs="+", default=(), help="only these; a trailing * matches any ending")
    parser.add_argument("--buckets", action="store_true", help="several aspects in place of squares")
    parser.add_argument(
        "--multiple",
        type=int,
        help="that the sides of buckets are multiples of, in pixels; 4 latent cells if not given",
    )
    parser.add_argument("--flip", action="store_true", help="cache the mirrored images too")
    parser.add_argument("--shard-size", type=int, default=4096, help="samples of a shard")
    parser.add_argument("--batch", type=int, default=32, help="images that are encoded together")
    parser.add_argument("--dtype", choices=("float16", "float32"), default="float16", help="of the stored numbers")
    parser.add_argument("--workers", type=int, default=2, help="processes that read and decode")
    parser.add_argument("--max-corrupt", type=float, default=0.01, help="share, or number, of images that may be bad")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args(argv)

    from ..processes import device, is_main
    from . import caching
    from .dataset import open_images

    options = caching.CacheOptions(
        arguments.out, arguments.shard_size, arguments.batch, arguments.dtype, arguments.flip, arguments.workers
    )
    first_stage, about = caching.open_first_stage(arguments.first_stage, device())
    downscale = first_stage.config.downscale
    data = DataConfig(
        arguments.data,
        size=arguments.size or usual_size(about),
        subgroups=tuple(arguments.subgroups),
        buckets=arguments.buckets,
        cache="off",
        workers=arguments.workers,
        max_corrupt=arguments.max_corrupt,
    )
    if data.size % downscale or (arguments.multiple or downscale) % downscale:
        raise SpectralError(
            f"--size is {data.size}, --multiple {arguments.multiple}; this first stage needs multiples of {downscale}."
        )
    result = caching.write(
        open_images(data, arguments.multiple or 4 * downscale), first_stage, about.scale_factor, options
    )
    if is_main():
        cli.report({"path": str(arguments.out), **result}, arguments.json)


def imagine(argv: Sequence[str]) -> None:
    """The command `data imagine`."""
    parser = cli.Parser(
        "data imagine", "Let a teacher make latents to distil from; stopped, or asked for more, it goes on."
    )
    parser.add_argument("--teacher", type=Path, required=True, help="a checkpoint that samples can be made with")
    parser.add_argument("--out", type=Path, required=True, help="the folder to write; data.path of the run afterwards")
    parser.add_argument("--prompts", type=Path, help="a text file with a caption, or a class, on every line")
    parser.add_argument("--data", help="in place of it, a folder, shards or latents: all their captions, or classes")
    parser.add_argument("--subgroups", nargs="+", default=(), help="of --data, only these; a * at the end matches any")
    parser.add_argument("--count", type=int, help="samples in all; one for each prompt if not given")
    parser.add_argument("--steps", type=int, default=50, help="DDIM steps")
    parser.add_argument("--guidance", type=float, help=cli.GUIDANCE)
    parser.add_argument("--seed", type=int, default=0, help="of the noise, and of the order of the prompts")
    parser.add_argument("--batch", type=int, default=16, help="samples that are made together")
    parser.add_argument("--shard-size", type=int, default=1024, help="samples of a shard; processes take whole ones")
    parser.add_argument("--dtype", choices=("float16", "float32"), default="float16", help="of the stored numbers")
    parser.add_argument("--bf16", action="store_true", help="ask the teacher in bfloat16: faster on most GPUs")
    parser.add_argument("--vocabulary", type=Path, help="BERT's vocab.txt, for models with LDM's own text encoder")
    parser.add_argument(
        "--states", type=int, default=0, help="keep what a student of so few steps is to learn: the states on the way"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    cli.add_part_options(parser)
    cli.add_read_options(parser)
    arguments = parser.parse_args(argv)

    from ...spectral.checkpoint import sha256
    from ..processes import is_main
    from ..teachers import open_teacher
    from . import imagining

    names = (
        "out",
        "shard_size",
        "batch",
        "dtype",
        "count",
        "steps",
        "guidance",
        "seed",
        "bf16",
        "vocabulary",
        "states",
    )
    options = imagining.ImagineOptions(**{name: getattr(arguments, name) for name in names})
    read, encoder = cli.read_options(arguments), arguments.text_encoder
    teacher = open_teacher(arguments.teacher, read, arguments.first_stage, encoder)
    wishes, source = imagining.wishes_of(
        teacher.config.conditioning, arguments.prompts, arguments.data, arguments.subgroups
    )
    made_with = {"read": dataclasses.asdict(read), "text_encoder": None if encoder is None else sha256(encoder)}
    if is_main():
        cli.say_assumed(teacher.file.notes)
    result = imagining.write(teacher, wishes, source, made_with, options)
    if is_main():
        cli.report({"path": str(arguments.out), **result}, arguments.json)


def stages(argv: Sequence[str]) -> None:
    """The command `data stages`."""
    from .. import stage_energy

    stage_energy.main(argv)


def usual_size(about: ModelConfig) -> int:
    """Side of the images that a model was trained on, in pixels."""
    assert about.first_stage is not None
    if about.unet is not None:
        return about.unet.image_size * about.first_stage.downscale
    return about.first_stage.resolution


COMMANDS: dict[str, Callable[[Sequence[str]], None]] = {
    "emoji": build_emoji,
    "photographs": build_photographs,
    "cache": cache,
    "imagine": imagine,
    "stages": stages,
}


if __name__ == "__main__":
    sys.exit(cli.run(main))
