"""The chart of nodes/web on an empty page: its numbers against oracles, and descriptions that are hard to draw."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import Page

from spectral_diffusion.spectral import colours

from .alone import call, chart_page, contrast, odd, show, ticks
from .conftest import OUTPUT


@pytest.fixture(scope="module")
def browser() -> Iterator[Page]:
    with chart_page() as page:
        yield page


@pytest.fixture
def alone(browser: Page) -> Page:
    """The page without any chart."""
    browser.reload()
    return browser


@pytest.mark.parametrize("spread", [1e-7, 0.3, 1.0, 7.3, 999.0, 4e9])
@pytest.mark.parametrize("count", [2, 5, 8])
def test_a_round_step_is_the_smallest_that_needs_no_more_parts(browser: Page, spread: float, count: int) -> None:
    round_steps = [lead * 10.0**power for power in range(-10, 12) for lead in (1, 2, 5)]
    expected = min(step for step in round_steps if step * count >= spread * (1 - 1e-9))
    assert call(browser, "roundStep", spread, count) == pytest.approx(expected)


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-3.2, 4.1), (0.217, 0.6), (1e-7, 3e-7), (0, 1000)])
def test_linear_ticks_are_all_multiples_of_their_step_within_the_axis(browser: Page, low: float, high: float) -> None:
    ticks = np.array(call(browser, "linearTicks", low, high, 6))
    step = ticks[1] - ticks[0]
    assert np.allclose(ticks / step, np.round(ticks / step))
    assert ticks[0] - low < step * (1 + 1e-6) and high - ticks[-1] < step * (1 + 1e-6)
    assert len(ticks) <= 7 and np.allclose(np.diff(ticks), step)


def test_logarithmic_ticks_thin_out_as_room_shrinks(browser: Page) -> None:
    assert call(browser, "logTicks", 0.004, 0.5, 8) == [0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5]
    assert call(browser, "logTicks", 0.004, 0.5, 3) == [0.01, 0.1]
    assert call(browser, "logTicks", 1e-6, 1e6, 4) == [1e-6, 1e-3, 1, 1e3, 1e6]


def test_a_number_is_read_with_four_digits(browser: Page) -> None:
    texts = {0.217381912: "0.2174", 601: "601", -12.5: "−12.50", 1.23456e-5: "1.235·10⁻⁵", 0: "0"}
    assert [call(browser, "valueText", value) for value in texts] == list(texts.values())
    assert call(browser, "valueText", None) == "–"


@pytest.mark.parametrize("palette", ["OKABE_ITO", "VIRIDIS", "DIVERGING"])
def test_colours_are_those_of_the_static_charts(palette: str, browser: Page) -> None:
    used = browser.evaluate("""async (palette) => (await import("/chart_colours.js"))[palette]""", palette)
    assert tuple(used) == getattr(colours, palette)


@pytest.mark.parametrize("background", [[0, 0, 0], [23, 23, 24], [53, 53, 53], [7, 54, 66], [201, 201, 201], [255] * 3])
def test_every_line_can_be_told_from_what_is_behind_it_and_from_the_others(
    browser: Page, background: list[int]
) -> None:
    palette = browser.evaluate("""async () => (await import("/chart_colours.js")).OKABE_ITO""")
    lines = [call(browser, "readable", colour, background, module="colours") for colour in [*palette, "#000000"]]
    assert len(set(lines)) == len(palette) + 1
    for colour in lines:
        rgb = [int(part) for part in colour.removeprefix("rgb(").removesuffix(")").split(",")]
        assert contrast(rgb, background) >= 3


def test_csv_has_a_row_for_each_x_and_reads_back(browser: Page) -> None:
    series = [
        {"name": 'a "b", c', "x": [2, 1, 3], "y": [0.2, 0.1, None]},
        {"name": "d", "x": [1, 2.5], "y": [1e-9, 7], "low": [0, 6], "high": [2, 8]},
    ]
    rows = list(csv.reader(io.StringIO(call(browser, "csv", "x", series))))
    assert rows == [
        ["x", 'a "b", c', "d", "d low", "d high"],
        ["1", "0.1", "1e-9", "0", "2"],
        ["2", "0.2", "", "", ""],
        ["2.5", "", "7", "6", "8"],
        ["3", "", "", "", ""],
    ]


def spectra() -> dict[str, Any]:
    """What a radial spectrum would be: logarithmic axes, hundreds of points, a band, a dashed line, a mark."""
    x = np.geomspace(1 / 256, 0.5, 300)
    y = x**-2.2 * (1 + 0.3 * np.sin(np.arange(300)))
    broken = [None if index % 50 == 7 else float(value) for index, value in enumerate(y / 9)]
    described = odd(
        {"name": "mean", "x": x.tolist(), "y": y.tolist(), "low": (y / 3).tolist(), "high": (y * 3).tolist()},
        {"name": "power law", "x": x[50:250].tolist(), "y": (x[50:250] ** -2.2).tolist(), "dashed": True},
        {"name": "images: 64 images, 64 x 64 pixels", "x": x.tolist(), "y": broken, "colour": 3},
        x={"label": "spatial frequency (cycles per pixel)", "log": True},
        y={"label": "power", "log": True},
    )
    described["views"][0]["marks"] = [{"x": 0.25, "label": "cut-off"}]
    return described


CASES: dict[str, dict[str, Any]] = {
    "spectra": spectra(),
    "no series": odd(),
    "no points": odd({"name": "a", "x": [], "y": []}),
    "one point": odd({"name": "a", "x": [3], "y": [4]}),
    "equal": odd({"name": "a", "x": [0, 1, 2], "y": [0.5] * 3}, y={"label": "y", "within": [0, 1]}),
    "breaks": odd({"name": "a", "x": [0, 1, 2, 3, 4], "y": [1, None, 2, 3, None]}),
    "nothing but breaks": odd({"name": "a", "x": [0, 1], "y": [None, None]}),
    "not for a logarithm": odd({"name": "a", "x": [0, 1, 2], "y": [-1, 0, 5]}, y={"label": "y", "log": True}),
    "markup": odd({"name": "<img src=x onerror='window.broken = true'>", "x": [0, 1], "y": [1, 2]}),
}
#: Lines of more than one point, and single points, that each must have.
DRAWN = {
    "spectra": (2 + 7, 0),
    "no series": (0, 0),
    "no points": (0, 0),
    "one point": (0, 1),
    "equal": (1, 3),
    "breaks": (1, 3),
    "nothing but breaks": (0, 0),
    "not for a logarithm": (0, 1),
    "markup": (1, 2),
}


def test_whatever_can_be_drawn_is_drawn(alone: Page) -> None:
    errors: list[str] = []
    alone.on("pageerror", lambda error: errors.append(str(error)))
    show(alone, **CASES)
    alone.wait_for_function(
        """() => document.querySelectorAll(".sd-chart-edge").length === Object.keys(charts).length"""
    )
    chart = alone.locator("[data-name=spectra] .sd-chart-svg").bounding_box()
    assert chart is not None
    alone.mouse.move(chart["x"] + chart["width"] * 0.4, chart["y"] + 60)
    OUTPUT.mkdir(exist_ok=True)
    alone.screenshot(path=OUTPUT / "chart-cases.png")
    for name, (lines, points) in DRAWN.items():
        here = alone.locator(f"[data-name='{name}']")
        assert here.locator(".sd-chart-line").count() == lines, name
        assert here.locator("svg svg circle").count() == points, name
        drawn = here.locator("svg path, svg circle, svg line, svg text").evaluate_all(
            "(all) => all.map((one) => [...one.attributes].map((attribute) => attribute.value).join())"
        )
        assert not any("NaN" in one or "Infinity" in one for one in drawn), name
        alone.evaluate("(name) => { for (const by of [1, 1, -10]) charts[name].lines.step(by); }", name)
    assert alone.locator("[data-name=spectra] .sd-chart-band").count() == 1
    assert alone.evaluate("() => window.broken ?? null") is None
    assert alone.locator("img[src]").count() == 0
    assert "<img" in alone.locator("[data-name=markup] .sd-chart-legend").inner_text()
    assert not errors


def test_arrow_keys_step_to_every_point_as_it_is_drawn(alone: Page) -> None:
    described = odd({"name": "a", "x": [900, 500, 100], "y": [1, 2, 3]}, x={"label": "step", "reversed": True})
    show(alone, keys=described)
    alone.locator(".sd-chart-svg").focus()
    said = []
    for key in ("ArrowRight", "ArrowRight", "ArrowRight", "ArrowRight", "Home", "ArrowLeft", "End", "Escape"):
        alone.keyboard.press(key)
        said.append(alone.locator("[aria-live]").inner_text())
    first, second, third = "step 900: a 1", "step 500: a 2", "step 100: a 3"
    assert said == [first, second, third, third, first, first, third, ""]


def test_a_wide_choice_of_views_is_a_list(alone: Page) -> None:
    line = {"name": "a", "x": [0, 1], "y": [1, 2]}
    views = [{"name": ["all", f"level {level}"], "series": [line]} for level in range(7)]
    show(alone, many={"title": "t", "x": {"label": "x"}, "y": {"label": "y"}, "views": views})
    assert alone.locator(".sd-chart-buttons").count() == 0
    alone.locator("select").select_option("level 5")
    label = alone.locator(".sd-chart-svg").get_attribute("aria-label")
    assert label is not None and "all, level 5" in label


def test_lines_lie_where_their_axes_say(alone: Page) -> None:
    """Ticks with their texts are the oracle for the places of points."""
    described = odd(
        {"name": "a", "x": [0.003, 0.02, 0.4], "y": [7, 30, 44]}, x={"label": "x", "log": True}, y={"label": "y"}
    )
    show(alone, places=described)
    alone.wait_for_selector(".sd-chart-line")
    across, up = ticks(alone, "places")
    across = [(math.log(value), x) for value, x in across]
    to_x, to_y = np.polyfit(*zip(*across, strict=True), 1), np.polyfit(*zip(*up, strict=True), 1)
    for x, y in zip([0.003, 0.02, 0.4], [7, 30, 44], strict=True):
        index = [0.003, 0.02, 0.4].index(x)
        place = alone.evaluate(
            """(index) => {
                const [circle, svg] = [document.querySelectorAll("svg svg circle")[index], charts.places.svg];
                const [a, b] = [circle.getBoundingClientRect(), svg.getBoundingClientRect()];
                return [a.x + a.width / 2 - b.x, a.y + a.height / 2 - b.y];
            }""",
            index,
        )
        assert place == pytest.approx([np.polyval(to_x, math.log(x)), np.polyval(to_y, y)], abs=1)
