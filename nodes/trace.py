"""Gate Trace: what the gates of a student do during the sampling (the paper's Figure 9), as plot, table and widget."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..spectral.errors import SpectralError
from ..spectral.hooks import Direction
from . import plot, plot_axes, show
from .gates import BANDS, DIRECTIONS, check_gated, with_gate_patch
from .patches import Moment
from .recording import Record, traced_samplers

AVERAGE = "average"
HEADER = ("run", "timestep", "sigma", "direction", "level", *BANDS)


class Point(NamedTuple):
    """The mean gates of one resampler at one call of the network: over channels and over the pictures of a batch."""

    timestep: float
    sigma: float
    direction: Direction
    level: int
    gates: tuple[float, ...]


@dataclass
class _Call:
    """What was recorded and still lies on the device, so that nothing waits for it while sampling goes on."""

    timesteps: Tensor
    sigmas: Tensor | None
    direction: Direction
    level: int
    gates: Tensor


class GateRecord:
    """The gates of every sampling that a traced MODEL took part in; the last of each sampler node is kept."""

    def __init__(self) -> None:
        self._calls: Record[list[_Call]] = Record(list)
        self._guided: Tensor | None = None

    def __deepcopy__(self, memo: Any) -> GateRecord:
        """Itself, as `Record`."""
        return self

    def __call__(self, gates: Tensor, direction: Direction, level: int, moment: Moment) -> Tensor:
        """A `patches.GatePatch` that changes nothing. Of a batch, the rows of the first conditioning count.

        That is the positive one in every core guider but DualCFGGuider, where it is the negative one.
        """
        if self._guided is not None and moment.options.get("sigmas") is self._guided:
            return gates  # another call for the same prediction, such as that of Self-Attention Guidance
        asked = _asked(gates, moment.options.get("cond_or_uncond"))
        if asked is not None:
            mean = asked.detach().float().mean(dim=(0, 2))
            call = _Call(moment.timesteps[:1], moment.options.get("sigmas"), direction, level, mean)
            self._calls.current().append(call)
        return gates

    def guided(self, args: dict[str, Any]) -> Tensor:
        """Core's `sampler_post_cfg_function`, the first of all: the prediction is made; what follows changes it."""
        self._guided = args["sigma"]
        return args["denoised"]  # type: ignore[no-any-return]

    def runs(self, samplers: Iterable[str]) -> list[list[Point]]:
        """The points of each sampling by these nodes, as `Record.of`."""
        return [[_point(call) for call in calls] for calls in self._calls.of(samplers) if calls]


class GateTrace:
    """Records the gates of a MODEL."""

    CATEGORY = "spectral diffusion"
    DESCRIPTION = (
        "Records how open each frequency band's gates are in a wavelet-gated student while a sampler runs with this "
        "MODEL; the pictures stay the same to the last bit. Connect MODEL to the sampler, then gates and the sampler's "
        "LATENT to Gate Trace Plot."
    )
    SEARCH_ALIASES = ("record gates", "wavelet gates", "figure 9", "gate values")
    RETURN_TYPES = ("MODEL", "SPECTRAL_GATES")
    RETURN_NAMES = ("MODEL", "gates")
    OUTPUT_TOOLTIPS = (
        "The same model, for the sampler; what Wavelet Gates in front of this node change is recorded too.",
        "What was recorded, for Gate Trace Plot.",
    )
    FUNCTION = "trace"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        tooltip = "A wavelet-gated student from Load Checkpoint (Spectral Diffusion)."
        return {"required": {"model": ("MODEL", {"tooltip": tooltip})}}

    def trace(self, model: Any) -> tuple[Any, GateRecord]:
        """A recording clone and its record.

        Raises:
            SpectralError: the model has no gates.
        """
        check_gated(model, "Gate Trace")
        record = GateRecord()
        made = with_gate_patch(model, record)
        others = made.model_options.get("sampler_post_cfg_function", [])
        made.model_options["sampler_post_cfg_function"] = [record.guided, *others]
        return made, record


class GateTracePlot:
    """Draws what Gate Trace recorded."""

    CATEGORY = "spectral diffusion"
    DESCRIPTION = (
        "Draws how open the gates of each frequency band were at each step of the sampling, on the network's way down "
        "and on its way up (Figure 9 of the paper). Point at the chart to read the numbers."
    )
    SEARCH_ALIASES = ("gate chart", "wavelet gates", "figure 9", "gate values over time")
    RETURN_TYPES = ("IMAGE", "STRING")
    RETURN_NAMES = ("plot", "table")
    OUTPUT_TOOLTIPS = (show.PLOT_TOOLTIP, show.TABLE_TOOLTIP)
    OUTPUT_NODE = True
    FUNCTION = "draw"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        levels = (
            "average: one chart for the way down and one for the way up, over all changes of resolution. every level: "
            "two more charts for each of them; level 0 is between the latent's size and half of it."
        )
        return {
            "required": {
                "gates": ("SPECTRAL_GATES", {"tooltip": "What Gate Trace recorded: its output gates."}),
                "samples": (
                    "LATENT",
                    {"tooltip": "From the sampler that uses Gate Trace's MODEL, so that the plot waits for it."},
                ),
                "levels": ([AVERAGE, "every level"], {"default": AVERAGE, "tooltip": levels}),
            },
            "hidden": {"prompt": "PROMPT", "node": "UNIQUE_ID"},
        }

    def draw(
        self, gates: GateRecord, samples: dict[str, Any], levels: str, prompt: Any = None, node: str | None = None
    ) -> dict[str, Any]:
        """Plot and table.

        Raises:
            SpectralError: nothing was recorded.
        """
        runs = gates.runs(traced_samplers(prompt or {}, str(node), "gates"))
        if not runs:
            raise SpectralError(
                "Gate Trace recorded nothing: connect its MODEL to the sampler whose LATENT comes here."
            )
        curves = [_curves(points) for points in runs]
        every = sorted({level for one in curves for _, level in one if level is not None})
        rows = [None, *every] if levels != AVERAGE and len(every) > 1 else [None]
        chart = plot.grid([[_panel(curves, direction, row) for direction in DIRECTIONS] for row in rows])
        table = show.csv(HEADER, _table(curves))
        return show.interactive(chart, _described(curves, every), table)


#: Time steps, noise levels and gates [N, 4] of one direction and level, from noise to picture.
Curve = tuple[plot_axes.Array, plot_axes.Array, plot_axes.Array]
Curves = Mapping[tuple[Direction, int | None], Curve]


def _curves(points: Iterable[Point]) -> Curves:
    """By direction and level, and by direction with None for the mean over its levels; calls at one time step merge."""
    gathered: dict[tuple[Direction, int | None], dict[float, list[Point]]] = defaultdict(lambda: defaultdict(list))
    for point in points:
        gathered[point.direction, point.level][point.timestep].append(point)
        gathered[point.direction, None][point.timestep].append(point)
    made = {}
    for key, steps in gathered.items():
        times = sorted(steps, reverse=True)
        sigmas = np.array([steps[time][0].sigma for time in times])
        means = np.array([np.mean([point.gates for point in steps[time]], axis=0) for time in times])
        made[key] = (np.array(times), sigmas, means)
    return made


def _panel(curves: list[Curves], direction: Direction, level: int | None) -> Image.Image:
    """One chart of four bands; the lines of a second sampling and those after it are dashed."""
    found = [one[direction, level] for one in curves if (direction, level) in one]
    series = [
        plot.Series(band, times, gates[:, index], dashed=run > 0, colour=index, in_legend=run == 0)
        for run, (times, _, gates) in enumerate(found)
        for index, band in enumerate(BANDS)
    ]
    name = "average over levels" if level is None else f"level {level}" + ", the finest" * (level == 0)
    return plot.line_chart(
        series,
        plot_axes.step_axis(_first_step(curves)),
        plot_axes.linear_axis("gate value", [curve[2] for one in curves for curve in one.values()], within=(0.0, 1.0)),
        title=f"Gates going {direction}, {name}",
        size=(720, 460),
    )


def _first_step(curves: list[Curves]) -> float:
    """The time step with the most noise that any sampling was at."""
    return max(float(times.max()) for one in curves for times, _, _ in one.values())


def _described(curves: list[Curves], levels: list[int]) -> dict[str, Any]:
    """The interactive chart: a view for each direction and level."""
    views = []
    for direction in DIRECTIONS:
        for level in (None, *levels):
            series = [
                {"name": band, "colour": index, "dashed": run > 0, "x": times.tolist(), "y": gates[:, index].tolist()}
                for run, one in enumerate(curves)
                if (direction, level) in one
                for times, _, gates in [one[direction, level]]
                for index, band in enumerate(BANDS)
            ]
            name = AVERAGE if level is None else f"level {level}"
            views.append({"name": [direction.capitalize(), name], "series": series})
    axis = plot_axes.step_axis(_first_step(curves))
    return {
        "title": "Gate values",
        "x": {"label": axis.label, "reversed": True, "low": axis.high, "high": axis.low},
        "y": {"label": "gate value", "within": [0.0, 1.0]},
        "views": views,
    }


def _table(curves: list[Curves]) -> Iterator[tuple[float | str, ...]]:
    for run, one in enumerate(curves):
        for (direction, level), (times, sigmas, gates) in sorted(one.items(), key=lambda entry: str(entry[0])):
            name = AVERAGE if level is None else f"{level}"
            for time, sigma, values in zip(times, sigmas, gates, strict=True):
                yield (str(run), float(time), float(sigma), direction, name, *map(float, values))


def _asked(gates: Tensor, kinds: list[int] | None) -> Tensor | None:
    """The rows of the positive conditioning (0 in core's `cond_or_uncond`); None where there is none."""
    if not kinds:
        return gates
    rows = [part for kind, part in zip(kinds, gates.chunk(len(kinds)), strict=True) if kind == 0]
    return torch.cat(rows) if rows else None


def _point(call: _Call) -> Point:
    sigma = float("nan") if call.sigmas is None else float(call.sigmas[0])
    return Point(float(call.timesteps[0]), sigma, call.direction, call.level, tuple(call.gates.tolist()))
