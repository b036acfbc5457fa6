"""The chart's heat maps: every cell has the colour of its value, on screens of both kinds, and can be read."""

from __future__ import annotations

import csv
import io
import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from playwright.sync_api import FloatRect, Page, expect

from spectral_diffusion.spectral import colours

from .alone import HOST, LIGHT, box, call, chart_page, number, show, ticks
from .conftest import OUTPUT

UNITS = [
    {"name": "cycles/pixel", "label": "frequency (cycles per pixel)", "factor": 1},
    {"name": "of Nyquist", "label": "frequency (fraction of Nyquist)", "factor": 2},
]
AXIS = {"label": "frequency", "low": -0.5, "high": 0.5, "units": UNITS}
#: Ten values at the anchors of the colours, 0 to 9, in cells of 2 rows and 5 columns.
ANCHORS = np.arange(10.0).reshape(2, 5)


@pytest.fixture(scope="module", params=[1, 2], ids=["one", "two"])
def screen(request: pytest.FixtureRequest) -> Iterator[tuple[Page, int]]:
    """A page and its device pixel ratio."""
    with chart_page(request.param) as page:
        yield page, request.param


@pytest.fixture
def alone(screen: tuple[Page, int]) -> Iterator[Page]:
    """The page without any chart; nothing may go wrong on it."""
    errors: list[str] = []
    page = screen[0]
    note = lambda error: errors.append(str(error))  # noqa: E731
    page.goto(HOST)
    page.on("pageerror", note)
    yield page
    page.remove_listener("pageerror", note)
    assert not errors


def of(values: Any, **more: Any) -> dict[str, Any]:
    """A chart of one map."""
    rows = [[None if np.isnan(value) else float(value) for value in row] for row in np.asarray(values)]
    return {"title": "t", "views": [{"name": "", "map": {"values": rows, "label": "v", "x": AXIS, "y": AXIS, **more}}]}


def rgb(code: str) -> NDArray[np.float64]:
    return np.array([int(code[at : at + 2], 16) for at in (1, 3, 5)], dtype=float)


def seen(page: Page, part: FloatRect, scale: int) -> NDArray[np.float64]:
    """The screen's pixels in a part of the page, [H, W, 3]."""
    picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    ends = [part["x"], part["y"], part["x"] + part["width"], part["y"] + part["height"]]
    return np.asarray(picture.crop([round(end * scale) for end in ends]), dtype=float)  # type: ignore[arg-type]


def frames(page: Page, name: str) -> list[FloatRect]:
    """Where the map lies, and where its colour bar does."""
    frame = page.locator(f"[data-name='{name}'] .sd-chart-frame")
    found = [one.bounding_box() for one in frame.all()]
    assert len(found) == 2 and all(found)
    return [one for one in found if one]


def cells(pixels: NDArray[np.float64], rows: int, columns: int) -> list[list[NDArray[np.float64]]]:
    """The pixels of each cell, without what the frame's line covers."""
    height, width = pixels.shape[:2]
    down, across = (
        np.round(np.linspace(0, size, count + 1)).astype(int) for size, count in ((height, rows), (width, columns))
    )
    return [
        [pixels[top + 3 : bottom - 3, left + 3 : right - 3] for left, right in itertools.pairwise(across)]
        for top, bottom in itertools.pairwise(down)
    ]


def test_cells_have_the_anchors_colours_and_sharp_edges(alone: Page, screen: tuple[Page, int]) -> None:
    show(alone, map=of(ANCHORS))
    drawn = cells(seen(alone, frames(alone, "map")[0], screen[1]), 2, 5)
    for code, cell in zip(colours.VIRIDIS, [one for row in drawn for one in row], strict=True):
        assert cell.size and np.abs(cell - rgb(code)).max() <= 2, code


def test_a_cell_ends_where_the_next_one_begins(alone: Page, screen: tuple[Page, int]) -> None:
    """Seven columns of two colours: no pixel has a third one, and each column is as wide as the others."""
    show(alone, map=of([[0, 1, 0, 1, 0, 1, 0]]))
    pixels = seen(alone, frames(alone, "map")[0], screen[1])
    row = pixels[len(pixels) // 2, 3:-3]
    ends = rgb(colours.VIRIDIS[0]), rgb(colours.VIRIDIS[-1])
    first, last = (np.abs(row - end).max(axis=1) <= 2 for end in ends)
    assert (first ^ last).all()
    changes = np.flatnonzero(np.diff(last.astype(int))) + 4
    assert changes == pytest.approx(np.arange(1, 7) * pixels.shape[1] / 7, abs=1)


@pytest.mark.parametrize("theme", ["dark", "light"])
def test_values_around_zero_go_from_blue_to_orange(theme: str, alone: Page, screen: tuple[Page, int]) -> None:
    if theme == "light":
        alone.add_style_tag(content=LIGHT)
    count = len(colours.DIVERGING)
    values = np.linspace(-2, 2, count)[None]
    show(alone, whole=of(values, diverging=True), half=of(values[:, : count // 2 + 1], diverging=True))
    (row,) = cells(seen(alone, frames(alone, "whole")[0], screen[1]), 1, count)
    for code, cell in zip(colours.DIVERGING, row, strict=True):
        assert np.abs(cell - rgb(code)).max() <= 2
    (row,) = cells(seen(alone, frames(alone, "half")[0], screen[1]), 1, count // 2 + 1)
    assert np.abs(row[-1] - rgb(colours.DIVERGING[count // 2])).max() <= 2, "zero is in the middle"


def test_where_there_is_no_value_is_a_grey_hatch(alone: Page, screen: tuple[Page, int]) -> None:
    values = ANCHORS.copy()
    values[1, 2] = np.nan
    show(alone, map=of(values))
    cell = cells(seen(alone, frames(alone, "map")[0], screen[1]), 2, 5)[1][2]
    assert np.ptp(cell, axis=2).max() == 0
    shades, counts = np.unique(cell[..., 0], return_counts=True)
    assert len(shades) == 2 and counts.min() > 0.4 * counts.sum()


def test_the_colour_bar_has_the_colours_of_its_numbers(alone: Page, screen: tuple[Page, int]) -> None:
    show(alone, map=of(ANCHORS * 10))
    bar = frames(alone, "map")[1]
    texts = alone.locator(".sd-chart-axes text:not([text-anchor])").evaluate_all(
        "(all) => all.map((t) => [t.textContent, Number(t.getAttribute('y'))])"
    )
    marks = [(number(text), y - 4) for text, y in texts if text[-1].isdigit()]
    assert [value for value, _ in marks][:2] in ([0, 20], [0, 10])
    pixels = seen(alone, bar, screen[1])
    middle = pixels[:, pixels.shape[1] // 2]
    top = box(alone, "map")["y"] - bar["y"]
    for value, y in marks[1:]:
        at = value / 90 * (len(colours.VIRIDIS) - 1)
        low, high = rgb(colours.VIRIDIS[int(at)]), rgb(colours.VIRIDIS[min(int(at) + 1, 9)])
        expected = low + (at - int(at)) * (high - low)
        assert np.abs(middle[round((y + top) * screen[1])] - expected).max() <= 8, value


def test_axes_hover_and_keys_read_in_the_chosen_unit(alone: Page) -> None:
    """Cells of a map of 5 x 2: 0.2 and 0.5 cycles per pixel wide, the first row at the top."""
    show(alone, map=of(ANCHORS))
    reading, status = alone.locator(".sd-chart-reading"), alone.locator(".sd-chart-status")
    frame = frames(alone, "map")[0]
    alone.mouse.move(frame["x"] + 0.9 * frame["width"], frame["y"] + 0.25 * frame["height"])
    expect(reading).to_have_text("0.4000 cycles/pixel, 0.2500 cycles/pixel: 4")
    expect(alone.locator(".sd-chart-pointer text")).to_have_text(["0.4000", "0.2500"])
    cell = alone.locator(".sd-chart-cell").bounding_box()
    assert cell and cell["x"] == pytest.approx(frame["x"] + 0.8 * frame["width"], abs=1.5)
    expect(alone.get_by_label("Units")).to_have_count(1)
    alone.mouse.move(frame["x"], 700)
    expect(reading).to_have_text("")
    alone.get_by_label("Units").select_option("of Nyquist")
    across, up = ticks(alone, "map")
    assert (across[0][0], across[-1][0], up[0][0], up[-1][0]) == (-1, 1, -1, 1) or len(up) < 3
    alone.locator(".sd-chart-svg").focus()
    said = {}
    for key in ("ArrowLeft", "ArrowLeft", "ArrowUp", "End", "Home", "ArrowDown", "ArrowDown", "Escape"):
        alone.keyboard.press(key)
        said[key] = reading.inner_text()
        if key == "Home":
            expect(status).to_have_text(
                "frequency (fraction of Nyquist) −0.8000, frequency (fraction of Nyquist) 0.5000: v 0"
            )
    unit = "of Nyquist"
    assert said == {
        "ArrowLeft": f"−0.4000 {unit}, −0.5000 {unit}: 6",
        "ArrowUp": f"−0.4000 {unit}, 0.5000 {unit}: 1",
        "End": f"0.8000 {unit}, 0.5000 {unit}: 4",
        "Home": f"−0.8000 {unit}, 0.5000 {unit}: 0",
        "ArrowDown": f"−0.8000 {unit}, −0.5000 {unit}: 5",
        "Escape": "",
    }
    rows = list(csv.reader(io.StringIO(alone.evaluate("() => charts.map.map.csv()"))))
    assert rows[0] == [UNITS[1]["label"], UNITS[1]["label"], "v"] and len(rows) == 11
    assert rows[1] == ["-0.8", "0.5", "0"] and rows[-1] == ["0.8", "-0.5", "9"]


def test_an_axis_may_run_down_or_be_logarithmic(alone: Page) -> None:
    down = {"label": "step", "low": 10, "high": 0}
    log = {"label": "f", "low": 0.01, "high": 1, "log": True}
    show(alone, map=of([[1, 2], [3, 4]], x=log, y=down))
    frame = frames(alone, "map")[0]
    across, up = ticks(alone, "map")
    assert [value for value, _ in up] == sorted((value for value, _ in up), reverse=False)
    assert up[0][1] < up[-1][1], "0 is at the top"
    middle = box(alone, "map")["x"] + dict(across)[0.1]
    assert middle == pytest.approx(frame["x"] + frame["width"] / 2, abs=2)
    alone.mouse.move(frame["x"] + 0.75 * frame["width"], frame["y"] + 0.25 * frame["height"])
    expect(alone.locator(".sd-chart-reading")).to_have_text("0.3162, 2.500: 2")


@pytest.mark.parametrize("square", [True, False])
def test_a_square_map_has_both_axes_at_one_scale(square: bool, alone: Page) -> None:
    show(alone, map=of(ANCHORS, square=square, x={**AXIS, "high": 0.25}))
    frame = frames(alone, "map")[0]
    if square:
        assert frame["width"] / frame["height"] == pytest.approx(0.75, abs=0.02)
    else:
        assert frame["width"] > 0.6 * box(alone, "map")["width"]


def test_views_of_maps_share_their_colours(alone: Page) -> None:
    described = of(ANCHORS)
    described["views"] = [{"name": f"{by}", "map": of(ANCHORS * by)["views"][0]["map"]} for by in (1, 3)]
    show(alone, map=described)
    alone.get_by_role("button", name="1", exact=True).click()
    alone.locator(".sd-chart-svg").focus()
    assert alone.evaluate("() => [charts.map.map.scale.low, charts.map.map.scale.high]") == [0, 27]


def test_maps_larger_than_the_screen_are_averaged(alone: Page) -> None:
    rng = np.random.default_rng(0)
    large = rng.normal(size=(12, 20))
    blocks = large.reshape(4, 3, 5, 4).mean(axis=(1, 3))
    small = call(alone, "resampled", large.tolist(), 5, 4)
    assert np.array(small).reshape(4, 5) == pytest.approx(blocks)
    few = call(alone, "resampled", ANCHORS.tolist(), 15, 8)
    assert np.array(few).reshape(8, 15) == pytest.approx(np.kron(ANCHORS, np.ones((4, 3))))


def test_a_pinned_map_is_taken_from_a_later_one_of_its_size(alone: Page) -> None:
    show(alone, map=of(ANCHORS), other=of(ANCHORS))
    for name in ("map", "other"):
        alone.locator(f"[data-name={name}]").get_by_role("button", name="Pin").click()
    later = ANCHORS + np.array([[0, 1, -2, 3, 0], [0, 0, 0, 0, 1]])
    show(alone, map=of(later), other=of(ANCHORS[:, :3]))
    frame = frames(alone, "map")[0]
    alone.mouse.move(frame["x"] + 0.5 * frame["width"], frame["y"] + 0.25 * frame["height"])
    expect(alone.locator("[data-name=map] .sd-chart-reading")).to_contain_text(": −2")
    expect(alone.locator("[data-name=map] .sd-chart-label").last).to_have_text("B − A: v")
    assert alone.evaluate("() => [charts.map.map.scale.low, charts.map.map.scale.high]") == [-3, 3]
    expect(alone.locator("[data-name=other] .sd-chart-label").last).to_have_text("v")
    alone.locator("[data-name=map]").get_by_role("button", name="Unpin").click()
    expect(alone.locator("[data-name=map] .sd-chart-label").last).to_have_text("v")


@pytest.mark.parametrize("theme", ["dark", "light"])
def test_maps_on_a_screenshot(theme: str, alone: Page, screen: tuple[Page, int]) -> None:
    if theme == "light":
        alone.add_style_tag(content=LIGHT)
    f = np.fft.fftshift(np.fft.fftfreq(64))
    power = np.log10(1 / (f[:, None] ** 2 + f[None] ** 2 + 1e-3))
    power[:4, :8] = np.nan
    waves = np.sin(np.linspace(0, 6, 20))[:, None] * np.linspace(-1, 2, 40)[None]
    show(
        alone,
        power=of(power, square=True, label="log10 of power"),
        waves=of(waves, diverging=True, label="difference of log10 of power between student and teacher"),
        lone=of([[1]]),
    )
    alone.locator("[data-name=power] .sd-chart-svg").focus()
    for _ in range(6):
        alone.keyboard.press("ArrowRight")
    OUTPUT.mkdir(exist_ok=True)
    alone.screenshot(path=OUTPUT / f"chart-maps-{theme}-{screen[1]}.png")
    expect(alone.locator(".sd-chart-frame")).to_have_count(6)
