"""The command line `spectral-diffusion COMMAND …`: one line a command here, the work in the module that it names."""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import itertools
import json
import sys
import typing
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from ..spectral.errors import SpectralError, printable
from ..spectral.formats.source import ReadOptions
from .launching import start_all_that_were_asked_for
from .loop.stopping import StoppedRun

T = TypeVar("T")


@dataclass(frozen=True)
class Command:
    """A command: the module beside this one whose `main(argv)` runs it, and what `--help` says of it."""

    module: str
    help: str


COMMANDS = {
    "demo": Command("demo", "distil a small student from the default teacher and compare their spectra (minutes)"),
    "data": Command("data.__main__", "cache latents, let a teacher make them, or build a set of emoji or photographs"),
    "train-autoencoder": Command("train_autoencoder", "train an LDM first stage"),
    "train-teacher": Command("train_teacher", "train a small latent diffusion teacher"),
    "distill": Command("distill", "distil a wavelet-gated student from a teacher"),
    "sample": Command("sample", "make images with a checkpoint"),
    "evaluate": Command("evaluate", "sample, and measure the samples against data: distances, spectra, size, speed"),
    "compare": Command("compare", "sample several checkpoints alike; a table, and a picture with their spectra"),
    "ablate": Command("ablate", "train and evaluate the eight rows of the paper's ablation (Table 5)"),
    "results": Command("results", "keep the small part of an ablation or a comparison, and draw its figures again"),
    "spectrum": Command(
        "spectrum.__main__", "power spectra of images, comparisons of two sets, and what models do to frequencies"
    ),
    "bench": Command("benchmark", "how fast the kit is, as ratios of times taken side by side"),
    "inspect": Command("inspect", "what a checkpoint, preset or teacher is"),
    "convert": Command("convert", "write a checkpoint in another layout: this project's, LDM's, or diffusers'"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code: 0, or 2 after a sentence on what was wrong, or 130 when interrupted."""
    argv = list(sys.argv[1:] if argv is None else argv)
    width = max(map(len, COMMANDS))
    listing = "\n".join(f"  {name:{width}}  {command.help}" for name, command in COMMANDS.items())
    usage = f"usage: spectral-diffusion COMMAND [--help] …\n\ncommands:\n{listing}"
    if not argv or argv[0] in ("-h", "--help"):
        print(usage)
        return 0 if argv else 2
    if argv[0] not in COMMANDS:
        print(f"There is no command {argv[0]!r}; the commands are {', '.join(COMMANDS)}.", file=sys.stderr)
        return 2
    module = COMMANDS[argv[0]].module
    return run(lambda arguments: importlib.import_module(f".{module}", __package__).main(arguments), argv[1:])


def entry() -> None:
    """The console script."""
    sys.exit(main())


def run(command: Callable[[Sequence[str]], None], argv: Sequence[str] | None = None) -> int:
    """Run a command's `main`, with a user's error as one sentence on standard error and exit code 2."""
    start_all_that_were_asked_for()
    try:
        command(sys.argv[1:] if argv is None else argv)
    except SpectralError as error:
        print(error, file=sys.stderr)
        return 2
    except OSError as error:
        place = error.filename or "A file"
        print(f"{place} cannot be read or written ({error.strerror or error}); choose another place.", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        print(f"{error.name} is not installed; run: pip install -e '.[train]'", file=sys.stderr)
        return 2
    except StoppedRun as stopped:
        print(stopped, file=sys.stderr)
        return 0
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        return 130
    _part()
    return 0


def _part() -> None:
    """Take leave of the other processes of a launch, where there are any; the threads that talk to them end by it."""
    from torch import distributed

    if distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


class Parser(argparse.ArgumentParser):
    """argparse, whose errors are a SpectralError of one sentence."""

    def __init__(self, command: str, description: str | None) -> None:
        formatter = argparse.ArgumentDefaultsHelpFormatter
        super().__init__(f"spectral-diffusion {command}", description=description, formatter_class=formatter)

    def parse_args(self, argv: Sequence[str]) -> argparse.Namespace:  # type: ignore[override]
        """Options may stand before, between and after what they are options of."""
        return self.parse_intermixed_args(argv)

    def error(self, message: str) -> Any:
        raise SpectralError(f"{message[0].upper()}{message[1:]}; see {self.prog} --help.")


#: What a command says of its argument that is a model.
CHECKPOINT = "a student, Lite or teacher: .safetensors, .ckpt, or a diffusers folder"
#: Likewise, of how it is sampled.
STEPS = "DDIM steps; 50, or those that a student of few steps knows"
CUTOFF = "between low and high band, cycles per image; 28, less below 150 px"
GUIDANCE = "weight of classifier-free guidance, 1 is none; 2 by default, or 1 where it is in the weights"


def add_read_options(parser: argparse.ArgumentParser) -> None:
    """The options of commands that open a checkpoint: what to assume where the file is silent."""
    group = parser.add_argument_group("opening the checkpoint", "by default, what the file or a table of models says")
    group.add_argument("--no-ema", dest="ema", action="store_false", help="the weights themselves, not their averages")
    group.add_argument("--heads", type=int, help="attention heads of the U-Net")
    group.add_argument("--head-channels", type=int, help="channels of an attention head of the U-Net")
    group.add_argument("--prediction", choices=("eps", "v"), help="what the U-Net predicts: noise or velocity")
    group.add_argument("--image-size", type=int, help="side of the latent that it was trained at, in cells")
    group.add_argument("--scale-factor", type=float, help="latents of the U-Net are first-stage latents times this")


def add_part_options(parser: argparse.ArgumentParser) -> None:
    """The options of commands that take what a checkpoint lacks from other files."""
    group = parser.add_argument_group("parts that the checkpoint lacks")
    group.add_argument("--first-stage", type=Path, help="a file or folder with the first stage (VAE)")
    group.add_argument("--text-encoder", type=Path, help="a file or folder with the text encoder")


def say_assumed(notes: Sequence[str]) -> None:
    """Tell, beside a command's result, what was assumed of a checkpoint because its file does not say it."""
    for note in notes:
        print(printable(f"Note: {note}"), file=sys.stderr)


def read_options(arguments: argparse.Namespace) -> ReadOptions:
    """What the options of `add_read_options` were set to.

    Raises:
        SpectralError: a number is out of range, or two exclude each other.
    """
    return ReadOptions(**{item.name: getattr(arguments, item.name) for item in dataclasses.fields(ReadOptions)})


def parse_config(cls: type[T], argv: Sequence[str], command: str, description: str | None) -> tuple[T, bool]:
    """A run's configuration from `--config FILE.yaml` and any `--section.key value` after it; and whether `--json`.

    Raises:
        SpectralError: a key is unknown, a value has the wrong type, or the file cannot be read.
    """
    import jsonargparse
    import yaml

    parser = jsonargparse.ArgumentParser(f"spectral-diffusion {command}", description=description, exit_on_error=False)
    parser.allow_abbrev = False  # a key that is cut short is misspelt
    parser.add_argument("--config", action="config", help="YAML file; what follows it overrides its values")
    parser.add_argument("--json", action="store_true", help="print the result as one JSON object")
    parser.add_class_arguments(cls, fail_untyped=True)
    try:
        argv = [_SHORT.get(text, text) for text in argv]
        for path in _configs(argv):
            with suppress(yaml.YAMLError, OSError):  # which the parser says better
                _check_sections(cls, yaml.safe_load(Path(path).read_text("utf-8")), path)
        parsed = parser.parse_args(list(argv))
        values = vars(parser.instantiate(parsed))
    except (jsonargparse.ArgumentError, argparse.ArgumentError) as error:
        reason = " ".join(str(error).split()).replace('"<unicode string>"', " or ".join(_configs(argv)))
        raise SpectralError(f"{reason.rstrip('.')}; see {parser.prog} --help.") from error
    except UnicodeDecodeError as error:
        given = " or ".join(_configs(argv))
        raise SpectralError(f"{given} is no YAML file; give the configuration of a run to --config.") from error
    json_wanted = values.pop("json")
    values.pop("config")
    return cls(**values), json_wanted


#: What a run's configuration calls otherwise than the commands that open a checkpoint.
_SHORT = {"--no-ema": "--read.ema=false"}


def _configs(argv: Sequence[str]) -> list[str]:
    """The files that the command line gives to --config."""
    apart = [value for option, value in itertools.pairwise(argv) if option == "--config"]
    return apart + [text.removeprefix("--config=") for text in argv if text.startswith("--config=")]


def _check_sections(cls: Any, data: Any, where: str) -> None:
    """That every section of a configuration file holds settings; jsonargparse passes over one that is a mere value.

    Raises:
        SpectralError: names the section.
    """
    if not isinstance(data, dict):
        raise SpectralError(f"{where} should hold settings, each with its name, not {data!r}.")
    for name, kind in typing.get_type_hints(cls).items():
        if dataclasses.is_dataclass(kind) and name in data:
            _check_sections(kind, data[name], f"{where}: {name}")


def report(result: dict[str, Any], as_json: bool) -> None:
    """Print a command's result: one JSON object, or a line for each entry but details, whose names have a slash."""
    if as_json:
        print(json.dumps(result, allow_nan=False))
        return
    for key, value in result.items():
        if "/" not in key:
            print(printable(f"{key:16} {value}"))
