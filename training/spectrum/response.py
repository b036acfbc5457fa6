"""The command `spectrum response`: what one or two denoisers do to each frequency, against the Wiener optimum."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from ...spectral import colours
from ...spectral.checkpoint import Checkpoint
from ...spectral.errors import SpectralError
from ...spectral.spectrum import Denoiser, Response, denoiser_response, probe_count, schedule_levels
from .. import cli
from ..figures import check_figure_path

MIDDLE = 0.25  # cycles per latent cell: half of Nyquist, above which the summary calls frequencies high


def denoiser(opened: Checkpoint, steps: Tensor, prompt: str, vocabulary: Path | None = None) -> Denoiser:
    """The U-Net of a checkpoint as x_t → x̂_0 at time steps, asked by one prompt; "" is the null condition.

    Raises:
        SpectralError: a prompt that the model does not know.
    """
    from ..sample import context_of

    assert opened.unet is not None
    if opened.unet.config.stages is not None:
        raise SpectralError(
            f"{opened.file.path.name} works in stages, which see signals of several sizes; probe a model of one stage."
        )
    unet, schedule = opened.unet, opened.schedule
    context = context_of(opened.config, opened.conditioner, [prompt], vocabulary)

    def denoise(x: Tensor, level: int) -> Tensor:
        t = steps[level].expand(len(x)).to(x.device)
        said = unet(x, t, None if context is None else context.expand(len(x), -1, -1))
        return schedule.split(x, t, said)[0]

    return denoise


def check_pair(models: Sequence[Checkpoint]) -> None:
    """That two models are of the same latents and the same schedule, so that they can be asked the same.

    Raises:
        SpectralError: names what differs.
    """
    first, other = models[0].config, models[-1].config
    assert first.unet is not None and other.unet is not None
    latents = [(config.unet.in_channels, config.unet.image_size, config.scale_factor) for config in (first, other)]  # type: ignore[union-attr]
    names = [model.file.path.name for model in models]
    if latents[0] != latents[1]:
        raise SpectralError(
            f"{names[0]} and {names[-1]} have latents of their own (channels, side and scale {latents[0]} and "
            f"{latents[1]}); compare a student with its teacher."
        )
    if not torch.equal(models[0].schedule.alphas_cumprod, models[-1].schedule.alphas_cumprod):
        raise SpectralError(
            f"{names[0]} and {names[-1]} have noise schedules of their own; compare a student with its teacher."
        )


def plot(named: dict[str, Response], steps: Tensor, path: Path) -> None:
    """Draw the kept share of each model at each time step, with ±2 standard errors, over the optimum."""
    from . import drawing

    columns = min(3, len(steps))
    rows = math.ceil(len(steps) / columns)
    figure = drawing.sheet(1.2 + 3.1 * columns, 1.4 + 2.6 * rows)
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    shades = colours.of_names(named)
    for index, axes in enumerate(panels.flat):
        place = len(steps) - 1 - index  # from noise to picture, as sampling goes
        if place < 0:
            axes.set_axis_off()
            continue
        first = next(iter(named.values()))
        drawing.frequency_axis(
            axes, first.frequency[0].item(), first.frequency[-1].item(), label=index >= len(steps) - columns
        )
        axes.set_xlabel(axes.get_xlabel() and "cycles per latent cell")
        axes.xaxis.set_tick_params(labelbottom=index >= len(steps) - columns)
        axes.plot(first.frequency, first.kept_optimum[place], color="black", linestyle="--", label="Wiener optimum")
        for name, response in named.items():
            kept, error = response.kept[place], 2 * response.kept_error[place].nan_to_num()
            axes.plot(response.frequency, kept, "o-", color=shades[name], markersize=3, linewidth=1.5, label=name)
            axes.fill_between(
                response.frequency, kept - error, kept + error, color=shades[name], alpha=0.2, linewidth=0
            )
        axes.set_title(f"t = {int(steps[place])}", fontsize=10, loc="left")
    for axes in panels[:, 0]:
        axes.set_ylabel("share of the signal kept")
    figure.suptitle("Frequency response of the denoiser, √ᾱ Re G", fontsize=12)
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    drawing.write(figure, path)


def main(argv: Sequence[str]) -> None:
    """The command `spectrum response`."""
    parser = cli.Parser(
        "spectrum response",
        "Put small sinusoids into noisy latents and measure how much of them comes out, frequency by frequency, beside "
        "the Wiener filter of the latents' own power. The ideal denoiser of data that are not Gaussian lies below, far "
        "below where it knows the pictures by heart: choose images that the models have not seen.",
    )
    parser.add_argument("checkpoint", type=Path, help=cli.CHECKPOINT)
    parser.add_argument("other", nargs="?", type=Path, help="another one of the same latents, its student perhaps")
    parser.add_argument("--prompt", default="", help="that the models are asked by; none by default")
    parser.add_argument("--vocabulary", type=Path, help="BERT's vocab.txt, for models with LDM's own text encoder")
    parser.add_argument("--at", type=int, nargs="+", help="time steps; five, evenly spaced, if not given")
    parser.add_argument("--probes", type=int, default=32, help="sinusoids at each time step and frequency")
    parser.add_argument("--rings", type=int, default=8, help="frequencies at most, from the lowest to the corner")
    parser.add_argument("--batch", type=int, default=32, help="sinusoids at a time")
    parser.add_argument("--seed", type=int, default=0, help="of noise and phases")
    parser.add_argument("--plot", type=Path, help="also draw the responses into this .png, .svg or .pdf")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    from .opening import add_image_options, clean_latents, open_model, time_steps

    add_image_options(parser, "emoji64", 512)
    cli.add_part_options(parser)
    cli.add_read_options(parser)
    arguments = parser.parse_args(argv)
    if arguments.plot is not None:
        check_figure_path(arguments.plot)
    paths = [path for path in (arguments.checkpoint, arguments.other) if path is not None]
    models = [open_model(path, arguments) for path in paths]
    check_pair(models)
    schedule = models[0].schedule
    steps = time_steps(schedule, arguments.at, 5)
    denoisers = [denoiser(model, steps, arguments.prompt, arguments.vocabulary) for model in models]
    latents = clean_latents(models[0], arguments.images, arguments.count, arguments.subgroups)
    signal, noise = schedule_levels(schedule, steps)
    total = probe_count(
        (latents.shape[-2], latents.shape[-1]), len(steps), max(arguments.rings, 1), max(arguments.probes, 1)
    )
    numbers = {name: getattr(arguments, name) for name in ("rings", "probes", "batch", "seed")}
    found = []
    with tqdm(total=total * len(models), desc="probing", unit="probe", dynamic_ncols=True, disable=None) as bar:
        for each in denoisers:
            found.append(denoiser_response(each, latents, signal, noise, progress=bar.update, **numbers))
    names = [path.stem for path in paths] if len({path.stem for path in paths}) == len(paths) else [*map(str, paths)]
    if len(set(names)) < len(names):
        names[1] += " (again)"
    named = dict(zip(names, found, strict=True))
    if arguments.plot is not None:
        plot(named, steps, arguments.plot)
    cli.report(report(named, steps, len(latents)) if arguments.json else _lines(named, steps), arguments.json)


def report(named: dict[str, Response], steps: Tensor, latents: int) -> dict[str, Any]:
    """The responses as JSON data: matrices have a row for each time step, a number for each frequency."""
    from .opening import plain

    first = next(iter(named.values()))
    return {
        "latents": latents,
        "probes": first.probes,
        "steps": steps.tolist(),
        "alpha_bar": first.signal.square().tolist(),
        "cycles_per_cell": first.frequency.tolist(),
        "optimum": plain(first.optimum),
        "models": [
            {
                "model": name,
                "gain": plain(response.gain.real),
                "gain_imaginary": plain(response.gain.imag),
                "gain_error": plain(response.error),
                "kept": plain(response.kept),
            }
            for name, response in named.items()
        ],
        "kept_optimum": plain(first.kept_optimum),
    }


def _lines(named: dict[str, Response], steps: Tensor) -> dict[str, Any]:
    """Mean kept shares below and above half of Nyquist."""
    first = next(iter(named.values()))
    low = first.frequency < MIDDLE
    curves = {"optimum": first.kept_optimum} | {name: response.kept for name, response in named.items()}
    lines = {"share kept": f"mean below and above {MIDDLE:g} cycles per latent cell"}
    for place, step in enumerate(steps.tolist()):
        told = [f"{name} {_band(kept[place], low)} {_band(kept[place], ~low)}" for name, kept in curves.items()]
        lines[f"t = {step}"] = ", ".join(told)
    return lines


def _band(values: Tensor, chosen: Tensor) -> str:
    return f"{values[chosen].mean().item():.3f}" if bool(chosen.any()) else "–"
