"""What a person does with the chart's lines: units, kinds of axes, steps, pinned results; and what is kept of it."""

from __future__ import annotations

import copy
import csv
import io
import json
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Page, expect

from .alone import (
    FACTORS,
    FREQUENCIES,
    HOST,
    LIGHT,
    UNITS,
    X,
    Y,
    box,
    call,
    chart_page,
    contrast,
    number,
    odd,
    show,
    steps,
    ticks,
)
from .conftest import OUTPUT


@pytest.fixture(scope="module")
def browser() -> Iterator[Page]:
    with chart_page() as page:
        yield page


@pytest.fixture
def alone(browser: Page) -> Iterator[Page]:
    """The page without any chart; nothing may go wrong on it."""
    errors: list[str] = []
    note = lambda error: errors.append(str(error))  # noqa: E731
    browser.goto(HOST)
    browser.on("pageerror", note)
    yield browser
    browser.remove_listener("pageerror", note)
    assert not errors


def radial(alpha: float = 2.0, colour: int | str = 0, **more: Any) -> dict[str, Any]:
    """A spectrum at four frequencies, with a band and a mark."""
    y = [frequency**-alpha for frequency in FREQUENCIES]
    line = {"name": "teacher", "x": FREQUENCIES, "y": y, "low": [v / 2 for v in y], "high": [v * 2 for v in y]}
    view = {"name": "", "series": [{**line, "colour": colour}], "marks": [{"x": 0.25, "label": "cut-off"}]}
    return {"title": "radial", "x": X, "y": Y, "views": [view], **more}


def places(page: Page, name: str) -> list[tuple[float, float]]:
    """Where the chart's points are drawn, in the pixels of its drawing."""
    found: list[tuple[float, float]] = page.evaluate(
        """(name) => {
            const { svg } = charts[name];
            const corner = svg.getBoundingClientRect();
            return [...svg.querySelectorAll("svg circle")].map((one) => {
                const box = one.getBoundingClientRect();
                return [box.x + box.width / 2 - corner.x, box.y + box.height / 2 - corner.y];
            });
        }""",
        name,
    )
    return found


def lines(page: Page, name: str) -> list[dict[str, str]]:
    """What is drawn of lines."""
    found: list[dict[str, str]] = page.locator(f"[data-name='{name}'] .sd-chart-line").evaluate_all(
        "(all) => all.map((one) => Object.fromEntries(one.getAttributeNames().map((a) => [a, one.getAttribute(a)])))"
    )
    return found


def values(page: Page, name: str) -> dict[str, str]:
    """What the legend says, by its lines."""
    found: list[list[str]] = page.locator(f"[data-name='{name}'] .sd-chart-legend button").evaluate_all(
        "(all) => all.map((one) => [...one.querySelectorAll('span')].slice(1).map((span) => span.textContent))"
    )
    return {label: value for label, value in found}


@pytest.mark.parametrize("log", [True, False], ids=["logarithmic", "linear"])
@pytest.mark.parametrize("unit", FACTORS)
def test_points_lie_at_the_ticks_of_the_chosen_unit_and_kind_of_axis(unit: str, log: bool, alone: Page) -> None:
    show(alone, lab=radial())
    alone.get_by_label("Units").select_option(unit)
    for name in ("x log", "y log"):
        button = alone.get_by_role("button", name=name)
        if not log:
            button.click()
        expect(button).to_have_attribute("aria-pressed", str(log).lower())
    of = math.log if log else float
    across, up = ticks(alone, "lab")
    to_x, to_y = (np.polyfit([of(value) for value, _ in some], [at for _, at in some], 1) for some in (across, up))
    expected = [(frequency * FACTORS[unit], frequency**-2.0) for frequency in FREQUENCIES]
    for (x, y), at in zip(expected, places(alone, "lab"), strict=True):
        assert at == pytest.approx((np.polyval(to_x, of(x)), np.polyval(to_y, of(y))), abs=1)
    mark = alone.locator(".sd-chart-mark").get_attribute("x1")
    assert float(mark or 0) == pytest.approx(np.polyval(to_x, of(0.25 * FACTORS[unit])), abs=1)
    assert log or (across[0][0] == 0 and min(value for value, _ in up) == 0)
    expect(alone.locator(".sd-chart-label").first).to_have_text(f"frequency ({unit})")


def test_hover_status_and_table_are_in_the_chosen_unit(alone: Page) -> None:
    show(alone, lab=radial())
    alone.get_by_label("Units").select_option("of Nyquist")
    alone.locator(".sd-chart-svg").focus()
    for _ in range(3):
        alone.keyboard.press("ArrowRight")
    expect(alone.locator(".sd-chart-status")).to_have_text("frequency (of Nyquist) 0.5000: teacher 16")
    corner = box(alone, "lab")
    alone.mouse.move(corner["x"] + places(alone, "lab")[1][0], corner["y"] + 60)
    expect(alone.locator(".sd-chart-pointer text")).to_have_text("0.1250")
    assert values(alone, "lab") == {"teacher": "256"}
    rows = list(csv.reader(io.StringIO(alone.evaluate("() => charts.lab.lines.csv()"))))
    assert rows[0] == ["frequency (of Nyquist)", "teacher", "teacher low", "teacher high"]
    assert [[float(value) for value in row[:2]] for row in rows[1:]] == [[2 * f, f**-2] for f in FREQUENCIES]
    assert alone.evaluate("() => chosen.lab.units") == ["of Nyquist"]
    show(alone, lab=radial(3.0))
    expect(alone.get_by_label("Units")).to_have_value("of Nyquist")


def test_axes_of_one_kind_and_unit_have_no_switches(alone: Page) -> None:
    show(alone, plain=odd({"name": "a", "x": [0, 1], "y": [1, 2]}, x={"label": "x", "units": UNITS[1:2]}))
    names = alone.locator(".sd-chart-bar").get_by_role("button").all_inner_texts()
    assert names == ["Pin", "Copy CSV"] and alone.locator("select").count() == 0
    assert max(value for value, _ in ticks(alone, "plain")[0]) == 2


def test_a_series_may_have_any_colour_that_can_be_read(alone: Page) -> None:
    given = {"a": "#0072B2", "b": 0, "c": "#aa3377", "d": "url(#x)", "e": "#000000"}
    show(alone, lines=odd(*({"name": name, "x": [0, 1], "y": [1, 2], "colour": one} for name, one in given.items())))
    drawn = [one["stroke"] for one in lines(alone, "lines")]
    assert drawn[0] == drawn[1] == "rgb(0, 114, 178)"
    assert drawn[2] == call(alone, "readable", "#aa3377", [34, 34, 34], module="colours")
    assert drawn[3] == call(alone, "readable", "#CC79A7", [34, 34, 34], module="colours")
    assert min(int(part) for part in drawn[4][4:-1].split(",")) > 150


def test_the_slider_steps_through_the_views_on_axes_that_stay(alone: Page) -> None:
    show(alone, lab=steps())
    slider = alone.get_by_role("slider", name="step")
    expect(alone.locator(".sd-chart-pickers button")).to_have_text(["luma", "colour"])
    before, drawn = ticks(alone, "lab"), {json.dumps(lines(alone, "lab"))}
    expect(alone.get_by_role("button", name="Previous")).to_be_disabled()
    for index in range(1, 5):
        alone.get_by_role("button", name="Next").click()
        expect(slider).to_have_attribute("aria-valuetext", str(index))
        assert ticks(alone, "lab") == before
        drawn.add(json.dumps(lines(alone, "lab")))
    assert len(drawn) == 5
    expect(alone.get_by_role("button", name="Next")).to_be_disabled()
    slider.press("ArrowLeft")
    alone.get_by_role("button", name="colour").click()
    expect(alone.locator(".sd-chart-step")).to_have_text("step 3")
    assert alone.evaluate("() => chosen.lab.view") == "colour, 3"
    slider.evaluate("(one) => { one.value = 1; one.dispatchEvent(new Event('input', { bubbles: true })); }")
    assert "colour, 1" in (alone.locator(".sd-chart-svg").get_attribute("aria-label") or "")
    assert alone.evaluate("() => chosen.lab.view") == "colour, 3", "it is kept when the slider is let go"
    slider.evaluate("(one) => one.dispatchEvent(new Event('change', { bubbles: true }))")
    assert alone.evaluate("() => chosen.lab.view") == "colour, 1"


def test_playing_takes_a_quarter_second_a_step_and_stops_at_the_end(alone: Page) -> None:
    show(alone, lab=steps())
    alone.wait_for_timeout(400)
    slider = alone.get_by_role("slider", name="step")
    assert slider.input_value() == "0", "nothing plays unasked"
    alone.evaluate(
        """() => {
            window.seen = [];
            const { update } = charts.lab.scrubber;
            charts.lab.scrubber.update = function (label, names, at) { seen.push([performance.now(), at]);
                update.call(this, label, names, at); };
        }"""
    )
    alone.get_by_role("button", name="Play").click()
    expect(alone.get_by_role("button", name="Play")).to_be_visible(timeout=3000)
    seen = alone.evaluate("() => seen")
    assert [at for _, at in seen] == ["1", "2", "3", "4"]
    assert np.diff([time for time, _ in seen]) == pytest.approx([250] * 3, abs=120)
    assert alone.evaluate("() => chosen.lab.view") == "luma, 4"
    alone.get_by_role("button", name="Play").click()
    expect(slider).to_have_value("1")
    alone.get_by_role("button", name="Pause").click()
    alone.wait_for_timeout(400)
    expect(slider).to_have_value("1")


def test_what_is_pinned_lies_under_what_comes_later(alone: Page) -> None:
    show(alone, lab=radial(2.0, "#009E73"))
    (before,) = lines(alone, "lab")
    alone.get_by_role("button", name="Pin").click()
    assert len(lines(alone, "lab")) == 1, "nothing is compared with itself"
    expect(alone.locator(".sd-chart-notes")).to_contain_text("Pinned as A")
    show(alone, lab=radial(3.0, 1))
    live, pinned = lines(alone, "lab")
    assert pinned["stroke"] == before["stroke"] != live["stroke"]
    assert "sd-chart-pinned" in pinned["class"] and "sd-chart-pinned" not in live["class"]
    style = """(all) => all.map((one) => getComputedStyle(one)).map((style) =>
        [style.strokeDasharray.split(",").length, parseFloat(style.strokeWidth)])"""
    (_, thick), (dashes, thin) = alone.locator(".sd-chart-line").evaluate_all(style)
    assert dashes == 4 and thin < thick
    alone.locator(".sd-chart-svg").focus()
    alone.keyboard.press("End")
    assert values(alone, "lab") == {"teacher": "8", "A: teacher": "4"}
    OUTPUT.mkdir(exist_ok=True)
    alone.screenshot(path=OUTPUT / "chart-pinned.png", clip=box(alone, "lab", ".sd-chart-body"))
    alone.get_by_role("button", name="Unpin").click()
    assert len(lines(alone, "lab")) == 1 and "pinned" not in alone.evaluate("() => chosen.lab")


def test_a_pin_comes_back_with_the_workflow_in_any_unit(alone: Page) -> None:
    show(alone, lab=radial(1 / 3))
    alone.get_by_role("button", name="Pin").click()
    choice = json.loads(json.dumps(alone.evaluate("() => chosen.lab")))
    alone.goto(HOST)
    show(alone, {"lab": choice}, lab=radial(3.0))
    alone.get_by_label("Units").select_option("cycles/image")
    alone.locator(".sd-chart-svg").focus()
    said = []
    for _ in FREQUENCIES:
        alone.keyboard.press("ArrowRight")
        said.append(values(alone, "lab")["A: teacher"])
    assert [number(text) for text in said] == [pytest.approx(f ** (-1 / 3), rel=1e-3) for f in FREQUENCIES]


def test_a_pin_that_is_too_large_to_be_kept_stays_in_the_page(alone: Page) -> None:
    x = np.linspace(0.01, 0.5, 5000)
    show(alone, lab=odd({"name": "a", "x": x.tolist(), "y": (x**0.5).tolist()}))
    alone.get_by_role("button", name="Pin").click()
    assert "pinned" not in alone.evaluate("() => chosen.lab")
    show(alone, lab=odd({"name": "a", "x": x.tolist(), "y": (x**0.6).tolist()}))
    assert len(lines(alone, "lab")) == 2


def test_what_is_kept_is_drawn_again(alone: Page) -> None:
    rng = np.random.default_rng(0)
    described = steps()
    described["notes"] = ["alpha = 2.10 ± 0.03"]
    for view in described["views"]:
        (line,) = view["series"]
        line["y"] = (np.array(line["y"]) * rng.uniform(0.9, 1.1, 4)).tolist()
    kept = json.loads(json.dumps(call(alone, "keepable", described, module="described")))
    digits = [len(f"{value:.10g}".replace(".", "").strip("0")) for value in kept["views"][3]["series"][0]["y"]]
    assert max(digits) <= 5
    show(alone, first=described, second=kept)
    first, second = places(alone, "first"), places(alone, "second")
    assert len(first) == 4 and np.abs(np.array(first) - np.array(second)).max() < 0.1
    assert call(alone, "kept", kept, module="described") == kept


@pytest.mark.parametrize("count", [600, 6000])
def test_only_small_descriptions_are_kept(count: int, alone: Page) -> None:
    y = np.random.default_rng(0).uniform(1, 10, count).tolist()
    kept = call(alone, "keepable", odd({"name": "a", "x": list(range(count)), "y": y}), module="described")
    assert (kept is None) == (count == 6000)
    assert kept is None or len(json.dumps(kept, separators=(",", ":"))) <= 48_000


def test_no_description_or_choice_breaks_the_page(alone: Page) -> None:
    """Every part of a full description, and of a choice, in turn replaced by what it must not be."""
    described = copy.deepcopy(steps(2))
    described["notes"] = ["note"]
    described["views"] = described["views"][:2]
    ends = {"within": [0, 9], "low": 1, "high": 9}
    described["views"][0] |= {"marks": [{"x": 0.1, "label": "m"}], "x": X, "y": {**Y, **ends}}
    axis = {"label": "a", "low": 0, "high": 2, "units": UNITS[1:]}
    described["views"][1] |= {
        "map": {"values": [[1, 2], [3, None]], "label": "v", "low": 0, "high": 3, "x": axis, "y": axis, "square": True},
        "picture": {"filename": "a.png", "subfolder": "", "type": "temp", "caption": "c"},
    }
    pinned = {"title": "A", "views": described["views"][1:]}
    choice = {"view": "luma, 0", "hidden": ["a"], "units": ["of Nyquist"], "logs": {"x": False}, "pinned": pinned}
    tried = alone.evaluate(
        """async ([described, choice]) => {
            const { Chart } = await import("/chart.js");
            const { kept } = await import("/chart_described.js");
            const chart = window.chart = new Chart();
            document.body.append(chart.element);
            const odd = [null, 0, -1e17, 1e308, NaN, true, "<img src=x onerror='window.broken = 1'>", [], {}, [null]];
            const parts = (value) => Object.entries(value).slice(0, Array.isArray(value) ? 2 : undefined);
            const paths = (value, at) => typeof value === "object" && value !== null
                ? [at, ...parts(value).flatMap(([key, one]) => paths(one, [...at, key]))] : [at];
            const replaced = (value, [key, ...rest], by) => {
                if (key === undefined) return by;
                const copy = structuredClone(value);
                copy[key] = replaced(copy[key], rest, by);
                return copy;
            };
            let tried = 0;
            const views = ["luma, 0", "luma, 1"];
            for (const path of paths(described, [])) for (const by of odd) {
                const one = replaced(described, path, by);
                chart.show(one, { view: views[Number(path[1] === "1")] });
                kept(one);
                tried += 1;
            }
            for (const path of paths(choice, [])) for (const by of odd) {
                const one = replaced(choice, path, by);
                chart.show(described, path[0] === "view" ? one : { ...one, view: views[1] });
                tried += 1;
            }
            chart.show(described);
            return tried;
        }""",
        [described, choice],
    )
    assert tried > 500
    assert alone.evaluate("() => window.broken ?? null") is None
    expect(alone.locator(".sd-chart-line").first).to_be_visible()


@pytest.mark.parametrize("described", [None, 5, "x", [], {}, {"views": []}, {"views": 7}, {"views": [None]}])
def test_what_is_no_description_shows_the_hint(described: Any, alone: Page) -> None:
    show(alone, lab=described)
    expect(alone.locator(".sd-chart-hint")).to_be_visible()


def test_numbers_that_are_all_but_equal_have_few_ticks(alone: Page) -> None:
    for low, high in ((1.0, math.nextafter(1, 2)), (1e17, 1e17 + 32), (-1e-300, 1e-300), (5e-324, 1e-323)):
        assert len(call(alone, "linearTicks", low, high, 5)) <= 7


def test_notes_can_be_selected_and_are_text(alone: Page) -> None:
    show(alone, lab=radial(notes=["alpha = 2.10 ± 0.03", "<b>not bold</b>"]))
    notes = alone.locator(".sd-chart-notes")
    expect(notes.locator("div")).to_have_text(["alpha = 2.10 ± 0.03", "<b>not bold</b>"])
    assert box(alone, "lab", ".sd-chart-notes")["y"] < box(alone, "lab")["y"]
    notes.locator("div").first.click(click_count=3)
    assert "alpha = 2.10 ± 0.03" in alone.evaluate("() => getSelection().toString()")


def test_a_picture_stands_beside_the_plot_or_above_it_and_may_be_gone(alone: Page) -> None:
    described = steps()
    for index, view in enumerate(described["views"]):
        view["picture"] = {"filename": f"{index}.png", "subfolder": "", "type": "temp", "caption": f"at {index}"}
    pixel = io.BytesIO()
    Image.new("RGB", (32, 32), "teal").save(pixel, "PNG")
    alone.route("**/pictures/0.png", lambda route: route.fulfill(body=pixel.getvalue(), content_type="image/png"))
    show(alone, lab=described)
    figure = alone.locator(".sd-chart-figure")
    expect(figure).to_be_visible()
    expect(figure.locator("figcaption")).to_have_text("at 0")
    picture, plot = box(alone, "lab", ".sd-chart-figure"), box(alone, "lab")
    assert picture["x"] + picture["width"] <= plot["x"]
    alone.evaluate("() => { charts.lab.element.style.width = '380px'; }")
    expect(alone.locator(".sd-chart-narrow")).to_have_count(1)
    picture, plot = box(alone, "lab", ".sd-chart-figure"), box(alone, "lab")
    assert picture["y"] + picture["height"] <= plot["y"]
    alone.get_by_role("button", name="Next").click()
    expect(figure).to_be_hidden()
    alone.unroute("**/pictures/0.png")


def test_eight_lines_of_long_names_leave_the_plot_alone(alone: Page) -> None:
    name = "photographs of landscapes, the {}th set of them all"
    series = [{"name": name.format(i), "x": FREQUENCIES, "y": [f**-i for f in FREQUENCIES]} for i in range(8)]
    show(alone, lab={"title": "t", "x": X, "y": Y, "views": [{"name": "", "series": series}]})
    names = alone.locator(".sd-chart-legend .sd-chart-name")
    assert names.evaluate_all("(all) => all.map((one) => one.title)") == [one["name"] for one in series]
    assert all(names.evaluate_all("(all) => all.map((one) => one.scrollWidth > one.clientWidth)"))
    plot, legend = box(alone, "lab"), box(alone, "lab", ".sd-chart-legend")
    assert plot["y"] + plot["height"] <= legend["y"] and plot["height"] > 80


@pytest.mark.parametrize("theme", ["dark", "light"])
def test_the_lab_on_a_screenshot(theme: str, alone: Page) -> None:
    if theme == "light":
        alone.add_style_tag(content=LIGHT)
    noted = radial(2.1, notes=["alpha = 2.10 ± 0.03", "64 images, 64 x 64 pixels"])
    show(alone, radial=noted, evolution=steps())
    alone.locator("[data-name=radial]").get_by_role("button", name="Pin").click()
    show(alone, radial={**radial(2.6), "notes": noted["notes"]})
    seen = """(all) => all.map((one) => [one, one.closest(".sd-chart")].map((element) => getComputedStyle(element)))
        .map(([line, chart]) => [line.stroke, chart.backgroundColor])
        .map((both) => both.map((text) => text.match(/[0-9.]+/g).slice(0, 3).map(Number)))"""
    for line, paper in alone.locator(".sd-chart-line").evaluate_all(seen):
        assert contrast(line, paper) >= 3
    OUTPUT.mkdir(exist_ok=True)
    alone.screenshot(path=OUTPUT / f"chart-lab-{theme}.png")
