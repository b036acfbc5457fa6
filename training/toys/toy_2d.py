"""Images whose spectrum has two peaks: a small diffusion model fits the peaks first, and misses the trough between.

The images are periodic Gaussian random fields of 32×32 pixels whose power over the frequency is the sum of two Gaussian
peaks and a floor. For such data the optimal denoiser is known, the Wiener filter of each step. It is sampled too, which
tells what the sampler's few steps cost from what the networks miss.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...spectral.diffusion import Denoise, Schedule
from ...spectral.spectrum import RadialSpectrum, radial_frequency, radial_spectrum
from ...spectral.unet import timestep_embedding
from .. import cli
from ..figures import check_figure_path
from .process import check_steps, ddpm_schedule, in_short, initialised, numbers, sample, train

SIDE = 32  # pixels
PEAKS, WIDTH, FLOOR = (0.08, 0.6), 0.07, 0.002  # cycles per pixel; the floor as a share of a peak
BANDS = {"low": (0.0, 0.16), "trough": (0.26, 0.42), "high": (0.52, 0.71)}  # of the errors, cycles per pixel
NETWORKS = {"small": (8, 1), "large": (16, 4)}  # channels, residual convolutions
EMBEDDING = 32
BATCH, RATE = 16, 2e-3
EARLY = 8  # the small network is also looked at after this fraction of the steps
SAMPLES, REFERENCES, DDIM_STEPS = 128, 2048, 100


class ConvNet(nn.Module):
    """(x_t [B, 1, H, W], t [B]) → ε by 3×3 convolutions, periodic like the data; t scales and shifts what each reads.

    Args:
        channels: of every layer between the first and the last convolution.
        blocks: residual convolutions between those two; a network of n blocks sees 2n + 5 pixels across.
    """

    def __init__(self, channels: int, blocks: int) -> None:
        super().__init__()
        self.first = _convolution(1, channels)
        self.blocks = nn.ModuleList(_convolution(channels, channels) for _ in range(blocks))
        self.times = nn.ModuleList(nn.Linear(EMBEDDING, 2 * channels) for _ in range(blocks))
        self.last = _convolution(channels, 1)

    def forward(self, x: Tensor, t: Tensor, context: Tensor | None = None) -> Tensor:
        embedding = timestep_embedding(t, EMBEDDING)
        h: Tensor = self.first(x)
        for block, time_ in zip(self.blocks, self.times, strict=True):
            scale, shift = time_(embedding)[..., None, None].chunk(2, dim=1)
            h = h + block(F.silu(h * (1 + scale) + shift))
        prediction: Tensor = self.last(h)
        return prediction


def _convolution(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1, padding_mode="circular")


def two_peaks(frequency: Tensor) -> Tensor:
    """Power at frequencies in cycles per pixel, relative to a peak: Σ exp(−(f − p)²/2w²) + floor."""
    peaks = [torch.exp(-(frequency - peak).square() / (2 * WIDTH**2)) for peak in PEAKS]
    return torch.stack(peaks).sum(0) + FLOOR


def field_power() -> Tensor:
    """[32, 32] float64: the expected |DFT|²/(HW) of the fields, DC first and 0; pixels have variance 1."""
    power = two_peaks(radial_frequency(SIDE, SIDE))
    power[0, 0] = 0.0
    return power / power.mean()


def fields(count: int, generator: torch.Generator) -> Tensor:
    """[count, 1, 32, 32] Gaussian random fields of the spectrum `field_power`."""
    white = torch.randn(count, 1, SIDE, SIDE, generator=generator)
    filtered: Tensor = torch.fft.ifft2(torch.fft.fft2(white) * field_power().sqrt().float()).real.contiguous()
    return filtered


def wiener(schedule: Schedule) -> Denoise:
    """The optimal denoiser of the fields: ε = √(1 − ᾱ) / (ᾱ |X_0|² + 1 − ᾱ) · X_t per frequency (Proposition 1)."""
    power = field_power()

    def denoise(x: Tensor, t: Tensor, context: Tensor | None = None) -> Tensor:
        signal, sigma = schedule.coefficients(t, x.double())
        response = sigma / (signal.square() * power + sigma.square())
        return torch.fft.ifft2(torch.fft.fft2(x.double()) * response).real.to(x)

    return denoise


def errors(reference: RadialSpectrum, other: RadialSpectrum) -> dict[str, float]:
    """For each band the mean |ln(power / reference power)| of its rings, and for the trough also the signed mean."""
    difference = (other.power / reference.power).log()
    found = {}
    for name, (low, high) in BANDS.items():
        inside = difference[(reference.frequency >= low) & (reference.frequency < high)]
        found[name] = inside.abs().mean().item()
        if name == "trough":
            found["trough_signed"] = inside.mean().item()
    return found


def run(steps: int = 1600, seed: int = 0, out: Path | None = None) -> dict[str, Any]:
    """Train the small and the large network, compare the spectra of what they make with the data, and draw it.

    Args:
        steps: of training, the same for both networks.
        seed: of data, weights and samples.
        out: the figure; None draws none.

    Returns:
        For early (the small network after an eighth of the steps), small, large and wiener NAME: `low_NAME`,
        `trough_NAME`, `high_NAME`, the errors of the bands, 0 for equal and 0.69 for a factor of two, and
        `trough_signed_NAME`, positive for too much power; `radial`, the spectra; `parameters`, `loss`, `seconds`,
        `steps`, `seed`.

    Raises:
        SpectralError: a number of steps below 8.
    """
    check_steps(steps, EARLY)
    began, schedule = time.perf_counter(), ddpm_schedule()
    made: dict[str, Tensor] = {}
    losses, parameters = {}, {}

    def look(name: str, denoise: Denoise) -> None:
        shape = (SAMPLES, 1, SIDE, SIDE)
        made[name] = sample(denoise, shape, schedule, steps=DDIM_STEPS, eta=0.0, seed=seed)

    for name, (channels, blocks) in NETWORKS.items():
        network = initialised(lambda size=(channels, blocks): ConvNet(*size), seed)  # type: ignore[misc]
        parameters[name] = sum(weight.numel() for weight in network.parameters())
        losses[name] = train(
            network,
            fields,
            schedule,
            steps=steps,
            batch=BATCH,
            rate=RATE,
            seed=seed,
            name=name,
            pauses=[steps // EARLY] if name == "small" else [],
            pause=lambda step, network=network: look("early", network),  # type: ignore[misc]
        )
        look(name, network)
    look("wiener", wiener(schedule))
    data = fields(REFERENCES, numbers(seed, "data"))
    spectra = {name: radial_spectrum(x, window="none") for name, x in ({"data": data} | made).items()}
    result: dict[str, Any] = {}
    for name in made:
        result |= {f"{key}_{name}": value for key, value in errors(spectra["data"], spectra[name]).items()}
    result |= {"parameters": parameters, "loss": losses, "radial": _lists(spectra)}
    result |= {"seconds": round(time.perf_counter() - began, 1), "steps": steps, "seed": seed}
    if out is not None:
        from .figures import draw_toy_2d

        draw_toy_2d({"data": data[:SAMPLES]} | made, spectra, result, out)
    return result


def _lists(spectra: dict[str, RadialSpectrum]) -> dict[str, list[float]]:
    power = {name: rings.power.tolist() for name, rings in spectra.items()}
    return {"cycles_per_pixel": spectra["data"].frequency.tolist()} | power


def main(argv: Sequence[str]) -> None:
    """The command `spectrum toy-2d`."""
    parser = cli.Parser("spectrum toy-2d", __doc__)
    parser.add_argument("--out", type=Path, default=Path("toy-2d.png"), help="the figure: .png, .svg or .pdf")
    parser.add_argument("--steps", type=int, default=1600, help="training steps of each network")
    parser.add_argument("--seed", type=int, default=0, help="of data, weights and samples")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args(argv)
    check_figure_path(arguments.out)
    result = run(arguments.steps, arguments.seed, arguments.out) | {"figure": str(arguments.out)}
    cli.report(result if arguments.json else in_short(result), arguments.json)


if __name__ == "__main__":
    sys.exit(cli.run(main))
