"""The spectrum lab in the page, in both renderings: charts read what tables say, in any unit; steps have pictures."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from playwright.sync_api import Locator, Page, expect

from ..comfyui import prompts
from ..comfyui.prompts import DECODE, LOADER, SAMPLER, SAVE, node
from ..comfyui.server import ComfyServer, Prompt
from .conftest import OUTPUT, modern_page

RADIAL, EVOLUTION = "SpectralDiffusionRadialSpectrum", "SpectralDiffusionSpectrumEvolution"
POWER = "SpectralDiffusionPowerSpectrum"
STEPS = 5
OPEN = """async ([prompt, places]) => {
    await app.loadApiJson(prompt, "lab");
    for (const widget of app.graph._nodes.flatMap((node) => node.widgets ?? [])) {
        if (widget.name.startsWith("control")) widget.value = "fixed";
    }
    app.graph._nodes.forEach((node) => { node.pos = places[node.type] ?? [-1500 + 30 * node.id, 100 + 60 * node.id]; });
    app.canvas.ds.scale = 1;
    app.canvas.ds.offset = [0, 0];
    app.graph.setDirtyCanvas(true, true);
}"""
TITLES = {
    RADIAL: re.compile("^Radial power spectrum"),
    EVOLUTION: re.compile("^Spectrum of the prediction"),
    POWER: re.compile("^Power spectrum"),
}
PLACES = {RADIAL: [100, 80], EVOLUTION: [700, 80], POWER: [1300, 80]}
SHOWN = """(count) => Object.values(app.nodeOutputs).filter((output) => output?.spectral_chart).length === count"""


@dataclass
class Lab:
    """A page with the charts of a prompt that ran."""

    page: Page
    rendering: str

    def chart(self, kind: str) -> Locator:
        """That of a node, by its title."""
        return self.page.locator(".sd-chart", has=self.page.get_by_role("application", name=TITLES[kind]))

    def output(self, kind: str) -> dict[str, Any]:
        """What the server said to the page of a node."""
        found: dict[str, Any] = self.page.evaluate(
            "(kind) => app.nodeOutputs[app.graph._nodes.find((node) => node.type === kind).id]", kind
        )
        return found

    def point(self, chart: Locator, part: float) -> None:
        """At a part of the way along the frame."""
        box = chart.locator(".sd-chart-edge").bounding_box()
        assert box is not None
        self.page.mouse.move(box["x"] + part * box["width"], box["y"] + box["height"] / 2)


def prompt(seed: int) -> Prompt:
    made = prompts.generate("none", seed=seed, steps=STEPS)
    del made[DECODE], made[SAVE]
    made["trace"] = node("SpectralDiffusionSpectrumTrace", model=[LOADER, 0], window="hann")
    made[SAMPLER]["inputs"] |= {"model": ["trace", 0], "scheduler": "normal"}
    chart = {"evolution": ["trace", 1], "samples": [SAMPLER, 0], "vae": [LOADER, 2], "pictures": STEPS}
    made["evolution"] = node(EVOLUTION, **chart)
    made["images"] = node("SpectralDiffusionExampleImages", images="emoji-64", count=10 + seed)
    made["radial"] = node(RADIAL, images=["images", 0], window="hann", fit_low=0.0, fit_high=0.375)
    made["power"] = node(POWER, images=["images", 0], window="hann", above=0.25)
    return prompts.numbered(made)


@pytest.fixture(scope="module", params=["canvas", "vue"])
def lab(comfy: ComfyServer, request: pytest.FixtureRequest) -> Iterator[Lab]:
    vue = request.param == "vue"
    with modern_page(comfy, vue) as page:
        errors: list[str] = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.set_viewport_size({"width": 1920, "height": 1100})
        page.evaluate(OPEN, [prompt(2 if vue else 1), PLACES])
        page.evaluate("() => app.queuePrompt(0, 1)")
        page.wait_for_function(SHOWN, arg=3, timeout=120_000)
        expect(page.locator(".sd-chart-line").first).to_be_visible()
        made = Lab(page, request.param)
        OUTPUT.mkdir(exist_ok=True)
        yield made
        page.screenshot(path=OUTPUT / f"lab-{request.param}.png")
        assert not errors


def read(chart: Locator) -> dict[str, float]:
    """What the legend reads, by name; of lines that are read."""
    texts: list[list[str]] = chart.locator(".sd-chart-legend button").evaluate_all(
        "(all) => all.map((one) => [one.querySelector('.sd-chart-name').textContent, "
        "one.querySelector('.sd-chart-value').textContent])"
    )
    return {name: number(value) for name, value in texts if value}


def number(text: str) -> float:
    """As the chart writes numbers: a minus of its own, and powers of ten."""
    plain = text.replace("−", "-")
    if "·10" in plain:
        lead, power = plain.split("·10")
        return float(lead) * 10.0 ** int(power.translate(str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789")))
    return float(plain)


def test_a_spectrum_reads_what_its_table_says_in_any_unit(lab: Lab) -> None:
    chart = lab.chart(RADIAL)
    rows = list(csv.DictReader(io.StringIO(lab.output(RADIAL)["table"][0])))
    for unit, factor in (("per pixel", 1.0), ("of Nyquist", 2.0), ("per image", 64.0)):
        chart.locator("select").select_option(label=unit)
        for part in (0.2, 0.6, 0.9):
            lab.point(chart, part)
            pointer = number(chart.locator(".sd-chart-pointer text").text_content() or "")
            row = min(rows, key=lambda one: abs(float(one["cycles_per_pixel"]) * factor - pointer))
            assert pointer == pytest.approx(float(row["cycles_per_pixel"]) * factor, rel=1e-3)
            found = read(chart)["mean (shaded: 95 % confidence)"]
            assert found == pytest.approx(float(row["power"]), rel=1e-3)
    chart.locator("select").select_option(label="per pixel")


def test_an_axis_becomes_linear_and_back(lab: Lab) -> None:
    chart = lab.chart(RADIAL)
    line = chart.locator(".sd-chart-line").first
    before = line.get_attribute("d")
    for name in ("y log", "x log"):
        chart.get_by_role("button", name=name).click()
    assert line.get_attribute("d") != before
    for name in ("y log", "x log"):
        chart.get_by_role("button", name=name).click()
    assert line.get_attribute("d") == before


def test_steps_are_scrubbed_with_their_pictures(lab: Lab) -> None:
    chart = lab.chart(EVOLUTION)
    picture, step = chart.locator("img"), chart.locator(".sd-chart-step")
    seen = []
    for index in range(1, STEPS + 1):
        expect(step).to_have_text(f"step {index} of {STEPS}")
        expect(picture).to_be_visible()
        assert picture.evaluate("async (image) => { await image.decode(); return image.naturalWidth; }") > 0
        seen.append((picture.get_attribute("src"), chart.locator(".sd-chart-line").first.get_attribute("d")))
        if index < STEPS:
            chart.get_by_role("button", name="Next").click()
    assert len({source for source, _ in seen}) == STEPS
    assert len({line for _, line in seen}) > 2
    chart.get_by_role("button", name="all steps").click()
    expect(chart.locator("canvas")).to_be_visible()
    lab.page.screenshot(path=OUTPUT / f"lab-all-steps-{lab.rendering}.png")
    chart.get_by_role("button", name="latent").click()


def test_a_map_reads_its_cells(lab: Lab) -> None:
    chart = lab.chart(POWER)
    values = lab.output(POWER)["spectral_chart"][0]["views"][0]["map"]["values"]
    box = chart.locator(".sd-chart-edge").bounding_box()
    assert box is not None and len(values) == 64
    for row, column in ((10, 20), (32, 32), (60, 3)):
        x = box["x"] + (column + 0.5) / 64 * box["width"]
        lab.page.mouse.move(x, box["y"] + (row + 0.5) / 64 * box["height"])
        said = chart.locator(".sd-chart-status").inner_text()
        across, up, value = (number(one) for one in re.findall(r"[−\d.]+(?:·10[⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+)?(?=[,:]|$)", said))
        cell = (32 - up * 64, 32 + across * 64)
        assert cell == pytest.approx((row, column), abs=1), said
        assert value == pytest.approx(values[round(cell[0])][round(cell[1])], abs=2e-3), said


def test_charts_come_back_with_a_saved_workflow(lab: Lab) -> None:
    """As a file that is opened in a page which knows nothing of the run."""
    page = lab.page
    drawn = [lab.chart(kind).locator(".sd-chart-line").count() for kind in (RADIAL, EVOLUTION)]
    saved = page.evaluate("() => app.graph.serialize()")
    page.evaluate("() => app.extensionManager.command.execute('Comfy.NewBlankWorkflow')")
    expect(page.locator(".sd-chart")).to_have_count(0)
    page.evaluate("(saved) => { app.nodeOutputs = {}; return app.loadGraphData(saved); }", saved)
    page.evaluate("() => { app.canvas.ds.scale = 1; app.canvas.ds.offset = [0, 0]; app.graph.setDirtyCanvas(true); }")
    expect(page.locator(".sd-chart")).to_have_count(3)
    expect(lab.chart(RADIAL).locator(".sd-chart-line").first).to_be_visible()
    stroke = lab.chart(EVOLUTION).locator(".sd-chart-line.sd-chart-dashed").first.get_attribute("stroke")
    assert stroke is not None and min(map(int, re.findall(r"\d+", stroke))) > 100, "black is pale on a dark page"
    assert [lab.chart(kind).locator(".sd-chart-line").count() for kind in (RADIAL, EVOLUTION)] == drawn
    assert lab.chart(POWER).locator("canvas").is_visible()
