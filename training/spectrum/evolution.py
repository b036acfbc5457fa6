"""The command `spectrum evolution`: the spectrum of the denoised prediction at every step of sampling (Figure 2)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from ...spectral.checkpoint import Checkpoint
from ...spectral.errors import SpectralError
from ...spectral.fdm import plan
from ...spectral.spectrum import Evolution
from .. import cli, sample
from ..figures import check_figure_path
from ..loop.config import check_seed
from ..staging import process_of

SHOWN = 8  # pictures in a figure


def record(
    opened: Checkpoint,
    prompts: Sequence[str],
    *,
    steps: int,
    guidance: float | None,
    seed: int,
    of_latents: bool = False,
    vocabulary: Path | None = None,
) -> tuple[Evolution, list[Tensor]]:
    """Sample with DDIM, all prompts in one batch, and record the prediction of x_0 at every time step.

    Args:
        of_latents: measure the latents (as the first stage has them) in place of the decoded images in [0, 1].

    Returns:
        The evolution, its steps the time steps; and its pictures decoded, [3, H, W] in [0, 1].

    Raises:
        SpectralError: as `sample.sample`; or there is no first stage.
    """
    stage, config, unet = opened.first_stage, opened.config, opened.unet
    if stage is None or unet is None:
        raise SpectralError(f"{opened.file.path.name} has no first stage to decode with; give one to --first-stage.")
    check_seed(seed)
    times = opened.schedule.ddim_timesteps(steps).tolist()[::-1]
    process = process_of(unet, opened.schedule)  # of stages, whose boundaries are among the steps
    if process is not None:
        times = [step.t for step in plan(process, [*times, 0])]
    parameter = next(stage.parameters())

    def decode(latents: Tensor) -> Tensor:
        return (stage.decode(latents.to(parameter)).float().clamp(-1, 1) + 1) / 2

    evolution = Evolution()
    with tqdm(total=len(times), desc="sampling", unit="step", dynamic_ncols=True, disable=None) as bar:

        def callback(index: int, x_t: Tensor, x_0: Tensor) -> None:
            latents = x_0 / config.scale_factor
            evolution.add(times[index], latents if of_latents else decode(latents))
            bar.update()

        sample.latents(
            config,
            unet,
            opened.conditioner,
            prompts,
            range(len(prompts)),
            steps=steps,
            guidance=guidance,
            seed=seed,
            vocabulary=vocabulary,
            callback=callback,
        )
    with torch.no_grad():
        pictures = [decode(x[None])[0].cpu() if of_latents else x for _, x in evolution.pictures]
    return evolution, pictures


def plot(evolution: Evolution, pictures: Sequence[Tensor], name: str, of_latents: bool, path: Path) -> None:
    """Draw predictions of the first sample above the mean spectra of all steps."""
    from . import drawing

    places = [place for place, _ in evolution.pictures]
    shown = torch.linspace(0, len(places) - 1, min(SHOWN, len(places))).round().long().tolist()
    figure = drawing.sheet(8.6, 6.4)
    grid = figure.add_gridspec(2, len(shown), height_ratios=[1, 3.4])
    for column, index in enumerate(shown):
        axes = figure.add_subplot(grid[0, column])
        axes.imshow(pictures[index].movedim(0, -1).numpy(), interpolation="nearest")
        axes.set_title(f"t = {int(evolution.steps[places[index]])}", fontsize=9)
        axes.set_axis_off()
    axes = figure.add_subplot(grid[1, :])
    power, frequency = evolution.power, evolution.frequency
    for row, colour in zip(power, drawing.step_colours(len(power)), strict=True):
        axes.plot(frequency, row.clamp_min(1e-12), color=colour, linewidth=1.2, alpha=0.9)
    drawing.frequency_axis(axes, frequency[0].item(), frequency[-1].item(), unit=drawing.unit(of_latents))
    axes.set_yscale("log")
    axes.set_ylabel(f"power (|DFT|² / number of {'cells' if of_latents else 'pixels'})")
    drawing.step_scale(figure, axes, evolution.steps[0], evolution.steps[-1], "time step t, sampling runs down")
    what = "latents" if of_latents else "images"
    figure.suptitle(f"Predicted {what} step by step, {name}", fontsize=12)
    drawing.write(figure, path)


def main(argv: Sequence[str]) -> None:
    """The command `spectrum evolution`."""
    parser = cli.Parser("spectrum evolution", "How the spectrum of the denoised prediction grows, step by step.")
    parser.add_argument("checkpoint", type=Path, help=cli.CHECKPOINT)
    parser.add_argument("prompts", nargs="*", help="texts, class names or class numbers; none for unconditional models")
    parser.add_argument("--count", type=int, default=8, help="images of each prompt, whose mean is taken")
    parser.add_argument("--steps", type=int, default=50, help="DDIM steps")
    parser.add_argument("--guidance", type=float, help="weight of classifier-free guidance, 1 is none; 2 by default")
    parser.add_argument("--seed", type=int, default=0, help="of the noise")
    parser.add_argument("--latents", action="store_true", help="measure the latents in place of the decoded images")
    parser.add_argument("--tolerance", type=float, default=2.0, help="a band is there once it stays within this factor")
    parser.add_argument("--vocabulary", type=Path, help="BERT's vocab.txt, for models with LDM's own text encoder")
    parser.add_argument("--plot", type=Path, help="also draw pictures and spectra into this .png, .svg or .pdf")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    cli.add_part_options(parser)
    cli.add_read_options(parser)
    arguments = parser.parse_args(argv)
    if arguments.plot is not None:
        check_figure_path(arguments.plot)
    if arguments.count < 1:
        raise SpectralError(f"--count is {arguments.count}; at least 1 image is made of each prompt.")
    if not arguments.tolerance > 1:
        raise SpectralError(f"--tolerance is {arguments.tolerance:g}; expected a factor above 1.")
    from .opening import open_model

    opened = open_model(arguments.checkpoint, arguments)
    prompts = [prompt for prompt in arguments.prompts or [""] for _ in range(arguments.count)]
    options: dict[str, Any] = {name: getattr(arguments, name) for name in ("steps", "guidance", "seed", "vocabulary")}
    evolution, pictures = record(opened, prompts, of_latents=arguments.latents, **options)
    if arguments.plot is not None:
        plot(evolution, pictures, arguments.checkpoint.stem, arguments.latents, arguments.plot)
    there = [int(evolution.steps[place]) for place in evolution.settled(arguments.tolerance).tolist()]
    result = (
        report(evolution, there, arguments.latents) if arguments.json else _lines(evolution, there, arguments.latents)
    )
    cli.report(result, arguments.json)


def report(evolution: Evolution, there: list[int], of_latents: bool) -> dict[str, Any]:
    """The evolution as JSON data: power has a row for each step, `there` a time step for each frequency."""
    return {
        "measured": "latents" if of_latents else "images",
        "steps": [int(step) for step in evolution.steps],
        "cycles_per_pixel": evolution.frequency.tolist(),
        "power": evolution.power.tolist(),
        "there": there,
    }


def _lines(evolution: Evolution, there: list[int], of_latents: bool) -> dict[str, Any]:
    """When about eight of the bands are there."""
    rings = torch.linspace(0, len(there) - 1, min(8, len(there))).round().long().tolist()
    unit = "cycles per latent cell" if of_latents else "cycles per pixel"
    return {unit: "there, from this time step on"} | {
        f"{evolution.frequency[ring].item():.4f}": f"t = {there[ring]}" for ring in rings
    }
