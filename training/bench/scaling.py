"""How time and memory grow: networks at batches of 1, 8 and 64, and the student with batch, resolution and steps."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable
from functools import partial

import torch
from torch import Tensor, nn

from ...spectral import presets
from ...spectral.diffusion import Schedule, ddim
from ...spectral.reuse import OneSampling
from ..processes import device
from .networks import PRESET, loaded
from .timing import Settings, peak_memory, seconds

Call = Callable[[], Tensor]

KINDS = ("student", "lite", "teacher")
BATCHES = (1, 8, 64)
#: Of the student: samples at a time, sides of the latent, steps of DDIM.
GROWTH = {"batch": (1, 2, 4, 8, 16), "side": (16, 32, 64, 128), "steps": (4, 8, 16, 32)}
#: Seconds that one entry may take; slow ones are timed fewer times, at least once.
ENOUGH = 10.0


def measure_table(settings: Settings) -> dict[str, float]:
    """`KIND_batch_N_seconds` and `…_gib` of one prediction at the preset's size."""
    result: dict[str, float] = {}
    for kind in KINDS:
        network = loaded(f"{PRESET}-{kind}", settings)
        for batch in BATCHES[:2] if settings.quick else BATCHES:
            result |= _entry(f"{kind}_batch_{batch}", _prediction(network, settings, batch))
    return result


def measure_growth(settings: Settings) -> dict[str, float]:
    """`student_batch_N_…`, `student_side_N_…`, `student_steps_N_…`, and the slope of each on logarithmic axes.

    A slope of 1 is time (or memory) in proportion. Of sides it is that over the number of cells.
    """
    network = loaded(f"{PRESET}-student", settings)
    schedule = Schedule()
    makers: dict[str, Callable[[int], Call]] = {
        "batch": lambda batch: _prediction(network, settings, batch),
        "side": lambda side: _prediction(network, settings, 1, side),
        "steps": lambda steps: _sampling(network, settings, schedule, steps),
    }
    result: dict[str, float] = {}
    for name, make in makers.items():
        values = GROWTH[name][:-1] if settings.quick else GROWTH[name]
        found = {value: _entry(f"student_{name}_{value}", make(value)) for value in values}
        result |= {key: number for entry in found.values() for key, number in entry.items()}
        sizes = [value**2 if name == "side" else value for value in values]
        for unit in ("seconds", "gib"):
            numbers = [found[value][f"student_{name}_{value}_{unit}"] for value in values]
            result[f"slope_{name}_{unit}"] = round(slope(sizes, numbers), 3)
    return result


def slope(x: Iterable[float], y: Iterable[float]) -> float:
    """Of the straight line through the logarithms, by least squares."""
    return statistics.linear_regression([math.log(one) for one in x], [math.log(one) for one in y]).slope


def lines(result: dict[str, float]) -> list[str]:
    """What was found as text: a line for each entry, then the slopes."""
    names = [name.removesuffix("_gib") for name in result if name.endswith("_gib")]
    names = [name for name in names if f"{name}_seconds" in result]
    shown = [f"{name:24}{result[name + '_seconds']:12.4f} s{result[name + '_gib']:10.3f} GiB" for name in names]
    return shown + [f"{name:24}{result[name]:12.3f}" for name in result if name.startswith("slope")]


def _entry(name: str, call: Callable[[], object]) -> dict[str, float]:
    """Median time and peak of memory beside the weights."""
    memory = peak_memory(call)  # which is the warm-up as well
    times = [seconds(call)]
    while sum(times) + times[-1] < ENOUGH and len(times) < 9:
        times.append(seconds(call))
    return {f"{name}_seconds": round(statistics.median(times), 6), f"{name}_gib": round(memory / 2**30, 6)}


def _prediction(network: nn.Module, settings: Settings, batch: int, side: int | None = None) -> Callable[[], Tensor]:
    x = _latents(settings, batch, side)
    t = torch.full((batch,), 500, device=device())
    return torch.inference_mode()(partial(network, x, t))  # type: ignore[no-any-return]


def _sampling(network: nn.Module, settings: Settings, schedule: Schedule, steps: int) -> Call:
    x, times = _latents(settings, 1, None), schedule.ddim_timesteps(steps).tolist()
    return lambda: ddim(partial(network, hooks=OneSampling(times)), x, schedule, steps)


def _latents(settings: Settings, batch: int, side: int | None) -> Tensor:
    unet = presets.config(f"{PRESET}-student").unet
    assert unet is not None
    side = side or unet.image_size
    x = torch.randn(batch, unet.in_channels, side, side, generator=torch.Generator().manual_seed(0))
    return x.to(device(), settings.dtype)
