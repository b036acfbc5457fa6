"""The nodes that measure images and latents on a real server: charts that arrive, numbers that are right."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from .prompts import Link, node
from .results import succeed
from .server import ComfyServer, Prompt

POWER, RADIAL = "SpectralDiffusionPowerSpectrum", "SpectralDiffusionRadialSpectrum"
COMPARE, DIFFERENCE = "SpectralDiffusionCompareSpectra", "SpectralDiffusionDFTDifference"
DEFAULTS: dict[str, dict[str, Any]] = {
    POWER: {"above": 0.25},
    RADIAL: {"fit_low": 0.0, "fit_high": 0.375},
    COMPARE: {"cutoff": 28.0},
    DIFFERENCE: {"above": 0.25},
}
Rows = list[dict[str, str]]


def shown(comfy: ComfyServer, prompt: Prompt, name: str = "spectrum") -> dict[str, Any]:
    """What a chart's node tells the page."""
    return succeed(comfy, prompt).outputs[name]


def numbers(comfy: ComfyServer, prompt: Prompt, name: str = "spectrum") -> dict[str, Any]:
    """The numbers that a chart's node shows."""
    found: dict[str, Any] = shown(comfy, prompt, name)["numbers"][0]
    return found


def table(output: dict[str, Any]) -> Rows:
    """The table that a chart's node shows."""
    return list(csv.DictReader(io.StringIO(output["table"][0])))


def text(comfy: ComfyServer, prompt: Prompt, link: Link) -> Rows:
    """The table at one output of a prompt."""
    run = succeed(comfy, {**prompt, "text": node("ProbeText", text=link)})
    return list(csv.DictReader(io.StringIO(run.outputs["text"]["text"][0])))


def measure(kind: str, images: Link, **inputs: Any) -> dict[str, Any]:
    """A spectrum node with the default values of its widgets."""
    return node(kind, images=images, **{"window": "hann", **DEFAULTS[kind], **inputs})


def examples(count: int) -> dict[str, Any]:
    return node("SpectralDiffusionExampleImages", images="emoji-64", count=count)


def save_image(comfy: ComfyServer, name: str, pixels: np.ndarray[Any, np.dtype[np.float64]]) -> dict[str, Any]:
    """Pixels [H, W] in [0, 1] as a file in the input folder, and the node that loads it."""
    grey = Image.fromarray((pixels.clip(0, 1) * 255).round().astype(np.uint8))
    grey.convert("RGB").save(comfy.distribution.base / "input" / name)
    return node("LoadImage", image=name)


def grating(cycles: float, size: int = 64) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Vertical stripes of so many cycles per pixel."""
    return np.broadcast_to(0.5 + 0.5 * np.cos(2 * np.pi * cycles * np.arange(size)), (size, size))


def test_every_chart_is_a_picture_and_a_description(comfy: ComfyServer) -> None:
    prompt: Prompt = {
        "images": examples(64),
        "half": examples(32),
        COMPARE: measure(COMPARE, ["half", 0], reference=["images", 0]),
        DIFFERENCE: measure(DIFFERENCE, ["half", 0], reference=["images", 0]),
        **{kind: measure(kind, ["images", 0]) for kind in (POWER, RADIAL)},
    }
    prompt |= {f"shown {kind}": node("PreviewImage", images=[kind, 0]) for kind in DEFAULTS}
    run = succeed(comfy, prompt)
    for kind in DEFAULTS:
        picture = comfy.image(run.outputs[f"shown {kind}"]["images"][0])
        assert min(picture.size) >= 640
        assert len(picture.getcolors(1 << 24) or ()) > 50
        described = run.outputs[kind]["spectral_chart"][0]
        assert described["title"] and described["notes"] and described["views"]
        for view in described["views"]:
            assert view["series"] or view["map"]["values"]
            assert all(len(line["x"]) == len(line["y"]) > 0 for line in view["series"])
        assert len(json.dumps(described)) < 48_000, "charts travel with the workflow"
        assert table(run.outputs[kind])
    assert 0 < run.outputs[COMPARE]["numbers"][0]["low_error"] < 0.5


def test_a_set_compared_with_itself_has_no_error(comfy: ComfyServer) -> None:
    prompt = {"images": examples(5)}
    prompt |= {
        "spectrum": measure(COMPARE, ["images", 0], reference=["images", 0]),
        "difference": measure(DIFFERENCE, ["images", 0], reference=["images", 0]),
    }
    assert numbers(comfy, prompt) == {"low_error": 0.0, "high_error": 0.0}
    rows = table(shown(comfy, prompt, "difference"))
    assert {float(row["ln_power_ratio"]) for row in rows} == {0.0}
    assert {float(row["pair_difference"]) for row in rows} == {0.0}


def test_the_slope_of_noise_made_with_a_known_slope(comfy: ComfyServer) -> None:
    size, alpha = 256, 2.0
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None])
    frequency[0, 0] = np.inf
    spectrum = np.fft.rfft2(np.random.default_rng(0).normal(size=(size, size))) * frequency ** (-alpha / 2)
    noise = np.fft.irfft2(spectrum, s=(size, size))
    image = save_image(comfy, "slope.png", 0.5 + noise / np.abs(noise).max() / 2)
    prompt = {
        "image": image,
        "spectrum": measure(RADIAL, ["image", 0], fit_high=0.2),
        "power": measure(POWER, ["image", 0]),
    }
    found = numbers(comfy, prompt)
    assert abs(found["alpha"] - alpha) < 3 * found["alpha_error"] + 0.05
    for row in text(comfy, prompt, ["power", 3]):
        assert abs(float(row["alpha"]) - alpha) < 4 * float(row["alpha_error"]) + 0.3


@pytest.mark.parametrize(("turned", "sector"), [(False, "0"), (True, "90")])
def test_where_the_power_of_a_grating_lies(comfy: ComfyServer, turned: bool, sector: str) -> None:
    wave = grating(0.375)
    image = save_image(comfy, f"grating-{sector}.png", wave.T if turned else wave)
    for above, share in ((0.3, 1.0), (0.45, 0.0)):
        prompt = {"image": image, "spectrum": measure(POWER, ["image", 0], above=above)}
        assert numbers(comfy, prompt)["high_share"] == pytest.approx(share, abs=1e-3)
    directions = text(comfy, prompt, ["spectrum", 3])
    assert max(directions, key=lambda row: float(row["mean_power"]))["degrees"] == sector
    bands = text(comfy, prompt, ["spectrum", 4])
    strongest = max(("horizontal", "vertical", "diagonal"), key=lambda name: float(bands[0][name]))
    assert strongest == ("horizontal" if turned else "vertical")


def test_a_mask_chooses_what_is_measured(comfy: ComfyServer) -> None:
    """Fine stripes on the left, coarse ones on the right; masks of ones change nothing, also of another size."""
    wave = np.where(np.arange(128) < 64, grating(0.375, 128), grating(0.0625, 128))
    prompt: Prompt = {
        "image": save_image(comfy, "halves.png", wave),
        "whole": node("SolidMask", value=1.0, width=40, height=40),
        "black": node("SolidMask", value=0.0, width=128, height=128),
        "half": node("SolidMask", value=1.0, width=64, height=128),
        "plain": measure(POWER, ["image", 0], above=0.2),
        "ones": measure(POWER, ["image", 0], above=0.2, mask=["whole", 0]),
    }
    for side, x in (("left", 0), ("right", 64)):
        prompt[f"{side} mask"] = node(
            "MaskComposite", destination=["black", 0], source=["half", 0], x=x, y=0, operation="add"
        )
        prompt[side] = measure(POWER, ["image", 0], above=0.2, mask=[f"{side} mask", 0])
    found = {name: numbers(comfy, prompt, name)["high_share"] for name in ("plain", "ones", "left", "right")}
    assert found["ones"] == found["plain"]
    assert found["left"] > 0.9
    assert found["right"] < 0.1
    prompt["nothing"] = measure(POWER, ["image", 0], mask=["black", 0])
    assert "leaves nothing" in comfy.run(prompt).message


def test_latents_are_measured_as_they_are(comfy: ComfyServer) -> None:
    """White noise between 0 and 1 is flat at its variance, 1/12; latents have no brightness."""
    prompt: Prompt = {
        "latent": node("ProbeLatent", shape="8,4,48,40", fill="noise"),
        "spectrum": measure(RADIAL, ["latent", 0]),
    }
    assert abs(numbers(comfy, prompt)["alpha"]) < 0.1
    rows = table(shown(comfy, prompt))
    filled = [float(row["power"]) for row in rows if int(row["count"]) > 20]
    assert np.mean(filled) == pytest.approx(1 / 12, rel=0.05)
    assert shown(comfy, prompt)["spectral_chart"][0]["x"]["label"] == "spatial frequency (cycles per cell)"
    prompt["luma"] = measure(RADIAL, ["latent", 0], colour="luma")
    assert "no brightness" in comfy.run(prompt).message


def test_models_keep_their_colours_whatever_else_is_compared(comfy: ComfyServer) -> None:
    prompt: Prompt = {"images": examples(8), "others": examples(5), "few": examples(3)}
    sets: dict[str, Link] = {"images_3": ["few", 0], "images_5": ["images", 0]}
    names = "data, emoji64-student, teacher, mine"
    prompt["spectrum"] = measure(COMPARE, ["others", 0], reference=["images", 0], names=names, **sets)
    described = shown(comfy, prompt)["spectral_chart"][0]
    for view in described["views"]:
        assert [line["colour"] for line in view["series"]] == ["#000000", "#D55E00", "#0072B2", "#009E73"]
    errors = text(comfy, prompt, ["spectrum", 5])
    assert [row["set"] for row in errors] == ["data", "emoji64-student", "teacher", "mine"]
    assert (float(errors[3]["distance_db"]), float(errors[1]["distance_db"]) > 0) == (0.0, True)
    assert numbers(comfy, prompt)["low_error"] == pytest.approx(float(errors[1]["low_error"]), rel=1e-5)
    prompt["spectrum"]["inputs"]["names"] = "data, student"
    assert "4 sets are connected" in comfy.run(prompt).message


def test_the_difference_of_pairs_is_what_was_added(comfy: ComfyServer) -> None:
    plain, added = np.full((64, 64), 0.5), 0.25 + 0.5 * grating(0.375)
    prompt = {
        "plain": save_image(comfy, "plain.png", plain),
        "added": save_image(comfy, "added.png", added),
        "images": examples(2),
    }
    for above, share in ((0.3, 1.0), (0.42, 0.0)):
        prompt["spectrum"] = measure(DIFFERENCE, ["added", 0], reference=["plain", 0], above=above, window="none")
        assert numbers(comfy, prompt)["high_share"] == pytest.approx(share, abs=1e-3)
    edge = save_image(comfy, "edge.png", grating(0.5))
    finest = {
        **prompt,
        "edge": edge,
        "spectrum": measure(DIFFERENCE, ["edge", 0], reference=["plain", 0], window="none"),
    }
    rows = table(shown(comfy, finest))
    assert max(rows, key=lambda row: float(row["pair_difference"]))["horizontal_cycles_per_pixel"] == "-0.5"
    assert len(rows) == 64 * 33
    largest = max(table(shown(comfy, prompt)), key=lambda row: float(row["pair_difference"]))
    assert (largest["horizontal_cycles_per_pixel"], largest["vertical_cycles_per_pixel"]) == ("0.375", "0")
    small = {
        "small": node("ImageScale", image=["images", 0], upscale_method="area", width=32, height=64, crop="disabled")
    }
    prompt |= {**small, "spectrum": measure(DIFFERENCE, ["images", 0], reference=["small", 0])}
    assert "sets of one size" in comfy.run(prompt).message


def test_luma_and_masks_hold_for_each_set_of_a_comparison(comfy: ComfyServer) -> None:
    """Green stripes, in luma 0.587 of their brightness; the mask keeps the half of both where they are equal."""
    wave = grating(0.25)
    prompt: Prompt = {
        "grey": save_image(comfy, "luma-grey.png", np.where(np.arange(64) < 32, wave, 0.5)),
        "wave": save_image(comfy, "luma-wave.png", wave),
        "black": node("SolidMask", value=0.0, width=64, height=64),
        "part": node("SolidMask", value=1.0, width=32, height=64),
    }
    prompt["left"] = node("MaskComposite", destination=["black", 0], source=["part", 0], x=0, y=0, operation="add")
    given = {"reference": ["grey", 0], "cutoff": 12.0}
    prompt["whole"] = measure(COMPARE, ["wave", 0], **given)
    prompt["spectrum"] = measure(COMPARE, ["wave", 0], mask=["left", 0], colour="luma", **given)
    assert numbers(comfy, prompt, "whole")["high_error"] > 0.3
    assert numbers(comfy, prompt)["high_error"] == pytest.approx(0, abs=1e-4)


def test_images_are_not_compared_with_latents(comfy: ComfyServer) -> None:
    prompt: Prompt = {"images": examples(2), "latent": node("ProbeLatent", shape="2,4,64,64", fill="noise")}
    for kind in (COMPARE, DIFFERENCE):
        prompt["spectrum"] = measure(kind, ["latent", 0], reference=["images", 0])
        assert "an IMAGE and images a LATENT" in comfy.run(prompt).message


def test_names_that_look_like_numbers_stay_names(comfy: ComfyServer) -> None:
    prompt: Prompt = {"images": examples(3), "others": examples(2)}
    prompt["spectrum"] = measure(COMPARE, ["others", 0], reference=["images", 0], names="64, 1_28", cutoff=12.0)
    saver = {"table": ["spectrum", 5], "filename_prefix": "named", "format": "json"}
    prompt["saved"] = node("SpectralDiffusionSaveSpectrum", **saver)
    (path,) = succeed(comfy, prompt).outputs["saved"]["text"]
    columns = json.loads(Path(path).read_text(encoding="utf-8"))
    assert columns["set"] == ["64", "1_28"]
    assert columns["low_error"][0] == 0.0 < columns["low_error"][1]


def test_a_cut_off_beyond_the_image_is_a_sentence(comfy: ComfyServer) -> None:
    spectrum = measure(COMPARE, ["images", 0], reference=["images", 0], cutoff=500.0)
    assert "leaves a band empty" in comfy.run({"images": examples(2), "spectrum": spectrum}).message


def test_a_blank_image_has_no_slope_and_says_so(comfy: ComfyServer) -> None:
    image = save_image(comfy, "blank.png", np.ones((48, 64)))
    found = shown(comfy, {"image": image, "spectrum": measure(RADIAL, ["image", 0])})
    assert found["numbers"] == [{"alpha": None, "alpha_error": None}]
    assert "No slope" in found["spectral_chart"][0]["notes"][1]
    assert numbers(comfy, {"image": image, "spectrum": measure(POWER, ["image", 0])})["high_share"] == 0.0


@pytest.mark.parametrize("format", ["csv", "json"])
def test_a_table_is_saved_and_never_replaced(comfy: ComfyServer, format: str) -> None:
    prompt = {"images": examples(4), "spectrum": measure(RADIAL, ["images", 0])}
    saver = {"table": ["spectrum", 3], "filename_prefix": f"spectra/{format}", "format": format}
    prompt["saved"] = node("SpectralDiffusionSaveSpectrum", **saver)
    run = succeed(comfy, prompt)
    again = {**prompt, "images": examples(5)}
    assert succeed(comfy, again).outputs["saved"]["text"] != run.outputs["saved"]["text"]
    folder = comfy.distribution.base / "output" / "spectra"
    assert sorted(path.name for path in folder.glob(f"{format}_*")) == [f"{format}_0000{n}_.{format}" for n in (1, 2)]
    written = (folder / f"{format}_00001_.{format}").read_text(encoding="utf-8")
    rows = table(run.outputs["spectrum"])
    if format == "csv":
        assert list(csv.DictReader(io.StringIO(written))) == rows
    else:
        columns = json.loads(written)
        assert list(columns) == list(rows[0])
        assert columns["power"] == [float(row["power"]) for row in rows]
    prompt["saved"]["inputs"]["filename_prefix"] = "../../outside"
    assert "within the output folder" in comfy.run(prompt).message
    for prefix in ("x" * 300, "a\0b"):
        prompt["saved"]["inputs"]["filename_prefix"] = prefix
        assert "filename_prefix of Save Spectrum" in comfy.run(prompt).message
    prompt["saved"]["inputs"] |= {"filename_prefix": "x", "table": ["value", 0]}
    prompt["value"] = node("ProbeValue", value='"no table"')
    assert "is no table" in comfy.run(prompt).message
