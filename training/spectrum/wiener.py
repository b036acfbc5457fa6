"""The command `spectrum wiener`: the optimal linear denoiser of a power spectrum over frequency and time (Figure 3)."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...spectral import checkpoint, colours, presets
from ...spectral.diffusion import Schedule
from ...spectral.errors import SpectralError
from ...spectral.spectrum import (
    RadialSpectrum,
    WienerTable,
    measured_power,
    power_law,
    radial_spectrum,
    schedule_levels,
    wiener_table,
)
from .. import cli
from ..figures import check_figure_path
from .images import spectrum_of

LOWEST = 1 / 512  # cycles per pixel, where a power law begins
POINTS = 200


def schedule_of(arguments: argparse.Namespace) -> Schedule:
    """The schedule of a checkpoint, of a preset, or of the numbers given; LDM's own where none is.

    Raises:
        SpectralError: several are given, or one that cannot be.
    """
    numbers = [arguments.linear_start, arguments.linear_end, arguments.steps]
    sources = [arguments.checkpoint, arguments.preset, any(number is not None for number in numbers) or None]
    if sum(source is not None for source in sources) > 1:
        raise SpectralError(
            "A schedule comes from one place: a checkpoint, --preset, or --linear-start, --linear-end and --steps."
        )
    if arguments.checkpoint is not None:
        return Schedule.from_config(checkpoint.read(arguments.checkpoint, cli.read_options(arguments)).config.schedule)
    if arguments.preset is not None:
        return Schedule.from_config(presets.config(arguments.preset).schedule)
    names = ("linear_start", "linear_end", "steps")
    return Schedule(**{name: value for name, value in zip(names, numbers, strict=True) if value is not None})


def power_of(arguments: argparse.Namespace) -> tuple[RadialSpectrum | None, str]:
    """The measured spectrum of x_0, or None for a power law, and what to call it.

    Raises:
        SpectralError: images that cannot be measured, or a checkpoint that cannot encode them.
    """
    if not arguments.images:
        return None, f"images of power {arguments.amplitude:g} / f^{arguments.alpha:g}"
    if arguments.checkpoint is None:
        pixels = spectrum_of([arguments.images])  # in [0, 1]; x_0 is in [−1, 1], of four times the power
        scaled = RadialSpectrum(
            pixels.frequency, 4 * pixels.power, None, pixels.count, pixels.images, pixels.size, pixels.window
        )
        return scaled, f"pixels of {Path(arguments.images).stem}, in [−1, 1]"
    from .opening import clean_latents, open_model

    opened = open_model(arguments.checkpoint, arguments)
    latents = clean_latents(opened, arguments.images, arguments.count, arguments.subgroups)
    return radial_spectrum(latents.cpu(), window="none"), f"latents of {Path(arguments.images).stem}"


def table_of(schedule: Schedule, steps: Tensor, rings: RadialSpectrum | None, law: tuple[float, float]) -> WienerTable:
    """The filters at time steps, over measured rings, or over a power law (A, α) from 1/512 to Nyquist."""
    signal, noise = schedule_levels(schedule, steps)
    if rings is not None:
        return wiener_table(rings.frequency, measured_power(rings, rings.frequency), signal, noise, steps)
    frequency = torch.logspace(torch.tensor(LOWEST).log2().item(), -1, POINTS, base=2, dtype=torch.float64)
    return wiener_table(frequency, power_law(frequency, *law), signal, noise, steps)


def plot(table: WienerTable, whole: WienerTable, power: str, path: Path) -> None:
    """Draw the kept share at some steps, and the bandwidth at all.

    Args:
        table: of the steps to draw.
        whole: of all steps.
        power: what x_0 is.
    """
    from . import drawing

    figure = drawing.sheet(7.4, 6.6)
    top, bottom = figure.subplots(2, 1, height_ratios=[1.25, 1])
    for step, kept, colour in zip(
        table.step.flip(0).tolist(), table.kept.flip(0), drawing.step_colours(len(table.step)), strict=True
    ):
        top.plot(table.frequency, kept, color=colour, linewidth=1.8, label=f"t = {step}")
    unit = drawing.unit(power.startswith("latents"))
    drawing.frequency_axis(top, table.frequency[0].item(), table.frequency[-1].item(), unit=unit)
    top.axhline(0.5, color=drawing.GREY, linestyle="--", linewidth=0.9)
    top.set_ylim(-0.03, 1.05)
    top.set_ylabel("share of the signal that is kept, √ᾱ G")
    top.legend(title="time step", loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=9)
    drawing.plain_axes(bottom)
    reached = whole.bandwidth > 0
    bottom.plot(whole.step[reached], whole.bandwidth[reached], color=colours.OKABE_ITO[0], linewidth=2)
    bottom.set_yscale("log")
    bottom.set_ylim(0.85 * table.frequency[0].item(), 1.2 * table.frequency[-1].item())
    drawing.plain_numbers(bottom.yaxis)
    bottom.set_xlim(1.02 * len(whole.step), -0.02 * len(whole.step))
    bottom.set_xlabel("time step t (sampling runs to the right)")
    bottom.set_ylabel(f"bandwidth: where half is kept\n({unit})")
    figure.suptitle(f"Optimal linear denoiser of {power}", fontsize=12)
    drawing.write(figure, path)


def main(argv: Sequence[str]) -> None:
    """The command `spectrum wiener`."""
    parser = cli.Parser("spectrum wiener", "The Wiener filter of a noise schedule over frequency and time (Figure 3).")
    parser.add_argument("checkpoint", nargs="?", type=Path, help=f"whose schedule it is: {cli.CHECKPOINT}")
    parser.add_argument("--preset", help="in place of a checkpoint, a named architecture, as ffhq256-teacher")
    parser.add_argument("--linear-start", type=float, help="or β of the first step, 0.0015 in LDM")
    parser.add_argument("--linear-end", type=float, help="and β of the last, 0.0195 in LDM")
    parser.add_argument("--steps", type=int, help="and how many steps, 1000 in LDM")
    parser.add_argument("--alpha", type=float, default=2.0, help="power of x_0 is amplitude / f^alpha")
    parser.add_argument("--amplitude", type=float, default=1.0, help="its power at 1 cycle per pixel")
    parser.add_argument(
        "--images",
        help="measure the power instead: latents of a checkpoint's first stage, else pixels in [−1, 1]; a folder, a "
        ".tar shard, or emoji64",
    )
    parser.add_argument("--subgroups", nargs="+", default=(), help="of images for latents, only these")
    parser.add_argument("--count", type=int, default=256, help="images for latents at most, from all over the set")
    parser.add_argument("--at", type=int, nargs="+", help="time steps to show; nine, evenly spaced, if not given")
    parser.add_argument("--plot", type=Path, help="also draw the filters into this .png, .svg or .pdf")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    cli.add_part_options(parser)
    cli.add_read_options(parser)
    arguments = parser.parse_args(argv)
    if arguments.plot is not None:
        check_figure_path(arguments.plot)
    from .opening import time_steps

    schedule = schedule_of(arguments)
    steps = time_steps(schedule, arguments.at, 9)
    rings, name = power_of(arguments)
    law = (arguments.amplitude, arguments.alpha)
    table = table_of(schedule, steps, rings, law)
    if arguments.plot is not None:
        plot(table, table_of(schedule, torch.arange(schedule.steps), rings, law), name, arguments.plot)
    cli.report(report(table, name) if arguments.json else _lines(table, name), arguments.json)


def report(table: WienerTable, power: str) -> dict[str, Any]:
    """The table as JSON data: matrices have a row for each step, a number for each frequency."""
    from .opening import plain

    return {
        "power_of": power,
        "steps": table.step.tolist(),
        "alpha_bar": table.signal.square().tolist(),
        "cycles_per_pixel": table.frequency.tolist(),
        "power": plain(table.power),
        "bandwidth": table.bandwidth.tolist(),
        "kept": plain(table.kept),
        "reconstruction": plain(table.reconstruction),
        "noise_prediction": plain(table.noise_prediction),
        "predicted_power": plain(table.predicted),
    }


def _lines(table: WienerTable, power: str) -> dict[str, Any]:
    last = table.frequency[-1].item()

    def said(bandwidth: float) -> str:
        if bandwidth in (0.0, last):
            return f"{'less' if bandwidth == 0 else 'more'} than half is kept at every frequency"
        return f"half is kept at {bandwidth:.4g} cycles per pixel"

    widths = zip(table.step.tolist(), table.bandwidth.tolist(), strict=True)
    return {"denoised are": power} | {f"t = {step}": said(width) for step, width in widths}
