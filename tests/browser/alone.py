"""The chart of nodes/web on a page of its own, without ComfyUI."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from playwright.sync_api import FloatRect, Page, Route

from ..comfyui.distribution import REPOSITORY
from .conftest import empty_page

WEB = REPOSITORY / "nodes" / "web"
HOST = "http://chart.test/"
KINDS = {".js": "text/javascript", ".css": "text/css"}
PAGE = """<!doctype html><meta charset="utf-8"><link rel="stylesheet" href="/chart.css">
    <body style="display: grid; grid-template-columns: repeat(3, 1fr); grid-auto-rows: 300px; gap: 8px">
"""
#: The colours of a light theme of ComfyUI.
LIGHT = ":root { --comfy-menu-bg: #f5f5f5; --input-text: #222; --descrip-text: #6c6c6c; }"
#: Charts in a grid on the page, each named after its description; what the person chooses in them is kept in `chosen`.
SHOW = """async ([cases, choices]) => {
    const { Chart } = await import("/chart.js");
    window.charts ??= {};
    window.chosen ??= {};
    for (const [name, described] of Object.entries(cases)) {
        if (!charts[name]) {
            const keep = (choice) => (chosen[name] = JSON.parse(JSON.stringify(choice)));
            charts[name] = new Chart(keep, { pictureUrl: (picture) => `/pictures/${picture.filename}` });
            charts[name].element.dataset.name = name;
            document.body.append(charts[name].element);
        }
        charts[name].show(described, choices[name] ?? chosen[name]);
    }
    await new Promise((then) => requestAnimationFrame(() => requestAnimationFrame(then)));
}"""

FACTORS = {"cycles/pixel": 1.0, "of Nyquist": 2.0, "cycles/image": 64.0}
UNITS = [{"name": name, "label": f"frequency ({name})", "factor": factor} for name, factor in FACTORS.items()]
X = {"label": "frequency", "log": True, "toggle": True, "units": UNITS}
Y = {"label": "power", "log": True, "toggle": True}
FREQUENCIES = [0.015625, 0.0625, 0.25, 0.5]


@contextmanager
def chart_page(scale: float = 1) -> Iterator[Page]:
    """A browser at an empty page beside the files of nodes/web."""
    with empty_page(scale) as page:
        page.route("**/*", serve)
        page.goto(HOST)
        yield page


def serve(route: Route) -> None:
    """The files of nodes/web, and a page around them."""
    path = WEB / route.request.url.removeprefix(HOST)
    if path.suffix in KINDS:
        route.fulfill(body=path.read_text(encoding="utf-8"), content_type=KINDS[path.suffix])
    elif "/pictures/" in route.request.url:
        route.fulfill(status=404)
    else:
        route.fulfill(body=PAGE, content_type="text/html")


def show(page: Page, choices: dict[str, Any] | None = None, **cases: Any) -> None:
    """Charts of these descriptions, drawn; those of names that are there already show the new ones.

    Args:
        choices: what persons chose in them, instead of what was chosen on this page.
    """
    page.evaluate(SHOW, [cases, choices or {}])


def call(page: Page, name: str, *given: Any, module: str = "numbers") -> Any:
    """The result of one of the functions of chart_numbers.js, or of another of the modules."""
    script = """async ([module, name, given]) => (await import(`/chart_${module}.js`))[name](...given)"""
    return page.evaluate(script, [module, name, list(given)])


def odd(*series: dict[str, Any], **axes: dict[str, Any]) -> dict[str, Any]:
    """A description of one view."""
    return {"title": "odd", "x": {"label": "x"}, "y": {"label": "y"}, "views": [{"name": "", "series": series}], **axes}


def steps(count: int = 5) -> dict[str, Any]:
    """Spectra that become steeper from step to step, of two kinds."""
    views = [
        {"name": [kind, f"{index}"], "series": [{"name": "prediction", "x": FREQUENCIES, "y": y}]}
        for kind in ("luma", "colour")
        for index in range(count)
        for y in [[frequency ** -(1 + index / 2) for frequency in FREQUENCIES]]
    ]
    return {"title": "evolution", "x": X, "y": Y, "scrub": {"part": 1, "label": "step"}, "views": views}


def ticks(page: Page, name: str) -> tuple[list[tuple[float, float]], list[tuple[float, float]]]:
    """Values and places of a chart's ticks, along x and along y, from what is written beside them."""
    texts = page.locator(f"[data-name='{name}'] .sd-chart-axes text:not(.sd-chart-label)").evaluate_all(
        "(all) => all.map((t) => [t.getAttribute('text-anchor'), t.textContent, Number(t.getAttribute('x')), "
        "Number(t.getAttribute('y'))])"
    )
    texts = [(anchor, text, x, y) for anchor, text, x, y in texts if text[-1:].isdigit()]  # marks have words
    across = [(number(text), x) for anchor, text, x, _ in texts if anchor == "middle"]
    return across, [(number(text), y - 4) for anchor, text, _, y in texts if anchor == "end"]


def number(text: str) -> float:
    """What a tick or a value says."""
    plain = text.translate(str.maketrans("−⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "--0123456789"))
    raised = text != plain and "10" in text and any(digit in text for digit in "⁰¹²³⁴⁵⁶⁷⁸⁹")
    if not raised:
        return float(plain)
    lead, power = plain.split("·10") if "·" in plain else ("1", plain.removeprefix("10"))
    return float(lead) * 10.0 ** int(power)


def box(page: Page, name: str, what: str = ".sd-chart-svg") -> FloatRect:
    """Where a part of a chart lies on the page."""
    found = page.locator(f"[data-name='{name}'] {what}").bounding_box()
    assert found is not None
    return found


def contrast(one: list[int], other: list[int]) -> float:
    """WCAG 2.1's contrast ratio."""

    def luminance(rgb: list[int]) -> float:
        linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in (part / 255 for part in rgb)]
        return float(np.dot([0.2126, 0.7152, 0.0722], linear))

    dark, light = sorted([luminance(one), luminance(other)])
    return (light + 0.05) / (dark + 0.05)
