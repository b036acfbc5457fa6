"""An evaluation as one self-contained page: scores with what they mean, pictures, spectra, the model, the settings."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from torch import Tensor

from . import html

#: What each score is called, which way is better, and what it says.
SCORES = {
    "fd_effnet": (
        "FD-EffNet",
        "lower",
        "Fréchet distance of EfficientNet-lite0's 112 middle features. Not FID, and not comparable with published FID.",
    ),
    "kid_effnet": (
        "KID-EffNet",
        "lower",
        "Kernel distance of EfficientNet-lite0's 1280 last features, ± its deviation between subsets. Unbiased: it may "
        "fall below 0.",
    ),
    "fid": ("FID", "lower", "Fréchet distance of the 2048 features of Inception V3, the published measure."),
    "clip_score": (
        "CLIP score",
        "higher",
        "100 × the cosine between a picture and its caption, as the CLIP model sees them.",
    ),
    "clip_score_data": ("CLIP score of the data", "", "The same of the real pictures with their captions."),
    "low_error": (
        "Low-band error",
        "lower",
        "Mean |ln ratio| of the power spectra below {cutoff:g} cycles per image; 0.69 is a factor of two.",
    ),
    "high_error": (
        "High-band error",
        "lower",
        "The same from {cutoff:g} cycles per image up: the details that small models lose first.",
    ),
    "alpha": ("Slope α", "near the data's", "Power falls as 1/f^α; in the data α is {alpha_data}."),
    "params": ("Parameters", "", "Of the U-Net."),
    "macs": ("Multiply-adds", "", "Of one call of the U-Net: convolutions and linear layers, one image."),
    "images_per_s": ("Throughput", "", "Images per second, from noise to pixels, as measured while sampling."),
}


def page(report: dict[str, Any], name: str, beside: Tensor, made: Tensor, prompts: Sequence[str], plot: bytes) -> str:
    """The page.

    Args:
        report: what `scoring.score` returns.
        name: of the set of pictures.
        beside: images of the data [N, 3, S, S] in [0, 1].
        made: the pictures [N, 3, S, S] in [0, 1].
        prompts: what each was asked for by; "" for nothing.
        plot: the spectra, a PNG file.

    Returns:
        HTML. Whatever comes from files is escaped; pictures are inside; nothing is fetched.
    """
    about = report.get("checkpoint") or {}
    title = about.get("title") or (about.get("path") or "").replace("\\", "/").rsplit("/", 1)[-1] or report["folder"]
    data = report["data"]
    lead = f"{report['images']:,} {_kind(name)}, {report['size']} × {report['size']} pixels, against "
    lead += f"{data['images']:,} images of {data['path']}."
    sections = [
        f"<h1>{escape(str(title))}</h1><p class='lead'>{escape(lead)}</p>",
        _scores(report),
        html.notes(report["notes"]),
        "<h2>Pictures</h2>",
        _pictures(name, beside, made, prompts),
        "<h2>Radial power spectra</h2>",
        "<p class='soft'>Mean power at each frequency, ±2 standard errors; below it, the ratio to the data's.</p>",
        html.plot(plot, "Radial power spectra"),
        "<h2>How it was measured</h2>",
        _facts(report),
    ]
    return html.document(str(title), sections)


def _kind(name: str) -> str:
    return "images" if name == "images" else f"samples of the {name}"


def _scores(report: dict[str, Any]) -> str:
    rows = []
    for key, (label, better, meaning) in SCORES.items():
        if report.get(key) is None:
            continue
        wanted = f"{better} is better" if better in ("lower", "higher") else better
        direction = f"<br><span class='better'>{escape(wanted)}</span>" if wanted else ""
        said = escape(meaning.format(cutoff=report["cutoff"], alpha_data=report["alpha_data"]))
        rows.append(
            f"<tr><th>{escape(label)}{direction}</th><td class='number'>{_number(key, report)}</td><td>{said}</td></tr>"
        )
    return f"<h2>Scores</h2><table>{''.join(rows)}</table>"


def _number(key: str, report: dict[str, Any]) -> str:
    value = report[key]
    if key in ("params", "macs"):
        return html.million(value)
    if key == "kid_effnet":
        return f"{value:.4f} ± {report['kid_effnet_std']:.4f}"
    if key == "images_per_s":
        speed = report["throughput"]
        processes = "" if speed["processes"] == 1 else f"{speed['processes']} × "
        return f"{value:.3g} / s<br><span class='better'>{processes}{escape(speed['device'])}</span>"
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.2f}"


def _pictures(name: str, beside: Tensor, made: Tensor, prompts: Sequence[str]) -> str:
    """Pairs where there are prompts, data above; otherwise the two sets one after the other."""
    small = " small" if made.shape[-1] <= 128 else ""
    if any(prompts):
        said = (
            f"For each of the first prompts, in the order of the seed: above an image of the data, below the {name}'s."
        )
        cells = [
            f"<figure>{html.picture(above, 'data')}{html.picture(below, name)}"
            f"<figcaption>{escape(prompt)}</figcaption></figure>"
            for above, below, prompt in zip(beside, made, prompts, strict=True)
        ]
        return f"<p class='soft'>{escape(said)}</p><div class='pictures{small}'>{''.join(cells)}</div>"
    parts = []
    for label, images in ((name, made), ("data", beside)):
        cells = [f"<figure>{html.picture(image, label)}</figure>" for image in images]
        parts.append(f"<p class='soft'>{escape(label)}</p><div class='pictures{small}'>{''.join(cells)}</div>")
    return "".join(parts)


#: What the page calls the parts of a report that say how it came about.
FACTS = {
    "checkpoint": "model",
    "data": "data",
    "sampling": "sampling",
    "folder": "pictures",
    "features": "networks",
    "packages": "packages",
    "git": "code",
}


def _facts(report: dict[str, Any]) -> str:
    """Model, data, settings, weights of the networks and versions, as they stand in report.json, digests shortened."""
    rows = []
    for part, called in FACTS.items():
        found = report.get(part)
        items = list(found.items()) if isinstance(found, dict) else [("", found)]
        if part == "sampling":  # the digests stand in the rows above
            items = [(key, value) for key, value in items if key not in ("checkpoint", "data")]
        said = "; ".join(f"{key} {html.said(value)}".strip() for key, value in items if value not in (None, [], {}, -1))
        if said:
            rows.append(f"<tr><th>{escape(called)}</th><td class='code'>{escape(said)}</td></tr>")
    return f"<table>{''.join(rows)}</table>"
