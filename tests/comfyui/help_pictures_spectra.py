"""The pictures of the help pages of the spectrum lab: charts of the example images and of the default models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from .help_runs import STUDENT, TEACHER, Recipe, example, prompt, shown, strip
from .panels import MARGIN, Row, sheet
from .prompts import DECODE, LOADER, SAMPLER, SAVE, Link, node
from .results import succeed
from .server import ComfyServer, Prompt
from .test_spectrum_nodes import COMPARE, DIFFERENCE, POWER, RADIAL, measure

#: Size of letters where the picture is a text.
TEXT = 22
#: Steps of the samplings whose predictions are looked at, and of what many samples are made with.
LOOKED_AT, MADE = 20, 20


def charts(comfy: ComfyServer, asked: Prompt, count: int, link: Link | None = None) -> list[Image.Image]:
    """The parts of what the node `chart` draws, which stand side by side."""
    plot = shown(comfy, asked, link or ["chart", 0])[0]
    width = plot.width // count
    return [plot.crop((width * index, 0, width * (index + 1), plot.height)) for index in range(count)]


def said(picture: Image.Image, caption: str, scale: float = 0) -> Row:
    """A chart, and what a reader of a small panel must know of it."""
    return Row([(picture, caption)], scale=scale)


def spectrum_of_examples(kind: str, caption: str) -> Recipe:
    """One of the two charts about a single set."""

    def recipe(comfy: ComfyServer) -> Image.Image:
        asked = {"images": example(64), "chart": measure(kind, ["images", 0])}
        (plot,) = charts(comfy, asked, 1)
        return sheet(strip(comfy, asked, ["images", 0], "64 images, of which ten"), said(plot, caption))

    return recipe


def drawings(model: str, count: int) -> Prompt:
    """Unconditional samples of a model, from the same noise for all models."""
    made = prompt(model=model, cfg=1.0, batch_size=count)
    made[SAMPLER]["inputs"]["steps"] = MADE
    del made[SAVE]
    return made


def both(count: int) -> Prompt:
    """Samples of both default models: the nodes of the teacher have its name in front of theirs."""
    made = drawings(STUDENT, count)
    for name, one in drawings(TEACHER, count).items():
        inputs = {key: [f"teacher {to[0]}", to[1]] if isinstance(to, list) else to for key, to in one["inputs"].items()}
        made[f"teacher {name}"] = node(one["class_type"], **inputs)
    return made


def compare_spectra(comfy: ComfyServer) -> Image.Image:
    """The data that both models were trained on, and as many samples of each."""
    asked = {**both(48), "examples": example(64)}
    links: dict[str, Link] = {"reference": ["examples", 0], "images": [f"teacher {DECODE}", 0]}
    more = {"images_3": [DECODE, 0], "names": "data, teacher, student", "cutoff": 12.0}
    asked["chart"] = measure(COMPARE, links["images"], reference=links["reference"], **more)
    _, ratio = charts(comfy, asked, 2)
    return sheet(
        strip(comfy, asked, links["reference"], "data: what both were trained on"),
        strip(comfy, asked, links["images"], "teacher"),
        strip(comfy, asked, [DECODE, 0], "student"),
        said(ratio, "below the dashed line: less power than the data"),
    )


def dft_difference(comfy: ComfyServer) -> Image.Image:
    """Teacher and student from the same noise."""
    asked = both(32)
    links: list[Link] = [[f"teacher {DECODE}", 0], [DECODE, 0]]
    asked["chart"] = measure(DIFFERENCE, links[1], reference=links[0])
    ratio, pairs = charts(comfy, asked, 2)
    return sheet(
        strip(comfy, asked, links[0], "reference: the teacher"),
        strip(comfy, asked, links[1], "images: the student, from the same noise"),
        Row([(ratio, "blue: the student has less"), (pairs, "bright: what changed most")]),
    )


def evolution(comfy: ComfyServer, pictures: int) -> tuple[Row, list[Image.Image]]:
    """A sampling of the student, recorded: pictures, and the charts of an early step, a late one, and all of them."""
    made = prompt("", node("SpectralDiffusionSpectrumTrace", window="hann"), cfg=1.0, batch_size=16)
    made[SAMPLER]["inputs"] |= {"steps": LOOKED_AT, "scheduler": "normal"}
    trace = made[SAMPLER]["inputs"]["model"][0]
    links: dict[str, Link] = {"evolution": [trace, 1], "samples": [SAMPLER, 0], "vae": [LOADER, 2]}
    made["chart"] = node("SpectralDiffusionSpectrumEvolution", pictures=pictures, **links)
    predicted = [(one, "") for one in shown(comfy, made, ["chart", 1])]
    heading = f"what the student predicts, from step 1 to step {LOOKED_AT}"
    return Row(predicted, heading), charts(comfy, made, 3)


def spectrum_trace(comfy: ComfyServer) -> Image.Image:
    """Every step's power beside the final one."""
    pictures, (_, _, whole) = evolution(comfy, 6)
    return sheet(pictures, said(whole, "orange: noise is left; blue: not there yet"))


def spectrum_evolution(comfy: ComfyServer) -> Image.Image:
    """An early step and a late one beside the last."""
    pictures, (early, late, _) = evolution(comfy, 10)
    return sheet(pictures, said(early, "early: details are missing", 0.75), said(late, "later: they have come", 0.75))


def wiener_filter(comfy: ComfyServer) -> Image.Image:
    """The student's schedule, with the power of the example images."""
    asked = {LOADER: node("SpectralDiffusionLoadCheckpoint", checkpoint=f"{STUDENT}.safetensors"), **encoded()}
    widgets = {"amplitude": 1.0, "alpha": 2.0, "levels": 6, "window": "hann"}
    asked["chart"] = node("SpectralDiffusionWienerFilter", model=[LOADER, 0], images=["latents", 0], **widgets)
    kept, whole = charts(comfy, asked, 2)
    return sheet(
        said(kept, "each curve a time step, from noise (dark) to picture (light)", 0.75),
        said(whole, "bright: comes through; dark: lost in the noise", 0.75),
    )


def encoded(count: int = 64) -> Prompt:
    """The example images as latents of the default models."""
    return {"images": example(count), "latents": node("VAEEncode", pixels=["images", 0], vae=[LOADER, 2])}


def filter_correlation(comfy: ComfyServer) -> Image.Image:
    """Every convolution of the student."""
    asked = {LOADER: node("SpectralDiffusionLoadCheckpoint", checkpoint=f"{STUDENT}.safetensors")}
    asked["chart"] = node("SpectralDiffusionFilterCorrelation", model=[LOADER, 0], latent_size=0)
    layers, maps = charts(comfy, asked, 2)
    return sheet(said(layers, "one point for each convolution"), said(maps, "left: small feature maps; right: large"))


def denoiser_response(comfy: ComfyServer) -> Image.Image:
    """Teacher and student at two noise levels."""
    asked: Prompt = {
        name: node("SpectralDiffusionLoadCheckpoint", checkpoint=f"{model}.safetensors")
        for name, model in ((LOADER, TEACHER), ("second", STUDENT))
    }
    asked |= encoded()
    for name, loader in (("positive", LOADER), ("positive_2", "second")):
        asked[name] = node("SpectralDiffusionUnconditional", model=[loader, 0])
    links: dict[str, Link] = {"model": [LOADER, 0], "positive": ["positive", 0], "samples": ["latents", 0]}
    links |= {"model_2": ["second", 0], "positive_2": ["positive_2", 0]}
    widgets: dict[str, Any] = {
        "names": "teacher, student",
        "levels": 4,
        "frequencies": 8,
        "probes": 16,
        "probe_seed": 0,
    }
    asked["chart"] = node("SpectralDiffusionDenoiserResponse", **links, **widgets)
    later, earlier = charts(comfy, asked, 2)
    return sheet(
        said(later, "further on; dashed: the best linear filter"), said(earlier, "near noise, where less is known")
    )


def save_spectrum(comfy: ComfyServer) -> Image.Image:
    """The first lines of what is written, in both formats."""
    rows = []
    for kind, lines in (("csv", 7), ("json", 9)):
        asked = {"images": example(64), "chart": measure(RADIAL, ["images", 0])}
        saving = {"table": ["chart", 3], "filename_prefix": "spectra/emoji", "format": kind}
        asked["saved"] = node("SpectralDiffusionSaveSpectrum", **saving)
        path = Path(succeed(comfy, asked).outputs["saved"]["text"][0])
        name = path.relative_to(comfy.distribution.base)
        rows.append(Row([(beginning(path.read_text(encoding="utf-8"), lines), "")], str(name), scale=1))
    return sheet(*rows)


def beginning(text: str, lines: int) -> Image.Image:
    """The first lines of a text as a picture."""
    font = ImageFont.load_default(TEXT)
    page = Image.new("RGB", (784, round(lines * TEXT * 1.4) + 2 * MARGIN), "#f3f4f6")
    draw = ImageDraw.Draw(page)
    for index, line in enumerate([*text.splitlines()[: lines - 1], "…"]):
        draw.text((2 * MARGIN, MARGIN + index * TEXT * 1.4), line, fill="#1a1a1a", font=font)
    return page


SPECTRA: dict[str, Recipe] = {
    "power-spectrum": spectrum_of_examples(POWER, "middle: large areas; border: the finest patterns"),
    "radial-spectrum": spectrum_of_examples(RADIAL, "left: large areas; right: the finest patterns"),
    "compare-spectra": compare_spectra,
    "dft-difference": dft_difference,
    "spectrum-trace": spectrum_trace,
    "spectrum-evolution": spectrum_evolution,
    "wiener-filter": wiener_filter,
    "filter-correlation": filter_correlation,
    "denoiser-response": denoiser_response,
    "save-spectrum": save_spectrum,
}
