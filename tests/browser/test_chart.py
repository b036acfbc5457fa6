"""The interactive chart in the page: what it reads is what the node's table says, and it comes back when it should."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from playwright.sync_api import FloatRect, Page, expect

from ..comfyui import distribution, prompts
from ..comfyui.prompts import LATENT, LOADER, SAMPLER, node
from ..comfyui.server import ComfyServer, Prompt
from .alone import steps
from .conftest import OUTPUT, browser_page, modern_page

BANDS = ("LL", "LH", "HL", "HH")
PLOT = "SpectralDiffusionGateTracePlot"
LINES = ".sd-chart-line"
#: Put the nodes of a prompt onto the canvas, around the chart, with the seed kept.
OPEN = """async ([prompt, kind]) => {
    await app.loadApiJson(prompt, "chart");
    for (const widget of app.graph._nodes.flatMap((node) => node.widgets ?? [])) {
        if (widget.name.startsWith("control")) widget.value = "fixed";
    }
    const plot = app.graph._nodes.find((node) => node.type === kind);
    for (const node of app.graph._nodes) node.pos = [node === plot ? 700 : 100 + 20 * node.id, 100 + 70 * node.id];
    plot.pos = [600, 100];
    app.canvas.ds.scale = 1;
    app.canvas.ds.offset = [100, 40];
    app.graph.setDirtyCanvas(true, true);
}"""


#: Let the node show a chart as if it had run.
SEND = """([kind, described]) => {
    app.graph._nodes.find((node) => node.type === kind).onExecuted({ spectral_chart: [described] });
}"""
POSITIONS = "() => app.graph._nodes.map((node) => [...node.pos])"


@dataclass
class Shown:
    """A chart in the page, and what the node's table says."""

    page: Page
    rows: list[dict[str, str]]
    rendering: str
    errors: list[str]

    def of(self, direction: str, level: str) -> list[dict[str, str]]:
        return [row for row in self.rows if (row["direction"], row["level"]) == (direction, level)]

    def screenshot(self, name: str) -> None:
        OUTPUT.mkdir(exist_ok=True)
        self.page.screenshot(path=OUTPUT / f"chart-{name}-{self.rendering}.png")


@pytest.fixture(scope="module", params=["canvas", "vue"])
def shown(comfy: ComfyServer, request: pytest.FixtureRequest) -> Iterator[Shown]:
    """In each rendering of the page, run once for all tests."""
    vue = request.param == "vue"
    with modern_page(comfy, vue) as page:
        errors: list[str] = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.context.grant_permissions(["clipboard-read", "clipboard-write"])
        # The server of 2024 tells a new page nothing about nodes that it need not run again.
        yield Shown(page, run(page, seed=2 if vue else 1), request.param, errors)
        assert not errors


def prompt(seed: int) -> Prompt:
    """The default student, eight steps, its gates recorded and drawn; nodes are numbered, as the page wants it."""
    made = prompts.generate("emoji64-student", seed=seed, steps=8)
    del made["decode"], made["save"]
    made["positive"] = node("CLIPTextEncode", clip=[LOADER, 1], text="red apple")
    made["trace"] = node("SpectralDiffusionGateTrace", model=[LOADER, 0])
    made[SAMPLER]["inputs"]["model"] = ["trace", 0]
    made["plot"] = node(PLOT, gates=["trace", 1], samples=[SAMPLER, 0], levels="every level")
    made["table"] = node("ProbeText", text=["plot", 1])
    assert LATENT in made
    return prompts.numbered(made)


def run(page: Page, seed: int = 1) -> list[dict[str, str]]:
    """Queue the prompt in the page and wait for its chart; the rows of the node's table."""
    page.evaluate(OPEN, [prompt(seed), PLOT])
    expect(page.locator(".sd-chart-hint")).to_be_visible()
    page.evaluate("() => app.queuePrompt(0, 1)")
    expect(page.locator(LINES)).to_have_count(len(BANDS), timeout=120_000)
    page.wait_for_function("() => Object.values(app.nodeOutputs).some((output) => output?.text)")
    text = page.evaluate("() => Object.values(app.nodeOutputs).find((output) => output?.text).text[0]")
    return list(csv.DictReader(io.StringIO(text)))


def pick(page: Page, *names: str) -> None:
    for name in names:
        page.locator(".sd-chart-pickers").get_by_role("button", name=name, exact=True).click()


def hover(page: Page, timestep: float) -> None:
    """Point between the axis' ends, 1000 and 0, at a time step."""
    edge = box(page, ".sd-chart-edge")
    page.mouse.move(edge["x"] + edge["width"] * (1 - timestep / 1000), edge["y"] + edge["height"] / 3)


def values(page: Page) -> dict[str, str]:
    """What the legend reads beside each name."""
    found: list[list[str]] = page.locator(".sd-chart-legend button").evaluate_all(
        "(all) => all.map((one) => [...one.querySelectorAll('span')].slice(1).map((span) => span.textContent))"
    )
    return {name: value for name, value in found}


def test_the_page_of_2024_shows_the_chart(tmp_path: Path) -> None:
    prepared = distribution.prepare(tmp_path)
    if prepared.modern:
        pytest.skip("this ComfyUI has another page")
    errors: list[str] = []
    with ComfyServer(prepared, tmp_path / "server.log") as server, browser_page(server) as page:
        page.on("pageerror", lambda error: errors.append(str(error)))
        rows = run(page)
        hover(page, 501)
        (row,) = (
            row for row in rows if (row["timestep"], row["direction"], row["level"]) == ("501", "down", "average")
        )
        OUTPUT.mkdir(exist_ok=True)
        page.screenshot(path=OUTPUT / "chart-2024.png")
        assert float(values(page)["LL"]) == pytest.approx(float(row["LL"]), rel=1e-3)
        drawn = lines(page)
        reload(page)
        expect(page.locator(LINES)).to_have_count(len(BANDS))
        assert len(lines(page)) == len(drawn)
        page.evaluate(SEND, [PLOT, steps(9)])
        page.get_by_role("button", name="Next").click()
        expect(page.locator(".sd-chart-step")).to_have_text("step 1")
        page.screenshot(path=OUTPUT / "chart-2024-scrubber.png")
        assert not errors


def test_pointing_reads_the_numbers_of_the_table(shown: Shown) -> None:
    page = shown.page
    shown.screenshot("fresh")
    for direction, level in (("down", "average"), ("up", "average"), ("up", "1"), ("down", "0")):
        pick(page, direction.capitalize(), level if level == "average" else f"level {level}")
        assert len(shown.of(direction, level)) == 8
        for row in shown.of(direction, level)[::3]:
            hover(page, float(row["timestep"]) + 20)
            expect(page.locator(".sd-chart-pointer circle")).to_have_count(len(BANDS))
            expect(page.locator(".sd-chart-pointer text")).to_have_text(row["timestep"])
            read = {band: float(value) for band, value in values(page).items()}
            assert read == {band: pytest.approx(float(row[band]), rel=1e-3) for band in BANDS}
    shown.screenshot("read")
    page.mouse.move(5, 5)
    assert set(values(page).values()) == {""}


def test_the_legend_hides_lines_and_keys_step(shown: Shown) -> None:
    page = shown.page
    pick(page, "Down", "average")
    hidden = page.locator(".sd-chart-legend").get_by_role("button", name="HH")
    hidden.click()
    expect(page.locator(LINES)).to_have_count(3)
    before = page.evaluate("() => app.graph._nodes.map((node) => [...node.pos])")
    page.locator(".sd-chart-svg").focus()
    page.keyboard.press("End")
    page.keyboard.press("ArrowLeft")
    row = shown.of("down", "average")[-2]
    expect(page.locator(".sd-chart-status")).to_contain_text(f"picture {row['timestep']}: LL {float(row['LL']):.4g}")
    expect(page.locator(".sd-chart-status")).not_to_contain_text("HH")
    shown.screenshot("keys")
    assert page.evaluate("() => app.graph._nodes.map((node) => [...node.pos])") == before
    hidden.click()
    expect(page.locator(LINES)).to_have_count(len(BANDS))


def test_the_numbers_are_copied_as_csv(shown: Shown) -> None:
    page = shown.page
    pick(page, "Up", "level 2")
    page.locator(".sd-chart-copy").click()
    expect(page.locator(".sd-chart-copy")).to_have_text("Copied")
    copied = list(csv.reader(io.StringIO(page.evaluate("() => navigator.clipboard.readText()"))))
    assert copied[0][1:] == list(BANDS)
    expected = [[float(row[name]) for name in ("timestep", *BANDS)] for row in reversed(shown.of("up", "2"))]
    assert [[float(value) for value in row] for row in copied[1:]] == [pytest.approx(row, rel=1e-5) for row in expected]


def test_the_chart_grows_with_its_node_and_follows_the_theme(shown: Shown) -> None:
    page = shown.page
    before, dark = box(page), background(page)
    page.evaluate(
        """([kind, by]) => {
            const plot = app.graph._nodes.find((node) => node.type === kind);
            plot.setSize([plot.size[0] + by, plot.size[1] + by]);
            app.graph.setDirtyCanvas(true, true);
            return app.extensionManager.setting.set("Comfy.ColorPalette", "light");
        }""",
        [PLOT, 200],
    )
    width = "(width) => document.querySelector('.sd-chart-svg').getBoundingClientRect().width > width"
    page.wait_for_function(width, arg=before["width"] + 190)
    after = box(page)
    assert after["width"] - before["width"] == pytest.approx(200, abs=2)
    assert after["height"] - before["height"] == pytest.approx(200, abs=2)
    assert box(page, ".sd-chart-edge")["width"] > 0.85 * after["width"]
    assert background(page) != dark
    hover(page, 400)
    shown.screenshot("light")
    page.evaluate("() => app.extensionManager.setting.set('Comfy.ColorPalette', 'dark')")


def test_the_chart_comes_back_as_it_was_left(shown: Shown) -> None:
    """After another tab, after a queue in which nothing had to run, and where the rendering changes."""
    page = shown.page
    pick(page, "Up", "level 0")
    page.locator(".sd-chart-legend").get_by_role("button", name="LL").click()
    expect(page.locator(LINES)).to_have_count(3)
    drawn = lines(page)

    page.evaluate("() => app.extensionManager.command.execute('Comfy.NewBlankWorkflow')")
    expect(page.locator(".sd-chart")).to_have_count(0)
    page.locator(".workflow-tab", has_text="chart").click()
    check_as_left(page, drawn)

    with page.expect_response(lambda response: response.url.endswith("/prompt")):
        page.evaluate("() => app.queuePrompt(0, 1)")
    page.wait_for_function("async () => (await (await fetch('/queue')).json()).queue_running.length === 0")
    page.wait_for_timeout(500)
    check_as_left(page, drawn)

    set_rendering = "(vue) => app.extensionManager.setting.set('Comfy.VueNodes.Enabled', vue)"
    page.evaluate(set_rendering, shown.rendering != "vue")
    expect(page.locator(".sd-chart-svg")).to_be_visible()
    expect(page.locator(LINES)).to_have_count(3)
    page.evaluate(set_rendering, shown.rendering == "vue")


def test_a_slider_in_a_node_moves_the_chart_and_nothing_else(shown: Shown) -> None:
    """What a node sends is kept in the workflow; the same once more changes nothing."""
    page = shown.page
    described = steps(9) | {"notes": ["alpha = 2.10 ± 0.03"]}
    page.evaluate(SEND, [PLOT, described])
    slider = page.get_by_role("slider", name="step")
    expect(slider).to_be_visible()
    before = page.evaluate(POSITIONS)
    track = slider.bounding_box()
    assert track is not None
    middle = track["y"] + track["height"] / 2
    page.mouse.move(track["x"] + 8, middle)
    page.mouse.down()
    page.mouse.move(track["x"] + track["width"] / 2, middle, steps=5)
    page.mouse.up()
    expect(page.locator(".sd-chart-step")).to_have_text("step 4")
    slider.press("ArrowRight")
    expect(page.locator(".sd-chart-step")).to_have_text("step 5")
    page.locator(".sd-chart-notes div").click(click_count=3)
    assert "alpha = 2.10" in page.evaluate("() => getSelection().toString()")
    page.get_by_label("Units").select_option("of Nyquist")
    page.get_by_role("button", name="Pin").click()
    shown.screenshot("scrubber")
    assert page.evaluate(POSITIONS) == before
    same = """([kind, described]) => {
        const plot = app.graph._nodes.find((node) => node.type === kind);
        const kept = plot.properties.spectral_chart_shown;
        plot.onExecuted({ spectral_chart: [described] });
        return kept !== undefined && plot.properties.spectral_chart_shown === kept;
    }"""
    assert page.evaluate(same, [PLOT, described])


def test_the_chart_comes_back_with_the_workflow_on_a_new_page(shown: Shown) -> None:
    page = shown.page
    page.evaluate(SEND, [PLOT, steps(9)])
    pin = page.get_by_role("button", name="Pin", exact=True)
    if pin.is_visible():  # no test before this one has pinned a chart
        pin.click()
    page.get_by_role("button", name="Next").click()
    before = page.locator(".sd-chart-step").inner_text(), page.get_by_label("Units").input_value(), lines(page)
    reload(page)
    expect(page.locator(LINES)).to_have_count(1)
    assert (page.locator(".sd-chart-step").inner_text(), page.get_by_label("Units").input_value()) == before[:2]
    expect(page.get_by_role("button", name="Unpin")).to_be_visible()
    points = [[float(part) for part in re.findall(r"[0-9.]+", one)] for one in (*before[2], *lines(page))]
    assert points[1] == pytest.approx(points[0], abs=0.1)
    shown.screenshot("reloaded")


@pytest.mark.parametrize("held", [5, "x", {"views": [{"series": [{"x": "y"}]}]}, {"views": [{"map": {"values": 1}}]}])
def test_a_workflow_that_holds_no_chart_does_no_harm(held: object, shown: Shown) -> None:
    page = shown.page
    reload(page, held)
    expect(page.locator(".sd-chart")).to_have_count(1)


def reload(page: Page, held: object = None) -> None:
    """The same workflow on a page that remembers nothing, perhaps with something else where charts are kept."""
    workflow = page.evaluate("() => JSON.parse(JSON.stringify(app.graph.serialize()))")
    if held is not None:
        (plot,) = (one for one in workflow["nodes"] if one["type"] == PLOT)
        plot["properties"] |= {"spectral_chart_shown": held, "spectral_chart": held}
    page.reload()
    page.wait_for_function("() => window.app?.graph", timeout=120_000)
    page.wait_for_load_state("networkidle")
    page.evaluate("(workflow) => app.loadGraphData(workflow)", workflow)


def check_as_left(page: Page, drawn: list[str]) -> None:
    expect(page.locator(LINES)).to_have_count(len(drawn))
    assert lines(page) == drawn
    assert page.locator(".sd-chart-pickers [aria-pressed=true]").all_inner_texts() == ["Up", "level 0"]


def lines(page: Page) -> list[str]:
    """What is drawn."""
    found: list[str] = page.locator(LINES).evaluate_all("(all) => all.map((one) => one.getAttribute('d'))")
    return found


def box(page: Page, what: str = ".sd-chart-svg") -> FloatRect:
    found = page.locator(what).bounding_box()
    assert found is not None
    return found


def background(page: Page) -> str:
    found: str = page.locator(".sd-chart").evaluate("(one) => getComputedStyle(one).backgroundColor")
    return found
