"""The chart of nodes/web on an empty page: its numbers against oracles, and descriptions that are hard to draw."""

from __future__ import annotations

import ast
import csv
import io
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import Page, Route

from ..comfyui.distribution import REPOSITORY
from .conftest import OUTPUT, empty_page

WEB = REPOSITORY / "nodes" / "web"
HOST = "http://chart.test/"
KINDS = {".js": "text/javascript", ".css": "text/css"}
PAGE = """<!doctype html><meta charset="utf-8"><link rel="stylesheet" href="/chart.css">
    <body style="display: grid; grid-template-columns: repeat(3, 1fr); grid-auto-rows: 300px; gap: 8px">
"""
#: Charts in a grid on the page, each named after its description.
SHOW = """async (cases) => {
    const { Chart } = await import("/chart.js");
    window.charts = {};
    for (const [name, described] of Object.entries(cases)) {
        const chart = window.charts[name] = new Chart();
        chart.element.dataset.name = name;
        document.body.append(chart.element);
        chart.show(described);
    }
}"""


def serve(route: Route) -> None:
    """The files of nodes/web, and a page around them."""
    path = WEB / route.request.url.removeprefix(HOST)
    if path.suffix in KINDS:
        route.fulfill(body=path.read_text(encoding="utf-8"), content_type=KINDS[path.suffix])
    else:
        route.fulfill(body=PAGE, content_type="text/html")


@pytest.fixture(scope="module")
def browser() -> Iterator[Page]:
    with empty_page() as page:
        page.route("**/*", serve)
        page.goto(HOST)
        yield page


@pytest.fixture
def alone(browser: Page) -> Page:
    """The page without any chart."""
    browser.reload()
    return browser


def call(page: Page, name: str, *given: Any, module: str = "numbers") -> Any:
    """The result of one of the functions of chart_numbers.js, or of another of the modules."""
    script = """async ([module, name, given]) => (await import(`/chart_${module}.js`))[name](...given)"""
    return page.evaluate(script, [module, name, list(given)])


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


def test_the_palette_is_that_of_the_static_charts(browser: Page) -> None:
    tree = ast.parse((REPOSITORY / "nodes" / "plot.py").read_text(encoding="utf-8"))
    (palette,) = (
        ast.literal_eval(entry.value)
        for entry in tree.body
        if isinstance(entry, ast.Assign)
        and isinstance(entry.targets[0], ast.Name)
        and entry.targets[0].id == "OKABE_ITO"
    )
    used = browser.evaluate("""async () => (await import("/chart_colours.js")).OKABE_ITO""")
    assert tuple(used) == palette


@pytest.mark.parametrize("background", [[0, 0, 0], [23, 23, 24], [53, 53, 53], [7, 54, 66], [201, 201, 201], [255] * 3])
def test_every_line_can_be_told_from_what_is_behind_it_and_from_the_others(
    browser: Page, background: list[int]
) -> None:
    palette = browser.evaluate("""async () => (await import("/chart_colours.js")).OKABE_ITO""")
    colours = [call(browser, "readable", colour, background, module="colours") for colour in palette]
    assert len(set(colours)) == len(palette)
    for colour in colours:
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


def odd(*series: dict[str, Any], **axes: dict[str, Any]) -> dict[str, Any]:
    """A description of one view."""
    return {"title": "odd", "x": {"label": "x"}, "y": {"label": "y"}, "views": [{"name": "", "series": series}], **axes}


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
    alone.evaluate(SHOW, CASES)
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
    alone.evaluate(SHOW, {"keys": described})
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
    alone.evaluate(SHOW, {"many": {"title": "t", "x": {"label": "x"}, "y": {"label": "y"}, "views": views}})
    assert alone.locator(".sd-chart-buttons").count() == 0
    alone.locator("select").select_option("level 5")
    label = alone.locator(".sd-chart-svg").get_attribute("aria-label")
    assert label is not None and "all, level 5" in label


def test_lines_lie_where_their_axes_say(alone: Page) -> None:
    """Ticks with their texts are the oracle for the places of points."""
    described = odd(
        {"name": "a", "x": [0.003, 0.02, 0.4], "y": [7, 30, 44]}, x={"label": "x", "log": True}, y={"label": "y"}
    )
    alone.evaluate(SHOW, {"places": described})
    alone.wait_for_selector(".sd-chart-line")
    texts = alone.locator(".sd-chart-axes text:not(.sd-chart-label)").evaluate_all(
        "(all) => all.map((t) => [t.getAttribute('text-anchor'), Number(t.textContent), Number(t.getAttribute('x')), "
        "Number(t.getAttribute('y'))])"
    )
    across = [(math.log(value), x) for anchor, value, x, _ in texts if anchor == "middle"]
    up = [(value, y - 4) for anchor, value, _, y in texts if anchor == "end"]
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


def contrast(one: list[int], other: list[int]) -> float:
    """WCAG 2.1's contrast ratio."""

    def luminance(rgb: list[int]) -> float:
        linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in (part / 255 for part in rgb)]
        return float(np.dot([0.2126, 0.7152, 0.0722], linear))

    dark, light = sorted([luminance(one), luminance(other)])
    return (light + 0.05) / (dark + 0.05)
